"""Building a row: our model, its peers with the same tensors, and inputs.

Every tensor is stirred first, so that agreement means something: fresh biases are zero and fresh norms are identities,
and would hide an error in either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import medzoo
from medzoo.bench.cases import Case
from medzoo.bench.parts import build_part
from medzoo.bench.peers import PEERS, Absent

__all__ = ["OURS", "Contest", "build"]

OURS = "medzoo"
# Different inputs for successive calls, so that none is served from a cache.
ROTATED = 3


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


def build(case: Case, device: torch.device) -> Contest:
    """Build the models of a case on a device, with one seed for everything random."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    if case.part:
        return _of_part(case, device, dtype)
    model: Any = medzoo.create(case.model, **_options(case))
    stir(model)
    channels = model.input_spec.channels
    model.train(case.mode == "train").to(device, dtype)
    modules: dict[str, nn.Module] = {}
    absent = {}
    for name in case.peers:
        try:
            modules[name] = PEERS[name](model).train(case.mode == "train").to(device, dtype)
        except Absent as reason:
            absent[name] = str(reason)
    # Last, so that a model which shares its tensors with the optimised one is not copied with it.
    modules = {OURS: model if case.mode == "train" else medzoo.optimize(model), **modules}
    inputs = [torch.randn(case.batch, channels, *case.size).to(device, dtype) for _ in range(ROTATED)]
    call = train_call if case.mode == "train" else forward_call
    return Contest(case, modules, {name: call(module) for name, module in modules.items()}, inputs, absent)


def _of_part(case: Case, device: torch.device, dtype: torch.dtype) -> Contest:
    """Build one part of a model beside the peers' same part."""
    part = build_part(case, stir)
    modules: dict[str, nn.Module] = {OURS: part.module}
    absent = {}
    for name in case.peers:
        try:
            modules[name] = part.peer(name)
        except Absent as reason:
            absent[name] = str(reason)
    for module in modules.values():
        module.eval().to(device, dtype)
    inputs = [torch.randn(part.shape).to(device, dtype) for _ in range(ROTATED)]
    return Contest(case, modules, {name: forward_call(module) for name, module in modules.items()}, inputs, absent)


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
def stir(module: nn.Module) -> None:
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
