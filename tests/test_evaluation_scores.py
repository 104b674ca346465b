"""Scores as a table: what they are made of, rows of them, and a file that reads back to the same."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest

from medzoo.data.identity import pseudonym
from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.scores import Scores


def make(n=8, labels=("A", "B"), task="multilabel", seed=0, how="logits", **fields):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, len(labels))) * 20
    targets = rng.integers(0, 2, (n, len(labels))).astype(np.float32)
    if task == "multiclass":
        targets = np.eye(len(labels), dtype=np.float32)[rng.integers(0, len(labels), n)]
    fields = {
        "ids": np.array([f"images/{i}.png" for i in range(n)], np.str_),
        "targets": targets,
        "labels": labels,
    } | fields
    if how == "logits":
        return Scores.from_logits(z, task=task, **fields)
    if how == "both":
        p = rng.random((n, len(labels)))
        return Scores.from_logits(z, probabilities=p, task=task, **fields)
    p = rng.random((n, len(labels)))
    return Scores.from_probabilities(p / p.sum(1, keepdims=True) if task == "multiclass" else p, task=task, **fields)


def full(n=8, **options):
    options.setdefault("patients", np.array([f"0{i // 2}" for i in range(n)]))
    options.setdefault(
        "groups", {"site": np.array(["x", "y"] * (n // 2)), "name": np.array([f"N{i}" for i in range(n)])}
    )
    return make(n, **options)


TASKS = {"binary": ("A",), "multilabel": ("A", "B"), "multiclass": ("a", "b", "c")}


@pytest.mark.parametrize(("how", "task"), [
    *(("logits", task) for task in TASKS), *(("probabilities", task) for task in TASKS),
    ("both", "binary"), ("both", "multilabel"),
])  # fmt: skip
def test_what_is_written_reads_back(tmp_path, how, task):
    labels = TASKS[task]
    scores = full(labels=labels, task=task, how=how)
    if task != "multiclass":
        scores.targets[0, 0] = np.nan
    calls = np.float32(np.arange(8 * len(labels)).reshape(8, -1) % 2)
    calls[0, 0] = np.nan
    scores.readers["Dr X"] = calls  # type: ignore[index]
    assert scores.to_csv(tmp_path / "a" / "s.csv") == tmp_path / "a" / "s.csv"
    again = Scores.from_csv(tmp_path / "a" / "s.csv")
    assert (again.labels, again.task, again.thresholds) == (labels, task, ())
    for name in ("ranks", "logits", "probabilities"):
        np.testing.assert_allclose(getattr(again, name), getattr(scores, name), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(again.targets, scores.targets)
    np.testing.assert_array_equal(again.readers["Dr X"], calls)
    np.testing.assert_array_equal(again.ids, scores.ids)
    np.testing.assert_array_equal(again.clusters, scores.clusters)  # the same resamples
    assert list(again.groups) == ["site"]  # the other names patients
    assert again.patients.tolist() == [pseudonym(patient) for patient in scores.patients]
    if task == "multiclass":  # whose logits are normalised again, and may differ in the last bit
        return
    # A second time nothing changes, patients included.
    again.to_csv(tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a" / "s.csv").read_bytes()


def test_a_file_holds_no_patient(tmp_path):
    scores = full(patients=np.array(["SECRET"] * 8))
    text = scores.to_csv(tmp_path / "s.csv").read_text()
    assert "SECRET" not in text
    assert re.search(r'"sha256:[0-9a-f]{16}"', text)


def test_groups_that_would_be_read_as_something_else_are_left_out(tmp_path):
    groups = {name: np.array(["x", "y"] * 4) for name in ("id", "target:A", "reader:Z", "label", "score", "sex")}
    again = Scores.from_csv(full(groups=groups).to_csv(tmp_path / "s.csv"))
    assert list(again.groups) == ["label", "score", "sex"]
    assert again.labels == ("A", "B")


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        make().to_csv(tmp_path / "file" / "s.csv")


def test_select():
    scores = full(thresholds=(0.2, None), dropped=())
    part = scores.select([3, 1])
    assert part.ids.tolist() == ["images/3.png", "images/1.png"]
    np.testing.assert_array_equal(part.ranks, scores.ranks[[3, 1]])
    assert part.patients.tolist() == ["01", "00"]
    assert part.groups["site"].tolist() == ["y", "y"]
    assert part.thresholds == (0.2, None)
    assert np.isnan(part.calls[:, 1]).all()
    assert len(scores.select(scores.groups["site"] == "x")) == 4
    none = scores.select([])
    assert (len(none), none.ranks.shape, none.calls.shape) == (0, (0, 2), (0, 2))
    assert len(scores.select(np.zeros(8, bool))) == 0
    assert "0 rows" in repr(none)
    with pytest.raises(DataError, match="a different id in each row"):
        scores.select([1, 1])


@pytest.mark.parametrize(("fields", "error", "message"), [
    ({"ids": np.array(["a"] * 8)}, DataError, "a different id in each row"),
    ({"patients": np.array(["a"])}, DataError, "got others in patients"),
    ({"groups": {"site": np.array(["a"])}}, DataError, "got others in site"),
    ({"thresholds": (0.5,)}, ConfigError, "expected 2 thresholds"),
    ({"labels": ("A", "B"), "task": "multiclass", "thresholds": (0.5, 0.5)}, ConfigError, "expected 0 thresholds"),
    ({"targets": np.zeros((8, 1), np.float32)}, DataError, "expected targets of 8 rows and 2 labels"),
    ({"task": "regression"}, ConfigError, "expected task"),
])  # fmt: skip
def test_what_does_not_fit_together(fields, error, message):
    with pytest.raises(error, match=message):
        make(**fields)


def test_empty_scores_are_written_but_not_read(tmp_path):
    path = full().select([]).to_csv(tmp_path / "s.csv")
    with pytest.raises(DataError, match="expected rows below the header, found none"):
        Scores.from_csv(path)


@pytest.mark.slow
def test_time_grows_as_the_rows_do(tmp_path):
    seconds = []
    for n in (10_000, 200_000):
        patients = np.char.add("p", (np.arange(n) // 4).astype(str))
        scores = make(n, labels=("A", "B", "C"), patients=patients)
        began = time.process_time()  # of this process alone: another one's load does not count
        again = Scores.from_csv(scores.to_csv(tmp_path / "s.csv"))
        again.select(np.arange(0, n, 2))
        seconds.append(time.process_time() - began)
        np.testing.assert_array_equal(again.ranks, scores.ranks)
    assert seconds[1] < 100 * seconds[0], "20 times the rows; their square would take 400 times as long"
