"""``Comparison`` of two models on the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medzoo.evaluation.estimate import Estimate

__all__ = ["Comparison", "Difference"]


@dataclass(frozen=True)
class Difference:
    """A figure of two models, and the difference."""

    this: float
    other: float
    difference: Estimate

    @property
    def separable(self) -> bool | None:
        """Whether the interval of the difference leaves out 0; ``None`` without an interval."""
        if self.difference.low is None or self.difference.high is None:
            return None
        return not self.difference.low <= 0 <= self.difference.high


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models on the same rows."""

    names: tuple[str, str]
    rows: int
    patients: int | None
    labels: Mapping[str, Mapping[str, Difference]]
    overall: Mapping[str, Difference]
    notes: tuple[str, ...]
