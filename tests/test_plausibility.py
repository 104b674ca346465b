"""Values that cannot be right are a warning for every intensity rule, and an error with ``strict``."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from make_images import write_dicom, write_png

import medzoo
from medzoo.errors import DataError
from medzoo.transforms.transform import Transform

XRV = medzoo.describe("densenet121_xray").preprocessing
RULES = {
    "unit": {},
    "window": {"intensity": "window", "window": (-1000.0, 400.0)},
    "zscore": {"intensity": "zscore"},
    "zscore_nonzero": {"intensity": "zscore_nonzero"},
}
RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


def warning(how, source, channels=1):
    return Transform(how, channels, "model").examine(source).warning


def torchxrayvision_warns(x):
    """Return what TorchXRayVision 1.3's ``warn_normalization`` decides."""
    return bool(x.min() > -255 or x.max() < 255 or x.min() < -1025 or x.max() > 1025)


def grey(low, high, bits):
    """Return a ramp as an unsigned image."""
    return (low + RAMP * (high - low)).astype(np.uint8 if bits == 8 else np.uint16)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [0, 7, 255])
def test_121_a_constant_image(rule, value):
    for size in ((8, 8), (8, 8, 8)):
        how = medzoo.Preprocessing(size=size, **RULES[rule])
        found = warning(how, np.full((1, *size), value, np.uint8))
        assert found.startswith("the array: model expected "), found
        with pytest.raises(DataError, match=re.escape(found)):
            Transform(how, 1, "model").prepare(np.full((1, *size), value, np.uint8), strict=True)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (
            grey(0, 4095, 16),
            "fill 0 to 65535, got 0 to 4095. These look like 12-bit values in 16-bit storage: divide by",
        ),
        (grey(0, 1023, 16), "These look like 10-bit values in 16-bit storage: divide by 1023"),
        (grey(0, 255, 16), "These look like 8-bit values in 16-bit storage: divide by 255"),
        (grey(0, 1, 8), "fill 0 to 255, got 0 to 1. These look like values that were scaled to 0 to 1 before"),
        (grey(0, 40, 8), "fill 0 to 255, got 0 to 40. It is too dark"),
        (grey(200, 255, 8), "fill 0 to 255, got 200 to 255. It is too dark, too bright"),
        (grey(110, 140, 8), "fill 0 to 255, got 110 to 140. It is too dark, too bright or without contrast"),
        (grey(0, 0, 8), r"got 0 to 0: every value is the same (black)"),
        (grey(65535, 65535, 16), "got 65535 to 65535: every value is the same (white)"),
    ],
)
def test_121_a_sliver_of_the_storage(pixels, message, tmp_path):
    for source in (pixels[None], write_png(tmp_path / "a.png", pixels), write_dicom(tmp_path / "a.dcm", pixels)):
        assert message in warning(XRV, source)
    if "divide" in message:
        bits = re.search(r"(\d+)-bit", message)[1]
        assert f", or set BitsStored to {bits}." in warning(XRV, tmp_path / "a.dcm")
        assert not warning(XRV, write_dicom(tmp_path / "b.dcm", pixels, BitsStored=int(bits)))


