"""Intervals of proportions, of what behaves like one, and of an AUROC of 0 or 1.

All are 95 % intervals. What is used where was decided by simulation: 60, 150 and 400 patients of 1 to 8 rows, with a
random effect of the patient on the score and on the label (half and 0.4 of the variance), AUROC 0.75, 0.9 and 0.97,
prevalence 15 and 40 %, 1,000 tables each (Monte-Carlo error 0.7 points). Lowest and highest coverage in percent:

===================  =========  =======================  ========================  =================================
figure               rows as    percentiles of a         standard error of a       chosen
                     patients   bootstrap of patients    bootstrap, logit scale
===================  =========  =======================  ========================  =================================
sensitivity          84 to 92   89 to 95                                           93 to 97, effective Wilson
specificity          80 to 87   91 to 95                                           94 to 96, effective Wilson
F1                   85 to 89   92 to 96                 94 to 96                  93 to 96, effective Wilson
AUROC                87 to 96   86 to 95                 91 to 96                  93 to 97, Newcombe, effective numbers
average precision               88 to 95                 93 to 95                  the logit scale
Brier score                     89 to 94                 93 to 96                  the logit scale
log loss                        89 to 94                 92 to 95                  the log scale
===================  =========  =======================  ========================  =================================

The choice was made on these tables; ``tests/test_evaluation_intervals.py`` repeats the simulation with
other tables.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medzoo.evaluation.estimate import Estimate

__all__ = ["clustered_wilson", "effective_share", "newcombe", "newcombe_variance", "student", "wilson"]

_Z = 1.959963984540054


def student(degrees: float) -> float:
    """Return the 97.5th percentile of Student's t with these degrees of freedom.

    >>> round(student(59), 3)
    2.001
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def wilson(successes: float, trials: float) -> Estimate:
    """Return a proportion with Wilson's score interval, which holds for independent trials.

    >>> print(wilson(10, 10))
    1.000 (0.722 to 1.000)
    """
    if trials == 0:
        return Estimate(math.nan, why="no such row")
    p, z2 = float(successes / trials), _Z**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    low, high = float(max(0.0, centre - half)), float(min(1.0, centre + half))
    return Estimate(p, min(low, p), max(high, p), "Wilson")


def clustered_wilson(successes: NDArray[np.float64], trials: NDArray[np.float64]) -> Estimate:
    """Return a proportion of rows with an interval that respects patients.

    Wilson's interval with one row per patient. Otherwise Wilson's at the effective sample size: that of independent
    rows whose proportion would have the variance found between patients, at most the number of rows, and corrected for
    that variance being estimated (Student's t with one degree of freedom less than patients). Where all rows or none
    are a success there is no such variance, and the effective size is the number of patients.

    Args:
        successes: ``p``, rows of each patient that are a success.
        trials: ``p``, rows of each patient that count.

    >>> print(clustered_wilson(np.array([4.0] * 10), np.array([4.0] * 10)))
    1.000 (0.661 to 1.000)
    """
    counts = trials > 0
    successes, trials = successes[counts], trials[counts]
    total, patients = float(trials.sum()), len(trials)
    if not total or (trials <= 1).all():
        return wilson(float(successes.sum()), total)
    p = float(successes.sum()) / total
    if patients < 2:
        return Estimate(p, why="all such rows are of one patient")
    effective = float(patients)
    if 0 < p < 1:
        variance = float(((successes - p * trials) ** 2).sum()) / total**2 * patients / (patients - 1)
        effective = min(total, p * (1 - p) / variance) if variance > 0 else total
    effective *= (_Z / student(patients - 1)) ** 2
    return replace(wilson(p * effective, effective), value=p, method="Wilson at the effective sample size")


def newcombe(auroc: float, positive: float, negative: float, quantile: float = _Z) -> Estimate:
    """Return an AUROC with Newcombe's interval, which is not empty at 0 and 1.

    Newcombe, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2, Statistics in
    Medicine 25 (2006) 559-573, method 5: the values θ that are within 1.96 of their own standard errors, which follow
    from exponential scores.

    Args:
        auroc: the figure.
        positive: independent positive cases.
        negative: independent negative cases.
        quantile: standard errors on each side.

    >>> print(newcombe(1.0, 20, 20))
    1.000 (0.899 to 1.000)
    """
    from scipy.optimize import brentq

    if min(positive, negative) < 1:
        return Estimate(auroc, why="no patient is positive" if positive < 1 else "no patient is negative")

    def excess(theta: float) -> float:
        return abs(auroc - theta) - quantile * math.sqrt(newcombe_variance(theta, positive, negative))

    least, most = 1e-12, 1 - 1e-12  # at 0 and 1 themselves the standard error is 0
    inside = min(max(auroc, least), most)
    low = 0.0 if excess(least) <= 0 else float(brentq(excess, least, inside))
    high = 1.0 if excess(most) <= 0 else float(brentq(excess, inside, most))
    return Estimate(float(auroc), low, high, "Newcombe")


def newcombe_variance(auroc: float, positive: float, negative: float) -> float:
    """Return the variance of an AUROC of independent exponential scores, by Newcombe's method 5."""
    n = (positive + negative) / 2 - 1
    spread = auroc * (1 - auroc) * (1 + n * (1 - auroc) / (2 - auroc) + n * auroc / (1 + auroc))
    return spread / (positive * negative)


def effective_share(auroc: float, variance: float, positive: int, negative: int) -> float:
    """Return which share of the rows, if they were independent, would have this variance by Newcombe's formula.

    Args:
        auroc: the figure, above 0 and below 1.
        variance: of the figure; above 0.
        positive: rows.
        negative: rows.
    """
    a = (1 - auroc) / (2 - auroc) + auroc / (1 + auroc)
    square, linear = variance * positive * negative / (auroc * (1 - auroc)), a * (positive + negative) / 2
    return (linear + math.sqrt(linear**2 + 4 * square * (1 - a))) / (2 * square)
