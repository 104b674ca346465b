"""A small sweep, also in a process of its own that kills itself at a given batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medzoo.training.numerics import FiniteGuard

__all__ = ["TINY", "at_batch", "run"]

TINY: dict[str, Any] = {
    "model": "xray_cnn", "model.options": {"widths": [4, 4, 8, 8], "hidden": 8}, "size": 32, "epochs": 2,
    "cache": "memory", "threads": 1, "device": "cpu", "label": "grade", "patient": "pid", "checkpoint_steps": 2,
    "split.shares": [0.5, 0.5, 0.0],
}  # fmt: skip


def at_batch(number: int, signal_: int) -> Callable[..., None]:
    """Return what replaces a hook of FiniteGuard: it sends a signal to this process before its batch ``number``."""
    own, seen = FiniteGuard.on_train_batch_start, [0]

    def hook(*arguments: Any) -> None:
        seen[0] += 1
        if seen[0] == number:
            os.kill(os.getpid(), signal_)
        own(*arguments)

    return hook


def run(table: Path, folder: Path, batch: int = 0) -> int:
    """Sweep in a child that kills itself before a batch, and return its exit status."""
    command = [sys.executable, "-W", "ignore", __file__, str(table), str(folder), str(batch)]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    import medzoo

    given, to, kill = sys.argv[1:]
    if int(kill):
        FiniteGuard.on_train_batch_start = at_batch(int(kill), signal.SIGKILL)  # type: ignore[method-assign]
    medzoo.sweep(
        "table", given, over={"batch": [8, 16], "lr": [0.01, 0.001]}, to=to, root=Path(given).parent / "images", **TINY
    )
