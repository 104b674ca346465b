"""Patch merging on a CPU, slab by slab, so that intermediate results stay in the cache.

Axes: b batch, d h w depth height width, i j k the position in a 2 x 2 x 2 cell, c channels, o output channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from medzoo.kernels.cpu.linear import linear
from medzoo.kernels.cpu.recompute import Sums, gradients, refuse_second_derivative, through_linear
from medzoo.kernels.cpu.slabs import SLAB, keep_freed_memory

__all__ = ["MergeBySlabs", "merge_by_slabs"]

Octants = Sequence[tuple[int, ...]]


def merge_by_slabs(x: Tensor, octants: Octants, eps: float, weights: Sequence[Tensor]) -> Tensor:
    """Merge in inference, ``b d h w c -> b d/2 h/2 w/2 o``; see :class:`MergeBySlabs` for the arguments."""
    b, d, h, w, _ = x.shape
    out = x.new_empty(b, d // 2, h // 2, w // 2, len(weights[2]))
    for fine, coarse in _slabs(x):
        normed = _normed(_side_by_side(x[fine], octants).flatten(0, 3), weights, eps)
        out[coarse] = linear(normed, weights[2]).view(out[coarse].shape)
    return out


class MergeBySlabs(torch.autograd.Function):
    """Patch merging that keeps its input alone for the backward pass, and computes the rest again slab by slab.

    Inputs: the map, the octants as positions in a cell, the norm's eps, weight and bias of the norm, and weight of the
    reduction.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, octants: Octants, eps: float, *weights: Tensor) -> Tensor:
        """Merge."""
        ctx.octants, ctx.eps = octants, eps
        ctx.save_for_backward(x, *weights)
        return merge_by_slabs(x, octants, eps, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Merge each slab again, and go back through it."""
        refuse_second_derivative("PatchMerging")
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
                    for octant, piece in zip(ctx.octants, pieces, strict=True):
                        _cells(to_x[fine])[octant] += piece
        return to_x, None, None, *sums.values


def _normed(cells: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    return F.layer_norm(cells, cells.shape[1:], weights[0], weights[1], eps)


def _slabs(x: Tensor) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Yield each slab of the map and of the merged map."""
    keep_freed_memory()
    b, d, h, w, c = x.shape
    thick = max(1, SLAB // (8 * h * w * c))
    for sample, start in itertools.product(range(b), range(0, d // 2, thick)):
        one, stop = slice(sample, sample + 1), min(start + thick, d // 2)
        yield (one, slice(2 * start, 2 * stop)), (one, slice(start, stop))


def _side_by_side(x: Tensor, octants: Octants) -> Tensor:
    """Lay the octants of each cell side by side, ``b d h w c -> b d/2 h/2 w/2 8c``."""
    cells = _cells(x)
    return torch.cat([cells[octant] for octant in octants], -1)


def _cells(x: Tensor) -> Tensor:
    """Return a view by the position in a cell, ``b d h w c -> i j k b d/2 h/2 w/2 c``."""
    return rearrange(x, "b (d i) (h j) (w k) c -> i j k b d h w c", i=2, j=2, k=2)
