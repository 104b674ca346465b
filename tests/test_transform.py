"""From an image to a tensor, and back to the grid of the image."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from make_images import write_dicom

import medzoo
from medzoo.errors import ConfigError, DataError, InputError
from medzoo.transforms.transform import Transform

FLIPS = list(itertools.product((1, -1), repeat=3))


def prepare(preprocessing, source, channels=1, **options):
    return Transform(preprocessing, channels=channels, who="model").prepare(source, **options)


def examine(preprocessing, source):
    """Prepare values that encode a position, which no scanner would give, without a warning of that."""
    return Transform(preprocessing, channels=1, who="model").examine(source)


def volume(shape=(12, 10, 8), spacing=(1.0, 2.0, 3.0), flips=(1, 1, 1)):
    """Return a smooth volume in RAS whose values encode their position, stored with some axes flipped."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    values = grid[0] * 100.0 + grid[1] * 10 + grid[2]
    affine = np.diag([*spacing, 1.0])
    for axis, flip in enumerate(flips):
        if flip < 0:
            values = np.flip(values, axis)
            affine[:, 3] += affine[:, axis] * (shape[axis] - 1)
            affine[:, axis] *= -1
    return medzoo.Image(values[None].astype(np.float32).copy(), affine=affine, spacing=spacing, value_range=(0, 1))


def test_an_x_ray_is_scaled_by_its_stored_range_resized_and_repeated():
    pixels = np.zeros((1, 40, 60), np.uint8)
    pixels[:, :20] = 255
    prepared = prepare(medzoo.Preprocessing(size=(20, 20), mean=(0.5,), std=(0.25,)), pixels, channels=3)
    assert prepared.tensor.shape == (3, 20, 20)
    assert prepared.tensor.dtype == torch.float32
    torch.testing.assert_close(prepared.tensor[:, 0], torch.full((3, 20), 2.0))
    torch.testing.assert_close(prepared.tensor[:, -1], torch.full((3, 20), -2.0))
    assert prepared.steps == (
        "range 0 to 255 mapped to 0 to 1",
        "resized from 40 × 60 to 20 × 20",
        "grey repeated to 3 channels",
        "normalised with mean 0.5 and std 0.25",
    )


def test_torchxrayvisions_range():
    how = medzoo.describe("densenet121_xray").preprocessing
    x = prepare(how, np.array([[[0, 255]]], np.uint8).repeat(2, 1)).tensor
    assert x.min() == pytest.approx(-1024)
    assert x.max() == pytest.approx(1024)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "bool"])
def test_an_integer_array_has_its_types_range(dtype):
    span = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    x = prepare(medzoo.Preprocessing(size=(2, 2)), np.array([span, span])[None].astype(dtype)).tensor
    torch.testing.assert_close(x[0], torch.tensor([[0.0, 1.0], [0.0, 1.0]]))


def test_colour_is_converted_to_grey():
    red = np.zeros((3, 4, 4), np.uint8)
    red[0] = 255
    prepared = examine(medzoo.Preprocessing(size=(4, 4)), red)
    torch.testing.assert_close(prepared.tensor, torch.full((1, 4, 4), 0.299))
    with pytest.raises(DataError, match=r"model takes 1 channel, got 2\. Give .* in_chans=2"):
        prepare(medzoo.Preprocessing(size=(4, 4)), red[:2])


