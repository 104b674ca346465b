"""What follows from the order of one output's scores, for many resamples at once: AUROC, average precision, curves.

Axes: m rows with a known label, p patients, b resamples at a time, g groups of rows, from the highest score down.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ranking", "ThresholdSweep"]

Array = NDArray[np.float64]

_MOST_ROWS = 2**20


class Ranking:
    """The rows of one output, ordered by score.

    Rows with the same score are one group. Neighbouring groups without a positive are one too: no figure here changes
    by what is between two positives. For each group the weight of a resample is the sum over its rows of how often
    their patient was drawn, which is a product with a sparse matrix ``g p``: no row is copied or sorted again.

    Args:
        positive: ``m``, the label.
        score: ``m``, larger for more likely; not NaN.
        clusters: ``m``, the patient of each row.
        patients: number of patients p.
    """

    def __init__(self, positive: NDArray[np.bool_], score: Array, clusters: NDArray[np.int64], patients: int) -> None:
        from scipy.sparse import csr_array

        order = np.argsort(-score, kind="stable")
        positive, score, clusters = positive[order], score[order], clusters[order]
        new = np.concatenate([[True], score[1:] != score[:-1]]) if len(score) else np.zeros(0, bool)
        tied = np.cumsum(new) - 1
        count = int(tied[-1]) + 1 if len(tied) else 0
        without = np.bincount(tied[positive], minlength=count) == 0
        begins = np.ones(count, bool)
        begins[1:] = ~(without[1:] & without[:-1])
        group = (np.cumsum(begins) - 1)[tied]
        self.groups, self.patients = int(group[-1]) + 1 if len(group) else 0, patients
        shape = (self.groups, patients)
        # Twice as fast, and exact: a sum of how often rows were drawn is an integer below 2**24.
        self._dtype: type = np.float32 if len(score) < _MOST_ROWS else np.float64
        self._positive, self._negative = (
            csr_array((np.ones(int(of.sum()), self._dtype), (group[of], clusters[of])), shape=shape)
            for of in (positive, ~positive)
        )

    def sweep(self, weights: Array | None = None) -> ThresholdSweep:
        """Return the weighted counts from the highest score down, ``g b``; without weights each patient counts once."""
        w = np.ones((self.patients, 1)) if weights is None else weights
        w = w.astype(self._dtype, copy=False)
        return ThresholdSweep((self._positive @ w).astype(np.float64), (self._negative @ w).astype(np.float64))


class ThresholdSweep:
    """Weighted counts as the threshold is lowered, for each resample.

    Args:
        positive: ``g b``, weight of the positives in each group.
        negative: ``g b``, weight of the negatives.

    A figure that a resample does not have, as it has one class alone, is NaN.
    """

    def __init__(self, positive: Array, negative: Array) -> None:
        self.positive, self.negative = positive, negative
        self.true, self.false = positive.cumsum(0), negative.cumsum(0)

    @property
    def totals(self) -> tuple[Array, Array]:
        """Weights of all positives and all negatives, ``b`` each."""
        empty = np.zeros(self.true.shape[1])
        return (self.true[-1], self.false[-1]) if len(self.true) else (empty, empty)

    def auroc(self) -> Array:
        """Return the area under the ROC curve, ``b``; ties count half."""
        p, n = self.totals
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.einsum("gb,gb->b", self.true - self.positive / 2, self.negative) / (p * n)

    def average_precision(self) -> Array:
        """Return the average precision, ``b``, as scikit-learn defines it: the mean precision over the positives."""
        p, _ = self.totals
        seen = np.maximum(self.true + self.false, 1)  # it is 0 or a whole number
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.einsum("gb,gb->b", self.true / seen, self.positive) / p

    def sensitivity_at(self, specificity: float) -> Array:
        """Return the highest sensitivity of a threshold with at least this specificity, ``b``."""
        p, n = self.totals
        groups = (self.false <= n * (1 - specificity + 1e-12)).sum(0)
        return self._share(self.true, groups, p, (p > 0) & (n > 0))

    def specificity_at(self, sensitivity: float) -> Array:
        """Return the highest specificity of a threshold with at least this sensitivity, ``b``."""
        p, n = self.totals
        groups = (self.true < p * (sensitivity - 1e-12)).sum(0) + 1
        return 1 - self._share(self.false, groups, n, (p > 0) & (n > 0))

    def _share(self, counts: Array, groups: NDArray[np.int64], total: Array, defined: NDArray[np.bool_]) -> Array:
        """Return the share of a class in the first groups, ``b``."""
        found = np.full(len(total), np.nan)
        at = np.flatnonzero(defined)
        first = np.minimum(groups[at], len(counts))
        found[at] = np.where(first > 0, counts[first - 1, at], 0) / total[at]
        return found

    def roc(self, false_positive_rate: Array) -> Array:
        """Return the sensitivity at these false positive rates, ``k b``, along the straight lines of the ROC curve."""
        p, n = self.totals
        found = np.full((len(false_positive_rate), len(p)), np.nan)
        for i in np.flatnonzero((p > 0) & (n > 0)):
            x, y = np.append(0.0, self.false[:, i] / n[i]), np.append(0.0, self.true[:, i] / p[i])
            # The last vertex at or before each rate: the upper end where the curve rises straight up.
            at = np.searchsorted(x, false_positive_rate + 1e-12, side="right") - 1
            after = np.minimum(at + 1, len(x) - 1)
            width = x[after] - x[at]
            share = np.divide(false_positive_rate - x[at], width, out=np.zeros_like(width), where=width > 0)
            found[:, i] = y[at] + np.maximum(share, 0) * (y[after] - y[at])
        return found

    def precision_at(self, recall: Array) -> Array:
        """Return the precision at the first threshold that reaches each recall, ``k b``; at 0, the first positive."""
        p, _ = self.totals
        found = np.full((len(recall), len(p)), np.nan)
        seen = self.true + self.false
        for i in np.flatnonzero(p > 0):
            at = np.searchsorted(self.true[:, i], np.maximum(recall * p[i] - 1e-9, 1e-9))
            at = np.minimum(at, len(self.true) - 1)
            found[:, i] = self.true[at, i] / np.maximum(seen[at, i], 1e-300)
        return found
