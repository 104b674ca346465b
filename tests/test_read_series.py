"""Reading DICOM series and folder trees, on series written by pydicom."""

from __future__ import annotations

import os

import numpy as np
import pytest
from make_images import SERIES, arrow, dataset, save, slice_fields, write_dicom, write_png, write_series

from medzoo.errors import DataError
from medzoo.io.dicom.series import read_series
from medzoo.io.folder import scan
from medzoo.io.options import ReadOptions
from medzoo.io.read import read

SLICE = arrow(12, 16, top=2000)
VOLUME = np.stack([SLICE + 100 * i for i in range(5)]).astype(np.uint16)


def test_81_slices_are_sorted_by_position_not_by_name_or_number(tmp_path):
    paths = write_series(tmp_path / "ct", VOLUME)
    for order in (paths, paths[::-1], [paths[i] for i in (2, 0, 4, 1, 3)]):
        image = read_series(order, ReadOptions())
        assert image.array.shape == (1, 5, 12, 16)
        assert image.array.dtype == np.int32
        np.testing.assert_array_equal(image.array[0], VOLUME.astype(int) - 1024)
    assert (image.unit, image.modality, image.orientation) == ("HU", "CT", "SPL")
    np.testing.assert_allclose(image.spacing, (2.5, 0.7, 0.9))
    np.testing.assert_allclose(image.affine @ [2, 1, 1, 1], [20 - 0.9, 30 - 0.7, 105, 1])
    assert "sop" not in image.identity
    assert image.identity["series"] == SERIES


def test_a_folder_with_one_series_is_read(tmp_path):
    write_series(tmp_path / "ct", VOLUME)
    (tmp_path / "ct" / "README.txt").write_text("notes")
    (tmp_path / "ct" / ".DS_Store").write_bytes(bytes(10))
    scout = slice_fields((0, 0, 0), 99, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.2.9")
    write_dicom(tmp_path / "ct" / "scout", SLICE, **scout)
    assert read(tmp_path / "ct").array.shape == (1, 5, 12, 16)


def test_a_frame_of_a_series_is_a_slice_by_its_position(tmp_path):
    write_series(tmp_path / "ct", VOLUME)
    image = read(tmp_path / "ct", frame=1)
    np.testing.assert_array_equal(image.array[0], VOLUME[1].astype(int) - 1024)
    with pytest.raises(DataError, match="expected frame below 5, got frame=5"):
        read(tmp_path / "ct", frame=5)


@pytest.mark.parametrize(
    ("cosines", "orientation"),
    [
        ([1, 0, 0, 0, 1, 0], "SPL"),
        ([1, 0, 0, 0, 0, -1], "PIL"),  # coronal
        ([0, 1, 0, 0, 0, -1], "RIP"),  # sagittal: columns run to the back, rows to the feet
        ([-1, 0, 0, 0, -1, 0], "SAR"),
        ([1, 0, 0, 0, -1, 0], "IAL"),
    ],
)
def test_81_any_plane_is_sorted_along_its_own_normal(tmp_path, cosines, orientation):
    normal = np.cross(cosines[:3], cosines[3:])
    for i in (3, 0, 2, 1):
        fields = slice_fields(tuple(normal * 2.0 * i), i, ImageOrientationPatient=[float(c) for c in cosines])
        write_dicom(tmp_path / f"{i}", VOLUME[i], **fields)
    image = read(tmp_path)
    assert image.orientation == orientation
    np.testing.assert_array_equal(image.array[0], VOLUME[:4].astype(int) - 1024)
    lps = np.diag([-1, -1, 1, 1]) @ image.affine
    np.testing.assert_allclose(lps[:3, 0], normal * 2.0, atol=1e-12)
    np.testing.assert_allclose(lps[:3, 1], 0.7 * np.array(cosines[3:]), atol=1e-12)
    np.testing.assert_allclose(lps[:3, 2], 0.9 * np.array(cosines[:3]), atol=1e-12)


def test_81_a_tilted_gantry_is_kept_in_the_affine(tmp_path):
    for i in range(4):
        write_dicom(tmp_path / f"{i}", SLICE, **slice_fields((0.0, 1.0 * i, 3.0 * i), i))
    image = read(tmp_path)
    np.testing.assert_allclose(image.affine[:3, 0], [0, -1, 3])
    assert "gantry tilt of 18.4 degrees kept in the affine" in image.notes


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("other", "expected one slice at each position, found .* 0 mm apart"),
        ("gap", r"expected slices 2\.5 mm apart, found 5 mm between"),
        ("series", "expected exactly one DICOM series, found 2 of them"),
        ("turn", "found 2 of them: 0: IM0001 and 4 more, .*; 1: extra, "),
        ("spacing", "found 2 of them: 0: IM0001 and 4 more, axial 0.7 × 0.9 mm; 1: extra, axial 0.7 × 0.8 mm"),
        ("size", "found 2 of them: 0: IM0001 and 4 more, size 12 × 16; 1: extra, size 8 × 16"),
        ("place", "expected ImagePositionPatient, ImageOrientationPatient and PixelSpacing"),
        ("nan", "expected 3 finite numbers in ImagePositionPatient"),
        ("shift", "expected slices along one line, found them shifted"),
        ("frames", "expected a grey single-frame slice"),
    ],
)
def test_81_a_series_that_is_not_a_volume_is_refused(tmp_path, change, found):
    paths = write_series(tmp_path / "ct", VOLUME)
    extra = tmp_path / "ct" / "extra"
    place = (-20.0, -30.0, 100 + 5 * 2.5)
    if change == "other":
        write_dicom(extra, SLICE, **slice_fields((-20.0, -30.0, 105.0), 9))
    elif change == "gap":
        paths[2].unlink()
    elif change == "frames":
        write_dicom(extra, VOLUME, **slice_fields(place))
        found = "found 2 of them"
    else:
        fields = {
            "series": {"SeriesInstanceUID": "1.2.3"},
            "turn": {"ImageOrientationPatient": [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]},
            "spacing": {"PixelSpacing": [0.7, 0.8]},
            "size": {},
            "place": {"ImagePositionPatient": None},
            "nan": {},
            "shift": {"ImagePositionPatient": [300.0, -30.0, place[2]]},
        }[change]
        ds = dataset(SLICE[:8] if change == "size" else SLICE, **(slice_fields(place, 9) | fields))
        if change == "nan":
            ds.ImagePositionPatient = [0.0, 0.0, float("nan")]
        save(ds, extra)
    with pytest.raises(DataError, match=found):
        read(tmp_path / "ct")


