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
from medzoo.errors import ConfigError, DataError
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

    Raises:
        ConfigError: ``part`` is no part of a split, which alone is known to share no patient with the others; or the
            pixels are of another table.
    """

    def __init__(self, part: Part, pixels: PixelStore, augmenter: Augmenter | None = None, seed: int = 0) -> None:
        if not isinstance(part, Part):
            raise ConfigError(
                f"Rows: expected a part of a split, got {type(part).__name__}. Make a split with medzoo.choose_split "
                "or medzoo.split_from_column, and give its train, valid or test."
            )
        if len(pixels.table) != len(part.table):
            raise ConfigError(
                f"Rows: expected the pixels of the table of the split, {len(part.table)} rows, got those of a table of "
                f"{len(pixels.table)}. Make both from one table."
            )
        self.part, self.pixels, self.augmenter, self.seed = part, pixels, augmenter, seed
        self.targets = torch.from_numpy(part.table.targets[part.rows])

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """Return one row.

        Raises:
            DataError: it cannot be read; the message names its file and place in the table.
        """
        epoch, position = key
        row = int(self.part.rows[position])
        try:
            image = self.pixels.read(row)
            if self.augmenter is not None:
                image = self.augmenter(image, row_seed(self.seed, epoch, str(self.part.table.ids[row])))
            return Batch(self.pixels.transform.normalise(image), self.targets[position], torch.tensor(row))
        except Exception as error:
            if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
                error.add_note(f"while reading {self._name(row)}")
                raise
            raise DataError(f"{self._name(row)}: {_text(error)}") from error

    def _name(self, row: int) -> str:
        """Return where a row is in the table, and its id."""
        table = self.part.table
        place = f"row {row}" if table.lines is None else f"line {int(table.lines[row])}"
        return f"{table.source}, {place} ({table.ids[row]})"


def _text(error: Exception) -> str:
    """Return the message of an error, with its type where that is not ours."""
    return str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
