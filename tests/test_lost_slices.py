"""Whose slices make a volume, and what shows that some are not there."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest
from make_images import arrow, dataset, save, slice_fields, write_compressed, write_dicom, write_nifti, write_png
from tensors import TINY

import medzoo
from medzoo.errors import ConfigError, DataError
from medzoo.io.dicom.series import read_series
from medzoo.io.folder import group, scan
from medzoo.io.options import ReadOptions
from medzoo.io.read import read

PATCH = medzoo.Preprocessing(
    size=(16, 16, 16), orientation="SPL", intensity="window", window=(-1000, 400), patch=(8.0, 8.0, 8.0)
)
VOLUME = np.stack([arrow(12, 16, top=2000) + 100 * i for i in range(10)]).astype(np.uint16)


@pytest.fixture(scope="module")
def cnn():
    return medzoo.create("cnn3d_small", **TINY).eval()


@pytest.fixture(scope="module")
def xray():
    return medzoo.create("xray_cnn", size=32, widths=(4, 4, 8, 8), hidden=8).eval()


def slices(folder, count=10, first=0, **fields):
    """Write slices whose number and name grow with the position."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(first, first + count):
        given = slice_fields((0.0, 0.0, 2.0 * i), i + 1) | fields
        given = {k: v(i) if callable(v) else v for k, v in given.items()}
        paths.append(write_dicom(folder / f"IM{i:04d}", VOLUME[i % 10], **given))
    return paths


@pytest.mark.parametrize(
    ("tag", "names"),
    [
        ("PatientID", ["patient [0-9a-f]{12}"]),
        ("PatientName", ["patient name [0-9a-f]{12}"]),
        ("StudyInstanceUID", ["study 1.2.1", "study 1.2.2"]),
        ("FrameOfReferenceUID", ["frame of reference 1.2.1"]),
        ("Modality", ["modality CT", "modality MR"]),
    ],
)
def test_117_one_series_uid_for_two(tmp_path, cnn, tag, names):
    given = {"Modality": ("CT", "MR"), "PatientID": ("JANE", "JOHN"), "PatientName": ("DOE^JANE", "DOE^JOHN")}
    first, second = given.get(tag, ("1.2.1", "1.2.2"))
    slices(tmp_path, 5, 0, **{tag: first})
    slices(tmp_path, 5, 5, **{tag: second}, SOPInstanceUID=lambda i: f"1.2.3.{i}", InstanceNumber=lambda i: i - 4)
    assert [len(item.paths) for item in scan(tmp_path)] == [5, 5]
    with pytest.raises(DataError, match=r"found 2 of them: 0: IM0000 and 4 more, .*; 1: IM0005 and 4 more, ") as error:
        read(tmp_path)
    for name in names:
        assert re.search(name, str(error.value))
    assert "JANE" not in str(error.value)
    for k in (0, 1):
        np.testing.assert_array_equal(read(tmp_path, stack=k).array[0], VOLUME[5 * k : 5 * k + 5].astype(int) - 1024)
    for source in (tmp_path, sorted(tmp_path.iterdir())):
        assert len(medzoo.predict(cnn, source, allow_untrained=True)) == 2
    with pytest.raises(DataError, match="expected slices of one ") as error:
        read_series(sorted(tmp_path.iterdir()), ReadOptions())
    assert "JANE" not in str(error.value)


