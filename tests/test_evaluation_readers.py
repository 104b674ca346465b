"""Human readers: sensitivity, specificity and Cohen's kappa with intervals by patient."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, recall_score

from medzoo.evaluation.metrics import measure
from medzoo.evaluation.page.more_tables import reader_table
from medzoo.evaluation.proportions import wilson
from medzoo.evaluation.readers import agreements, cohen_kappa, readers
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.scores import Scores


def table(n=200, per_patient=1, seed=0, threshold=0.5, names=("Dr. Ä", "second")):
    rng = np.random.default_rng(seed)
    patients = np.arange(n) // per_patient
    y = (rng.random((n, 2)) < 0.4).astype(np.float32)[patients]
    calls = {name: np.where(rng.random(y.shape) < 0.8, y, 1 - y).astype(np.float32) for name in names}
    return Scores.from_logits(
        2 * y - 1 + rng.normal(size=y.shape), ids=np.arange(n).astype(str), targets=y, labels=("a", "b"),
        task="multilabel", thresholds=(threshold,) * 2, patients=patients.astype(str), readers=calls,
    )  # fmt: skip


def test_figures_are_those_of_scikit_learn():
    scores = table()
    scores.readers["second"][:30] = np.nan
    found = {(row.reader, row.label): row for row in readers(scores, resamples=50)}
    for (reader, label), row in found.items():
        i = scores.labels.index(label)
        calls, y = scores.readers[reader][:, i], scores.targets[:, i]
        at = ~np.isnan(calls)
        assert (row.rows, row.left_out) == (at.sum(), (~at).sum())
        assert row.sensitivity.value == pytest.approx(recall_score(y[at], calls[at]))
        assert row.specificity.value == pytest.approx(recall_score(y[at], calls[at], pos_label=0))
        assert row.kappa.value == pytest.approx(cohen_kappa_score(calls[at], scores.calls[at, i]))
        assert row.kappa.low < row.kappa.value < row.kappa.high
    assert found["second", "a"].left_out == 30
    for row in agreements(scores, resamples=50):
        i = scores.labels.index(row.label)
        a, b = (scores.readers[name][30:, i] for name in (row.first, row.second))
        assert row.kappa.value == pytest.approx(cohen_kappa_score(a, b))
        assert (row.rows, row.left_out) == (170, 30)
    json.dumps(
        [row.to_dict() for row in (*readers(scores, resamples=5), *agreements(scores, resamples=5))], allow_nan=False
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 4)), min_size=1, max_size=20))
def test_kappa_of_weighted_counts_is_that_of_repeated_rows(rows):
    a, b, weight = (np.array(each) for each in zip(*rows, strict=True))
    cells = np.bincount(a + 2 * b, weights=weight, minlength=4)
    repeated = [np.repeat(each, weight) for each in (a, b)]
    if not weight.sum():
        assert math.isnan(cohen_kappa(cells))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where it is not defined
        expected = cohen_kappa_score(*repeated)
    assert cohen_kappa(cells) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_replicates_are_those_of_resampled_rows():
    scores = table(n=150, per_patient=3)
    row = readers(scores, resamples=40, seed=5)[0]
    draws = Resamples(scores.clusters, 40, 5)
    weights = draws.weights(range(40))[scores.clusters].astype(int)
    calls, model = scores.readers["Dr. Ä"][:, 0], scores.calls[:, 0]
    kappas = []
    for w in weights.T:
        at = np.repeat(np.arange(150), w)
        kappas.append(cohen_kappa_score(calls[at], model[at]))
    assert (row.kappa.low, row.kappa.high) == pytest.approx(tuple(np.percentile(kappas, [2.5, 97.5])), abs=1e-12)


def test_wilson_only_where_rows_are_independent():
    one, many = (readers(table(n=400, per_patient=k), resamples=200)[0] for k in (1, 4))
    scores = table(n=400)
    y, calls = scores.targets[:, 0] == 1, scores.readers["Dr. Ä"][:, 0] == 1
    assert one.sensitivity == wilson(int((y & calls).sum()), int(y.sum()))
    assert many.sensitivity.method == "Wilson at the effective sample size"


def test_proportions_of_a_reader_are_those_of_a_model_with_the_same_calls():
    """As percentiles of few patients are too narrow, and have no width where each patient has the same share."""
    scores = table(n=160, per_patient=4)
    scores = replace(scores, readers={"the model": scores.calls.astype(np.float32)})
    row, expected = readers(scores, resamples=20)[0], measure(scores, resamples=20)["a"]
    assert row.sensitivity == row.model_sensitivity == expected["sensitivity"]
    assert row.specificity == row.model_specificity == expected["specificity"]
    half = replace(scores, readers={"half": (np.arange(160) % 2)[:, None] * np.ones((1, 2))})
    found = readers(half, resamples=20)[0].sensitivity
    assert found.value == 0.5
    assert 0.3 < found.low < 0.45 < 0.55 < found.high < 0.7


def test_the_model_is_given_on_the_rows_that_a_reader_called():
    scores = table(n=300)
    scores.readers["second"][83:] = np.nan
    row = next(row for row in readers(scores, resamples=20) if (row.reader, row.label) == ("second", "a"))
    expected = measure(scores.select(np.arange(83)), resamples=20)["a"]
    assert (row.rows, row.left_out) == (83, 217)
    assert (row.model_sensitivity, row.model_specificity) == (expected["sensitivity"], expected["specificity"])
    assert row.to_dict()["model_sensitivity"] == expected["sensitivity"].to_dict()
    shown = reader_table([row], {})
    assert "83 <small>217 left out</small>" in shown
    assert f"{expected['sensitivity'].low:.3f} to {expected['sensitivity'].high:.3f}" in shown
    assert "left out" not in reader_table(readers(table(), resamples=5), {})


def test_a_reader_who_is_always_right_has_an_interval_of_some_width():
    scores = table(n=120, per_patient=3)
    scores = replace(scores, readers={"right": scores.targets.copy()})
    row = readers(scores, resamples=50)[0]
    assert row.sensitivity.value == row.sensitivity.high == 1
    assert row.sensitivity.low < 0.95
    itself = agreements(replace(scores, readers={"x": scores.targets, "y": scores.targets.copy()}), resamples=50)[0]
    assert (itself.kappa.value, itself.kappa.low) == (1, None)
    assert itself.kappa.why == "the same in every resample"


def test_no_interval_below_10_patients():
    scores = table(n=180, per_patient=20)  # 9 patients
    row = readers(scores, resamples=20)[0]
    assert row.sensitivity.low is None
    assert row.sensitivity.why == "under 10 positive or negative patients"
    assert row.kappa.low is None
    assert "under 10 patients" in row.kappa.why
    assert not math.isnan(row.kappa.value)


def test_a_model_without_thresholds_has_no_kappa():
    row = readers(replace(table(), thresholds=()), resamples=20)[0]
    assert math.isnan(row.kappa.value)
    assert "no threshold" in row.kappa.why
    assert math.isnan(row.model_sensitivity.value)
    assert row.model_sensitivity.why == row.kappa.why
    assert row.sensitivity.low is not None


@pytest.mark.parametrize("n", [0, 1])
def test_hostile_tables(n):
    scores = table().select(np.arange(n))
    assert len(readers(scores, resamples=5)) == 4
    assert len(agreements(scores, resamples=5)) == 2
    json.dumps([row.to_dict() for row in readers(scores, resamples=5)], allow_nan=False)


def test_no_readers_and_readers_without_a_call():
    assert readers(replace(table(), readers={})) == ()
    assert agreements(replace(table(), readers={})) == ()
    scores = table()
    silent = replace(
        scores, readers={"silent": np.full_like(scores.targets, np.nan), "all": np.ones_like(scores.targets)}
    )
    row, _, every, _ = readers(silent, resamples=5)
    assert (row.rows, row.left_out) == (0, 200)
    assert row.sensitivity.why == "no positive row was called"
    assert row.kappa.why == "no row was called by both"
    assert (every.sensitivity.value, every.specificity.value, every.kappa.value) == (1, 0, 0)
    assert math.isnan(agreements(silent, resamples=5)[0].kappa.value)
