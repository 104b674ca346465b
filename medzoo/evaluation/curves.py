"""``LabelCurves``: the curves of one output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medzoo.evaluation.estimate import Estimate

__all__ = ["LabelCurves", "ReliabilityBin"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows of similar probability."""

    predicted: float
    observed: Estimate
    rows: int
    patients: int


@dataclass(frozen=True, eq=False)
class LabelCurves:
    """The curves of one output."""

    label: str
    roc: tuple[Array, Array]
    roc_grid: Array
    roc_band: tuple[Array, Array] | None
    pr: tuple[Array, Array]
    pr_grid: Array
    pr_band: tuple[Array, Array] | None
    reliability: tuple[ReliabilityBin, ...]
    decision_at: Array
    net_benefit: Array
    net_benefit_band: tuple[Array, Array] | None
    treat_all: Array
