"""Small trainings, also in processes of their own that kill themselves at a given place.

As a program it is a fork server that has imported everything. It runs nothing parallel itself: a child could not use
the threads of OpenMP after that.
"""

from __future__ import annotations

import hashlib
import os
import signal
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from fork_server import Child, ForkServer, serve
from tensors import TINY

from medzoo.data.table import Table
from medzoo.training.fit import fit
from medzoo.training.recipe import Recipe
from medzoo.training.setup import Setup, set_up

__all__ = ["Crash", "Killer", "TrainingServer", "digest", "recipe", "setup", "table"]

TRAIN, VALID, BATCH = 37, 9, 5  # 8 batches an epoch, the last of 2 rows
STEPS = 8


def table(seed: int = 0, **how: Any) -> Table:
    """Return random images whose brightness is their label."""
    rng = np.random.default_rng(seed)
    n = TRAIN + VALID
    labels = np.arange(n) % 2
    images = rng.integers(0, 128, (n, 1, 16, 16, 16)) + 60 * labels[:, None, None, None, None]
    return Table.from_arrays(
        images.astype(np.uint8), labels, groups={"split": ["train"] * TRAIN + ["valid"] * VALID}, **how
    )


def recipe(**sections: Any) -> Recipe:
    """Return the recipe of a tiny model with BatchNorm and dropout, and flips; sections are merged into it."""
    whole: dict[str, Any] = {
        "model": {"name": "cnn3d_small", "options": {**TINY, "widths": list(TINY["widths"]), "dropout": 0.3}},
        "data": {"cache": "memory", "patient_groups": False},
        "split": {"column": "split"},
        "augment": {"flip": ["x", "y"]},
        "optimizer": {"lr": 0.01},
        "schedule": {"kind": "cosine"},
        "train": {"epochs": 3, "batch": BATCH, "threads": 1, "checkpoint_steps": 3, "device": "cpu"},
    }
    for name, section in sections.items():
        whole[name] = {**whole.get(name, {}), **section}
    return Recipe(**whole)


def setup(how: Recipe | None = None, images: Table | None = None, seed: int = 7) -> Setup:
    """Build everything for a training."""
    torch.manual_seed(seed)
    return set_up(how or recipe(), images or table())


def digest(model: torch.nn.Module) -> str:
    """Return the SHA-256 of the state dict."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()


class Crash(Exception):
    """Stands for a kill in tests that run in one process."""


class Killer(pl.Callback):
    """Kills the process, or sends it a signal, at a place; and notes the losses of all validations.

    Args:
        place: ``"batch"``, before the keeper at the end of a batch; ``"start"``, at the start of one;
            ``"validation"``, ``"epoch_end"``, ``"epoch_start"`` or ``"train_end"``.
        at: the batch in this process, from 1, or the epoch, from 0; for validation the batch in this process, from 1.
        number: of the signal; 0 raises :class:`Crash`.
        times: how often it is sent.
    """

    def __init__(self, place: str = "", at: int = 0, number: int = signal.SIGKILL, times: int = 1) -> None:
        self.place, self.at, self.number, self.times = place, at, number, times
        self.counts = {"batch": 0, "start": 0, "validation": 0}
        self.losses: list[float] = []

    def reach(self, place: str, at: int | None = None) -> None:
        if at is None:
            self.counts[place] += 1
            at = self.counts[place]
        if (place, at) == (self.place, self.at):
            if not self.number:
                raise Crash
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, *_: Any) -> None:
        self.reach("start")

    def on_train_batch_end(self, *_: Any) -> None:
        self.reach("batch")

    def on_validation_batch_end(self, *_: Any) -> None:
        self.reach("validation")

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.reach("epoch_start", trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["valid_loss"]))
        self.reach("epoch_end", trainer.current_epoch)

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.reach("train_end", 0)


def kill_in_write(place: str, at: int) -> None:
    """Kill the process while its checkpoint number ``at`` is written: in the middle, or before or after the rename."""
    count = {"save": 0, "rename": 0}
    save, replace = torch.save, Path.replace

    def half(content: Any, file: Any) -> None:
        count["save"] += 1
        if place == "middle" and count["save"] == at:
            import io

            whole = io.BytesIO()
            save(content, whole)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(content, file)

    def renamed(path: Path, target: Any) -> Path:
        counted = str(target).endswith(".ckpt")
        count["rename"] += counted
        last = counted and count["rename"] == at
        if last and place == "before_rename":
            os.kill(os.getpid(), signal.SIGKILL)
        result = replace(path, target)
        if last and place == "after_rename":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    torch.save = half  # type: ignore[assignment]
    Path.replace = renamed  # type: ignore[method-assign]


class TrainingServer(ForkServer):
    """Starts trainings in children."""

    def __init__(self) -> None:
        super().__init__(__file__)

    def train(self, folder: Path, sections: Mapping[str, Any] | None = None, **job: Any) -> Child:
        """Start a training; ``job`` has ``threads``, ``kill`` (arguments of Killer), ``write`` or ``limit``."""
        out = folder.with_suffix(f".{len(list(folder.parent.glob('*.json')))}.json")
        out.touch()
        job = {"folder": str(folder), "sections": dict(sections or {}), "out": str(out), **job}
        return Child(self, self.ask(job), out)


def _train(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train in the child."""
    import resource

    from medzoo.errors import MedzooError

    seen: list[str] = []
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "This DataLoader will create 4 worker processes")
    warnings.filterwarnings("ignore", "4 workers on")
    made = setup(recipe(**job["sections"]))
    killer = Killer(*job.get("kill", ()))
    if "write" in job:
        kill_in_write(*job["write"])
    if "limit" in job:
        warnings.filterwarnings("always", "the checkpoint of step")
        warnings.showwarning = lambda message, *_, **__: seen.append(str(message))
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], resource.RLIM_INFINITY))
        if "until" in job:
            made.task.on_train_epoch_end = lambda: _lift(made, job["until"])  # type: ignore[method-assign]
    result: dict[str, Any] = {}
    try:
        fit(made, Path(job["folder"]), callbacks=[killer], inexact=job.get("inexact", False))
    except MedzooError as error:
        result = {"error": type(error).__name__, "message": str(error), "exit": error.exit_code}
    finally:
        if "limit" in job:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    step = made.task.trainer.global_step
    return {**result, "digest": digest(made.model), "losses": killer.losses, "step": step, "warnings": seen}


def _lift(made: Setup, epoch: int) -> None:
    import resource

    if made.task.current_epoch >= epoch:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    serve(_train, ("torch", "lightning.pytorch", "monai.transforms", "medzoo.training.fit", "medzoo.models"))
