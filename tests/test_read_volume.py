"""Reading NIfTI and MetaImage volumes, on files written by nibabel and SimpleITK."""

from __future__ import annotations

import gzip
import itertools
import struct

import nibabel
import numpy as np
import pytest
from make_images import write_metaimage, write_nifti

from medzoo.errors import DataError
from medzoo.io.read import read

VOLUME = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6) - 60


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_a_nifti_volume_is_x_y_z(tmp_path, suffix, dtype):
    volume = np.abs(VOLUME).astype(dtype)
    image = read(write_nifti(tmp_path / f"a.{suffix}", volume))
    assert image.array.shape == (1, 4, 5, 6)
    assert image.array.dtype == dtype
    assert image.array.flags.c_contiguous
    np.testing.assert_array_equal(image.array[0], volume)
    np.testing.assert_allclose(image.spacing, (0.7, 0.8, 2.5), rtol=1e-6)
    assert (image.orientation, image.unit, image.modality, image.value_range) == ("RAS", "raw", "", None)


def test_nifti_2_big_endian_and_scaling(tmp_path):
    image = nibabel.Nifti2Image(VOLUME, np.eye(4))
    nibabel.save(image, tmp_path / "two.nii")
    np.testing.assert_array_equal(read(tmp_path / "two.nii").array[0], VOLUME)
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    header.set_slope_inter(2.0, -1000.0)
    image = nibabel.Nifti1Image(VOLUME, np.eye(4), header)
    image.header.set_slope_inter(2.0, -1000.0)
    nibabel.save(image, tmp_path / "big.nii")
    got = read(tmp_path / "big.nii")
    np.testing.assert_allclose(got.array[0], VOLUME * 2.0 - 1000)
    assert got.array.dtype.isnative


def test_82_a_fourth_axis_of_one_is_dropped(tmp_path):
    assert read(write_nifti(tmp_path / "a.nii", VOLUME[..., None])).array.shape == (1, 4, 5, 6)


def test_82_several_volumes_need_a_frame(tmp_path):
    volumes = np.stack([VOLUME, -VOLUME], -1)
    path = write_nifti(tmp_path / "a.nii.gz", volumes)
    with pytest.raises(DataError, match=r"expected one volume, found 2 \(4 × 5 × 6 × 2\)\. Choose one with frame=0"):
        read(path)
    image = read(path, frame=1)
    np.testing.assert_array_equal(image.array[0], -VOLUME)
    assert "volume 1 of 2" in image.notes
    with pytest.raises(DataError, match="expected frame below 2, got frame=2"):
        read(path, frame=2)


def test_83_nan_is_refused_or_set_to_zero(tmp_path):
    volume = VOLUME.astype(np.float32)
    volume[0, 0, :3] = np.nan, np.inf, -np.inf
    path = write_nifti(tmp_path / "a.nii", volume)
    with pytest.raises(DataError, match=r"expected finite values, found 3 of 120 NaN or infinite.*nan='zero'"):
        read(path)
    image = read(path, nan="zero")
    assert image.array[0, 0, 0, :3].tolist() == [0, 0, 0]
    assert "3 NaN or infinite values set to 0" in image.notes


@pytest.mark.parametrize("part", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_84_a_cut_volume_is_refused(tmp_path, part, suffix):
    noise = np.random.default_rng(0).integers(-1000, 1000, (16, 16, 16), dtype=np.int16)
    path = write_nifti(tmp_path / f"a.{suffix}", noise)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError, match=r"a\.nii"):
        read(path)


