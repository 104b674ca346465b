"""Checkpoints from which a training continues bit for bit, and the places at which they may be written.

A checkpoint in the middle of an epoch is written after a batch in which the optimiser stepped, but not after the last
batch: Lightning would skip the validation of that epoch on resume. It is written at the epoch's end instead.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from medzoo.data.loader import PlacedLoader

__all__ = ["STATE_FORMAT", "CheckpointKeeper", "FsyncedFiles", "newest"]

STATE_FORMAT = 1
"""Raised when a checkpoint of this medzoo cannot continue one of an earlier one exactly."""


class FsyncedFiles(CheckpointIO):
    """Writes a checkpoint whole or not at all, and reads it without unpickling code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside the file, flush to the disk, and rename."""
        partial = Path(f"{path}.part")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain values."""
        return torch.load(path, map_location="cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a folder."""
    found = sorted(folder.glob("step-*.ckpt"))
    return found[-1] if found else None


class CheckpointKeeper(Checkpoint):
    """Writes checkpoints with the state of the random numbers and the place in the data, and keeps two.

    Args:
        folder: of the checkpoints.
        loader: the training loader, whose place is kept.
        every_steps: steps between checkpoints within an epoch; ``None`` for none.
        facts: what a resume compares.
    """

    def __init__(
        self, folder: Path, loader: PlacedLoader, *, every_steps: int | None = None, facts: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.loader, self.every_steps, self.facts = folder, loader, every_steps, facts or {}
        self.restored: dict[str, Any] | None = None
        self.last_step = -1

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out."""
        checkpoint["medzoo"] = {
            "format": STATE_FORMAT,
            "rng": torch.get_rng_state(),
            "place": self.loader.state_dict(),
            "should_stop": bool(trainer.should_stop),
            "facts": self.facts,
        }

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember it: Lightning resets the loader's place and the random numbers after this."""
        self.restored = checkpoint["medzoo"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Restore the random numbers and the place; the loader's iterator has not started yet."""
        if self.restored is not None:
            torch.set_rng_state(self.restored["rng"])
            self.loader.load_state_dict(self.restored["place"])
        self.last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint if one is due."""
        stepped, self.last_step = trainer.global_step != self.last_step, trainer.global_step
        last = batch_idx + 1 >= int(trainer.num_training_batches)
        if stepped and not last and self.every_steps and trainer.global_step % self.every_steps == 0:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write a checkpoint."""
        self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint, and delete all but the two newest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:09d}.ckpt")
        for old in sorted(self.folder.glob("step-*.ckpt"))[:-2]:
            old.unlink()
