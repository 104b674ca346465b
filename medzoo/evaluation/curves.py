"""The curves of a report: ROC, precision and recall, reliability and net benefit, with bands that respect patients.

Axes: m rows with a known label, p patients, b resamples at a time, g groups of rows, k points of a grid. A multiclass
label is one class against the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.evaluation.calibration_figures import mass_bins
from medzoo.evaluation.case_counts import FEW, count
from medzoo.evaluation.estimate import LEAST_PATIENTS, Estimate
from medzoo.evaluation.proportions import clustered_wilson
from medzoo.evaluation.ranking import Ranking
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.scores import Scores

__all__ = ["LabelCurves", "ReliabilityBin", "curves"]

Array = NDArray[np.float64]
Band = tuple[Array, Array]

_VERTICES, _BINS = 400, 10
_GRID = np.linspace(0, 1, 101)
_THRESHOLDS = np.arange(1, 100) / 100


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows with similar probabilities.

    Attributes:
        predicted: mean probability.
        observed: share of positives.
        rows, patients: how many.
    """

    predicted: float
    observed: Estimate
    rows: int
    patients: int


@dataclass(frozen=True, eq=False)
class LabelCurves:
    """The curves of one output; a curve that is not defined has no points.

    A band holds the 2.5th and the 97.5th percentile of the bootstrap over patients at each point; ``None`` for a label
    without enough patients.

    Attributes:
        label: its name.
        roc: false positive rate and sensitivity, the vertices of the curve, thinned where it has more than 400.
        roc_grid: false positive rates of the band, ``k``.
        roc_band: sensitivity.
        pr: recall and precision, from the first positive to the last, thinned likewise.
        pr_grid: recalls of the band, ``k``.
        pr_band: precision.
        reliability: bins of equal mass, at most 10, from the lowest probability up.
        decision_at: threshold probabilities, from 0.01 to the first above all probabilities or 0.99.
        net_benefit: of calling those at and above the threshold: true positives less false positives times
            t / (1 - t), per row. Vickers and Elkin, Medical Decision Making 26 (2006) 565-574.
        net_benefit_band: of it.
        treat_all: net benefit of calling every row positive. That of calling none is 0.
    """

    label: str
    roc: tuple[Array, Array]
    roc_grid: Array
    roc_band: Band | None
    pr: tuple[Array, Array]
    pr_grid: Array
    pr_band: Band | None
    reliability: tuple[ReliabilityBin, ...]
    decision_at: Array
    net_benefit: Array
    net_benefit_band: Band | None
    treat_all: Array


def curves(scores: Scores, *, resamples: int = 500, seed: int = 0) -> tuple[LabelCurves, ...]:
    """Return the curves of each label.

    Args:
        scores: of a model.
        resamples: of the patients, for the bands.
        seed: of the bootstrap.
    """
    clusters = scores.clusters
    draws = Resamples(clusters, resamples, seed)
    labels = [_Label(scores, i, clusters, draws.patients) for i in range(len(scores.labels))]
    banded = [label for label in labels if label.eligible]
    for numbers in draws.steps() if banded else []:
        weights = draws.weights(numbers)
        for label in banded:
            label.add(weights)
    return tuple(label.curves() for label in labels)


class _Label:
    """One label while its bands are drawn."""

    def __init__(self, scores: Scores, i: int, clusters: NDArray[np.int64], patients: int) -> None:
        known = ~np.isnan(scores.targets[:, i])
        self.name, self.eligible = scores.labels[i], count(scores.targets[:, i], clusters).eligible
        self.positive, self.clusters = scores.targets[known, i] == 1, clusters[known]
        self.p, self.patients = scores.probabilities[known, i], patients
        self.ranking = Ranking(self.positive, scores.ranks[known, i], self.clusters, patients)
        highest = self.p.max(initial=0.0)
        self.thresholds = _THRESHOLDS[: int(np.searchsorted(_THRESHOLDS, highest, side="right")) + 1]
        self.counts = _threshold_counts(self.positive, self.p, self.clusters, patients, self.thresholds)
        self.found: list[tuple[Array, Array, Array]] = []

    def add(self, weights: Array) -> None:
        """Add the curves of resamples of weights ``p b``."""
        sweep = self.ranking.sweep(weights)
        benefit = self._net_benefit(weights)
        self.found.append((sweep.roc(_GRID), sweep.precision_at(_GRID), benefit))

    def _net_benefit(self, weights: Array) -> Array:
        positive, negative = (of @ weights for of in self.counts)
        return _net_benefit(positive, negative, self.thresholds)

    def curves(self) -> LabelCurves:
        """Return the curves with their bands."""
        bands: list[Band | None] = [None] * 3
        if self.eligible:
            bands = [_band(np.concatenate(each, 1)) for each in zip(*self.found, strict=True)]
        each = np.ones((self.patients, 1))
        benefit, everyone = np.zeros((0, 1)), np.zeros(0)
        at = self.thresholds if len(self.p) else self.thresholds[:0]
        if len(at):
            benefit = self._net_benefit(each)
            share = float(self.positive.mean())
            everyone = share - (1 - share) * at / (1 - at)
        roc, pr = _vertices(self.ranking)
        return LabelCurves(
            self.name, roc, _GRID, bands[0], pr, _GRID, bands[1], self._reliability(),
            at, benefit[:, 0], bands[2], everyone,
        )  # fmt: skip

    def _reliability(self) -> tuple[ReliabilityBin, ...]:
        if not len(self.p):
            return ()
        bins, found = mass_bins(self.p, _BINS), []
        for number in range(int(bins.max()) + 1):
            rows = bins == number
            own = np.bincount(self.clusters[rows], minlength=self.patients).astype(float)
            hits = np.bincount(self.clusters[rows & self.positive], minlength=self.patients).astype(float)
            observed, patients = clustered_wilson(hits, own), int((own > 0).sum())
            if patients < LEAST_PATIENTS:
                observed = Estimate(observed.value, why=f"under {LEAST_PATIENTS} patients")
            elif not self.eligible:
                observed = Estimate(observed.value, why=FEW)
            found.append(ReliabilityBin(float(self.p[rows].mean()), observed, int(rows.sum()), patients))
        return tuple(found)


