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

from medzoo.evaluation.estimate import LEAST_PATIENTS, Estimate
from medzoo.evaluation.intervals import interval
from medzoo.evaluation.metrics import count
from medzoo.evaluation.proportions import wilson
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
    """

    reader: str
    label: str
    rows: int
    sensitivity: Estimate
    specificity: Estimate
    kappa: Estimate
    left_out: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        figures = {name: getattr(self, name).to_dict() for name in ("sensitivity", "specificity", "kappa")}
        return {"reader": self.reader, "label": self.label, "rows": self.rows, "left_out": self.left_out, **figures}


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
    """Return sensitivity and specificity of each reader for each output, and the agreement with the model's calls.

    Rows that a reader did not call are left out and counted. Proportions have Wilson's interval where no patient has
    two rows; all else has a bootstrap over patients. With under 10 positive or negative patients there is no interval;
    for kappa, these are the patients with a positive call of either, and those with a negative one.

    Args:
        scores: with the calls of readers.
        resamples: number of resamples of the patients.
        seed: of the bootstrap.
    """
    pairs: list[Pair] = []
    for calls in scores.readers.values():
        for i in range(len(scores.labels)):
            pairs += [(scores.targets[:, i], calls[:, i]), (calls[:, i], scores.calls[:, i])]
    tables = _Tables(scores, pairs, resamples, seed)
    found, j = [], 0
    for reader, calls in scores.readers.items():
        for i, label in enumerate(scores.labels):
            called, known = ~np.isnan(calls[:, i]), ~np.isnan(scores.targets[:, i])
            sensitivity, specificity = (tables.proportion(j, truth) for truth in (1, 0))
            kappa = tables.kappa(j + 1)
            if np.isnan(scores.calls[:, i]).all():
                kappa = Estimate(math.nan, why="the model makes no calls: it has no threshold")
            rows, left_out = int((called & known).sum()), int((known & ~called).sum())
            found.append(ReaderRow(reader, label, rows, sensitivity, specificity, kappa, left_out))
            j += 2
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


class _Tables:
    """Two-by-two tables of two calls, as counts and in every resample of the patients."""

    def __init__(self, scores: Scores, pairs: Sequence[Pair], resamples: int, seed: int) -> None:
        from scipy.sparse import csr_array

        self.pairs, self.independent, self.clusters = pairs, scores.independent, scores.clusters
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

    def proportion(self, j: int, truth: int) -> Estimate:
        """Return how often the second call is that of the first, where the first is ``truth``."""
        right, wrong = (3, 1) if truth else (0, 2)
        hits, all_ = self.counts[j, right], self.counts[j, right] + self.counts[j, wrong]
        if not all_:
            return Estimate(math.nan, why=f"no {'positive' if truth else 'negative'} row was called")
        first, second = self.pairs[j]
        counts = count(np.where(np.isnan(second), np.nan, first).astype(np.float32), self.clusters)
        if not counts.eligible:
            return Estimate(float(hits / all_), why=f"under {LEAST_PATIENTS} positive or negative patients")
        if self.independent:
            return wilson(float(hits), float(all_))
        with np.errstate(invalid="ignore", divide="ignore"):
            resampled = self.resampled[j, right] / self.resampled[j, [right, wrong]].sum(0)
        found = interval(float(hits / all_), resampled)
        # Without a miss, or without a hit, no resample differs: the number of patients bounds what can be known.
        if found.low == found.high:
            patients = len(np.unique(self.clusters[(first == truth) & ~np.isnan(second)]))
            bound = wilson(patients * round(found.value), patients)
            low, high = min(bound.low or 0.0, found.value), max(bound.high or 0.0, found.value)
            return Estimate(found.value, low, high, "Wilson, each patient once")
        return found

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
