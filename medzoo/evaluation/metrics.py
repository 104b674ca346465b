"""``measure``: every figure of a set of scores, each with its interval or the reason why it has none.

Axes: n rows, l labels, r resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import ConfigError
from medzoo.evaluation.calibration_figures import calibration_figures
from medzoo.evaluation.case_counts import FEW, Counts, averaged, count, units_of, why_few
from medzoo.evaluation.estimate import LEAST_PATIENTS, Estimate
from medzoo.evaluation.intervals import (
    BOOTSTRAP,
    at_prevalence,
    auroc_interval,
    call_intervals,
    correlation_of_rates,
    end_interval,
    interval,
    scaled_interval,
)
from medzoo.evaluation.proportions import clustered_wilson
from medzoo.evaluation.replicates import Options, Replicates, replicate
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.scores import Scores

__all__ = ["AT_PREVALENCE", "BOOTSTRAP", "CALLED", "Counts", "LabelMetrics", "Metrics", "count", "interval", "measure"]

AT_PREVALENCE = ("accuracy_at_prevalence", "ppv_at_prevalence", "npv_at_prevalence")
CALLED = ("accuracy", "sensitivity", "specificity", "ppv", "npv", "f1", *AT_PREVALENCE)
"""Figures of yes/no calls."""

_OF_SAMPLE = Estimate(math.nan, why="the rows were sampled by class; see the value at the stated share of positives")

# Which patients are the cases where the figure is 0 or 1: those with a positive row (0) or those without (1).
_CASES = {"average_precision": 0, "sensitivity_at_specificity": 0, "specificity_at_sensitivity": 1}


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
        valid: number of labels with an AUROC, which ``macro_auroc_all`` averages; the others have one class alone.
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
    valid: int = 0

    def __getitem__(self, label: str) -> LabelMetrics:
        for found in self.labels:
            if found.label == label:
                return found
        raise ConfigError(f"metrics: there is no label {label!r}. There are {', '.join(m.label for m in self.labels)}.")

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: plain numbers, texts, lists and dictionaries, NaN as ``None``."""
        labels = {
            m.label: {
                "counts": dict(vars(m.counts)), "threshold": m.threshold,
                "calls": None if m.calls is None else dict(zip(("tp", "fp", "fn", "tn"), m.calls, strict=True)),
                "figures": {name: value.to_dict() for name, value in m.values.items()},
            }
            for m in self.labels
        }  # fmt: skip
        return {
            "rows": self.rows, "patients": self.patients, "eligible": list(self.eligible), "labels": labels,
            "overall": {name: value.to_dict() for name, value in self.overall.items()},
            "confusion": None if self.confusion is None else self.confusion.tolist(),
            "valid": self.valid, "resamples": self.resamples, "seed": self.seed,
            "options": vars(self.options) | {"prevalence": [float(p) for p in self.options.prevalence]},
        }  # fmt: skip


def measure(
    scores: Scores, *, options: Options | None = None, resamples: int = 2000, seed: int = 0,
    eligible: Sequence[str] | None = None, title: str = "", replicates: Replicates | None = None,
) -> Metrics:  # fmt: skip
    """Return every figure of the scores with its interval, or the reason why it has none.

    Args:
        scores: of a model.
        options: what is computed beside the figures that need no choice.
        resamples: number of resamples of the patients.
        seed: of the bootstrap.
        eligible: the labels that are averaged; ``None`` for those with enough patients here.
        title: of a progress bar; empty for none.
        replicates: of these scores, where they are drawn already; ``resamples`` and ``seed`` are those they are from.

    Raises:
        ConfigError: ``eligible`` has a label that the scores do not have, or an option does not fit.
    """
    how, clusters = options or Options(), scores.clusters
    unknown = set(eligible or ()) - set(scores.labels)
    if unknown:
        raise ConfigError(
            f"measure: expected eligible labels of {', '.join(scores.labels)}, got {', '.join(sorted(unknown))} too."
        )
    counts = [count(scores.targets[:, i], clusters) for i in range(len(scores.labels))]
    chosen = [c.eligible for c in counts] if eligible is None else [label in eligible for label in scores.labels]
    found = replicates or replicate(scores, Resamples(clusters, resamples, seed), chosen, how, title=title)
    table = _Table(scores, clusters, scores.calls, scores.log_odds, found, how, seed)
    labels = tuple(_label(table, i, counts[i]) for i in range(len(scores.labels)))
    return Metrics(
        labels=labels,
        overall=_overall(table, labels, chosen),
        eligible=tuple(label for label, ok in zip(scores.labels, chosen, strict=True) if ok),
        rows=len(scores),
        patients=None if scores.patients is None else int(clusters.max(initial=-1)) + 1,
        confusion=_confusion(scores),
        resamples=resamples,
        seed=seed,
        options=how,
        valid=sum(not math.isnan(label["auroc"].value) for label in labels),
    )


class _Table(NamedTuple):
    """What is needed for the figures of each label, computed once."""

    scores: Scores
    clusters: NDArray[np.int64]
    calls: NDArray[np.float64]
    log_odds: NDArray[np.float64]
    found: Replicates
    options: Options
    seed: int


