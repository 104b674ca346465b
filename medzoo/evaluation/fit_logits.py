"""The fits of a calibration: slope and intercept of a logit, the intercept alone, and a temperature.

Axes: m rows with a known label, l classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LabelFit", "fit_label", "fit_temperature"]

Array = NDArray[np.float64]


class LabelFit(NamedTuple):
    """The calibration of one output; ``kind`` is ``"Platt"``, ``"intercept"``, ``"temperature"``, or empty for none."""

    slope: float = 1.0
    intercept: float = 0.0
    kind: str = ""


def fit_label(logits: Array, positive: NDArray[np.bool_]) -> tuple[LabelFit, str]:
    """Return the calibration of one output, and a note where it is the intercept alone.

    Args:
        logits: ``m``.
        positive: ``m``, of both classes.
    """
    ups, downs = logits[positive], logits[~positive]
    spread = float(logits.std())
    if spread <= 1e-12 * max(1.0, float(np.abs(logits).max())):
        return _intercept(logits, positive), "the intercept alone is fitted: all logits are the same"
    if downs.max() <= ups.min():
        why = "the intercept alone is fitted: the logits separate the classes completely, so that no slope is the best"
        return _intercept(logits, positive), why
    if ups.max() <= downs.min():
        slope = -np.inf
    else:
        slope, intercept = _platt(logits, positive, spread)
        if slope > 0:
            return LabelFit(slope, intercept, "Platt"), ""
    why = f"the intercept alone is fitted: the slope would be {slope:.2g}, which is not above 0, as of a model that "
    return _intercept(logits, positive), f"{why}learned nothing here"


def _platt(logits: Array, positive: NDArray[np.bool_], spread: float) -> tuple[float, float]:
    """Return slope and intercept of the logistic regression of the label on the logit, without a penalty."""
    from sklearn.linear_model import LogisticRegression

    middle = float(logits.mean())
    # No penalty that could be seen; scikit-learn 1.8 warns of an infinite C.
    fitted = LogisticRegression(C=1e12, solver="newton-cholesky", tol=1e-8).fit(
        ((logits - middle) / spread)[:, None], positive
    )
    slope = float(fitted.coef_[0, 0]) / spread
    return slope, float(fitted.intercept_[0]) - slope * middle


def _intercept(logits: Array, positive: NDArray[np.bool_]) -> LabelFit:
    """Return the intercept at which the mean probability is the share of positives, which is the likeliest one."""
    from scipy.optimize import brentq
    from scipy.special import expit

    room = np.log(2 * len(logits))
    low, high = -float(logits.max()) - room, -float(logits.min()) + room
    found = brentq(lambda c: float(expit(logits + c).sum() - positive.sum()), low, high, xtol=1e-12)
    return LabelFit(1.0, float(found), "intercept")


def fit_temperature(logits: Array, truth: NDArray[np.int64]) -> tuple[LabelFit, str]:
    """Return one slope for all classes, the inverse temperature, or none with a note.

    Args:
        logits: ``m l``, up to a constant for each row.
        truth: ``m``, index of the true class.
    """
    from scipy.optimize import minimize_scalar

    true = logits[np.arange(len(truth)), truth]
    if (true - logits.mean(1)).mean() <= 0:
        why = "not calibrated: the logits of the true classes are not above average, as of a model that learned nothing"
        return LabelFit(), why
    if (true >= logits.max(1)).all():
        return LabelFit(), "not calibrated: every row is classified correctly, so that no temperature is the best"

    def loss(log_slope: float) -> float:
        z = np.exp(log_slope) * logits
        return float((np.logaddexp.reduce(z, axis=1) - np.exp(log_slope) * true).mean())

    found = minimize_scalar(loss, bounds=(-12.0, 12.0), method="bounded", options={"xatol": 1e-9})
    return LabelFit(float(np.exp(found.x)), 0.0, "temperature"), ""
