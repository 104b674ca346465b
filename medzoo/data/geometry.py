"""The way back: from a map over the prepared tensor to the grid of the original image.

Axes: c channels, s spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Geometry", "scaling"]


def scaling(before: tuple[int, ...], after: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the 4 x 4 matrix from an index after a resize to the index before it; borders, not centres, coincide.

    >>> scaling((4, 4), (2, 2))[:2, 3]
    array([0.5, 0.5])
    """
    matrix = np.eye(4)
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        matrix[axis, axis] = old / new
        matrix[axis, 3] = (old / new - 1) / 2
    return matrix


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where a prepared tensor lies in the image it came from.

    Attributes:
        source_size: spatial size of the original array.
        size: spatial size of the prepared tensor.
        to_source: 4 x 4, from an index of the prepared tensor to an index of the original array.
    """

    source_size: tuple[int, ...]
    size: tuple[int, ...]
    to_source: NDArray[np.float64]

    def invert(self, values: Tensor | NDArray[Any]) -> Tensor:
        """Bring a map back onto the original grid, ``c *s -> c *source_size``.

        Args:
            values: a map over the prepared tensor, such as an activation map; it may be coarser than the tensor.

        Returns:
            The map in the axis order of the original array, linearly interpolated; 0 outside what was prepared.
        """
        from monai.data import MetaTensor
        from monai.transforms import SpatialResample

        given = torch.as_tensor(values, dtype=torch.float32)
        affine = self.to_source @ scaling(self.size, tuple(given.shape[1:]))
        resample = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=False)
        return resample(
            MetaTensor(given, affine=torch.from_numpy(affine)),
            dst_affine=torch.eye(4, dtype=torch.float64),
            spatial_size=self.source_size,
        ).as_tensor()
