"""SIGINT and SIGTERM during a training: it stops after a step, with a checkpoint, and can be continued.

Handlers belong to the process and can be set only in its main thread; in another thread a training has none.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from medzoo.errors import TrainError

__all__ = ["GRACE", "Interrupts", "TrainInterrupted"]

GRACE = 20.0
"""Seconds after a signal in which a place for a checkpoint is waited for; a long validation, for example, has none."""


class TrainInterrupted(TrainError):
    """A training was stopped by a signal and can be continued; ``exit_code`` is 128 and the number of the signal."""

    exit_code = 128 + signal.SIGTERM


class Interrupts:
    """Handlers that remember the first signal and exit at the second, while the context lasts.

    A handler that was there is called too, except Python's own of SIGINT, which raises KeyboardInterrupt anywhere. A
    signal that the process ignores, such as SIGINT under ``nohup``, stays ignored.

    Args:
        folder: of the training, for the message.

    Attributes:
        received: the signal, or ``None``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.received: signal.Signals | None = None
        self._since = 0.0
        self._pid = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.getsignal(number)
                if previous not in (signal.SIG_IGN, None):  # None: a handler of C, which could not be restored
                    self._previous[number] = previous
        self.install()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def install(self) -> None:
        """Set the handlers, over those that Lightning sets when its loop starts.

        Lightning's of SIGTERM would end the loop after the present batch, even in the middle of an accumulation, where
        no checkpoint can be written. Its handler of SIGUSR1, with which SLURM requeues a job, stays.
        """
        for number in self._previous:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a worker, which has inherited the handler; it ends with the training
            return
        if self.received is not None:
            os._exit(128 + number)
        self.received, self._since = signal.Signals(number), time.monotonic()
        previous = self._previous[self.received]
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)

    @property
    def overdue(self) -> bool:
        """Whether a place for a checkpoint was waited for long enough."""
        return self.received is not None and time.monotonic() - self._since > GRACE

    def error(self, saved: int | None) -> TrainInterrupted:
        """Return the error to raise.

        Args:
            saved: the step of the checkpoint that was just written; ``None`` if none was.
        """
        assert self.received is not None  # noqa: S101  # the caller has asked
        state = (
            f"the checkpoint of step {saved} is written"
            if saved is not None
            else "no further checkpoint was written; steps after the newest one will be repeated, with the same result"
        )
        error = TrainInterrupted(
            f"training in {self.folder} was stopped by {self.received.name}; {state}. "
            f"Continue with medzoo.resume({str(self.folder)!r})."
        )
        error.exit_code = 128 + self.received
        return error
