"""How fast a training runs, and how much of its time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.profilers import PassThroughProfiler, Profiler

__all__ = ["Speed", "WaitProfiler", "advise"]

NEXT_BATCH = "[_TrainingEpochLoop].train_dataloader_next"
MUCH = 0.1  # of the time


class WaitProfiler(Profiler):
    """Sums the time that Lightning waits for training batches; what else it measures is not recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._since: float | None = None

    def start(self, action_name: str) -> None:
        """Start the clock when a batch is asked for."""
        if action_name == NEXT_BATCH:
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Add the time since then."""
        if action_name == NEXT_BATCH and self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None


class Speed(pl.Callback):
    """Measures samples per second and the share of time that waits for data, validation apart.

    Attributes:
        samples: training rows so far.
        train_seconds: time in the training batches and between them.
        wait_seconds: part of it in which the next batch was not ready.
        valid_seconds: time in validation.
        valid_step_seconds: of each validation batch so far.
        step_seconds: of each training batch of the present epoch, the wait before it included.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.samples = 0
        self.train_seconds = self.valid_seconds = 0.0
        self.step_seconds: list[float] = []
        self.valid_step_seconds: list[float] = []
        self._profiler: WaitProfiler | None = None
        self._mark = self._valid_mark = self._valid_step_mark = 0.0

    @property
    def wait_seconds(self) -> float | None:
        """Time without a batch; ``None`` with a profiler of the user."""
        return None if self._profiler is None else self._profiler.seconds

    @property
    def samples_per_second(self) -> float:
        """Training rows per second of training, without validation."""
        return self.samples / self.train_seconds if self.train_seconds else 0.0

    @property
    def data_wait_share(self) -> float | None:
        """Share of the training time that waits for data, 0 to 1; ``None`` if it is not measured."""
        waited = self.wait_seconds
        return None if waited is None or not self.train_seconds else min(1.0, waited / self.train_seconds)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Measure the waits, unless the user measures something else."""
        running: Any = trainer  # its type does not declare the profiler
        if isinstance(running.profiler, PassThroughProfiler):
            running.profiler = WaitProfiler()
        if isinstance(running.profiler, WaitProfiler):
            self._profiler = running.profiler

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock: an epoch that is resumed in its middle has no start."""
        self._mark = self.clock()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock before the first batch is asked for."""
        self._mark = self.clock()
        self.step_seconds = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Count the batch, with the wait before it."""
        now = self.clock()
        self.step_seconds.append(now - self._mark)
        self.train_seconds += now - self._mark
        self._mark = now
        self.samples += len(batch[0])  # type: ignore[index]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of validation."""
        self._valid_mark = self._valid_step_mark = self.clock()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object,
        batch_idx: int, dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Add the time of the batch, with the wait before it."""
        now = self.clock()
        self.valid_step_seconds.append(now - self._valid_step_mark)
        self._valid_step_mark = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the time, and take it out of the training's."""
        now = self.clock()
        self.valid_seconds += now - self._valid_mark
        self._mark += now - self._valid_mark


def advise(wait_share: float | None, workers: int, cache: str, cores: int) -> str:
    """Return the one thing to change, or an empty text where less than a tenth of the time waits for data.

    >>> advise(0.4, workers=0, cache="off", cores=8)
    '40 % of the training time waited for data. Keep the preprocessed images: data.cache=disk.'
    """
    if wait_share is None or wait_share <= MUCH:
        return ""
    start = f"{wait_share:.0%} of the training time waited for data.".replace("%", " %")
    if cache == "off":
        return f"{start} Keep the preprocessed images: data.cache=disk."
    if workers < min(cores - 1, 8):
        return (
            f"{start} Prepare batches in more processes: train.workers={min(max(2, 2 * workers), cores - 1, 8) or 1}."
        )
    return f"{start} Use a smaller size, or less augmentation."
