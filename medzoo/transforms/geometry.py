"""Map results on the preprocessed tensor, such as activation maps, back to the grid of the original image.

Axes: c channels, s spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from medzoo.errors import InputError

__all__ = ["Geometry", "resample_to_grid", "resize_affine", "shift_affine"]

# Of a voxel of the tensor: how far a voxel at the border of its field of view may be outside, by rounding.
EDGE = 1e-3
# Voxels that two grids may move against each other and count as parallel.
PARALLEL = 1e-4
# Voxels that are resampled at once between oblique grids, with about 100 bytes for each.
SLAB = 2**21


def resize_affine(before: tuple[int, ...], after: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the 4 x 4 matrix from an index after a resize to the index before it; borders, not centres, coincide.

    >>> resize_affine((4, 4), (2, 2))[:2, 3]
    array([0.5, 0.5])
    """
    matrix = np.eye(4)
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        matrix[axis, axis], matrix[axis, 3] = old / new, (old / new - 1) / 2
    return matrix


def resample_to_grid(
    x: Tensor, affine: NDArray[np.float64], target: NDArray[np.float64], size: Sequence[int], padding: str
) -> Tensor:
    """Resample ``c *s`` linearly from the grid of ``affine`` to the ``size`` voxels of the grid of ``target``."""
    from monai.data import MetaTensor
    from monai.transforms import SpatialResample

    resample = SpatialResample(mode="bilinear", padding_mode=padding, align_corners=False)
    volume = MetaTensor(x, affine=torch.from_numpy(affine))
    return resample(volume, dst_affine=torch.from_numpy(target), spatial_size=size).as_tensor()