@pytest.mark.parametrize("flips", FLIPS, ids=str)
@pytest.mark.parametrize("orientation", ["RAS", "SPL", "LPI"])
def test_86_every_flip_of_a_volume_gives_the_same_tensor(flips, orientation):
    size = {"R": 12, "L": 12, "A": 10, "P": 10, "S": 8, "I": 8}
    how = medzoo.Preprocessing(size=tuple(size[a] for a in orientation), orientation=orientation)
    stored = volume(flips=flips)
    x = examine(how, stored).tensor[0]
    expected = torch.from_numpy(volume().array[0])
    axes = ["RL".find, "AP".find, "SI".find]
    order = [next(i for i, find in enumerate(axes) if find(a) >= 0) for a in orientation]
    expected = expected.permute(order).flip([i for i, a in enumerate(orientation) if a in "LPI"])
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("flips", FLIPS, ids=str)
def test_a_map_is_inverted_to_the_original_voxels(flips):
    """Anisotropic, flipped, reoriented and resized: within half a voxel."""
    stored = volume(shape=(24, 20, 16), flips=flips)
    how = medzoo.Preprocessing(size=(32, 40, 36), orientation="SPL")
    prepared = examine(how, stored)
    back = prepared.geometry.invert(prepared.tensor)
    assert back.shape == stored.array.shape
    inner = (slice(None), slice(2, -2), slice(2, -2), slice(2, -2))
    # One voxel is 100, 10 and 1 in the values.
    assert (back - torch.from_numpy(stored.array))[inner].abs().max() < 0.5


def test_a_coarse_map_is_inverted_to_its_position():
    stored = volume(shape=(32, 32, 16))
    prepared = examine(medzoo.Preprocessing(size=(32, 64, 64), orientation="SPL"), stored)
    coarse = torch.zeros(1, 4, 8, 8)
    coarse[0, 1, 6, 2] = 1.0  # S 4..8 of 16, P 24..28 of 32, L 8..12 of 32
    back = prepared.geometry.invert(coarse)[0]
    weight = back / back.sum()
    centre = [
        float((weight.sum([a for a in range(3) if a != axis]) * torch.arange(length)).sum())
        for axis, length in enumerate((32, 32, 16))
    ]
    assert centre == pytest.approx([31 - 9.5, 31 - 25.5, 5.5], abs=0.5)


@pytest.mark.parametrize("shape", [(640, 512), (40, 48, 24)], ids=str)
@pytest.mark.parametrize("coarse", [False, True])
def test_a_map_of_ones_is_inverted_to_ones_up_to_the_border(shape, coarse):
    """An activation map must not fade at the apex of a lung."""
    size = (64,) * len(shape)
    how = medzoo.Preprocessing(size=size, orientation="SPL" if len(shape) == 3 else None)
    image = medzoo.Image(np.zeros((1, *shape)), affine=np.diag([-1.0, 2.0, 3.0, 1.0]), value_range=(0, 1))
    prepared = examine(how, image)
    ones = torch.ones(1, *[7 if coarse else 64] * len(shape))
    torch.testing.assert_close(prepared.geometry.invert(ones), torch.ones(1, *shape))
    with pytest.raises(InputError, match=r"expected a map c \*s of"):
        prepared.geometry.invert(ones[None])


def test_a_map_is_zero_outside_a_crop():
    prepared = examine(medzoo.Preprocessing(size=(10, 20), fit="crop"), np.zeros((1, 40, 40)))
    back = prepared.geometry.invert(torch.ones(1, 10, 20))[0]
    assert torch.equal(back, torch.nn.functional.pad(torch.ones(10, 20), (10, 10, 15, 15)))
    assert torch.equal(prepared.geometry.covered(), back == 1)


@pytest.mark.parametrize("fit", ["resize", "crop"])
@pytest.mark.parametrize("size", [(20, 34), (51, 47), (19, 60)], ids=str)
def test_an_image_is_inverted_to_its_pixels(fit, size):
    v, u = np.mgrid[:40, :48]
    pixels = ((v + u) / 100)[None].astype(np.float32)
    prepared = prepare(medzoo.Preprocessing(size=size, fit=fit), pixels)
    assert prepared.tensor.shape[1:] == size
    back = prepared.geometry.invert(prepared.tensor)
    covered = prepared.geometry.invert(torch.ones_like(prepared.tensor)) > 0.999
    inner = torch.zeros_like(covered)
    inner[:, 3:-3, 3:-3] = True
    assert (covered & inner).any()
    assert (back - torch.from_numpy(pixels))[covered & inner].abs().max() < 0.005


