"""Every figure equals scikit-learn's; what is not defined is NaN with a reason."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from evaluation_tables import binary, clustered, names, tables
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from medzoo.errors import ConfigError
from medzoo.evaluation.calibration_figures import calibration_figures
from medzoo.evaluation.metrics import Options, measure
from medzoo.evaluation.scores import Scores

NAN = float("nan")


def expected_figures(y, p, call, z):
    """Return scikit-learn's figures, without those that need a class, or a call, that is not there."""
    both, found = len(np.unique(y)) == 2, {}
    tn = fp = fn = tp = 0
    if len(y):
        tn, fp, fn, tp = sk.confusion_matrix(y, call, labels=[0, 1]).ravel().tolist()
        found |= {
            "accuracy": sk.accuracy_score(y, call), "brier": sk.brier_score_loss(y, p, pos_label=1, scale_by_half=True),
            "log_loss": sk.log_loss(y, p, labels=[0, 1]), "prevalence": y.mean(),
        }  # fmt: skip
    for name, needed, value in (
        ("sensitivity", tp + fn, lambda: sk.recall_score(y, call)),
        ("specificity", tn + fp, lambda: sk.recall_score(y, call, pos_label=0)),
        ("ppv", tp + fp, lambda: sk.precision_score(y, call)),
        ("npv", tn + fn, lambda: sk.precision_score(y, call, pos_label=0)),
        ("f1", tp + fp + fn, lambda: sk.f1_score(y, call)),
        ("auroc", both, lambda: sk.roc_auc_score(y, z)),
        ("average_precision", tp + fn, lambda: sk.average_precision_score(y, z)),
    ):
        if needed:
            found[name] = value()
    return found, (tp, fp, fn, tn)


@settings(max_examples=40, deadline=None)
@given(tables(least=0), st.sampled_from([0.1, 0.5, 0.9]))
def test_figures_equal_scikit_learn(table, threshold):
    targets, logits, patients = table
    scores = binary(targets, logits, patients=patients, threshold=threshold)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(scores, resamples=2)
    known = ~np.isnan(targets)
    y, p, z = targets[known].astype(int), scores.probabilities[known, 0], logits[known]
    call = (p >= threshold).astype(int)
    wanted, calls = expected_figures(y, p, call, z)
    label = found["a"]
    assert label.calls == calls
    for name, value in label.values.items():
        if name in wanted:
            # scikit-learn takes the logarithm of 1 - p, of which few digits are left where p is near 1.
            close = 1e-6 if name == "log_loss" else 1e-9
            assert value.value == pytest.approx(wanted[name], rel=close, abs=1e-12), name
        elif name in ("accuracy", "sensitivity", "specificity", "ppv", "npv", "f1", "auroc", "average_precision"):
            assert math.isnan(value.value)
            assert value.why
    assert (label.counts.positive, label.counts.negative) == (y.sum(), len(y) - y.sum())
    assert label.counts.unknown == (~known).sum()
    assert found.valid == (len(np.unique(y)) == 2)
    plain(found.to_dict())


def plain(value):
    """Assert that JSON holds the value, without numpy's types and tuples."""
    json.dumps(value, allow_nan=False)
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            plain(each)
    else:
        assert value is None or type(value) in (bool, int, float, str)


@pytest.mark.parametrize("rows", [30, 149, 150, 1000])
def test_ece_is_that_of_scikit_learns_bins(rows):
    rng = np.random.default_rng(rows)
    p = np.round(rng.beta(1, 3, rows), 2)
    y = rng.random(rows) < p**1.5
    bins = min(15, rows // 10)
    true, predicted = calibration_curve(y, p, n_bins=bins, strategy="quantile")
    edges = np.percentile(p, np.linspace(0, 1, bins + 1) * 100)
    counts = np.bincount(np.searchsorted(edges[1:-1], p))
    wanted = np.average(np.abs(true - predicted), weights=counts[counts > 0])
    found = calibration_figures(y, p, np.log(p.clip(1e-9) / (1 - p)), np.arange(rows))["ece"]
    assert found.value == pytest.approx(wanted, abs=1e-12)
    assert found.low is None
    assert "biased upward" in found.why


def test_ece_is_compared_with_that_of_perfect_calibration():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, 300)
    z, each = np.log(p / (1 - p)), np.arange(300)
    why = calibration_figures(rng.random(300) < p, p, z, each)["ece"].why
    mean, limit = (float(word) for word in why.split() if word.startswith("0."))
    bins = np.array_split(np.sort(p), 15)
    again = np.random.default_rng(9)
    drawn = [np.mean([abs((again.random(len(b)) < b).mean() - b.mean()) for b in bins]) for _ in range(2000)]
    assert mean == pytest.approx(np.mean(drawn), abs=0.006)
    assert limit == pytest.approx(np.percentile(drawn, 95), abs=0.01)
    assert calibration_figures(rng.random(300) < p, p, z, each)["ece"].why == why  # the label plays no part
    assert "300" not in why  # a count that a group does not show


