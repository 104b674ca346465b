"""The progress of a training: a bar in a terminal, a line for each epoch elsewhere, and one piece of advice."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from medzoo.progress import progress_bar, shows_progress
from medzoo.training.wait import Speed, advise

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["TrainingProgress", "duration"]

log = logging.getLogger("medzoo")


def duration(seconds: float) -> str:
    """Return a time for people.

    >>> duration(0.0123), duration(0.25), duration(42), duration(400), duration(9000)
    ('12 ms', '0.2 s', '42 s', '6 min 40 s', '2 h 30 min')
    """
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class TrainingProgress(pl.Callback):
    """Shows epoch, step, loss, samples per second, the share of time that waits for data, and the time left.

    Without a terminal it logs one line for each epoch to the logger ``medzoo``.

    Args:
        speed: measures; it has to be among the callbacks, before this one.
        workers: of the loader, for the advice.
        cache: of the images, for the advice.
    """

    def __init__(self, speed: Speed, *, workers: int = 0, cache: str = "disk") -> None:
        self.speed, self.workers, self.cache = speed, workers, cache
        self.advice = ""
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._valid: TaskID | None = None
        self._started = self._shown = 0.0
        self._epochs_done = 0
        self._loss: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        self._started, self._epochs_done = time.monotonic(), 0
        if not shows_progress() or not trainer.is_global_zero:
            return
        from rich.progress import TextColumn

        self._bar = progress_bar(TextColumn("{task.fields[facts]}"))
        self._bar.start()
        batches = int(trainer.num_training_batches)
        done = trainer.current_epoch * batches + trainer.fit_loop.epoch_loop.batch_idx
        total = None if trainer.max_epochs is None or trainer.max_epochs < 0 else batches * trainer.max_epochs
        self._task = self._bar.add_task("training", total=total, completed=done, facts="")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar; the loss is read at most twice a second, as that waits for a GPU."""
        if self._bar is None or self._task is None:
            return
        now = time.monotonic()
        if now - self._shown >= 0.5:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            self._loss = None if loss is None else float(loss)
            self._shown = now
        facts = [f"{batch_idx + 1}/{trainer.num_training_batches}"]
        facts += [] if self._loss is None else [f"loss {self._loss:.4g}"]
        self._bar.update(
            self._task,
            completed=trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1,
            description=self._epoch(trainer, trainer.current_epoch + 1),
            facts=" · ".join(facts + self._speed()),
        )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show validation as a second bar."""
        if self._bar is not None:
            total = sum(int(count) for count in trainer.num_val_batches)
            self._valid = self._bar.add_task("validation", total=total, facts="")

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
        batch_idx: int, dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Advance it."""
        if self._bar is not None and self._valid is not None:
            self._bar.advance(self._valid)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove it."""
        if self._bar is not None and self._valid is not None:
            self._bar.remove_task(self._valid)
            self._valid = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print or log the line of the epoch."""
        self._epochs_done += 1
        if not trainer.is_global_zero:
            return
        parts = [self._epoch(trainer, trainer.current_epoch + 1)]
        parts += [
            f"{name} {float(trainer.callback_metrics[name]):.4g}"
            for name in ("loss", "valid_loss", "valid_auroc", "valid_accuracy")
            if name in trainer.callback_metrics
        ]
        parts += self._speed()
        if self._bar is not None:
            self._bar.console.print(" · ".join(parts), highlight=False, soft_wrap=True)
            return
        each = (time.monotonic() - self._started) / self._epochs_done
        left = (trainer.max_epochs or 0) - trainer.current_epoch - 1
        log.info(" · ".join([*parts, *([f"{duration(each * left)} left"] if left > 0 else [])]))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar, and give the one piece of advice if there is one."""
        shown = self._close()
        self.advice = advise(self.speed.data_wait_share, self.workers, self.cache, os.cpu_count() or 1)
        if self.advice and trainer.is_global_zero:
            if shown is not None:
                shown.console.print(self.advice, highlight=False, soft_wrap=True)
            else:
                log.info(self.advice)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error is below it."""
        self._close()

    def _close(self) -> Progress | None:
        bar, self._bar, self._task, self._valid = self._bar, None, None, None
        if bar is not None:
            bar.stop()
        return bar

    def _speed(self) -> list[str]:
        share = self.speed.data_wait_share
        waits = [] if share is None else [f"data wait {100 * share:.0f} %"]
        return [f"{self.speed.samples_per_second:.3g} samples/s", *waits]

    @staticmethod
    def _epoch(trainer: pl.Trainer, number: int) -> str:
        total = trainer.max_epochs
        return f"epoch {number}/{total}" if total is not None and total > 0 else f"epoch {number}"
