"""The reader of PNG, JPEG and TIFF, through Pillow: upright pixels in their own bit depth.

Axes: c channels, h w height width.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.files import capture_stderr, check_frame, check_size, wrap_read_errors
from medzoo.io.image import Image, as_native, handle_nan, merge_equal_channels
from medzoo.io.options import ReadOptions

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["read_raster"]

_FORMATS = {"png": ["PNG"], "jpeg": ["JPEG", "MPO"], "tiff": ["TIFF"]}
_ORIENTATION, _BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 274, 258, 262, 0  # EXIF and TIFF tags, and a value of the last
_COLOUR_MODES = {
    "RGB": "", "RGBA": "", "RGBX": "", "RGBa": "", "P": "palette", "PA": "palette", "CMYK": "CMYK", "YCbCr": "YCbCr",
}  # fmt: skip


def read_raster(path: Path, kind: str, options: ReadOptions) -> Image:
    """Read one image ``c h w``; grey has one channel, also where it was stored as colour.

    ``kind`` is ``"png"``, ``"jpeg"`` or ``"tiff"``.

    Raises:
        DataError: damaged or cut short, several pages and no ``frame``, transparency that varies, or too large.
    """
    from PIL import Image as Pillow

    options.refuse(path, f"a {kind.upper()} image", "stack", "channel_axis")
    notes: list[str] = []
    # An open file, not its name: given a name, Pillow 13 maps an uncompressed TIFF into memory with rows and columns
    # exchanged before it rotates it, and scrambles orientations 5 to 8.
    with wrap_read_errors(path, f"a {kind.upper()} image"), path.open("rb") as file:
        try:
            if kind == "png":  # verifies all checksums up to IEND, which decoding does not
                Pillow.open(file, formats=_FORMATS[kind]).verify()
                file.seek(0)
            with Pillow.open(file, formats=_FORMATS[kind]) as picture:
                _select_page(path, picture, options.frame)
                channels = len(picture.getbands())
                sizes = f"{picture.width} × {picture.height} in {channels} channels"
                check_size(path, picture.width * picture.height * channels, options.max_voxels, sizes)
                if kind == "png" and picture.mode in _COLOUR_MODES and "16B" in str(picture.tile):
                    notes.append("16-bit colour or alpha read as 8-bit")
                tags = dict(getattr(picture, "tag_v2", {}))  # the transposed copy has none
                values, bits = _values(path, _upright(path, kind, picture, notes), tags, notes)
        except Pillow.DecompressionBombError:  # derives from Exception alone
            raise DataError(
                f"{path}: expected at most {2 * (Pillow.MAX_IMAGE_PIXELS or 0)} pixels (Pillow's limit), the header "
                "declares more: it may be a decompression bomb. If it is genuine, raise PIL.Image.MAX_IMAGE_PIXELS."
            ) from None
    values = handle_nan(merge_equal_channels(as_native(values), notes), path, options.nan, notes)
    unit, value_range = (f"{bits}-bit", (0.0, float(2**bits - 1))) if bits else ("raw", None)
    return Image(values, unit=unit, value_range=value_range, identity={"file": str(path)}, notes=tuple(notes))


def _select_page(path: Path, picture: Picture, frame: int | None) -> None:
    pages = int(getattr(picture, "n_frames", 1))
    if pages > 1 and frame is None:
        raise DataError(f"{path}: expected one picture, found {pages} pages or frames. Choose one: frame=0.")
    check_frame(path, frame, pages)
    picture.seek(frame or 0)


def _upright(path: Path, kind: str, picture: Picture, notes: list[str]) -> Picture:
    """Decode, and apply the EXIF orientation; Pillow itself applies a TIFF's while it decodes."""
    from PIL import ImageOps

    orientation = picture.getexif().get(_ORIENTATION, 1)
    if kind == "tiff":
        with capture_stderr() as printed:
            picture.load()
        if printed:  # libtiff leaves blank what it cannot decode
            raise DataError(f"{path}: expected a sound TIFF, found damaged pixels. Copy it again from its source.")
    picture.load()
    if orientation in range(2, 9):
        notes.append(f"EXIF orientation {orientation} applied")
    return ImageOps.exif_transpose(picture)


def _values(path: Path, picture: Picture, tags: dict[int, Any], notes: list[str]) -> tuple[NDArray[Any], int]:
    """Return the pixels ``c h w`` and the bits of their range (0: no fixed range)."""
    mode = picture.mode
    if picture.has_transparency_data:
        picture = _without_alpha(path, picture, notes)
    if mode.startswith("I;16"):  # 9 to 16 bits; a TIFF stores how many it uses, and whether white is 0
        values = np.asarray(picture).astype(np.uint16)[None]
        bits = int(tags.get(_BITS, (16,))[0])
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts 8-bit pages only
            notes.append("white-is-zero inverted")
            values = np.uint16(2**bits - 1) - values
        return values, bits
    if mode in ("I", "F"):
        return np.asarray(picture)[None], 0
    if mode == "1":
        return np.asarray(picture.convert("1"), dtype=np.uint8)[None], 1
    if mode in ("L", "LA", "La"):
        return np.asarray(picture.convert("L"))[None], 8
    if mode in _COLOUR_MODES:
        if _COLOUR_MODES[mode]:
            notes.append(f"{_COLOUR_MODES[mode]} converted to RGB")
        return np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0), 8
    raise DataError(f"{path}: expected grey or RGB pixels, found Pillow mode {mode!r}. Convert it to grey or RGB.")


def _without_alpha(path: Path, picture: Picture, notes: list[str]) -> Picture:
    """Return the picture without its alpha channel, which must be opaque throughout."""
    if picture.mode.startswith("I;16"):  # one grey level is marked as transparent
        opaque = not np.any(np.asarray(picture) == picture.info["transparency"])
        plain = picture
    else:
        opaque = picture.convert("RGBA").getchannel("A").getextrema() == (255, 255)
        plain = picture.convert("L" if picture.mode in ("L", "LA", "La", "1") else "RGB")
    if not opaque:
        raise DataError(
            f"{path}: expected an opaque image, found transparency that leaves pixels undefined. "
            "Flatten it on its background, and export it without alpha."
        )
    notes.append("opaque alpha dropped")
    return plain
