"""Intervals of what a bootstrap cannot give: proportions near 0 and 1, and an AUROC of 1.

All are 95 % intervals.
"""

from __future__ import annotations

import math

from medzoo.evaluation.estimate import Estimate

__all__ = ["newcombe", "wilson"]

_Z = 1.959963984540054


def wilson(successes: float, trials: float) -> Estimate:
    """Return a proportion with Wilson's score interval, which holds for independent trials.

    >>> print(wilson(10, 10))
    1.000 (0.722 to 1.000)
    """
    if trials == 0:
        return Estimate(math.nan, why="no such row")
    p, z2 = successes / trials, _Z**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), "Wilson")


def newcombe(auroc: float, positive: int, negative: int) -> Estimate:
    """Return an AUROC with Newcombe's interval, which is not empty at 0 and 1.

    Newcombe, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2, Statistics in
    Medicine 25 (2006) 559-573, method 5: the values θ that are within 1.96 of their own standard errors.

    Args:
        auroc: the figure.
        positive: independent positive cases.
        negative: independent negative cases.
    """
    from scipy.optimize import brentq

    n = (positive + negative) / 2 - 1

    def excess(theta: float) -> float:
        spread = theta * (1 - theta) * (1 + n * (1 - theta) / (2 - theta) + n * theta / (1 + theta))
        return abs(auroc - theta) - _Z * math.sqrt(spread / (positive * negative))

    low = 0.0 if excess(1e-12) <= 0 else float(brentq(excess, 1e-12, auroc)) if auroc > 0 else 0.0
    high = 1.0 if excess(1 - 1e-12) <= 0 else float(brentq(excess, auroc, 1 - 1e-12)) if auroc < 1 else 1.0
    return Estimate(auroc, low, high, "Newcombe")
