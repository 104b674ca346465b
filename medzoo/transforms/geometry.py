"""Map results on the preprocessed tensor, such as activation maps, back to the grid of the original image.

Axes: c channels, s spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medzoo.errors import InputError

__all__ = ["Geometry", "resample_to_grid", "resize_affine"]


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
            The map in the axis order of the original array, linearly interpolated; 0 outside the tensor's field of
            view.

        Raises:
            InputError: the map has a batch axis, or no channel axis.
        """
        given = torch.as_tensor(values, dtype=torch.float32)
        if given.ndim != 1 + len(self.size):
            raise InputError(
                f"invert: expected a map c *s of {1 + len(self.size)} axes, got {tuple(given.shape)}. "
                "Add a channel axis with x[None], or take one of the batch."
            )
        affine = self.to_source @ (resize_affine(self.size, tuple(given.shape[1:])) if frame is None else frame)
        # Up to its outermost voxels a map has the value of its border; outside the field of view it is 0.
        return resample_to_grid(given, affine, np.eye(4), self.source_size, "border") * self.covered()

    def covered(self) -> Tensor:
        """Return which voxels of the original grid are in the tensor's field of view, bool ``*source_size``."""
        to_tensor = np.linalg.inv(self.to_source)
        inside = torch.ones(self.source_size, dtype=torch.bool)
        for axis, side in enumerate(self.size):
            index = torch.full(self.source_size, float(to_tensor[axis, 3]), dtype=torch.float32)
            for other, indices in enumerate(np.ix_(*[np.arange(length) for length in self.source_size])):
                index += to_tensor[axis, other] * torch.from_numpy(indices)
            inside &= (index >= -0.5 - 1e-3) & (index <= side - 0.5 + 1e-3)
        return inside
