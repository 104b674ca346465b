"""PNG, JPEG and TIFF through Pillow: the pixels as stored, upright, never squeezed into 8 bits.

Axes: c channels, h w height width.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.arrays import as_real, settle_nan
from medzoo.io.files import check_size, refusing
from medzoo.io.image import Image
from medzoo.io.itk import listening

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["collapse_grey", "read_raster"]

_FORMATS = {"png": ["PNG"], "jpeg": ["JPEG", "MPO"], "tiff": ["TIFF"]}
_ORIENTATION, _BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 274, 258, 262, 0
_COLOURS = {
    "RGB": "", "RGBA": "", "RGBX": "", "RGBa": "", "P": "palette", "PA": "palette", "CMYK": "CMYK", "YCbCr": "YCbCr",
}  # fmt: skip


def read_raster(path: Path, kind: str, *, frame: int | None, nan: str, max_voxels: int) -> Image:
    """Read one picture ``c h w``; grey is one channel, however it was stored.

    Args:
        path: the file.
        kind: ``"png"``, ``"jpeg"`` or ``"tiff"``.
        frame: the page, where there are several.
        nan: what to do with NaN in a TIFF of floats.
        max_voxels: the most pixels times channels.

    Raises:
        DataError: damaged or cut short, several pages and no ``frame``, transparency that varies, or too large.
    """
    from PIL import Image as Pillow

    notes: list[str] = []
    # An open file, not its name: given a name, Pillow 13 maps an uncompressed TIFF into memory with rows and columns
    # exchanged before it turns it, and scrambles orientations 5 to 8.
    with refusing(path, f"a {kind.upper()} image"), path.open("rb") as file:
        try:
            if kind == "png":
                Pillow.open(file, formats=_FORMATS[kind]).verify()  # all checksums up to IEND, which decoding skips
                file.seek(0)
            with Pillow.open(file, formats=_FORMATS[kind]) as picture:
                _choose_page(path, picture, frame)
                count = picture.width * picture.height * len(picture.getbands())
                claim = f"{picture.width} × {picture.height} in {len(picture.getbands())} channels"
                check_size(path, count, max_voxels, claim)
                if kind == "png" and picture.mode in _COLOURS and "16B" in str(picture.tile):
                    notes.append("16-bit colour or alpha read as 8-bit")
                tags = dict(getattr(picture, "tag_v2", {}))  # the turned copy has none
                values, bits = _values(path, _upright(path, kind, picture, notes), tags, notes)
        except Pillow.DecompressionBombError:  # derives from Exception alone
            raise DataError(
                f"{path}: expected at most {2 * (Pillow.MAX_IMAGE_PIXELS or 0)} pixels (Pillow's limit), the header "
                "says more: it may be made to fill the memory. If it is genuine, raise PIL.Image.MAX_IMAGE_PIXELS."
            ) from None
    values, mended = settle_nan(collapse_grey(as_real(values), notes), path, nan)
    return Image(
        values,
        unit=f"{bits}-bit" if bits else "raw",
        value_range=(0.0, float(2**bits - 1)) if bits else None,
        identity={"file": str(path)},
        notes=(*notes, *mended),
    )


def collapse_grey(values: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    """Return one channel of an image whose three are exactly equal: grey that was stored as colour."""
    if values.shape[0] == 3 and np.array_equal(values[0], values[1]) and np.array_equal(values[0], values[2]):
        notes.append("three equal channels taken as one")
        return np.ascontiguousarray(values[:1])
    return values


def _choose_page(path: Path, picture: Picture, frame: int | None) -> None:
    pages = int(getattr(picture, "n_frames", 1))
    if pages > 1 and frame is None:
        raise DataError(f"{path}: expected one picture, found {pages} pages or frames. Choose one: frame=0.")
    if frame is not None:
        if frame >= pages:
            raise DataError(f"{path}: expected frame below {pages}, got frame={frame}. Count frames from 0.")
        picture.seek(frame)


def _upright(path: Path, kind: str, picture: Picture, notes: list[str]) -> Picture:
    """Decode, and turn the picture as its EXIF orientation says; Pillow itself turns a TIFF while it decodes."""
    from PIL import ImageOps

    orientation = picture.getexif().get(_ORIENTATION, 1)
    if kind == "tiff":
        with listening() as heard:
            picture.load()
        if heard:  # libtiff leaves blank what it cannot decode
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
    if mode.startswith("I;16"):
        return _sixteen_bits(picture, tags, notes)
    if mode in ("I", "F"):
        return np.asarray(picture)[None], 0
    if mode == "1":
        return np.asarray(picture.convert("1"), dtype=np.uint8)[None], 1
    if mode in ("L", "LA", "La"):
        return np.asarray(picture.convert("L"))[None], 8
    if mode in _COLOURS:
        if _COLOURS[mode]:
            notes.append(f"{_COLOURS[mode]} converted to RGB")
        return np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0), 8
    raise DataError(f"{path}: expected grey or RGB pixels, found Pillow mode {mode!r}. Convert it to grey or RGB.")


def _sixteen_bits(picture: Picture, tags: dict[int, Any], notes: list[str]) -> tuple[NDArray[Any], int]:
    """Return grey of 9 to 16 bits; a TIFF says how many it uses, and which end is white."""
    values = np.asarray(picture).astype(np.uint16)[None]
    bits = int(tags.get(_BITS, (16,))[0])
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow turns only 8-bit pages over
        notes.append("white-is-zero inverted")
        values = np.uint16(2**bits - 1) - values
    return values, bits


def _without_alpha(path: Path, picture: Picture, notes: list[str]) -> Picture:
    """Return the picture without its alpha, which must hide nothing."""
    if picture.mode.startswith("I;16"):  # one grey level is marked as transparent
        hides = bool(np.any(np.asarray(picture) == picture.info["transparency"]))
        plain = picture
    else:
        hides = picture.convert("RGBA").getchannel("A").getextrema() != (255, 255)
        plain = picture.convert("L" if picture.mode in ("L", "LA", "La", "1") else "RGB")
    if hides:
        raise DataError(
            f"{path}: expected an opaque image, found transparency that leaves pixels undefined. "
            "Flatten it on the background it was made for, and export it without alpha."
        )
    notes.append("opaque alpha dropped")
    return plain
