"""The predictions of every validation of a training: what a source looked at before it chose its best epoch."""

from __future__ import annotations

import io
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch

from medzoo.atomic import write_atomically
from medzoo.data.table import Table
from medzoo.errors import TrainError
from medzoo.evaluation.scores import Scores
from medzoo.training.decide import validation_scores
from medzoo.training.task import ClassificationTask
from medzoo.training.validation import ValidationPredictions

__all__ = ["Looks", "read_looks"]

FOLDER = "looks"


class Looks(pl.Callback):
    """Writes the logits of each validation to ``looks/EPOCH.npz`` in the folder of the training.

    It has no state: an epoch that is trained again after a stop is written again, with the same values on a CPU.
    """

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the predictions of the epoch.

        Raises:
            TrainError: they cannot be written.
        """
        found = pl_module.predictions if isinstance(pl_module, ClassificationTask) else None
        if found is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir).parent / FOLDER / f"{trainer.current_epoch + 1:05}.npz"
        data = io.BytesIO()
        np.savez(data, rows=found.rows.numpy(), logits=found.logits.numpy())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data.getvalue())
        except OSError as error:
            raise TrainError(
                f"{path}: the predictions cannot be written ({error.strerror or error}). Free some space, and start "
                "the reproduction again, which continues."
            ) from error


def read_looks(run: Path, table: Table) -> list[Scores]:
    """Return the scores of each validation of a run, in order; those of a frozen training that came before are first.

    Raises:
        TrainError: there are none, or one cannot be read.
    """
    found = []
    for path in [path for folder in (run / "frozen", run) for path in sorted((folder / FOLDER).glob("*.npz"))]:
        try:
            with np.load(path, allow_pickle=False) as data:
                rows, logits = torch.from_numpy(data["rows"]), torch.from_numpy(data["logits"])
            targets = torch.from_numpy(table.targets[rows.numpy()])
            found.append(validation_scores(table, ValidationPredictions(rows, logits, targets)))
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise TrainError(f"{path}: the predictions cannot be read ({error}). Reproduce in a new folder.") from error
    if not found:
        raise TrainError(f"{run / FOLDER}: expected predictions of each epoch, got none. Reproduce in a new folder.")
    return found
