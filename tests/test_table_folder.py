"""Tables from trees with a folder per class, as published sets are unpacked."""

from __future__ import annotations

import os

import numpy as np
import pytest
from make_images import write_dicom, write_png, write_series

from medzoo import Table
from medzoo.errors import ConfigError, DataError

PNG = b"\x89PNG\r\n\x1a\n, which is not read further"


def tree(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)
    return root


def test_a_folder_per_class(tmp_path):
    root = tree(tmp_path, "PNEUMONIA/p 1.JPEG", "PNEUMONIA/more/p2.jpeg", "NORMAL/n1.png", "NORMAL/n2.png")
    table = Table.from_folder(root)
    assert table.ids.tolist() == ["NORMAL/n1.png", "NORMAL/n2.png", "PNEUMONIA/more/p2.jpeg", "PNEUMONIA/p 1.JPEG"]
    assert (table.targets[:, 0].tolist(), table.labels) == ([0, 0, 1, 1], ("PNEUMONIA",))
    assert dict(table.groups) == {}
    assert table.image(3) == root / "PNEUMONIA" / "p 1.JPEG"
    assert table.notes == ("the positive class is 'PNEUMONIA', the negative one 'NORMAL'",)


def test_what_is_no_image_is_left_out(tmp_path):
    root = tree(tmp_path, "a/1.png", "b/2.png", "a/._1.png", "a/.DS_Store", "__MACOSX/a/._1.png", ".git/x.png")
    (root / "a" / "Thumbs.db").write_bytes(b"other bytes")
    (root / "README.txt").write_bytes(b"about")
    table = Table.from_folder(root, positive="b")
    assert table.ids.tolist() == ["a/1.png", "b/2.png"]
    assert "2 files left out: hidden" in table.notes
    assert "1 files left out: not an image file" in table.notes


@pytest.mark.parametrize("top", ["", "chest_xray/", "chest_xray/chest_xray/"])
def test_given_parts(tmp_path, top):
    names = [f"{top}{part}/{kind}/{part}{kind}.png" for part in ("train", "VAL", "Testing") for kind in "AB"]
    table = Table.from_folder(tree(tmp_path, *names), positive="B")
    assert table.groups["split"].tolist() == ["train", "train", "valid", "valid", "test", "test"]
    assert table.targets[:, 0].tolist() == [0, 1] * 3
    assert table.ids[0] == f"{top}train/A/trainA.png"


def test_the_copy_of_a_tree_in_itself_is_left_out(tmp_path):
    root = tmp_path / "chest_xray"
    names = [f"{part}/{kind}/1.png" for part in ("train", "test") for kind in ("A", "B")]
    tree(root, *names, *(f"chest_xray/{name}" for name in names), "__MACOSX/train/A/._1.png")
    table = Table.from_folder(root, positive="B")
    assert len(table) == 4
    assert table.notes[0] == "left out chest_xray, a folder with the name of the one it is in"
    assert len(Table.from_folder(root / "chest_xray", positive="B")) == 4


def test_patients_from_the_path(tmp_path):
    root = tree(tmp_path, "A/person01_bacteria_1.png", "B/person1_virus_1.png", "B/person1_virus_2.png")
    table = Table.from_folder(root, patient=r"(person\d+)_", positive="B")
    assert table.patients.tolist() == ["person01", "person1", "person1"]
    assert list(table.groups) == []
    named = Table.from_folder(root, patient=lambda path: path.parent.name, positive="B")
    assert named.patients.tolist() == ["A", "B", "B"]
    with pytest.raises(
        DataError, match=r"1 images whose path gives no patient: image 0 \('A/person01_bact.*Correct pat"
    ):
        Table.from_folder(root, patient=r"(person[1-9]\d*)_", positive="B")


@pytest.mark.parametrize("pattern", ["person", "(a)(b)", "("])
def test_a_pattern_of_other_than_one_group(tmp_path, pattern):
    with pytest.raises(ConfigError, match="expected a regular expression"):
        Table.from_folder(tree(tmp_path, "A/1.png", "B/1.png"), patient=pattern)


