"""Two models on the rows both have: differences, intervals, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.compare import Difference, by_chance, compare
from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.metrics import measure
from medzoo.evaluation.replicates import Options
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.seeds import over_seeds


def scores(z, y, *, task="binary", labels=("mass",), **fields):
    z, y = np.asarray(z, float), np.asarray(y, np.float32)
    z, y = (one[:, None] if one.ndim == 1 else one for one in (z, y))
    fields = {"ids": np.array([f"image {i}" for i in range(len(z))]), **fields}
    return Scores.from_logits(z, targets=y, labels=labels, task=task, **fields)


def pair(rng, n=200, rows_per_patient=2, labels=1, gain=(1.5, 1.0)):
    """Return two models' scores of the same rows; the patient shifts both, and has or has not the finding."""
    patients = np.arange(n) // rows_per_patient
    y = (rng.random((n, labels)) < 0.4).astype(np.float32)[patients]
    shift = rng.normal(size=(patients.max() + 1, labels))[patients]
    names = tuple("abcdef"[:labels])
    task = "multilabel" if labels > 1 else "binary"
    who = {"patients": patients.astype(str), "labels": names, "task": task, "thresholds": (0.5,) * labels}
    return [scores(g * y + 0.7 * shift + 0.7 * rng.normal(size=(n, labels)), y, **who) for g in gain]


def delong(y, a, b):
    """Return the difference of two AUROCs on independent rows and its standard error.

    DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845, with the placements written out.
    """
    placements = []
    for s in (a, b):
        wins = (s[y][:, None] > s[~y][None]) + 0.5 * (s[y][:, None] == s[~y][None])
        placements.append((wins.mean(1), wins.mean(0)))
    (a1, a0), (b1, b0) = placements
    return a1.mean() - b1.mean(), math.sqrt(np.var(a1 - b1, ddof=1) / y.sum() + np.var(a0 - b0, ddof=1) / (~y).sum())


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_is_that_of_delong_on_independent_rows(seed):
    rng = np.random.default_rng(seed)
    this, other = pair(rng, n=400, rows_per_patient=1)
    value, error = delong(this.targets[:, 0] == 1, this.ranks[:, 0], other.ranks[:, 0])
    found = compare(this, other)["a"]["auroc"].difference
    assert found.value == pytest.approx(value, abs=1e-12)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.08)
    assert (found.low + found.high) / 2 == pytest.approx(value, abs=0.3 * error)


