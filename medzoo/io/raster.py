"""The reader of PNG and JPEG, through Pillow: upright pixels in their own bit depth.

Axes: c channels, h w height width.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.files import check_size, select_page, wrap_read_errors
from medzoo.io.image import Image, as_native, handle_nan, integer_range, merge_equal_channels, upright
from medzoo.io.options import ReadOptions
from medzoo.io.tiff import read_tiff

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["read_raster"]

_FORMATS = {"png": ["PNG"], "jpeg": ["JPEG", "MPO"]}
_ORIENTATION = 274  # EXIF tag
_COLOUR_MODES = {
    "RGB": "", "RGBA": "", "RGBX": "", "RGBa": "", "P": "palette", "PA": "palette", "CMYK": "CMYK", "YCbCr": "YCbCr",
}  # fmt: skip


def read_raster(path: Path, kind: str, options: ReadOptions) -> Image:
    """Read one image ``c h w``; grey has one channel, also where it was stored as colour.

    ``kind`` is ``"png"``, ``"jpeg"`` or ``"tiff"``.

    Raises:
        DataError: damaged or cut short, several pages and no ``frame``, transparency that varies, or too large.
    """
    options.refuse(path, f"a {kind.upper()} image", "stack", "channel_axis")
    if kind == "tiff":
        return read_tiff(path, options)
    from PIL import Image as Pillow

    notes: list[str] = []
    with wrap_read_errors(path, f"a {kind.upper()} image"), path.open("rb") as file:
        try:
            if kind == "png":  # verifies all checksums up to IEND, which decoding does not
                Pillow.open(file, formats=_FORMATS[kind]).verify()
                file.seek(0)
            with Pillow.open(file, formats=_FORMATS[kind]) as picture:
                frames = int(getattr(picture, "n_frames", 1))
                picture.seek(select_page(path, frames, options.frame))
                channels = len(picture.getbands())
                sizes = f"{picture.width} × {picture.height} in {channels} channels"
                check_size(path, picture.width * picture.height * channels, options.max_voxels, sizes)
                deep = kind == "png" and picture.mode in ("RGB", "RGBA") and "16B" in str(getattr(picture, "tile", ""))
                if deep and frames > 1:  # the stream of a frame is not taken apart
                    notes.append("16-bit colour or alpha read as 8-bit")
                    deep = False
                values, bits = _deep_values(path, notes) if deep else _values(path, picture, notes)
                orientation = picture.getexif().get(_ORIENTATION, 1)
        except Pillow.DecompressionBombError:  # derives from Exception alone
            raise DataError(
                f"{path}: expected at most {2 * (Pillow.MAX_IMAGE_PIXELS or 0)} pixels (Pillow's limit), the header "
                "declares more: it may be a decompression bomb. If it is genuine, raise PIL.Image.MAX_IMAGE_PIXELS."
            ) from None
    values = merge_equal_channels(as_native(upright(values, orientation, notes)), notes)
    values = handle_nan(values, path, options.nan, notes)
    unit, value_range = integer_range(values.dtype, bits)
    return Image(values, unit=unit, value_range=value_range, identity={"file": str(path)}, notes=tuple(notes))


def _values(path: Path, picture: Picture, notes: list[str]) -> tuple[NDArray[Any], int]:
    """Return the pixels ``c h w`` and their bits."""
    picture.load()
    mode = picture.mode
    if picture.has_transparency_data:
        picture = _without_alpha(path, picture, notes)
    if mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)[None], 16
    if mode == "1":
        return np.asarray(picture.convert("1"), dtype=np.uint8)[None], 1
    if mode in ("L", "LA", "La"):
        return np.asarray(picture.convert("L"))[None], 8
    if mode in _COLOUR_MODES:
        if _COLOUR_MODES[mode]:
            notes.append(f"{_COLOUR_MODES[mode]} converted to RGB")
        return np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0), 8
    raise DataError(f"{path}: expected grey or RGB pixels, found Pillow mode {mode!r}. Convert it to grey or RGB.")


def _deep_values(path: Path, notes: list[str]) -> tuple[NDArray[Any], int]:
    """Return the pixels ``c h w``, and their bits, of a PNG of 16-bit colour or alpha, which Pillow has no mode for."""
    import imagecodecs

    values = imagecodecs.png_decode(path.read_bytes())  # a colour marked as transparent becomes alpha
    colours = 1 if values.shape[-1] == 2 else 3
    if values.shape[-1] > colours:
        if not (values[..., -1] == np.iinfo(values.dtype).max).all():
            raise _transparent(path)
        notes.append("opaque alpha dropped")
    return np.moveaxis(values[..., :colours], -1, 0), 8 * values.dtype.itemsize


def _without_alpha(path: Path, picture: Picture, notes: list[str]) -> Picture:
    """Return the picture without its alpha channel, which must be opaque throughout."""
    if picture.mode.startswith("I;16"):  # one grey level is marked as transparent
        opaque = not np.any(np.asarray(picture) == picture.info["transparency"])
        plain = picture
    else:
        opaque = picture.convert("RGBA").getchannel("A").getextrema() == (255, 255)
        plain = picture.convert("L" if picture.mode in ("L", "LA", "La", "1") else "RGB")
    if not opaque:
        raise _transparent(path)
    notes.append("opaque alpha dropped")
    return plain


def _transparent(path: Path) -> DataError:
    return DataError(
        f"{path}: expected an opaque image, found transparency that leaves pixels undefined. "
        "Flatten it on its background, and export it without alpha."
    )