def test_ece_has_no_limit_where_patients_have_several_rows():
    """60 patients of 8 rows with one label each: the limit of independent rows would be exceeded almost always."""
    rng = np.random.default_rng(0)
    p = np.repeat(rng.uniform(0.05, 0.95, 60), 8)
    y, c = np.repeat(rng.random(60), 8) < p, np.repeat(np.arange(60), 8)
    found = calibration_figures(y, p, np.log(p / (1 - p)), c)["ece"]
    assert found.why == (
        "no interval, as it is biased upward in small samples; what probabilities that are right have is known only "
        "where each patient has one row"
    )
    independent = calibration_figures(y, p, np.log(p / (1 - p)), np.arange(480))["ece"]
    limit = float([word for word in independent.why.split() if word.startswith("0.")][1])
    assert found.value == independent.value > limit


def test_slope_and_intercept_are_those_of_a_logistic_regression():
    y, z, c = clustered(np.random.default_rng(1), 200, 0.85, 0.3)
    z = 2 * z + 1
    found = calibration_figures(y == 1, 1 / (1 + np.exp(-z)), z, c)
    fit = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(z[:, None], y)
    assert found["calibration_slope"].value == pytest.approx(fit.coef_[0, 0], abs=1e-5)
    intercept = found["calibration_intercept"].value
    assert (1 / (1 + np.exp(-z - intercept))).mean() == pytest.approx(y.mean(), abs=1e-9)
    perfect = calibration_figures(y == 1, y, (z - 1) / 2, c)
    assert perfect["calibration_slope"].low < 1 < perfect["calibration_slope"].high


def test_standard_errors_are_those_of_independent_rows_where_the_model_holds():
    """With one row per patient and a right model the sandwich is close to the inverse of the information."""
    rng = np.random.default_rng(2)
    z = rng.normal(-1, 1.5, 5000)
    p = 1 / (1 + np.exp(-z))
    found = calibration_figures(rng.random(5000) < p, p, z, np.arange(5000))
    x = np.stack([np.ones(5000), z])
    inverse = np.linalg.inv((x * p * (1 - p)) @ x.T)
    half = (found["calibration_slope"].high - found["calibration_slope"].low) / 2
    assert half == pytest.approx(1.96 * inverse[1, 1] ** 0.5, rel=0.05)
    half = (found["calibration_intercept"].high - found["calibration_intercept"].low) / 2
    assert half == pytest.approx(1.96 * (p * (1 - p)).sum() ** -0.5, rel=0.05)


@pytest.mark.parametrize(
    ("y", "z", "name", "why"),
    [
        ([1, 1, 1], [0, 1, 2], "calibration_slope", "one class alone"),
        ([1, 1, 1], [0, 1, 2], "calibration_intercept", "one class alone"),
        ([0, 0, 1, 1], [0, 1, 2, 3], "calibration_slope", "separate the classes"),
        ([0, 0, 1, 1], [0, 1, 1, 3], "calibration_slope", "separate the classes"),
        ([1, 1, 0, 0], [0, 1, 2, 3], "calibration_slope", "separate the classes"),
        ([0, 1, 0, 1], [1, 1, 1, 1], "calibration_slope", "all probabilities are the same"),
        ([], [], "ece", "no row has a known label"),
        ([], [], "calibration_intercept", "no row has a known label"),
    ],
)
def test_calibration_that_is_not_defined(y, z, name, why):
    y, z = np.array(y, bool), np.array(z, float)
    found = calibration_figures(y, 1 / (1 + np.exp(-z)), z, np.arange(len(y)))[name]
    assert math.isnan(found.value)
    assert why in found.why


def test_calibration_of_probabilities_of_0_and_1_is_finite():
    y = np.array([1, 0, 1, 0, 1, 0, 0, 1] * 10)
    p = np.array([1, 0, 0, 1, 0.7, 0.2, 0.6, 0.4] * 10)
    found = measure(binary(y, probabilities=p), resamples=50)["a"]
    for name in ("calibration_slope", "calibration_intercept", "log_loss"):
        assert math.isfinite(found[name].value)
        assert math.isfinite(found[name].high)
    assert found["log_loss"].value == pytest.approx(sk.log_loss(y, p), rel=1e-9)
    logits = measure(binary(y, np.where(p == 1, np.inf, np.where(p == 0, -np.inf, 0))), resamples=50)["a"]
    assert logits["auroc"].value == pytest.approx(sk.roc_auc_score(y, np.where(p % 1 == 0, p, 0.5)))
    assert math.isfinite(logits["log_loss"].value)