def test_87_anisotropic_spacing_keeps_the_physical_size():
    stored = volume(shape=(30, 30, 12), spacing=(0.7, 0.7, 2.5))
    how = medzoo.Preprocessing(size=(64, 64, 64), orientation="RAS", spacing=(1.0, 1.0, 1.0), fit="crop")
    prepared = examine(how, stored)
    assert "resampled to 1, 1, 1 mm" in prepared.steps
    for axis, length in enumerate((0.7, 0.7, 2.5)):
        assert 1 / np.linalg.norm(prepared.geometry.to_source[:3, axis]) == pytest.approx(length)


def test_a_window_is_mapped_and_clipped():
    how = medzoo.Preprocessing(size=(1, 1, 4), intensity="window", window=(-1000, 400))
    hu = medzoo.Image(np.array([-2000, -1000, -300, 3000], np.int16).reshape(1, 1, 1, 4), unit="HU")
    torch.testing.assert_close(prepare(how, hu).tensor.flatten(), torch.tensor([0.0, 0.0, 0.5, 1.0]))


def test_a_volume_is_cropped_to_its_foreground():
    hu = np.full((1, 20, 20, 20), -1000, np.int16)
    hu[:, 4:12, 5:15, 6:10] = 40
    how = medzoo.Preprocessing(size=(8, 10, 4), intensity="window", window=(-500, 500), foreground=True)
    prepared = examine(how, medzoo.Image(hu, unit="HU"))
    assert "cropped to the foreground, 20 × 20 × 20 to 8 × 10 × 4" in prepared.steps
    assert (prepared.tensor == 0.54).all()
    back = prepared.geometry.invert(prepared.tensor)
    assert torch.equal(back[0] > 0.5, torch.from_numpy(hu[0] == 40))


def test_a_constant_image_is_zero_after_z_score():
    with pytest.warns(UserWarning, match="expected an image, got 7 to 7: every value is the same"):
        x = prepare(medzoo.Preprocessing(size=(2, 2), intensity="zscore"), np.full((1, 2, 2), 7, np.uint8)).tensor
    assert torch.equal(x, torch.zeros(1, 2, 2))


def test_an_array_without_geometry_skips_orientation_and_lists_that():
    how = medzoo.Preprocessing(size=(4, 4, 4), orientation="SPL", spacing=(1.0, 1.0, 1.0), intensity="zscore")
    prepared = prepare(how, np.arange(64.0).reshape(1, 4, 4, 4))
    assert "the file gives no orientation: reorientation skipped" in prepared.steps
    assert "the file gives no spacing: resampling skipped" in prepared.steps


def test_a_spacing_alone_is_used():
    how = medzoo.Preprocessing(size=(8, 8, 8), orientation="SPL", spacing=(1.0, 1.0, 1.0), intensity="zscore")
    prepared = prepare(how, medzoo.Image(np.arange(256.0).reshape(1, 4, 8, 8), spacing=(2.0, 1.0, 1.0)))
    assert "resampled to 1, 1, 1 mm" in prepared.steps
    np.testing.assert_allclose(np.diag(prepared.geometry.to_source)[:3], [0.5, 1, 1], atol=0.1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.arange(256).reshape(1, 16, 16), r"\[0, 1\] where the range of the storage is not known, got 0 to 255"),
        (np.arange(256, dtype=np.int32).reshape(1, 16, 16), r"\[0, 1\] where the range of the storage is not known"),
        (np.arange(4096, dtype=np.int16).reshape(1, 64, 64), r"values that fill -32768 to 32767, got 0 to 4095"),
        (np.arange(256, dtype=np.uint16).reshape(1, 16, 16), r"values that fill 0 to 65535, got 0 to 255"),
    ],
)
def test_56_an_integer_array_that_does_not_fill_its_type(array, message):
    with pytest.raises(DataError, match=message):
        prepare(medzoo.Preprocessing(size=(16, 16)), array, strict=True)