@pytest.mark.parametrize("centre", [60000, -500])
def test_121_a_window_beside_the_data(centre, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", grey(0, 4095, 16), BitsStored=12, WindowCenter=centre, WindowWidth=10)
    found = warning(XRV, path)
    name = "black" if centre > 0 else "white"
    assert f"every value is the same ({name})" in found
    assert f"Is the window of the file beside its values (window centre {centre} width 10 applied)?" in found


def test_121_a_few_bright_pixels_hide_nothing():
    pixels = grey(0, 4095, 16)
    pixels[3, 4:8] = 65535
    assert "got 98% of them in 0.00061 to 0.0619 after preprocessing" in warning(
        medzoo.Preprocessing(size=(64, 64)), pixels[None]
    )


@pytest.mark.parametrize("offset", [0.0, 0.2, 0.37, 0.38, 0.5, 0.9])
@pytest.mark.parametrize("span", [0.05, 0.2, 0.25, 0.3, 0.6, 1.0, 1.2])
def test_121_wherever_torchxrayvision_warns(offset, span):
    prepared = Transform(XRV, 1, "model").examine((offset + RAMP * span).astype(np.float32)[None])
    assert prepared.warning or not torchxrayvision_warns(prepared.tensor)


def test_121_a_crop_that_holds_nothing():
    pixels = grey(0, 255, 8)
    pixels[16:48, 16:48] = 200
    for rule in ("unit", "zscore", "zscore_nonzero"):
        how = medzoo.Preprocessing(size=(16, 16), fit="crop", **RULES[rule])
        assert "after preprocessing: every value of the crop is the same" in warning(how, pixels[None])


@pytest.mark.parametrize(
    ("values", "unit", "message"),
    [
        ((1000, 3000), "raw", "already scaled?"),
        ((0, 1), "raw", "already scaled?"),
        ((-1, 1), "raw", "already scaled?"),
        ((0, 4095), "HU", "got 0 to 4095 HU: no value is below 0, and air is -1000 HU. Check the rescale intercept"),
        ((-3000, -1001), "HU", "window -1000 to 400, got 100% of them below it. Check the unit"),
        ((-0.5, 0.5), "HU", "already scaled?"),
    ],
)
def test_121_a_volume_beside_the_window(values, unit, message):
    how = medzoo.Preprocessing(size=(16, 16, 16), **RULES["window"])
    volume = np.linspace(*values, 4096, dtype=np.float32).reshape(1, 16, 16, 16)
    assert message in warning(how, medzoo.Image(volume, unit=unit))


def test_121_a_volume_with_all_values_above_the_window():
    how = medzoo.Preprocessing(size=(16, 16, 16), intensity="window", window=(-175.0, 250.0))
    volume = np.linspace(-1000, 3000, 4096, dtype=np.float32).reshape(1, 16, 16, 16)
    assert not warning(how, medzoo.Image(volume, unit="HU"))
    above = np.where(volume < -999.5, volume, 3000)
    assert "window -175 to 250, got 99.98% of them above it" in warning(how, medzoo.Image(above, unit="HU"))


def test_121_values_for_z_scores():
    how = medzoo.Preprocessing(size=(16, 16, 16), intensity="zscore")
    generator = np.random.default_rng(0)
    volume = generator.integers(0, 2000, (1, 16, 16, 16))
    assert not warning(how, volume.astype(np.uint16))
    assert not warning(how, (volume < 20).astype(np.uint8) * 255), "a mask of an organ"
    assert "use more of 0 to 65535, got 0 to 19" in warning(how, (volume // 100).astype(np.uint16))
    dead = np.zeros_like(volume)
    dead[0, 3, 4, 5] = 900
    assert "got 0 in 99.98% of the voxels" in warning(how, dead.astype(np.float32))
    noise = np.full(volume.shape, 500.0) + generator.normal(0, 1e-4, volume.shape)
    assert "every value is the same" in warning(how, noise.astype(np.float32))


def test_121_a_sequence_that_is_missing():
    how = medzoo.Preprocessing(size=(8, 8, 8), intensity="zscore_nonzero")
    volume = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0)) + 5
    assert not warning(how, volume, channels=4)
    volume[1:3] = 0
    assert "expected 4 channels, got one value everywhere in channel 1, 2" in warning(how, volume, channels=4)


def test_121_strict_fails_and_the_others_are_predicted(tmp_path):
    model = medzoo.create("xray_cnn", size=32, widths=(4, 4, 8, 8), hidden=8).eval()
    paths = [write_png(tmp_path / f"{top}.png", grey(0, top, 8)) for top in (0, 255)]
    with pytest.warns(UserWarning, match=r"0\.png: xray_cnn expected an image, got 0 to 0"):
        found = medzoo.predict(model, paths, allow_untrained=True)
    assert [bool(p.warning) for p in found] == [True, False]
    found = medzoo.predict(model, paths, allow_untrained=True, strict=True)
    assert [p.reason for p in found] == ["a warning, under strict", ""]
    assert found[0].error.endswith("every value is the same (black). Check its bit depth and window with "
                                   "medzoo.show(path).")  # fmt: skip
    assert not found[0].probabilities


@pytest.mark.slow
def test_121_real_radiographs_warn_where_torchxrayvision_does(data):
    how = Transform(XRV, 1, "densenet121_xray", medzoo.describe("densenet121_xray").intended_use)
    paths = sorted((data / "chestxray14_64px").rglob("*.png"))
    found = [how.examine(path) for path in paths]
    assert [bool(p.warning) for p in found] == [torchxrayvision_warns(p.tensor) for p in found]
    assert sum(bool(p.warning) for p in found) == 30
    assert len(found) == 1000


def volume(values, **fields):
    return medzoo.Image(values.astype(np.float32)[None], identity={"file": "v"}, **fields)


def test_121_a_few_voxels_or_padding_leave_no_contrast_to_a_z_score():
    how = medzoo.Preprocessing(size=(24, 24, 24), intensity="zscore")
    scan = np.random.default_rng(0).normal(0, 500, (24, 24, 24))
    assert warning(how, volume(scan)) == ""
    hot = scan.copy()
    hot[3, 4, 5] = 3e38
    assert "a few voxels leave no contrast to the others" in warning(how, volume(hot))
    padded = scan.copy()
    padded[:, :9] = -32768
    assert "got -32768 in 37.5% of them" in warning(how, volume(padded))
    air = scan.copy()
    air[:, :9] = -2000  # outside of the field of view
    mask = np.zeros_like(scan)
    mask[8:12, 8:12, 8:12] = 255
    for sound in (air, mask):
        assert warning(how, volume(sound)) == ""


def test_121_channels_of_a_volume_that_are_one_and_the_same():
    how = medzoo.Preprocessing(size=(8, 8, 8), intensity="zscore_nonzero")
    one = np.random.default_rng(0).normal(100, 10, (8, 8, 8))
    same = medzoo.Image(np.stack([one] * 4), identity={"file": "v"})
    assert "got the same 4 times" in warning(how, same, channels=4)
    other = medzoo.Image(np.stack([one, one + 1, one, one]), identity={"file": "v"})
    assert warning(how, other, channels=4) == ""


def test_121_a_single_slice_is_no_volume():
    how = medzoo.Preprocessing(size=(8, 8, 8), intensity="zscore")
    slice_ = np.random.default_rng(0).normal(size=(16, 16, 1))
    assert "expected a volume, got a single slice, 16 × 16 × 1" in warning(how, volume(slice_))


def test_121_a_mask_or_a_window_beside_the_data_is_no_picture():
    how = medzoo.Preprocessing(size=(64, 64))
    mask = np.zeros((1, 80, 80), np.uint8)
    mask[:, 20:60, 20:60] = 255
    assert "got 0 and 255 alone. Is it a mask" in warning(how, mask)
    dark = np.zeros((1, 80, 80), np.uint8)
    dark[:, :, :3] = np.arange(80)[None, :, None] * 3
    assert "of it black" in warning(how, dark)
