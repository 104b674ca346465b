"""Splits: no patient and no image is in two parts, whatever the table; and they are balanced."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from medzoo.data.draws import deal, deviations
from medzoo.data.identity import hashed
from medzoo.data.split import Part, Split, choose_split, folds, leave_out, split_from_column
from medzoo.data.table import Table
from medzoo.errors import ConfigError, DataError

PARTS = ("train", "valid", "test")


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path_factory.mktemp("home")))


def table(patients, labels=None, images=None, **groups):
    """Return a table of different images; the image 0 is constant."""
    n = len(patients) if patients is not None else len(images)
    values = np.arange(n) + 1 if images is None else np.asarray(images)
    pixels = np.zeros((n, 1, 1, 3), np.int64)
    pixels[:, 0, 0, 0] = values  # 0 makes a constant image
    y = np.arange(n) % 2 if labels is None else labels
    return Table.from_arrays(pixels, y, patients=patients, groups=groups)


def part_of(split):
    """Return the part of each row, -1 for none."""
    found = np.full(len(split.table), -1)
    for i, name in enumerate(PARTS):
        assert (found[split.part(name).rows] == -1).all()
        found[split.part(name).rows] = i
    return found


def check_disjoint(split):
    """Check by plain loops that nothing is shared, and that each row is in one part or dropped with a reason."""
    parts = part_of(split)
    where = {}
    for row, part in enumerate(parts):
        if part < 0:
            continue
        if split.table.patients is not None:
            assert where.setdefault(("patient", split.table.patients[row]), part) == part
        image = split.table.arrays[row]
        if image.min() != image.max():
            assert where.setdefault(("image", image.tobytes()), part) == part
    assert sorted(each.row for each in split.dropped) == np.flatnonzero(parts == -1).tolist()
    assert all(each.reason and each.id == split.table.ids[each.row] for each in split.dropped)


ROWS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 15), st.integers(0, 1)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(0, 3))
def test_drawn_parts_are_disjoint_for_any_groups(rows, seed):
    patients, images, labels = (np.array(column) for column in zip(*rows, strict=True))
    given = table(patients, labels, images)
    if len(set(labels.tolist())) < 2:
        return
    for make in (
        lambda: [choose_split(given, seed=seed, draws=50)],
        lambda: folds(given, 3, seed=seed, draws=50),
    ):
        try:
            splits = make()
        except ConfigError:  # fewer patients than parts
            assert len(set(patients.tolist())) < 3 or len(set(images.tolist())) < len(rows)
            continue
        for split in splits:
            check_disjoint(split)
            assert not split.dropped
        if len(splits) == 3:
            assert sorted(np.concatenate([s.valid.rows for s in splits]).tolist()) == list(range(len(rows)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12), st.integers(0, 3)), min_size=4, max_size=40),
    st.sampled_from(["drop-valid", "drop-train"]),
)
def test_given_parts_are_disjoint_for_any_groups(rows, on_leak):
    patients, images, parts = (np.array(column) for column in zip(*rows, strict=True))
    given = table(patients, None, images, part=[("train", "VAL", "test", "")[p] for p in parts])
    try:
        split = split_from_column(given, "part", on_leak=on_leak)
    except ConfigError:  # nothing is left for train or valid
        return
    check_disjoint(split)
    kept = 0 if on_leak == "drop-valid" else 2
    assert (part_of(split) == kept).sum() == (parts == kept).sum()  # the part that is kept is complete


def test_seed_determines_the_split():
    given = table([f"p{i // 3}" for i in range(120)])
    first, again, other = (choose_split(given, seed=seed, draws=200) for seed in (1, 1, 2))
    assert (part_of(first) == part_of(again)).all()
    assert (part_of(first) != part_of(other)).any()


def test_never_worse_than_stratified_group_k_fold():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(60, 1000))
        groups = rng.integers(0, max(12, int(n / rng.uniform(1, 6))), n)
        labels = (rng.random(n) < rng.uniform(0.05, 0.5)).astype(int)
        inverse = np.unique(groups, return_inverse=True)[1]
        counts = np.zeros((inverse.max() + 1, 2), int)
        np.add.at(counts, inverse, np.stack([np.ones(n, int), labels], axis=1))
        wanted = np.outer((0.2,) * 5, counts.sum(0)).astype(np.float32)
        theirs = np.zeros((5, 2), np.float32)
        for i, (_, rows) in enumerate(
            StratifiedGroupKFold(5, shuffle=True, random_state=0).split(labels, labels, groups)
        ):
            theirs[i] = len(rows), labels[rows].sum()
        _, ours = deal(counts, (0.2,) * 5, seed=0, draws=2000)
        assert ours <= deviations(theirs, wanted).max(), seed


def test_a_large_table_takes_little_memory():
    rng = np.random.default_rng(0)
    counts = rng.binomial(4, 0.2, (30_805, 15))
    counts[:, 0] += 4
    tracemalloc.start()
    deal(counts, (0.7, 0.15, 0.15), seed=0, draws=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6


def test_fault_91_equal_pixels_in_two_parts():
    given = table(["a", "b", "c"], images=[7, 7, 8], part=["train", "test", "valid"])
    with pytest.raises(DataError, match=r"1 image with the same pixels: line 0 array 0 \(train\) = line 1 array 1 \(t"):
        split_from_column(given, "part")
    split = split_from_column(given, "part", on_leak="drop-valid")
    assert [(each.row, each.reason) for each in split.dropped] == [(1, "an image with the same pixels is in train")]


def test_fault_92_patient_in_two_parts():
    given = table(["007", "7", "007"], part=["train", "valid", "test"])
    with pytest.raises(DataError, match="1 patient ") as caught:
        split_from_column(given, "part")
    assert f"{hashed('007')} (1 of train, 1 of test)" in str(caught.value)
    assert "on_leak='drop-valid' drops 1 of test, or on_leak='drop-train' drops 1 of train" in str(caught.value)
    assert "007" not in str(caught.value).replace(hashed("007"), "")
    good = table(["007", "7"], part=["train", "valid"])
    assert part_of(split_from_column(good, "part")).tolist() == [0, 1]  # 7 is another patient


def test_fault_92_patients_that_are_not_known():
    given = table(None, images=range(1, 30), part=["train"] * 20 + ["val"] * 9)
    for make in (choose_split, lambda t: split_from_column(t, "part"), lambda t: folds(t, 2)):
        with pytest.raises(DataError, match="patient_groups=False"):
            make(given)
    split = choose_split(given, patient_groups=False, draws=50)
    assert any("no patients are known" in note for note in split.notes)
    with pytest.raises(ConfigError, match="is for a table without patients"):
        choose_split(table(["a", "b", "c"]), patient_groups=False)
    with pytest.raises(DataError, match="1 rows without a patient: row 1"):
        choose_split(table(["a", " ", "c"]))


def test_fault_112_too_few_for_the_parts():
    with pytest.raises(ConfigError, match=r"at least 3 patients, one for each of 3 parts, got 1 with 1 rows"):
        choose_split(table(["a"], labels=[1]))
    with pytest.raises(ConfigError, match="got 2 with 4 rows"):
        choose_split(table(["a", "a", "b", "b"]))
    split = choose_split(table(["a", "b", "b"]), shares=(0.5, 0.5))
    assert sorted(len(split.part(name)) for name in PARTS) == [0, 1, 2]
    three = choose_split(table(["a", "b", "c"]))
    assert [len(three.part(name)) for name in PARTS] == [1, 1, 1]
    with pytest.raises(ConfigError, match=r"no rows for valid \(train 2, valid 0, test 1.*valid=0.15"):
        split_from_column(table(["a", "b", "c"], part=["train", "train", "test"]), "part")
    drawn = split_from_column(table(["a", "b", "c"], part=["train", "train", "test"]), "part", valid=0.5)
    assert [len(drawn.part(name)) for name in PARTS] == [1, 1, 1]
    assert "validation drawn by patient as 0.5 of its training rows" in drawn.how


@pytest.mark.parametrize(
    "shares", [(0.7, 0.3, 0.3), (1.0, 0.0, 0.0), (0.7, 0.15, -0.15), (1.0,), (0.5, 0.5, float("nan"))]
)
def test_shares_that_cannot_be(shares):
    with pytest.raises(ConfigError, match="sum of 1"):
        choose_split(table(["a", "b", "c"]), shares=shares)


def test_a_split_is_not_made_by_hand():
    split = choose_split(table(["a", "b", "c", "d"]))
    with pytest.raises(ConfigError, match="Use choose_split, split_from_column, folds or leave_out"):
        Split(split.table, split.train, split.valid, split.train, "by hand")
    with pytest.raises(ConfigError, match="Part: it is not made by hand"):
        Part(split.table, np.arange(4), "train")
    with pytest.raises(ConfigError, match="by hand"):
        dataclasses.replace(split, test=split.train)
    with pytest.raises(ValueError, match="read-only"):
        split.train.rows[0] = 3
    for twin in (pickle.loads(pickle.dumps(split)), copy.deepcopy(split)):
        assert (twin.train.rows == split.train.rows).all()
        assert twin.notes == split.notes
    with pytest.raises(ConfigError, match="train, valid or test"):
        split.part("val")


def test_values_of_a_column():
    given = table(list("abcdef"), part=["Train", "VALIDATION", "Test", "training", "", "val"])
    split = split_from_column(given, "part")
    assert part_of(split).tolist() == [0, 1, 2, 0, -1, 1]
    assert [(each.row, each.reason) for each in split.dropped] == [(4, "no part in column 'part'")]
    with pytest.raises(DataError, match="got 'fold1', 'holdout'"):
        split_from_column(table(list("abc"), part=["train", "fold1", "holdout"]), "part")
    with pytest.raises(ConfigError, match="Did you mean 'part'"):
        split_from_column(given, "prt")
    with pytest.raises(ConfigError, match="on_leak"):
        split_from_column(given, "part", on_leak="ignore")


def test_constant_images_are_exempt_and_listed():
    given = table(list("abcd"), images=[0, 0, 1, 2], part=["train", "valid", "test", "train"])
    split = split_from_column(given, "part")
    assert any("2 constant images are alike and were not compared: array 0, array 1" in note for note in split.notes)


def test_leaving_out_a_site():
    sites = ["a", "a", "b", "b", "c", "c", "a", "a"]
    given = table(list("opqrstuv"), site=sites)
    split = leave_out(given, "site", ["b"], valid=0.3)
    assert split.test.rows.tolist() == [2, 3]
    check_disjoint(split)
    assert len(split.valid)
    with pytest.raises(DataError, match=r"has no 'd'.*It has 'a', 'b', 'c'"):
        leave_out(given, "site", ["d"])
    shared = table(list("opqoopqr"), site=sites)
    with pytest.raises(DataError, match="leaving out b of column 'site' puts into more than one part 2 patients"):
        leave_out(shared, "site", ["b"])
    dropped = leave_out(shared, "site", ["b"], on_leak="drop-train", valid=0.4)
    check_disjoint(dropped)
    assert dropped.test.rows.tolist() == [2, 3]
    with pytest.raises(ConfigError, match="none are left"):
        leave_out(given, "site", ["a", "b", "c"])


def test_folds_keep_the_test_rows():
    given = table([f"p{i}" for i in range(20)])
    made = folds(given, 4, test=[3, 4])
    assert all(split.test.rows.tolist() == [3, 4] for split in made)
    for split in made:
        check_disjoint(split)
    with pytest.raises(ConfigError, match="int >= 2"):
        folds(given, 1)
    with pytest.raises(ConfigError, match="at least 19 patients"):
        folds(given, 19, test=[3, 4])
    with pytest.raises(ConfigError, match="from 0 to 19"):
        folds(given, 2, test=[20])


def test_summary_and_notes():
    split = choose_split(table([f"p{i}" for i in range(40)], labels=[1] + [0] * 39), draws=100)
    assert split.counts()["rows"] == (28, 6, 6)
    assert split.summary().splitlines()[0].split() == ["train", "valid", "test"]
    assert sum("has no positive row in" in note for note in split.notes) >= 1
    assert any("encoded again" in note and "pretrained" in note for note in split.notes)
    assert any(note.startswith("largest relative deviation") for note in split.notes)


def test_the_leaking_column_of_real_data_is_refused(data):
    labels = ["Atelectasis", "Cardiomegaly", "Edema", "Effusion", "Infiltration"]
    given = Table.from_csv(data / "chestxray14_64px" / "labels.csv", label=labels, patient="patient_id")
    with pytest.raises(
        DataError, match=r"column 'split' puts into more than one part 30 patients \(309 rows\)"
    ) as caught:
        split_from_column(given, "split")
    assert "e5b861a6 (21 of train, 20 of valid)" in str(caught.value)
    assert "and 20 more" in str(caught.value)
    split = split_from_column(given, "patient_split")
    assert split.counts()["rows"] == (657, 166, 177)
    assert split.counts()["patients"] == (163, 52, 49)


@pytest.mark.slow  # 5 s: decodes 5,638 images
def test_the_given_split_of_pneumonia_cxr_drops_320_rows(data):
    given = Table.from_csv(data / "pneumonia_cxr" / "labels.csv", label="label_pneumonia", patient="patient_key")
    with pytest.raises(DataError, match=r"109 patients.*drops 213 of test.*drops 320 of train"):
        split_from_column(given, "split")
    split = split_from_column(given, "split", on_leak="drop-train", valid=0.15)
    assert len(split.dropped) == 320
    assert len(split.test) == 422
    assert len(split.train) + len(split.valid) == 5216 - 320


def test_held_out_values_that_name_patients_are_counted():
    given = table(
        [f"p{i}" for i in range(12)], labels=[0, 1] * 6, who=[f"N{i}" for i in range(12)], site=list("AB") * 6
    )
    assert "test is 2 values of column 'who'" in leave_out(given, "who", ["N3", "N4"], draws=50).how
    assert "test is B of column 'site'" in leave_out(given, "site", ["B"], draws=50).how
