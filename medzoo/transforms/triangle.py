"""``Preprocessing.resample="triangle"``: an antialiased, separable filter, one axis after the other.

A voxel of the result is a weighted mean of the voxels around its centre. The weights fall linearly to 0 at a distance
of one voxel of the coarser of the two grids: where an axis shrinks, the filter is a triangle as wide as two steps of
the result, which Pillow calls BILINEAR when it reduces, and torchvision ``antialias=True``; where it grows, this is
linear interpolation. Weights beyond the border are left out, and the others add up to 1.

The axes are taken in the order in which they are in memory, and that which shrinks most first: a scan is read once, and
every further pass is over a smaller volume.

Axes: c channels, s spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["AxisGrid", "resample_by_triangle", "resize_by_triangle"]

# PyTorch's kernel counts the pixels of an axis in float32, of which one more would not be exact.
LONGEST = 2**22
# Voxels that a grid may be moved by and counts as unchanged.
UNMOVED = 1e-6


class AxisGrid(NamedTuple):
    """Evenly spaced places along an axis, in its indices: the first, the step to the next, above 0, and how many."""

    first: float
    step: float
    side: int

    def centres(self) -> NDArray[np.float64]:
        """Return all places."""
        return self.first + self.step * np.arange(self.side, dtype=np.float64)


def resize_by_triangle(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``c *s -> c *size``; the borders of the two grids coincide.

    Args:
        x: float32, its axes in any order in memory.
        size: one number for each spatial axis.

    Returns:
        The result, its axes in the same order in memory; it may be ``x`` itself. It is within about 1e-5 of the range
        of the values of what float64 gives: PyTorch computes the weights in float32.
    """
    return _axis_by_axis(x, size, lambda part, at, axis: _resize_axis(part, at, size[axis]))


def resample_by_triangle(x: Tensor, grid: Sequence[AxisGrid]) -> Tensor:
    """Resample ``c *s`` at evenly spaced places along each axis, with weights in float64.

    Args:
        x: float32, its axes in any order in memory.
        grid: for each spatial axis.

    Returns:
        The result, its axes in the same order in memory; it may be ``x`` itself.
    """
    return _axis_by_axis(x, [axis.side for axis in grid], lambda part, at, axis: _resample_axis(part, at, grid[axis]))


def _axis_by_axis(x: Tensor, size: Sequence[int], change: Callable[[Tensor, int, int], Tensor]) -> Tensor:
    """Change each spatial axis of ``c *s``, that which shrinks most first; of two, the later one.

    Args:
        x: the values.
        size: of the result, for each spatial axis.
        change: gets a contiguous tensor, the place of the axis in it, and which spatial axis it is.
    """
    strides = x.stride()
    in_memory = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    part = x.permute(in_memory).contiguous()
    for axis in sorted(range(len(size)), key=lambda axis: (size[axis] / x.shape[1 + axis], -axis)):
        part = change(part, in_memory.index(1 + axis), axis)
    return part.permute([in_memory.index(axis) for axis in range(x.ndim)])


def _resize_axis(x: Tensor, axis: int, side: int) -> Tensor:
    """Resize one axis of a contiguous tensor by PyTorch's kernel for images, of which the other side is unchanged."""
    shape, after = x.shape, x.shape[axis + 1 :].numel()
    if shape[axis] == side:
        return x
    if after > LONGEST:
        cut = next(other for other in range(axis + 1, x.ndim) if shape[other] > 1)
        parts = torch.split(x, max(1, LONGEST * shape[cut] // after), cut)
        return torch.cat([_resize_axis(part, axis, side) for part in parts], cut)
    sides = (shape[axis - 1], shape[axis]) if after == 1 else (shape[axis], after)
    size = (sides[0], side) if after == 1 else (side, after)
    resized = interpolate(x.reshape(1, -1, *sides), size=size, mode="bilinear", antialias=True)
    return resized.reshape(*shape[:axis], side, *shape[axis + 1 :])


def _resample_axis(x: Tensor, axis: int, grid: AxisGrid) -> Tensor:
    """Resample one axis of a tensor at places along it: one addition for each voxel that a place has weights for."""
    if grid.side == x.shape[axis] and np.abs(grid.centres() - np.arange(grid.side)).max() < UNMOVED:
        return x
    index, weights = _triangle(x.shape[axis], grid)
    shape = (-1, *[1] * (x.ndim - 1 - axis))
    out: Tensor | None = None
    for which, weight in zip(torch.from_numpy(index.T.copy()), torch.from_numpy(weights.T.copy()), strict=True):
        chosen, factor = x.index_select(axis, which), weight.float().reshape(shape)
        out = chosen.mul_(factor) if out is None else out.addcmul_(chosen, factor)
    assert out is not None  # noqa: S101  # a triangle is two voxels wide or more
    return out


def _triangle(side: int, grid: AxisGrid) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return which voxels of an axis of ``side`` each centre is a mean of, and their weights, one row a centre."""
    centres, width = grid.centres(), max(1.0, grid.step)
    first = np.floor(centres - width).astype(np.int64) + 1
    index = first[:, None] + np.arange(int(np.ceil(2 * width)))
    weights = np.clip(1 - np.abs(index - centres[:, None]) / width, 0, None) * ((index >= 0) & (index < side))
    return np.clip(index, 0, side - 1), weights / weights.sum(1, keepdims=True)
