"""``PlacedLoader``: batches whose order is a function of seed and epoch, from any place of an epoch on."""

from __future__ import annotations

import contextlib
import os
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from medzoo.data.dataset import Batch, Rows
from medzoo.data.one_thread import one_thread
from medzoo.errors import ConfigError, DataError, MedzooError, TrainError, check_int
from medzoo.transforms.augment import row_seed
from medzoo.warn import warn

__all__ = ["PlacedLoader", "explain_lost_workers"]

Key = tuple[int, int]

_SHARED = Path("/dev/shm")  # where Linux keeps shared memory
# What PyTorch writes when a worker ended, or when a batch does not fit into shared memory.
_LOST = ("exited unexpectedly", "killed by signal", "shared memory")


class PlacedLoader:
    """Yields the batches of one epoch each time it is iterated; ``for batch in loader`` or in Lightning's ``Trainer``.

    The order follows from the seed and the epoch, and each row's augmentation from the seed, the epoch and its id. So
    the batches are the same, bit for bit, for any number of workers, and from any place on. Rows are neither dropped
    nor repeated. With shuffling an iteration continues at the place: after one that was left, with the batch after the
    last that was delivered; after the last batch of an epoch, with the next epoch. Without, every iteration is epoch 0
    from its first batch.

    Workers live until :meth:`close`, an error, an iteration that is left before its last batch, or the end of the
    loader: starting them takes seconds.

    Several processes: ``batch_size`` is that of all of them together, and process ``rank`` of ``world`` gets the rows
    ``rank::world`` of each batch. The shares are equal but in the last batch, where they differ by up to one row: the
    mean over the processes of mean losses then weighs the rows of a smaller share more. Use it with
    ``Trainer(use_distributed_sampler=False)``.

    Attributes:
        epoch: of the next or present iteration.
        done: batches of it that were delivered.

    Args:
        rows: the data.
        batch_size: rows of a batch, in all processes together.
        seed: of the order.
        shuffle: for training.
        workers: processes that prepare batches; 0 prepares them in this one.
        rank: of this process.
        world: number of processes.
        pin_memory: copy batches to memory that a GPU reads directly; without CUDA it has no effect.

    Raises:
        ConfigError: no rows, a single row to train on, or a batch that cannot be shared.
    """

    def __init__(
        self, rows: Rows, batch_size: int, *, seed: int = 0, shuffle: bool = False, workers: int = 0,
        rank: int = 0, world: int = 1, pin_memory: bool = False,
    ) -> None:  # fmt: skip
        who = f"the {rows.part.name} part"
        self.batch_size = check_int(who, "batch_size", batch_size, 1)
        self.workers = check_int(who, "workers", workers, 0)
        self.rows, self.seed, self.shuffle = rows, seed, shuffle
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.share(rank, world)
        self.epoch = self.done = 0
        self._loader: DataLoader[Any] | None = None
        self._plan: list[list[Key]] = []  # read by the loader whenever an iteration starts
        self._turn, self._unfinished = 0, False
        affinity = getattr(os, "sched_getaffinity", None)  # of Linux; a container may have fewer cores than the machine
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        if workers > cores:
            warn(
                f"{workers} workers on {cores} cores take turns, and each holds batches in memory. {cores} or fewer "
                "are faster; with cached images, 0."
            )

    def share(self, rank: int, world: int) -> None:
        """Take the share of one of several processes from the next iteration on.

        Raises:
            ConfigError: there are too few rows, no such process, or a batch that cannot be shared equally.
        """
        who, n = f"the {self.rows.part.name} part", len(self.rows)
        rank, world = check_int(who, "rank", rank, 0), check_int(who, "world", world, 1)
        least = max(world, 2 if self.shuffle else 1)
        if n < least:
            why = " BatchNorm cannot train on one." if n == 1 else ""
            rows = f"{least} row{'s' * (least > 1)}"
            raise ConfigError(f"{who}: expected {rows} or more, got {n}.{why} Change the split.")
        if rank >= world:
            raise ConfigError(f"{who}: expected rank to be below world, got {rank} of {world}.")
        if self.batch_size % world:
            raise ConfigError(
                f"{who}: expected a batch_size that {world} processes share equally, got {self.batch_size}. "
                f"Use a multiple of {world}."
            )
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        """Return the batches of an epoch; too few rows that are left over join the batch before them.

        Too few are fewer than 2 for each process, because BatchNorm cannot train on one value, or than a batch.
        """
        full, rest = divmod(len(self.rows), self.batch_size)
        return max(1, full + (rest >= min(2 * self.world, self.batch_size)))

    def batches(self) -> list[list[Key]]:
        """Return this process's indices ``(epoch, position)`` of all batches of the epoch."""
        n = len(self.rows)
        order = list(range(n))
        if self.shuffle:
            generator = torch.Generator().manual_seed(row_seed(self.seed, self.epoch, "order"))
            order = torch.randperm(n, generator=generator).tolist()
        starts = [i * self.batch_size for i in range(len(self))]
        return [
            [(self.epoch, i) for i in order[start:stop][self.rank :: self.world]]
            for start, stop in zip(starts, [*starts[1:], n], strict=True)
        ]

    def __iter__(self) -> Iterator[Batch]:
        # At the start, not after the loop: a trainer that knows the length never asks for a batch beyond the last.
        if not self.shuffle:
            self.epoch = self.done = 0
        elif self.done == len(self):
            self.epoch, self.done = self.epoch + 1, 0
        if self._loader is not None and self._unfinished:
            self.close()
        self._turn += 1
        turn, self._unfinished = self._turn, True
        try:
            self._plan[:] = self.batches()[self.done :]
            source = self._start()
            while self.done < len(self):
                # In this process as in a worker: the last bits depend on the number of threads.
                with explain_lost_workers(self.workers), contextlib.nullcontext() if self.workers else one_thread():
                    batch = next(source)
                if isinstance(batch, _Failure):
                    batch.reraise()
                self.done += 1
                self._unfinished = self.done < len(self)
                yield cast(Batch, batch)
                if turn != self._turn:
                    raise ConfigError("PlacedLoader: iterated twice at once. Make a second loader.")
        finally:
            if turn == self._turn and self._unfinished:
                self.close()

    def _start(self) -> Iterator[Any]:
        """Return the batches, and start the workers if they do not live yet."""
        try:
            return iter(self._open())
        except OSError as error:
            raise TrainError(
                f"the processes that prepare batches cannot be started ({error.strerror or error}), such as where "
                f"{_SHARED} is full or cannot be written. Train with workers=0."
            ) from error

    def _open(self) -> DataLoader[Any]:
        """Return the loader, whose workers live on: which epoch it is, they read in each index."""
        if self._loader is None:
            self._loader = _Workers(
                _Caught(self.rows),
                batch_sampler=self._plan,
                num_workers=self.workers,
                collate_fn=_collate,
                pin_memory=self.pin_memory,
                persistent_workers=self.workers > 0,
                # Without its own generator a loader draws from the global one each time.
                generator=torch.Generator().manual_seed(0),
            )
        return self._loader

    def close(self) -> None:
        """End the workers; the place stays, and another iteration starts new ones."""
        loader, self._loader = self._loader, None
        # An iteration that was not left yet would keep them alive; Lightning ends them likewise.
        if loader is not None and self.workers and loader._iterator is not None:
            cast(Any, loader._iterator)._shutdown_workers()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the workers."""
        return self.__dict__ | {"_loader": None}

    def state_dict(self) -> dict[str, Any]:
        """Return the place."""
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place.

        Raises:
            ConfigError: there is no such place.
        """
        epoch, done = (check_int("the place", name, state.get(name), 0) for name in ("epoch", "done"))
        if done > len(self):
            raise ConfigError(
                f"the place: expected up to {len(self)} batches of an epoch, got {done}. Is it of another split or "
                "batch size?"
            )
        self.epoch, self.done = epoch, done


