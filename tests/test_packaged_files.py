"""Every image file that nibabel, scikit-image, SimpleITK and MONAI install reads as their own readers read it.

A file that is not read is refused for its true reason: no sound file is called damaged.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from medzoo.errors import DataError
from medzoo.io.files import has_image_suffix, identify
from medzoo.io.options import ReadOptions
from medzoo.io.read import read, read_image

# The outcomes for the versions that were counted: docs/reliability.md quotes them.
COUNTS = {
    ("nibabel", "5.4.2"): {
        "nifti equal": 3, "nifti equal by frame and as channels": 3, "nifti equal where finite": 1, "dicom": 7,
        "refused: CIFTI": 1, "refused: voxels absent": 2, "refused: another format": 95,
    },
    ("scikit-image", "0.26.0"): {
        "png equal": 22, "jpeg equal": 3, "tiff equal by frame": 2, "npy equal": 2, "refused: transparency": 1,
        "refused: axes without a channel": 1, "refused: another format": 3,
    },
    ("simpleitk", "2.5.7"): {},
    ("monai", "1.6.1"): {},
}  # fmt: skip
CODE = (".py", ".pyc", ".pyi", ".so", ".pyd", ".typed", ".txt", ".md", ".ini", ".json", ".h", ".cpp", ".cu", ".css")
REASONS = {
    "voxels without a header": "another format", "an Analyze 7.5 header": "another format",
    "found a ": "another format", "found an ": "another format", "found other bytes": "another format",
    "found CIFTI": "CIFTI",
    "found transparency": "transparency", "up to 4 channels": "axes without a channel",
    "header is of a .hdr/.img pair": "voxels absent", "without its preamble": "DICOM without preamble",
}  # fmt: skip


def files_of(package: str) -> list[Path]:
    """Return the files of an installed package that are no code."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed; its files are read where it is")
    found = sorted(path for path in Path(spec.origin).parent.rglob("*") if path.is_file())
    return [path for path in found if path.suffix not in CODE and path.stat().st_size]


def outcome(path: Path) -> str:
    """Compare a file with the reader of its package, and return how that ended."""
    kind = identify(path)
    if kind == "dicom":  # compared in the tests of DICOM
        return kind
    if kind in ("nifti", "nifti.gz"):
        return refused(path) or f"nifti {compare_nifti(path)}"
    if kind in ("png", "jpeg"):
        return refused(path) or f"{kind} {compare_picture(path)}"
    if kind == "tiff":
        return refused(path) or f"tiff {compare_tiff(path)}"
    if kind == "npy":
        return refused(path) or f"npy {compare_array(path)}"
    return refused(path)


def refused(path: Path) -> str:
    """Return for which of the documented reasons a file is not read, or nothing."""
    try:
        read(path)
    except DataError as error:
        message = str(error)
        assert "damaged" not in message
        if "Choose one" in message or "nan='zero'" in message:  # it is read on request
            return ""
        return "refused: " + next(name for text, name in REASONS.items() if text in message)
    return ""


def compare_nifti(path: Path) -> str:
    want = nibabel.as_closest_canonical(nibabel.load(path))
    values = want.get_fdata()
    if values.ndim == 4 and values.shape[3] > 1:
        together = read_image(path, ReadOptions(channel_axis=3))
        np.testing.assert_array_equal(together.array, np.moveaxis(values, -1, 0))
        for frame in range(values.shape[3]):
            np.testing.assert_array_equal(read(path, frame=frame).array[0], values[..., frame])
        np.testing.assert_allclose(together.affine, want.affine, atol=1e-6)
        return "equal by frame and as channels"
    finite = np.isfinite(values)
    image = read(path, nan="zero")
    np.testing.assert_array_equal(image.array[0], np.where(finite, values, 0))
    np.testing.assert_allclose(image.affine, want.affine, atol=1e-6)
    return "equal" if finite.all() else "equal where finite"


def compare_picture(path: Path) -> str:
    with Pillow.open(path) as picture:
        plain = picture if picture.mode in ("1", "L", "I;16", "RGB") else picture.convert("RGB")
        want = np.atleast_3d(np.asarray(plain))
    got = read(path).array
    if got.dtype == np.uint16 and want.dtype == np.uint8:  # Pillow reads 16-bit colour as 8-bit
        got = (got >> 8).astype(np.uint8)
    want = np.moveaxis(want, -1, 0)
    np.testing.assert_array_equal(np.broadcast_to(got, want.shape), want)
    return "equal"


def compare_tiff(path: Path) -> str:
    with tifffile.TiffFile(path) as file:
        pages = [
            page.asarray() if page.axes == "SYX" else np.moveaxis(np.atleast_3d(page.asarray()), -1, 0)
            for page in file.pages
        ]
    for frame, want in enumerate(pages):
        got = read(path, frame=frame if len(pages) > 1 else None).array
        np.testing.assert_array_equal(np.broadcast_to(got, want.shape), want)
    return "equal by frame" if len(pages) > 1 else "equal"


def compare_array(path: Path) -> str:
    want = np.load(path)
    np.testing.assert_array_equal(read(path).array, want if want.ndim > 2 else want[None])
    return "equal"


@pytest.mark.parametrize(
    ("package", "distribution"),
    [("nibabel", "nibabel"), ("skimage", "scikit-image"), ("SimpleITK", "simpleitk"), ("monai", "monai")],
)
def test_every_packaged_image_is_read_right_or_refused_for_its_reason(package, distribution):
    paths = files_of(package)
    images = [path for path in paths if identify(path) or has_image_suffix(path) or package in ("nibabel", "skimage")]
    counts = Counter(outcome(path) for path in images)
    expected = COUNTS.get((distribution, importlib.metadata.version(distribution)))
    assert expected is None or counts == expected, dict(counts)
    assert all(name.startswith(("refused: ", "nifti ", "png ", "jpeg ", "tiff ", "npy ", "dicom")) for name in counts)
