"""``medzoo.show``: pictures of images as they were read, to check orientation, spacing and intensity by eye.

Axes: c channels, h w height width; x y z right, front and head of the patient. In a picture, rows run down and columns
to the right.
"""

from __future__ import annotations

import os
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import ConfigError, DataError
from medzoo.io.files import join_sizes
from medzoo.io.image import Image, voxel_sizes
from medzoo.io.read import read

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = [
    "INK", "PAPER", "Panel", "as_displayed", "channels_last", "compose", "contact_sheet", "draw", "flat_panel",
    "grey_window", "index_as_displayed", "middle_planes", "paste", "plain_text", "planes", "save_picture", "show",
    "to_grey", "write_around",
]  # fmt: skip

_SIDE = 360  # pixels along the longer side of a panel
_MARGIN = 26  # pixels, for the letters
_LINE = 19
_CT_WINDOW = (-1000.0, 400.0)  # HU: shows lung, soft tissue and contrast-filled vessels
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
INK, PAPER = (222, 222, 222), (0, 0, 0)
_LETTERS = (255, 214, 102)
_PLAIN = {"×": "x", "–": "-", "—": "-", "−": "-", "≥": ">=", "≤": "<=", "→": "->", "ß": "ss"}


@dataclass(frozen=True, eq=False)
class Panel:
    """One plane of an image, ready to draw.

    Attributes:
        pixels: ``h w`` or ``h w 3``; 8-bit where it is drawn as it is.
        mm: height and width in mm, or in pixels where the spacing is not known.
        edges: letters at the left, top, right and bottom, such as ``"RALP"``; empty where the file gives no
            orientation.
        title: the name of the plane.
    """

    pixels: NDArray[Any]
    mm: tuple[float, float]
    edges: str
    title: str

    def scaled(self, scale: float) -> Picture:
        """Return the pixels, of which each mm has ``scale``."""
        from PIL import Image as Pillow

        pixels = Pillow.fromarray(np.ascontiguousarray(self.pixels)).convert("RGB")
        return pixels.resize(self.size(scale), Pillow.Resampling.BILINEAR)

    def size(self, scale: float) -> tuple[int, int]:
        """Return the width and height in pixels, of which each mm has ``scale``."""
        return max(1, round(self.mm[1] * scale)), max(1, round(self.mm[0] * scale))


def show(
    image: Image | str | os.PathLike[str] | NDArray[Any], out: str | os.PathLike[str] | None = None, **options: Any
) -> Picture:
    """Draw an image: an X-ray as a radiologist sees it, or the three middle planes of a volume.

    Planes are in the radiological convention: the patient's right is on the left of the axial and coronal planes, the
    front is on the left of the sagittal plane, the head is up. Letters mark the sides (R L A P S I); they are omitted
    where the file gives no orientation. Lengths are to scale.

    Args:
        image: an image, or what :func:`medzoo.read` takes.
        out: a file to write the picture to, such as ``"check.png"``.
        options: for :func:`medzoo.read`, such as ``frame=0``.

    Returns:
        The picture.

    Raises:
        DataError: the image cannot be read.
        ConfigError: the picture cannot be written to ``out``.
    """
    return save_picture(draw(image if isinstance(image, Image) else read(image, **options)), out)


def draw(image: Image, side: int = _SIDE) -> Picture:
    """Draw an image as :func:`show` does, its longest side with ``side`` pixels."""
    pixels, window = _grey_levels(image)
    panels = middle_planes(image, pixels) if image.dims == 3 else [flat_panel(image, pixels)]
    return compose(panels, _caption(image, window), side)


def contact_sheet(
    sources: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None, *, width: int = 1700
) -> Picture:
    """Draw several files and series folders on one sheet; a file that cannot be read is shown by its error.

    Args:
        sources: files, and folders with one DICOM series each.
        out: a file to write the sheet to.
        width: of the sheet in pixels, unless one picture is wider.

    Raises:
        ConfigError: no source, or the sheet cannot be written.
    """
    tiles = [_tile(source) for source in sources]
    if not tiles:
        raise ConfigError("contact_sheet: expected one source or more, got none. Give files or series folders.")
    return save_picture(paste(tiles, width), out)


