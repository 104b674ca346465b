"""How well probabilities agree with what is observed: expected calibration error, calibration slope and intercept.

Axes: m rows with a known label, p patients, k bins.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.proportions import student

__all__ = ["calibration_figures", "mass_bins"]

Array = NDArray[np.float64]

_BINS, _LEAST_ROWS, _SIMULATIONS = 15, 10, 200
_SANDWICH = "sandwich standard error over patients"


def mass_bins(p: Array, most: int) -> NDArray[np.int64]:
    """Return the bin of each probability ``m``: as many of equal mass as have 10 rows each, at least one, in order.

    The edges are those of scikit-learn's ``calibration_curve`` with ``strategy="quantile"``. Probabilities that are the
    same are in the same bin, so that there can be fewer bins.
    """
    count = max(1, min(most, len(p) // _LEAST_ROWS))
    edges = np.percentile(p, np.linspace(0, 1, count + 1) * 100) if len(p) else np.zeros(2)
    # Numbered without the empty ones.
    return np.unique(np.searchsorted(edges[1:-1], p), return_inverse=True)[1].astype(np.int64)


def calibration_figures(
    positive: NDArray[np.bool_], p: Array, z: Array, clusters: NDArray[np.int64], seed: int = 0
) -> dict[str, Estimate]:
    """Return the expected calibration error, and the slope and the intercept of the log-odds.

    The slope is that of a logistic regression of the label on the log-odds: 1 for probabilities that are neither too
    extreme (below 1) nor too timid. The intercept is that with a slope of 1, "calibration in the large": 0 where as
    many are positive as the probabilities say. Van Calster et al., BMC Medicine 17 (2019) 230. Log-odds are limited to
    ±36, the last at which a probability is not 1 in double precision.

    Args:
        positive: ``m``, the label.
        p: ``m``, probability.
        z: ``m``, log-odds.
        clusters: ``m``, the patient of each row.
        seed: of the simulations for the expected calibration error.
    """
    found = {"ece": expected_error(positive, p, clusters, seed)}
    y, z = positive.astype(float), np.clip(z, -36.0, 36.0)
    if positive.all() or not positive.any():
        why = "there is one class alone" if len(y) else "no row has a known label"
        return found | dict.fromkeys(("calibration_slope", "calibration_intercept"), Estimate(math.nan, why=why))
    codes, patients = np.unique(clusters, return_inverse=True)
    low, high = z[positive].min(), z[positive].max()
    if z.min() == z.max():
        found["calibration_slope"] = Estimate(math.nan, why="all probabilities are the same")
    elif low >= z[~positive].max() or high <= z[~positive].min():
        found["calibration_slope"] = Estimate(math.nan, why="the log-odds separate the classes: the slope is infinite")
    else:
        found["calibration_slope"] = _fit(np.stack([np.ones_like(z), z]), np.zeros_like(z), y, patients, len(codes))
    found["calibration_intercept"] = _fit(np.ones((1, len(z))), z, y, patients, len(codes))
    return found


def expected_error(
    positive: NDArray[np.bool_], p: Array, clusters: NDArray[np.int64], seed: int = 0
) -> Estimate:  # fmt: skip
    """Return the expected calibration error over 15 bins of equal mass, with what is expected of perfect calibration.

    It has no interval: it is never negative, so that it is too high in small samples, and a bootstrap adds to that.
    Instead the reason states what probabilities that are right have in a sample of this size, if each patient has one
    row. Labels of rows of the same patient depend on each other in a way that the probabilities do not state, and with
    60 patients of 8 rows the limit for independent rows was exceeded in every simulated table.
    """
    if not len(p):
        return Estimate(math.nan, why="no row has a known label")
    independent = len(np.unique(clusters)) == len(clusters)
    order = np.argsort(p, kind="stable")
    p, y = p[order], positive[order]
    bins = mass_bins(p, _BINS)
    begins = np.flatnonzero(np.concatenate([[True], bins[1:] != bins[:-1]]))
    expected = np.add.reduceat(p, begins)

    def error(labels: NDArray[np.bool_]) -> float:
        return float(np.abs(np.add.reduceat(labels, begins, dtype=np.float64) - expected).sum() / len(p))

    biased = "no interval, as it is biased upward in small samples"
    if not independent:
        why = f"{biased}; what probabilities that are right have is known only where each patient has one row"
        return Estimate(error(y), why=why)
    rng, limits = np.random.default_rng(seed), p.astype(np.float32)
    simulated = [error(rng.random(len(p), dtype=np.float32) < limits) for _ in range(_SIMULATIONS)]
    why = (
        f"{biased}: probabilities that are right have {np.mean(simulated):.3f} on average in a sample of this size, "
        f"and more than {np.percentile(simulated, 95):.3f} in 1 of 20"
    )
    return Estimate(error(y), why=why)


def _fit(x: Array, offset: Array, y: Array, patients: NDArray[np.int64], count: int) -> Estimate:
    """Return the last coefficient of a logistic regression on ``x``, ``c m``, with its interval."""
    from scipy.optimize import minimize
    from scipy.special import expit

    scale = np.array([*([1.0] * (len(x) - 1)), max(1e-12, float(np.abs(x[-1]).max()))])[:, None]
    x = x / scale

    def loss(b: Array) -> tuple[float, Array]:
        z = b @ x + offset
        return float((np.logaddexp(0, z) - y * z).mean()), x @ (expit(z) - y) / len(y)

    def curvature(b: Array) -> Array:
        q = expit(b @ x + offset)
        return (x * (q * (1 - q))) @ x.T / len(y)

    b = minimize(loss, np.zeros(len(x)), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-10}).x
    residual = y - expit(b @ x + offset)
    sums = np.stack([np.bincount(patients, weights=row * residual, minlength=count) for row in x])
    inverse = np.linalg.pinv(curvature(b) * len(y))
    value = float(b[-1] / scale[-1, 0])
    if count < 2:
        return Estimate(value, why="there is one patient alone")
    variance = (inverse @ (sums @ sums.T) @ inverse)[-1, -1] * count / (count - 1)
    half = student(count - 1) * math.sqrt(variance) / float(scale[-1, 0])
    return Estimate(value, value - half, value + half, _SANDWICH)
