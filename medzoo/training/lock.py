"""One process trains in a folder at a time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from medzoo.atomic import write_atomically
from medzoo.errors import TrainError

__all__ = ["PATIENCE", "lock_state"]

PATIENCE = 10.0
"""Seconds to wait for the lock: the workers of a killed training hold it until they notice, which takes up to 5."""


@contextmanager
def lock_state(state: Path) -> Iterator[None]:
    """Lock the folder of the checkpoints; the lock ends with the process, however it ends.

    Raises:
        TrainError: another process holds it, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    holder = state / "holder.json"
    try:
        state.mkdir(parents=True, exist_ok=True)
        # Another process truncates the file of a lock when it tries, so who holds it is in a file of its own.
        lock = FileLock(state / "LOCK")
        lock.acquire(timeout=PATIENCE, poll_interval=0.1)
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}
        write_atomically(holder, json.dumps(who).encode())
    except Timeout:
        raise TrainError(
            f"{state.parent}: another process trains in this folder ({_describe(holder)}). "
            "Wait until it ends, or stop it."
        ) from None
    except (OSError, NotImplementedError) as error:
        raise TrainError(f"{state}: cannot lock the folder ({error}). Train into a folder on a local disk.") from error
    try:
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
            lock.release()


def _describe(holder: Path) -> str:
    try:
        who = json.loads(holder.read_text())
        return f"process {who['pid']} on {who['host']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which one is not known"
