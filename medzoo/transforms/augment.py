"""Augmentation: random changes of an image, seeded by row and epoch; torchvision's in 2D, MONAI's in 3D.

Axes: c channels, s spatial axes (h w or d h w).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medzoo.contract import Preprocessing

__all__ = ["Augmentation", "Augmenter", "row_seed"]

Axis = Literal["x", "y", "z"]


def row_seed(seed: int, epoch: int, row: str) -> int:
    """Return the seed of a row in an epoch, the same in any process.

    >>> row_seed(0, 1, "a.png") == row_seed(0, 1, "a.png") != row_seed(0, 2, "a.png")
    True
    """
    digest = hashlib.sha256(f"{seed}|{epoch}|{row}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True)
class Augmentation:
    """What is changed at random, on values before the model's mean and std; each part is off by default.

    Attributes:
        flip: axes that are reversed with probability 1/2: x left-right, y front-back (top-bottom in 2D), z feet-head.
        rotate: largest angle in degrees.
        translate: largest shift as a share of each side.
        scale: smallest and largest scale.
    """

    flip: tuple[Axis, ...] = ()
    rotate: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)


class Augmenter:
    """Changes one image by its seed; it can be pickled."""

    def __init__(self, augmentation: Augmentation, preprocessing: Preprocessing) -> None:
        self.augmentation, self.preprocessing = augmentation, preprocessing

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """Return the changed image, ``c *s``."""
        generator = torch.Generator().manual_seed(seed)
        for axis in self.augmentation.flip:
            if torch.rand((), generator=generator) < 0.5:
                image = image.flip({"x": -1, "y": -2, "z": -3}[axis])
        return image