@pytest.mark.slow
def test_intervals_of_paired_differences_cover_and_unpaired_ones_are_wider():
    # Same gain, so the true difference is 0; the patient shifts both models.
    rng, inside, wider = np.random.default_rng(0), 0, 0
    for trial in range(100):
        this, other = pair(rng, n=240, rows_per_patient=4, gain=(1.2, 1.2))
        found = compare(this, other, resamples=200, seed=trial)["a"]["auroc"]
        inside += not found.separable
        # Without the pairing the spread of what both share stays in.
        a, b = (measure(s, resamples=100, seed=trial)["a"]["auroc"] for s in (this, other))
        wider += math.hypot(a.high - a.low, b.high - b.low) > found.difference.high - found.difference.low
    assert 0.89 <= inside / 100 <= 0.99  # 95 % ± 2.7 standard errors of 100 trials
    assert wider > 90


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_figures_are_those_of_scikit_learn_on_the_shared_rows(data):
    n = data.draw(st.integers(4, 30))
    numbers = st.lists(st.integers(-3, 3), min_size=n, max_size=n)
    y = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    y[:2] = [True, False]
    a, b = (scores(data.draw(numbers), y) for _ in range(2))
    order = np.array([0, 1, *data.draw(st.permutations(range(2, n)))[: n // 2]])
    found = compare(a, b.select(order[::-1]), resamples=3)
    assert found.rows == len(order)
    rows = np.sort(order)
    for name, of in (
        ("auroc", roc_auc_score),
        ("average_precision", average_precision_score),
        ("brier", brier_score_loss),
    ):
        each = [of(y[rows], (s.probabilities if name == "brier" else s.ranks)[rows, 0]) for s in (a, b)]
        assert found["mass"][name].this == pytest.approx(each[0], abs=1e-12)
        assert found["mass"][name].difference.value == pytest.approx(each[0] - each[1], abs=1e-12)


def test_rows_are_joined_by_id_and_what_is_left_out_is_counted():
    this, other = pair(np.random.default_rng(1), n=100, labels=3)
    part = replace(other.select(np.arange(99, 9, -1)), labels=("c", "x", "a"), source="/home/jane doe/theirs.csv")
    part = replace(part, targets=part.targets[:, [2, 1, 0]], ranks=part.ranks[:, [2, 1, 0]])
    found = compare(replace(this, source="C:\\data\\ours.csv"), part, resamples=20)
    assert (found.rows, found.patients, list(found.labels)) == (90, 45, ["a", "c"])
    assert found.names == ("ours.csv", "theirs.csv")
    assert "10 of 100 rows are only in ours.csv, and are left out" in found.notes
    assert "labels that only ours.csv has are left out: b" in found.notes
    assert "labels that only theirs.csv has are left out: x" in found.notes
    assert found["a"]["auroc"].this == roc_auc_score(this.targets[10:, 0], this.ranks[10:, 0])
    assert found["c"]["auroc"].other == roc_auc_score(this.targets[10:, 2], other.ranks[10:, 2])
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert "jane" not in text
    assert "image 1" not in text
    with pytest.raises(ConfigError, match="no label 'b'"):
        found["b"]


def test_both_directions_are_the_same_but_for_the_sign():
    this, other = pair(np.random.default_rng(2), labels=2)
    there, back = (compare(*both, resamples=200)["a"]["auroc"].difference for both in ((this, other), (other, this)))
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_a_model_against_itself_has_no_interval_of_no_width():
    this, _ = pair(np.random.default_rng(2))
    found = compare(this, this, resamples=50)
    assert found.names[0] != found.names[1]
    assert (found["a"]["auroc"].difference.value, found["a"]["auroc"].separable) == (0, None)
    assert found["a"]["auroc"].difference.why == "the same in every resample"


def test_the_number_of_comparisons_is_stated():
    this, other = pair(np.random.default_rng(3), labels=3)
    found = compare(this, other, resamples=50)
    made = [*found.overall.values(), *(each for label in found.labels.values() for each in label.values())]
    count = sum(each.separable is not None for each in made)
    assert count > 30
    # The averages over the labels with enough patients are those over all.
    assert any(note.startswith(f"{count - 2} distinct differences have a 95 % interval") for note in found.notes)
    assert any("1 in 20" in note and "so here about 2." in note for note in found.notes)


def test_the_one_label_is_not_counted_twice_among_the_comparisons():
    this, other = pair(np.random.default_rng(3))
    found = compare(this, other, resamples=50)
    count = sum(each.separable is not None for each in found["a"].values())
    assert 10 <= count < 20
    assert any(f"{count} distinct differences" in note and "so here fewer than 1." in note for note in found.notes)
    assert by_chance([Difference(1, 0, Estimate(1.0))]) == ()


def test_no_interval_of_a_label_with_too_few_patients():
    rng = np.random.default_rng(4)
    this, other = pair(rng, n=100, rows_per_patient=1, labels=2)
    y = this.targets.copy()
    y[:, 1] = np.arange(100) < 9
    found = compare(replace(this, targets=y), replace(other, targets=y), resamples=50)
    assert found.eligible == ("a",)
    assert found["b"]["auroc"].separable is None
    assert found["b"]["auroc"].difference.why == "under 10 positive or negative patients"
    assert found["a"]["auroc"].separable is not None
    assert found.overall["macro_auroc"].this == found["a"]["auroc"].this
    assert found.overall["macro_auroc_all"].separable is None
    tiny = compare(this.select([0, 1, 2]), other.select([0, 1, 2]), resamples=20)
    assert all(each.separable is None for each in tiny.overall.values())


@pytest.mark.parametrize("n", [1, 2])
def test_one_row_and_one_class_are_not_errors(n):
    this = scores(np.zeros(n), np.ones(n), patients=np.array(["é"] * n))
    found = compare(this, this, resamples=5)
    assert math.isnan(found["mass"]["auroc"].this)
    assert str(found["mass"]["auroc"]) == "–"
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["labels"]["mass"]["auroc"]["this"] is None


def test_other_targets_and_patients_are_refused_without_naming_a_patient():
    this, other = pair(np.random.default_rng(5), n=60)
    y = other.targets.copy()
    y[[3, 7]] = 1 - y[[3, 7]]
    y[9] = np.nan
    with pytest.raises(DataError, match=r"same target .* others in 3 of the 60 rows .* rows 3, 7, 9 of the first") as e:
        compare(this.select(np.arange(60)), replace(other, targets=y).select(np.arange(59, -1, -1)))
    assert "image" not in str(e.value)
    patients = other.patients.copy()
    patients[5] = "Doe^Jane"[: patients.dtype.itemsize // 4]
    with pytest.raises(DataError, match=r"same patient .* others in 1 of the 60 rows .* rows 5 of") as e:
        compare(this, replace(other, patients=patients))
    assert "Doe"[:2] not in str(e.value)
    unknown = this.targets.copy()
    unknown[9] = np.nan
    compare(replace(this, targets=unknown), replace(other, targets=unknown), resamples=5)  # unknown to both


def test_nothing_shared_is_refused_with_advice():
    this, other = pair(np.random.default_rng(6), n=20)
    with pytest.raises(DataError, match=r"same id, got none.*007 is not 7"):
        compare(this, replace(other, ids=np.array([f"row {i}" for i in range(20)])))
    with pytest.raises(DataError, match=r"same name, got a of .* and b of .*Rename"):
        compare(this, replace(other, labels=("b",)))


def test_patients_that_only_one_knows_are_used():
    this, other = pair(np.random.default_rng(7), n=80)
    none = replace(this, patients=None)
    assert compare(none, other, resamples=50)["a"]["auroc"] == compare(this, other, resamples=50)["a"]["auroc"]
    assert any(note.startswith("patients are those of") for note in compare(none, other, resamples=5).notes)
    assert compare(none, replace(other, patients=None), resamples=5).patients is None


def test_calls_need_thresholds_and_prevalences_follow_their_label():
    this, other = pair(np.random.default_rng(8), labels=2)
    other = replace(other, thresholds=(0.5, None), source="theirs")
    found = compare(this, other, options=Options(prevalence=(0.1, 0.2)), resamples=20)
    assert found["b"]["sensitivity"].difference.why == "no calls: there is no threshold in theirs"
    assert "calls are compared at the thresholds of each model, which differ" in found.notes
    only = replace(other, labels=("x", "b"), thresholds=(0.5, 0.5))
    one = compare(this, only, options=Options(prevalence=(0.1, 0.2)), resamples=20)
    hit, false = one["b"]["sensitivity"].this * 0.2, (1 - one["b"]["specificity"].this) * 0.8
    assert one["b"]["ppv_at_prevalence"].this == pytest.approx(hit / (hit + false))
    with pytest.raises(ConfigError, match="a prevalence for each of the 2 labels"):
        compare(this, other, options=Options(prevalence=(0.1,)))


def test_multiclass_is_compared_with_multiclass_and_with_one_output():
    rng = np.random.default_rng(9)
    y = np.eye(3, dtype=np.float32)[rng.integers(3, size=150)]
    a, b = (scores(2 * y + rng.normal(size=y.shape), y, task="multiclass", labels=("x", "y", "z")) for _ in range(2))
    arrays = ("ranks", "logits", "probabilities", "targets")
    turned = replace(b, labels=("z", "x", "y"), **{name: getattr(b, name)[:, [2, 0, 1]] for name in arrays})
    found = compare(a, turned, resamples=20)
    assert found.overall["accuracy"].other == (b.ranks.argmax(1) == y.argmax(1)).mean()
    single = scores(b.log_odds[:, 1], y[:, 1], labels=("y",))
    one = compare(a, single, resamples=20)
    assert one["y"]["auroc"].other == roc_auc_score(y[:, 1], b.probabilities[:, 1])
    assert one["y"]["brier"].this == pytest.approx(brier_score_loss(y[:, 1], a.probabilities[:, 1]))
    assert any("without calls" in note for note in one.notes)


def test_no_interval_of_all_labels_if_none_has_enough_patients():
    rng = np.random.default_rng(4)
    for labels in (1, 2):
        this, other = pair(rng, n=100, rows_per_patient=1, labels=labels)
        y = np.tile(np.arange(100) < 9, (labels, 1)).T.astype(np.float32)
        found = compare(replace(this, targets=y), replace(other, targets=y), resamples=50)
        assert found.overall["exact_match"].separable is None
        assert "under 10 positive or negative patients" in found.overall["exact_match"].difference.why


def test_a_class_without_rows_takes_no_interval_from_balanced_accuracy():
    rng = np.random.default_rng(9)
    y = np.eye(3, dtype=np.float32)[rng.integers(2, size=150)]
    a, b = (scores(2 * y + rng.normal(size=y.shape), y, task="multiclass", labels=("x", "y", "z")) for _ in range(2))
    assert measure(a, resamples=50).overall["balanced_accuracy"].low is not None
    assert compare(a, b, resamples=50).overall["balanced_accuracy"].separable is not None


def test_a_difference_is_separable_only_with_an_interval_without_0():
    assert Difference(1, 0, Estimate(1.0, 0.0, 2.0)).separable is False
    assert Difference(1, 0, Estimate(1.0, 0.1, 2.0)).separable is True
    assert Difference(1, 0, Estimate(-1.0, -2.0, -0.1)).separable is True
    assert Difference(1, 0, Estimate(1.0)).separable is None


def test_seeds():
    rng = np.random.default_rng(10)
    y = (rng.random((80, 2)) < 0.4).astype(np.float32)
    y[:, 1] = 1  # one class
    each = [scores(y + rng.normal(size=y.shape), y, task="multilabel", labels=("a", "b")) for _ in range(3)]
    found = [measure(one, resamples=10) for one in each]
    summary = over_seeds(found, ["0", "1", "2"])
    values = [m["a"]["auroc"].value for m in found]
    assert summary.labels["a"]["auroc"] == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert all(map(math.isnan, summary.labels["b"]["auroc"]))
    assert summary.overall["macro_auroc"] == pytest.approx(summary.labels["a"]["auroc"])
    assert json.loads(json.dumps(summary.to_dict(), allow_nan=False))["labels"]["b"]["auroc"] == [None, None]
    assert "not an interval" in summary.notes[0]
    with pytest.raises(ConfigError, match="at least 2 models"):
        over_seeds(found[:1], ["0"])
    with pytest.raises(ConfigError, match="a different name for each"):
        over_seeds(found, ["0", "0", "1"])
    with pytest.raises(ConfigError, match=r"same number of rows and patients .* 'other' differs from 'first'"):
        over_seeds([found[0], measure(each[0].select(np.arange(70)), resamples=10)], ["first", "other"])
    with pytest.raises(ConfigError, match="same labels"):
        over_seeds([found[0], measure(replace(each[0], labels=("a", "c")), resamples=10)], ["0", "1"])
    with pytest.raises(ConfigError, match="same positive and negative rows"):
        over_seeds([found[0], measure(replace(each[0], targets=1 - y), resamples=10)], ["0", "1"])
