"""Loggers of Lightning that write into the folder of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

__all__ = ["run_logger"]


def run_logger(kind: Literal["csv", "tensorboard", "none"], folder: str | os.PathLike[str]) -> Any:
    """Return a logger, or ``False`` for none. It writes nothing before the training.

    Args:
        kind: ``"csv"`` writes ``csv/metrics.csv``, ``"tensorboard"`` the folder ``tensorboard``.
        folder: of the run.
    """
    if kind == "none":
        return False
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    if kind == "csv":
        return CSVLogger(Path(folder), name="", version="csv")
    return TensorBoardLogger(Path(folder), name="", version="tensorboard")
