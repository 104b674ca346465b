"""``readers``: what human readers called, against what is true, against the model and against each other.

Axes: n rows, p patients, k tables of two calls, b resamples at a time, r resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.evaluation.case_counts import FEW, count
from medzoo.evaluation.estimate import LEAST_PATIENTS, Estimate
from medzoo.evaluation.intervals import call_intervals, interval
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.scores import Scores

__all__ = ["Agreement", "ReaderRow", "agreements", "cohen_kappa", "readers"]

Array = NDArray[np.float64]
Pair = tuple[NDArray[Any], NDArray[Any]]  # calls of 0, 1 and NaN, n each


@dataclass(frozen=True)
class ReaderRow:
    """A reader and an output.

    Attributes:
        reader: the name of the reader.
        label: the name of the output.
        rows: that the reader called and whose label is known.
        sensitivity, specificity: of the reader's calls on these rows.
        kappa: Cohen's, with the model's calls, on all rows that the reader called.
        left_out: rows with a known label that the reader did not call.
        model_sensitivity, model_specificity: of the model's calls on the rows that the reader called, unlike those of
            :func:`~medzoo.evaluation.metrics.measure`, which are of all rows; ``None`` if not computed.
    """

    reader: str
    label: str
    rows: int
    sensitivity: Estimate
    specificity: Estimate
    kappa: Estimate
    left_out: int = 0
    model_sensitivity: Estimate | None = None
    model_specificity: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {name: value.to_dict() if isinstance(value, Estimate) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Agreement:
    """Cohen's kappa of two readers for an output.

    Attributes:
        label: the name of the output.
        first, second: the names of the readers.
        rows: that both called.
        kappa: of their calls.
        left_out: rows that only one of them called.
    """

    label: str
    first: str
    second: str
    rows: int
    kappa: Estimate
    left_out: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {**vars(self), "kappa": self.kappa.to_dict()}


def cohen_kappa(cells: Array) -> Array:
    """Return Cohen's kappa of weighted counts ``… 4``: both negative, first positive, second positive, both positive.

    Cohen, A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20 (1960) 37-46.
    NaN where chance alone would agree on all: both call every row alike.

    >>> round(float(cohen_kappa(np.array([20.0, 5.0, 10.0, 15.0]))), 3)
    0.4
    """
    neither, first, second, both = np.moveaxis(cells, -1, 0)
    total = neither + first + second + both
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = ((both + first) * (both + second) + (neither + second) * (neither + first)) / total**2
        return np.where(expected < 1, ((both + neither) / total - expected) / (1 - expected), np.nan)


def readers(scores: Scores, *, resamples: int = 2000, seed: int = 0) -> tuple[ReaderRow, ...]:
    """Return sensitivity and specificity of each reader and, on the same rows, of the model, and their agreement.

    Rows that a reader did not call are left out and counted. Proportions have the intervals of
    :func:`~medzoo.evaluation.proportions.clustered_wilson`; kappa has percentiles of a bootstrap over patients. With
    under 10 positive or negative patients there is no interval; for kappa, these are the patients with a positive call
    of either, and those with a negative one.

    Args:
        scores: with the calls of readers.
        resamples: number of resamples of the patients.
        seed: of the bootstrap.
    """
    who = [(reader, i) for reader in scores.readers for i in range(len(scores.labels))]
    tables = _Tables(scores, [(scores.readers[reader][:, i], scores.calls[:, i]) for reader, i in who], resamples, seed)
    found = []
    for j, (reader, i) in enumerate(who):
        truth, calls, model = scores.targets[:, i], scores.readers[reader][:, i], scores.calls[:, i]
        called, known, kappa = ~np.isnan(calls), ~np.isnan(truth), tables.kappa(j)
        own = _rates(np.where(called, truth, np.nan), calls, scores.clusters)
        models = _rates(np.where(called, truth, np.nan), model, scores.clusters)
        if np.isnan(model).all():
            kappa = Estimate(math.nan, why="the model makes no calls: it has no threshold")
            models = (kappa, kappa)
        rows, left_out = int((called & known).sum()), int((known & ~called).sum())
        found.append(ReaderRow(reader, scores.labels[i], rows, *own, kappa, left_out, *models))
    return tuple(found)


def agreements(scores: Scores, *, resamples: int = 2000, seed: int = 0) -> tuple[Agreement, ...]:
    """Return Cohen's kappa of each two readers for each output; see :func:`readers`."""
    who = [(i, first, second) for i in range(len(scores.labels)) for first, second in combinations(scores.readers, 2)]
    pairs: list[Pair] = [(scores.readers[first][:, i], scores.readers[second][:, i]) for i, first, second in who]
    tables, found = _Tables(scores, pairs, resamples, seed), []
    for j, (i, first, second) in enumerate(who):
        called = [~np.isnan(calls) for calls in pairs[j]]
        rows, left_out = int((called[0] & called[1]).sum()), int((called[0] ^ called[1]).sum())
        found.append(Agreement(scores.labels[i], first, second, rows, tables.kappa(j), left_out))
    return tuple(found)


