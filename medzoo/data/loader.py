"""``PlacedLoader``: batches whose order is a function of seed and epoch, from any place of an epoch on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from medzoo.data.dataset import Batch, Rows
from medzoo.transforms.augment import row_seed

__all__ = ["PlacedLoader"]


class PlacedLoader:
    """Yields the batches of one epoch each time it is iterated.

    Attributes:
        epoch: of the next or present iteration.
        done: batches of it that were delivered.
    """

    def __init__(
        self, rows: Rows, batch_size: int, *, seed: int = 0, shuffle: bool = False, workers: int = 0,
        rank: int = 0, world: int = 1, pin_memory: bool = False,
    ) -> None:  # fmt: skip
        self.rows, self.batch_size, self.seed, self.shuffle, self.workers = rows, batch_size, seed, shuffle, workers
        self.rank, self.world, self.pin_memory = rank, world, pin_memory
        self.epoch = self.done = 0

    def __len__(self) -> int:
        """Return the batches of an epoch; a single row that is left over joins the batch before it."""
        full, rest = divmod(len(self.rows), self.batch_size)
        return max(1, full + (rest > 1 or (rest == 1 and self.batch_size == 1)))

    def batches(self) -> list[list[tuple[int, int]]]:
        """Return the indices of all batches of the epoch."""
        n = len(self.rows)
        order = list(range(n))
        if self.shuffle:
            generator = torch.Generator().manual_seed(row_seed(self.seed, self.epoch, "order"))
            order = torch.randperm(n, generator=generator).tolist()
        starts = [i * self.batch_size for i in range(len(self))]
        return [
            [(self.epoch, i) for i in order[start:stop]] for start, stop in zip(starts, [*starts[1:], n], strict=True)
        ]

    def __iter__(self) -> Iterator[Batch]:
        # At the start, not after the loop: a trainer that knows the length never asks for a batch beyond the last.
        if self.done == len(self):
            self.epoch, self.done = self.epoch + 1, 0
        if not self.shuffle:  # validation always starts at its first batch
            self.epoch = self.done = 0
        loader: DataLoader[Batch] = DataLoader(
            self.rows,
            batch_sampler=self.batches()[self.done :],  # type: ignore[arg-type]
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            # Without its own generator a loader draws from the global one each time.
            generator=torch.Generator().manual_seed(0),
        )
        for batch in loader:
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the place."""
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place."""
        self.epoch, self.done = state["epoch"], state["done"]