class _Workers(DataLoader[Any]):
    def check_worker_number_rationality(self) -> None:
        """Leave the warning about too many workers to ``PlacedLoader``."""


class _Failure:
    """An error in a worker as plain text: PyTorch raises it again from its message alone, wrapped in a traceback."""

    def __init__(self, error: DataError) -> None:
        self.message = str(error)
        cause = error.__cause__
        self.trace = "" if isinstance(cause, DataError) else "".join(traceback.format_exception(error))

    def reraise(self) -> None:
        """Raise the DataError, with the traceback of what is no fault of the data as a note."""
        error = DataError(self.message)
        if self.trace:
            error.add_note(self.trace)
        raise error


class _Caught(Dataset[Any]):
    """Rows, or why one cannot be read."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> Batch | _Failure:
        try:
            return self.rows[key]
        except DataError as error:
            return _Failure(error)


def _collate(rows: list[Any]) -> Any:
    """Return the batch of some rows, or the first failure among them."""
    failed = [row for row in rows if isinstance(row, _Failure)]
    return failed[0] if failed else default_collate(rows)


@contextlib.contextmanager
def explain_lost_workers(workers: int) -> Iterator[None]:
    """Turn the error that a worker is gone into a TrainError that names what to change.

    PyTorch raises it from a signal handler, so it can come at any line of the main thread while workers live, a
    training step included.
    """
    try:
        yield
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if any(mark in line for mark in _LOST)]
        if isinstance(error, MedzooError) or not lines:
            raise
        free = f", {shutil.disk_usage(_SHARED).free / 2**20:.0f} MiB of it free" if _SHARED.is_dir() else ""
        raise TrainError(
            f"a process that prepares batches ended: {lines[0].strip()} The system ends one when memory is "
            f"short, or when the batches do not fit into shared memory ({_SHARED}{free}). Use fewer workers than "
            f"{workers}, such as workers=0, a smaller batch, or more shared memory (docker run --shm-size)."
        ) from error
