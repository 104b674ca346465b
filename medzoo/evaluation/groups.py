"""``GroupTable``: figures by group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medzoo.evaluation.compare import Difference
from medzoo.evaluation.estimate import Estimate

__all__ = ["GroupRow", "GroupTable"]


@dataclass(frozen=True)
class GroupRow:
    """One group."""

    value: str
    rows: int | None
    patients: int | None
    positive_patients: Mapping[str, int | None]
    figures: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Mapping[str, Difference]]
    reference: bool


@dataclass(frozen=True)
class GroupTable:
    """The groups of one column."""

    column: str
    rows: tuple[GroupRow, ...]
    notes: tuple[str, ...]
