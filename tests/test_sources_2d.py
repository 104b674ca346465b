"""The published 2D sets in exactly their layouts: what the table holds, and every trap in the files."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter

import numpy as np
import pytest
from make_images import write_dicom
from published_2d import (
    KERMANY,
    nih_patient,
    picture,
    rsna_id,
    write_kermany,
    write_mapping,
    write_medmnist,
    write_nih,
    write_rsna,
    write_rsna_image,
    write_small,
)  # fmt: skip

import medzoo
from medzoo import Table
from medzoo.cli.tables import cli_message
from medzoo.data.sources.catalogue import SOURCES
from medzoo.data.sources.chestxray14 import FINDINGS
from medzoo.data.sources.medmnist import LABELS
from medzoo.data.sources.rsna_mapping import read_mapping
from medzoo.data.split import choose_split, split_from_column
from medzoo.errors import ConfigError, DataError
from medzoo.models.findings import CHESTXRAY14

MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"


def replaced(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def test_each_set_says_what_it_is_and_where_to_get_it():
    for name, about in SOURCES.items():
        assert about.title, name
        assert "https://" in about.get
        assert about.licence
        assert about.citation
        assert about.layout


# ChestX-ray14


@pytest.fixture(scope="module")
def nih(tmp_path_factory):
    return write_nih(tmp_path_factory.mktemp("nih") / "CXR8")


def test_the_complete_set_of_the_nih(nih):
    table = Table.from_source("chestxray14", nih)
    with (nih / "Data_Entry_2017.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    assert (len(table), table.labels, table.task) == (40, FINDINGS, "multilabel")
    assert table.labels == CHESTXRAY14  # the order of the model, so that its outputs are those of the table
    for row, cells in enumerate(rows):
        wanted = [float(name in cells[1].split("|")) for name in FINDINGS]
        assert table.targets[row].tolist() == wanted
        assert (str(table.ids[row]), table.patients[row], table.groups["sex"][row]) == (cells[0], cells[3], cells[5])
        assert (table.groups["view"][row], table.groups["follow_up"][row]) == (cells[6], cells[2])
        assert table.image(row).name == cells[0]
        assert table.image(row).parts[-3:-1] in {("images_001", "images"), ("images_002", "images")}
        assert table.lines[row] == row + 2
    assert dict(Counter(table.groups["split"].tolist())) == {"train": 30, "test": 10}


def test_ages_of_the_older_file(nih):
    table = Table.from_source("chestxray14", nih)
    of_age = {0: "58", 1: "", 2: "0", 3: "57"}  # 058Y, 414, 11M and 57
    assert all(age == of_age[int(p) % 4] for p, age in zip(table.patients, table.groups["age"], strict=True))
    assert "10 ages that cannot be right left blank, such as over 130 years" in table.notes


def test_the_later_file_is_taken_where_both_are(tmp_path):
    root = write_nih(tmp_path / "a", 4, older=True)
    write_nih(root, 4, older=False)
    table = Table.from_source("chestxray14", root)
    assert table.source.endswith("Data_Entry_2017_v2020.csv")
    assert set(table.groups["age"]) == {"57"}
    assert set(table.groups["sex"]) == {"M"}  # its column is Patient Sex


@pytest.mark.parametrize("folders", [("images",), (".",), ("images_001",), ("images_001/images", "images")])
def test_where_the_images_may_be(tmp_path, folders):
    table = Table.from_source("chestxray14", write_nih(tmp_path, 4, older=False, lists=False, folders=folders))
    assert len(table) == 8
    assert all(table.image(row).is_file() for row in range(8))
    assert "split" not in table.groups


def test_the_folder_above_is_taken_too(tmp_path):
    write_nih(tmp_path / "archive", 4)
    (tmp_path / "__MACOSX").mkdir()
    assert len(Table.from_source("chestxray14", tmp_path)) == 8


def test_a_transparent_image_of_the_set_is_read(nih):
    table = Table.from_source("chestxray14", nih)
    row = table.ids.tolist().index("00000002_000.png")
    image = medzoo.read(table.image(row))
    grey = image.array.reshape(-1, *picture(4, False).shape)[0]
    assert np.array_equal(np.rint(grey * (255 if grey.max() <= 1 else 1)), picture(4, False))


def test_the_official_lists_divide_patients_and_validation_is_drawn(nih):
    table = Table.from_source("chestxray14", nih)
    split = split_from_column(table, "split", valid=0.2)
    counts = split.counts()
    assert (sum(counts["rows"][:2]), counts["rows"][2], counts["patients"][1]) == (30, 10, 3)


def test_missing_images_are_refused_or_left_out(tmp_path):
    root = write_nih(tmp_path, 8)
    shutil.rmtree(root / "images_002")
    with pytest.raises(
        DataError, match=r"8 rows whose image is missing: line 2 \('00000001_000.png'\), .*missing='drop'"
    ):
        Table.from_source("chestxray14", root)
    table = Table.from_source("chestxray14", root, missing="drop")
    assert set(table.patients) == {"2", "4", "6", "8"}
    assert table.labels == FINDINGS  # findings that none of them has stay outputs
    assert table.lines.tolist() == [4, 5, 8, 9, 12, 13, 16, 17]
    assert "8 of 16 rows left out, whose image is missing" in table.notes
    shutil.rmtree(root / "images_001")
    with pytest.raises(DataError, match=r"expected the 16 images of .*found none of them among 0. Unpack the images"):
        Table.from_source("chestxray14", root, missing="drop")


def test_chosen_findings(nih):
    table = Table.from_source("chestxray14", nih, findings=["Effusion", "Cardiomegaly"])
    assert (table.labels, table.task) == (("Effusion", "Cardiomegaly"), "multilabel")
    one = Table.from_source("chestxray14", nih, findings=["Effusion"])
    assert (one.labels, one.task, int(one.targets.sum())) == (("Effusion",), "binary", 6)
    assert any(note.startswith("findings left out: Atelectasis, ") for note in one.notes)
    for wrong, message in ((["Efusion"], "Did you mean 'Effusion'?"), (["Edema", "Edema"], "each once"), ([], "none")):
        with pytest.raises(ConfigError, match=message):
            Table.from_source("chestxray14", nih, findings=wrong)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("No Finding", "Efusion", r"1 rows with an unknown finding: line 2 \('Efusion'\).*Did you mean 'Effusion'"),
        ("No Finding", "No Finding|Edema", "1 rows with 'No Finding' and findings: line 2"),
        ("No Finding", "", r"1 rows with an unknown finding: line 2 \(''\)"),
        ("Finding Labels", "Finding Label", r"column 'Finding Labels', found .*Did you mean 'Finding Label'"),
        ("00000002_000.png,No Finding,0,2", "00000002_000.png,No Finding,0,3", "Patient ID is not the one .*line 4"),
        ("00000002_000.png,No Finding,0,2", "00000002_000.png,No Finding,0,", "1 rows without a patient: line 4"),
        ("00000002_001.png,No Finding,1,2", "00000002_000.png,No Finding,1,2", "line 5 .the image of line 4"),
    ],
)
def test_faults_of_the_csv_file_by_line(tmp_path, old, new, message):
    root = write_nih(tmp_path, 4)
    replaced(root / "Data_Entry_2017.csv", old, new)
    with pytest.raises(DataError, match=message):
        Table.from_source("chestxray14", root)


def test_all_faults_at_once(tmp_path):
    root = write_nih(tmp_path, 4)
    replaced(root / "Data_Entry_2017.csv", "No Finding", "Efusion")
    (root / "images_001/images/00000004_000.png").unlink()
    with pytest.raises(DataError, match=r"found 2 faults:\n- .*unknown finding.*\n- .*whose image is missing: line 8"):
        Table.from_source("chestxray14", root)


def test_faults_of_the_official_lists(tmp_path):
    root = write_nih(tmp_path, 4)
    with (root / "test_list.txt").open("a") as file:
        file.write("\n00000001_000.png\n")
    with pytest.raises(DataError, match=r"1 images are in both train_val_list.txt and test_list.txt: '00000001_000"):
        Table.from_source("chestxray14", root)
    (root / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"found train_val_list.txt alone. Download the other list too"):
        Table.from_source("chestxray14", root)


def test_an_image_in_neither_list_is_in_no_part(tmp_path):
    root = write_nih(tmp_path, 4)
    replaced(root / "train_val_list.txt", "00000001_000.png\n", "")
    table = Table.from_source("chestxray14", root)
    assert table.groups["split"][0] == ""
    assert "1 images are in neither official list, and so in no part" in table.notes


def test_the_small_copy_of_the_course(tmp_path):
    root = write_small(tmp_path / "nih")
    table = Table.from_source("chestxray14", root)
    assert table.labels == FINDINGS
    assert dict(Counter(table.groups["split"].tolist())) == {"train": 24, "valid": 10, "test": 8}
    for row in range(len(table)):
        patient = int(table.ids[row][:8])
        assert table.patients[row] == str(patient)  # PatientId stands between the findings
        positive = {name for name, value in zip(table.labels, table.targets[row], strict=True) if value == 1}
        assert positive == ({"Effusion", "Pneumonia"} if patient % 3 == 0 else set())
    with pytest.raises(DataError, match=r"2 patients \(4 rows\).*on_leak='drop-valid' drops 2 of valid"):
        split_from_column(table, "split")
    split = split_from_column(table, "split", on_leak="drop-valid")
    assert split.counts()["rows"] == (24, 8, 8)


def test_faults_of_each_file_of_the_small_copy(tmp_path):
    root = write_small(tmp_path)
    replaced(root / "train-small.csv", "00000001_000.png,0,", "00000001_000.png,2,")
    replaced(root / "test.csv", "00000033_002.png", "00000033_009.png")
    with pytest.raises(DataError) as error:
        Table.from_source("chestxray14", root)
    for text in ("train-small.csv", "labels that are not 0 or 1", "test.csv", "whose image is missing: line 2"):
        assert text in str(error.value)
    replaced(root / "train-small.csv", "00000001_000.png,2,", "00000001_000.png,0,")
    table = Table.from_source("chestxray14", root, missing="drop")
    assert len(table) == 41
    assert "test.csv: 1 of 8 rows left out, whose image is missing" in table.notes
    root = write_small(tmp_path / "again")
    shutil.copy(root / "train-small.csv", root / "valid-small.csv")
    with pytest.raises(DataError, match="expected each image in one file, found 24 in several"):
        Table.from_source("chestxray14", root)


def test_other_folders_are_no_chestxray14(tmp_path):
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(
        DataError, match=r"expected Data_Entry_2017_v2020.csv or .*, found other.txt. The set is: Data_"
    ):
        Table.from_source("chestxray14", tmp_path)
    write_small(tmp_path / "both", 0)
    write_nih(tmp_path / "both", 4)
    with pytest.raises(DataError, match=r"expected one of two layouts, found Data_Entry_2017.csv and train-small.csv"):
        Table.from_source("chestxray14", tmp_path / "both")
    write_nih(tmp_path / "more", 4)
    with pytest.raises(DataError, match="found both, more in several folders"):
        Table.from_source("chestxray14", tmp_path)
    with pytest.raises(DataError, match=r"expected the folder of the set, found a file. Unpack it"):
        Table.from_source("chestxray14", tmp_path / "other.txt")


# RSNA


@pytest.fixture(scope="module")
def rsna(tmp_path_factory):
    return write_rsna(tmp_path_factory.mktemp("rsna") / "data", mapping=True)


def test_several_boxes_are_one_image(rsna):
    table = Table.from_source("rsna", rsna)
    assert (len(table), table.labels, table.task) == (36, ("Lung Opacity",), "binary")
    assert table.ids.tolist() == [f"{rsna_id(i)}.dcm" for i in range(36)]
    assert table.targets[:, 0].tolist() == [float(i % 3 == 0) for i in range(36)]
    with (rsna / "stage_2_train_labels.csv").open() as file:
        first = {}
        for line, row in enumerate(csv.DictReader(file), 2):
            first.setdefault(row["patientId"], line)
    assert table.lines.tolist() == list(first.values())
    assert f"{line - 1} rows, one for each box, are 36 images" in table.notes
    assert line - 1 > 36


def test_groups_of_the_header_and_of_the_classes(rsna):
    table = Table.from_source("rsna", rsna)
    assert table.groups["view"].tolist() == ["AP" if i % 3 == 0 else "PA" for i in range(36)]
    assert table.groups["sex"].tolist() == ["M" if i % 2 else "F" for i in range(36)]
    assert table.groups["age"].tolist() == ["" if i == 5 else str(20 + i) for i in range(36)]  # 151 years
    assert Counter(table.groups["class"].tolist())["Lung Opacity"] == 12


def test_only_headers_are_read(tmp_path, monkeypatch):
    import pydicom

    root = write_rsna(tmp_path, 4, mapping=True)
    read = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: read(*a, **k) if k["stop_before_pixels"] else 1 / 0)
    for file in (root / "stage_2_train_images").iterdir():  # the end of each file, its pixels, is cut off
        file.write_bytes(file.read_bytes()[:-64])
    assert len(Table.from_source("rsna", root)) == 4


def test_the_patient_is_that_of_the_mapping(rsna, tmp_path):
    table = Table.from_source("rsna", rsna)
    assert table.patients.tolist() == [str(nih_patient(i)) for i in range(36)]  # not that of the header, the image's id
    split = choose_split(table, draws=200)
    parts = split.part_of_rows()
    assert all(parts[i] == parts[i + 1] for i in range(0, 36, 2))
    assert f"patients by {MAPPING}" in table.notes
    other = write_mapping(tmp_path / "m.json", range(40))
    assert Table.from_source("rsna", rsna, mapping=other).patients.tolist() == table.patients.tolist()


def test_without_a_mapping_no_patient_is_known(tmp_path):
    table = Table.from_source("rsna", write_rsna(tmp_path, 12, classes=False))
    assert table.patients is None
    how = "get who the images are of with medzoo fetch data:rsna-mapping --to FILE and give mapping=FILE"
    assert f"the patients are not known: {how}" in table.notes
    assert "class" not in table.groups
    with pytest.raises(DataError, match="the patients are not known") as caught:
        choose_split(table)
    assert f"G{how[1:]}, or state that there are none: patient_groups=False." in str(caught.value)
    typed = cli_message(caught.value, "train")
    assert "and give --mapping FILE, or state that there are none: --no-patient-groups." in typed
    assert len(choose_split(table, patient_groups=False, draws=200).train) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda records: records[1:],
            r"1 images that are not in m.json: line 2. Whether such an image is of a patient",
        ),
        (lambda records: {"images": records}, r"expected a list of records in JSON, got a dict"),
        (lambda records: [*records, {"img_id": "00000001_000.png"}], r"record 12 has none"),
        (lambda records: [*records, records[0] | {"img_id": "1.png"}], r"record 12 has none"),
        (lambda records: [*records, records[0] | {"img_id": "00000009_000.png"}], r"record 12 gives an image another"),
        (lambda records: [*records, 7], r"record 12 has none"),
    ],
)
def test_faults_of_the_mapping(tmp_path, change, message):
    root = write_rsna(tmp_path / "rsna", 12)
    path = write_mapping(tmp_path / "m.json", range(12))
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=message) as error:
        Table.from_source("rsna", root, mapping=path)
    assert "00000009" not in str(error.value)


def test_a_mapping_that_is_no_json(tmp_path):
    root = write_rsna(tmp_path / "rsna", 4)
    for text in ('[{"subset_img_id":', "[" * 100_000, "<html>"):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(DataError, match="expected a list of records in JSON, got another file"):
            Table.from_source("rsna", root, mapping=tmp_path / "m.json")
    with pytest.raises(DataError, match="found nothing there"):
        Table.from_source("rsna", root, mapping=tmp_path / "none.json")
    with pytest.raises(DataError, match="expected the mapping as a JSON file, found a folder"):
        Table.from_source("rsna", root, mapping=tmp_path)
    (tmp_path / "m.json").write_text("")
    with pytest.raises(DataError, match=r"m\.json: expected the mapping as a JSON file, found an empty file"):
        Table.from_source("rsna", root, mapping=tmp_path / "m.json")
    (root / MAPPING).symlink_to("/dev/zero")
    with pytest.raises(DataError, match="expected the mapping as a JSON file, found a pipe or device"):
        Table.from_source("rsna", root)
    (root / MAPPING).unlink()
    (root / MAPPING).symlink_to(tmp_path / "gone.json")
    with pytest.raises(DataError, match="expected the mapping as a JSON file, found nothing there"):
        Table.from_source("rsna", root)


def test_a_mapping_with_any_number_of_digits(tmp_path):
    digits = "9" * 5000
    assert read_mapping(f'[{{"subset_img_id": "a", "img_id": "0{digits}_000.png"}}]'.encode(), "m") == {"a": digits}
    assert read_mapping(b'[{"subset_img_id": "a", "img_id": "00000000_000.png"}]', "m") == {"a": "0"}
    with pytest.raises(DataError, match="record 0 has none"):
        read_mapping('[{"subset_img_id": "a", "img_id": "\u0663_000.png"}]'.encode(), "m")


def test_a_mapping_other_than_the_recorded_one_is_noted(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "home"))
    root = write_rsna(tmp_path / "rsna", 4, mapping=True)
    assert "is another file" not in " ".join(Table.from_source("rsna", root).notes)
    digest = f"sha256:{hashlib.sha256((root / MAPPING).read_bytes()).hexdigest()}"
    (tmp_path / "home" / "recorded").mkdir(parents=True)
    (tmp_path / "home" / "recorded" / "rsna-mapping.json").write_text(json.dumps({"digest": digest}))
    assert "is another file" not in " ".join(Table.from_source("rsna", root).notes)
    (tmp_path / "own.json").write_text((root / MAPPING).read_text() + "\n")
    notes = " ".join(Table.from_source("rsna", root, mapping=tmp_path / "own.json").notes)
    assert f"own.json is another file than the one that was first fetched, {digest}" in notes


def test_names_of_the_mapping_without_a_suffix(tmp_path):
    root = write_rsna(tmp_path, 4)
    path = write_mapping(tmp_path / "m.json", range(4))
    path.write_text(path.read_text().replace(".png", ""))
    assert Table.from_source("rsna", root, mapping=path).patients.tolist() == ["1", "1", "2", "2"]


def test_faults_of_labels_classes_and_images(tmp_path):
    root = write_rsna(tmp_path, 8, mapping=True)
    replaced(
        root / "stage_2_train_labels.csv", f"{rsna_id(3)},9.0,5.0,10.0,12.0,1", f"{rsna_id(3)},9.0,5.0,10.0,12.0,0"
    )
    replaced(root / "stage_2_train_labels.csv", f"{rsna_id(1)},,,,,0", f"{rsna_id(1)},,,,,maybe")
    replaced(root / "stage_2_detailed_class_info.csv", f"{rsna_id(2)},Normal", f"{rsna_id(2)},Lung Opacity")
    (root / "stage_2_train_images" / f"{rsna_id(4)}.dcm").unlink()
    with pytest.raises(DataError) as error:
        Table.from_source("rsna", root)
    for text in (
        "1 rows with another Target than that of the same image: line 6 (line 5 has '1')",
        "images whose Target is not that of their class in stage_2_detailed_class_info.csv: line 4 ('Lung Opacity')",
        "1 rows whose image is missing: line 9",
        "1 labels that are not 0 or 1: line 3 ('maybe')",
    ):
        assert text in str(error.value)


def test_an_image_of_two_classes(tmp_path):
    root = write_rsna(tmp_path, 6, mapping=True)
    with (root / "stage_2_detailed_class_info.csv").open("a") as file:
        file.write(f"{rsna_id(1)},Normal\n")
    with pytest.raises(DataError, match=r"1 rows with another class than that of the same image, line 11"):
        Table.from_source("rsna", root)


def test_missing_and_extra_images_of_rsna(tmp_path):
    root = write_rsna(tmp_path, 12, mapping=True)
    (root / "stage_2_train_images" / f"{rsna_id(4)}.dcm").unlink()
    write_rsna_image(root / "stage_2_train_images" / f"{rsna_id(99)}.dcm", picture(99, True))
    table = Table.from_source("rsna", root, missing="drop")
    assert len(table) == len(table.groups["view"]) == 11
    assert "1 of 12 rows left out, whose image is missing" in table.notes
    assert "1 files of stage_2_train_images left out, which have no row" in table.notes


def test_an_image_that_is_not_dicom_or_cut(tmp_path):
    root = write_rsna(tmp_path, 6, mapping=True)
    (root / "stage_2_train_images" / f"{rsna_id(1)}.dcm").write_bytes(b"no DICOM at all" * 20)
    (root / "stage_2_train_images" / f"{rsna_id(2)}.dcm").write_bytes(b"")
    with pytest.raises(DataError) as error:
        Table.from_source("rsna", root)
    assert f"1 images whose header cannot be read: line 3 ({rsna_id(1)}.dcm: " in str(error.value)
    assert "1 empty files (0 bytes): line 4" in str(error.value)


def test_a_header_without_view(tmp_path):
    root = write_rsna(tmp_path, 6, mapping=True)
    path = root / "stage_2_train_images" / f"{rsna_id(1)}.dcm"
    write_dicom(path, picture(1, False), Modality="CR")
    table = Table.from_source("rsna", root)
    assert table.groups["view"].tolist() == ["AP", "", "PA", "AP", "PA", "PA"]


# Kermany


@pytest.fixture(scope="module")
def kermany(tmp_path_factory):
    return write_kermany(tmp_path_factory.mktemp("kermany"))


def test_the_tree_as_kaggle_has_it(kermany):
    table = Table.from_source("kermany", kermany)
    count = sum(map(len, KERMANY.values()))
    assert (len(table), table.labels, table.task) == (count, ("pneumonia",), "binary")
    assert all(("PNEUMONIA" in name) == (y == 1) for name, y in zip(table.ids, table.targets[:, 0], strict=True))
    assert not any("._" in name or "MACOSX" in name for name in table.ids)
    subtypes = ["normal" if "NORMAL/" in name else name.rsplit("/")[-1].split("_")[1] for name in table.ids]
    assert table.groups["subtype"].tolist() == subtypes
    assert set(table.groups["split"]) == {"train", "test"}
    assert "the 2 images of val join train, of which a validation part is drawn by patient" in table.notes
    assert any("left out chest_xray" in note for note in table.notes)


def test_patients_are_read_from_the_names(kermany):
    table = Table.from_source("kermany", kermany)
    of_name = {
        name.rsplit("/", 1)[1].removesuffix(".jpeg"): p for name, p in zip(table.ids, table.patients, strict=True)
    }
    assert of_name["IM-0434-0001-0002"] == "IM-0434"
    assert of_name["NORMAL2-IM-1427-0001"] == "NORMAL2-IM-1427"
    assert of_name["person447_virus_921_1"] == "person447"
    assert of_name["person3_bacteria_5"] == of_name["person3_virus_17"] == of_name["person3_bacteria_11"] == "person3"
    apart = Table.from_source("kermany", kermany, same_person="number-and-subtype")
    of_name = {
        name.rsplit("/", 1)[1].removesuffix(".jpeg"): p for name, p in zip(apart.ids, apart.patients, strict=True)
    }
    assert of_name["person3_bacteria_5"] == of_name["person3_bacteria_11"] == "person3 bacteria"
    assert of_name["person3_virus_17"] == "person3 virus"


def test_the_cautious_reading_drops_more_of_train(kermany):
    drops = {}
    for rule in ("number", "number-and-subtype"):
        table = Table.from_source("kermany", kermany, same_person=rule)
        with pytest.raises(DataError, match=r"puts into more than one part"):
            split_from_column(table, "split", valid=0.2)
        split = split_from_column(table, "split", valid=0.2, on_leak="drop-train")
        drops[rule] = sorted(dropped.id.rsplit("/", 1)[1] for dropped in split.dropped)
        assert split.counts()["rows"][2] == 11
    cautious = ["person20_virus_60.jpeg", "person3_bacteria_5.jpeg", "person3_virus_17.jpeg", "person3_virus_18.jpeg"]
    assert drops == {"number": cautious, "number-and-subtype": ["person3_bacteria_5.jpeg"]}


def test_the_layout_of_mendeley_without_val(tmp_path):
    names = {
        "train/NORMAL": ["NORMAL-1003233-0001", "NORMAL-1003233-0002", "NORMAL-7-0001"],
        "train/PNEUMONIA": ["BACTERIA-7422-0001", "VIRUS-7422-0001"],
        "test/NORMAL": ["NORMAL-11419-0001"],
        "test/PNEUMONIA": ["BACTERIA-40699-0001"],
    }
    root = write_kermany(tmp_path, nested=False, names=names)
    table = Table.from_source("kermany", root / "chest_xray")
    assert len(table) == 7
    assert len(set(table.patients)) == 5  # 7422 is one person
    assert Counter(table.groups["subtype"].tolist()) == {"normal": 4, "bacteria": 2, "virus": 1}
    assert len(set(Table.from_source("kermany", root, same_person="number-and-subtype").patients)) == 6
    assert not any("val" in note for note in table.notes)


def test_unknown_names_and_misplaced_images(tmp_path):
    names = dict(KERMANY) | {
        "train/NORMAL": ["IM-0115-0001", "scan17", "person9_virus_1"],
        "train/PNEUMONIA": ["person1_bacteria_1", "person1_fungus_1"],
    }
    root = write_kermany(tmp_path, names=names)
    with pytest.raises(DataError) as error:
        Table.from_source("kermany", root)
    assert "2 images whose name gives no patient: image 2 ('chest_xray/train/NORMAL/scan17.jpeg'), " in str(error.value)
    assert "person1_fungus_1.jpeg" in str(error.value)
    assert "1 images in the folder of another class than that of their name: image 1 (" in str(error.value)
    with pytest.raises(ConfigError, match=r"expected same_person to be number or number-and-subtype, got 'name'"):
        Table.from_source("kermany", root, same_person="name")


def test_other_classes_are_not_kermany(tmp_path):
    root = write_kermany(tmp_path, names={"train/A": ["IM-0115-0001"], "train/B": ["IM-0116-0001"]}, nested=False)
    with pytest.raises(DataError, match=r"expected the folders NORMAL and PNEUMONIA in each part, found A, B."):
        Table.from_source("kermany", root)


# MedMNIST


def test_a_file_of_medmnist_and_its_folder(tmp_path):
    path = write_medmnist(tmp_path / "pneumoniamnist.npz")
    for place in (path, tmp_path):
        table = Table.from_source("medmnist", place)
        assert (table.labels, table.task, len(table)) == (("pneumonia",), "binary", 50)
        assert table.arrays.shape == (50, 1, 28, 28)
        assert table.targets[:, 0].tolist() == [i % 2 for part in (30, 10, 10) for i in range(part)]
        assert Counter(table.groups["split"].tolist()) == {"train": 30, "valid": 10, "test": 10}
        assert table.patients is None
        assert "the file has no patients" in table.notes[-1]
    write_medmnist(tmp_path / "breastmnist.npz")
    with pytest.raises(
        DataError, match=r"expected one .npz file of MedMNIST, found breastmnist.npz, pneumoniamnist.npz"
    ):
        Table.from_source("medmnist", tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"expected one .npz file of MedMNIST, found none"):
        Table.from_source("medmnist", tmp_path / "none")


@pytest.mark.parametrize("flag", sorted(LABELS))
def test_every_flag_names_its_labels(tmp_path, flag):
    names = LABELS[flag]
    several, binary = flag == "chestmnist", len(names) == 2
    sides = (8, 8, 8) if flag.endswith("3d") else (8, 8)
    path = write_medmnist(
        tmp_path / f"{flag}_64.npz", sides, classes=len(names), columns=len(names) if several else 1, n=33
    )
    table = Table.from_source("medmnist", path)
    with np.load(path) as file:
        labels = np.concatenate([file[f"{part}_labels"] for part in ("train", "val", "test")])
    assert table.task == ("multilabel" if several else "binary" if binary else "multiclass")
    if flag == "breastmnist":  # malignant is 0 in the file
        assert (table.labels, table.targets[:, 0].tolist()) == (("malignant",), (1 - labels[:, 0]).tolist())
    elif binary:
        assert (table.labels, table.targets[:, 0].tolist()) == (names[1:], labels[:, 0].tolist())
    else:
        wanted = labels if several else np.eye(len(names))[labels[:, 0]]
        assert table.labels == names
        assert np.array_equal(table.targets, wanted)


def test_labels_of_another_set(tmp_path):
    with pytest.raises(
        DataError, match=r"labels that are no class: row 2 \('2'\).*The classes are 'normal', 'pneumonia'"
    ):
        Table.from_source("medmnist", write_medmnist(tmp_path / "pneumoniamnist.npz", classes=3))


def test_a_file_with_another_name(tmp_path):
    table = Table.from_source("medmnist", write_medmnist(tmp_path / "mine.npz"))
    assert table.labels == ("positive",)
    assert "mine.npz is the name of no set of MedMNIST, whose labels would have names" in table.notes


# Real data


def test_counts_of_the_real_children(data):
    folder = data / "pneumonia_cxr"
    with (folder / "labels.csv").open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    table = Table.from_source("kermany", folder)
    assert set(table.ids) == set(rows)
    for name, patient, target, subtype, part in zip(
        table.ids, table.patients, table.targets[:, 0], table.groups["subtype"], table.groups["split"], strict=True
    ):
        row = rows[name]
        assert (patient, str(int(target)), subtype) == (row["patient_key"], row["label_pneumonia"], row["subtype"])
        assert part == row["split"]
    train, test = (table.groups["split"] == part for part in ("train", "test"))
    shared = np.intersect1d(table.patients[train], table.patients[test])
    assert (len(shared), int(np.isin(table.patients[train], shared).sum())) == (109, 320)
    apart = Table.from_source("kermany", folder, same_person="number-and-subtype").patients
    assert len(np.intersect1d(apart[train], apart[test])) == 0


@pytest.mark.slow
def test_the_real_adrenal_glands(data):
    table = Table.from_source("medmnist", data / "adrenal_ct_3d")
    assert (table.labels, len(table), int(table.targets.sum())) == (("hyperplasia",), 1286, 281)
    assert Counter(table.groups["split"].tolist()) == {"train": 1188, "valid": 98}


def test_a_patient_of_any_number_of_digits_is_compared(tmp_path):
    root = write_nih(tmp_path / "nih")
    (table,) = root.glob("Data_Entry*.csv")
    first, *lines = table.read_text().splitlines()
    cells = lines[0].split(",")
    patient = next(csv.reader([first])).index("Patient ID")
    cells[patient] = "9" * 5000
    table.write_text("\n".join([first, ",".join(cells), *lines[1:]]) + "\n")
    with pytest.raises(DataError, match=r"1 rows whose Patient ID is not the one with which the name.*: line 2"):
        Table.from_source("chestxray14", root)
