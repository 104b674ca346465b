"""Tables of images in memory: arrays, and NPZ files as MedMNIST publishes them."""

from __future__ import annotations

import numpy as np
import pytest

from medzoo import Table
from medzoo.errors import DataError


def npz(folder, **arrays):
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


def grey(n, *shape, start=0):
    return (np.arange(n * int(np.prod(shape))).reshape(n, *shape) + start).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "expected"), [((5, 6), (1, 5, 6)), ((3, 5, 6), (3, 5, 6)), ((1, 4, 5, 6), (1, 4, 5, 6))]
)
def test_arrays(shape, expected):
    table = Table.from_arrays(grey(2, *shape), [0, 1])
    assert table.image(1).shape == expected
    assert table.ids.tolist() == ["array 0", "array 1"]
    assert np.shares_memory(table.arrays, Table.from_arrays(table.arrays, [0, 1]).arrays)


def test_arrays_with_patients_and_groups():
    table = Table.from_arrays(
        grey(3, 4, 4), [0, 1, 0], patients=["007", 7, " 7 "], groups={"age": [60, None, 70]}, ids=["a", "b", "c"]
    )
    assert table.patients.tolist() == ["007", "7", "7"]
    assert table.groups["age"].tolist() == ["60", "", "70"]
    assert table.select([2]).ids.tolist() == ["c"]


@pytest.mark.parametrize(
    ("images", "options", "cause"),
    [
        (grey(3, 4, 4), {"labels": [0, 1]}, "expected one value for each of 3 images, got 2 labels"),
        (grey(2, 4, 4), {"patients": ["1"], "groups": {"g": []}}, "got 1 patients, 0 g"),
        (grey(2, 4, 4), {"patients": ["1", None]}, "1 rows without a patient: row 1"),
        (grey(2, 4, 4), {"patients": [float("nan"), "2"]}, "1 rows without a patient: row 0"),
        (grey(2, 4, 4), {"ids": ["a", "a"]}, r"1 ids that another row has: row 1 \(the id of row 0\)"),
        (grey(2, 4, 4), {"labels": [[0, 1], [1]]}, "got rows of several lengths"),
        (grey(2, 4, 4), {"labels": np.zeros((2, 1, 1))}, r"expected labels n or n l, got shape \(2, 1, 1\)"),
        ([np.zeros((4, 4)), np.zeros((5, 4))], {}, "expected images of one shape, got several"),
        (np.zeros((2, 4, 4), complex), {}, "expected images of real numbers, got complex128"),
        (np.array([[["a"]], [["b"]]]), {}, "expected images of real numbers, got <U1"),
        (grey(2, 4), {}, r"got shape \(2, 4\)"),
        (grey(0, 4, 4), {"labels": []}, r"got shape \(0, 4, 4\)"),
        (grey(2, 20, 20, 3), {}, r"20 channels. Give the channels their axis: np.moveaxis\(images, -1, 1\)"),
        (grey(2, 20, 20, 20), {}, r"20 channels. Give the channels their axis: images\[:, None\]"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(images, options, cause):
    with pytest.raises(DataError, match=cause):
        Table.from_arrays(images, options.pop("labels", [0, 1]), **options)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 6), (1, 5, 6)), ((5, 6, 3), (3, 5, 6)), ((5, 6, 1), (1, 5, 6)), ((3, 5, 6), (3, 5, 6)),
        ((7, 5, 6), (1, 7, 5, 6)), ((7, 5, 6, 3), (3, 7, 5, 6)), ((1, 7, 5, 6), (1, 7, 5, 6)),
    ],
)  # fmt: skip
def test_medmnist(tmp_path, shape, expected):
    train, val = grey(3, *shape), grey(2, *shape, start=9)
    label = np.array([[0], [1], [1]], np.uint8)
    table = Table.from_npz(npz(tmp_path, val_images=val, val_labels=label[:2], train_images=train, train_labels=label))
    assert table.arrays.shape == (5, *expected)
    assert table.ids.tolist() == [f"set.npz:{n}" for n in ("train:0", "train:1", "train:2", "valid:0", "valid:1")]
    assert table.groups["split"].tolist() == ["train"] * 3 + ["valid"] * 2
    assert (table.targets[:, 0].tolist(), table.task) == ([0, 1, 1, 0, 1], "binary")
    at = train if expected[0] == 1 or shape[0] == expected[0] else np.moveaxis(train, -1, 1)
    np.testing.assert_array_equal(table.image(1), at[1].reshape(expected))
    assert "the file has no patients" in table.notes[-1]


