"""``choose_thresholds``: the probability at and above which each output is called positive, by a rule.

Axes: n rows, m rows with a known label, k cuts between neighbouring scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medzoo.classifier import Classifier
from medzoo.errors import ConfigError
from medzoo.evaluation.estimate import LEAST_PATIENTS, Estimate
from medzoo.evaluation.intervals import interval
from medzoo.evaluation.metrics import Counts, count
from medzoo.evaluation.proportions import wilson
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.rules import Rule, rule_text, rules_for
from medzoo.evaluation.scores import Scores
from medzoo.provenance import Scale, ThresholdPolicy

__all__ = ["Reached", "Thresholds", "choose_thresholds"]

Array = NDArray[np.float64]
OPTIMISTIC = "sensitivity and specificity are of the rows that the thresholds were chosen on, and are optimistic"
# Between a threshold and a score there are so many float32 numbers: sigmoids differ by one or two between devices.
MARGIN = 4


@dataclass(frozen=True)
class Reached:
    """What a threshold reached on the rows that it was chosen on, which is optimistic.

    Attributes:
        sensitivity, specificity: over rows, with an interval.
    """

    sensitivity: Estimate
    specificity: Estimate


@dataclass(frozen=True)
class Thresholds:
    """Thresholds, and how they were chosen.

    Attributes:
        values: one for each label; ``None`` for no yes/no call; empty for multiclass.
        policy: for :class:`medzoo.Outputs`; ``None`` for multiclass.
        notes: why a label has none, and what a reader should know.
        reached: what each threshold reached; ``None`` where there is none.
    """

    values: tuple[float | None, ...]
    policy: ThresholdPolicy | None
    notes: tuple[str, ...]
    reached: tuple[Reached | None, ...]

    def store(self, model: Classifier) -> None:
        """State the thresholds in ``model.outputs``, which keeps everything else.

        Raises:
            ConfigError: they are of other outputs, were chosen on another scale than that of the outputs, or the model
                has ``normalised``, whose rescaling belongs to its own thresholds.
        """
        outputs = model.outputs
        if outputs.normalised:
            raise ConfigError(
                f"{model.name}: expected probabilities that are sigmoids, got ones that thresholds rescale. Set "
                "model.outputs = dataclasses.replace(model.outputs, normalised=False), and choose on those."
            )
        model.outputs = replace(outputs, thresholds=self.values, policy=self.policy)

    def apply(self, scores: Scores) -> Scores:
        """Return scores that are called by these thresholds."""
        rule = "" if self.policy is None else self.policy.rule
        return replace(scores, thresholds=self.values, threshold_rule=rule)


def choose_thresholds(
    scores: Scores, rule: str | float | Mapping[str, str] = "youden", *, split: str = "validation",
    scale: Scale = "probability", resamples: int = 1000, seed: int = 0,
) -> Thresholds:  # fmt: skip
    """Choose a threshold for each label.

    Rules, in which case and spaces do not count:

    - ``"fixed 0.5"`` or ``0.5``: that number, whatever the rows are.
    - ``"youden"``: the largest sensitivity + specificity.
    - ``"sensitivity>=0.95"``: the highest threshold with this sensitivity, and so the best specificity.
    - ``"specificity>=0.9"``: the lowest threshold with this specificity, and so the best sensitivity.
    - ``"f1"``: the largest F1, which depends on how many of the rows are positive.
    - ``"cost fn:fp=5"``: the smallest cost of the rows, where a missed positive costs as much as 5 false alarms.

    A threshold is the middle between two neighbouring scores, or between the last one and 0 or 1, never a score. Both
    are more than a rounding of float32 away from it, so that :func:`medzoo.predict` calls these rows as here; where
    scores are so close that no such number is between them, there is no cut. Where several cuts are equally good, it is
    the one nearest to the middle of the range from the lowest to the highest of them; of two as near, the lower.

    A label with fewer than 10 positive or 10 negative patients gets no threshold, and so no yes/no call: what so few
    patients suggest is chance. Neither does a label whose rule no threshold reaches. A fixed threshold is not chosen by
    rows, and is kept.

    Args:
        scores: of rows that the model was not trained on, after calibration if there is one.
        rule: one for all labels, or by label, with ``"*"`` or ``""`` for the others.
        split: what the rows are, for the policy.
        scale: ``"calibrated"`` where the scores are.
        resamples: of the patients, for the intervals of what was reached.
        seed: of the resamples.

    Raises:
        ConfigError: there is no such rule or label.
    """
    if scores.task == "multiclass":
        return Thresholds((), None, ("multiclass takes the most probable label, and has no thresholds",), ())
    rules, clusters = rules_for(scores.labels, rule), scores.clusters
    counts = [count(scores.targets[:, i], clusters) for i in range(len(scores.labels))]
    values: list[float | None] = []
    notes: list[str] = []
    for i, (label, one) in enumerate(zip(scores.labels, rules, strict=True)):
        value, why = _choose(scores, i, one, counts[i])
        values.append(value)
        notes += [f"{label}: {why}"] if why else []
    reached = _reached(scores, values, counts, Resamples(clusters, resamples, seed))
    policy = ThresholdPolicy(
        rule_text(scores.labels, rules), split,
        tuple(c.positive for c in counts), tuple(c.negative for c in counts), scale,
        tuple(None if r is None else _number(r.sensitivity) for r in reached),
        tuple(None if r is None else _number(r.specificity) for r in reached),
    )  # fmt: skip
    return Thresholds(tuple(values), policy, (*notes, *([OPTIMISTIC] if any(reached) else [])), reached)


def _number(rate: Estimate) -> float | None:
    return None if math.isnan(rate.value) else rate.value


def _choose(scores: Scores, i: int, rule: Rule, counts: Counts) -> tuple[float | None, str]:
    """Return the threshold of a label, or ``None``, and what is to be said about it."""
    few = f"{counts.positive_patients} positive and {counts.negative_patients} negative patients"
    if rule.kind == "fixed":
        return rule.value, "" if counts.eligible else f"the fixed threshold is not checked, with {few}"
    if not counts.eligible:
        return None, f"no threshold and no yes/no call, with {few}; at least {LEAST_PATIENTS} of each are needed"
    known = ~np.isnan(scores.targets[:, i])
    low, high, threshold = _cuts(scores, known, i)
    positive, p = scores.targets[known, i] == 1, scores.probabilities[known, i]
    tp, fp = (
        float(of.sum()) - np.searchsorted(np.sort(p[of]), threshold).astype(float) for of in (positive, ~positive)
    )
    best = rule.best(tp, fp, float(positive.sum()), float((~positive).sum()))
    if not best.any():
        return None, f"no threshold and no yes/no call: no cut between the scores reaches {rule}"
    middle = (low[best].min() + high[best].max()) / 2
    return float(threshold[best][np.argmin(np.abs(threshold[best] - middle))]), ""


def _cuts(scores: Scores, known: NDArray[np.bool_], i: int) -> tuple[Array, Array, Array]:
    """Return the neighbouring scores ``k`` and their middles, of those that float32 can tell apart."""
    p = np.unique(scores.probabilities[known, i])
    low, high = np.concatenate([[0.0], p]), np.concatenate([p, [1.0]])
    threshold = (low + high) / 2
    single = threshold.astype(np.float32)
    room = MARGIN * np.spacing(single).astype(np.float64)
    ok = (single - low > room) & (high - single > room) & (single > np.finfo(np.float32).tiny)
    return low[ok], high[ok], threshold[ok]


def _reached(
    scores: Scores, values: Sequence[float | None], counts: Sequence[Counts], draws: Resamples
) -> tuple[Reached | None, ...]:
    """Return the sensitivity and specificity of the calls of each label that has a threshold."""
    chosen = [i for i, value in enumerate(values) if value is not None]
    called = (replace(scores, thresholds=tuple(values)).calls == 1)[:, chosen]
    y = scores.targets[:, chosen]
    # Positives, true positives, negatives and true negatives of each row, and of each patient ``p 4 l``.
    rows = np.stack([y == 1, (y == 1) & called, y == 0, (y == 0) & ~called], 1).astype(float)
    totals, independent = rows.sum(0), scores.independent
    resampled = np.zeros((0, 4 * len(chosen)))
    if not independent and draws.count and any(counts[i].eligible for i in chosen):
        sums = np.zeros((draws.patients, 4 * len(chosen)))
        np.add.at(sums, draws.clusters, rows.reshape(len(rows), -1))
        resampled = np.concatenate([draws.weights(step).T @ sums for step in draws.steps()])
    drawn = resampled.reshape(len(resampled), 4, len(chosen))
    found: list[Reached | None] = [None] * len(values)
    for k, i in enumerate(chosen):
        pairs = [(totals[at + 1, k], totals[at, k], drawn[:, at + 1, k], drawn[:, at, k]) for at in (0, 2)]
        with np.errstate(invalid="ignore", divide="ignore"):
            if not counts[i].eligible:
                why = f"under {LEAST_PATIENTS} positive or negative patients"
                found[i] = Reached(*(Estimate(float(a / b), why=why) for a, b, _, _ in pairs))
            elif independent:
                found[i] = Reached(*(wilson(a, b) for a, b, _, _ in pairs))
            else:
                found[i] = Reached(*(interval(float(a / b), c / d) for a, b, c, d in pairs))
    return tuple(found)