@pytest.mark.parametrize("tag", ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_117_slices_that_lack_an_identifier(tmp_path, tag):
    common = {"PatientID": "P", "StudyInstanceUID": "1.2", "FrameOfReferenceUID": "1.3"}
    slices(tmp_path, 7, 0, **common)
    slices(tmp_path, 3, 7, **(common | {tag: None}))
    items = scan(tmp_path)
    assert [len(item.paths) for item in items] == [7, 3]
    for item in items:
        assert "3 of 10 slices of the series lack the " in item.warning


def test_117_slices_without_a_series_uid(tmp_path):
    slices(tmp_path, 7)
    slices(tmp_path, 3, 7, SeriesInstanceUID=None)
    series = next(item for item in scan(tmp_path) if item.kind == "series")
    assert "3 files beside the slices have no SeriesInstanceUID: IM0007, IM0008, IM0009" in series.warning


def test_117_points_of_a_shared_uid_are_refused(tmp_path):
    model = medzoo.create("cnn3d_small", preprocessing=PATCH, **TINY).eval()
    uid = "1.2.3"
    for who, first in (("A", 0), ("B", 10)):
        slices(tmp_path / who, 10, first, PatientID=who, SeriesInstanceUID=uid)
    table = tmp_path / "points.csv"
    table.write_text(f"seriesuid,coordX,coordY,coordZ\n{uid},3,3,8\n")
    with pytest.raises(DataError, match=r"points of 1\.2\.3 .* 2 images of different patients"):
        medzoo.predict(model, tmp_path, points=table, allow_untrained=True)
    one = medzoo.predict(model, tmp_path / "A", points=table, allow_untrained=True)
    assert len(one) == 1
    assert not one[0].error
    with pytest.raises(ConfigError, match="assigns each point to one of 2 images"):
        medzoo.predict(model, [tmp_path / "A", tmp_path / "B"], points=[(3, 3, 8)], allow_untrained=True)


HARMS = {
    "empty": lambda data: b"",
    "head": lambda data: data[:100],
    "magic": lambda data: data[:132],
    "meta": lambda data: data[:200],
    "header": lambda data: data[: len(data) // 2],
    "pixels": lambda data: data[:-7],
    "last byte": lambda data: data[:-2],
    "no preamble": lambda data: data[132:],
    "garbage": lambda data: bytes(range(1, 256)) * 4,
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("naming", ["IM{:04d}", "{}.dcm", "{:x}0cafe{:x}1babe", "1.2.840.{}.77", "slice-{}.ima", "{}"])
@pytest.mark.parametrize("harm", HARMS)
def test_118_slices_that_cannot_be_read_are_named(tmp_path, harm, naming):
    for i, path in enumerate(slices(tmp_path)):
        target = path.rename(tmp_path / naming.format(i, i))
        if i >= 7:
            target.write_bytes(HARMS[harm](target.read_bytes()))
    names = ", ".join(sorted(naming.format(i, i) for i in (7, 8, 9)))
    items = {item.kind: item for item in scan(tmp_path)}
    assert len(items["series"].paths) == 7
    assert f"3 files beside the slices cannot be read: {names}. Slices may be missing." in items["series"].warning
    assert "probably a slice of the series beside it" in items["lost"].reason
    with pytest.warns(UserWarning, match="3 files beside the slices cannot be read"):
        image = read(tmp_path)
    np.testing.assert_array_equal(image.array[0], VOLUME[:7].astype(int) - 1024)


def test_118_every_cut_is_a_loss(tmp_path):
    paths = slices(tmp_path, 5)
    data = paths[-1].read_bytes()
    for length in range(0, len(data) - 1, 7):
        paths[-1].write_bytes(data[:length])
        (item,) = [item for item in scan(tmp_path) if item.kind == "series"]
        assert len(item.paths) == 4
        assert "IM0004" in item.warning, length


def test_118_a_prediction_carries_the_warning(tmp_path, cnn, xray):
    paths = slices(tmp_path)
    for path in paths[7:]:
        path.write_bytes(b"")
    for source in (tmp_path, paths):
        with pytest.warns(UserWarning, match="3 files beside the slices cannot be read"):
            found = medzoo.predict(cnn, source, allow_untrained=True)
        one = found if source is tmp_path else found[0]
        assert isinstance(one, medzoo.Prediction)
        assert "IM0007, IM0008, IM0009" in one.warning
        if source is not tmp_path:
            assert set(found.skipped) == {str(path) for path in paths[7:]}
    with pytest.raises(DataError, match="3 files beside the slices cannot be read"):
        medzoo.predict(cnn, tmp_path, allow_untrained=True, strict=True)
    images = medzoo.predict(xray, tmp_path, allow_untrained=True)  # a CT slice each, which an X-ray model refuses
    assert len(images) == 10
    assert images.counts()["failed"] == {"wrong modality": 7, "cannot be read": 3}


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no permissions of this kind")
def test_118_a_slice_without_permission(tmp_path, monkeypatch):
    slices(tmp_path)
    access = os.access
    monkeypatch.setattr("medzoo.io.files.os.access", lambda path, mode: path.name != "IM0009" and access(path, mode))
    (item,) = [item for item in scan(tmp_path) if item.kind == "series"]
    assert "1 file beside the slices cannot be read: IM0009" in item.warning


def test_118_a_link_to_a_slice_that_is_not_there(tmp_path):
    slices(tmp_path, 9)
    (tmp_path / "IM0009").symlink_to(tmp_path / "annex" / "MD5E-s1")
    (item,) = [item for item in scan(tmp_path) if item.kind == "series"]
    assert "IM0009" in item.warning


def test_118_only_the_series_that_is_named_alike_has_the_warning(tmp_path):
    for path in slices(tmp_path, 5):
        path.rename(tmp_path / f"a_{path.name}")
    for path in slices(tmp_path, 5, SeriesInstanceUID="1.2.3"):
        path.rename(tmp_path / f"b_{path.name}")
    (tmp_path / "b_IM0005").touch()
    a, b = (item for item in scan(tmp_path) if item.kind == "series")
    assert (a.warning, "b_IM0005" in b.warning) == ("", True)


def test_118_files_that_are_no_slices(tmp_path):
    slices(tmp_path)
    for name in ("README", "LICENSE", "notes.txt", "notes", "DICOMDIR", "Thumbs.db", ".DS_Store", "sums.md5", "x.json"):
        (tmp_path / name).touch()
    (tmp_path / "README.md").write_text("# Köln")
    (tmp_path / "INDEX").write_text("IM0001 1")
    (tmp_path / "CONTENTS").write_text("Ünïcode text")
    (tmp_path / "series.json").write_text("{}")
    (tmp_path / "series.xml").write_text("<a/>")
    (tmp_path / "labels.csv").write_text("a,b")
    (tmp_path / "IM0001.json").write_text("{}")
    (tmp_path / "page.pdf").write_bytes(b"%PDF-1.4 \x00\xff")
    (tmp_path / "archive").write_bytes(b"PK\x03\x04\x00\x00")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    write_png(tmp_path / "x.png", VOLUME[0].astype(np.uint8)).rename(tmp_path / "IM0010")
    write_nifti(tmp_path / "x.nii", np.zeros((3, 3, 3), np.float32))
    report = dataset(VOLUME[0], Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Rows=None, Columns=None)
    del report.PixelData
    save(report, tmp_path / "IM0011")
    data = (tmp_path / "IM0011").read_bytes()
    (tmp_path / "IM0012").write_bytes(data[132:])  # a report without its preamble
    write_dicom(tmp_path / "IM0013", VOLUME[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], Modality="CT")
    write_dicom(tmp_path / "IM0014", VOLUME[0], Modality="DX", SeriesInstanceUID="1.2.99")
    assert [item.warning for item in scan(tmp_path) if item.warning] == []
    assert [item.label for item in scan(tmp_path) if item.kind == "lost"] == []


@pytest.mark.parametrize(
    ("kept", "missing"),
    [
        (range(10), ""),
        (range(7), ""),  # nothing shows it
        (range(3, 10), r"3 of the instance numbers of the series are missing \(1, 2, 3\)"),
        (range(9, 10), ""),
    ],
)
def test_118_the_numbers_of_a_series(tmp_path, kept, missing):
    for path in [p for i, p in enumerate(slices(tmp_path)) if i not in kept]:
        path.unlink()
    (item,) = scan(tmp_path)
    assert re.search(missing, item.warning)
    assert bool(item.warning) == bool(missing)


@pytest.mark.parametrize(
    ("number", "warns"),
    [
        (lambda i: i, False),  # from 0
        (lambda i: 10 - i, False),
        (lambda i: 1001 + i, False),
        (lambda i: 101 + i, False),
        (lambda i: 7, False),
        (lambda i: 1000 * i, False),
        (lambda i: None, False),
        (lambda i: "", False),
        (lambda i: -5 + i, False),
        (lambda i: i + 1 + (i > 4), True),
        (lambda i: i + 3, True),
        (lambda i: 2 * i + 1, True),
    ],
)
def test_118_numbering_that_shows_a_loss_and_that_does_not(tmp_path, number, warns):
    slices(tmp_path, InstanceNumber=number)
    (item,) = scan(tmp_path)
    assert ("instance numbers" in item.warning) == warns


def test_118_a_series_that_continues_the_numbers_of_another(tmp_path):
    slices(tmp_path / "a", SeriesInstanceUID="1.2.1")
    slices(tmp_path / "b", 10, 10, SeriesInstanceUID="1.2.2")
    assert [item.warning for item in scan(tmp_path)] == ["", ""]
    scout = slice_fields((0, 0, 0), 1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.2.3")
    write_dicom(tmp_path / "c0", VOLUME[0], **scout)
    slices(tmp_path / "c", 10, 0, SeriesInstanceUID="1.2.3", InstanceNumber=lambda i: i + 2)
    assert [item.warning for item in scan(tmp_path) if item.kind == "series"] == ["", "", ""]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"ImagesInAcquisition": 10}, "10 images in the acquisition, found 7"),
        ({"NumberOfSlices": 10, "Modality": "PT"}, "The header declares 10 slices, found 7"),
        ({"NumberOfTemporalPositions": 3}, "3 temporal positions, found 1"),
        ({"NumberOfSeriesRelatedInstances": 10}, "10 images in the series, found 7"),
        ({"ImagesInAcquisition": 7, "NumberOfSlices": 7, "NumberOfTemporalPositions": 1}, ""),
        ({"ImagesInAcquisition": 4, "AcquisitionNumber": lambda i: 1 + i // 4}, "4 images in an acquisition, found 3"),
        ({"ImagesInAcquisition": 7, "AcquisitionNumber": lambda i: 1 + i // 4}, ""),
    ],
)
def test_118_counts_that_headers_declare(tmp_path, fields, found):
    slices(tmp_path, 7, **fields)
    (item,) = scan(tmp_path)
    assert found in item.warning
    assert bool(item.warning) == bool(found)


@pytest.mark.parametrize("lost", [[9], [0], [3, 9]])
def test_118_a_phase_that_is_shorter_than_another(tmp_path, lost):
    slices(tmp_path, TemporalPositionIdentifier=1)
    for path in [p for i, p in enumerate(sorted(tmp_path.iterdir())) if i < 10]:
        path.rename(tmp_path / f"A{path.name}")
    second = {"TemporalPositionIdentifier": 2, "InstanceNumber": None, "SOPInstanceUID": lambda i: f"1.2.3.{i}"}
    for i, path in enumerate(slices(tmp_path, **second)):
        if i in lost:
            path.unlink()
    first, other = scan(tmp_path)
    assert (first.warning, len(first.paths)) == ("", 10)
    assert f"Other stacks of the series have {len(lost)} slices where temporal position 2 has none" in other.warning


@pytest.mark.parametrize("how", ["bytes", "encoded"])
def test_118_second_copies_are_counted_once(tmp_path, how, cnn):
    paths = slices(tmp_path)
    if how == "bytes":
        for path in paths[:3]:
            shutil.copy(path, tmp_path / f"copy{path.name}")
    else:
        from pydicom.uid import ImplicitVRLittleEndian

        for i in range(3):
            given = slice_fields((0.0, 0.0, 2.0 * i), i + 1)
            write_dicom(tmp_path / f"copy{i}", VOLUME[i], syntax=ImplicitVRLittleEndian, **given)
    (item,) = scan(tmp_path)
    assert item.warning == ""
    image = read(tmp_path)
    np.testing.assert_array_equal(image.array[0], VOLUME.astype(int) - 1024)
    assert "3 second copies of a slice left out" in image.notes
    assert any("3 second copies" in step for step in medzoo.predict(cnn, tmp_path, allow_untrained=True).steps)


def test_118_one_sop_instance_uid_with_two_contents(tmp_path):
    slices(tmp_path)
    write_dicom(tmp_path / "IM0010", VOLUME[9], **slice_fields((0.0, 0.0, 2.0), 2, AcquisitionTime="120000"))
    with pytest.raises(DataError, match="expected one slice at each position, found IM0001 and IM0010 0 mm apart"):
        read(tmp_path)
    slices(tmp_path / "same", SOPInstanceUID="1.2.3")
    with pytest.warns(UserWarning, match="10 slices of the volume share a SOPInstanceUID"):
        read(tmp_path / "same")


def test_118_compressed_pixels_that_are_cut(tmp_path):
    from pydicom.uid import JPEG2000Lossless

    for i in range(5):
        pixels = VOLUME[i].astype(np.uint8)
        write_compressed(tmp_path / f"{i}", pixels, JPEG2000Lossless, **slice_fields((0.0, 0.0, 2.0 * i), i + 1))
    assert read(tmp_path).array.shape == (1, 5, 12, 16)
    (tmp_path / "4").write_bytes((tmp_path / "4").read_bytes()[:-20])
    with pytest.warns(UserWarning, match="1 file beside the slices cannot be read: 4"):
        assert read(tmp_path).array.shape == (1, 4, 12, 16)


def test_118_a_file_given_twice_is_predicted_twice(tmp_path, xray):
    path = write_png(tmp_path / "x.png", VOLUME[0].astype(np.uint8))
    assert len(medzoo.predict(xray, [path, path], allow_untrained=True)) == 2
    paths = slices(tmp_path / "ct")
    (item,) = group([*paths, *paths], tmp_path)
    assert (len(item.paths), item.warning) == (10, "")


def test_117_slices_without_a_series_number(tmp_path):
    slices(tmp_path, 7, SeriesNumber=1)
    slices(tmp_path, 3, 7)
    assert all("Other stacks of the series have" in item.warning for item in scan(tmp_path))


def test_118_a_folder_whose_files_are_all_lost_has_failed_results(tmp_path, cnn):
    for path in slices(tmp_path):
        path.write_bytes(path.read_bytes()[:300])
    found = medzoo.predict(cnn, tmp_path, allow_untrained=True)
    assert len(found.errors) == 10


def test_117_two_series_that_share_every_tag_share_numbers(tmp_path):
    slices(tmp_path, 5)
    slices(tmp_path, 5, 5, InstanceNumber=lambda i: i - 4, SOPInstanceUID=lambda i: f"1.2.3.{i}")
    (item,) = scan(tmp_path)
    assert "10 slices of the volume share an instance number: slices of two series may be mixed." in item.warning


def test_118_a_gap_names_the_files_that_cannot_be_read(tmp_path):
    slices(tmp_path)[4].write_bytes(b"")
    with pytest.raises(DataError, match=r"A slice is missing.* 1 file beside the slices cannot be read: IM0004"):
        read(tmp_path)
