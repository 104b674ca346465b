"""Tables from DICOM folders and labels in a CSV file, joined by an element of the header."""

from __future__ import annotations

import numpy as np
import pytest
from make_images import write_dicom, write_png, write_series

from medzoo import Table
from medzoo.errors import ConfigError, DataError

FLAT = np.zeros((4, 4), np.uint16)


def radiograph(folder, name, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    uid = "1.2." + "".join(str(ord(c)) for c in name)
    return write_dicom(folder / f"{name}.dcm", FLAT, **{
        "SOPInstanceUID": uid, "StudyInstanceUID": uid + ".1", "SeriesInstanceUID": uid + ".2",
    } | fields)  # fmt: skip


def labels(folder, *rows, header="AccessionNumber,label"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "labels.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def studies(tmp_path):
    """Return a folder of two radiographs with the accession numbers 007 and 7."""
    folder = tmp_path / "images"
    radiograph(folder / "x", "a", AccessionNumber="007", PatientID="P1", ViewPosition="PA", PatientSex="F")
    radiograph(folder / "y", "b", AccessionNumber="7", PatientID="P2", ViewPosition="AP", PatientSex="M")
    return folder


def test_labels_are_joined_to_studies(tmp_path, studies):
    path = labels(tmp_path, "7,1,site 1", "007,0,site 2", header="AccessionNumber,label,site")
    table = Table.from_dicom(studies, path)
    assert table.ids.tolist() == ["y/b.dcm", "x/a.dcm"]
    assert table.targets[:, 0].tolist() == [1, 0]
    assert table.patients.tolist() == ["P2", "P1"]
    assert {name: values.tolist() for name, values in table.groups.items()} == {
        "site": ["site 1", "site 2"], "modality": ["DX", "DX"], "view": ["AP", "PA"], "sex": ["M", "F"],
        "manufacturer": ["", ""],
    }  # fmt: skip
    assert table.lines.tolist() == [2, 3]
    assert table.image(0) == studies / "y" / "b.dcm"


def test_other_keys_and_columns(tmp_path, studies):
    path = labels(tmp_path, "P2,1", "P1,0", header="pid,grade")
    table = Table.from_dicom(studies, path, key="PatientID", column="pid", label="grade", patient=None)
    assert table.ids.tolist() == ["y/b.dcm", "x/a.dcm"]
    assert table.patients is None
    table = Table.from_dicom(studies, path, key="PatientID", column="pid", label="grade", groups=["view"])
    assert list(table.groups) == ["view"]
    with pytest.raises(DataError, match=r"expected the column 'PatientID' \(column=\)"):
        Table.from_dicom(studies, path, key="PatientID", label="grade")
    with pytest.raises(ConfigError, match=r"got 'AccesionNumber'. Did you mean 'AccessionNumber'"):
        Table.from_dicom(studies, path, key="AccesionNumber", column="pid", label="grade")
    with pytest.raises(ConfigError, match="expected choose to be one of"):
        Table.from_dicom(studies, path, key="PatientID", column="pid", label="grade", choose="first")


def test_what_does_not_match_is_listed_on_both_sides(tmp_path, studies):
    radiograph(studies, "c", AccessionNumber="SECRET1", PatientID="P3")
    radiograph(studies, "d", AccessionNumber="", PatientID="P4")
    path = labels(tmp_path, "7,1", "007,0", "SECRET2,1", ",1")
    with pytest.raises(DataError) as error:
        Table.from_dicom(studies, path)
    message = str(error.value)
    assert "1 rows with a blank key: line 5" in message
    assert "1 rows without an image: line 4. Check key= and column=" in message
    assert "2 images without a row: 'c.dcm', 'd.dcm'. Add rows, or give unmatched='drop'." in message
    assert "SECRET" not in message
    table = Table.from_dicom(studies, labels(tmp_path, "7,1", "007,0", "SECRET2,1"), unmatched="drop")
    assert len(table) == 2
    assert table.notes[:2] == (
        "1 rows without an image left out: lines 4",
        "2 images without a row left out: 'c.dcm', 'd.dcm'",
    )


def test_zeros_that_excel_removed_are_suspected(tmp_path):
    for name in ("001", "002"):
        radiograph(tmp_path / "images", name, AccessionNumber=name, PatientID=name)
    with pytest.raises(DataError, match="zeros in front, which Excel removes: keep the column as text"):
        Table.from_dicom(tmp_path / "images", labels(tmp_path, "1,0", "2,1"))


def test_the_same_key_twice(tmp_path, studies):
    with pytest.raises(DataError, match=r"1 rows with the key of another row: line 4 \(the key of line 2\)"):
        Table.from_dicom(studies, labels(tmp_path, "7,1", "007,0", "7,0"))


@pytest.fixture
def series(tmp_path):
    """Return a folder of two CT studies, the first of which has series of 3 and of 2 slices."""
    folder = tmp_path / "images"
    for name, n in (("1.1", 3), ("1.2", 2), ("2.1", 3)):
        study = name[0]
        write_series(
            folder / name, np.zeros((n, 4, 4), np.uint16), AccessionNumber=f"A{study}", PatientID=f"P{study}",
            StudyInstanceUID=f"1.2.{study}", SeriesInstanceUID=f"1.2.{name}", FrameOfReferenceUID=f"1.2.9.{name}",
        )  # fmt: skip
    return folder


def test_several_series_of_a_study_are_refused_or_chosen_from(tmp_path, series):
    path = labels(tmp_path, "A1,1", "A2,0")
    with pytest.raises(DataError, match=r"1 rows that several images match: line 2 \('1.1/IM0001 and 2 more', '1.2/IM"):
        Table.from_dicom(series, path)
    most = Table.from_dicom(series, path, choose="most-slices")
    assert most.ids.tolist() == ["1.1/IM0001 and 2 more", "2.1/IM0001 and 2 more"]
    assert most.image(0) == tuple(series / "1.1" / f"IM000{i}" for i in (1, 2, 3))
    assert most.notes[0] == "1 rows match several images: choose='most-slices'"
    every = Table.from_dicom(series, path, choose="all")
    assert every.targets[:, 0].tolist() == [1, 1, 0]
    assert every.patients.tolist() == ["P1", "P1", "P2"]
    assert every.groups["modality"].tolist() == ["CT"] * 3
    assert every.lines.tolist() == [2, 2, 3]
    path = labels(tmp_path, "1.2.1.2,1", "1.2.2.1,0", header="uid,label")
    chosen = Table.from_dicom(series, path, key="SeriesInstanceUID", column="uid", unmatched="drop")
    assert chosen.ids.tolist() == ["1.2/IM0001 and 1 more", "2.1/IM0001 and 2 more"]


def test_series_of_as_many_slices_are_no_choice(tmp_path, series):
    for file in sorted((series / "1.1").iterdir())[:1]:
        file.unlink()
    with pytest.raises(DataError, match="1 rows that several images match, equal in slices: line 2"):
        Table.from_dicom(series, labels(tmp_path, "A1,1", "A2,0"), choose="most-slices")


def test_a_study_without_patient_or_label(tmp_path, studies):
    radiograph(studies, "c", AccessionNumber="8", PatientID="")
    path = labels(tmp_path, "7,1", "007,0", "8,yes")
    with pytest.raises(DataError) as error:
        Table.from_dicom(studies, path)
    assert "1 rows without a patient: line 4" in str(error.value)
    assert "1 labels that are not 0 or 1: line 4 ('yes')" in str(error.value)


def test_other_files_are_left_out(tmp_path, studies):
    write_png(studies / "x.png", np.zeros((4, 4), np.uint8))
    (studies / "notes.txt").write_text("about")
    table = Table.from_dicom(studies, labels(tmp_path, "7,1", "007,0"))
    assert table.notes[0] == "2 files are no DICOM images and left out"
    with pytest.raises(DataError, match="expected DICOM images, found none among 1 files"):
        Table.from_dicom(write_png(tmp_path / "empty.png", np.zeros((4, 4), np.uint8)), labels(tmp_path, "7,1"))


def test_a_damaged_file_is_reported(tmp_path, studies):
    (studies / "x" / "z.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)
    with pytest.raises(DataError, match=r"z\.dcm"):
        Table.from_dicom(studies, labels(tmp_path, "7,1", "007,0"))


def test_real_dicom_images(data, tmp_path):
    path = labels(tmp_path, "No Finding,0", "Cardiomegaly,1", "Effusion,1", header="StudyDescription,label")
    table = Table.from_dicom(data / "chestxray14_dicom", path, key="StudyDescription", patient=None)
    assert table.ids.tolist() == ["test1.dcm", "test2.dcm", "test3.dcm"]
