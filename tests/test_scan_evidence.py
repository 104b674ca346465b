"""What the files around a series show: copies that did not end, DICOM without its preamble, parts in other folders."""

from __future__ import annotations

import gzip
import shutil

import numpy as np
import pytest
from make_images import arrow, dataset, save, slice_fields, write_dicom, write_png
from pydicom.data import get_testdata_file
from pydicom.uid import MultiFrameGrayscaleByteSecondaryCaptureImageStorage, SecondaryCaptureImageStorage
from tensors import TINY
from test_series_evidence import COUNT, quiet, slice_values, write

import medzoo
from medzoo.errors import DataError
from medzoo.io.folder import scan
from medzoo.io.read import read

ALL = [100 + i for i in range(COUNT)]


@pytest.fixture(scope="module")
def cnn():
    return medzoo.create("cnn3d_small", **TINY).eval()


def predict(model, source):
    return medzoo.predict(model, source, allow_untrained=True, allow_mismatch=True)


# Copies


@pytest.mark.parametrize("name", ["IM0007.dcm.gz", "IM0007.dcm.part", ".IM0007.dcm.Ab12Cd"])
def test_a_compressed_or_unfinished_copy_of_a_slice_is_a_lost_slice(tmp_path, cnn, name):
    path = write(tmp_path)[-1]
    (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
    (item,) = [item for item in scan(tmp_path) if item.kind == "series"]
    assert item.warning == ""  # the file itself is there
    path.unlink()
    with pytest.warns(UserWarning, match=f"1 file beside the slices cannot be read: {name}"):
        assert slice_values(read(tmp_path)) == ALL[:-1]
    with pytest.warns(UserWarning, match=f"cannot be read: {name}"):
        assert f"cannot be read: {name}" in predict(cnn, tmp_path).warning


def test_other_compressed_or_hidden_files_are_no_slices(tmp_path):
    write(tmp_path, name="IM{:04d}")
    for name in (".DS_Store", "._IM0003", ".hidden", "backup.tar.gz", "notes.txt.gz", ".IM0003.Ab12Cd", "IM0003.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"x" * 1000))
    assert [item.warning for item in scan(tmp_path) if item.kind == "series"] == [""]
    assert read(tmp_path).warning == ""


# DICOM without its preamble


def strip(paths):
    for path in paths:
        path.write_bytes(path.read_bytes()[132:])


def test_files_without_a_preamble_are_reported_with_their_cause(tmp_path, cnn):
    strip(write(tmp_path, name="IM{:04d}"))
    assert [(item.kind, len(item.paths)) for item in scan(tmp_path)] == [("image", 1)] * COUNT
    with pytest.raises(DataError, match=r"found none among 8 other file\(s\).* what may be DICOM without its preamble"):
        read(tmp_path)
    assert all("DICOM without its preamble" in p.error for p in predict(cnn, tmp_path))


def test_a_folder_of_files_without_a_preamble_is_not_left_out(tmp_path, cnn):
    write(tmp_path / "a", name="IM{:04d}")
    strip(write(tmp_path / "b", name="IM{:04d}", SeriesInstanceUID="1.2.3"))
    found = predict(cnn, tmp_path)
    assert len(found) == 1 + COUNT
    assert [bool(p.error) for p in found] == [False] + [True] * COUNT


def test_a_folder_of_compressed_files_is_reported_with_its_cause(tmp_path):
    for path in write(tmp_path):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    with pytest.raises(DataError, match=r"found none among 8 .* a gzip file that holds no NIfTI"):
        read(tmp_path)


def test_bytes_that_are_not_dicom_are_no_images(tmp_path):
    for name, content in {
        "a": b"\x08\x00\x00\x10" + bytes(500),
        "b": bytes(500),
        "c.bin": b"\x08\x00\x05\x00CS\x0a\x00",
    }.items():
        (tmp_path / name).write_bytes(content)
    report = dataset(arrow(), Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    strip([save(report, tmp_path / "d")])
    assert [item.kind for item in scan(tmp_path)] == ["skip"] * 4


# Several sources


def test_a_series_spread_over_two_folders_is_one_volume(tmp_path, cnn):
    paths = write(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for path in paths[5:]:
        shutil.move(path, tmp_path / "b" / path.name)
    a, b = tmp_path / "a", tmp_path / "b"
    whole = predict(cnn, tmp_path)
    for source in ([a, b], [a, *sorted(b.iterdir())], [*sorted(a.iterdir()), b], [a / "IM0000.dcm", a, b]):
        (found,) = predict(cnn, source)
        assert (found.source, found.logits, found.warning) == (str(a / "IM0000.dcm"), whole.logits, "")


def test_a_copy_of_a_folder_is_a_source_of_its_own(tmp_path, cnn):
    write(tmp_path / "a")
    for name in "bc":
        shutil.copytree(tmp_path / "a", tmp_path / name)
    found = predict(cnn, [tmp_path / name for name in "abc"])
    assert [p.source for p in found] == [str(tmp_path / name / "IM0000.dcm") for name in "abc"]
    assert found[0].logits == found[1].logits == found[2].logits


def test_the_order_of_sources_is_kept(tmp_path, cnn):
    a = write(tmp_path / "a", SeriesInstanceUID="1.2.1", name="X{:02d}")
    write(tmp_path / "b", SeriesInstanceUID="1.2.2", name="Y{:02d}")
    c = write(tmp_path / "c", SeriesInstanceUID="1.2.3", name="Z{:02d}")
    volume = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)
    found = predict(cnn, [volume, *c, tmp_path / "b", tmp_path / "a", tmp_path / "b"])
    assert [p.source for p in found] == [
        "array 0", str(c[0]), str(tmp_path / "b" / "Y00"), str(a[0]), str(tmp_path / "b" / "Y00"),
    ]  # fmt: skip


def test_slices_in_a_folder_below_are_part_of_the_series(tmp_path):
    paths = write(tmp_path)
    (tmp_path / "more").mkdir()
    for path in paths[5:]:
        shutil.move(path, tmp_path / "more" / path.name)
    write(tmp_path / "other", SeriesInstanceUID="1.2.3")
    write_png(tmp_path / "other" / "x.png", arrow().astype(np.uint8))
    assert slice_values(read(tmp_path)) == ALL


def test_the_stacks_that_an_error_offers_can_be_chosen(tmp_path):
    for echo in (0, 1):
        write(
            tmp_path,
            lambda i, e=echo: {"InstanceNumber": e * COUNT + i + 1},
            name=f"E{echo}_{{:02d}}",
            Modality="MR",
            EchoTime=10 + 70 * echo,
        )
    with pytest.raises(DataError, match="stack=0 to 1"):
        read(tmp_path)
    assert [slice_values(quiet(tmp_path, stack=k)) for k in (0, 1)] == [ALL, ALL]
    with pytest.raises(DataError, match="expected stack below 2"):
        read(tmp_path, stack=2)


# Secondary captures


def capture(path, shape=(6, 6), **fields):
    given = slice_fields((0.0, 0.0, 0.0), 99) | {
        "SOPClassUID": SecondaryCaptureImageStorage, "ImagePositionPatient": None, "ImageOrientationPatient": None,
        "PixelSpacing": None, "RescaleSlope": None, "RescaleIntercept": None, "InstanceNumber": COUNT + 1,
    } | fields  # fmt: skip
    return write_dicom(path, np.zeros(shape, np.uint8), **given)


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((6, 6), {}),
        ((20, 30), {}),
        ((20, 30, 3), {}),
        ((4, 20, 30), {"SOPClassUID": MultiFrameGrayscaleByteSecondaryCaptureImageStorage}),
        ((20, 30), {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}),
    ],
)
@pytest.mark.parametrize("frame_of_reference", [None, "1.2.3"])
def test_a_secondary_capture_is_no_slice(tmp_path, cnn, shape, fields, frame_of_reference):
    write(tmp_path, FrameOfReferenceUID=frame_of_reference)
    capture(tmp_path / "IM9999.dcm", shape, **fields)
    volume, other = scan(tmp_path)
    assert (len(volume.paths), volume.warning, other.kind, other.reason) == (COUNT, "", "skip", "a secondary capture")
    assert slice_values(read(tmp_path)) == ALL
    found = predict(cnn, tmp_path)
    assert (found.error, found.warning) == ("", "")


def test_secondary_captures_with_positions_are_slices(tmp_path):
    write(tmp_path, SOPClassUID=SecondaryCaptureImageStorage)
    assert slice_values(read(tmp_path)) == ALL


def test_a_secondary_capture_by_itself_is_an_image(tmp_path):
    path = capture(tmp_path / "x", (20, 30))
    assert [item.kind for item in scan(tmp_path)] == ["image"]
    assert read(path).array.shape == (1, 20, 30)


def test_131_a_directory_of_media_is_skipped(tmp_path):
    shutil.copy(get_testdata_file("DICOMDIR"), tmp_path / "DICOMDIR")
    assert [(item.kind, item.reason) for item in scan(tmp_path)] == [("skip", "a DICOMDIR")]
