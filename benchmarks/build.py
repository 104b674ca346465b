"""Builds a case: medzoo's model, its peers with the same tensors, and inputs.

On a GPU the inputs of successive calls together take more than twice the L2 cache, so that each call reads its input
from memory. The cache is not flushed between calls: the weights stay in it, as they do in use.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

import medzoo
from benchmarks.cases import Case
from benchmarks.peers import Absent, build_models

T = TypeVar("T")

OURS = "medzoo"
# The least number of different inputs for successive calls, so that none is served from a cache.
MIN_INPUTS = 3
# For drivers that do not report the L2 cache; no current GPU has more.
L2_BYTES = 128 << 20


class DeviceLost(Exception):
    """The GPU refuses all further work of this process, as after an illegal memory access."""


def describe_error(error: BaseException) -> str:
    """Return the type of an error and the start of its message, in one line.

    >>> describe_error(ValueError("too   large"))
    'ValueError: too large'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def release(device: torch.device) -> None:
    """Free unused memory; what PyTorch keeps cached counts as used in the free memory of a GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def recover(device: torch.device) -> None:
    """Release memory after an error; raise :class:`DeviceLost` if the device no longer works.

    Call it after the ``except`` block: the error's traceback keeps its tensors.
    """
    try:
        release(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.ones(1, device=device).item()
    except RuntimeError as error:
        raise DeviceLost(describe_error(error)) from None


@dataclass
class BuiltCase:
    """A case with its models and inputs."""

    case: Case
    modules: dict[str, nn.Module]  # medzoo's model first, then each available peer
    calls: dict[str, Callable[[Tensor], Tensor]]  # a training call leaves the gradients in the module
    inputs: list[Tensor]  # to call with in turn
    absent: dict[str, str] = field(default_factory=dict)  # peers that cannot take part, with the reason

    @property
    def device(self) -> torch.device:
        """The device of all models and inputs."""
        return self.inputs[0].device

    def drop(self, name: str, reason: str) -> None:
        """Remove a peer and record the reason."""
        self.absent[name] = reason
        del self.modules[name], self.calls[name]
        recover(self.device)

    def attempt(self, name: str, step: Callable[..., T], *arguments: Any) -> T | None:
        """Run a step of one model; a peer that fails is dropped, and ``None`` returned. medzoo's failure is raised."""
        try:
            done = step(*arguments)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # raises the error of a kernel here, where its model is known
            return done
        except Exception as error:
            if name == OURS:
                raise
            reason = describe_error(error)
        self.drop(name, reason)
        return None


def build_case(case: Case, device: torch.device) -> BuiltCase:
    """Build the models of a case on a device, with one seed for everything random.

    Raises:
        RuntimeWarning: a CUDA graph was not captured; the row would time the model without one.
    """
    torch.manual_seed(0)
    dtype, training = getattr(torch, case.dtype), case.mode == "train"
    models = build_models(case)
    ours = models.module.train(training).to(device, dtype)
    peers: dict[str, nn.Module] = {}
    absent = {}
    for name in case.peers:
        try:
            peers[name] = models.peer(name).train(training).to(device, dtype)
        except Absent as reason:
            absent[name] = str(reason)
        except Exception as error:
            absent[name] = describe_error(error)
    # Last, so that a peer which shares the model's tensors is not copied with the optimized model.
    modules = {OURS: ours if training or case.part else optimized(ours, case, device), **peers}
    inputs = _inputs(models.shape, device, dtype)
    calls: dict[str, Callable[[Tensor], Tensor]]
    calls = {name: functools.partial(train if training else forward, module) for name, module in modules.items()}
    if case.graph:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*without a CUDA graph", category=RuntimeWarning)
            calls[OURS](inputs[0])  # captures it
    return BuiltCase(case, modules, calls, inputs, absent)


def optimized(model: nn.Module, case: Case, device: torch.device) -> nn.Module:
    """Return the optimized model, with a CUDA graph if the case asks for one and the device has them."""
    options = {"cuda_graph": True} if case.graph and device.type == "cuda" else {}
    return cast(nn.Module, medzoo.optimize(cast(Any, model), **options))


def _inputs(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Return random inputs, on a GPU as many as exceed twice its L2 cache."""
    count = MIN_INPUTS
    if device.type == "cuda":
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", L2_BYTES)
        count = max(count, 1 + 2 * cache // (math.prod(shape) * dtype.itemsize))
    return [torch.randn(shape, device=device).to(dtype) for _ in range(count)]


def forward(module: nn.Module, x: Tensor) -> Tensor:
    """Run a forward pass without autograd."""
    with torch.inference_mode():
        return cast(Tensor, module(x))


def train(module: nn.Module, x: Tensor) -> Tensor:
    """Run a forward and a backward pass; no optimizer, whose step is the same for all."""
    module.zero_grad(set_to_none=True)
    out: Tensor = module(x)
    (out * _loss_weights(out.shape, out.device, out.dtype)).sum().backward()  # type: ignore[no-untyped-call]
    return out.detach()


@functools.cache
def _loss_weights(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return random weights: with a plain sum, gradients would vanish where a norm makes the outputs sum to zero."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 in float32: on a GPU, convolutions would use TF32 and agree to three digits only."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
