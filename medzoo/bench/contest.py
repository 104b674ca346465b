"""Building a row: our model, its peers with the same tensors, and inputs.

Every tensor is perturbed first, so that agreement means something: fresh biases are zero and fresh norms are
identities, and would hide an error in either.

On a GPU the inputs of successive calls take twice the L2 cache together, so each call reads its input from memory. The
cache is not flushed between calls: the weights stay there as they do in use.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import medzoo
from medzoo.bench.cases import Case
from medzoo.bench.failures import describe_error, recover
from medzoo.bench.parts import build_part
from medzoo.bench.peers import PEERS, Absent

__all__ = ["OURS", "Contest", "build"]

T = TypeVar("T")

OURS = "medzoo"
# The least number of different inputs for successive calls, so that none is served from a cache.
ROTATED = 3
# Where the driver does not report the L2 cache; no current GPU has more.
L2_BYTES = 128 << 20


@dataclass
class Contest:
    """What takes part in one row.

    Attributes:
        case: the row.
        modules: our model first, then each peer that is here.
        calls: how each is called; the result of a training call is the output, its gradients lie in the module.
        inputs: tensors to call with in turn.
        absent: peers that could not come, with the reason.
    """

    case: Case
    modules: dict[str, nn.Module]
    calls: dict[str, Callable[[Tensor], Tensor]]
    inputs: list[Tensor]
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return self.inputs[0].device

    def drop(self, name: str, reason: str) -> None:
        """Go on without a peer."""
        self.absent[name] = reason
        del self.modules[name], self.calls[name]
        recover(self.device)

    def attempt(self, name: str, step: Callable[[], T]) -> T | None:
        """Run a step of one participant; a peer that fails is dropped, and ``None`` returned.

        Raises:
            Exception: our own step failed.
            DeviceLost: the GPU does not work any more.
        """
        try:
            done = step()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # an error of a kernel arrives here, and names who caused it
            return done
        except Exception as error:
            if name == OURS:
                raise
            reason = describe_error(error)
        self.drop(name, reason)
        return None


def build(case: Case, device: torch.device) -> Contest:
    """Build the models of a case on a device, with one seed for everything random."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    if case.part:
        return _of_part(case, device, dtype)
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
    # Last, so that a model which shares its tensors with the optimised one is not copied with it.
    modules = {OURS: model if case.mode == "train" else optimized(model, case, device), **modules}
    inputs = _inputs((case.batch, channels, *case.size), device, dtype)
    if case.graph:
        capture(modules[OURS], inputs[0])
    call = train_call if case.mode == "train" else forward_call
    return Contest(case, modules, {name: call(module) for name, module in modules.items()}, inputs, absent)


def optimized(model: Any, case: Case, device: torch.device) -> nn.Module:
    """Return the optimized model of a case, with a CUDA graph where the case asks for one and the device has them."""
    options: dict[str, Any] = {"cuda_graph": True} if case.graph and device.type == "cuda" else {}
    made: nn.Module = medzoo.optimize(model, **options)
    return made


def capture(module: nn.Module, x: Tensor) -> None:
    """Run the first forward pass, which captures the CUDA graph.

    Raises:
        RuntimeWarning: there was no capture; the row would time the model without a graph.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*without a CUDA graph", category=RuntimeWarning)
        forward_call(module)(x)


def _of_part(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
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
    inputs = _inputs(part.shape, device, dtype)
    return Contest(case, modules, {name: forward_call(module) for name, module in modules.items()}, inputs, absent)


def _inputs(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Return random inputs, on a GPU as many as exceed twice its L2 cache."""
    count = ROTATED
    if device.type == "cuda":
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", L2_BYTES)
        count = max(count, 1 + 2 * cache // (math.prod(shape) * dtype.itemsize))
    return [torch.randn(shape, device=device).to(dtype) for _ in range(count)]


def _options(case: Case) -> dict[str, Any]:
    """Return the builder options of a case: no dropout in training, where chance would part the peers."""
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
    """Move every vector, position table and running statistic away from its start."""
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
    """Return a forward and a backward pass; no optimiser, whose step is the same for everyone."""
    weights: dict[torch.Size, Tensor] = {}

    def call(x: Tensor) -> Tensor:
        module.zero_grad(set_to_none=True)
        out = module(x)
        if out.shape not in weights:
            # A sum would be blind where norms make outputs sum to zero.
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
