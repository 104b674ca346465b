"""Curves against scikit-learn, and bands that follow from the patients."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_tables import binary, clustered, names, tables
from hypothesis import given, settings
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    auc,
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from medzoo.evaluation.curves import _thin, curves
from medzoo.evaluation.proportions import clustered_wilson
from medzoo.evaluation.scores import Scores

NAN = float("nan")


@pytest.fixture(scope="module")
def table():
    return clustered(np.random.default_rng(0), 300, 0.85, 0.3)


@pytest.fixture(scope="module")
def found(table):
    y, z, c = table
    return curves(binary(y, z, patients=c), resamples=200)[0]


@settings(max_examples=30, deadline=None)
@given(tables(least=0))
def test_curves_of_small_tables_equal_scikit_learn(table):
    targets, z, c = table
    found = curves(binary(targets, z, patients=c), resamples=2)[0]
    y, z = targets[~np.isnan(targets)], z[~np.isnan(targets)]
    assert found.roc_band is None
    if len(np.unique(y)) == 2:
        assert auc(*found.roc) == pytest.approx(roc_auc_score(y, z), abs=1e-12)
        assert (found.roc[0][0], found.roc[1][0], found.roc[0][-1], found.roc[1][-1]) == (0, 0, 1, 1)
    else:
        assert found.roc[0].shape == found.roc[1].shape == (0,)
    if y.any():
        precision, recall, _ = precision_recall_curve(y, z)
        pairs = set(zip(recall.round(12), precision.round(12), strict=True))
        first, *points = zip(*(each.round(12) for each in found.pr), strict=True)
        assert first[0] == 0
        assert set(points) <= pairs
        assert found.pr[0][-1] == 1
    else:
        assert found.pr[0].shape == (0,)
    assert sum(b.rows for b in found.reliability) == len(y)
    assert found.decision_at.shape == found.net_benefit.shape == found.treat_all.shape
    assert len(found.decision_at) == 0 or len(y)


def test_thinning_changes_no_curve_visibly(table, found):
    y, z, _ = table
    fpr, tpr, _ = roc_curve(y, z)
    assert len(found.roc[0]) <= 400
    # Vertical steps are compared as a distance along either axis.
    high, wide = np.interp(fpr, *found.roc), np.interp(tpr, found.roc[1], found.roc[0])
    assert np.minimum(np.abs(high - tpr), np.abs(wide - fpr)).max() < 0.002
    assert auc(*found.roc) == pytest.approx(roc_auc_score(y, z), abs=1e-3)
    recall, precision = found.pr
    assert len(recall) <= 400
    area = np.sum(np.diff(recall) * precision[1:])
    assert area == pytest.approx(average_precision_score(y, z), abs=5e-3)


def test_a_line_is_thinned_to_its_corners():
    x = np.linspace(0, 1, 1001)
    kept = _thin(x, np.abs(x - 0.5))
    assert kept[0].tolist() == [0, 0.5, 1]
    wave = _thin(x, np.sin(40 * x), most=200)
    assert len(wave[0]) == 200
    assert np.abs(np.interp(x, *wave) - np.sin(40 * x)).max() < 0.02
    assert _thin(np.zeros(3), np.zeros(3))[0].tolist() == [0, 0]


def test_net_benefit_is_that_of_its_definition(table, found):
    y, z, _ = table
    p = 1 / (1 + np.exp(-z))
    assert found.decision_at[0] == 0.01
    for t, benefit, everyone in zip(found.decision_at, found.net_benefit, found.treat_all, strict=True):
        _, fp, _, tp = confusion_matrix(y, p >= t, labels=[0, 1]).ravel()
        assert benefit == pytest.approx((tp - fp * t / (1 - t)) / len(y), abs=1e-12)
        assert everyone == pytest.approx(y.mean() - (1 - y.mean()) * t / (1 - t))
    low = curves(binary([0, 1, 0], probabilities=[0.1, 0.2, 0.155]), resamples=2)[0]
    assert low.decision_at[-1] == pytest.approx(0.21)  # nothing is called there
    assert low.net_benefit[-1] == 0
    sure = curves(binary([0, 1, 0], probabilities=[0, 1, 0.5]), resamples=2)[0]
    assert sure.decision_at[-1] == 0.99


def test_reliability_is_that_of_scikit_learns_bins(table, found):
    y, z, c = table
    p = 1 / (1 + np.exp(-z))
    true, predicted = calibration_curve(y, p, n_bins=10, strategy="quantile")
    assert [b.observed.value for b in found.reliability] == pytest.approx(true.tolist())
    assert [b.predicted for b in found.reliability] == pytest.approx(predicted.tolist())
    first, rows = found.reliability[0], np.searchsorted(np.percentile(p, np.arange(1, 10) * 10), p) == 0
    assert (first.rows, first.patients) == (rows.sum(), len(np.unique(c[rows])))
    hits, trials = (np.bincount(c[of], minlength=300).astype(float) for of in (rows & (y == 1), rows))
    assert first.observed == clustered_wilson(hits, trials)
    few = curves(binary(y, z, patients=c // 60), resamples=2)[0]
    assert all(b.observed.low is None and b.observed.why == "under 10 patients" for b in few.reliability)
    assert len(curves(binary(y[:25], z[:25]), resamples=2)[0].reliability) == 2
    rare = curves(binary(np.arange(len(y)) < 9, z), resamples=2)[0]
    assert all(b.observed.low is None for b in rare.reliability)
    assert {b.observed.why for b in rare.reliability} == {"under 10 positive or negative patients"}


def test_bands_hold_the_curves(table, found):
    y, z, c = table
    fpr, tpr, _ = roc_curve(y, z)
    pairs = (found.roc_band, np.interp(found.roc_grid, fpr, tpr)), (found.net_benefit_band, found.net_benefit)
    for (low, high), own in pairs:
        assert ((low <= own + 1e-9) & (own <= high + 1e-9)).mean() > 0.97
    assert found.pr_band[0].shape == found.pr_grid.shape == (101,)
    assert (found.pr_band[0] <= found.pr_band[1]).all()
    again = curves(binary(y, z, patients=c), resamples=200)[0]
    np.testing.assert_array_equal(again.roc_band, found.roc_band)


def test_bands_are_of_patients():
    """Four copies of each row halve the bands if they count as four patients."""
    y, z, c = (np.repeat(each, 4) for each in clustered(np.random.default_rng(2), 150, 0.8, 0.3, most=1))
    patients, rows = curves(binary(y, z, patients=c), resamples=200)[0], curves(binary(y, z), resamples=200)[0]
    for name in ("roc_band", "pr_band", "net_benefit_band"):
        wide, narrow = (np.mean(band[1] - band[0]) for band in (getattr(patients, name), getattr(rows, name)))
        assert wide / narrow == pytest.approx(2, rel=0.15), name
    wide, narrow = (one.reliability[4].observed for one in (patients, rows))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2, rel=0.3)


def test_multiclass_is_one_against_the_others():
    rng = np.random.default_rng(1)
    truth, logits = rng.integers(3, size=90), rng.normal(size=(90, 3))
    logits[np.arange(90), truth] += 1
    targets = np.eye(3, dtype=np.float32)[truth]
    targets[:5] = NAN
    scores = Scores.from_logits(logits, task="multiclass", ids=names(90), targets=targets, labels=("a", "b", "c"))
    for i, one in enumerate(curves(scores, resamples=50)):
        assert one.label == "abc"[i]
        assert auc(*one.roc) == pytest.approx(roc_auc_score(truth[5:] == i, scores.probabilities[5:, i]))
        assert one.roc_band is not None


def test_labels_without_rows_have_no_points():
    scores = binary([NAN, NAN], [0, 1])
    for each in (scores, scores.select(np.zeros(0, int))):
        one = curves(each, resamples=2)[0]
        assert [len(a) for a in (*one.roc, *one.pr, one.reliability, one.decision_at, one.treat_all)] == [0] * 7
        assert one.roc_band is one.pr_band is one.net_benefit_band is None
