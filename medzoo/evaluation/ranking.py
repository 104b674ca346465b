"""What follows from the order of the scores of one output, for many resamples at once: AUROC, average precision, curves.

Axes: m rows with a known label, p patients, b resamples at a time, g groups of rows, from the highest score down.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ranking", "Sweep"]

Array = NDArray[np.float64]


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
        self._positive, self._negative = (
            csr_array((np.ones(int(of.sum())), (group[of], clusters[of])), shape=shape) for of in (positive, ~positive)
        )

    def sweep(self, weights: Array | None = None) -> Sweep:
        """Return the weighted counts from the highest score down, ``g b``; without weights each patient counts once."""
        w = np.ones((self.patients, 1)) if weights is None else weights
        return Sweep(self._positive @ w, self._negative @ w)


class Sweep:
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
            return ((self.true - self.positive / 2) * self.negative).sum(0) / (p * n)

    def average_precision(self) -> Array:
        """Return the average precision, ``b``, as scikit-learn defines it: the mean precision over the positives."""
        p, _ = self.totals
        seen = self.true + self.false
        precision = np.divide(self.true, seen, out=np.zeros_like(seen), where=seen > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (precision * self.positive).sum(0) / p

    def sensitivity_at(self, specificity: float) -> Array:
        """Return the highest sensitivity of a threshold with at least this specificity, ``b``."""
        p, n = self.totals
        with np.errstate(invalid="ignore", divide="ignore"):
            tpr, fpr = self.true / p, self.false / n
        found = np.where(fpr <= 1 - specificity + 1e-12, tpr, 0.0).max(0, initial=0.0)
        return np.where((p > 0) & (n > 0), found, np.nan)

    def specificity_at(self, sensitivity: float) -> Array:
        """Return the highest specificity of a threshold with at least this sensitivity, ``b``."""
        p, n = self.totals
        with np.errstate(invalid="ignore", divide="ignore"):
            tpr, fpr = self.true / p, self.false / n
        found = np.where(tpr >= sensitivity - 1e-12, 1 - fpr, 0.0).max(0, initial=0.0)
        return np.where((p > 0) & (n > 0), found, np.nan)

    def roc(self, false_positive_rate: Array) -> Array:
        """Return the sensitivity at these false positive rates, ``k b``, along the straight lines of the ROC curve."""
        p, n = self.totals
        found = np.full((len(false_positive_rate), len(p)), np.nan)
        for i in np.flatnonzero((p > 0) & (n > 0)):
            x, y = (
                np.concatenate([[0.0], counts[:, i] / total[i]]) for counts, total in ((self.false, n), (self.true, p))
            )
            last = np.concatenate([x[1:] > x[:-1], [True]])  # the highest point above each rate
            found[:, i] = np.interp(false_positive_rate, x[last], y[last])
        return found

    def precision_at(self, recall: Array) -> Array:
        """Return the precision at the first threshold that reaches each recall, ``k b``; at 0, of the first positive."""
        p, _ = self.totals
        found = np.full((len(recall), len(p)), np.nan)
        seen = self.true + self.false
        for i in np.flatnonzero(p > 0):
            at = np.searchsorted(self.true[:, i], np.maximum(recall * p[i] - 1e-9, 1e-9))
            at = np.minimum(at, len(self.true) - 1)
            found[:, i] = self.true[at, i] / np.maximum(seen[at, i], 1e-300)
        return found
