"""Reading a fourth axis as channels, from NIfTI, MetaImage and arrays."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from make_images import write_nifti

from medzoo.errors import DataError
from medzoo.io.options import ReadOptions
from medzoo.io.read import read, read_image

VOLUME = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6) - 60


SEQUENCES = np.stack([VOLUME * 10 + n for n in range(4)], -1)


@pytest.mark.parametrize("shape", [(4, 5, 6, 4), (4, 5, 6, 1, 4)])
@pytest.mark.parametrize("axis", ["count", "last", "-1"])
def test_128_a_fourth_axis_is_read_as_channels(tmp_path, shape, axis):
    """On request, or where the model has as many channels; the axes of space alone are flipped."""
    affine = np.array([[0, 2.0, 0, 5], [-1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    path = write_nifti(tmp_path / "a.nii.gz", SEQUENCES.reshape(shape), affine)
    last = len(shape) - 1
    if axis == "count":
        image = read_image(path, ReadOptions(channels=4))
    else:
        image = read(path, channel_axis=last if axis == "last" else -1)
    assert image.array.shape == (4, 5, 4, 6)
    assert f"axis {last} read as 4 channels" in image.notes
    for n in range(4):
        alone = read(path, frame=n)
        np.testing.assert_array_equal(image.array[n], alone.array[0])
        np.testing.assert_array_equal(image.affine, alone.affine)
    assert image.array.flags.c_contiguous


def test_128_the_error_names_both_ways(tmp_path):
    path = write_nifti(tmp_path / "a.nii", SEQUENCES)
    for options in (ReadOptions(), ReadOptions(channels=3)):
        ways = r"Choose one with frame=0, or split the file\. To read all as channels, give channel_axis=3"
        with pytest.raises(DataError, match=rf"found 4 \(4 × 5 × 6 × 4\)\. {ways}"):
            read_image(path, options)
    assert read_image(path, ReadOptions(channels=4, frame=1)).array.shape == (1, 4, 5, 6)


@pytest.mark.parametrize(
    ("shape", "axis", "found"),
    [
        ((4, 5, 6), 3, r"the axes are 4 × 5 × 6\. Leave channel_axis out"),
        ((4, 5, 6), -1, r"Leave channel_axis out"),
        ((4, 5, 6, 4), 4, r"the axes are 4 × 5 × 6 × 4\. Give channel_axis=3"),
        ((4, 5, 6, 1, 4), 3, r"Give channel_axis=4"),
        ((4, 5, 6, 2, 2), 4, r"expected volumes along one axis"),
    ],
)
def test_128_an_axis_that_does_not_exist_is_refused(tmp_path, shape, axis, found):
    values = np.resize(SEQUENCES, shape).astype(np.int16)
    with pytest.raises(DataError, match=found):
        read(write_nifti(tmp_path / "a.nii", values), channel_axis=axis)


@pytest.mark.parametrize("stored", ["channels", "fourth axis"])
def test_128_a_metaimage_with_channels_or_a_fourth_axis(tmp_path, stored):
    path = tmp_path / "a.mha"
    volumes = np.moveaxis(SEQUENCES, -1, 0).transpose(0, 3, 2, 1).copy()  # c z y x
    if stored == "channels":
        image = sitk.GetImageFromArray(np.moveaxis(volumes, 0, -1).copy(), isVector=True)
    else:
        image = sitk.JoinSeries([sitk.GetImageFromArray(each) for each in volumes])
    sitk.WriteImage(image, str(path))
    with pytest.raises(DataError, match=r"found 4 \(4 × 5 × 6 × 4\).*channel_axis=3"):
        read(path)
    for got in (read(path, channel_axis=3), read(path, channel_axis=-1), read_image(path, ReadOptions(channels=4))):
        np.testing.assert_array_equal(got.array, np.moveaxis(SEQUENCES, -1, 0)[:, ::-1, ::-1])  # LPS to RAS
    np.testing.assert_array_equal(read(path, frame=2).array[0], got.array[2])


def test_128_channels_of_an_array(tmp_path):
    np.save(tmp_path / "a.npy", SEQUENCES)
    for axis in (3, -1):
        image = read(tmp_path / "a.npy", channel_axis=axis)
        np.testing.assert_array_equal(image.array, np.moveaxis(SEQUENCES, -1, 0))
        assert image.notes == ("axis 3 read as 4 channels",)
    np.testing.assert_array_equal(read(SEQUENCES).array, SEQUENCES)  # channels first, as documented
    assert read(np.zeros((5, 6, 3)), channel_axis=-1).array.shape == (3, 5, 6)
    with pytest.raises(DataError, match="expected channels along axis 4, the axes are 4 × 5 × 6 × 4"):
        read(tmp_path / "a.npy", channel_axis=4)


def test_128_channels_of_a_flat_metaimage(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(path))
    with pytest.raises(DataError, match=r"found 4 \(6 × 5 × 4\).* give channel_axis=-1"):
        read(path)
    np.testing.assert_array_equal(read(path, channel_axis=-1).array, np.moveaxis(pixels, -1, 0))
    np.testing.assert_array_equal(read(path, frame=2).array[0], pixels[..., 2])
    sitk.WriteImage(sitk.GetImageFromArray(pixels[..., :3].copy(), isVector=True), str(path))
    np.testing.assert_array_equal(read(path).array, np.moveaxis(pixels[..., :3], -1, 0))


@pytest.mark.parametrize(("unit", "step", "channels"), [("sec", 2.0, 1), ("msec", 500.0, 1), ("sec", 1.0, 4)])
def test_128_a_series_in_time_is_not_taken_for_channels(tmp_path, unit, step, channels):
    image = nibabel.Nifti1Image(np.arange(4 * 5 * 6 * 4, dtype=np.int16).reshape(4, 5, 6, 4), np.eye(4))
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = step
    nibabel.save(image, tmp_path / "x.nii")
    if channels == 1:
        with pytest.raises(DataError, match="expected one volume, found 4"):
            read_image(tmp_path / "x.nii", ReadOptions(channels=4))
    else:
        assert read_image(tmp_path / "x.nii", ReadOptions(channels=4)).array.shape == (4, 4, 5, 6)
    assert read(tmp_path / "x.nii", channel_axis=3).array.shape == (4, 4, 5, 6)
