"""From all rows to those evaluated, and table 1: counts add up, and no cell names a person."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medzoo.data.identity import Dropped
from medzoo.evaluation.characteristics import HIDDEN, SMALL, _characteristics, characteristics_of_scores
from medzoo.evaluation.columns import few_values, kind_of_column, numbers
from medzoo.evaluation.flow import flow_of_scores, kind_of_reason
from medzoo.evaluation.groups import group_by
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.suppression import hide_small


def scores_of(targets, patients=None, groups=None, labels=("mass",), task="binary", notes=()):
    values = np.asarray(targets, np.float32).reshape(len(targets), -1)
    return Scores.from_logits(
        np.zeros(values.shape), task=task, ids=np.array([f"/secret/{i}.png" for i in range(len(values))]),
        targets=values, labels=labels, patients=None if patients is None else np.asarray(patients, np.str_),
        groups={name: np.asarray(column, np.str_) for name, column in (groups or {}).items()}, notes=notes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("patient e993f758 is also in test", "patient also in another part"),
        ("an image with the same pixels is in valid", "same image in another part"),
        ("cannot be used: /data/Anna.dcm: expected 16 bits", "cannot be read"),
        ("cannot be read: Anna\n.dcm", "cannot be read"),
        ("no part in column 'split'", "no part in column 'split'"),
        ("Anna.png: another kind of image, a CT", "another kind of image"),
        ("cannot be used\nfor Anna", "cannot be read"),
        ("Anna", "another reason"),
        ("", "another reason"),
    ],
)
def test_reasons_are_grouped_without_an_id(reason, kind):
    assert kind_of_reason(reason) == kind


def test_the_reasons_of_a_split_are_all_known(tmp_path):
    """What medzoo writes is never "another reason"."""
    from medzoo.data.split import split_from_column
    from medzoo.data.table import Table

    images = np.random.default_rng(0).integers(0, 255, (8, 8, 8), np.uint8)
    images[5] = images[0]
    table = Table.from_arrays(
        images, [0, 1] * 4, patients=["a", "b", "c", "d", "e", "f", "a", "h"],
        groups={"split": ["train", "train", "valid", "valid", "", "test", "test", "train"]},
    )  # fmt: skip
    split = split_from_column(table, "split", on_leak="drop-valid")
    kinds = [kind_of_reason(each.reason) for each in split.dropped]
    assert sorted(kinds) == [
        "no part in column 'split'", "patient also in another part", "same image in another part",
    ]  # fmt: skip


def test_the_flow_of_scores_adds_up():
    scores = scores_of(
        [1, 0, np.nan, 1], ["a", "a", "b", "c"], notes=("1,002 duplicate rows left out", "3 rows, of which odd"),
    )  # fmt: skip
    dropped = [Dropped(7, "x", "cannot be read: x"), Dropped(7, "x", "cannot be read: x"), Dropped(8, "y", "odd")]
    flow = flow_of_scores(scores, dropped)
    assert [(step.text, step.rows, step.patients) for step in flow.steps] == [
        ("rows of the source", 1008, None), ("rows of the data", 6, None), ("rows evaluated", 3, 2),
    ]  # fmt: skip
    assert flow.steps[0].dropped == (("duplicate row", 1002),)
    assert flow.steps[1].dropped == (("another reason", 1), ("cannot be read", 1), ("no label is known", 1))
    for step, following in zip(flow.steps, flow.steps[1:], strict=False):
        assert step.rows - sum(n for _, n in step.dropped) == following.rows
    assert json.loads(json.dumps(flow.to_dict()))["steps"][1]["dropped"] == dict(flow.steps[1].dropped)
    assert flow_of_scores(scores).steps[1].patients == 3


def characteristics(*args, **options):
    found = characteristics_of_scores(scores_of(*args, **options))
    assert found.columns == ("evaluated",)
    return {name: text for name, (text,) in found.rows}, found


def test_table_1_of_scores():
    n = 200
    rng = np.random.default_rng(0)
    patients = [f"p{i // 2}" for i in range(n)]
    ages = [str(20 + i // 2 % 40) for i in range(n)]
    ages[0] = ""
    rows, found = characteristics(
        [float(i % 10 < 4) for i in range(n - 30)] + [np.nan] * 30, patients,
        {
            "sex": ["F", "F", "M", "M"] * (n // 4), "age": ages, "city": [f"c{rng.integers(30)}" for _ in range(n)],
            "name": [f"Anna {i // 2}" for i in range(n)], "split": ["test"] * n, "blank": [""] * n,
        },
    )  # fmt: skip
    assert rows["rows"] == "170"  # with a known label
    assert rows["patients"] == "85"
    assert rows["images per patient, median (range)"] == "2 (2 to 2)"
    assert rows["mass, n (%)"] == "68 (40.0%)"
    assert rows["sex: F, n (%)"] == "86 (50.6%)"
    low, middle, high = np.percentile([float(age) for age in ages[1:170]], [25, 50, 75])
    assert rows["age, median (IQR)"] == f"{middle:g} ({low:g} to {high:g})"
    assert rows["age not stated, n (%)"] == SMALL
    assert set(rows) == {
        "rows", "patients", "images per patient, median (range)", "mass, n (%)", "sex: F, n (%)", "sex: M, n (%)",
        "age, median (IQR)", "age not stated, n (%)",
    }  # fmt: skip
    assert "column 'city' has many values and is not shown" in found.notes
    text = json.dumps(found.to_dict())
    assert "Anna" not in text
    assert "secret" not in text


def test_small_cells_are_hidden_with_what_they_follow_from():
    n = 100
    rows, _ = characteristics(
        [1.0] * 4 + [0.0] * (n - 4),
        range(n),
        {"sex": ["F"] * 30 + ["M"] * 67 + ["X"] * 3, "view": ["AP"] * 96 + ["LL"] * 4},
    )
    assert (rows["sex: M, n (%)"], rows["sex: F, n (%)"], rows["sex: other, n (%)"]) == ("67 (67.0%)", HIDDEN, SMALL)
    assert (rows["view: AP, n (%)"], rows["view: other, n (%)"]) == (HIDDEN, SMALL)
    assert rows["mass, n (%)"] == "4 (4.0%)"  # as in the results


def test_many_rows_of_few_patients_are_small_too():
    column = ["X"] * 60 + ["F"] * 20 + ["M"] * 25
    rows, _ = characteristics([0.0, 1.0] * 52 + [1.0], ["one"] * 60 + [f"p{i}" for i in range(45)], {"sex": column})
    assert rows["sex: other, n (%)"] == SMALL
    assert (rows["sex: F, n (%)"], rows["sex: M, n (%)"]) == (HIDDEN, "25 (23.8%)")


def test_shares_of_labels_are_of_the_known():
    targets = np.array([[float(i % 2), np.nan if i < 3 else float(i % 3 == 0)] for i in range(60)])
    rows, _ = characteristics(targets, range(60), labels=("mass", "node"), task="multilabel")
    assert rows["mass, n (%)"] == "30 (50.0%)"
    assert rows["node not known, n (%)"] == "3 (5.0%)"
    assert rows["node, n (%)"] == "19 (33.3%)"


def test_multiclass_labels_are_one_column():
    targets = np.eye(3)[np.arange(90) % 3]
    targets[0] = np.nan
    rows, _ = characteristics(targets, range(90), labels=("a", "b", "c"), task="multiclass")
    assert (rows["a, n (%)"], rows["b, n (%)"]) == ("29 (32.6%)", "30 (33.7%)")
    assert "label not known, n (%)" not in rows


def test_a_value_of_few_patients_is_not_named():
    linked = ["" for _ in range(100)]
    linked[3], linked[7] = "patient 0815", "patient 4711"
    rows, _ = characteristics([1.0, 0.0] * 50, range(100), {"linked": linked})
    assert not any("patient 0815" in name for name in rows)
    assert rows["linked: other, n (%)"] == SMALL


def test_columns_are_recognised():
    patients = np.array([f"p{i}" for i in range(100)])
    assert kind_of_column(np.array(["A", "B"] * 50), patients) == "few"
    assert kind_of_column(np.array([f"id {i}" for i in range(100)]), patients) == "names"
    assert kind_of_column(np.array([str(i % 40) for i in range(100)]), patients) == "numbers"
    assert kind_of_column(np.array([f"v{i % 40}" for i in range(100)]), patients) == "many"
    assert kind_of_column(np.array(["train", "Test "] * 50), patients) == "parts"
    assert numbers(np.array(["1e3", "inf", "12W", " 7 "])).tolist()[0::3] == [1000.0, 7.0]
    assert np.isnan(numbers(np.array(["inf"])))[0]


def test_a_column_of_long_values_is_cut():
    assert len(few_values(np.array(["x" * 200] * 20), np.arange(20)).names[0]) == 40


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_the_sum_of_the_hidden_cells_leaves_each_small_one_open(counts):
    cells = np.array(counts)
    small, also = hide_small(cells, cells, "ABCDEF")
    hidden = small | also
    assert (small == ((cells > 0) & (cells < 10))).all()
    if not small.any() or hidden[cells > 0].all():
        return
    solutions = {0: [()]}  # of each sum
    for few in small[hidden]:
        found = {}
        for total, parts in solutions.items():
            for n in range(1, 10) if few else range(10, 100):
                if total + n <= cells[hidden].sum():
                    found.setdefault(total + n, []).extend([(*part, n) for part in parts][:2000])
        solutions = found
    possible = np.array(solutions[cells[hidden].sum()])
    assert (np.ptp(possible, 0)[small[hidden]] > 0).all()
    assert cells[hidden].sum() >= 10


def test_groups_and_characteristics_hide_the_same():
    column, who = ["A"] * 50 + ["B"] * 90 + ["C"] * 8, [*range(50), *np.repeat(np.arange(50, 80), 3), *[90] * 8]
    scores = scores_of([0.0, 1.0] * 74, who, {"site": column})
    found = {row.value: row.rows for row in group_by(scores, "site", eligible=(), resamples=2).rows}
    assert found == {"A": 50, "B": None, "other (1 value)": None}  # B has more rows than A, and fewer patients
    rows = dict(characteristics_of_scores(scores).rows)
    assert (rows["site: A, n (%)"], rows["site: B, n (%)"]) == (("50 (33.8%)",), (HIDDEN,))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 25)] * 3), min_size=2, max_size=6))
def test_no_small_cell_follows_from_all_tables(cells):
    """As linear equations: characteristics of parts that do not overlap and of their sum, and groups of one part."""
    values = [value for value, _ in zip("ABCDEF", cells, strict=False)]
    column = np.concatenate([np.repeat(value, sum(each)) for value, each in zip(values, cells, strict=True)])
    part = np.concatenate([np.repeat([0, 1, 2], each) for each in cells])
    if any((part == p).sum() == 0 for p in range(3)) or len(set(column.tolist())) < 2:
        return
    scores = scores_of(np.arange(len(column)) % 2, range(len(column)), {"site": column})
    counts, known = np.array(cells), []

    def knows(values_, parts):
        known.append([float(v in values_ and p in parts) for v in values for p in range(3)])

    named = {v for v, each in zip(values, cells, strict=True) if sum(each) >= 10}
    found = _characteristics(scores, {str(p): np.flatnonzero(part == p) for p in range(3)})
    for p in range(3):
        knows(values, [p])
    for name, texts in found.rows:
        if name.startswith("site: "):
            value = name.split()[1].rstrip(",")
            of = set(values) - named if value == "other" else {value}
            for p, text in enumerate(texts):
                if text not in (SMALL, HIDDEN):
                    knows(of, [0, 1, 2] if p == 3 else [p])
    test = scores.select(np.flatnonzero(part == 2))
    rare = {v for v, each in zip(values, cells, strict=True) if each[2] < 10}
    for row in group_by(test, "site", eligible=(), resamples=2).rows:
        if row.rows is not None:
            knows(rare if "other" in row.value else {row.value}, [2])
    known = np.array(known)
    for i, count in enumerate(counts.ravel()):
        siblings = counts[:, i % 3]
        if 0 < count < 10 and (siblings > 0).sum() > 1 and siblings.sum() >= 20:
            one = np.eye(counts.size)[i]
            assert np.linalg.matrix_rank(np.vstack([known, one])) > np.linalg.matrix_rank(known), found.rows