def test_81_files_of_two_series_given_together_are_refused(tmp_path):
    first = write_series(tmp_path / "a", VOLUME[:2])
    second = write_series(tmp_path / "b", VOLUME[2:], SeriesInstanceUID="1.2.3")
    with pytest.raises(DataError, match="expected slices of one series"):
        read_series([*first, *second], ReadOptions())


def test_81_projections_are_not_a_series(tmp_path):
    paths = [write_dicom(tmp_path / f"{i}", SLICE, Modality="DX") for i in range(2)]
    with pytest.raises(DataError, match="expected slices of a volume, found DX pictures"):
        read_series(paths, ReadOptions())


def test_slices_with_their_own_rescale_agree_in_value(tmp_path):
    """Positron emission scales each slice to fill 16 bits."""
    want = VOLUME.astype(np.float32) / 7
    for i, pixels in enumerate(want):
        slope = float(f"{pixels.max() / 65535:.10g}")
        fields = slice_fields((0, 0, 3.0 * i), i, Modality="PT", RescaleSlope=slope, RescaleIntercept=0)
        write_dicom(tmp_path / f"{i}", np.round(pixels / slope).astype(np.uint16), **fields)
    image = read(tmp_path)
    np.testing.assert_allclose(image.array[0], want, atol=0.01)
    assert image.unit == "raw"


def test_max_voxels_is_checked_before_slices_are_read(tmp_path):
    write_series(tmp_path / "ct", VOLUME)
    with pytest.raises(DataError, match="the header declares 5 × 12 × 16, that is 960"):
        read(tmp_path / "ct", max_voxels=959)