def test_medmnist_labels(tmp_path):
    x = grey(4, 5, 6)
    classes = Table.from_npz(npz(tmp_path, images=x, labels=np.array([[0], [2], [1], [2]])), names=["a", "b", "c"])
    assert (classes.task, classes.labels, classes.targets[1].tolist()) == ("multiclass", ("a", "b", "c"), [0, 0, 1])
    assert list(classes.groups) == []
    several = Table.from_npz(npz(tmp_path, images=x, labels=np.eye(4, 3, dtype=np.uint8)))
    assert (several.task, several.labels) == ("multilabel", ("label_0", "label_1", "label_2"))


def test_other_arrays_are_groups_or_patients(tmp_path):
    arrays = {"images": grey(2, 5, 6), "labels": np.array([0, 1])}
    path = npz(tmp_path, **arrays, patients=np.array([7, 8]), names=np.array(["a", "b"]), mean=np.zeros(3))
    table = Table.from_npz(path, patient="patients")
    assert table.patients.tolist() == ["7", "8"]
    assert list(table.groups) == ["names"]
    assert all("no patients" not in note for note in table.notes)
    with pytest.raises(DataError, match=r"expected the column 'patient' \(patient=\).*Did you mean 'patients'"):
        Table.from_npz(path, patient="patient")


@pytest.mark.parametrize(
    ("arrays", "cause"),
    [
        ({"x": grey(2, 4, 4)}, "expected the arrays train_images, train_labels .*found x"),
        ({"train_images": grey(2, 4, 4), "train_label": [0, 1]}, "Did you mean 'train_label'"),
        ({"images": grey(2, 4, 4), "labels": [0, 1, 1]}, r"as many labels as images, found shapes \(3,\) and"),
        ({"images": grey(2, 4), "labels": [0, 1]}, r"found shapes \(2,\) and \(2, 4\)"),
        (
            {"train_images": grey(2, 4, 4), "train_labels": [0, 1], "val_images": grey(2, 5, 5), "val_labels": [0, 1]},
            r"expected images of one shape and type in every part, found train \(1, 4, 4\) uint8, valid \(1, 5, 5\)",
        ),
        (
            {"train_images": grey(2, 4, 4), "train_labels": [0, 1], "val_images": grey(2, 4, 4),
             "val_labels": np.zeros((2, 2), int)}, "expected labels of one shape",
        ),
        ({"images": grey(2, 4, 4), "labels": [0, -1]}, "1 labels that are -1"),
    ],
)  # fmt: skip
def test_npz_files_that_do_not_fit(tmp_path, arrays, cause):
    with pytest.raises(DataError, match=cause):
        Table.from_npz(npz(tmp_path, **arrays))


class Canary:
    def __reduce__(self):
        raise AssertionError("pickled")


def test_pickled_objects_are_refused(tmp_path):
    arrays = {"images": grey(2, 4, 4), "labels": np.array(["a", None], object)}
    np.savez(tmp_path / "set.npz", allow_pickle=True, **arrays)
    with pytest.raises(DataError, match="found Python objects, which are never loaded because reading them can run"):
        Table.from_npz(tmp_path / "set.npz")


def test_other_files(tmp_path):
    path = npz(tmp_path, images=grey(20, 40, 40), labels=np.arange(20) % 2)
    whole = path.read_bytes()
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="found another file, or one cut short"):
        Table.from_npz(cut)
    cut.write_bytes(whole[:5000] + b"\0\0\0\0" + whole[5004:])
    with pytest.raises(DataError, match="expected an NPZ file, found bytes that cannot be read"):
        Table.from_npz(cut)
    np.save(tmp_path / "one.npy", grey(2, 4, 4))
    with pytest.raises(DataError, match=r"found a single array \(.npy\)"):
        Table.from_npz(tmp_path / "one.npy")
    with pytest.raises(DataError, match="found a folder"):
        Table.from_npz(tmp_path)
    with pytest.raises(DataError, match="found nothing there"):
        Table.from_npz(tmp_path / "none.npz")


def test_real_npz_files(data):
    table = Table.from_npz(data / "luna16_2d" / "luna16_candidates_2d_train_val.npz")
    assert (len(table), table.image(0).shape, int(table.targets.sum())) == (3842, (1, 50, 50), 1069)
    assert sorted(table.groups) == ["names", "split"]


@pytest.mark.slow
def test_the_real_adrenal_set(data):
    """Takes 6 s, to inflate 337 MB."""
    table = Table.from_npz(data / "adrenal_ct_3d" / "adrenalmnist3d_64_train_val.npz")
    assert (len(table), table.image(0).shape, int(table.targets.sum())) == (1286, (1, 64, 64, 64), 281)
    assert np.unique(table.groups["split"], return_counts=True)[1].tolist() == [1188, 98]