def paste(tiles: Sequence[Picture], width: int) -> Picture:
    """Put pictures in lines on one sheet, which is wider than ``width`` pixels only if one of them is."""
    from PIL import Image as Pillow

    width = max(width, *(tile.width for tile in tiles))
    places = []
    left = top = bottom = 0
    for tile in tiles:
        if left + tile.width > width:
            left, top = 0, bottom
        places.append((left, top))
        left += tile.width
        bottom = max(bottom, top + tile.height)
    sheet = Pillow.new("RGB", (width, bottom), PAPER)
    for tile, place in zip(tiles, places, strict=True):
        sheet.paste(tile, place)
    return sheet


def _tile(source: str | os.PathLike[str]) -> Picture:
    try:
        return show(source)
    except DataError as error:
        return compose([], ["cannot be read:", *textwrap.wrap(str(error).replace(str(source), Path(source).name), 60)])


def save_picture(picture: Picture, out: str | os.PathLike[str] | None) -> Picture:
    """Return the picture, written to ``out`` if that is given; ConfigError if it cannot be written."""
    if out is not None:
        try:
            picture.save(out)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{out}: the picture cannot be written ({error}). Name a .png in a folder you may write to."
            ) from None
    return picture


def flat_panel(image: Image, pixels: NDArray[np.uint8]) -> Panel:
    """Return the one panel of a 2D image."""
    mm = np.multiply(image.array.shape[1:], image.spacing or (1.0, 1.0))
    edges = "" if image.affine is None else _edges(image.affine[:3, 1], image.affine[:3, 0])
    return Panel(pixels, (mm[0], mm[1]), edges, "")