def _rates(truth: NDArray[Any], calls: NDArray[Any], clusters: NDArray[np.int64]) -> tuple[Estimate, Estimate]:
    """Return sensitivity and specificity of calls, on the rows where both are known."""
    known = ~(np.isnan(truth) | np.isnan(calls))
    found = call_intervals(clusters[known], truth[known] == 1, calls[known] == 1)
    counts = count(np.where(known, truth, np.nan).astype(np.float32), clusters)
    rates = []
    for name, rows, what in (
        ("sensitivity", counts.positive, "positive"),
        ("specificity", counts.negative, "negative"),
    ):
        if not rows:
            rates.append(Estimate(math.nan, why=f"no {what} row was called"))
        elif counts.eligible:
            rates.append(found[name])
        else:
            rates.append(Estimate(found[name].value, why=FEW))
    return rates[0], rates[1]


class _Tables:
    """Two-by-two tables of two calls, as counts and in every resample of the patients."""

    def __init__(self, scores: Scores, pairs: Sequence[Pair], resamples: int, seed: int) -> None:
        from scipy.sparse import csr_array

        self.pairs, self.clusters = pairs, scores.clusters
        draws = Resamples(self.clusters, resamples, seed)
        cells, patients = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for j, (first, second) in enumerate(pairs):
            known = ~(np.isnan(first) | np.isnan(second))
            cells.append(4 * j + (first[known] + 2 * second[known]).astype(np.int64))
            patients.append(self.clusters[known])
        where = np.concatenate(cells), np.concatenate(patients)
        columns = csr_array((np.ones(len(where[0])), where), shape=(4 * len(pairs), draws.patients))
        self.counts = columns.sum(1).reshape(len(pairs), 4)
        parts = [(columns @ draws.weights(step)).reshape(len(pairs), 4, len(step)) for step in draws.steps() if pairs]
        self.resampled = np.concatenate(parts, 2) if parts else np.zeros((0, 4, resamples))  # k 4 r

    def kappa(self, j: int) -> Estimate:
        """Return Cohen's kappa of a pair."""
        value = float(cohen_kappa(self.counts[j]))
        if math.isnan(value):
            none = not self.counts[j].sum()
            return Estimate(value, why="no row was called by both" if none else "both call all rows alike")
        first, second = self.pairs[j]
        known = ~(np.isnan(first) | np.isnan(second))
        called = [len(np.unique(self.clusters[known & ((first == call) | (second == call))])) for call in (0, 1)]
        if min(called) < LEAST_PATIENTS:
            return Estimate(value, why=f"under {LEAST_PATIENTS} patients with a positive, or with a negative call")
        found = interval(value, cohen_kappa(self.resampled[j].T))
        return Estimate(value, why="the same in every resample") if found.low == found.high else found
