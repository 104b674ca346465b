"""The state of a training's folder: new, unfinished or finished."""

from __future__ import annotations

import os
from pathlib import Path

from medzoo.atomic import write_atomically
from medzoo.errors import ConfigError

__all__ = ["check_folder", "is_finished", "mark_finished", "open_folder"]

FINISHED = "FINISHED"
RUN = "run.json"
# What a training writes before run.json makes its folder a run.
BEGUN = {"recipe.yaml", "data", "figures", "initial", "state"}


def open_folder(folder: Path) -> set[str]:
    """Make a folder if it is absent, write to it once, and return the names of what it holds.

    Raises:
        OSError: it is a file, or cannot be listed or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = {path.name for path in folder.iterdir()}
    probe = folder / f".{os.getpid()}.probe"
    probe.touch()
    probe.unlink()
    return held


def check_folder(folder: Path) -> None:
    """Check that a new training can write into a folder, before anything is read or computed; make it if it is absent.

    Raises:
        ConfigError: it is not a folder, is not empty, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"train: expected a new or an empty folder, got the file {folder}.")
    try:
        held = open_folder(folder)
    except OSError as error:
        raise ConfigError(f"train: cannot write to {folder}: {error.strerror}. Choose another folder.") from error
    if is_finished(folder):
        raise ConfigError(f"train: {folder} holds a finished training. Choose another folder, or delete this one.")
    if (folder / RUN).is_file() or any((folder / "state").glob("*.ckpt")):
        raise ConfigError(
            f"train: {folder} holds a training that is not finished. "
            f"Continue it with medzoo.resume({str(folder)!r}), or choose another folder."
        )
    # A training that was killed before it began has locked the folder, and is cleared away by the next.
    if held and not (held <= BEGUN and (folder / "state" / "LOCK").is_file()):
        raise ConfigError(f"train: {folder} is not empty. Choose another folder.")


def mark_finished(folder: Path) -> None:
    """Record that everything of a training is written; a resume then returns at once."""
    write_atomically(folder / "state" / FINISHED, b"", fsync=True)


def is_finished(folder: Path) -> bool:
    """Whether :func:`mark_finished` was called for a folder."""
    return (folder / "state" / FINISHED).is_file()