def multiclass(rng, rows, classes=3, unknown=0):
    truth, logits = rng.integers(classes, size=rows), rng.normal(size=(rows, classes))
    logits[np.arange(rows), truth] += 1.5
    targets = np.eye(classes, dtype=np.float32)[truth]
    targets[:unknown] = NAN
    labels = tuple("abcdef"[:classes])
    scores = Scores.from_logits(
        logits, task="multiclass", ids=names(rows), targets=targets, labels=labels,
        patients=np.array([f"p{i // 2}" for i in range(rows)]),
    )  # fmt: skip
    return scores, truth[unknown:], scores.probabilities[unknown:]


@pytest.mark.parametrize("unknown", [0, 7])
def test_multiclass_equals_scikit_learn(unknown):
    scores, truth, p = multiclass(np.random.default_rng(0), 120, unknown=unknown)
    found, call = measure(scores, resamples=200), p.argmax(1)
    wanted = {
        "accuracy": sk.accuracy_score(truth, call),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, call),
        "log_loss": sk.log_loss(truth, p),
        "brier": sk.brier_score_loss(np.eye(3)[truth], p, scale_by_half=False),
        "macro_auroc": sk.roc_auc_score(truth, p, multi_class="ovr"),
        "macro_auroc_all": sk.roc_auc_score(truth, p, multi_class="ovr"),
        "macro_average_precision": sk.average_precision_score(np.eye(3)[truth], p),
    }
    for name, value in wanted.items():
        assert found.overall[name].value == pytest.approx(value, abs=1e-12), name
        assert found.overall[name].low < value < found.overall[name].high
    np.testing.assert_array_equal(found.confusion, sk.confusion_matrix(truth, call))
    for i, label in enumerate(scores.labels):
        one = found[label]
        assert one["f1"].value == pytest.approx(sk.f1_score(truth == i, call == i))
        assert one["brier"].value == pytest.approx(sk.brier_score_loss(truth == i, p[:, i]))
        assert one["log_loss"].value == pytest.approx(sk.log_loss(truth == i, p[:, i]))
        assert one.counts.unknown == unknown
    plain(found.to_dict())


def test_a_class_without_rows_is_left_out_of_the_balanced_accuracy():
    scores, truth, p = multiclass(np.random.default_rng(1), 100)
    keep = np.flatnonzero(truth != 2)
    found = measure(scores.select(keep), resamples=50)
    recalls = sk.recall_score(truth[keep], p[keep].argmax(1), average=None, labels=[0, 1])
    assert found.overall["balanced_accuracy"].value == pytest.approx(recalls.mean())
    assert found.valid == 2
    assert math.isnan(found["c"]["auroc"].value)
    assert found.overall["macro_auroc_all"].value == pytest.approx(
        np.mean([sk.roc_auc_score(truth[keep] == i, p[keep, i]) for i in (0, 1)])
    )


def multilabel(rng, rows=200, thresholds=(0.5, 0.5, 0.5, None)):
    """Return scores of four labels: a common one, one of three patients, one without a positive, and an unknown one."""
    targets = (rng.random((rows, 4)) < 0.3).astype(np.float32)
    targets[:, 1] = 0
    targets[:3, 1] = 1
    targets[:, 2] = 0
    targets[:, 3] = NAN
    logits = rng.normal(size=(rows, 4)) + np.nan_to_num(targets)
    return Scores.from_logits(
        logits, task="multilabel", ids=names(rows), targets=targets, labels=("a", "b", "c", "d"), thresholds=thresholds
    )


def test_averages_are_over_a_fixed_set_of_labels():
    scores = multilabel(np.random.default_rng(0))
    found = measure(scores, resamples=300)
    assert found.eligible == ("a",)
    assert found.valid == 2
    a, b = found["a"]["auroc"], found["b"]["auroc"]
    assert found.overall["macro_auroc"] == a
    assert found.overall["macro_auroc_all"].value == pytest.approx((a.value + b.value) / 2)
    assert found.overall["macro_auroc_all"].low is None
    assert "under 10" in found.overall["macro_auroc_all"].why
    assert "under 10" in b.why
    again = measure(scores.select(np.arange(100)), resamples=50, eligible=("a", "b"))
    assert again.eligible == ("a", "b")
    with pytest.raises(ConfigError, match=r"measure: expected eligible labels of a, b, c, d, got e too"):
        measure(scores, resamples=2, eligible=("e",))