def test_84_every_flipped_bit_of_a_gzip_is_found(tmp_path):
    """The checksum is after the last voxel; nibabel alone stops reading before it."""
    noise = np.random.default_rng(0).integers(-1000, 1000, (8, 8, 8), dtype=np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", noise)
    data = path.read_bytes()
    name_ends = data.index(b"\0", 10) + 1  # the gzip header holds time and name, which no checksum covers
    for at in range(name_ends, len(data), 37):
        mutant = bytearray(data)
        mutant[at] ^= 16
        path.write_bytes(mutant)
        with pytest.raises(DataError):
            read(path)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("sides", [(30000, 30000, 500), (4, 5, 7), (-4, 5, 6), (0, 5, 6), (2000, 2000, 100)])
def test_85_sizes_that_the_file_cannot_hold_are_refused(tmp_path, suffix, sides):
    path = write_nifti(tmp_path / f"a.{suffix}", VOLUME)
    data = bytearray(gzip.decompress(path.read_bytes()) if suffix == "nii.gz" else path.read_bytes())
    data[42:48] = struct.pack("<3h", *sides)
    path.write_bytes(gzip.compress(data) if suffix == "nii.gz" else data)
    with pytest.raises(DataError, match=r"the header declares|expected \d+ bytes"):
        read(path)


def test_85_max_voxels_is_checked(tmp_path):
    path = write_nifti(tmp_path / "a.nii", VOLUME)
    with pytest.raises(DataError, match="expected at most 119 values, the header declares 4 × 5 × 6, that is 120"):
        read(path, max_voxels=119)


@pytest.mark.parametrize("signs", list(itertools.product([1, -1], repeat=3)))
@pytest.mark.parametrize("writer", ["nifti", "metaimage"])
def test_86_eight_flips_of_an_anisotropic_volume_read_the_same(tmp_path, signs, writer):
    """The same volume stored with eight combinations of flips gives one array and one affine."""
    spacing = np.array([0.7, 0.8, 2.5])
    stored = VOLUME[tuple(slice(None, None, s) for s in signs)]
    affine = np.diag([*(spacing * signs), 1.0])
    affine[:3, 3] = [10 + (n - 1) * d if s < 0 else 10 for s, n, d in zip(signs, VOLUME.shape, spacing, strict=True)]
    if writer == "nifti":
        path = write_nifti(tmp_path / "a.nii", stored, affine)
    else:
        lps = np.diag([-1, -1, 1, 1]) @ affine
        path = write_metaimage(
            tmp_path / "a.mha",
            np.ascontiguousarray(stored.transpose(2, 1, 0)),
            origin=lps[:3, 3],
            direction=np.diag(np.array([-1, -1, 1]) * signs).astype(float).ravel(),
        )
    image = read(path)
    assert image.orientation == "RAS"
    np.testing.assert_array_equal(image.array[0], VOLUME)
    want = np.diag([*spacing, 1.0])
    want[:3, 3] = 10
    np.testing.assert_allclose(image.affine, want, atol=1e-5)
    np.testing.assert_allclose(image.spacing, spacing, rtol=1e-6)


def test_86_axes_in_any_order_and_oblique(tmp_path):
    """A sagittal volume, tilted by 10 degrees: every voxel keeps its position in the world."""
    angle = np.radians(10)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.array([[0, 0, 3.0], [-0.9, 0, 0], [0, -0.9, 0]])
    affine[:3, 3] = [1, 2, 3]
    image = read(write_nifti(tmp_path / "a.nii", VOLUME, affine))
    assert image.orientation == "RAS"
    assert image.array.shape == (1, 6, 4, 5)
    for index in itertools.product(range(4), range(5), range(6)):
        world = affine @ [*index, 1]
        there = np.round(np.linalg.solve(image.affine, world)[:3]).astype(int)
        assert image.array[(0, *there)] == VOLUME[index]


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.diag([1.0, 1, 0, 1]), np.full((4, 4), np.nan)])
def test_86_a_singular_affine_is_refused(tmp_path, affine):
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = affine[:3]
    image.header["sform_code"] = 1
    path = tmp_path / "a.nii"
    path.write_bytes(image.header.binaryblock + bytes(4) + VOLUME.tobytes(order="F"))
    header = bytearray(path.read_bytes())
    header[108:112] = struct.pack("<f", 352.0)
    path.write_bytes(header)
    with pytest.raises(DataError, match="expected an affine with three independent axes"):
        read(path)


def test_86_without_an_affine_the_axes_stay(tmp_path):
    image = nibabel.Nifti1Image(VOLUME, None)
    image.header.set_zooms((0.7, 0.8, 2.5))
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, tmp_path / "a.nii")
    got = read(tmp_path / "a.nii")
    assert got.affine is None
    assert got.orientation is None
    np.testing.assert_allclose(got.spacing, (0.7, 0.8, 2.5), rtol=1e-6)
    np.testing.assert_array_equal(got.array[0], VOLUME)


def test_87_spacing_is_kept_in_mm(tmp_path):
    image = nibabel.Nifti1Image(VOLUME, np.diag([0.0007, 0.0007, 0.0025, 1.0]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read(tmp_path / "a.nii").spacing, (0.7, 0.7, 2.5), rtol=1e-5)


def test_complex_voxels_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected real or RGB voxels, found complex64"):
        read(write_nifti(tmp_path / "a.nii", VOLUME.astype(np.complex64)))
