"""Pictures of a map over an image: the image alone, the map over it, its scale, and what it is of.

The map is transparent where it is low, so that the anatomy stays visible; a line follows the half of its maximum, so
that it can be read in grey print too. Every row has one scale, lengths are to scale, and sides are in the radiological
convention, as :func:`medzoo.show` draws them.

Axes: c channels, s spatial axes of the image, h w height width of a panel in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medzoo.io.image import Image
from medzoo.visual.colours import blend
from medzoo.visual.panel_text import FRAME, MARGIN, WIDTH, Line, Sign, font, legend_strip, stack_strips, text_strip
from medzoo.visual.show import (
    INK,
    PAPER,
    Panel,
    as_displayed,
    channels_last,
    flat_panel,
    grey_window,
    index_as_displayed,
    planes,
    to_grey,
    write_around,
)

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["Overlay", "draw_overlays"]

_TALLEST = 1000  # pixels of a panel
_HALF = 0.5  # of the maximum: where the line is
_SMALL = 0.5  # of the image: where less was seen, it is drawn larger
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)


@dataclass(frozen=True, eq=False)
class Overlay:
    """A map, and what is written beside it.

    Attributes:
        values: ``*s``, on the spatial axes of the image.
        at: the index of its maximum, where a cross is drawn and the planes of a volume are.
        heading: lines above it; the first is its title.
        scale: what the numbers of its scale mean.
        signed: whether values below 0 have a meaning, and a colour, of their own.
    """

    values: NDArray[np.float32]
    at: tuple[int, ...]
    heading: Sequence[Line]
    scale: str
    signed: bool = False


def draw_overlays(
    image: Image,
    overlays: Sequence[Overlay],
    seen: NDArray[np.bool_] | None,
    warnings: Sequence[Line],
    caption: Sequence[Line],
) -> Picture:
    """Draw each map over an image: one row in 2D, the three planes through its maximum of a volume.

    Args:
        image: as it was read.
        overlays: one or more.
        seen: ``*s``, what the model saw; the rest is dimmed and hatched. ``None`` if it saw all.
        warnings: lines at the beginning.
        caption: lines at the end.
    """
    window = grey_window(image)
    hatched = seen is not None and not bool(seen.all())
    strips = [text_strip(warnings)] if warnings else []
    for overlay in overlays:
        highest = float(np.abs(overlay.values).max())
        strips.append(text_strip(overlay.heading))
        draw = _volume_rows if image.dims == 3 else _flat_row
        rows = draw(image, overlay, seen if hatched else None, window, highest)
        if highest > 0:
            signs = _signs(overlay, highest, hatched=hatched, framed=len(rows) == 3)
            rows.append(legend_strip(overlay.scale, highest, overlay.signed, signs))
        strips += rows
    return stack_strips([*strips, text_strip(caption)])


def _signs(overlay: Overlay, highest: float, *, hatched: bool, framed: bool) -> list[Sign]:
    """Return what the signs that are drawn mean."""
    signs = [Sign("cross", "maximum" if overlay.values.max() > 0 else "minimum")]
    signs += [Sign("line", f"at {_HALF * highest:.2g}, half of it")] if not overlay.signed else []
    signs += [Sign("line", f"at {_HALF * highest:.2g}"), Sign("dashes", f"at {-_HALF * highest:.2g}")] * overlay.signed
    return signs + [Sign("hatch", "not seen by the model")] * hatched + [Sign("frame", "seen")] * framed


def _flat_row(
    image: Image, overlay: Overlay, seen: NDArray[np.bool_] | None, window: tuple[float, float], highest: float
) -> list[Picture]:
    """Return one row: the image alone, and the map over it."""
    plain = flat_panel(image, to_grey(channels_last(image), window))
    scale = _scale([plain, plain])
    if not highest:
        return [_row([(plain, plain.scaled(scale))])]
    covered = _covered(plain, overlay.values, seen, overlay.at, highest, scale)
    return [_row([(plain, plain.scaled(scale)), (plain, covered)])]


def _volume_rows(
    image: Image, overlay: Overlay, seen: NDArray[np.bool_] | None, window: tuple[float, float], highest: float
) -> list[Picture]:
    """Return rows of three planes through the maximum: the image alone, and the map over it.

    Where the model saw a small part, both rows are of it, below a row of the image with a frame around what was seen.
    """
    volume, spacing = as_displayed(image, channels_last(image))
    values, _ = as_displayed(image, overlay.values)
    inside = None if seen is None else as_displayed(image, seen)[0]
    oriented = image.affine is not None
    at = index_as_displayed(image, overlay.at)
    rows = []
    if inside is not None and (part := _small_part(inside, spacing)) is not None:
        whole = _grey_planes(volume, spacing, at, oriented, window)
        scale = _scale(whole)
        masks = planes(inside, spacing, at, oriented=oriented)
        framed = [_framed(p, m.pixels, scale) for p, m in zip(whole, masks, strict=True)]
        rows.append(_row(list(zip(whole, framed, strict=True)), titles=True))
        volume, values, inside = volume[part], values[part], inside[part]
        at = tuple(i - side.start for i, side in zip(at, part, strict=True))
    plain = _grey_planes(volume, spacing, at, oriented, window)
    scale = _scale(plain)
    rows.append(_row([(panel, panel.scaled(scale)) for panel in plain], titles=not rows))
    if not highest:
        return rows
    maps = planes(values, spacing, at, oriented=oriented)
    masks = planes(volume if inside is None else inside, spacing, at, oriented=oriented)
    marks = (at[1], at[2]), (at[0], at[2]), (at[0], at[1])
    covered = [
        _covered(panel, m.pixels, None if inside is None else s.pixels, mark, highest, scale)
        for panel, m, s, mark in zip(plain, maps, masks, marks, strict=True)
    ]
    return [*rows, _row(list(zip(plain, covered, strict=True)))]


def _grey_planes(
    volume: NDArray[Any], spacing: Sequence[float], at: Sequence[int], oriented: bool, window: tuple[float, float]
) -> list[Panel]:
    cuts = planes(volume, spacing, at, oriented=oriented)
    return [Panel(to_grey(cut.pixels, window), cut.mm, cut.edges, cut.title) for cut in cuts]


def _small_part(inside: NDArray[np.bool_], spacing: Sequence[float]) -> tuple[slice, ...] | None:
    """Return the box around what was seen, with a border, if it is small beside the volume."""
    ends = []
    for axis in range(3):
        hit = np.flatnonzero(inside.any(tuple(i for i in range(3) if i != axis)))
        if not len(hit):
            return None
        ends.append((int(hit[0]), int(hit[-1]) + 1))
    longest = max((high - low) * mm for (low, high), mm in zip(ends, spacing, strict=True))
    if longest > _SMALL * max(n * mm for n, mm in zip(inside.shape, spacing, strict=True)):
        return None
    border = [round(0.15 * longest / mm) for mm in spacing]
    return tuple(slice(max(0, low - b), high + b) for (low, high), b in zip(ends, border, strict=True))


def _covered(
    panel: Panel,
    values: NDArray[np.float32],
    seen: NDArray[np.bool_] | None,
    mark: tuple[int, ...],
    highest: float,
    scale: float,
) -> Picture:
    """Return a panel as it is drawn, with the map over it, its line, its cross, and hatching where nothing was seen."""
    from PIL import Image as Pillow

    size = panel.size(scale)
    level = np.ascontiguousarray(values / np.float32(highest), dtype=np.float32)
    level = np.asarray(Pillow.fromarray(level).resize(size, Pillow.Resampling.BILINEAR))
    pixels = blend(np.asarray(panel.scaled(scale)), level)
    down, across = np.ogrid[: size[1], : size[0]]
    if seen is not None:
        inside = np.asarray(Pillow.fromarray(seen).resize(size, Pillow.Resampling.NEAREST))
        hatched = np.where((down + across) % 16 < 2, 96, 0)[..., None] + pixels * 0.45
        pixels = np.where(inside[..., None], pixels, hatched.clip(0, 255)).astype(np.uint8)
    pixels = _outline(pixels, level >= _HALF, _WHITE)
    pixels = _outline(pixels, level <= -_HALF, _WHITE, (down + across) // 8 % 2 == 0)
    picture = Pillow.fromarray(pixels)
    rows, columns = values.shape
    _cross(picture, (mark[1] + 0.5) / columns * size[0], (mark[0] + 0.5) / rows * size[1])
    return picture


def _framed(panel: Panel, inside: NDArray[np.bool_], scale: float) -> Picture:
    """Return a panel as it is drawn, with a line around what was seen."""
    from PIL import Image as Pillow

    mask = Pillow.fromarray(np.ascontiguousarray(inside)).resize(panel.size(scale), Pillow.Resampling.NEAREST)
    return Pillow.fromarray(_outline(np.asarray(panel.scaled(scale)), np.asarray(mask), FRAME))


def _outline(
    pixels: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[int, int, int], on: NDArray[Any] | None = None
) -> NDArray[np.uint8]:
    """Return the picture with a line around a region, which has a dark border so that it is seen on white too."""
    if not mask.any():
        return pixels
    line = _grow(mask, 1) & _grow(~mask, 1)
    if on is not None:
        line &= on
    border = _grow(mask, 3) & _grow(~mask, 3)
    return np.where(line[..., None], colour, np.where(border[..., None], pixels // 3, pixels)).astype(np.uint8)


def _grow(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Return a region with all pixels that are so near to it along both axes."""
    for axis in (0, 1):
        given, grown = np.moveaxis(mask, axis, 0), mask.copy()
        out = np.moveaxis(grown, axis, 0)
        for step in range(1, reach + 1):
            out[step:] |= given[:-step]
            out[:-step] |= given[step:]
        mask = grown
    return mask


