"""Reading NIfTI headers as nibabel does, compared with nibabel."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
from make_images import write_nifti

from medzoo.errors import DataError
from medzoo.io.read import read

VOLUME = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6) - 60


def canonical(path):
    """Return what nibabel reads, in the closest orientation to RAS."""
    return nibabel.as_closest_canonical(nibabel.load(path))


def write_nifti_header(path, **fields):
    """Write an oblique volume, and change fields of its header without nibabel's checks."""
    affine = np.array([[0, 0, 3.0, 1], [-0.9, 0.1, 0, 2], [0.1, 0.9, 0, 3], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(VOLUME, affine)
    image.set_qform(affine, 1)
    block = nibabel.Nifti1Header.from_header(image.header)
    block["magic"], block["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        block[name] = value
    path.write_bytes(block.binaryblock + bytes(4) + VOLUME.tobytes(order="F"))
    return path


@pytest.mark.parametrize(
    "form", [{"sform_code": 0}, {"sform_code": 0, "qform_code": 5}, {"sform_code": 3}, {"qform_code": 0}]
)
@pytest.mark.parametrize(
    "fields",
    [
        {"pixdim": [1, 0.9, 0.8, 3, 0, 0, 0, 0]},
        {"pixdim": [-1, 0.9, 0.8, 3, 0, 0, 0, 0]},
        {"pixdim": [0, 0.9, 0.8, 3, 0, 0, 0, 0]},
        {"pixdim": [7, 0.9, 0.8, 3, 0, 0, 0, 0]},
        {"pixdim": [np.nan, 0.9, 0.8, 3, 0, 0, 0, 0]},
        {"pixdim": [1, -0.9, 0.8, -3, 0, 0, 0, 0]},
        {"quatern_b": 1.0000001, "quatern_c": 0, "quatern_d": 0},
        {"scl_slope": 0, "scl_inter": 7},
        {"scl_slope": np.nan, "scl_inter": np.nan},
        {"scl_slope": 0.5, "scl_inter": -7},
        {"bitpix": 8},
        {"xyzt_units": 10},
        {"intent_code": 1007, "intent_name": b"vector"},
        {"dim": [4, 4, 5, 6, 1, 1, 1, 1]},
        {"dim": [7, 4, 5, 6, 1, 1, 1, 1]},
        {"descrip": "M\xfcller".encode("latin-1")},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:numpy.ufunc")
def test_130_a_nifti_has_the_values_and_affine_of_nibabel(tmp_path, fields, form, caplog):
    path = write_nifti_header(tmp_path / "a.nii", **fields | form)
    image, want = read(path), canonical(path)
    np.testing.assert_array_equal(image.array[0], want.get_fdata().reshape(want.shape[:3]))
    np.testing.assert_allclose(image.affine, want.affine, atol=1e-6)
    assert image.warning == ""


def test_130_nan_in_the_form_that_is_not_used(tmp_path):
    nan = np.full(4, np.nan)
    path = write_nifti_header(tmp_path / "a.nii", sform_code=0, srow_x=nan, srow_y=nan, srow_z=nan)
    np.testing.assert_allclose(read(path).affine, canonical(path).affine, atol=1e-6)
    path = write_nifti_header(tmp_path / "a.nii", quatern_b=np.nan, quatern_c=np.nan)
    np.testing.assert_allclose(read(path).affine, canonical(path).affine, atol=1e-6)


def test_130_a_size_of_zero_is_1_mm_with_a_warning(tmp_path):
    path = write_nifti_header(tmp_path / "a.nii", sform_code=0, pixdim=[1, 0.9, 0, 3, 0, 0, 0, 0])
    with pytest.warns(UserWarning, match="A voxel size of the file is 0; it is read as 1 mm"):
        image = read(path)
    np.testing.assert_allclose(image.affine, canonical(path).affine, atol=1e-6)


def test_130_the_size_of_a_single_slice_may_be_zero(tmp_path):
    fields = {"sform_code": 0, "dim": [3, 4, 5, 1, 1, 1, 1, 1], "pixdim": [1, 0.9, 0.8, 0, 0, 0, 0, 0]}
    path = write_nifti_header(tmp_path / "a.nii", **fields)
    path.write_bytes(path.read_bytes()[: 352 + 40])
    assert read(path).warning == ""


@pytest.mark.parametrize("length", [1.001, 1.2, np.inf, np.nan])
def test_130_a_quaternion_is_a_unit_one(tmp_path, length):
    """nifti1_io.c normalizes one that is too long; nibabel refuses it."""
    fields = {"sform_code": 0, "quatern_b": 0, "quatern_c": 0, "quatern_d": length, "pixdim": [1, 2, 2, 2, 0, 0, 0, 0]}
    path = write_nifti_header(tmp_path / "a.nii", **fields)
    if length == 1.001:
        got = read(path)
        np.testing.assert_allclose(got.affine[:3, :3], np.diag([2, 2, 2]), atol=1e-2)
        np.testing.assert_array_equal(got.array[0], VOLUME[::-1, ::-1])
    else:
        with pytest.raises(DataError, match="expected a unit quaternion, found one of length"):
            read(path)


def test_130_an_infinite_scaling_is_a_warning(tmp_path):
    path = write_nifti_header(tmp_path / "a.nii", scl_slope=np.inf)
    with pytest.warns(UserWarning, match="The scaling of the file is infinite"):
        image = read(path)
    np.testing.assert_array_equal(image.array[0], canonical(path).get_fdata())
    with pytest.raises(DataError, match="expected a finite scaling, found slope 2"):
        read(write_nifti_header(tmp_path / "a.nii", scl_slope=2, scl_inter=np.nan))


def test_130_an_unknown_form_code_is_no_form(tmp_path):
    got = read(write_nifti_header(tmp_path / "a.nii", sform_code=9, qform_code=-3))
    assert (got.affine, got.notes) == (None, ("the file gives no orientation: axes left as stored",))


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_130_compression_is_seen_in_the_bytes_not_in_the_name(tmp_path, suffix):
    path = write_nifti(tmp_path / f"a.{suffix}", VOLUME)
    other = tmp_path / ("b.nii.gz" if suffix == "nii" else "b.nii")
    other.write_bytes(path.read_bytes())
    np.testing.assert_array_equal(read(other).array[0], VOLUME)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_130_bytes_after_the_voxels_are_a_warning(tmp_path, suffix):
    path = write_nifti(tmp_path / f"a.{suffix}", VOLUME)
    data = path.read_bytes()
    longer = [data + b"tail"] if suffix == "nii" else [data + b"tail", gzip.compress(gzip.decompress(data) + b"tail")]
    for each in longer:
        path.write_bytes(each)
        with pytest.warns(UserWarning, match="goes on after the voxels that its header declares"):
            np.testing.assert_array_equal(read(path).array[0], VOLUME)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_130_a_pair_of_header_and_voxels(tmp_path, kind, suffix):
    affine = np.diag([-0.7, 0.8, 2.5, 1.0])
    nibabel.save(kind(VOLUME, affine), tmp_path / f"a.img{suffix}")
    image, want = read(tmp_path / f"a.hdr{suffix}"), canonical(tmp_path / f"a.img{suffix}")
    np.testing.assert_array_equal(image.array[0], want.get_fdata())
    np.testing.assert_allclose(image.affine, want.affine, atol=1e-6)
    with pytest.raises(DataError, match=r"found voxels without a header \(give the \.hdr file of a pair\)"):
        read(tmp_path / f"a.img{suffix}")
    (tmp_path / f"a.img{suffix}").unlink()
    with pytest.raises(DataError, match=r"expected its voxels in a\.img, as its header is of a \.hdr/\.img pair"):
        read(tmp_path / f"a.hdr{suffix}")


def test_130_an_analyze_file_is_refused_for_what_it_lacks(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(VOLUME, np.eye(4)), tmp_path / "a.img")
    with pytest.raises(DataError, match=r"found an Analyze 7\.5 header, which does not say where left is"):
        read(tmp_path / "a.hdr")


@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_130_colour_voxels_are_three_channels(tmp_path, names):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, len(names)), dtype=np.uint8)
    pixels[..., 3:] = 255
    voxels = pixels.view([(name, "u1") for name in names])[..., 0]
    path = write_nifti(tmp_path / "a.nii.gz", voxels, np.diag([-1.0, 1, 1, 1]))
    image = read(path)
    np.testing.assert_array_equal(image.array, np.moveaxis(pixels[::-1, ..., :3], -1, 0))
    assert (image.unit, image.value_range) == ("8-bit", (0.0, 255.0))
    if names == "RGBA":
        pixels[0, 0, 0, 3] = 254
        with pytest.raises(DataError, match="found transparency"):
            read(write_nifti(tmp_path / "a.nii.gz", voxels))


def test_130_a_flat_nifti_is_one_slice(tmp_path):
    path = write_nifti(tmp_path / "a.nii", VOLUME[..., 0])
    image = read(path)
    np.testing.assert_array_equal(image.array[0, ..., 0], nibabel.load(path).get_fdata())
    with pytest.raises(DataError, match="expected a volume x × y × z, the header declares 4"):
        read(write_nifti(tmp_path / "a.nii", VOLUME[:, 0, 0]))
