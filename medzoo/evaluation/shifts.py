"""Calibrations in closed form, from what is known of the training: no fit, and so no data.

Each is right in the limit of enough training data, where the model has learned what it was given.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medzoo.errors import ConfigError
from medzoo.provenance import Calibration

__all__ = ["Prevalence", "shares_of", "shift_for_loss_weights", "shift_for_prevalence", "weighted_shares", "with_shift"]

Prevalence = float | Sequence[float] | Mapping[str, float]
"""A share of positives for all labels, or for each."""


def shift_for_loss_weights(labels: Sequence[str], positive_weights: Sequence[float]) -> Calibration:
    """Return the closed-form shift for a loss that weighted positives, or classes: the intercept is ``-log w``.

    A model that was trained with weights w has, in the limit of enough data, logits that are too high by log w.

    Args:
        labels: of the outputs.
        positive_weights: for each label the weight of its positives as a multiple of that of its negatives
            (``pos_weight``), or of its class in a multiclass loss.

    Raises:
        ConfigError: not a weight above 0 for each label.
    """
    weights = _given("positive_weights", labels, positive_weights)
    if any(not w > 0 for w in weights):
        raise ConfigError(f"shift_for_loss_weights: expected weights above 0, got {weights}.")
    given = ", ".join(f"{label} {w:.4g}" for label, w in zip(labels, weights, strict=True))
    method = f"closed-form shift for the weights of the loss ({given}), not a fit"
    return Calibration(method, (1.0,) * len(labels), tuple(float(0 - np.log(w)) for w in weights))


def shift_for_prevalence(
    labels: Sequence[str],
    from_prevalence: Prevalence,
    to_prevalence: Prevalence,
    *,
    multiclass: bool = False,
    only: Collection[str] | None = None,
) -> Calibration:
    """Return the closed-form shift for another prevalence, such as after case sampling: ``logit(to) - logit(from)``.

    It is right where the images of positives, and those of negatives, are alike at both, and only their share differs.
    For multiclass it is ``log(to) - log(from)``.

    Args:
        labels: of the outputs.
        from_prevalence: share of positives that the probabilities are for, one for all labels or for each.
        to_prevalence: share of positives that they should be for.
        multiclass: whether the labels are classes, whose shares sum to 1.
        only: the labels to shift, unless they are classes; ``None`` for all. The others get an intercept of 0.

    Raises:
        ConfigError: not a share above 0 and below 1 for each label.
    """
    moved = [multiclass or only is None or label in only for label in labels]
    before, after = (
        np.array(shares_of("shift_for_prevalence", name, labels, given, multiclass))
        for name, given in (("from_prevalence", from_prevalence), ("to_prevalence", to_prevalence))
    )
    shift = np.log(after) - np.log(before)
    if not multiclass:
        shift = np.where(moved, shift + np.log1p(-before) - np.log1p(-after), 0.0)
    parts = zip(labels, before, after, moved, strict=True)
    given = ", ".join(f"{x} {p:.4g} to {q:.4g}" for x, p, q, shifted in parts if shifted)
    method = f"closed-form shift of the prevalence ({given}), not a fit"
    stated = tuple(q if shifted else None for q, shifted in zip(after.tolist(), moved, strict=True))
    return Calibration(method, (1.0,) * len(labels), tuple(shift.tolist()), prevalence=stated)


def with_shift(calibration: Calibration | None, shift: Calibration) -> Calibration:
    """Return one calibration that does both, the shift after the other: a model has one."""
    if calibration is None:
        return shift
    intercept = tuple(c + more for c, more in zip(calibration.intercept, shift.intercept, strict=True))
    method = f"{calibration.method}, and a {shift.method}"
    return replace(calibration, intercept=intercept, method=method, prevalence=shift.prevalence)


def weighted_shares(shares: Sequence[float], weights: Sequence[float], *, multiclass: bool) -> tuple[float, ...]:
    """Return the share of positives that probabilities are for after a training whose loss had weights.

    A weight w of the positives acts as w times as many of them: odds of p / (1 - p) become w p / (1 - p).

    Args:
        shares: of positives in the training part, one for each label.
        weights: of the positives as a multiple of that of the negatives, or of each class; empty for none.
        multiclass: whether the labels are classes, whose shares sum to 1.

    >>> weighted_shares([0.2], [4.0], multiclass=False)
    (0.5,)
    """
    p = np.asarray(shares, float)
    w = np.asarray(weights, float) if len(weights) else np.ones_like(p)
    return tuple((w * p / ((w * p).sum() if multiclass else w * p + 1 - p)).tolist())


def shares_of(
    who: str, name: str, labels: Sequence[str], given: Prevalence, multiclass: bool = False
) -> tuple[float, ...]:
    """Return the share of positives of each label, of one for all, a list, or a mapping by label.

    Args:
        who: begins the message.
        name: of the argument.
        labels: of the outputs.
        given: the argument.
        multiclass: whether the labels are classes, whose shares sum to 1.

    Raises:
        ConfigError: not a share above 0 and below 1 for each label.
    """
    found = np.array(_given(name, labels, given))
    if not ((found > 0) & (found < 1)).all():
        raise ConfigError(f"{who}: expected {name} to be above 0 and below 1, got {found.tolist()}.")
    if multiclass and abs(found.sum() - 1) > 1e-3:
        raise ConfigError(f"{who}: expected {name} of all classes to sum to 1, got {found.sum():.4g}.")
    return tuple(found.tolist())


def _given(name: str, labels: Sequence[str], values: Any) -> tuple[float, ...]:
    """Return a number for each label, of one for all, a list, or a mapping by label."""
    if isinstance(values, Mapping):
        if set(values) != set(labels):
            raise ConfigError(f"{name}: expected a number for {', '.join(labels)}, got {', '.join(map(str, values))}.")
        values = [values[label] for label in labels]
    try:
        found = (float(values),) * len(labels) if np.ndim(values) == 0 else tuple(float(v) for v in values)
    except (TypeError, ValueError):
        found = ()
    if len(found) != len(labels) or not np.isfinite(found).all():
        raise ConfigError(f"{name}: expected a number for each of {len(labels)} labels, got {values!r}.")
    return found
