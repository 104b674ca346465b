"""``Drift``: how the images here differ from those of the training."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Drift", "DriftRow"]


@dataclass(frozen=True)
class DriftRow:
    """One figure."""

    what: str
    training: str
    here: str
    difference: float | None
    large: bool


@dataclass(frozen=True)
class Drift:
    """All figures."""

    rows: tuple[DriftRow, ...]
    notes: tuple[str, ...]
