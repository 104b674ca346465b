"""Write a file completely or not at all."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["new_file_mode", "write_atomically"]


def write_atomically(path: Path, data: bytes | Callable[[BinaryIO], object], *, fsync: bool = False) -> None:
    """Write beside the file and then replace it, with the mode that the umask gives.

    Args:
        path: the file.
        data: its bytes, or a function that writes them.
        fsync: whether the file and its folder are on the disk when this returns, so that a loss of power leaves the old
            file or the new one.

    Raises:
        OSError: it cannot be written; what was there is still there, and nothing is left beside it.
    """
    partial = _partial(path.parent)
    try:
        with partial.open("wb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    if fsync:
        _fsync_folder(path.parent)


def _fsync_folder(folder: Path) -> None:
    # Not every filesystem can: then the name of the file reaches the disk when the system writes it.
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _partial(folder: Path) -> Path:
    """Return the partial file of this thread; its short name fits where that of the file has the longest length."""
    return folder / f".{os.getpid()}.{threading.get_ident()}.partial"


def new_file_mode(folder: Path) -> int:
    """Return the mode that the umask gives to a new file in a folder."""
    probe = _partial(folder)
    try:
        probe.touch()
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)
