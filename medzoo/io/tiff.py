"""The reader of TIFF and BigTIFF: the values that the tags define, or the reason why they are not read.

tifffile reads what is stored; what that means is decided here. It is not Pillow's, which knows few of the types and
reports damage on stderr only.

Axes: c channels, h w height width, s samples of a pixel.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.files import check_size, is_outside_readers, wrap_read_errors
from medzoo.io.image import Image, as_native, handle_nan, integer_range, merge_equal_channels, upright
from medzoo.io.options import ReadOptions
from medzoo.io.tiff_pages import JPEG, check_layout, chosen_page, read_samples, unsupported_tiff

if TYPE_CHECKING:
    from tifffile import TiffPage

__all__ = ["read_tiff"]

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_SAMPLES = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_UNREAD = {
    4: "a transparency mask", 8: "CIE L*a*b* colours", 9: "ICC L*a*b* colours", 10: "ITU L*a*b* colours",
    32803: "the colour filter array of a camera", 32844: "LogL values", 32845: "LogLuv colours", 34892: "raw samples",
}  # fmt: skip
_FLOAT = 3
_ORIENTATION, _COLOR_MAP, _INK_SET, _COEFFICIENTS, _LEVELS = 274, 320, 332, 529, 532  # tags


def read_tiff(path: Path, options: ReadOptions) -> Image:
    """Read one page ``c h w``; grey has one channel, also where it was stored as colour.

    Raises:
        DataError: damaged or cut short, several pages and no ``frame``, transparency that varies, too large, or a
            kind that is not read.
    """
    import tifffile

    # Python prints what a library logs where no logging is set up. What a reader's own file makes tifffile log is an
    # error here, or of no effect; only that is dropped, while the program's own use of tifffile logs as before.
    logging.getLogger("tifffile").addFilter(is_outside_readers)
    notes: list[str] = []
    with wrap_read_errors(path, "a TIFF image", tifffile.TiffFileError), path.open("rb") as file:
        # Scanners have other ways to store pages; tifffile takes one of them from the name of the file alone.
        tiff = tifffile.TiffFile(file, is_lsm=False, is_ndpi=False, is_scanimage=False)
        page = chosen_page(path, tiff, file, options.frame)
        check_layout(path, page)
        width, height, samples = page.imagewidth, page.imagelength, page.samplesperpixel
        sizes = f"{width} × {height} in {samples} channels"
        check_size(path, width * height * samples, options.max_voxels, sizes)
        photometric, warning = _photometric(path, page)
        stored = read_samples(path, page, file)
        stored = _without_extra_samples(path, page, stored, _SAMPLES[photometric], notes)
        values, bits = _values(path, page, photometric, stored, notes)
        values = upright(values, page.tags.valueof(_ORIENTATION, 1), notes)
    values = handle_nan(merge_equal_channels(as_native(values), notes), path, options.nan, notes)
    unit, value_range = integer_range(values.dtype, bits)
    return Image(
        values, unit=unit, value_range=value_range, identity={"file": str(path)}, notes=tuple(notes), warning=warning
    )


def _photometric(path: Path, page: TiffPage) -> tuple[int, str]:
    """Return how samples are to be displayed, and a warning where the file does not say."""
    bits, samples = page.bitspersample, page.samplesperpixel
    if 262 not in page.tags:
        guess = _RGB if samples in (3, 4) else _BLACK_IS_ZERO
        assumed = "its samples are taken as RGB" if guess == _RGB else "0 is taken as black"
        return guess, f"The file gives no photometric interpretation: {assumed}."
    photometric = page.photometric
    if photometric not in _SAMPLES:
        raise unsupported_tiff(path, _UNREAD.get(photometric, f"photometric interpretation {photometric}"))
    if samples < _SAMPLES[photometric]:
        raise unsupported_tiff(path, f"{samples} samples a pixel where its colours need {_SAMPLES[photometric]}")
    colours = photometric in (_PALETTE, _CMYK, _YCBCR)
    if colours and (page.sampleformat != 1 or (bits != 8 if photometric != _PALETTE else bits > 16)):
        raise unsupported_tiff(path, f"palette, CMYK or YCbCr of {bits} bits")
    if photometric == _WHITE_IS_ZERO and page.sampleformat == _FLOAT:  # TIFF 6 defines no highest value of a float
        raise unsupported_tiff(path, "white-is-zero floats, whose black is not defined")
    if photometric == _CMYK and page.tags.valueof(_INK_SET, 1) != 1:
        raise unsupported_tiff(path, "inks other than cyan, magenta, yellow and black")
    if photometric == _YCBCR and page.compression != JPEG:
        _check_plain_ycbcr(path, page)
    elif photometric == _YCBCR and page.shaped[4] != 3:  # libjpeg converts the three together, and only these
        raise unsupported_tiff(path, "YCbCr as JPEG with each component apart, or with further samples")
    return int(photometric), ""


def _check_plain_ycbcr(path: Path, page: TiffPage) -> None:
    """Refuse YCbCr that is not one Y, Cb and Cr a pixel, over the full range, with the usual coefficients."""
    if page.is_subsampled:
        raise unsupported_tiff(path, "YCbCr with subsampled colours outside JPEG")
    given = _ratios(page.tags.valueof(_COEFFICIENTS, (299, 1000, 587, 1000, 114, 1000)))
    levels = _ratios(page.tags.valueof(_LEVELS, (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1)))
    if not np.allclose(given, (0.299, 0.587, 0.114), atol=1e-3) or not np.allclose(
        levels, (0, 255, 128, 255, 128, 255)
    ):
        raise unsupported_tiff(path, "YCbCr with coefficients or levels of its own")


def _ratios(pairs: tuple[int, ...]) -> NDArray[np.float64]:
    numbers = np.asarray(pairs, np.float64).reshape(-1, 2)
    return np.asarray(numbers[:, 0] / np.maximum(numbers[:, 1], 1))


def _without_extra_samples(
    path: Path, page: TiffPage, stored: NDArray[Any], count: int, notes: list[str]
) -> NDArray[Any]:
    """Return the first ``count`` samples of a pixel; the others must be opaque alpha, or constant.

    Raises:
        DataError: transparency that varies, or samples whose meaning the tags do not give.
    """
    extra = stored[..., count:]
    meanings = page.extrasamples
    for i in range(extra.shape[2]):
        sample = extra[..., i]
        is_alpha = i < len(meanings) and meanings[i] in (1, 2)
        if is_alpha:
            top = 1.0 if sample.dtype.kind == "f" else 2**page.bitspersample - 1
            top = np.iinfo(sample.dtype).max if sample.dtype.kind == "i" else top
            if not (sample == top).all():
                raise DataError(
                    f"{path}: expected an opaque image, found transparency that leaves pixels undefined. "
                    "Flatten it on its background, and export it without alpha."
                )
            notes.append("opaque alpha dropped")
        elif (sample == sample.flat[0]).all():
            notes.append("constant sample without a meaning dropped")
        else:
            raise unsupported_tiff(path, f"{stored.shape[2]} samples a pixel, of which the tags explain {count + i}")
    return stored[..., :count]


def _values(
    path: Path, page: TiffPage, photometric: int, stored: NDArray[Any], notes: list[str]
) -> tuple[NDArray[Any], int]:
    """Return the pixels ``c h w``, and the bits of their range."""
    bits = page.bitspersample
    if photometric == _WHITE_IS_ZERO:
        notes.append("white-is-zero inverted")
        highest = stored.dtype.type(-1 if stored.dtype.kind == "i" else 2**bits - 1)
        stored = highest - stored
    elif photometric == _PALETTE:
        notes.append("palette converted to RGB")
        stored, bits = _from_palette(path, page, stored[..., 0], bits)
    elif photometric == _CMYK or (photometric == _YCBCR and page.compression != JPEG):
        from PIL import Image as Pillow

        mode = "CMYK" if photometric == _CMYK else "YCbCr"
        notes.append(f"{mode} converted to RGB")
        size = (page.imagewidth, page.imagelength)
        stored = np.asarray(Pillow.frombytes(mode, size, stored.tobytes()).convert("RGB"))
    return np.moveaxis(stored, -1, 0), bits


def _from_palette(path: Path, page: TiffPage, indices: NDArray[Any], bits: int) -> tuple[NDArray[Any], int]:
    """Return the colours of a palette, and their bits: 8 where its 16-bit entries are 8-bit ones that were widened."""
    palette = np.asarray(page.tags.valueof(_COLOR_MAP, ()), np.uint16).ravel()
    if len(palette) != 3 * 2**bits:
        raise unsupported_tiff(path, f"a palette of {len(palette)} entries for {bits} bits")
    low, high = palette & 255, palette >> 8
    if not high.any():  # written as bytes, against the specification; libtiff reads it so too
        high = low
    elif not ((low == 0) | (low == high)).all():
        return palette.reshape(3, -1).T[indices], 16
    return high.astype(np.uint8).reshape(3, -1).T[indices], 8