@dataclass(frozen=True, eq=False)
class Geometry:
    """The position of a preprocessed tensor in the image it came from.

    Attributes:
        source_size: spatial size of the original array.
        size: spatial size of the preprocessed tensor.
        to_source: 4 x 4, from an index of the preprocessed tensor to an index of the original array.
    """

    source_size: tuple[int, ...]
    size: tuple[int, ...]
    to_source: NDArray[np.float64]

    def invert(self, values: Tensor | NDArray[Any], frame: NDArray[np.float64] | None = None) -> Tensor:
        """Resample a map onto the original grid, ``c *s -> c *source_size``.

        Args:
            values: a map over the preprocessed tensor, such as an activation map; it may be coarser than the tensor.
            frame: 4 x 4, from an index of the map to an index of the tensor; ``None`` where their borders coincide.

        Returns:
            The map in the axis order of the original array, linearly interpolated between the centres of its cells;
            beyond the outermost of them it has their values, and is 0 outside the tensor's field of view. Where the
            axes of the two grids are parallel it needs no more memory than the result.

        Raises:
            InputError: the map has a batch axis, or no channel axis.
        """
        given = torch.as_tensor(values, dtype=torch.float32, device="cpu").detach()
        dims = len(self.size)
        if given.ndim != 1 + dims:
            raise InputError(
                f"invert: expected a map c *s of {1 + dims} axes, got {tuple(given.shape)}. "
                "Add a channel axis with x[None], or take one of the batch."
            )
        affine = self._to_source(given.shape[1:], frame)
        out = torch.zeros(len(given), *self.source_size)
        low, high = self._field_of_view()
        if (low >= high).any():
            return out
        box = out[(slice(None), *map(slice, low, high))]
        to_map = np.linalg.inv(affine) @ shift_affine(low)
        order = _parallel_axes(to_map, box.shape[1:])
        # The field of view is the whole box only where the grid of the tensor is parallel too.
        if order is None or _parallel_axes(np.linalg.inv(self.to_source) @ shift_affine(low), box.shape[1:]) is None:
            self._fill_oblique(box, given, affine, low)
        else:
            _fill_along_axes(box, given.permute(0, *[1 + axis for axis in order]), to_map[order])
        return out

    def peak(self, cells: Tensor | NDArray[Any], frame: NDArray[np.float64] | None = None) -> tuple[int, ...]:
        """Return the voxel of the original grid at the centre of the highest cell of a map.

        The highest voxels of an inverted map may be a plateau that ends at the border of the image, as it is constant
        beyond its outermost cells. A cell that lies outside the voxels in the field of view is as high as the map is at
        the nearest of them.

        Args:
            cells: a map over the preprocessed tensor, ``*s``; it may be coarser than the tensor.
            frame: as for :meth:`invert`.

        Returns:
            The index; of a map without a value above 0 that of the lowest cell, of a map of zeros the middle of the
            field of view.
        """
        x, dims = torch.as_tensor(cells, dtype=torch.float64, device="cpu").detach(), len(self.size)
        affine = self._to_source(x.shape, frame)
        low, high = (end[:, None] for end in self._field_of_view())
        places = np.clip(_apply(affine, np.indices(x.shape).reshape(dims, -1)), low, high - 1)
        heights = _interpolate(x, _apply(np.linalg.inv(affine), places))
        heights = heights if heights.max() > 0 else -heights
        middle = np.clip(_apply(self.to_source, (np.array(self.size)[:, None] - 1) / 2), low, high - 1)[:, 0]
        highest = places[:, int(heights.argmax())] if heights.max() > 0 else middle
        # Where the grids are oblique, the nearest voxel may be outside the tensor: the first one on the way inwards.
        way = np.rint(np.linspace(highest, middle, int(np.abs(highest - middle).max()) + 2, axis=1))
        index, end = _apply(np.linalg.inv(self.to_source), way), np.array(self.size)[:, None] - 0.5 + EDGE
        seen = ((index >= -0.5 - EDGE) & (index <= end)).all(0)
        return tuple(int(i) for i in way[:, seen.argmax()])

    def covered(self) -> Tensor:
        """Return which voxels of the original grid are in the tensor's field of view, bool ``*source_size``."""
        return self.invert(torch.ones(1, *[1] * len(self.size)))[0] > 0.5

    def _to_source(self, size: Sequence[int], frame: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Return the 4 x 4 matrix from an index of a map of ``size`` cells to an index of the original grid."""
        return self.to_source @ (resize_affine(self.size, tuple(size)) if frame is None else frame)

    def _field_of_view(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first voxel along each axis of the box around the tensor's field of view, and the one after it."""
        dims = len(self.size)
        ends = [(-0.5 - EDGE, side - 0.5 + EDGE) for side in self.size]
        corners = np.stack(np.meshgrid(*ends, indexing="ij")).reshape(dims, -1)
        places = _apply(self.to_source, corners)
        low, high = np.ceil(places.min(1)), np.floor(places.max(1)) + 1
        return np.clip(low, 0, None).astype(np.int64), np.clip(high, None, self.source_size).astype(np.int64)

    def _fill_oblique(self, box: Tensor, given: Tensor, affine: NDArray[np.float64], low: NDArray[np.int64]) -> None:
        """Resample a map into a box of the original grid that begins at ``low``, a few planes at a time."""
        step = max(1, SLAB // math.prod(box.shape[2:]))
        for start in range(0, box.shape[1], step):
            slab = box[:, start : start + step]
            target = shift_affine(low) @ shift_affine([start])
            slab.copy_(resample_to_grid(given, affine, target, slab.shape[1:], "border"))
            to_tensor = np.linalg.inv(self.to_source) @ target
            for axis, side in enumerate(self.size):
                index = torch.full(slab.shape[1:], float(to_tensor[axis, 3]))
                for other, indices in enumerate(np.ix_(*map(np.arange, slab.shape[1:]))):
                    index += to_tensor[axis, other] * torch.from_numpy(indices)
                slab *= (index >= -0.5 - EDGE) & (index <= side - 0.5 + EDGE)


def _apply(matrix: NDArray[np.floating[Any]], points: NDArray[Any]) -> NDArray[Any]:
    """Return where a 4 x 4 matrix brings points, one a column."""
    dims = len(points)
    return matrix[:dims, :dims] @ points + matrix[:dims, 3:]


def _interpolate(x: Tensor, points: NDArray[np.float64]) -> Tensor:
    """Return a map ``*s`` at points, one a column, linearly interpolated; beyond its borders it is constant."""
    share = points / np.maximum(np.array(x.shape)[:, None] - 1, 1)
    grid = torch.from_numpy(2 * share[::-1].T - 1).reshape(1, -1, *[1] * (x.ndim - 1), x.ndim)
    return grid_sample(x[None, None], grid, padding_mode="border", align_corners=True).flatten()


def shift_affine(low: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the 4 x 4 matrix from an index of a box that begins at ``low`` to an index of the grid."""
    matrix = np.eye(4)
    matrix[: len(low), 3] = low
    return matrix


def _parallel_axes(matrix: NDArray[np.float64], size: Sequence[int]) -> list[int] | None:
    """Return the axis that goes with each axis of a grid of ``size``, or ``None`` where a grid is oblique to the other.

    Args:
        matrix: 4 x 4, from an index of the grid to an index of the other.
        size: of the grid.
    """
    dims = len(size)
    moves = np.abs(matrix[:dims, :dims]) * np.maximum(np.asarray(size) - 1, 1)
    order = moves.argmax(0)
    off_axis = moves.copy()
    off_axis[order, range(dims)] = 0
    return order.tolist() if len(set(order)) == dims and off_axis.sum(1).max() < PARALLEL else None


def _fill_along_axes(box: Tensor, x: Tensor, to_map: NDArray[np.float64]) -> None:
    """Interpolate a map into a box, one axis after the other.

    Args:
        box: ``c *size``.
        x: the map, its axes in the order of those of the box.
        to_map: row i is from an index of the box to the index along axis i of the map.
    """
    for axis in range(box.ndim - 2, -1, -1):
        places = to_map[axis, axis] * np.arange(box.shape[1 + axis]) + to_map[axis, 3]
        places = np.clip(places, 0, x.shape[1 + axis] - 1)
        below = places.astype(np.int64)
        above = np.minimum(below + 1, x.shape[1 + axis] - 1)
        weights = (places - below).astype(np.float32)
        if axis:
            start, end = (x.index_select(1 + axis, torch.from_numpy(which)) for which in (below, above))
            x = start.lerp_(end, torch.from_numpy(weights).reshape(-1, *[1] * (box.ndim - 2 - axis)))
        else:  # plane by plane, so that nothing else as large as the box is kept
            for i, weight in enumerate(weights.tolist()):
                torch.lerp(x[:, below[i]], x[:, above[i]], weight, out=box[:, i])