@pytest.mark.parametrize("content", ["nothing", "pictures", "two"])
def test_64_a_folder_without_exactly_one_series(tmp_path, content):
    if content == "pictures":
        write_png(tmp_path / "a.png", SLICE.astype(np.uint8))
    if content == "two":
        write_series(tmp_path, VOLUME[:2])
        write_dicom(tmp_path / "other", SLICE, **slice_fields((0, 0, 0), SeriesInstanceUID="1.2.3"))
    found = {"nothing": "none among 0", "pictures": "none among 1", "two": "found 2 of them"}[content]
    with pytest.raises(DataError, match=f"expected exactly one DICOM series, .*{found}"):
        read(tmp_path)


def test_64_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("medzoo.io.files.os.access", lambda *_: False)
    with pytest.raises(DataError, match="permission is denied"):
        scan(tmp_path)


def test_scan_classifies_a_tree(tmp_path):
    """Two series, a scout, a report, images, a damaged file and files that are not images."""
    write_series(tmp_path / "b" / "ct1", VOLUME)
    write_series(tmp_path / "b" / "ct2", VOLUME[:3], SeriesInstanceUID="1.2.3")
    write_dicom(tmp_path / "b" / "lone", SLICE, **slice_fields((0, 0, 0), SeriesInstanceUID="1.2.4"))
    write_dicom(tmp_path / "scout", SLICE, **slice_fields((0, 0, 0), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    report = dataset(SLICE, Modality="SR", Rows=None, Columns=None)
    del report.PixelData
    save(report, tmp_path / "report.dcm")
    for i in range(2):
        write_dicom(tmp_path / f"xray{i}.dcm", SLICE)
    write_dicom(tmp_path / "cine", VOLUME, Modality="US")
    write_png(tmp_path / "picture.png", SLICE.astype(np.uint8))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "xray0.dcm").read_bytes()[:200])
    (tmp_path / "empty.nii.gz").touch()
    (tmp_path / "labels.csv").write_text("a,b")
    (tmp_path / ".hidden.png").touch()
    (tmp_path / "again").symlink_to(tmp_path / "b", target_is_directory=True)
    found = {s.label: (s.kind, s.reason, len(s.paths)) for s in scan(tmp_path)}
    assert found == {
        ".hidden.png": ("skip", "hidden", 1),
        "again": ("skip", "a link to a folder, which is not followed", 1),
        "b/ct1/IM0001 and 4 more": ("series", "", 5),
        "b/ct2/IM0001 and 2 more": ("series", "", 3),
        "b/lone": ("image", "", 1),
        "broken.png": ("image", "", 1),
        "cine": ("image", "", 1),
        "cut.dcm": ("image", "", 1),
        "empty.nii.gz": ("image", "", 1),
        "labels.csv": ("skip", "not an image file", 1),
        "picture.png": ("image", "", 1),
        "report.dcm": ("skip", "a structured report (SR)", 1),
        "scout": ("skip", "a scout (LOCALIZER)", 1),
        "xray0.dcm": ("image", "", 1),
        "xray1.dcm": ("image", "", 1),
    }


def test_scan_lists_unreadable_files_as_images(tmp_path, monkeypatch):
    """Skipping them silently could leave a patient out."""
    write_dicom(tmp_path / "IM0001", SLICE)
    (tmp_path / "notes").touch()
    (tmp_path / "dangling.dcm").symlink_to(tmp_path / "absent")
    access = os.access
    monkeypatch.setattr("medzoo.io.files.os.access", lambda path, mode: path.name != "IM0001" and access(path, mode))
    found = {source.label: (source.kind, source.reason) for source in scan(tmp_path)}
    assert found == {"IM0001": ("image", ""), "dangling.dcm": ("image", ""), "notes": ("skip", "an empty file")}


def test_scan_of_a_file_is_that_file(tmp_path):
    path = write_png(tmp_path / "a.png", SLICE.astype(np.uint8))
    (source,) = scan(path)
    assert (source.paths, source.kind, source.label) == ((path,), "image", "a.png")
    with pytest.raises(DataError, match="found nothing there"):
        scan(tmp_path / "absent")
