"""``EpochLog``: one row per epoch in ``log.csv``, and its curves."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from medzoo.atomic import write_atomically
from medzoo.warn import warn

__all__ = ["COLUMNS", "WALL_CLOCK", "EpochLog", "draw_curves"]

WALL_CLOCK = ("seconds", "samples_per_second", "data_wait_share")
"""Columns that are not the same in a second run."""
METRICS = ("valid_loss", "valid_auroc", "valid_accuracy", "valid_n_auroc")
COLUMNS = ("epoch", "step", "lr", "loss", *METRICS, *WALL_CLOCK)
# Seconds between two drawings: one takes about half a second.
REDRAW = 60.0

Row = dict[str, float]


class EpochLog(pl.Callback):
    """Writes ``log.csv`` after each epoch and draws ``figures/curves.png`` now and then, and at the end.

    The rows are part of the checkpoints: a resumed training rewrites the same file, without the epochs that its
    checkpoint does not know. All columns but those in ``WALL_CLOCK`` then equal those of an uninterrupted training.

    - ``epoch``, ``step``: how many are done.
    - ``lr``: the largest learning rate of the epoch's last step.
    - ``loss``: mean over the rows of the epoch, by the weights at each step.
    - ``seconds``: of the epoch with its validation; ``samples_per_second``: of training alone.
    - ``data_wait_share``: part of the training time in which it waited for batches.

    Args:
        folder: of the run.
        wait: returns the seconds that training has waited for batches so far, or ``None`` where that is not measured,
            which leaves the column empty.
        draw: whether to draw the curves.

    Attributes:
        rows: one for each epoch, with the columns as keys; those that are not known are NaN.
    """

    def __init__(self, folder: Path, *, wait: Callable[[], float | None] = lambda: None, draw: bool = True) -> None:
        self.folder, self.wait, self.draw = Path(folder), wait, draw
        self.rows: list[Row] = []
        self._losses: list[Tensor] = []
        self._sizes: list[int] = []
        self._rate = math.nan
        self._before = dict.fromkeys(("seconds", "validating", "waited"), 0.0)
        self._began = self._validation_began = self._validating = self._waited = 0.0
        self._drawn = time.monotonic()  # one epoch is no curve

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time: an epoch that is resumed in its middle has no start."""
        self._note_times()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time."""
        self._note_times()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate, which the schedule changes before the batch ends."""
        self._rate = max(
            (group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups), default=0
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss: the mean that Lightning computes starts again when an epoch is resumed."""
        if outputs is not None:
            # Lightning has divided it by the number of batches of a step. It stays on its device: no wait for a GPU.
            self._losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
            self._sizes.append(len(batch[0]))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time."""
        self._validation_began = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the time since."""
        self._validating += time.perf_counter() - self._validation_began

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a row, and write the files. The checkpoint of the epoch, which is written after this, has the row."""
        spent = self._spent()
        training = max(1e-9, spent["seconds"] - spent["validating"])
        loss, samples = self._totals(trainer)
        row: Row = dict.fromkeys(COLUMNS, math.nan)
        row |= {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": self._rate}
        row["loss"] = loss / samples if samples else math.nan
        row |= {name: float(value) for name, value in trainer.callback_metrics.items() if name in METRICS}
        row |= {"seconds": spent["seconds"], "samples_per_second": samples / training}
        if self.wait() is not None:
            row["data_wait_share"] = spent["waited"] / training
        self.rows.append(row)
        self._losses, self._sizes = [], []
        self._before = dict.fromkeys(self._before, 0.0)
        self._began = time.perf_counter()
        if trainer.is_global_zero:
            self._write(final=False)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files, which a finished training that is resumed may lack."""
        if trainer.is_global_zero and self.rows:
            self._write(final=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, and the losses and times of the epoch that runs."""
        return {
            "rows": [dict(row) for row in self.rows],
            "losses": torch.stack(self._losses).cpu() if self._losses else torch.empty(0),
            "sizes": list(self._sizes),
            "before": self._spent() if self._losses else dict.fromkeys(self._before, 0.0),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.rows = [dict(row) for row in state_dict["rows"]]
        self._losses, self._sizes = list(state_dict["losses"].unbind()), list(state_dict["sizes"])
        self._before = dict(state_dict["before"])

    def _note_times(self) -> None:
        self._began, self._waited, self._validating = time.perf_counter(), self._waiting(), 0.0

    def _waiting(self) -> float:
        return self.wait() or 0.0

    def _spent(self) -> dict[str, float]:
        """Return the seconds of the epoch that runs, those before a resume included."""
        now = {
            "seconds": time.perf_counter() - self._began,
            "validating": self._validating,
            "waited": self._waiting() - self._waited,
        }
        return {name: self._before[name] + value for name, value in now.items()}

    def _totals(self, trainer: pl.Trainer) -> tuple[float, int]:
        """Return the sum of the losses of the rows, and the number of rows, of all processes."""
        losses = (
            torch.stack([loss.cpu() for loss in self._losses]).double() if self._losses else torch.zeros(0).double()
        )
        sizes = torch.tensor(self._sizes, dtype=torch.float64)
        both = torch.stack([(losses * sizes).sum(), sizes.sum()])
        if trainer.world_size > 1:
            both = torch.as_tensor(
                trainer.strategy.reduce(both.float().to(trainer.strategy.root_device), reduce_op="sum")
            )
        return float(both[0]), int(both[1])

    def _write(self, *, final: bool) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "log.csv", as_csv(self.rows).encode())
            if self.draw and (final or time.monotonic() - self._drawn > REDRAW):
                self._drawn = time.monotonic()
                draw_curves(self.rows, self.folder / "figures" / "curves.png")
        except OSError as error:  # the checkpoints have the rows, and decide whether a training can continue
            warn(f"{self.folder}: the log cannot be written ({error.strerror or error}). Free some space.")


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV; what is not known is empty, and every other number has all its digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow("" if math.isnan(row[name]) else row[name] for name in COLUMNS)
    return text.getvalue()


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw the losses, the validation AUROC and accuracy, and the learning rate over the epochs, as a PNG.

    The background is transparent and the text grey, to be legible on light and dark pages. Nothing of pyplot changes.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grey, blue, orange = "#7f7f7f", "#0072b2", "#d55e00"  # the colours are distinct for the colour-blind
    style: dict[Any, Any] = {"axes.facecolor": "none", "grid.color": grey, "grid.alpha": 0.3, "legend.frameon": False}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), grey)
    panels = (
        ("loss", (("loss", "training", blue), ("valid_loss", "validation", orange))),
        ("validation", (("valid_auroc", "AUROC", blue), ("valid_accuracy", "accuracy", orange))),
        ("learning rate", (("lr", "", blue),)),
    )
    epochs = [row["epoch"] for row in rows]
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(12, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (title, lines) in zip(figure.subplots(1, 3), panels, strict=True):
            for column, label, colour in lines:
                axes.plot(epochs, [row[column] for row in rows], label=label, color=colour, marker=".", linewidth=1.5)
            axes.set(title=title, xlabel="epoch")
            axes.grid(visible=True)
            axes.xaxis.get_major_locator().set_params(integer=True)
            if len(lines) > 1:
                axes.legend()
        png = io.BytesIO()
        figure.savefig(png, dpi=120, transparent=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png.getvalue())
