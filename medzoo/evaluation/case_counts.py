"""How many rows and patients a figure rests on, and why it has no interval if they are few.

Axes: n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medzoo.evaluation.estimate import LEAST_PATIENTS

__all__ = ["FEW", "Counts", "averaged", "count", "units_of", "why_few"]

FEW = f"under {LEAST_PATIENTS} positive or negative patients"


@dataclass(frozen=True)
class Counts:
    """Rows and patients of one label.

    Attributes:
        positive, negative, unknown: rows.
        positive_patients: patients with a positive row; rows where no patients are known.
        negative_patients: patients with a known row, and no positive one; rows likewise.
    """

    positive: int
    negative: int
    unknown: int
    positive_patients: int
    negative_patients: int

    @property
    def eligible(self) -> bool:
        """Whether there are enough patients for an interval."""
        return min(self.positive_patients, self.negative_patients) >= LEAST_PATIENTS


def count(targets: NDArray[np.float32], clusters: NDArray[np.int64]) -> Counts:
    """Count the rows and patients of a column of targets ``n``."""
    positive, negative = targets == 1, targets == 0
    with_positive = np.unique(clusters[positive])
    without = np.setdiff1d(clusters[negative], with_positive)
    unknown = len(targets) - int(positive.sum()) - int(negative.sum())
    return Counts(int(positive.sum()), int(negative.sum()), unknown, len(with_positive), len(without))


def _averages(name: str) -> bool:
    return name.startswith("macro_") or name == "balanced_accuracy"


def averaged(name: str, counts: Sequence[Counts], chosen: Sequence[bool]) -> list[bool]:
    """Return which labels a figure of all labels averages; see :class:`~medzoo.evaluation.replicates.Replicates`."""
    if name == "macro_auroc_all":
        return [c.positive > 0 and c.negative > 0 for c in counts]
    if name.startswith("macro_") and not name.endswith("_all"):
        return list(chosen)
    return [c.positive > 0 for c in counts]


def units_of(name: str, counts: Sequence[Counts], chosen: Sequence[bool], patients: int) -> int:
    """Return how many patients a figure of all labels rests on.

    For an average these are the patients in the smallest class of what it averages, and for balanced accuracy those of
    the smallest class. Other figures take every row: they are as well known as the label with most patients in its
    smaller class, and with one label as that.

    Args:
        name: of the figure.
        counts: of each label.
        chosen: which labels ``macro_auroc`` and ``macro_average_precision`` average.
        patients: of all rows.
    """
    fewest = [c.positive_patients if name == "balanced_accuracy" else min(c.positive_patients, c.negative_patients)
              for c in counts]  # fmt: skip
    if not _averages(name):
        return min(patients, max(fewest, default=0))
    return min((n for n, ok in zip(fewest, averaged(name, counts, chosen), strict=True) if ok), default=0)


def why_few(name: str, labels: int, patients: int) -> str:
    """Return why a figure of so many labels has no interval, if :func:`units_of` is under 10."""
    if patients < LEAST_PATIENTS:
        return f"under {LEAST_PATIENTS} patients"
    if labels == 1:
        return FEW
    return f"{FEW} of {'an output that it averages' if _averages(name) else 'every output'}"
