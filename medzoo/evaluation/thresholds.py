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
from medzoo.evaluation.intervals import call_intervals
from medzoo.evaluation.metrics import Counts, count
from medzoo.evaluation.rules import Rule, rule_text, rules_for
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.shifts import Prevalence, shares_of
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
    scale: Scale = "probability", prevalence: Prevalence | None = None,
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
    scores are so close that no such number is between them, there is no cut, which is noted if it is the best one.
    Where several cuts are equally good, it is the one nearest to the middle of the range from the lowest to the highest
    of them; of two as near, the lower.

    A label with fewer than 10 positive or 10 negative patients gets no threshold, and so no yes/no call: what so few
    patients suggest is chance. Neither does a label whose rule no threshold reaches. A fixed threshold is not chosen by
    rows, and is kept.

    Args:
        scores: of rows that the model was not trained on, after calibration if there is one.
        rule: one for all labels, or by label, with ``"*"`` or ``""`` for the others.
        split: what the rows are, for the policy.
        scale: ``"calibrated"`` where the scores are.
        prevalence: share of positives that F1 and the cost are to be for, one for all labels or for each, where the
            rows are a sample of cases; ``None`` is that of the rows. The policy states it after ``split``.

    Raises:
        ConfigError: there is no such rule or label, or no such share.
    """
    if scores.task == "multiclass":
        return Thresholds((), None, ("multiclass takes the most probable label, and has no thresholds",), ())
    rules, clusters = rules_for(scores.labels, rule), scores.clusters
    stated = None if prevalence is None else shares_of("thresholds", "prevalence", scores.labels, prevalence)
    shares = [share if one.weighs else None for one, share in zip(rules, stated or [None] * len(rules), strict=True)]
    counts = [count(scores.targets[:, i], clusters) for i in range(len(scores.labels))]
    values: list[float | None] = []
    notes: list[str] = []
    for i, (label, one) in enumerate(zip(scores.labels, rules, strict=True)):
        value, why = _choose(scores, i, one, counts[i], shares[i])
        values.append(value)
        notes += [f"{label}: {why}"] if why else []
    reached = _reached(scores, values, counts)
    policy = ThresholdPolicy(
        rule_text(scores.labels, rules), split + _for(scores.labels, shares),
        tuple(c.positive for c in counts), tuple(c.negative for c in counts), scale,
        tuple(None if r is None else _number(r.sensitivity) for r in reached),
        tuple(None if r is None else _number(r.specificity) for r in reached),
    )  # fmt: skip
    return Thresholds(tuple(values), policy, (*notes, *([OPTIMISTIC] if any(reached) else [])), reached)


def _number(rate: Estimate) -> float | None:
    return None if math.isnan(rate.value) else rate.value


def _for(labels: Sequence[str], shares: Sequence[float | None]) -> str:
    """Return which share of positives thresholds are the best for, where it is not that of the rows."""
    known = {label: f"{share:.4g}" for label, share in zip(labels, shares, strict=True) if share is not None}
    if len(known) == len(labels) and len(set(known.values())) == 1:
        return f", for a prevalence of {known[labels[0]]}"
    each = ", ".join(f"{label} {share}" for label, share in known.items())
    return f", for a prevalence of {each}" if known else ""


def _choose(scores: Scores, i: int, rule: Rule, counts: Counts, share: float | None) -> tuple[float | None, str]:
    """Return the threshold of a label, or ``None``, and what is to be said about it."""
    few = f"{counts.positive_patients} positive and {counts.negative_patients} negative patients"
    if rule.kind == "fixed":
        return rule.value, "" if counts.eligible else f"the fixed threshold is not checked, with {few}"
    if not counts.eligible:
        return None, f"no threshold and no yes/no call, with {few}; at least {LEAST_PATIENTS} of each are needed"
    known = ~np.isnan(scores.targets[:, i])
    positive, p = scores.targets[known, i] == 1, scores.probabilities[known, i]
    low, high, threshold, usable = _cuts(p)
    tp, fp = (float(of.sum()) - np.searchsorted(np.sort(p[of]), high).astype(float) for of in (positive, ~positive))
    rows = float(positive.sum()), float((~positive).sum()), share
    best = np.zeros(len(usable), bool)
    best[usable] = rule.best(tp[usable], fp[usable], *rows)
    lost = ""
    if not usable.all() and not (best & rule.best(tp, fp, *rows)).any():
        lost = (
            f"{(~usable).sum():,} of {len(usable):,} cuts are not used, the best by {rule} among them: float32 cannot "
            "tell the scores on both sides apart, as where probabilities are near 0 or 1"
        )
    if not best.any():
        why = f"no threshold and no yes/no call: no cut between the scores reaches {rule}"
        return None, f"{why}; {lost}" if lost else why
    middle = (low[best].min() + high[best].max()) / 2
    return float(threshold[best][np.argmin(np.abs(threshold[best] - middle))]), lost


def _cuts(probabilities: Array) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """Return the neighbouring scores ``k``, their middles, and whether float32 can tell them apart."""
    p = np.unique(np.concatenate([[0.0], probabilities, [1.0]]))
    low, high = p[:-1], p[1:]
    threshold = (low + high) / 2
    single = threshold.astype(np.float32)
    room = MARGIN * np.spacing(single).astype(np.float64)
    usable = (single - low > room) & (high - single > room) & (single > np.finfo(np.float32).tiny)
    return low, high, threshold, usable


def _reached(scores: Scores, values: Sequence[float | None], counts: Sequence[Counts]) -> tuple[Reached | None, ...]:
    """Return the sensitivity and specificity of the calls of each label that has a threshold."""
    clusters, found = scores.clusters, list[Reached | None]()
    for i, value in enumerate(values):
        y = scores.targets[:, i]
        known = ~np.isnan(y)
        if value is None:
            found.append(None)
            continue
        every = call_intervals(clusters[known], y[known] == 1, scores.probabilities[known, i] >= value)
        rates = every["sensitivity"], every["specificity"]
        if not counts[i].eligible:
            why = f"under {LEAST_PATIENTS} positive or negative patients"
            rates = Estimate(rates[0].value, why=why), Estimate(rates[1].value, why=why)
        found.append(Reached(*rates))
    return tuple(found)
