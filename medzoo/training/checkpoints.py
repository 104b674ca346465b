"""Checkpoints from which a training continues bit for bit, and the places at which they may be written.

Lightning's checkpoint lacks the random numbers, the place in the data at an epoch's start, and whether the training was
about to stop; :class:`CheckpointKeeper` adds them. It also knows where Lightning can continue from:

* In the middle of an epoch after a batch with a step of the optimiser: the gradient of an accumulation is not saved.
* Not after an epoch's last batch, where Lightning would skip that epoch's validation when it continues, but at the
  epoch's end, after validation and early stopping.
"""

from __future__ import annotations

import pickle
import re
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from medzoo.atomic import write_atomically
from medzoo.data.loader import PlacedLoader
from medzoo.errors import ConfigError, TrainError
from medzoo.training.signals import Interrupts
from medzoo.warn import warn

__all__ = ["STATE_FORMAT", "CheckpointKeeper", "FsyncedFiles", "Saved", "clean", "find_checkpoint"]

STATE_FORMAT = 1
"""Raised when this medzoo cannot continue a checkpoint of an earlier one exactly."""
KEPT = 2
FAILURES = 3
"""Checkpoints in a row that may fail to be written."""
PATTERN = "step-*.ckpt"


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read.

    Attributes:
        path: of the file.
        content: Lightning's checkpoint, with medzoo's part under ``"medzoo"``.
    """

    path: Path
    content: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """What it belongs to, see :func:`medzoo.training.facts.facts_of`."""
        return self.content["medzoo"]["facts"]


def clean(state: Path) -> None:
    """Delete what a killed process left: partial files, and checkpoints that Lightning wrote in a signal handler.

    Lightning saves ``hpc_ckpt_*.ckpt`` when SLURM requeues a job, at any place, and would prefer it; the keeper's
    checkpoints continue exactly.
    """
    for pattern in (".*.partial", "hpc_ckpt_*.ckpt"):
        for path in state.glob(pattern):
            path.unlink(missing_ok=True)


def find_checkpoint(state: Path) -> Saved | None:
    """Return the newest checkpoint that is whole, with a warning for each that is not; ``None`` if there is none.

    Raises:
        TrainError: there are checkpoints, and none is whole; they are left as they are.
        ConfigError: it has the format of another medzoo.
    """
    paths = sorted(state.glob(PATTERN), reverse=True)
    for path in paths:
        try:
            content = _read(path)
        except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            warn(f"{path} is damaged and is not used: {str(error).splitlines()[0] if str(error) else type(error)}")
            continue
        found = content["medzoo"]["format"]
        if found != STATE_FORMAT:
            raise ConfigError(
                f"resume: {path} has state format {found}, this medzoo continues format {STATE_FORMAT}. "
                "Resume with the version of medzoo that is recorded in run.json."
            )
        return Saved(path, content)
    if paths:
        raise TrainError(
            f"resume: no checkpoint in {state} is whole ({', '.join(p.name for p in paths)}). Nothing was deleted: "
            "restore one of them from a backup, or start again in another folder."
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain values, without running code from it."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # torch.load does not compare the checksums
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} differs")
    content = torch.load(path, map_location="cpu", weights_only=True)
    own = content.get("medzoo") if isinstance(content, dict) else None
    if not isinstance(own, dict) or "format" not in own:
        raise ValueError("it was not written by medzoo")
    return content


class _Output:
    """A file for ``torch.save`` that keeps the error of its disk."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, and keep the error."""
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Do nothing: the file is flushed when it is whole."""


class FsyncedFiles(CheckpointIO):
    """Writes a checkpoint whole or not at all, and gives Lightning the one that was read already.

    Args:
        saved: the checkpoint that the training continues from.
    """

    def __init__(self, saved: Saved | None = None) -> None:
        self.saved = saved
        self._verified = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside the file, flush to the disk, and replace it."""

        def write(file: BinaryIO) -> None:
            output = _Output(file)
            try:
                torch.save(checkpoint, output)  # type: ignore[arg-type]  # write is all it needs
            except RuntimeError as error:  # what PyTorch makes of an error of the file, without its cause
                raise output.error or error from error

        write_atomically(Path(path), write, fsync=True)
        if not self._verified:
            self._verify(Path(path))
            self._verified = True

    @staticmethod
    def _verify(path: Path) -> None:
        """Check once that what callbacks added can be read: it would be found out at the resume otherwise."""
        try:
            torch.load(path, map_location="meta", weights_only=True)
        except pickle.UnpicklingError as error:
            path.unlink()
            kind = re.search(r"GLOBAL (\S+)", str(error))
            raise TrainError(
                "the state of a callback, an optimiser or a schedule holds more than tensors, numbers, texts, lists "
                f"and dicts ({kind[1] if kind else 'of an unknown type'}), so the training could not be resumed. "
                "Change what its state_dict returns."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Return a checkpoint of tensors and plain values."""
        if self.saved is not None and Path(path) == self.saved.path:
            return self.saved.content
        return _read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class CheckpointKeeper(Checkpoint):
    """Writes checkpoints with the state of the random numbers and the place in the data, and keeps the two newest.

    Time may decide when a checkpoint is written, never what is in it.

    Args:
        state: folder of the checkpoints.
        loader: the training loader, whose place is kept.
        interrupts: signals, after which a checkpoint is written at the next place and the training stops.
        facts: what a resume compares.
        every_steps: steps between checkpoints within an epoch; ``None`` for none.
        every_minutes: minutes between checkpoints within an epoch.
    """

    def __init__(
        self,
        state: Path,
        loader: PlacedLoader,
        interrupts: Interrupts,
        *,
        facts: dict[str, Any],
        every_steps: int | None = None,
        every_minutes: float = 10.0,
    ) -> None:
        self.state, self.loader, self.interrupts, self.facts = state, loader, interrupts, facts
        self.every_steps, self.every_seconds = every_steps, 60 * every_minutes
        self._restored: dict[str, Any] | None = None
        self._step = 0
        self._failures = 0
        self._saved_at = time.monotonic()

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out."""
        cuda = module.device.type == "cuda"
        checkpoint["medzoo"] = {
            "format": STATE_FORMAT,
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(module.device) if cuda else None,
            "place": self.loader.state_dict(),
            "should_stop": bool(trainer.should_stop),
            "facts": self.facts,
        }

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember it: Lightning resets the place of the loader, and draws random numbers, after this."""
        self._restored = checkpoint["medzoo"]
        trainer.should_stop = self._restored["should_stop"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Restore the random numbers and the place; the iterator of the loader is lazy and has not started yet."""
        self.interrupts.install()
        if self._restored is not None:
            torch.set_rng_state(self._restored["rng"])
            if self._restored["rng_cuda"] is not None and module.device.type == "cuda":
                torch.cuda.set_rng_state(self._restored["rng_cuda"], module.device)
            self.loader.load_state_dict(self._restored["place"])
        self._step = trainer.global_step
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint if one is due and this is a place for it."""
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if stepped and batch_idx + 1 < trainer.num_training_batches:
            interrupted = self.interrupts.received is not None
            if interrupted or self._due(trainer.global_step):
                written = self._save(trainer)
                if interrupted:
                    raise self.interrupts.error(trainer.global_step if written else None)
        elif self.interrupts.overdue:
            raise self.interrupts.error(None)

    def _due(self, step: int) -> bool:
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        return by_steps or time.monotonic() - self._saved_at >= self.every_seconds

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop a long validation after a signal; it is repeated when the training continues."""
        if self.interrupts.overdue:
            raise self.interrupts.error(None)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write a checkpoint, after validation and early stopping."""
        written = self._save(trainer)
        if self.interrupts.received is not None:
            raise self.interrupts.error(trainer.global_step if written else None)

    def _save(self, trainer: pl.Trainer) -> bool:
        """Write a checkpoint and delete all but the newest; return whether it was written."""
        path = self.state / f"step-{trainer.global_step:09d}.ckpt"
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except OSError as error:
            self._failures += 1
            last = max(self.state.glob(PATTERN), default=None)
            kept = f"the one before, {last.name}, is intact" if last else "there is none before it"
            message = (
                f"the checkpoint of step {trainer.global_step} could not be written to {self.state}: {error}; {kept}"
            )
            if self._failures >= FAILURES:
                raise TrainError(
                    f"{message}. That was number {FAILURES} in a row: free some space and resume."
                ) from error
            warn(f"{message}. Training goes on")
            return False
        self._failures, self._saved_at = 0, time.monotonic()
        for old in sorted(self.state.glob(PATTERN))[:-KEPT]:
            old.unlink(missing_ok=True)
        return True
