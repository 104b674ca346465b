"""Helpers for tensors that several test files use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import medzoo

# Options of a small, fast cnn3d_small.
TINY = {"size": 16, "widths": (4, 8, 8), "hidden": 8}


def tiny(name: str, **options: Any) -> Any:
    """Create a registered model in its small, fast form."""
    return medzoo.create(name, **dict(medzoo.describe(name).tiny) | options)


def batch(name: str, n: int = 2, **options: Any) -> Tensor:
    """Return random images for such a model."""
    spec = medzoo.describe(name)
    return torch.randn(n, options.get("in_chans", spec.input_spec.channels), *spec.tiny_size)


def scatter_weights(module: nn.Module) -> None:
    """Perturb every parameter, so that no bias is zero and no norm is one."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


def changed(path: Path, **tensors: Tensor | None) -> None:
    """Rewrite the file with some tensors replaced, or removed if the value is None."""
    merged = load_file(path) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in merged.items() if tensor is not None}, path)


@contextmanager
def pytorch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def process_group(folder: Path) -> Iterator[None]:
    """Let this process be a group of its own inside, as DistributedDataParallel needs."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
