"""Keep Lightning's messages that are not for the user of medzoo from the screen, while a training runs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_lightning"]

LOGGERS = ("lightning.pytorch", "lightning.fabric")
WARNINGS = (
    # Lightning 2.6 with PyTorch 2.14.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # The encoder of a frozen training is in eval mode on purpose.
    r"Found \d+ module\(s\) in eval mode at the start of training",
    # The device is the user's choice, and recorded.
    r"GPU available but not used",
    # The loss scaler skips the first steps, which Lightning accounts for.
    r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`",
    # On CUDA deterministic algorithms are asked for where there are any.
    r".* does not have a deterministic implementation",
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence tips and device reports, and the warnings in :data:`WARNINGS`; restore filters and levels at the end."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            for pattern in WARNINGS:
                warnings.filterwarnings("ignore", pattern)
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
