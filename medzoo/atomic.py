"""Write a file completely or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

__all__ = ["new_file_mode", "write_atomically"]


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the file and then replace it, with the mode that the umask gives.

    Raises:
        OSError: it cannot be written; what was there is still there, and nothing is left beside it.
    """
    partial = _partial(path.parent)
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
