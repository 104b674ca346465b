"""``PixelStore``: the preprocessed images of a table, cached, and the identity of their pixels.

Axes: n rows, c channels, s spatial axes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medzoo.data.table import Table
from medzoo.progress import track
from medzoo.transforms.transform import Transform

__all__ = ["CacheMode", "PixelStore"]

CacheMode = Literal["off", "memory", "disk"]


class PixelStore:
    """The images of a table after preprocessing and before ``Transform.normalise``.

    It can be pickled to the workers of a loader.

    Args:
        table: the table.
        transform: the preprocessing.
        cache: ``"off"`` preprocesses again each time, ``"memory"`` and ``"disk"`` once.
    """

    def __init__(self, table: Table, transform: Transform, *, cache: CacheMode = "disk") -> None:
        self.table, self.transform, self.cache = table, transform, cache
        self.values: NDArray[Any] | None = None
        if cache != "off":
            self.values = np.stack([self.read(i).numpy() for i in track(range(len(table)), "reading images")])

    def read(self, row: int) -> Tensor:
        """Return the image of a row, ``c *s`` float32, before ``Transform.normalise``."""
        if self.values is not None:
            return torch.from_numpy(self.values[row])
        return self.transform.pixels(self.table.image(row)).tensor
