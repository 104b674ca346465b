"""Reading PNG, JPEG, TIFF and NPY, on files written by Pillow and NumPy."""

from __future__ import annotations

import io
import os
import re
import zlib

import numpy as np
import pytest
from make_images import arrow, write_png
from PIL import Image as Pillow

from medzoo.errors import ConfigError, DataError
from medzoo.io.read import read


def test_63_a_missing_file_is_reported(tmp_path):
    with pytest.raises(DataError, match=r"absent\.png: expected a file or folder, found nothing there"):
        read(tmp_path / "absent.png")


def test_64_an_empty_file_is_reported(tmp_path):
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(DataError, match=r"empty\.png: expected .*, found an empty file \(0 bytes\)"):
        read(empty)


def test_64_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="found a pipe or device"):
        read(tmp_path / "pipe.png")


def test_64_an_unreadable_file_is_reported(tmp_path, monkeypatch):
    path = write_png(tmp_path / "closed.png", np.zeros((4, 4), np.uint8))
    monkeypatch.setattr("medzoo.io.files.os.access", lambda *_: False)  # root may read everything
    with pytest.raises(DataError, match="permission is denied"):
        read(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_65_a_cut_picture_is_refused(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Pillow.fromarray(noise).save(path)
    complete = path.read_bytes()
    for part in (0.3, 0.6, 0.9):
        path.write_bytes(complete[: int(len(complete) * part)])
        with pytest.raises(DataError, match="damaged"):
            read(path)


def test_65_a_flipped_bit_in_a_png_is_refused(tmp_path):
    path = write_png(tmp_path / "flipped.png", np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="expected a PNG image, found bytes that cannot be read as one"):
        read(path)


def test_66_a_png_without_its_end_is_refused(tmp_path):
    path = write_png(tmp_path / "endless.png", np.zeros((8, 8), np.uint8))
    path.write_bytes(path.read_bytes()[:-12])  # without the IEND chunk; every pixel is there
    with pytest.raises(DataError, match="PNG"):
        read(path)


def test_67_16_bit_png_is_scaled_by_bit_depth(tmp_path):
    pixels = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    image = read(write_png(tmp_path / "deep.png", pixels))
    assert image.array.dtype == np.uint16
    assert (image.unit, image.value_range) == ("16-bit", (0.0, 65535.0))
    np.testing.assert_array_equal(image.array[0], pixels)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_67_few_bits_span_the_full_range(tmp_path, bits):
    """A 2-bit PNG has greys 0 to 3; Pillow spreads them over 0 to 255."""
    steps = 2**bits
    rows = bytes([0, 0b00011011 if bits == 2 else 0b01010101 if bits == 1 else 0x0F])
    width = 8 // bits
    png = _png(width, 1, bits, 0, rows)
    path = tmp_path / "few.png"
    path.write_bytes(png)
    image = read(path)
    top = 1.0 if bits == 1 else 255.0
    assert image.value_range == (0.0, top)
    want = {1: [0, 1] * 4, 2: [0, 1, 2, 3], 4: [0, 15]}[bits]
    np.testing.assert_array_equal(image.array[0, 0] / top, np.array(want) / (steps - 1))


@pytest.mark.parametrize("colour", [2, 4, 6])
@pytest.mark.parametrize("filtered", range(5))
def test_67_16_bit_colour_and_alpha_are_exact(tmp_path, colour, filtered):
    """PNG of type 2 is RGB, 4 grey and alpha, 6 RGB and alpha; filters work on the bytes of a pixel before it."""
    channels = {2: 3, 4: 2, 6: 4}[colour]
    pixels = np.random.default_rng(0).integers(0, 65536, (2, 5, channels), dtype=np.uint16)
    if colour != 2:
        pixels[..., -1] = 65535
    rows = np.frombuffer(pixels.astype(">u2").tobytes(), np.uint8).reshape(2, -1)
    path = tmp_path / "deep.png"
    path.write_bytes(_png(5, 2, 16, colour, _filter_rows(rows, 2 * channels, filtered)))
    image = read(path)
    colours = pixels[..., : 1 if colour == 4 else 3]
    np.testing.assert_array_equal(image.array, np.moveaxis(colours, -1, 0))
    assert (image.unit, image.value_range) == ("16-bit", (0.0, 65535.0))
    assert image.notes == (() if colour == 2 else ("opaque alpha dropped",))


@pytest.mark.parametrize("colour", [4, 6])
def test_68_16_bit_alpha_that_varies_is_refused(tmp_path, colour):
    pixels = np.full((2, 5, colour - 2), 65535, ">u2")
    pixels[0, 0, -1] = 65534  # not visible in the high byte
    rows = np.frombuffer(pixels.tobytes(), np.uint8).reshape(2, -1)
    path = tmp_path / "deep.png"
    path.write_bytes(_png(5, 2, 16, colour, _filter_rows(rows, 2 * pixels.shape[2], 0)))
    with pytest.raises(DataError, match="found transparency"):
        read(path)


def test_67_16_bit_tiff_with_white_at_zero_is_inverted(tmp_path):
    pixels = np.linspace(0, 65535, 12, dtype=np.uint16).reshape(3, 4)
    path = tmp_path / "film.tif"
    Pillow.fromarray(pixels).save(path, tiffinfo={262: 0})
    image = read(path)
    np.testing.assert_array_equal(image.array[0], 65535 - pixels)
    assert "white-is-zero inverted" in image.notes


def test_67_a_float_tiff_has_no_range(tmp_path):
    path = tmp_path / "float.tif"
    pixels = np.array([[0.5, -1000.0], [3e6, 1.0]], np.float32)
    Pillow.fromarray(pixels).save(path)
    image = read(path)
    assert (image.unit, image.value_range) == ("raw", None)
    np.testing.assert_array_equal(image.array[0], pixels)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_68_opaque_alpha_is_dropped(tmp_path, mode):
    path = tmp_path / "alpha.png"
    grey = Pillow.fromarray(arrow().astype(np.uint8))
    grey.convert(mode).save(path)
    image = read(path)
    np.testing.assert_array_equal(image.array[0], arrow())
    assert "opaque alpha dropped" in image.notes


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_68_alpha_that_varies_is_refused(tmp_path, mode):
    path = tmp_path / "alpha.png"
    picture = Pillow.fromarray(arrow().astype(np.uint8)).convert(mode)
    picture.putalpha(Pillow.fromarray(arrow().astype(np.uint8)))
    picture.save(path)
    with pytest.raises(DataError, match=r"alpha\.png: expected an opaque image, found transparency"):
        read(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_68_a_transparent_grey_level_counts_as_alpha(tmp_path, dtype):
    path = tmp_path / "marked.png"
    pixels = np.arange(12, dtype=dtype).reshape(3, 4)
    Pillow.fromarray(pixels).save(path, transparency=5)
    with pytest.raises(DataError, match="transparency"):
        read(path)
    Pillow.fromarray(pixels).save(path, transparency=200)  # no pixel has it
    np.testing.assert_array_equal(read(path).array[0], pixels)


def test_69_a_palette_becomes_rgb(tmp_path):
    path = tmp_path / "palette.png"
    picture = Pillow.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putdata([0, 1])
    picture.save(path)
    image = read(path)
    assert image.array[:, 0].T.tolist() == [[255, 0, 0], [0, 0, 255]]
    assert image.notes == ("palette converted to RGB",)


def test_69_a_grey_palette_is_grey(tmp_path):
    path = tmp_path / "grey.png"
    picture = Pillow.new("P", (2, 1))
    picture.putpalette([9, 9, 9, 200, 200, 200])
    picture.putdata([1, 0])
    picture.save(path)
    assert read(path).array.tolist() == [[[200, 9]]]


def test_69_one_bit_is_zero_and_one(tmp_path):
    path = tmp_path / "mask.png"
    pixels = np.eye(5, dtype=bool)
    Pillow.fromarray(pixels).save(path)
    image = read(path)
    assert (image.unit, image.value_range, image.array.dtype) == ("1-bit", (0.0, 1.0), np.uint8)
    np.testing.assert_array_equal(image.array[0], pixels)


def test_69_cmyk_becomes_rgb(tmp_path):
    path = tmp_path / "cmyk.tif"
    Pillow.new("CMYK", (4, 3), (0, 255, 255, 0)).save(path)
    image = read(path)
    assert image.array.shape == (3, 3, 4)
    assert image.array[:, 0, 0].tolist() == [255, 0, 0]


def test_grey_stored_as_colour_is_one_channel(tmp_path):
    path = tmp_path / "grey.jpg"
    Pillow.fromarray(arrow().astype(np.uint8)).convert("RGB").save(path, quality=95)
    image = read(path)
    assert image.array.shape == (1, 48, 64)
    assert image.notes == ("three equal channels merged into one",)


def test_colour_stays_colour(tmp_path):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[..., 0] = arrow()
    image = read(write_png(tmp_path / "colour.png", pixels))
    np.testing.assert_array_equal(image.array, np.moveaxis(pixels, -1, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_70_exif_orientation_is_applied(tmp_path, suffix, orientation):
    """A camera stores the sensor's rows and their orientation; all eight orientations give the same upright image."""
    upright = arrow().astype(np.uint8)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    path = tmp_path / f"turned.{suffix}"
    exif = Pillow.Exif()
    exif[274] = orientation
    options = {"quality": 100} if suffix == "jpg" else {}
    Pillow.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    image = read(path)
    assert image.array.shape == (1, 48, 64)
    assert np.abs(image.array[0].astype(int) - upright).max() <= (6 if suffix == "jpg" else 0)
    assert (f"EXIF orientation {orientation} applied" in image.notes) == (orientation > 1)


def test_71_a_picture_keeps_height_and_width(tmp_path):
    image = read(write_png(tmp_path / "wide.png", arrow().astype(np.uint8)))
    assert image.array.shape == (1, 48, 64)
    corners = [int(image.array[0, h, w]) for h, w in ((0, 0), (0, 63), (47, 0), (47, 63))]
    assert corners == [250, 125, 65, 3]
    assert image.spacing is None
    assert image.affine is None


def test_72_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = write_png(tmp_path / "bomb.png", np.zeros((64, 64), np.uint8))
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    with pytest.raises(DataError, match=r"bomb\.png: expected at most 4094 pixels \(Pillow's limit\)"):
        read(path)


def test_72_a_claim_of_a_gigapixel_is_refused(tmp_path):
    path = tmp_path / "claim.png"
    path.write_bytes(_png(60000, 60000, 8, 0, b"\0"))
    with pytest.raises(DataError, match=re.escape("expected at most 178956970 pixels (Pillow's limit)")):
        read(path)


def test_72_max_voxels_is_checked(tmp_path):
    path = write_png(tmp_path / "large.png", arrow().astype(np.uint8))
    with pytest.raises(DataError, match="expected at most 3071 values, the header declares 64 × 48 in 1 channels"):
        read(path, max_voxels=48 * 64 - 1)
    assert read(path, max_voxels=48 * 64).array.size == 48 * 64


def test_73_several_pages_need_a_frame(tmp_path):
    path = tmp_path / "pages.tif"
    pages = [Pillow.fromarray(np.full((3, 4), 10 * i, np.uint8)) for i in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"found 3 pages or frames\. Choose one: frame=0"):
        read(path)
    assert read(path, frame=2).array.max() == 20
    with pytest.raises(DataError, match="expected frame below 3, got frame=3"):
        read(path, frame=3)


def test_73_an_animated_png_needs_a_frame(tmp_path):
    path = tmp_path / "animated.png"
    first, second = (Pillow.fromarray(np.full((3, 4), v, np.uint8)) for v in (1, 2))
    first.save(path, save_all=True, append_images=[second])
    with pytest.raises(DataError, match="found 2 pages or frames"):
        read(path)


def test_resolution_of_a_png_is_not_a_spacing(tmp_path):
    """A dpi entry is a print size, not the size of the patient."""
    path = tmp_path / "dpi.png"
    Pillow.fromarray(arrow().astype(np.uint8)).save(path, dpi=(300, 300))
    assert read(path).spacing is None


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"GIF89a" + bytes(50), "a GIF"),
        (b"BM" + bytes(50), "a BMP"),
        (b"PK\x03\x04" + bytes(50), "a zip archive"),
        (b"<!DOCTYPE html><html>", "a web page or XML"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"a Git LFS pointer \(run git lfs pull\)"),
        (b"hello", "other bytes"),
    ],
)
def test_other_formats_are_named(tmp_path, data, found):
    path = tmp_path / "image.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=found):
        read(path)


def test_the_file_name_does_not_matter(tmp_path):
    path = tmp_path / "IM0001"
    write_png(tmp_path / "a.png", arrow().astype(np.uint8)).rename(path)
    assert read(path).unit == "8-bit"


@pytest.mark.parametrize(("shape", "got"), [((5, 6), (1, 5, 6)), ((3, 5, 6), (3, 5, 6)), ((1, 4, 5, 6), (1, 4, 5, 6))])
def test_an_npy_file_is_an_array_with_channels_first(tmp_path, shape, got):
    values = np.arange(np.prod(shape), dtype=">i2").reshape(shape)
    np.save(tmp_path / "a.npy", values)
    image = read(tmp_path / "a.npy")
    assert image.array.shape == got
    assert image.array.dtype.isnative
    np.testing.assert_array_equal(image.array.reshape(shape), values)


def test_npy_faults_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    for value, found in (
        (np.array([object()]), "pickled objects, which are never loaded"),
        (np.zeros((64, 64, 64)), "expected \\(c, h, w\\) with up to 4 channels"),
        (np.zeros(3), "expected axes"),
        (np.zeros((1, 2, 2), complex), "array of real numbers, got complex128"),
        (np.full((1, 2, 2), np.nan), "found 4 of 4 NaN"),
    ):
        np.save(path, value, allow_pickle=True)
        with pytest.raises(DataError, match=found):
            read(path)
    np.save(path, np.zeros((1, 8, 8)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"expected 512 bytes of float64 .*, found 511"):
        read(path)


def test_an_array_is_read_as_it_is():
    image = read(arrow()[None])
    assert (image.unit, image.value_range) == ("16-bit", (0.0, 65535.0))
    assert read(np.zeros((1, 2, 2), np.float32)).value_range is None


@pytest.mark.parametrize("options", [{"frame": -1}, {"frame": "0"}, {"nan": "drop"}, {"max_voxels": 0}])
def test_invalid_options_are_refused(tmp_path, options):
    with pytest.raises(ConfigError, match=r"^read: expected"):
        read(tmp_path, **options)


def _png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """Return a PNG with any header and rows, also ones that no library writes."""
    out = io.BytesIO()
    out.write(b"\x89PNG\r\n\x1a\n")
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, colour, 0, 0, 0])
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        out.write(len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big"))
    return out.getvalue()


def _filter_rows(rows: np.ndarray, step: int, filtered: int) -> bytes:
    """Return rows of bytes as PNG filters them: 0 none, 1 left, 2 above, 3 mean of both, 4 Paeth's choice."""
    out = b""
    for i, row in enumerate(rows.astype(int)):
        left = np.concatenate([np.zeros(step, int), row[:-step]])
        above = rows[i - 1].astype(int) if i else np.zeros_like(row)
        corner = np.concatenate([np.zeros(step, int), above[:-step]])
        guess = np.stack([left, above, corner])
        choice = np.abs(left + above - corner - guess).argmin(axis=0)
        paeth = np.take_along_axis(guess, choice[None], 0)[0]
        base = [np.zeros_like(row), left, above, (left + above) // 2, paeth][filtered]
        out += bytes([filtered]) + ((row - base) % 256).astype(np.uint8).tobytes()
    return out