def middle_planes(image: Image, pixels: NDArray[np.uint8]) -> list[Panel]:
    """Return the three middle planes of a volume; without an orientation, along the axes as stored."""
    volume, spacing = as_displayed(image, pixels)
    turned = image.affine is not None  # the axes run backwards: the middle is that of the volume as it was
    middle = [n - 1 - n // 2 if turned else n // 2 for n in volume.shape[:3]]
    return planes(volume, spacing, middle, oriented=turned)


def planes(volume: NDArray[Any], spacing: Sequence[float], at: Sequence[int], *, oriented: bool) -> list[Panel]:
    """Return the three planes through a voxel of a volume, which is on the axes of :func:`as_displayed`."""
    edges, titles = ["RALP", "RSLI", "ASPI"], ["axial", "coronal", "sagittal"]
    if not oriented:
        edges = ["", "", ""]
        titles = [f"{name} axis at {n}" for name, n in zip(("first", "second", "third"), at, strict=True)]
    mm = np.multiply(volume.shape[:3], spacing)
    cuts = volume[at[0]], volume[:, at[1]], volume[:, :, at[2]]
    sizes = (mm[1], mm[2]), (mm[0], mm[2]), (mm[0], mm[1])
    return [Panel(*panel) for panel in zip(cuts, sizes, edges, titles, strict=True)]


def as_displayed(image: Image, values: NDArray[Any]) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Return values ``*s`` or ``*s 3`` of a volume on the axes they are drawn along, and the spacing of these in mm.

    The axes are z y x, which run backwards, so that the left and top edges of a plane are right, front and head; as
    stored where the image has no affine. The values are a view.
    """
    if image.affine is None:
        return values, image.spacing or (1.0, 1.0, 1.0)
    from nibabel.orientations import apply_orientation, io_orientation

    change = io_orientation(image.affine)
    volume = np.swapaxes(apply_orientation(values, change)[::-1, ::-1, ::-1], 0, 2)
    sizes = voxel_sizes(image.affine)
    return volume, tuple(sizes[i] for i in np.argsort(change[:, 0])[::-1])


def index_as_displayed(image: Image, at: Sequence[int]) -> tuple[int, ...]:
    """Return the index of a voxel of a volume on the axes of :func:`as_displayed`."""
    if image.affine is None:
        return tuple(at)
    from nibabel.orientations import io_orientation

    shown = [0, 0, 0]
    for i, n, (axis, sign) in zip(at, image.array.shape[1:], io_orientation(image.affine), strict=True):
        shown[2 - int(axis)] = i if sign < 0 else n - 1 - i
    return tuple(shown)


def _grey_levels(image: Image) -> tuple[NDArray[np.uint8], str]:
    """Return the pixels in 8 bits, ``*s`` or ``*s 3``, and a text of the values drawn as black and white."""
    low, high = grey_window(image)
    pixels = to_grey(channels_last(image), (low, high))
    return pixels, f"drawn from {low:g} (black) to {high:g} (white)"


def grey_window(image: Image) -> tuple[float, float]:
    """Return the values that are drawn as black and white."""
    if image.unit == "HU":
        return _CT_WINDOW
    if image.value_range is not None:
        return image.value_range
    low, high = np.percentile(image.array.astype(np.float32)[..., ::2], (0.5, 99.5))
    return float(low), float(high)


def to_grey(values: NDArray[Any], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Return values in 8 bits."""
    low, high = window
    shown = np.clip((values.astype(np.float32) - low) / ((high - low) or 1.0), 0, 1) * 255
    return shown.round().astype(np.uint8)


def channels_last(image: Image) -> NDArray[Any]:
    """Return the values of an image as they are drawn: ``*s 3`` for colour, else the first channel ``*s``."""
    return np.moveaxis(image.array, 0, -1) if image.array.shape[0] == 3 else image.array[0]


def _edges(columns: NDArray[np.float64], rows: NDArray[np.float64]) -> str:
    """Return the letters at left, top, right and bottom, from the RAS directions of columns and rows."""

    def towards(direction: NDArray[np.float64]) -> str:
        axis = int(np.argmax(np.abs(direction)))
        return ("RL", "AP", "SI")[axis][0 if direction[axis] > 0 else 1]

    right, bottom = towards(columns), towards(rows)
    return _OPPOSITE[right] + _OPPOSITE[bottom] + right + bottom


def _caption(image: Image, window: str) -> list[str]:
    """Return the lines of text below the picture."""
    name = Path(image.identity.get("file", "array")).name
    size = join_sizes(image.array.shape[1:])
    spacing = "spacing unknown" if image.spacing is None else " × ".join(f"{s:.3g}" for s in image.spacing) + " mm"
    kind = " ".join(part for part in (image.modality, image.identity.get("view", "")) if part) or "modality unknown"
    where = f", axes {image.orientation}" if image.orientation else ""
    span = f"{float(image.array.min()):g} to {float(image.array.max()):g}"
    unit = image.unit if image.unit != "raw" else "values as stored"
    lines = [name, f"{kind}, {size}, {spacing}{where}", f"{unit}, {span}; {window}"]
    return [line for text in (*lines, *image.notes) for line in textwrap.wrap(text, 110)]


def compose(panels: Sequence[Panel], caption: Sequence[str], side: int = _SIDE) -> Picture:
    """Put panels side by side, the longest ``side`` pixels long, letters around them and the caption below."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(14)
    caption = [plain_text(line) for line in caption]
    scale = side / max((max(panel.mm) for panel in panels), default=1.0)
    drawn = [panel.scaled(scale) for panel in panels]
    text_width = max((int(font.getlength(line)) for line in caption), default=0)
    width = max(sum(p.width + 2 * _MARGIN for p in drawn), text_width + 2 * _MARGIN)
    top = _LINE + _MARGIN if any(panel.title for panel in panels) else _MARGIN
    height = top + max((p.height for p in drawn), default=0) + _MARGIN
    picture = Pillow.new("RGB", (width, height + _LINE * len(caption) + 10), PAPER)
    pen = ImageDraw.Draw(picture)
    left = _MARGIN
    for panel, pixels in zip(panels, drawn, strict=True):
        picture.paste(pixels, (left, top))
        write_around(pen, panel, (left, top, left + pixels.width, top + pixels.height), font, _MARGIN // 2)
        pen.text((left + pixels.width // 2, _LINE // 2 + 2), panel.title, fill=INK, font=font, anchor="mm")
        left += pixels.width + 2 * _MARGIN
    for i, line in enumerate(caption):
        pen.text((_MARGIN, height + _LINE * i), line, fill=INK, font=font)
    return picture


def write_around(pen: Any, panel: Panel, box: tuple[int, int, int, int], font: Any, gap: int) -> None:
    """Write the letters of the sides around a panel that is drawn in a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    middle, centre = (left + right) // 2, (top + bottom) // 2
    places = (left - gap, centre), (middle, top - gap), (right + gap, centre), (middle, bottom + gap)
    for letter, place in zip(panel.edges, places, strict=False):  # no letters without an orientation
        pen.text(place, letter, fill=_LETTERS, font=font, anchor="mm")


def plain_text(text: str) -> str:
    """Return a text in the characters that the font of the pictures has.

    >>> plain_text("10 × 12 – Größe")
    '10 x 12 - Grosse'
    """
    text = "".join(_PLAIN.get(c, c) for c in text)
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
