"""Builds a case: medzoo's model, its peers with the same tensors, and inputs.

Every tensor is perturbed first: fresh biases are zero and fresh norms are identities, and would hide an error in
either.

On a GPU the inputs of successive calls together take more than twice the L2 cache, so that each call reads its input
from memory. The cache is not flushed between calls: the weights stay in it, as they do in use.
"""

from __future__ import annotations

import contextlib
import gc
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import medzoo
from benchmarks.cases import Case
from benchmarks.peers import PEERS, Absent, build_part

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
    """Release memory after an error, and check that the device still works.

    Call it after the ``except`` block: the error's traceback keeps its tensors.

    Raises:
        DeviceLost: every further call would fail too.
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
    """A case with its models and inputs.

    Attributes:
        case: the case.
        modules: medzoo's model first, then each available peer.
        calls: how each is called. A training call returns the output and leaves the gradients in the module.
        inputs: tensors to call with in turn.
        absent: peers that cannot take part, with the reason.
    """

    case: Case
    modules: dict[str, nn.Module]
    calls: dict[str, Callable[[Tensor], Tensor]]
    inputs: list[Tensor]
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The device of all models and inputs."""
        return self.inputs[0].device

    def drop(self, name: str, reason: str) -> None:
        """Remove a peer and record the reason."""
        self.absent[name] = reason
        del self.modules[name], self.calls[name]
        recover(self.device)

    def attempt(self, name: str, step: Callable[[], T]) -> T | None:
        """Run a step of one model; a peer that fails is dropped, and ``None`` returned.

        Raises:
            Exception: medzoo's own step failed.
            DeviceLost: the GPU no longer works.
        """
        try:
            done = step()
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
    """Build the models of a case on a device, with one seed for everything random."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    if case.part:
        return _build_part(case, device, dtype)
    model: Any = medzoo.create(case.model, **_options(case))
    perturb_parameters(model)
    channels = model.input_spec.channels
    model.train(case.mode == "train").to(device, dtype)
    modules: dict[str, nn.Module] = {}
    absent = {}
    for name in case.peers:
        try:
            modules[name] = PEERS[name](model).train(case.mode == "train").to(device, dtype)
        except Absent as reason:
            absent[name] = str(reason)
        except Exception as error:
            absent[name] = describe_error(error)
    # Last, so that a peer which shares the model's tensors is not copied with the optimized model.
    modules = {OURS: model if case.mode == "train" else optimized(model, case, device), **modules}
    inputs = _inputs((case.batch, channels, *case.size), device, dtype)
    if case.graph:
        capture(modules[OURS], inputs[0])
    call = train_call if case.mode == "train" else forward_call
    return BuiltCase(case, modules, {name: call(module) for name, module in modules.items()}, inputs, absent)


def optimized(model: Any, case: Case, device: torch.device) -> nn.Module:
    """Return the optimized model, with a CUDA graph if the case asks for one and the device has them."""
    options: dict[str, Any] = {"cuda_graph": True} if case.graph and device.type == "cuda" else {}
    made: nn.Module = medzoo.optimize(model, **options)
    return made


def capture(module: nn.Module, x: Tensor) -> None:
    """Run the first forward pass, which captures the CUDA graph.

    Raises:
        RuntimeWarning: the capture failed; the row would time the model without a graph.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*without a CUDA graph", category=RuntimeWarning)
        forward_call(module)(x)


def _build_part(case: Case, device: torch.device, dtype: torch.dtype) -> BuiltCase:
    """Build one part of a model beside the peers' same part."""
    part = build_part(case, perturb_parameters)
    modules: dict[str, nn.Module] = {OURS: part.module}
    absent = {}
    for name in case.peers:
        try:
            modules[name] = part.peer(name)
        except Absent as reason:
            absent[name] = str(reason)
    for module in modules.values():
        module.eval().to(device, dtype)
    calls = {name: forward_call(module) for name, module in modules.items()}
    return BuiltCase(case, modules, calls, _inputs(part.shape, device, dtype), absent)


def _inputs(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Return random inputs, on a GPU as many as exceed twice its L2 cache."""
    count = MIN_INPUTS
    if device.type == "cuda":
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", L2_BYTES)
        count = max(count, 1 + 2 * cache // (math.prod(shape) * dtype.itemsize))
    return [torch.randn(shape, device=device).to(dtype) for _ in range(count)]


def _options(case: Case) -> dict[str, Any]:
    """Return the builder options of a case; no dropout in training, whose random masks would differ from the peer's."""
    options = dict(medzoo.describe(case.model).tiny) if case.tiny else {}
    if case.model == "swin_encoder_mlp":
        return options | {"num_classes": 0}
    if case.model in ("cnn3d_small", "xray_cnn"):
        options["size"] = case.size
    if case.mode == "train" and case.model in ("cnn3d_small", "cnn3d_base", "xray_cnn"):
        options["dropout"] = 0.0
    return options


@torch.no_grad()
def perturb_parameters(module: nn.Module) -> None:
    """Move every vector, bias table and running statistic away from its initial value."""
    for name, tensor in module.named_parameters():
        if tensor.ndim == 1:
            tensor.add_(torch.randn_like(tensor), alpha=0.1)
        elif name.endswith("relative_position_bias_table"):
            tensor.normal_(std=0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


def forward_call(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a forward pass without autograd."""

    def call(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(x)

    return call


def train_call(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a forward and a backward pass; no optimizer, whose step is the same for all."""
    weights: dict[torch.Size, Tensor] = {}

    def call(x: Tensor) -> Tensor:
        module.zero_grad(set_to_none=True)
        out = module(x)
        if out.shape not in weights:
            # With a plain sum, gradients would vanish where a norm makes the outputs sum to zero.
            generator = torch.Generator().manual_seed(1)
            weights[out.shape] = torch.randn(out.shape, generator=generator).to(out.device, out.dtype)
        (out * weights[out.shape]).sum().backward()
        return out.detach()

    return call


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 in float32: on a GPU, convolutions would use TF32 and agree to three digits only."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