def test_series_and_images_of_a_class(tmp_path):
    for kind in ("A", "B"):
        write_series(tmp_path / kind / "case", np.zeros((3, 4, 4), np.uint16))
    write_png(tmp_path / "B" / "x.png", np.zeros((4, 4), np.uint8))
    table = Table.from_folder(tmp_path, positive="B")
    assert table.ids.tolist() == ["A/case/IM0001 and 2 more", "B/case/IM0001 and 2 more", "B/x.png"]
    assert table.image(0) == tuple(tmp_path / "A" / "case" / f"IM000{i}" for i in (1, 2, 3))


def test_folders_whose_names_do_not_say_which_is_positive(tmp_path):
    root = tree(tmp_path, "A/1.png", "B/1.png")
    with pytest.raises(DataError, match=r"which of the classes 'A' and 'B' is the positive one .* positive='A' or "):
        Table.from_folder(root)
    assert Table.from_folder(root, positive="A").labels == ("A",)
    assert Table.from_folder(tree(tmp_path / "x", "Edema/1.png", "No Edema/1.png")).labels == ("Edema",)


def test_several_classes_and_names(tmp_path):
    root = tree(tmp_path, "normal/1.png", "cyst/1.png", "mass/1.png")
    assert Table.from_folder(root).labels == ("normal", "cyst", "mass")
    assert Table.from_folder(root, names=["mass", "cyst", "normal"]).targets[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        (["1.png", "A/2.png", "B/3.png"], "expected images in folders of their class, found 1 beside them: 1.png"),
        (["1.png", "2.png"], "expected a folder per class, found no folder. .*Table.from_csv"),
        (["train/A/1.png", "train/B/2.png", "other/3.png"], "found both: the parts train and other"),
        (["val/A/1.png", "valid/A/2.png"], "expected one folder of each part, found valid, val"),
        (["train/1.png", "test/2.png"], "expected images in folders of their class, found 1 beside them"),
        (["A/1.png", "A/2.png"], "expected labels of 2 classes or more, found 'A'"),
        (["A/1.png", "B/notes"], None),
    ],
)
def test_other_layouts(tmp_path, names, cause):
    tree(tmp_path, *names)
    if cause is None:
        (tmp_path / "B" / "notes").write_bytes(b"other bytes")
        cause = "B: a class without images"
    with pytest.raises(DataError, match=cause):
        Table.from_folder(tmp_path)


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(DataError, match="found a file"):
        Table.from_folder(tree(tmp_path, "A/1.png") / "A" / "1.png")


def test_faults_of_files(tmp_path):
    root = tree(tmp_path, "A/1.png", "B/2.png", "B/3.png")
    (root / "B" / "2.png").write_bytes(b"")
    (root / "A" / os.fsdecode(b"\xff.png")).write_bytes(PNG)
    with pytest.raises(DataError) as error:
        Table.from_folder(root)
    assert "1 empty files (0 bytes): image 2 ('B/2.png')" in str(error.value)
    assert "1 names that are not UTF-8: image 1" in str(error.value)


def test_links_to_the_same_file_are_duplicates(tmp_path):
    root = tree(tmp_path, "A/1.png", "B/2.png")
    (root / "B" / "3.png").symlink_to(root / "A" / "1.png")
    with pytest.raises(DataError, match="1 rows with the image of another row and other labels"):
        Table.from_folder(root)


def test_a_multi_frame_file_of_several_stacks_is_a_fault(tmp_path, monkeypatch):
    from medzoo.data import table_folder
    from medzoo.io.folder import ScanItem

    root = tree(tmp_path, "A/1.png", "B/2.png")
    found = {k: [ScanItem((root / k / f"{i}.png",), "image", "", f"{i}.png", stack=0)] for k, i in (("A", 1), ("B", 2))}
    monkeypatch.setattr(table_folder, "scan", lambda folder: found[folder.name])
    with pytest.raises(DataError, match="2 files with several stacks"):
        Table.from_folder(root)


def test_the_real_kermany_tree(data):
    table = Table.from_folder(data / "pneumonia_cxr", patient=r"(IM-\d+|person\d+)")
    assert (len(table), table.labels) == (5638, ("PNEUMONIA",))
    assert np.unique(table.groups["split"], return_counts=True)[1].tolist() == [422, 5216]
    assert table.groups["split"][0] == "train"


def test_dicom_radiographs_of_a_class(tmp_path):
    for kind in "AB":
        (tmp_path / kind).mkdir()
        for i in range(2):
            write_dicom(tmp_path / kind / f"{i}.dcm", np.zeros((4, 4), np.uint16))
    assert len(Table.from_folder(tmp_path, positive="B")) == 4
