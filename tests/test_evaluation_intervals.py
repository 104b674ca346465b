"""Intervals cover what they claim for patients with several rows, and are never empty where a figure is 0 or 1.

The simulated tables are those of ``evaluation_tables.clustered``, whose true figures are known: the share of intervals
that hold the true figure is the coverage. Of 500 tables its Monte-Carlo standard error is 1.0 points at 95 %, of 700
tables 0.8.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from evaluation_tables import binary, clustered
from scipy.stats import norm

from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.intervals import auroc_interval, call_intervals, end_interval, interval, scaled_interval
from medzoo.evaluation.metrics import measure
from medzoo.evaluation.proportions import clustered_wilson, effective_share, newcombe, wilson


def delong(y, s):
    """Return the AUROC and its standard error by DeLong, DeLong and Clarke-Pearson (1988), from their definition.

    The placement of a positive is the share of the negatives below it, ties half, and the reverse; the variance is that
    of the mean of each kind.
    """
    positive, negative = s[y == 1], s[y == 0]
    above = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    of_positive, of_negative = above.mean(1), above.mean(0)
    variance = of_positive.var(ddof=1) / len(positive) + of_negative.var(ddof=1) / len(negative)
    return above.mean(), variance**0.5


def hanley_mcneil(auroc, positive, negative):
    """Return the standard error of Hanley and McNeil (1982), of exponential scores."""
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    spread = auroc * (1 - auroc) + (positive - 1) * (q1 - auroc**2) + (negative - 1) * (q2 - auroc**2)
    return (spread / (positive * negative)) ** 0.5


def true_figures(auroc, prevalence):
    """Return the figures of ``clustered`` in an infinite table, with the prevalence as the threshold."""
    d = 2**0.5 * norm.ppf(auroc)
    right = norm.cdf(d / 2)
    ppv = right * prevalence / (right * prevalence + (1 - right) * (1 - prevalence))
    npv = right * (1 - prevalence) / (right * (1 - prevalence) + (1 - right) * prevalence)
    cut = np.linspace(-8, 8 + d, 200_001)
    tpr, fpr = norm.sf(cut - d), norm.sf(cut)
    precision = tpr * prevalence / (tpr * prevalence + fpr * (1 - prevalence)).clip(1e-300)
    return {
        "auroc": auroc, "sensitivity": right, "specificity": right, "accuracy": right, "ppv": ppv, "npv": npv,
        "average_precision": float(-(precision[:-1] * np.diff(tpr)).sum()), "prevalence": prevalence,
        "calibration_slope": 1.0, "calibration_intercept": 0.0,
    }  # fmt: skip


def coverage(patients, auroc, prevalence, count, seed):
    """Return how often the intervals of each figure hold the true one, over ``count`` tables, and those of rows."""
    rng, truth = np.random.default_rng(seed), true_figures(auroc, prevalence)
    held, naive = {name: [] for name in truth}, {"auroc": [], "sensitivity": [], "specificity": []}
    for i in range(count):
        y, z, c = clustered(rng, patients, auroc, prevalence)
        found = measure(binary(y, z, patients=c, threshold=prevalence), resamples=200, seed=i)["a"]
        if not found.counts.eligible:
            continue
        for name, value in truth.items():
            held[name].append(found[name].low <= value <= found[name].high)
        tp, fp, fn, tn = found.calls
        area, error = delong(y, z)
        for name, e in (
            ("auroc", Estimate(area, area - 1.96 * error, area + 1.96 * error)),
            ("sensitivity", wilson(tp, tp + fn)),
            ("specificity", wilson(tn, tn + fp)),
        ):
            naive[name].append(e.low <= truth[name] <= e.high)
    assert len(held["auroc"]) > 0.9 * count
    return tuple({name: float(np.mean(each)) for name, each in of.items()} for of in (held, naive))


def check(held, naive):
    """Assert 93 to 97 % for the figures that a report leads with, and one Monte-Carlo error more for the others."""
    for name, covered in held.items():
        room = 0 if name in ("auroc", "sensitivity", "specificity", "accuracy") else 0.01
        assert 0.93 - room <= covered <= 0.97 + room, (name, held)
    assert max(naive.values()) < 0.93, naive


@pytest.mark.slow
def test_intervals_cover_95_percent_of_simulated_tables_of_patients():
    """100 patients of 1 to 8 rows, AUROC 0.9, prevalence 30 %; the Monte-Carlo error is 1.0 points."""
    check(*coverage(100, 0.9, 0.3, 500, seed=11))


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "auroc", "prevalence"), [(60, 0.75, 0.4), (150, 0.97, 0.3), (400, 0.9, 0.15)])
def test_intervals_cover_95_percent_at_other_sizes(patients, auroc, prevalence):
    """700 tables each; the Monte-Carlo error is 0.8 points."""
    check(*coverage(patients, auroc, prevalence, 700, seed=12))


@pytest.mark.parametrize(("auroc", "rows"), [(0.75, 300), (0.9, 300), (0.9, 2000), (0.97, 2000)])
def test_independent_rows_have_the_intervals_of_delong(auroc, rows):
    """The widths differ by a few percent: the bootstrap's noise, Student's t, and the logit-like scale."""
    y, z, c = clustered(np.random.default_rng(rows), rows, auroc, 0.3, most=1)
    scores = binary(y, z, patients=c)
    assert scores.independent
    found, (area, error) = measure(scores, resamples=2000)["a"], delong(y, z)
    e, positive = found["auroc"], int(y.sum())
    assert e.value == pytest.approx(area, abs=1e-12)
    assert e.high - e.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert (e.low, e.high) == pytest.approx((area - 1.96 * error, area + 1.96 * error), abs=0.45 * error)
    assert 0.6 < error / hanley_mcneil(area, positive, rows - positive) < 1.4
    assert found["sensitivity"] == wilson(found.calls[0], positive)


def test_rows_of_one_patient_count_once():
    """Each row eight times is no more evidence."""
    y, z, c = clustered(np.random.default_rng(6), 100, 0.85, 0.3, most=1)
    once = measure(binary(y, z, patients=c), resamples=500)["a"]
    copied = measure(binary(*(np.repeat(each, 8) for each in (y, z)), patients=np.repeat(c, 8)), resamples=500)["a"]
    for name, e in once.values.items():
        if name != "ece":  # more rows have more bins
            assert copied[name].value == pytest.approx(e.value, abs=1e-9), name
            assert copied[name].high - copied[name].low == pytest.approx(e.high - e.low, rel=0.12), name


def test_all_right_is_no_proof():
    """40 of 40 rows of 10 patients: as 10 of 10, not [1, 1]."""
    rows, clusters = np.ones(40, bool), np.arange(40) // 4
    found = call_intervals(clusters, rows, rows)
    for name in ("accuracy", "sensitivity", "ppv", "f1"):
        assert found[name].value == found[name].high == 1
        low = found[name].low if name != "f1" else found[name].low / (2 - found[name].low)
        assert 0.6 < low < wilson(10, 10).low < wilson(40, 40).low
    assert math.isnan(found["specificity"].value)
    assert found["specificity"].why == "no such row"


def test_perfect_order_has_a_lower_limit():
    """AUROC, average precision and the sensitivity at a specificity are 1 in every resample."""
    y, _, c = clustered(np.random.default_rng(7), 100, 0.9, 0.3)
    found = measure(binary(y, 20 * y - 10, patients=c), resamples=200)["a"]
    for name in ("auroc", "average_precision", "sensitivity_at_specificity", "specificity_at_sensitivity", "f1"):
        assert (found[name].value, found[name].high) == (1, 1), name
        assert 0.7 < found[name].low < 1, name
    reverse = measure(binary(y, 10 - 20 * y, patients=c), resamples=200)["a"]["auroc"]
    assert reverse.low == 0
    assert 0 < reverse.high < 0.2


def test_the_interval_is_continuous_where_the_figure_reaches_1():
    """One wrong row among 40 narrows nothing: the limits are of the same order as with none."""
    right, trials = np.full(10, 4.0), np.full(10, 4.0)
    all_right = clustered_wilson(right, trials)
    right[0] = 3
    one_wrong = clustered_wilson(right, trials)
    assert one_wrong.high < 1
    assert all_right.low < one_wrong.low < 0.95


def test_proportions_of_few_patients():
    assert clustered_wilson(np.array([3.0, 0]), np.array([4.0, 0])) == Estimate(
        0.75, why="all such rows are of one patient"
    )
    assert math.isnan(clustered_wilson(np.zeros(3), np.zeros(3)).value)
    same = clustered_wilson(np.array([1.0, 1, 1]), np.array([2.0, 2, 2]))  # the patients do not differ at all
    assert 0 < same.low < 0.5 < same.high < 1
    assert clustered_wilson(np.ones(5), np.ones(5)) == wilson(5, 5)


def test_newcombe_needs_patients_of_both_classes():
    assert newcombe(1.0, 3, 0).why == "no patient is negative"
    assert newcombe(0.0, 20, 20).high == pytest.approx(1 - newcombe(1.0, 20, 20).low)
    e = newcombe(0.8, 30, 70)
    assert (e.high - e.low) / 2 == pytest.approx(1.96 * hanley_mcneil(0.8, 30, 70), rel=0.1)


def test_the_effective_share_of_independent_rows_is_1():
    n, a = (30 + 70) / 2 - 1, 0.8
    variance = a * (1 - a) * (1 + n * (1 - a) / (2 - a) + n * a / (1 + a)) / (30 * 70)
    assert effective_share(a, variance, 30, 70) == pytest.approx(1)
    assert effective_share(a, 4 * variance, 30, 70) == pytest.approx(1 / 4, rel=0.1)


def test_figures_without_enough_resamples_have_no_interval():
    replicates = np.where(np.arange(100) < 20, np.nan, np.linspace(0.5, 0.9, 100))
    for found in (interval(0.7, replicates), scaled_interval(0.7, replicates, 20)):
        assert found == Estimate(0.7, why="20% of the resamples have no such figure")
    assert auroc_interval(0.7, replicates, (20, 20), (20, 20)).low is None
    assert interval(0.5, np.full(100, 0.5)).why == "the same in every resample"
    assert interval(math.nan, replicates).why == "not defined for these rows"
    assert scaled_interval(0.0, np.linspace(0, 0.1, 9), 20).why.startswith("at the end of its range")
    assert end_interval(1.0, np.linspace(0.2, 1, 100), 20).low == pytest.approx(0.22, abs=0.01)
    assert end_interval(1.0, np.ones(100), 20).low == wilson(20, 20).low
