"""From all rows to those evaluated, and table 1: counts add up, and no cell names a person."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medzoo.data.identity import Dropped
from medzoo.evaluation.characteristics import HIDDEN, SMALL, characteristics_of_scores, hide_cells
from medzoo.evaluation.columns import few_values, kind_of_column, numbers
from medzoo.evaluation.flow import flow_of_scores, kind_of_reason
from medzoo.evaluation.scores import Scores


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
    assert rows["mass, n (%)"] == SMALL
    assert (rows["sex: M, n (%)"], rows["sex: F, n (%)"], rows["sex: other, n (%)"]) == ("67 (67.0%)", HIDDEN, SMALL)
    assert (rows["view: AP, n (%)"], rows["view: other, n (%)"]) == (HIDDEN, SMALL)


def test_many_rows_of_few_patients_are_small_too():
    rows, _ = characteristics([1.0] * 60 + [0.0] * 40, ["one"] * 60 + [f"p{i}" for i in range(40)])
    assert rows["mass, n (%)"] == SMALL


def test_few_negatives_hide_the_positives():
    rows, _ = characteristics([1.0] * 96 + [0.0] * 4, range(100))
    assert rows["mass, n (%)"] == HIDDEN


def test_a_few_unknown_labels_do_not_follow_from_a_share():
    targets = np.array([[float(i % 2), np.nan if i < 3 else float(i % 3 == 0)] for i in range(60)])
    rows, _ = characteristics(targets, range(60), labels=("mass", "node"), task="multilabel")
    assert rows["mass, n (%)"] == "30 (50.0%)"
    assert rows["node not known, n (%)"] == SMALL
    assert rows["node, n (%)"] == HIDDEN  # 57 are known


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
@given(st.lists(st.lists(st.integers(0, 30), min_size=2, max_size=4), min_size=1, max_size=5), st.booleans())
def test_no_small_cell_is_the_only_one_hidden_of_a_line(counts, summed):
    """In each column, and in each line that has a sum, nothing is hidden or at least two cells with something are."""
    width = min(map(len, counts))
    cells = np.array([line[:width] for line in counts], np.int64)
    if summed:
        cells = np.concatenate([cells, cells.sum(1, keepdims=True)], 1)
    small, hidden = hide_cells(cells, cells, summed=summed)
    closed = small | hidden
    assert not (small & hidden).any()
    assert closed[(cells > 0) & (cells < 10)].all()
    for values, shut in zip(
        [*cells.T, *(cells if summed else [])], [*closed.T, *(closed if summed else [])], strict=True
    ):
        assert shut.sum() != 1 or not (values[~shut] > 0).any()
