"""PNG, JPEG and TIFF, through Pillow.

Axes: c channels, h w height width.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.data.arrays import as_real, settle_nan
from medzoo.data.files import check_size, refusing
from medzoo.data.image import Image
from medzoo.errors import DataError

__all__ = ["read_raster"]

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_EXIF_ORIENTATION = 0x0112


def read_raster(path: Path, kind: str, *, frame: int | None, nan: str, max_voxels: int) -> Image:
    """Read one picture, ``c h w``; grey is one channel, however it was stored.

    Args:
        path: the file.
        kind: ``"png"``, ``"jpeg"`` or ``"tiff"``.
        frame: the page of a file that has several.
        nan: ``"raise"`` or ``"zero"``, for TIFF of floats.
        max_voxels: the most pixels.

    Raises:
        DataError: damaged, cut short, too large, several pages and no ``frame``, or a transparency that varies.
    """
    from PIL import Image as Pil
    from PIL import ImageOps

    what = f"a {kind.upper()} image"
    notes: list[str] = []
    with refusing(path, what):
        data = path.read_bytes()
        # Pillow is content with a PNG that was cut after its last pixel.
        if kind == "png" and _PNG_END not in data:
            raise DataError(f"{path}: expected {what} with its end (IEND), found none: it is cut short. Copy it again.")
        try:
            picture: Any = Pil.open(io.BytesIO(data), formats=[kind.upper()])
        except Pil.DecompressionBombError:
            most = 2 * (Pil.MAX_IMAGE_PIXELS or 0)
            raise DataError(
                f"{path}: expected {what} of at most {most} pixels, found more: it may be made to fill the memory. "
                "If it is genuine, raise PIL.Image.MAX_IMAGE_PIXELS."
            ) from None
        check_size(path, picture.width * picture.height, max_voxels, f"{picture.height} × {picture.width}")
        picture.seek(_page(path, getattr(picture, "n_frames", 1), frame))
        picture.load()
        turned = picture.getexif().get(_EXIF_ORIENTATION, 1)
        if turned in range(2, 9):
            notes.append(f"EXIF orientation {turned} applied")
            picture = ImageOps.exif_transpose(picture)
        array, unit, span = _pixels(path, picture, notes)
    array, mended = settle_nan(as_real(array), path, nan)
    return Image(array, unit=unit, value_range=span, identity={"file": str(path)}, notes=(*notes, *mended))


def _page(path: Path, pages: int, frame: int | None) -> int:
    if frame is None and pages > 1:
        raise DataError(f"{path}: expected one image, found {pages} pages. Choose one with frame=0 to {pages - 1}.")
    if frame is not None and frame >= pages:
        raise DataError(f"{path}: expected frame=0 to {pages - 1}, got frame={frame}.")
    return frame or 0


def _pixels(path: Path, picture: Any, notes: list[str]) -> tuple[NDArray[Any], str, tuple[float, float] | None]:
    """Bring any of Pillow's modes to channels-first grey levels or colours, their unit and their range."""
    mode = picture.mode
    if mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)[None], "16-bit", (0.0, 65535.0)
    if mode in ("I", "F"):
        return np.asarray(picture)[None], "raw", None
    if mode == "1":
        notes.append("black and white mapped to 0 and 255")
        return np.asarray(picture.convert("L"))[None], "1-bit", (0.0, 255.0)
    if mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in picture.info:
        picture = _without_alpha(path, picture.convert("RGBA"), notes)
    elif mode not in ("L", "RGB"):
        notes.append(f"{'palette' if mode == 'P' else mode} converted to colour")
        picture = picture.convert("RGB")
    array = np.asarray(picture)
    if array.ndim == 2:
        return array[None], "8-bit", (0.0, 255.0)
    if (array == array[..., :1]).all():
        notes.append("grey stored as colour, taken as one channel")
        return array[..., 0][None], "8-bit", (0.0, 255.0)
    return np.moveaxis(array, -1, 0), "8-bit", (0.0, 255.0)


def _without_alpha(path: Path, picture: Any, notes: list[str]) -> Any:
    """Drop an alpha channel that hides nothing."""
    low, high = picture.getchannel("A").getextrema()
    if low != 255 or high != 255:
        raise DataError(
            f"{path}: expected an opaque image, found a transparency from {low} to {high}, which leaves the grey levels "
            "undefined. Export it without an alpha channel."
        )
    notes.append("opaque alpha channel dropped")
    return picture.convert("RGB")
