"""Figures from the order of the scores equal scikit-learn's, also in every resample of the patients."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from evaluation_tables import clustered, tables
from hypothesis import given, settings
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from medzoo.errors import ConfigError
from medzoo.evaluation.ranking import Ranking
from medzoo.evaluation.resample import Resamples


def ranked(targets, score, clusters):
    known = ~np.isnan(targets)
    codes = np.unique(clusters, return_inverse=True)[1]
    patients = int(codes.max()) + 1
    return Ranking(targets[known] == 1, score[known], codes[known], patients), codes, known


def resampled(codes, known, weights):
    """Return the rows of a resample, each as often as its patient was drawn."""
    rows = np.repeat(np.arange(len(codes)), weights[codes].astype(int))
    return rows[known[rows]]


def expected(y, s):
    """Return scikit-learn's figures, NaN where medzoo has none."""
    both = len(np.unique(y)) == 2
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False) if both else ([np.nan], [np.nan], None)
    return {
        "auroc": roc_auc_score(y, s) if both else np.nan,
        "average_precision": average_precision_score(y, s) if len(y) and y.any() else np.nan,
        "sensitivity_at": max(t for f, t in zip(fpr, tpr, strict=True) if f <= 0.1 + 1e-12) if both else np.nan,
        "specificity_at": max(1 - f for f, t in zip(fpr, tpr, strict=True) if t >= 0.9 - 1e-12) if both else np.nan,
    }


@settings(max_examples=30, deadline=None)
@given(tables())
def test_resamples_equal_scikit_learn_on_the_resampled_rows(table):
    """Ties, unknown labels, one class and a patient that is drawn several times or not at all."""
    targets, score, clusters = table
    ranking, codes, known = ranked(targets, score, clusters)
    draws = Resamples(codes, 3, seed=3)
    weights = np.concatenate([np.ones((draws.patients, 1)), draws.weights(range(3))], 1)
    sweep = ranking.sweep(weights)
    found = {
        "auroc": sweep.auroc(), "average_precision": sweep.average_precision(),
        "sensitivity_at": sweep.sensitivity_at(0.9), "specificity_at": sweep.specificity_at(0.9),
    }  # fmt: skip
    for i in range(4):
        rows = resampled(codes, known, weights[:, i])
        for name, value in expected(targets[rows] == 1, score[rows]).items():
            np.testing.assert_allclose(found[name][i], value, rtol=0, atol=1e-12, err_msg=name)


def test_resamples_of_a_large_table_equal_scikit_learn():
    targets, score, clusters = clustered(np.random.default_rng(0), 500, 0.8, 0.2)
    score = np.round(score, 1)
    ranking, codes, known = ranked(targets, score, clusters)
    draws = Resamples(codes, 200)
    weights = draws.weights(range(200))
    sweep = ranking.sweep(weights)
    for i in range(0, 200, 10):
        rows = resampled(codes, known, weights[:, i])
        assert sweep.auroc()[i] == pytest.approx(roc_auc_score(targets[rows], score[rows]), abs=1e-12)
        found = sweep.average_precision()[i]
        assert found == pytest.approx(average_precision_score(targets[rows], score[rows]), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(tables(unknown=False))
def test_curves_are_those_of_scikit_learn(table):
    targets, score, clusters = table
    ranking, _, _ = ranked(targets, score, clusters)
    y, sweep, grid = targets == 1, ranking.sweep(), np.linspace(0, 1, 21)
    if len(np.unique(y)) < 2:
        assert np.isnan(sweep.roc(grid)).all()
    else:
        fpr, tpr, _ = roc_curve(y, score, drop_intermediate=False)
        # numpy takes the last of several points at the same rate.
        np.testing.assert_allclose(sweep.roc(grid)[:, 0], np.interp(grid + 1e-13, fpr, tpr), atol=1e-11)
    if not y.any():
        assert np.isnan(sweep.precision_at(grid)).all()
        return
    precision, recall, _ = precision_recall_curve(y, score)
    precision, recall = precision[:-1][::-1], recall[:-1][::-1]  # from the highest score down
    at = [np.argmax(recall >= max(x - 1e-9, 1e-9)) for x in grid]
    np.testing.assert_allclose(sweep.precision_at(grid)[:, 0], precision[at], atol=1e-12)


def test_the_roc_curve_goes_level_before_it_rises():
    """A negative above the only positive: sensitivity is 0 up to a false positive rate of 1/2, and 1 from there on."""
    sweep = Ranking(np.array([False, True, False]), np.array([3.0, 2, 1]), np.arange(3), 3).sweep()
    assert sweep.roc(np.array([0, 0.25, 0.49, 0.5, 0.75, 1]))[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_no_rows_have_no_figures():
    empty = Ranking(np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep = empty.sweep()
        figures = [sweep.auroc(), sweep.average_precision(), sweep.sensitivity_at(0.9), sweep.specificity_at(0.9)]
    assert np.isnan(figures).all()
    assert Resamples(np.zeros(0, np.int64), 5).weights(range(5)).shape == (0, 5)


def test_infinite_scores_are_the_ends_of_the_order():
    y, s = np.array([1, 0, 1, 0], bool), np.array([np.inf, np.inf, 0, -np.inf])
    assert Ranking(y, s, np.arange(4), 4).sweep().auroc() == 0.625


def test_a_resample_follows_from_the_seed_and_its_number():
    draws = Resamples(np.arange(50), 300, seed=4)
    together = draws.weights(range(300))
    np.testing.assert_array_equal(draws.weights(range(120, 130)), together[:, 120:130])
    assert (together.sum(0) == 50).all()
    assert not np.array_equal(together, Resamples(np.arange(50), 300, seed=5).weights(range(300)))
    assert [i for step in draws.steps() for i in step] == list(range(300))
    with pytest.raises(ConfigError, match=r"bootstrap: expected resamples to be an int >= 1, got 0"):
        Resamples(np.arange(3), 0)