@pytest.mark.parametrize("span", [(0, 4095), (0, 1), (-1, 1), (0, 65535)])
def test_56_a_volume_that_is_not_in_hounsfield_units(span):
    how = medzoo.Preprocessing(size=(4, 4, 4), intensity="window", window=(-1000, 400))
    image = medzoo.Image(np.linspace(*span, 64).reshape(1, 4, 4, 4))
    with pytest.raises(DataError, match=r"expected values around -1000, 400 \(HU for CT\)"):
        prepare(how, image, strict=True)


def test_a_spacing_in_the_wrong_unit_is_refused_before_memory_is_allocated():
    how = medzoo.Preprocessing(size=(4, 4, 4), orientation="RAS", spacing=(1.0, 1.0, 1.0), intensity="zscore")
    image = medzoo.Image(
        np.arange(8000.0).reshape(1, 20, 20, 20), affine=np.diag([300.0, 300.0, 300.0, 1]), spacing=(300.0,) * 3
    )
    with pytest.raises(DataError, match=r"voxels of 300, 300, 300 mm resampled to 1, 1, 1 mm would make 6000 × 6000"):
        prepare(how, image)


def test_an_empty_foreground_is_refused():
    how = medzoo.Preprocessing(size=(4, 4, 4), intensity="window", window=(0, 100), foreground=True)
    with pytest.raises(DataError, match="expected a foreground above 0 after window, to crop to, found none"):
        prepare(how, medzoo.Image(np.full((1, 8, 8, 8), -5.0), unit="HU"))


def test_read_only_and_bfloat16_pixels_are_accepted():
    fixed = np.zeros((1, 4, 4), np.float32)
    fixed.setflags(write=False)
    for pixels in (fixed, torch.zeros(1, 4, 4, dtype=torch.bfloat16)):
        assert examine(medzoo.Preprocessing(size=(4, 4)), pixels).tensor.shape == (1, 4, 4)


def test_an_image_of_two_axes_is_refused():
    with pytest.raises(DataError, match=r"expected an array \(c, h, w\) or \(c, d, h, w\) of real numbers, got"):
        medzoo.Image(np.zeros((4, 4)))


def test_56_a_ct_without_hounsfield_units_gives_a_warning():
    how = medzoo.Preprocessing(size=(2, 2, 2), intensity="window", window=(-1000, 400))
    raw = medzoo.Image(np.full((1, 2, 2, 2), 900, np.int16), modality="CT")
    with pytest.warns(UserWarning, match=r"expected Hounsfield units, got 900 to 900 in an unknown unit"):
        prepare(how, raw)


def test_77_a_multi_frame_file_for_an_image_model_asks_for_a_frame(tmp_path):
    path = write_dicom(tmp_path / "cine.dcm", np.arange(4800, dtype=np.uint8).reshape(3, 40, 40))
    with pytest.raises(DataError, match=r"cine\.dcm: model takes a 2D image, got a 3D volume\. Choose a frame of it"):
        prepare(medzoo.Preprocessing(size=(32, 32)), path)
    image = medzoo.read(path, frame=1)
    assert prepare(medzoo.Preprocessing(size=(32, 32)), image).tensor.shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("how", "image", "message"),
    [
        (
            medzoo.Preprocessing(size=(2, 2)),
            np.full((1, 2, 2), 200.0),
            r"the array: model expected values in \[0, 1\] where the range of the storage is not known, got 200 to 200",
        ),
        (
            medzoo.Preprocessing(size=(2, 2, 2), intensity="window", window=(-1000, 400)),
            np.ones((1, 2, 2, 2)),
            r"the array: model expected values around -1000, 400 \(HU for CT\), got 1 to 1: already scaled\?",
        ),
    ],
)
def test_56_an_implausible_range(how, image, message):
    with pytest.warns(UserWarning, match=message):
        prepare(how, image)
    with pytest.raises(DataError, match=message):
        prepare(how, image, strict=True)