def test_a_single_class_has_no_auroc_and_no_average_precision():
    """scikit-learn returns 0 for an average precision without positives."""
    found = measure(multilabel(np.random.default_rng(0)), resamples=20)
    for name in ("auroc", "average_precision"):
        assert math.isnan(found["c"][name].value)
        assert found["c"][name].why == "no row is positive"
        assert found["d"][name].why == "no row has a known label"
    assert found["c"]["specificity"].value > 0


def test_without_a_threshold_there_is_no_call():
    scores = multilabel(np.random.default_rng(0), thresholds=(0.5, None, 0.5, 0.5))
    found = measure(scores, resamples=20, options=Options(prevalence=(0.1,) * 4))
    assert found["b"].calls is None
    for name in ("accuracy", "sensitivity", "f1", "ppv_at_prevalence"):
        assert found["b"][name].why == "no threshold was chosen"
    assert found["d"].calls == (0, 0, 0, 0)
    assert math.isnan(found["d"]["accuracy"].value)
    assert math.isnan(found.overall["exact_match"].value)
    assert found.overall["exact_match"].why == "not every output has a threshold"
    plain(found.to_dict())


def test_exact_match_counts_the_known_labels():
    scores = multilabel(np.random.default_rng(0), thresholds=(0.5,) * 4)
    found, known = measure(scores, resamples=20), ~np.isnan(scores.targets)
    right = ((scores.calls == scores.targets) | ~known).all(1)
    assert found.overall["exact_match"].value == pytest.approx(right.mean())


def test_predictive_values_at_a_stated_prevalence():
    y, z, c = clustered(np.random.default_rng(3), 100, 0.9, 0.4)
    found = measure(binary(y, z, patients=c), options=Options(prevalence=(0.02,)), resamples=300)["a"]
    se, sp = found["sensitivity"].value, found["specificity"].value
    ppv, npv = found["ppv_at_prevalence"], found["npv_at_prevalence"]
    assert ppv.value == pytest.approx(0.02 * se / (0.02 * se + 0.98 * (1 - sp)))
    assert npv.value == pytest.approx(0.98 * sp / (0.98 * sp + 0.02 * (1 - se)))
    assert ppv.low < ppv.value < ppv.high
    perfect = measure(binary(y, 20 * y - 10, patients=c), options=Options(prevalence=(0.02,)), resamples=50)["a"]
    assert (perfect["ppv_at_prevalence"].value, perfect["ppv_at_prevalence"].high) == (1, 1)
    assert 0 < perfect["ppv_at_prevalence"].low < 0.9  # a few false positives would make it so
    with pytest.raises(ConfigError, match=r"Options: expected a prevalence for each of the 1 labels, got 2"):
        measure(binary(y, z), options=Options(prevalence=(0.1, 0.2)), resamples=2)
    with pytest.raises(ConfigError, match=r"Options: expected sensitivity to be a share such as 0.05, got 90"):
        Options(sensitivity=90)


def test_few_patients_have_no_interval():
    y, z, c = clustered(np.random.default_rng(4), 14, 0.8, 0.4)
    found = measure(binary(y, z, patients=c), resamples=50)
    assert found.patients == 14
    for estimate in (*found["a"].values.values(), found.overall["macro_auroc_all"]):
        assert (estimate.low, estimate.high) == (None, None)
        assert estimate.why
    few = measure(binary(y, z, patients=c).select(np.flatnonzero(c < 9)), resamples=50)
    assert few.overall["exact_match"].why == "under 10 patients"


def test_few_positive_patients_have_no_interval_in_the_figures_of_all_labels():
    z = np.random.default_rng(0).normal(size=100)
    found = measure(binary(np.arange(100) < 9, z), resamples=50)
    assert found.overall["exact_match"].value == found["a"]["accuracy"].value
    assert {e.low for e in found.overall.values()} == {None}
    assert found.overall["exact_match"].why == "under 10 positive or negative patients"
    y = np.stack([np.arange(100) < 9, np.arange(100) >= 9], 1)
    logits = np.stack([z, -z], 1)
    two = Scores.from_logits(logits, task="multiclass", ids=names(100), targets=y.astype(np.float32), labels=("a", "b"))
    for name, estimate in measure(two, resamples=50).overall.items():
        assert estimate.low is None, name
        assert "under 10 positive or negative patients" in estimate.why, name


def test_each_figure_has_an_interval_or_a_reason():
    y, z, c = clustered(np.random.default_rng(5), 80, 0.9, 0.3)
    for logits in (z, 20 * y - 10, 10 - 20 * y, np.zeros_like(z)):
        found = measure(binary(y, logits, patients=c), resamples=100)
        for name, e in (*found["a"].values.items(), *found.overall.items()):
            assert (e.low is None) == (e.high is None), name
            assert (e.low is not None and e.method) or e.why, name
            if e.low is not None:
                assert e.low <= e.value <= e.high, name
                assert e.low < e.high, name
