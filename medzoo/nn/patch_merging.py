"""Patch merging: eight neighbouring tokens become one of twice the width.

Axes: b batch, d h w depth height width, i j k the place in a 2 x 2 x 2 cell, c channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from medzoo.kernels.cpu.linear import linear
from medzoo.kernels.cpu.recompute import Sums, gradients, refuse_twice, through_linear
from medzoo.kernels.cpu.slabs import keep_freed_memory
from medzoo.kernels.dispatch import kernel_serves
from medzoo.nn.fast_path import SLAB, fast_path_for, needs_gradient

__all__ = ["OCTANTS", "PatchMerging"]

# The octants laid side by side, each as its place along d, h, w. MONAI up to 1.4 read 010 and 001 twice, and 110 and
# 011 never; 1.5 mended it (pull request 8285) under the same keys and shapes, so weights remember their arithmetic.
OCTANTS = {
    "monai1.4": "000 100 010 001 101 010 001 111",
    "monai1.5": "000 100 010 001 110 101 011 111",
    "v2": "000 001 010 011 100 101 110 111",
}

Octants = Sequence[tuple[int, ...]]


class PatchMerging(nn.Module):
    """Halve each spatial axis and double the channels, ``b d h w c -> b d/2 h/2 w/2 2c``.

    Args:
        channels: channels of the input.
        order: a key of :data:`OCTANTS`.
    """

    def __init__(self, channels: int, order: str) -> None:
        super().__init__()
        self.octants = [tuple(map(int, place)) for place in OCTANTS[order].split()]
        self.norm = nn.LayerNorm(8 * channels)
        self.reduction = nn.Linear(8 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Merge. Every side of the map is even."""
        weights = (self.norm.weight, self.norm.bias, self.reduction.weight)
        as_made = self.reduction.bias is None and not any(weight is None for weight in weights)
        if as_made and fast_path_for(self, x, (nn.LayerNorm, nn.Linear)):
            differentiated = needs_gradient(self, x)
            if kernel_serves("merge_patches", x) and not differentiated and self._fits_kernel(x, weights):
                return self._by_kernel(x)
            if x.is_cuda:
                return self.reduction(self.norm(_side_by_side(x, self.octants)))
            if differentiated:
                return cast(Tensor, _BySlabs.apply(x, self.octants, self.norm.eps, *weights))
            return _merge(x, self.octants, self.norm.eps, weights)
        return self.reduction(self.norm(_side_by_side(x, self.octants)))

    def _fits_kernel(self, x: Tensor, weights: Sequence[Tensor]) -> bool:
        """Whether the kernel in Triton computes this on ``x``."""
        from medzoo.kernels.cuda.swin_layers import WIDEST

        c = x.shape[-1]
        narrow = x.numel() > 0 and c <= WIDEST and weights[2].shape == (2 * c, 8 * c)
        alike = all(w.dtype == x.dtype and w.is_contiguous() for w in weights) and x.is_contiguous()
        return narrow and alike and not torch.is_autocast_enabled(x.device.type)

    def _by_kernel(self, x: Tensor) -> Tensor:
        from medzoo.kernels.cuda.swin_layers import merge_patches

        weights = self.norm.weight, self.norm.bias, self.reduction.weight
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # where kernels are launched
            return merge_patches(x, self.octants, *weights, self.norm.eps)


def _merge(x: Tensor, octants: Octants, eps: float, weights: Sequence[Tensor]) -> Tensor:
    """Merge without autograd: as in a block, a slab at a time keeps what lies between the operations in the cache."""
    b, d, h, w, _ = x.shape
    out = x.new_empty(b, d // 2, h // 2, w // 2, len(weights[2]))
    for fine, coarse in _slabs(x):
        normed = _normed(_side_by_side(x[fine], octants).flatten(0, 3), weights, eps)
        out[coarse] = linear(normed, weights[2]).view(out[coarse].shape)
    return out


class _BySlabs(torch.autograd.Function):
    """Patch merging that keeps its input alone for the backward pass, and computes the rest again slab by slab.

    Inputs: the map, the octants, the norm's eps, weight and bias of the norm, and weight of the reduction.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, octants: Octants, eps: float, *weights: Tensor) -> Tensor:
        ctx.octants, ctx.eps = octants, eps
        ctx.save_for_backward(x, *weights)
        return _merge(x, octants, eps, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_twice("PatchMerging")
        x, *weights = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]]
        sums = Sums(len(weights))
        # Where an octant is read twice another is never read, and its gradient is zero.
        to_x = torch.zeros_like(x, memory_format=torch.contiguous_format) if wanted[0] else None
        with torch.enable_grad():
            leaves = [w.detach().requires_grad_(want) for w, want in zip(weights, wanted[1:], strict=True)]
            for fine, coarse in _slabs(x):
                cells = _side_by_side(x[fine], ctx.octants).flatten(0, 3).detach().requires_grad_(wanted[0])
                normed = _normed(cells, leaves, ctx.eps)
                to_normed, *last = through_linear(grad[coarse].flatten(0, 3), normed, leaves[2])
                to_cells, *to_norm = gradients(normed, [cells, *leaves[:2]], to_normed)
                sums.add([*to_norm, last[0]])
                if to_x is not None and to_cells is not None:
                    pieces = to_cells.view(*grad[coarse].shape[:4], 8, -1).unbind(4)
                    for place, piece in zip(ctx.octants, pieces, strict=True):
                        _cells(to_x[fine])[place] += piece
        return to_x, None, None, *sums.values


def _normed(cells: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    return F.layer_norm(cells, cells.shape[1:], weights[0], weights[1], eps)


def _slabs(x: Tensor) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Yield where each slab lies on the map and on the merged one."""
    keep_freed_memory()
    b, d, h, w, c = x.shape
    thick = max(1, SLAB // (8 * h * w * c))
    for sample, start in itertools.product(range(b), range(0, d // 2, thick)):
        one, stop = slice(sample, sample + 1), min(start + thick, d // 2)
        yield (one, slice(2 * start, 2 * stop)), (one, slice(start, stop))


def _side_by_side(x: Tensor, octants: Octants) -> Tensor:
    """Lay the octants of each cell side by side, ``b d h w c -> b d/2 h/2 w/2 8c``."""
    cells = _cells(x)
    return torch.cat([cells[place] for place in octants], -1)


def _cells(x: Tensor) -> Tensor:
    """Return a view by the place in a cell, ``b d h w c -> i j k b d/2 h/2 w/2 c``."""
    return rearrange(x, "b (d i) (h j) (w k) c -> i j k b d h w c", i=2, j=2, k=2)