def test_55_nan_names_the_source():
    image = np.zeros((1, 4, 4))
    image[0, 1, 2:] = np.nan
    for source in (image, medzoo.Image(image, identity={"file": "the array"})):
        with pytest.raises(DataError, match=r"the array: expected finite values, .* 2 "):
            prepare(medzoo.Preprocessing(size=(4, 4)), source)


def test_doubt_is_a_deprecated_alias_of_warning():
    prepared = Transform(medzoo.Preprocessing(size=(2, 2)), channels=1, who="model").examine(np.full((1, 2, 2), 200.0))
    assert prepared.warning.startswith("the array: model expected values in [0, 1]")
    with pytest.warns(DeprecationWarning, match=r"^Prepared\.doubt is deprecated .* use Prepared\.warning$"):
        assert prepared.doubt == prepared.warning


@pytest.mark.parametrize("thing", [[1.0], 3, None, {}])
def test_58_other_objects_are_refused(thing):
    with pytest.raises(InputError, match=r"model: expected a path, a medzoo\.Image or an array"):
        prepare(medzoo.Preprocessing(size=(4, 4)), thing)


def test_a_volume_for_an_image_model_and_the_reverse():
    with pytest.raises(DataError, match="model takes a 2D image, got a 3D volume"):
        prepare(medzoo.Preprocessing(size=(4, 4)), np.zeros((1, 4, 4, 4)))
    with pytest.raises(DataError, match="model takes a 3D volume, got a 2D image"):
        prepare(medzoo.Preprocessing(size=(4, 4, 4)), np.zeros((1, 4, 4)))


@pytest.mark.parametrize("name", medzoo.list_models())
def test_every_models_transform_gives_what_it_takes_and_can_be_pickled(name):
    spec = medzoo.describe(name)
    model = medzoo.create(name, **spec.tiny).eval()
    to_tensor = pickle.loads(pickle.dumps(medzoo.transform(model)))
    source = np.random.default_rng(0).integers(0, 255, (1, *[40] * spec.input_spec.dims), np.uint8)
    assert model(to_tensor(source)[None]).isfinite().all()


@pytest.mark.parametrize(
    ("shape", "top", "left"), [((6, 10), 0, 2), ((10, 6), 2, 0), ((7, 10), 0, 2), ((4, 3), 1, 0), ((8, 8), 0, 0)]
)
def test_the_square_at_the_centre_is_scaled(shape, top, left):
    pixels = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape) / 100
    prepared = examine(medzoo.Preprocessing(size=(8, 8), fit="square"), pixels)
    side = min(shape)
    cut = pixels[:, top : top + side, left : left + side]
    torch.testing.assert_close(prepared.tensor, examine(medzoo.Preprocessing(size=(8, 8)), cut).tensor)
    covered = prepared.geometry.covered()
    assert covered.sum() == side * side
    assert covered[top, left]
    assert covered[top + side - 1, left + side - 1]


def test_a_volume_cannot_be_fit_to_a_square():
    with pytest.raises(ConfigError, match="fit='square' is for an image of two equal sides"):
        medzoo.Preprocessing(size=(8, 8, 8), fit="square")


def test_z_score_of_nonzero_values_is_monais():
    from monai.transforms import NormalizeIntensity

    x = torch.randn(4, 6, 6, 6, generator=torch.Generator().manual_seed(1)) * 30 + 100
    x[:, :2] = 0
    x[3] = 0
    how = medzoo.Preprocessing(size=(6, 6, 6), intensity="zscore_nonzero")
    with pytest.warns(UserWarning, match="expected 4 channels, got one value everywhere in channel 3"):
        prepared = Transform(how, channels=4, who="model").prepare(x.numpy())
    for given, got in zip(x, prepared.tensor, strict=True):
        values = given[given != 0]
        expected = (given - values.mean()) / values.std(correction=0) if len(values) else given
        torch.testing.assert_close(got, expected.where(given != 0, given))
    torch.testing.assert_close(prepared.tensor, torch.as_tensor(NormalizeIntensity(nonzero=True, channel_wise=True)(x)))
    assert "z-score of each channel over what is not 0" in prepared.steps
