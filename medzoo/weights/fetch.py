"""From a record to a file on this machine."""

from __future__ import annotations

from pathlib import Path

from medzoo.weights.record import Weights

__all__ = ["ASSETS", "locate"]

ASSETS = Path(__file__).parent.parent / "assets"


def locate(record: Weights) -> Path:
    """Return where the file of a record lies: in the package, or where its absolute path says."""
    return ASSETS / record.file
