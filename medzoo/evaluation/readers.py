"""Human readers beside the model."""

from __future__ import annotations

from dataclasses import dataclass

from medzoo.evaluation.estimate import Estimate

__all__ = ["Agreement", "ReaderRow"]


@dataclass(frozen=True)
class ReaderRow:
    """One reader and one label."""

    reader: str
    label: str
    rows: int
    sensitivity: Estimate
    specificity: Estimate
    kappa: Estimate


@dataclass(frozen=True)
class Agreement:
    """Two readers and one label."""

    label: str
    first: str
    second: str
    rows: int
    kappa: Estimate
