"""``FiniteGuard``: a training stops at the first value that is not finite, before it reaches the weights.

Axes: b batch.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from medzoo.atomic import write_atomically
from medzoo.data.dataset import Batch
from medzoo.data.table import Table
from medzoo.errors import TrainError

__all__ = ["SKIPS", "FiniteGuard", "TrainFailed"]

SKIPS = 10
"""Steps in a row that float16 may skip: its loss scale starts too high on purpose and is halved at each."""


class TrainFailed(TrainError):
    """A training failed for what its recipe asks: a value that is not finite, or more memory than there is.

    Attributes:
        reason: the same in a few words, without the rows of the batch.
    """

    reason = ""

    @classmethod
    def because(cls, reason: str, message: str) -> TrainFailed:
        """Return the error of a message, with its reason."""
        error = cls(message)
        error.reason = reason
        return error


class FiniteGuard(pl.Callback):
    """Checks images before the forward pass, and loss and gradients before the step.

    The image is checked first because a NaN would enter BatchNorm's running statistics in the forward pass. In float32
    and bfloat16 any value that is not finite is an error. In float16 the loss scaler skips such a step, at most
    :data:`SKIPS` in a row.

    Args:
        table: names the rows.
        folder: gets ``nan_batch.json``.
        scaled: whether a loss scaler skips steps.
        monitor: a validation metric that early stopping compares and that must be a number; ``None`` for none.
    """

    def __init__(self, table: Table, folder: Path, *, scaled: bool = False, monitor: str | None = None) -> None:
        self.table, self.folder, self.scaled, self.monitor = table, folder, scaled, monitor
        self.rows: list[int] = []
        self.skipped = 0

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, index: int) -> None:
        """Check the images."""
        accumulates = trainer.accumulate_grad_batches
        if index % accumulates == 0:
            self.rows = []
        rows = batch.row.tolist()
        self.rows += rows
        if not _finite(batch.image):
            bad = [row for row, image in zip(rows, batch.image, strict=True) if not _finite(image)]
            self._stop(trainer, "an image after preprocessing has NaN or infinite values", bad, "Check these images.")

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        """Check the loss."""
        if not self.scaled and not _finite(loss):
            self._stop(trainer, f"the loss is {loss.item()}", self.rows, _ADVICE)

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        """Check the gradients, which under a loss scaler are unscaled here."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if _finite(torch.nn.utils.get_total_norm(gradients)):
            self.skipped = 0
            return
        self.skipped += 1
        poisoned = self.scaled and not all(_finite(b) for b in module.buffers() if b.is_floating_point())
        if not self.scaled or poisoned or self.skipped > SKIPS:
            times = f" in {self.skipped} steps in a row" if self.scaled else ""
            self._stop(trainer, f"the gradient is not finite{times}", self.rows, _ADVICE)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Check the metric of early stopping: a NaN is never better, and would stop the training for no reason."""
        value = trainer.callback_metrics.get(self.monitor or "")
        if value is not None and not math.isfinite(float(value)):
            raise TrainError(
                f"{self.monitor} is {float(value)} in epoch {trainer.current_epoch}, so early stopping cannot compare "
                "it. A validation part without both classes has no AUROC: set train.monitor to 'valid_loss'."
            )

    def _stop(self, trainer: pl.Trainer, what: str, rows: list[int], advice: str) -> None:
        """Write the batch, and raise."""
        images = [self.table.image(row) for row in rows] if self.table.paths is not None else []
        report = {
            "what": what,
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "rows": [{"row": row, "id": str(self.table.ids[row])} for row in rows],
            "files": [[str(p) for p in (image if isinstance(image, tuple) else (image,))] for image in images],
        }
        try:
            write_atomically(self.folder / "nan_batch.json", json.dumps(report, indent=1).encode())
            where = f"All of them are in {self.folder / 'nan_batch.json'}."
        except OSError as error:
            where = f"nan_batch.json could not be written ({error})."
        ids = ", ".join(str(self.table.ids[row]) for row in rows[:5]) + (", …" if len(rows) > 5 else "")
        message = (
            f"training stopped at step {trainer.global_step} of epoch {trainer.current_epoch}: {what}. Rows: {ids}. "
            f"{where} Checkpoints, if there are any, are from before. {advice}"
        )
        # Images that are not finite are a fault of the data, whatever the recipe.
        raise TrainFailed.because(what, message) if advice == _ADVICE else TrainError(message)


_ADVICE = "Start a new run with a lower optimizer.lr, with optimizer.clip, or in float32 if this was not."


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())
