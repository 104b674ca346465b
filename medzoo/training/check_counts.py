"""What a split holds: rows, patients and labels of each part, and how exactly an AUROC can be known from it.

Axes: n rows, l labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medzoo.data.split import Part

__all__ = ["LEAST_POSITIVE", "LabelCount", "PartCount", "auroc_half_width", "count_part"]

LEAST_POSITIVE = 10
"""Positive patients below which no interval is given."""


@dataclass(frozen=True)
class LabelCount:
    """One label in one part.

    Attributes:
        positive, negative, unknown: rows.
        positive_patients: patients with a positive row; rows where no patients are known.
        negative_patients: patients whose known rows are all negative; rows likewise.
    """

    positive: int
    negative: int
    unknown: int
    positive_patients: int
    negative_patients: int

    def half_width(self, auroc: float) -> float | None:
        """Return half the 95 % interval of an AUROC; ``None`` under 10 positive or negative patients."""
        if min(self.positive_patients, self.negative_patients) < LEAST_POSITIVE:
            return None
        return auroc_half_width(auroc, self.positive_patients, self.negative_patients)


@dataclass(frozen=True)
class PartCount:
    """One part of a split.

    Attributes:
        name: ``"train"``, ``"valid"`` or ``"test"``.
        rows: of it.
        patients: of it; ``None`` if not known.
        labels: one for each label.
    """

    name: str
    rows: int
    patients: int | None
    labels: tuple[LabelCount, ...]


def auroc_half_width(auroc: float, positive: int, negative: int) -> float:
    """Return half the width of the 95 % interval of an AUROC.

    By Hanley and McNeil, The meaning and use of the area under a receiver operating characteristic (ROC) curve,
    Radiology 143 (1982) 29-36, doi:10.1148/radiology.143.1.7063747. It takes the cases as independent.

    >>> round(auroc_half_width(0.8, 22, 76), 3)
    0.118

    Args:
        auroc: the assumed value, 0 to 1.
        positive: number of positive cases, at least 1.
        negative: number of negative cases, at least 1.
    """
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    spread = auroc * (1 - auroc) + (positive - 1) * (q1 - auroc**2) + (negative - 1) * (q2 - auroc**2)
    return 1.96 * math.sqrt(spread / (positive * negative))


def count_part(part: Part) -> PartCount:
    """Count the rows, patients and labels of a part."""
    targets = part.table.targets[part.rows]
    given = part.table.patients
    patients = np.arange(len(part.rows)) if given is None else np.unique(given[part.rows], return_inverse=True)[1]
    labels = tuple(_count_label(targets[:, label], patients) for label in range(targets.shape[1]))
    return PartCount(part.name, len(part.rows), None if given is None else len(np.unique(patients)), labels)


def _count_label(column: NDArray[np.float32], patients: NDArray[np.int64]) -> LabelCount:
    positive, negative = column == 1, column == 0
    with_positive = set(patients[positive].tolist())
    with_negative = set(patients[negative].tolist()) - with_positive
    unknown = len(column) - int(positive.sum()) - int(negative.sum())
    return LabelCount(int(positive.sum()), int(negative.sum()), unknown, len(with_positive), len(with_negative))
