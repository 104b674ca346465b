"""``measure``: every figure of a set of scores, each with its interval or the reason why it has none.

Axes: n rows, l labels, r resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import ConfigError
from medzoo.evaluation.estimate import LEAST_PATIENTS, Estimate
from medzoo.evaluation.proportions import newcombe, wilson
from medzoo.evaluation.replicates import Options, Replicates, replicate
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.scores import Scores

__all__ = ["Counts", "LabelMetrics", "Metrics", "count", "interval", "measure"]

BOOTSTRAP = "bootstrap over patients"
PROPORTIONS = ("accuracy", "sensitivity", "specificity", "ppv", "npv")


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


@dataclass(frozen=True)
class LabelMetrics:
    """The figures of one output.

    Attributes:
        label: its name.
        counts: what they are computed from.
        threshold: probability at and above which it is called positive; ``None`` for no call.
        calls: true positives, false positives, false negatives and true negatives; ``None`` for no call.
        values: the figures by name.
    """

    label: str
    counts: Counts
    threshold: float | None
    calls: tuple[int, int, int, int] | None
    values: Mapping[str, Estimate]

    def __getitem__(self, name: str) -> Estimate:
        return self.values[name]


@dataclass(frozen=True, eq=False)
class Metrics:
    """The figures of a set of scores.

    Attributes:
        labels: of each output.
        overall: of all of them.
        eligible: the labels that ``macro_auroc`` and ``macro_average_precision`` average: those with enough positive
            and negative patients. Groups and other models are averaged over the same.
        rows, patients: that were evaluated; ``None`` for patients that are not known.
        confusion: for multiclass, rows by true class (first axis) and predicted class.
        resamples, seed: of the bootstrap.
        options: what was chosen.
    """

    labels: tuple[LabelMetrics, ...]
    overall: Mapping[str, Estimate]
    eligible: tuple[str, ...]
    rows: int
    patients: int | None
    confusion: NDArray[np.int64] | None
    resamples: int
    seed: int
    options: Options

    def __getitem__(self, label: str) -> LabelMetrics:
        for found in self.labels:
            if found.label == label:
                return found
        raise ConfigError(f"metrics: there is no label {label!r}. There are {', '.join(m.label for m in self.labels)}.")

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        labels = {
            m.label: {
                "counts": vars(m.counts), "threshold": m.threshold,
                "calls": None if m.calls is None else dict(zip(("tp", "fp", "fn", "tn"), m.calls, strict=True)),
                "figures": {name: value.to_dict() for name, value in m.values.items()},
            }
            for m in self.labels
        }  # fmt: skip
        return {
            "rows": self.rows, "patients": self.patients, "eligible": list(self.eligible), "labels": labels,
            "overall": {name: value.to_dict() for name, value in self.overall.items()},
            "confusion": None if self.confusion is None else self.confusion.tolist(),
            "resamples": self.resamples, "seed": self.seed, "options": vars(self.options),
        }  # fmt: skip


def count(targets: NDArray[np.float32], clusters: NDArray[np.int64]) -> Counts:
    """Count the rows and patients of a column of targets ``n``."""
    positive, negative = targets == 1, targets == 0
    with_positive = np.unique(clusters[positive])
    without = np.setdiff1d(clusters[negative], with_positive)
    unknown = len(targets) - int(positive.sum()) - int(negative.sum())
    return Counts(int(positive.sum()), int(negative.sum()), unknown, len(with_positive), len(without))


def interval(value: float, replicates: NDArray[np.float64], method: str = BOOTSTRAP) -> Estimate:
    """Return a figure with the percentiles of its replicates; without those that have no value."""
    if math.isnan(value):
        return Estimate(value, why="not defined for these rows")
    known = replicates[np.isfinite(replicates)]
    if len(known) < 0.9 * len(replicates) or not len(known):
        return Estimate(value, why="too many resamples have no such figure")
    low, high = np.percentile(known, [2.5, 97.5])
    return Estimate(value, float(low), float(high), method)


def measure(
    scores: Scores, *, options: Options | None = None, resamples: int = 2000, seed: int = 0,
    eligible: Sequence[str] | None = None, title: str = "",
) -> Metrics:  # fmt: skip
    """Return every figure of the scores with its interval.

    Args:
        scores: of a model.
        options: what is computed beside the figures that need no choice.
        resamples: number of resamples of the patients.
        seed: of the bootstrap.
        eligible: the labels that are averaged; ``None`` for those with enough patients here.
        title: of a progress bar; empty for none.
    """
    how, clusters = options or Options(), scores.clusters
    counts = [count(scores.targets[:, i], clusters) for i in range(len(scores.labels))]
    chosen = [c.eligible for c in counts] if eligible is None else [label in eligible for label in scores.labels]
    found = replicate(scores, Resamples(clusters, resamples, seed), chosen, how, title=title)
    labels = tuple(_label(scores, i, counts[i], found) for i in range(len(scores.labels)))
    return Metrics(
        labels=labels,
        overall={name: interval(*found.overall[name]) for name in found.overall},
        eligible=tuple(label for label, ok in zip(scores.labels, chosen, strict=True) if ok),
        rows=len(scores),
        patients=None if scores.patients is None else int(clusters.max(initial=-1)) + 1,
        confusion=_confusion(scores),
        resamples=resamples,
        seed=seed,
        options=how,
    )


def _label(scores: Scores, i: int, counts: Counts, found: Replicates) -> LabelMetrics:
    """Return the figures of one label."""
    known, positive, called = ~np.isnan(scores.targets[:, i]), scores.targets[:, i] == 1, scores.calls[:, i]
    calls = None
    if not np.isnan(called).any():
        yes = called == 1
        calls = tuple(int((known & truth & call).sum()) for truth, call in (
            (positive, yes), (~positive, yes), (positive, ~yes), (~positive, ~yes)
        ))  # fmt: skip
    values = {name: interval(figure[i], replicates[i]) for name, (figure, replicates) in found.labels.items()}
    if calls is not None and scores.independent:
        tp, fp, fn, tn = calls
        pairs = ((tp + tn, sum(calls)), (tp, tp + fn), (tn, tn + fp), (tp, tp + fp), (tn, tn + fn))
        values |= {name: wilson(*pair) for name, pair in zip(PROPORTIONS, pairs, strict=True)}
    if values["auroc"].value in (0.0, 1.0):
        values["auroc"] = newcombe(values["auroc"].value, counts.positive_patients, counts.negative_patients)
    if not counts.eligible:
        why = f"under {LEAST_PATIENTS} positive or negative patients"
        values = {name: Estimate(e.value, why=e.why or why) for name, e in values.items()}
    threshold = scores.thresholds[i] if scores.thresholds else None
    return LabelMetrics(scores.labels[i], counts, threshold, calls, values)  # type: ignore[arg-type]


def _confusion(scores: Scores) -> NDArray[np.int64] | None:
    """Return the rows by true and predicted class, or ``None`` unless it is multiclass."""
    if scores.task != "multiclass":
        return None
    n, known = len(scores.labels), ~np.isnan(scores.targets).any(1)
    found = np.zeros((n, n), np.int64)
    np.add.at(found, (scores.targets[known].argmax(1), scores.ranks[known].argmax(1)), 1)
    return found