def _cross(picture: Picture, x: float, y: float) -> None:
    """Draw a small cross that is open in the middle."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(picture)
    for width, colour in ((7, _BLACK), (3, _WHITE)):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            pen.line((x + 5 * dx, y + 5 * dy, x + 17 * dx, y + 17 * dy), fill=colour, width=width)


def _scale(panels: Sequence[Panel]) -> float:
    """Return the pixels of one mm with which panels fill the width, unless they become too tall."""
    across = (WIDTH - 2 * MARGIN * len(panels)) / sum(panel.mm[1] for panel in panels)
    return min(across, _TALLEST / max(panel.mm[0] for panel in panels))


def _row(panels: Sequence[tuple[Panel, Picture]], titles: bool = False) -> Picture:
    """Put panels side by side with the letters of their sides, in the middle of a strip."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    letters = font(26)
    top = (MARGIN if any(panel.edges for panel, _ in panels) else 12) + 36 * titles
    strip = Pillow.new("RGB", (WIDTH, top + max(drawn.height for _, drawn in panels) + MARGIN), PAPER)
    pen = ImageDraw.Draw(strip)
    left = (WIDTH - sum(drawn.width + 2 * MARGIN for _, drawn in panels)) // 2 + MARGIN
    for panel, drawn in panels:
        strip.paste(drawn, (left, top))
        write_around(pen, panel, (left, top, left + drawn.width, top + drawn.height), letters, MARGIN // 2)
        if titles:
            pen.text((left + drawn.width // 2, 18), panel.title, fill=INK, font=letters, anchor="mm")
        left += drawn.width + 2 * MARGIN
    return strip