def _threshold_counts(
    positive: NDArray[np.bool_], p: Array, clusters: NDArray[np.int64], patients: int, thresholds: Array
) -> tuple[Any, Any]:
    """Return sparse matrices of how many positives and negatives a patient has from a threshold to the next, ``k+1 p``.

    The first row is of those below the first threshold.
    """
    from scipy.sparse import csr_array

    above = np.searchsorted(thresholds, p, side="right")
    shape = (len(thresholds) + 1, patients)
    first, second = (
        csr_array((np.ones(int(of.sum())), (above[of], clusters[of])), shape=shape) for of in (positive, ~positive)
    )
    return first, second


def _net_benefit(positive: Array, negative: Array, thresholds: Array) -> Array:
    """Return the net benefit at each threshold, ``k b``, from the counts between them, ``k+1 b``."""
    true, false = (counts[::-1].cumsum(0)[::-1] for counts in (positive, negative))
    odds = (thresholds / (1 - thresholds))[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (true[1:] - false[1:] * odds) / (true[:1] + false[:1])


def _band(replicates: Array) -> Band:
    """Return the percentiles of replicates ``k r``; those of resamples without the figure are left out."""
    known = replicates[:, np.isfinite(replicates).all(0)]
    low, high = np.percentile(known, [2.5, 97.5], axis=1)
    return low, high


def _vertices(ranking: Ranking) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return the points of the ROC curve and of precision and recall."""
    sweep = ranking.sweep()
    true, false = sweep.true[:, 0], sweep.false[:, 0]
    empty = np.zeros(0), np.zeros(0)
    if not len(true) or not true[-1]:
        return empty, empty
    first, last = int(np.argmax(true > 0)), int(np.argmax(true == true[-1]))
    reached, seen = true[first : last + 1], (true + false)[first : last + 1]
    pr = _thin(np.concatenate([[0.0], reached / true[-1]]), np.concatenate([reached[:1] / seen[:1], reached / seen]))
    if not false[-1]:
        return empty, pr
    x, y = (np.concatenate([[0.0], counts / counts[-1]]) for counts in (false, true))
    return _thin(x, y), pr


def _thin(x: Array, y: Array, most: int = _VERTICES) -> tuple[Array, Array]:
    """Return at most so many points of a line, with its ends, such that it stays as close as can be.

    The point that is furthest from the line drawn so far is added, until all are on it or there are enough: Ramer,
    Douglas and Peucker's way, with a number of points in place of a tolerance.
    """
    kept, heap = {0, len(x) - 1}, [_furthest(x, y, 0, len(x) - 1)]
    while heap and len(kept) < most:
        distance, at, begin, end = heappop(heap)
        if -distance < 1e-12:
            break
        kept.add(at)
        for piece in ((begin, at), (at, end)):
            if piece[1] - piece[0] > 1:
                heappush(heap, _furthest(x, y, *piece))
    chosen = sorted(kept)
    return x[chosen], y[chosen]


def _furthest(x: Array, y: Array, begin: int, end: int) -> tuple[float, int, int, int]:
    """Return the negated distance and the number of the point that is furthest from the line between two others."""
    if end - begin < 2:
        return 0.0, begin, begin, end
    dx, dy = x[end] - x[begin], y[end] - y[begin]
    across = np.abs((x[begin + 1 : end] - x[begin]) * dy - (y[begin + 1 : end] - y[begin]) * dx)
    length = float(np.hypot(dx, dy))
    at = int(across.argmax())
    return -float(across[at]) / max(length, 1e-12), begin + 1 + at, begin, end
