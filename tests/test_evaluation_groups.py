"""Groups of a column: bands, differences by the same resamples, and counts that are not shown."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.bands import NOT_KNOWN, bands
from medzoo.evaluation.compare import expanded_tail
from medzoo.evaluation.groups import group_by
from medzoo.evaluation.metrics import measure
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.scores import Scores

FAST = {"resamples": 30}


def table(column, *, y=None, patients=None, seed=0, labels=("a", "b"), gain=1.5):
    """Return scores with a column ``site``, of one row per patient unless ``patients`` are given."""
    rng, n = np.random.default_rng(seed), len(column)
    y = (rng.random((n, len(labels))) < 0.4).astype(np.float32) if y is None else np.asarray(y, np.float32)
    return Scores.from_logits(
        gain * y + rng.normal(size=y.shape), ids=np.arange(n).astype(str), targets=y, labels=labels, task="multilabel",
        thresholds=(0.5,) * len(labels), groups={"site": np.asarray(column, np.str_)},
        patients=np.arange(n).astype(str) if patients is None else np.asarray(patients).astype(str),
    )  # fmt: skip


def names(found):
    return [row.value for row in found.rows]


def test_figures_are_those_of_the_rows_of_each_group():
    scores = table(["x"] * 120 + ["y"] * 80 + [""] * 50)
    found = group_by(scores, "site", eligible=("a",), **FAST)
    assert names(found) == ["x", "y", NOT_KNOWN]
    assert [row.reference for row in found.rows] == [True, False, False]
    for row, part in zip(found.rows, (range(120), range(120, 200), range(200, 250)), strict=True):
        here = scores.select(np.array(part))
        assert (row.rows, row.patients) == (len(part), len(part))
        assert row.positive_patients == {"a": here.targets[:, 0].sum(), "b": here.targets[:, 1].sum()}
        alone = measure(here, resamples=1000)["a"]
        for name, figure in row.figures["a"].items():
            assert figure.value == alone[name].value or np.isnan(figure.value)
        width, expected = (e.high - e.low for e in (row.figures["a"]["auroc"], alone["auroc"]))
        assert width == pytest.approx(expected, rel=0.4), "the resamples of all patients, of which few are drawn here"
        auroc = roc_auc_score(here.targets[:, 0], here.ranks[:, 0])
        assert row.figures["a"]["auroc"].value == row.figures[""]["macro_auroc"].value == pytest.approx(auroc)
    one = found["y"].differences["b"]["auroc"]
    assert (one.this, one.other) == (found["y"].figures["b"]["auroc"].value, found["x"].figures["b"]["auroc"].value)
    assert one.difference.low < one.difference.value < one.difference.high
    assert not found["x"].differences
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["rows"][0]["value"] == "x"
    with pytest.raises(ConfigError, match=r"no 'yy'\. Did you mean 'y'"):
        found["yy"]


def test_both_groups_of_a_patient_are_in_the_same_resample():
    # Each patient has a row in both groups, whose scores are nearly the same: so are the figures of each resample.
    rng = np.random.default_rng(3)
    y = np.tile(rng.random((100, 2)) < 0.5, (2, 1))
    scores = table(["x"] * 100 + ["y"] * 100, y=y, patients=np.tile(np.arange(100), 2))
    z = scores.ranks.copy()
    z[100:] = z[:100] + 0.01 * rng.normal(size=(100, 2))
    scores = replace(scores, ranks=z)
    found = group_by(scores, "site", eligible=("a", "b"), resamples=200)
    own, between = (row.figures["a"]["auroc"] for row in found.rows), found.rows[1].differences["a"]["auroc"].difference
    widths = [each.high - each.low for each in own]
    assert between.high - between.low < 0.1 * min(widths)
    # By hand: weights of all patients, spread to the rows of each group.
    weights = Resamples(scores.clusters, 200, 0).weights(range(200))[scores.clusters]
    by_hand = [
        np.subtract(*(
            roc_auc_score(y[rows, 0], z[rows, 0], sample_weight=weights[rows, i])
            for rows in (slice(100, 200), slice(0, 100))
        )) for i in range(200)
    ]  # fmt: skip
    tail = expanded_tail(int(min(y[:100, 0].sum(), (~y[:100, 0]).sum())))
    assert (between.low, between.high) == pytest.approx(tuple(np.percentile(by_hand, [tail, 100 - tail])), abs=1e-9)


def test_groups_of_under_10_patients_are_not_shown_nor_what_gives_them_away():
    # 9 rows of one patient are one patient.
    column = ["x"] * 100 + ["y"] * 60 + ["z"] * 40 + ["rare"] * 12
    patients = [*range(200), *[200] * 12]
    found = group_by(table(column, patients=patients), "site", eligible=("a",), **FAST)
    rare, x, y, z = (found[value] for value in ("other (1 value)", "x", "y", "z"))
    assert (rare.rows, rare.patients, rare.figures, rare.differences) == (None, None, {}, {})
    assert (z.rows, z.patients, set(z.positive_patients.values())) == (None, None, {None})
    assert z.figures["a"]["auroc"].low is not None
    assert math.isnan(z.figures["a"]["prevalence"].value)
    assert math.isnan(z.differences["a"]["prevalence"].difference.value)
    assert (x.rows, y.patients) == (100, 60)
    assert x.positive_patients["a"] is not None
    assert "1 of 4 groups of site have under 10 patients: not shown" in found.notes
    assert any("the counts of 'z' are not shown" in note for note in found.notes)


def test_two_small_groups_need_no_third():
    found = group_by(table(["x"] * 50 + ["y"] * 30 + ["u"] * 9 + ["v"]), "site", eligible=("a",), **FAST)
    assert {row.value: row.rows for row in found.rows} == {"x": 50, "y": 30, "other (2 values)": 10}
    found = group_by(table(["x"] * 50 + ["y"] * 30 + ["u"] * 8 + [""] * 7), "site", eligible=("a",), **FAST)
    assert [row.rows for row in found.rows] == [50, 30, None, None]


def test_rare_values_have_no_name():
    column = ["x"] * 50 + ["y"] * 30 + ["Doe^Jane"] * 2 + ["4711"] * 3 + ["nan"] * 12
    found = group_by(table(column), "site", eligible=("a",), **FAST)
    assert names(found) == ["x", "y", "other (2 values)", NOT_KNOWN]
    assert not {"Doe", "4711"} & set(json.dumps(found.to_dict()).replace("^", '"').split('"'))
    ages = [*range(20, 60)] * 10 + [90] * 3 + [101]
    assert names(group_by(table(ages), "site", eligible=("a",), **FAST))[-2:] == ["90-99", "100-109"]  # of many ages


def test_two_groups_of_one_patient_do_not_follow_from_their_sum():
    found = group_by(table(["a"] * 50 + ["b"] * 30 + ["c"] + [""]), "site", eligible=("a",), **FAST)
    assert [row.rows for row in found.rows] == [50, None, None, None]


def test_no_reason_states_a_count_that_is_not_shown():
    scores = table(
        ["x"] * 77 + ["y"] * 33 + ["z"] * 4, patients=[*range(77), *np.repeat(np.arange(77, 88), 3), *[200] * 4]
    )
    found = group_by(scores, "site", eligible=("a",), **FAST)
    assert (found["x"].rows, found["y"].rows) == (77, None)
    reasons = [e.why for figures in found["y"].figures.values() for e in figures.values()]
    assert not any("33" in why or "11" in why for why in reasons)


@pytest.mark.parametrize("labels", [("a",), ("a", "b")])
def test_a_hidden_count_does_not_follow_from_the_figures_of_another_group(labels):
    y = (np.random.default_rng(0).random((120, len(labels))) < 0.5).astype(float)
    y[:60, 0], y[60:, 0] = np.arange(60) < 20, np.arange(60) < 3
    scores = replace(table(["x"] * 60 + ["y"] * 60, y=y, labels=labels), task="multilabel" if labels[1:] else "binary")
    x, other = group_by(scores, "site", eligible=("a",), **FAST).rows
    assert (x.positive_patients["a"], other.positive_patients["a"]) == (None, None)
    for name in ("prevalence", "accuracy", "ppv", "npv", "f1"):  # each gives the share of positives with two others
        assert math.isnan(x.figures["a"][name].value), name
    assert {"sensitivity", "specificity", "auroc"} <= {n for n, e in x.figures["a"].items() if not math.isnan(e.value)}
    assert math.isnan(x.figures[""]["exact_match"].value) is (len(labels) == 1)
    # Nor do figures of all outputs give those of the one that has none.
    assert all(math.isnan(e.value) for e in [*other.figures["a"].values(), *other.figures[""].values()])
    assert all(each.separable is None for each in other.differences[""].values())


def test_whether_a_hidden_count_is_0_is_not_told():
    y = np.zeros((180, 2))
    y[:20, 0], y[60:63, 0], y[::2, 1] = 1, 1, 1  # 20, 3 and 0 of a
    found = group_by(table(["x"] * 60 + ["y"] * 60 + ["z"] * 60, y=y), "site", eligible=("a", "b"), **FAST)
    assert [row.positive_patients["a"] for row in found.rows] == [None] * 3  # 3 + 0 would follow from the 20
    y, z = (found[value].to_dict()["figures"] for value in "yz")
    assert y["a"] == z["a"]
    assert y[""]["macro_auroc"] == z[""]["macro_auroc"]


def test_a_class_does_not_follow_from_the_others():
    codes = np.concatenate([np.repeat([0, 1, 2], [40, 40, 4]), np.repeat([0, 1, 2], 30), np.repeat([0, 1, 2], 25)])
    scores = replace(
        table(np.repeat(["x", "y", "z"], [84, 90, 75]), y=np.eye(3)[codes], labels=("a", "b", "c")),
        task="multiclass", thresholds=(), probabilities=np.full((249, 3), 1 / 3),
    )  # fmt: skip
    x, y, z = group_by(scores, "site", eligible=("a", "b"), **FAST).rows
    assert set(x.positive_patients.values()) == set(z.positive_patients.values()) == {None}
    assert y.positive_patients == {"a": 30, "b": 30, "c": 30}
    assert all(math.isnan(x.figures[""][name].value) for name in ("accuracy", "balanced_accuracy", "brier", "log_loss"))
    assert not math.isnan(x.figures[""]["macro_auroc"].value)
    assert math.isnan(z.figures[""]["accuracy"].value)
    assert not math.isnan(z.figures[""]["brier"].value)


@pytest.mark.parametrize(("positive", "shown"), [(9, False), (10, True), (31, False), (30, True)])
def test_small_counts_of_a_label_are_not_shown(positive, shown):
    y = np.zeros((240, 1))
    y[:positive], y[40:110], y[140:190] = 1, 1, 1  # of 40, 100 and 100
    found = group_by(table(["u"] * 40 + ["v"] * 100 + ["w"] * 100, y=y, labels=("a",)), "site", eligible=("a",), **FAST)
    u, v, w = found.rows
    assert (u.patients, v.patients, w.patients) == (40, 100, 100)
    assert v.positive_patients["a"] == 70
    assert u.positive_patients["a"] == (positive if shown else None)
    assert w.positive_patients["a"] == (50 if shown else None)  # or 120 + positive - 70 - 50 would be it
    assert math.isnan(w.figures["a"]["prevalence"].value) is not shown
    assert all(math.isnan(each.value) is not shown for each in u.figures["a"].values())
    assert math.isnan(u.figures[""]["macro_auroc"].value) is not shown
    assert (u.differences["a"]["auroc"].separable is None) is not shown
    if not shown:
        assert "under 10 positive or negative patients" in u.differences["a"]["auroc"].difference.why
        assert any("'w'" in note for note in found.notes)


def not_determined(cells, least):
    """Check that no small count is shown, and that their sum leaves each open, unless all are hidden."""
    hidden = [(value, few) for shown, value, few in cells.values() if shown is None]
    assert all(shown is None for shown, _, few in cells.values() if few)
    if not hidden or len(hidden) == len(cells):
        return
    total, others = sum(value for value, _ in hidden), sum(not few for _, few in hidden)
    assert len(hidden) > 1
    assert total >= 10
    assert not others or total > 10 * others + least * (len(hidden) - others)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=6), st.integers(0, 100))
def test_no_count_under_10_is_shown_or_follows_from_the_totals(sizes, seed):
    column = np.repeat([f"site {i}" for i in range(len(sizes))], sizes)
    scores = table(column, seed=seed)
    found = group_by(scores, "site", eligible=(), resamples=2)
    others = [size for size in sizes if size < 10]
    true = {f"site {i}": size for i, size in enumerate(sizes) if size >= 10}
    if others:
        true[f"other ({len(others)} value{'s' * (len(others) > 1)})"] = sum(others)
    assert set(names(found)) == set(true)
    assert all(row.patients in (None, true[row.value]) for row in found.rows)
    small = {value for value, size in true.items() if size < 10}
    not_determined({row.value: (row.patients, true[row.value], row.value in small) for row in found.rows}, 1)
    for i, label in enumerate(scores.labels):
        cells = {}
        for row in found.rows:
            rows = [
                n
                for n, value in enumerate(column)
                if value == row.value or (true.keys().isdisjoint([value]) and "other" in row.value)
            ]
            positive = int(scores.targets[rows, i].sum())
            few = min(positive, len(rows) - positive) < 10
            cells[row.value] = (row.positive_patients.get(label), positive, few)
            if cells[row.value][0] is None and row.figures:
                assert math.isnan(row.figures[label]["prevalence"].value)
        not_determined(cells, 0)
    json.dumps(found.to_dict(), allow_nan=False)


def test_macro_is_over_the_same_labels_in_all_groups():
    y = np.zeros((200, 2))
    y[::2, 0], y[100::2, 1] = 1, 1  # the first group has no b
    scores = table(["x"] * 100 + ["y"] * 100, y=y)
    x, other = group_by(scores, "site", eligible=("a", "b"), **FAST).rows
    assert math.isnan(x.figures[""]["macro_auroc"].value)
    assert x.figures[""]["macro_auroc"].why == "not shown: under 10 positive or negative patients: b"
    assert not math.isnan(other.figures[""]["macro_auroc"].value)
    assert "macro_auroc_all" not in x.figures[""]
    x, _ = group_by(scores, "site", eligible=("a",), **FAST).rows
    assert x.figures[""]["macro_auroc"].value == x.figures["a"]["auroc"].value


def test_a_group_that_has_the_findings_is_pointed_out():
    # The score knows the view alone: over all rows it seems to find something, and within a view it does not.
    rng = np.random.default_rng(0)
    view = np.repeat(["AP", "PA"], 300)
    y = (rng.random(600) < np.where(view == "AP", 0.4, 0.08))[:, None]
    scores = table(view, y=y, labels=("pneumonia",), gain=0)
    scores = replace(scores, ranks=scores.ranks + 4 * (view == "AP")[:, None])
    assert measure(scores, **FAST)["pneumonia"]["auroc"].value > 0.7
    found = group_by(scores, "site", eligible=("pneumonia",), **FAST)
    assert all(abs(row.figures["pneumonia"]["auroc"].value - 0.5) < 0.12 for row in found.rows)
    assert any("more than twofold between the groups of site for pneumonia" in note for note in found.notes)
    same = group_by(table(view, labels=("pneumonia",)), "site", eligible=("pneumonia",), **FAST)
    assert not any("twofold" in note for note in same.notes)
    assert any("1 in 20" in note for note in same.notes)


def test_wrong_columns_and_labels_are_refused():
    scores = table([f"Doe^Jane {i}" for i in range(50)])
    with pytest.raises(ConfigError, match=r"no column 'sit'\. Did you mean 'site'\?|There are site"):
        group_by(scores, "sit", eligible=())
    with pytest.raises(ConfigError, match="'site' has 50 different values in 50 patients, so it may name them") as e:
        group_by(scores, "site", eligible=())
    assert "Doe" not in str(e.value)
    for ids in (np.arange(1000, 1050), np.arange(50), [f"{i:03}" for i in range(50)], np.arange(50) / 1):
        with pytest.raises(ConfigError, match="may name them"):
            group_by(table(ids), "site", eligible=())
    with pytest.raises(ConfigError, match="no label 'mass'"):
        group_by(scores, "site", eligible=("mass",))
    with pytest.raises(ConfigError, match="has no other columns"):
        group_by(replace(scores, groups={}), "site", eligible=())
    with pytest.raises(DataError, match="expected rows, got none"):
        group_by(scores.select(np.arange(0)), "site", eligible=())


def test_ages_are_cut_into_decades():
    ages = np.random.default_rng(0).integers(20, 60, 400)
    for column in (ages, [f"{age:03}Y" for age in ages], [f" {age} " for age in ages]):
        found = group_by(table(column), "site", eligible=("a",), **FAST)
        assert names(found) == ["20-29", "30-39", "40-49", "50-59"]
        assert [row.rows for row in found.rows] == [((ages // 10) == i).sum() for i in (2, 3, 4, 5)]
        assert any(
            note.startswith("the 40 different numbers of site were cut into bands of ten") for note in found.notes
        )


def test_measurements_are_cut_into_quarters():
    values = np.random.default_rng(0).normal(size=200)
    found = group_by(table([f"{v:.5f}" for v in values]), "site", eligible=("a",), **FAST)
    assert len(found.rows) == 4
    assert all(45 <= row.rows <= 55 for row in found.rows)
    assert names(found)[0].startswith("up to -0.")
    assert names(found)[-1].startswith("over 0.")


def test_bands():
    def cut(values, column="value"):
        return bands(column, np.array([str(value) for value in values]), np.arange(len(values)))

    assert cut([3, 1, 10, 2]).order == ("1", "2", "3", "10")  # few numbers stay as they are
    assert cut(["b", "a", 10, 9]).order == ("10", "9", "a", "b")
    assert not cut([f"{i:02}" for i in range(50)]).note  # codes
    assert cut([*range(-3, 90), 414], "Patient Age").order[::9] == ("under 0", "80-89")
    assert cut([*range(-3, 90), 414], "PatientAge").order[-1] == "120 and over"
    assert cut(range(18), "age_years").order == ("0-9", "10-19")
    assert cut(range(18), "image").order == ("up to 4", "over 4 to 8", "over 8 to 13", "over 13")
    assert cut([*([0] * 60), *range(14)], "dose").order[0] == "up to 0"
    assert cut(["1e5", "nan", "inf", "１２"]).order == ("1e5", "inf", "nan", "１２")
    assert cut([]).order == ()
    assert len(cut([2000 + i % 30 for i in range(60)], "year").order) == 4


def test_hostile_tables():
    one = group_by(table(["x"]), "site", eligible=("a",), **FAST)
    assert [(row.value, row.rows, row.reference) for row in one.rows] == [("other (1 value)", None, False)]
    assert len(group_by(table([""] * 40), "site", eligible=(), **FAST).rows) == 1
    unicode = group_by(table(["日本", "🏥\n", "é", "e\u0301"] * 30), "site", eligible=("a",), **FAST)
    assert len(unicode.rows) == 4
    many = group_by(table([f"Mr {i}" for i in range(100)] * 3 + ["x"] * 30), "site", eligible=("a",), **FAST)
    assert names(many) == ["x", "other (100 values)"]
    assert "Mr 1" not in json.dumps(many.to_dict())
    wide = group_by(table(np.repeat([f"s{i}" for i in range(100)], 12)), "site", eligible=(), resamples=2)
    assert len(wide.rows) == 100
    unknown = table(["x"] * 30 + ["y"] * 30)
    unknown = replace(unknown, targets=np.full_like(unknown.targets, np.nan))
    assert math.isnan(group_by(unknown, "site", eligible=(), **FAST).rows[0].figures["a"]["auroc"].value)


def test_rows_count_as_patients_where_none_are_known():
    scores = replace(table(["x"] * 30 + ["y"] * 20), patients=None)
    found = group_by(scores, "site", eligible=("a",), **FAST)
    assert [row.patients for row in found.rows] == [30, 20]
    assert any("patients are not known" in note for note in found.notes)


def test_the_reference_is_the_largest_known_group():
    found = group_by(table([""] * 50 + ["x"] * 20 + ["y"] * 30), "site", eligible=("a",), **FAST)
    assert [row.value for row in found.rows if row.reference] == ["y"]
