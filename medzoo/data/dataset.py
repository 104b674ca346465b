"""``Rows``: the rows of one part of a split as tensors, augmented by a seed of their own.

Axes: c channels, s spatial axes, l labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from medzoo.data.pixels import PixelStore
from medzoo.data.split import Part
from medzoo.transforms.augment import Augmenter, row_seed

__all__ = ["Batch", "Rows"]


class Batch(NamedTuple):
    """One row, or a batch of them.

    Attributes:
        image: ``c *s`` or ``b c *s``, what the model takes.
        target: ``l`` or ``b l`` of 0 and 1; NaN where it is not known.
        row: index into the table.
    """

    image: Tensor
    target: Tensor
    row: Tensor


class Rows(Dataset[Batch]):
    """The rows of a part; the index is ``(epoch, position)``, so that no worker has to know the epoch.

    Args:
        part: from a :class:`~medzoo.data.split.Split`.
        pixels: the images of its table.
        augmenter: changes each image by a seed of its row; ``None`` changes none.
        seed: of the run.
    """

    def __init__(self, part: Part, pixels: PixelStore, augmenter: Augmenter | None = None, seed: int = 0) -> None:
        self.part, self.pixels, self.augmenter, self.seed = part, pixels, augmenter, seed
        self.targets = torch.from_numpy(part.table.targets[part.rows])

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, position = key
        row = int(self.part.rows[position])
        image = self.pixels.read(row)
        if self.augmenter is not None:
            image = self.augmenter(image, row_seed(self.seed, epoch, str(self.part.table.ids[row])))
        return Batch(self.pixels.transform.normalise(image), self.targets[position], torch.tensor(row))
