"""What every download shares: patience, the words for what went wrong, and room on the disk."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from medzoo.errors import MedzooError, WeightsUnavailable

__all__ = [
    "BUSY",
    "CONNECT_TIMEOUT",
    "READ_TIMEOUT",
    "Busy",
    "check_room",
    "disk_error",
    "offline",
    "patiently",
    "shown",
    "telling_of_the_disk",
]

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 15.0
# Seconds between tries when a server is busy; a hospital's user waits no longer than ten seconds for an error.
WAITS = (1.0, 2.0)
LONGEST_WAIT = 4.0
# Too many requests, or a server that is not well for the moment.
BUSY = frozenset({408, 429, 500, 502, 503, 504})
FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT})
SEALED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

T = TypeVar("T")


class Busy(Exception):
    """The server asks to come back; never leaves this package.

    Attributes:
        wait: seconds it asked for, or ``None``.
    """

    def __init__(self, reason: str, wait: str | None = None) -> None:
        super().__init__(reason)
        self.wait = float(wait) if wait is not None and wait.isdigit() else None


def patiently(attempt: Callable[[], T], who: str) -> T:
    """Call ``attempt`` until it is not :class:`Busy`, three times at most.

    Raises:
        WeightsUnavailable: it was busy every time.
    """
    for wait in WAITS:
        try:
            return attempt()
        except Busy as busy:
            time.sleep(min(busy.wait if busy.wait is not None else wait, LONGEST_WAIT))
    try:
        return attempt()
    except Busy as busy:
        raise WeightsUnavailable(
            f"{who}: the server is busy or breaks off ({busy}), {len(WAITS) + 1} times in a row. Try again later."
        ) from busy


def offline() -> bool:
    """Whether nothing may be asked of a network: ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE`` is set."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


def check_room(who: str, folder: Path, size: int | None) -> None:
    """Raise WeightsUnavailable when the disk of a folder has less room than ``size`` bytes."""
    if size is None:
        return
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise WeightsUnavailable(
            f"{who}: {size:,} bytes are needed and {free:,} are free under {folder}. Make room, or set HF_HOME and "
            "MEDZOO_HOME to a larger disk."
        )


@contextmanager
def telling_of_the_disk(who: str, folder: Path, size: int | None) -> Iterator[None]:
    """Turn what a disk refuses into WeightsUnavailable, naming the folder."""
    try:
        yield
    except MedzooError:
        raise
    except OSError as error:
        told = disk_error(who, error, folder, size)
        raise told or WeightsUnavailable(
            f"{who}: {error.filename or folder} cannot be used ({error.strerror or error}). MEDZOO_HOME and HF_HOME "
            "must be folders, or not be there yet."
        ) from error


def shown(url: str) -> str:
    """Return a URL without the login that it may hold.

    >>> shown("https://user:secret@host/x")
    'https://host/x'
    """
    scheme, slashes, rest = url.rpartition("://")
    host, slash, path = rest.partition("/")
    return scheme + slashes + host.rpartition("@")[2] + slash + path


def disk_error(who: str, error: OSError, folder: Path, size: int | None) -> WeightsUnavailable | None:
    """Say what a disk's error means, or return ``None`` where it is not the disk's."""
    if error.errno in FULL:
        while not folder.exists():
            folder = folder.parent
        need = f"{size:,} bytes are needed" if size is not None else "more room is needed"
        free = shutil.disk_usage(folder).free
        return WeightsUnavailable(
            f"{who}: the disk is full or the file too large for it ({os.strerror(error.errno)}): {need}, {free:,} are "
            f"free under {folder}. Make room, or set HF_HOME and MEDZOO_HOME to a larger disk."
        )
    # pooch says in words alone that a folder cannot be written.
    if error.errno in SEALED or isinstance(error, PermissionError):
        reason = os.strerror(error.errno or errno.EACCES)
        return WeightsUnavailable(
            f"{who}: {error.filename or folder} cannot be written ({reason}). Set HF_HOME and "
            "MEDZOO_HOME to folders that can, or put the file there with medzoo fetch on another machine."
        )
    return None
