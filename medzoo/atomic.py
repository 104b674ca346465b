"""Write a file whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

__all__ = ["new_file_mode", "write_atomically"]


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the file and then take its place, with the mode that the umask gives.

    Raises:
        OSError: it cannot be written; what was there is still there, and nothing is left beside it.
    """
    # A name of its own, so that a file name of the longest length still has room.
    partial = path.with_name(f".{os.getpid()}.{threading.get_ident()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def new_file_mode(folder: Path) -> int:
    """Return the mode that a new file in a folder gets, which is the umask's to say."""
    probe = folder / f".{os.getpid()}.{threading.get_ident()}.partial"
    try:
        probe.touch()
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)
