"""Reading real files, which are not part of the repository."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image as Pillow

from medzoo.errors import DataError
from medzoo.io.folder import scan
from medzoo.io.options import ReadOptions
from medzoo.io.read import read, read_image


def test_reading_loads_no_library_before_it_is_needed():
    code = "import sys, medzoo.io.read, medzoo.io.folder, medzoo.io.dicom.series, medzoo.io.metaimage, medzoo.io.nifti"
    code += "\nprint([n for n in ('PIL', 'pydicom', 'nibabel', 'SimpleITK', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_small_set_is_read_or_refused(data):
    folders = ["brain_mr", "chest_ct", "chestxray14_1024px", "chestxray14_dicom", "ct_slices", "dicom_edge_cases"]
    sources = [source for folder in folders for source in scan(data / folder)]
    refused, warned = {}, {source.label: source.warning for source in sources if source.warning}
    for source in sources:
        for path in source.paths if source.kind != "skip" else ():
            try:
                image = read_image(path, ReadOptions())
            except DataError as error:
                refused[path.name] = str(error)
                continue
            if image.warning:
                warned[path.name] = image.warning
            assert np.isfinite(image.array).all()
            assert image.array.flags.c_contiguous
            if image.value_range:
                assert image.value_range[0] <= image.array.min() <= image.array.max() <= image.value_range[1]
    assert set(refused) == {"pydicom-data__emri_small_jpeg_2k_lossless_too_short.dcm"}
    names = ("emri_small", "emri_small_RLE", "emri_small_big_endian")
    order = "The frames have no position: their order and distance are not known."
    assert warned == {f"pydicom-data__{name}.dcm": order for name in names}
    kinds = Counter(source.kind for source in sources)
    assert kinds == {"image": 43, "series": 3, "skip": 5}
    assert {s.reason for s in sources if s.kind == "skip"} == {"not an image file", "a segmentation (SEG)"}


@pytest.mark.parametrize("folder", ["chestxray14_64px", "pneumonia_cxr"])
def test_a_large_set_is_one_grey_channel_throughout(data, folder):
    paths = sorted([*(data / folder).rglob("*.png"), *(data / folder).rglob("*.jp*g")])
    for path in paths[:: max(1, len(paths) // 200)]:
        image = read(path)
        assert image.array.shape[0] == 1
        with Pillow.open(path) as picture:
            np.testing.assert_array_equal(image.array[0], np.asarray(picture.convert("L")))


def test_a_ct_as_series_and_as_nifti_agrees_at_the_same_position(data):
    """The NIfTI was averaged over 2 x 2 pixels, so each of its voxels is centred between four pixels of the series."""
    series = read(data / "chest_ct" / "dicom_A0002")
    volume = read(data / "chest_ct" / "A0002.nii.gz")
    assert (series.unit, series.array.shape) == ("HU", (1, 30, 512, 512))
    dice = np.random.default_rng(0)
    index = np.stack([dice.integers(0, n, 5000) for n in volume.array.shape[1:]] + [np.ones(5000, int)])
    place = np.linalg.solve(series.affine, volume.affine @ index)[:3]
    assert np.abs(place[0] - np.round(place[0])).max() < 1e-3  # the slices are the same
    np.testing.assert_allclose(place[1:] % 1, 0.5, atol=0.02)
    d, (h, w) = np.round(place[0]).astype(int), np.floor(place[1:]).astype(int)
    around = [series.array[0, d, h + i, w + j] for i in (0, 1) for j in (0, 1)]
    at_volume = volume.array[(0, *index[:3])]
    assert np.abs(np.mean(around, axis=0) - at_volume).max() <= 1  # averaging, then rounding


def test_tumour_boxes_contain_soft_tissue(data):
    """The boxes give columns first. Half of each is soft tissue, which fails if h and w are exchanged."""
    slices = [read(path) for path in scan(data / "chest_ct" / "dicom_A0002")[0].paths]
    by_uid = {image.identity["sop"]: image.array[0] for image in slices}
    with (data / "chest_ct" / "tumour_boxes.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["sop_uid"] in by_uid]
    assert rows
    tissue = []
    for row in rows:
        x0, y0, x1, y1 = (int(float(row[key])) for key in ("xmin", "ymin", "xmax", "ymax"))
        box = by_uid[row["sop_uid"]][y0:y1, x0:x1]
        tissue.append(np.mean((box > -150) & (box < 200)))
    assert np.mean(tissue) > 0.5


def test_74_the_copy_relabelled_monochrome1_is_the_exact_inverse(data):
    folder = data / "dicom_edge_cases"
    two = read(next(folder.glob("torchxrayvision__1.2.276*")))
    one = read(folder / "torchxrayvision__Fake_MONOHR1.dcm")
    np.testing.assert_array_equal(one.array.astype(int), 255 - two.array.astype(int))
    assert "MONOCHROME1 inverted" in one.notes


def test_78_multiframe_reads_the_same_raw_rle_and_big_endian(data):
    folder = data / "dicom_edge_cases"
    names = ("emri_small", "emri_small_RLE", "emri_small_big_endian")
    raw, *others = [read_image(folder / f"pydicom-data__{name}.dcm", ReadOptions()) for name in names]
    assert raw.array.shape == (1, 10, 64, 64)
    for other in others:
        np.testing.assert_array_equal(other.array, raw.array)


def test_78_jpeg_lossless_needs_simpleitk(data):
    image = read(data / "dicom_edge_cases" / "pydicom-data__JPEG-LL.dcm")
    assert image.array.shape == (1, 1024, 256)
    assert (image.array.min(), image.array.max()) == (0, 278)


def test_ct_slices_without_a_modality_are_in_hu(data):
    for path in sorted((data / "ct_slices").iterdir()):
        image = read(path)
        assert (image.modality, image.unit) == ("CT", "HU")
        assert -1100 < np.percentile(image.array, 30) < 100
        assert image.affine is not None


def test_nih_pictures_agree_as_png_and_as_dicom(data):
    """The DICOM files were made from the NIH PNG files: 8-bit grey, bone is white."""
    for path in sorted((data / "chestxray14_dicom").iterdir()):
        image = read(path)
        assert (image.array.shape, image.unit, image.modality) == ((1, 1024, 1024), "8-bit", "DX")


def test_brain_mr_is_canonical_and_keeps_its_slices(data):
    for path in sorted((data / "brain_mr").iterdir()):
        image = read(path)
        assert image.orientation == "RAS"
        np.testing.assert_allclose(image.spacing, (0.8594, 0.8594, 6.5), atol=1e-3)