def _label(table: _Table, i: int, counts: Counts) -> LabelMetrics:
    """Return the figures of one label."""
    scores, known = table.scores, ~np.isnan(table.scores.targets[:, i])
    positive, clusters, called = scores.targets[known, i] == 1, table.clusters[known], table.calls[known, i] == 1
    threshold = float(t) if scores.thresholds and (t := scores.thresholds[i]) is not None else None
    called_at_all = scores.task == "multiclass" or threshold is not None
    values = _from_replicates(table, i, counts)
    calls = None
    if called_at_all:
        values |= call_intervals(clusters, positive, called)
        pairs = ((positive, called), (~positive, called), (positive, ~called), (~positive, ~called))
        tp, fp, fn, tn = (int((truth & call).sum()) for truth, call in pairs)
        calls = (tp, fp, fn, tn)
    else:
        values |= {name: Estimate(math.nan, why="no threshold was chosen") for name in CALLED if name in values}
    if table.options.prevalence and called_at_all:
        shared = correlation_of_rates(clusters, positive, called)
        limits = at_prevalence(values, table.options.prevalence[i], shared)
        values |= {name: e for name, e in limits.items() if e.value in (0, 1) or name == "accuracy_at_prevalence"}
    p, z = scores.probabilities[known, i], table.log_odds[known, i]
    values |= calibration_figures(positive, p, z, clusters, table.seed)
    if table.options.sampled:
        values |= dict.fromkeys(("ppv", "npv"), _OF_SAMPLE)
    if not counts.eligible:
        values = {name: _without(e, FEW) for name, e in values.items()}
    return LabelMetrics(scores.labels[i], counts, threshold, calls, values)


def _from_replicates(table: _Table, i: int, counts: Counts) -> dict[str, Estimate]:
    """Return the figures of one label with the intervals that follow from the bootstrap."""
    patients = (counts.positive_patients, counts.negative_patients)
    values = {}
    for name, (figures, replicates) in table.found.labels.items():
        value = float(figures[i])
        if not counts.eligible:
            values[name] = Estimate(value, why=_why_undefined(counts) if math.isnan(value) else FEW)
        elif name == "auroc":
            values[name] = auroc_interval(value, replicates[i], (counts.positive, counts.negative), patients)
        elif name in _CASES and value in (0, 1):
            values[name] = end_interval(value, replicates[i], patients[_CASES[name]])
        else:
            at_most = math.inf if name == "log_loss" else 1.0
            values[name] = scaled_interval(value, replicates[i], min(patients), at_most=at_most)
    return values


def _overall(table: _Table, labels: tuple[LabelMetrics, ...], chosen: Sequence[bool]) -> dict[str, Estimate]:
    """Return the figures of all labels."""
    found: dict[str, Estimate] = {}
    counts, patients = [label.counts for label in labels], int(table.clusters.max(initial=-1)) + 1
    alone = [label for label, ok in zip(labels, chosen, strict=True) if ok]
    for name, (value, replicates) in table.found.overall.items():
        least = units_of(name, counts, chosen, patients)
        if math.isnan(value):
            found[name] = Estimate(value, why=_why_none(name, table))
        elif name in ("accuracy", "exact_match"):
            found[name] = clustered_wilson(*table.found.right)
        else:
            at_most = math.inf if name in ("log_loss", "brier") else 1.0
            found[name] = scaled_interval(value, replicates, max(2, least), at_most=at_most)
        if name.startswith("macro") and sum(averaged(name, counts, chosen)) == 1 == len(alone):
            found[name] = alone[0][name.removeprefix("macro_").removesuffix("_all")]
        if least < LEAST_PATIENTS:
            found[name] = _without(found[name], why_few(name, len(labels), patients))
    return found


def _without(estimate: Estimate, why: str) -> Estimate:
    """Return the figure without an interval."""
    return Estimate(estimate.value, why=estimate.why or why)


def _why_undefined(counts: Counts) -> str:
    """Return why a label has no such figure."""
    if not counts.positive + counts.negative:
        return "no row has a known label"
    if not counts.positive:
        return "no row is positive"
    return "no row is negative" if not counts.negative else "not defined for these rows"


def _why_none(name: str, table: _Table) -> str:
    """Return why there is no such figure of all labels."""
    if np.isnan(table.scores.targets).all():
        return "no row has a known label"
    if name in ("accuracy", "exact_match"):
        return "not every output has a threshold"
    if name in ("macro_auroc", "macro_average_precision"):
        return f"no output to average, or one of them has one class alone; every other one has {FEW}"
    return "not defined for these rows"


def _confusion(scores: Scores) -> NDArray[np.int64] | None:
    """Return the rows by true and predicted class, or ``None`` unless it is multiclass."""
    if scores.task != "multiclass":
        return None
    n, known = len(scores.labels), ~np.isnan(scores.targets).any(1)
    found = np.zeros((n, n), np.int64)
    np.add.at(found, (scores.targets[known].argmax(1), scores.ranks[known].argmax(1)), 1)
    return found
