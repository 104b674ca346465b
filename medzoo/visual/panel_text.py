"""Strips of text and the legend of a map, of one width, which are put below each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medzoo.visual.colours import blend
from medzoo.visual.show import INK, PAPER, plain_text

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["FRAME", "MARGIN", "WIDTH", "Line", "Sign", "font", "legend_strip", "stack_strips", "text_strip"]

WIDTH = 1600  # pixels: 254 in an inch over 16 cm, a page's width
MARGIN = 44
_SIZES = {"title": 44, "text": 28, "note": 25, "warning": 28}
_AMBER, _DARK, _PALE = (255, 186, 73), (66, 40, 0), (165, 165, 165)
_COLOURS = {"title": (255, 255, 255), "text": INK, "note": _PALE, "warning": _AMBER}
_BAR, _GROUND = 480, 60  # width; the grey below the colours of the scale
FRAME = (120, 200, 255)  # around what the model saw


@dataclass(frozen=True)
class Line:
    """A text, wrapped to the width of the picture.

    Attributes:
        text: without line breaks.
        kind: how it is drawn; a warning has a ground of its own, which grey print shows.
    """

    text: str
    kind: Literal["title", "text", "note", "warning"] = "text"


@dataclass(frozen=True)
class Sign:
    """A sign of the legend.

    Attributes:
        kind: how it is drawn.
        meaning: of it.
    """

    kind: Literal["cross", "line", "dashes", "hatch", "frame"]
    meaning: str


def font(size: int) -> Any:
    """Return the font of the pictures."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def text_strip(lines: Sequence[Line]) -> Picture:
    """Draw lines below each other."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    wrapped = [(part, line.kind) for line in lines for part in _wrap(plain_text(line.text), font(_SIZES[line.kind]))]
    heights = [round(_SIZES[kind] * 1.4) for _, kind in wrapped]
    strip = Pillow.new("RGB", (WIDTH, sum(heights) + 20), PAPER)
    pen = ImageDraw.Draw(strip)
    top = 10
    for (text, kind), height in zip(wrapped, heights, strict=True):
        if kind == "warning":
            pen.rectangle((MARGIN - 16, top, WIDTH - MARGIN, top + height - 1), fill=_DARK)
            pen.rectangle((MARGIN - 16, top, MARGIN - 9, top + height - 1), fill=_AMBER)
        place = (MARGIN + 4 * (kind == "warning"), top + height // 2)
        pen.text(place, text, fill=_COLOURS[kind], font=font(_SIZES[kind]), anchor="lm")
        top += height
    return strip


def _wrap(text: str, with_font: Any) -> list[str]:
    """Return the lines of a text that fit; a word that is too long for a line is broken."""
    room = WIDTH - 2 * MARGIN - 10
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if with_font.getlength(joined) <= room:
            lines[-1] = joined
            continue
        lines += [word] if lines[-1] else []
        lines[-1] = lines[-1] or word
        while with_font.getlength(lines[-1]) > room:
            fits = max(1, int(len(lines[-1]) * room / with_font.getlength(lines[-1])) - 1)
            lines[-1:] = [lines[-1][:fits], lines[-1][fits:]]
    return lines


def legend_strip(meaning: str, highest: float, signed: bool, signs: Sequence[Sign]) -> Picture:
    """Draw the colours of a map with their numbers, and what its signs mean.

    Args:
        meaning: of the numbers.
        highest: the largest absolute value, the end of the scale.
        signed: whether the scale goes from ``-highest``.
        signs: that are drawn.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    small = font(_SIZES["note"])
    strip = Pillow.new("RGB", (WIDTH, 112), PAPER)
    pen = ImageDraw.Draw(strip)
    level = np.linspace(-1 if signed else 0, 1, _BAR, dtype=np.float32)
    bar = blend(np.full((26, _BAR, 3), _GROUND, np.uint8), np.repeat(level[None], 26, 0), 1.0)
    strip.paste(Pillow.fromarray(bar), (MARGIN, 14))
    for share in (-1, 0, 1) if signed else (0, 0.5, 1):  # as many numbers as fit side by side
        x = MARGIN + round((share + signed) / (1 + signed) * (_BAR - 1))
        pen.line((x, 40, x, 48), fill=INK, width=2)
        pen.text((x, 52), f"{share * highest:.2g}", fill=INK, font=small, anchor=_anchor(share, signed))
    pen.text((MARGIN, 96), plain_text(meaning), fill=_PALE, font=small, anchor="lm")
    x = MARGIN + _BAR + 60
    for sign in signs:
        _draw_sign(pen, sign.kind, x, 27)
        pen.text((x + 42, 27), plain_text(sign.meaning), fill=INK, font=small, anchor="lm")
        x += 42 + int(small.getlength(sign.meaning)) + 44
    return strip


def _anchor(share: float, signed: bool) -> str:
    return "rt" if share == 1 else "lt" if share == (-1 if signed else 0) else "mt"


def _draw_sign(pen: Any, kind: str, x: int, y: int) -> None:
    """Draw a sign in the middle of a line of text, 32 pixels wide."""
    if kind == "cross":
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            pen.line((x + 16 + 4 * dx, y + 4 * dy, x + 16 + 14 * dx, y + 14 * dy), fill=INK, width=3)
    elif kind == "frame":
        pen.rectangle((x + 4, y - 12, x + 28, y + 12), outline=FRAME, width=3)
    elif kind == "hatch":
        for offset in range(0, 48, 8):
            low, high = max(0, offset - 24), min(24, offset)
            pen.line((x + low, y - 12 + offset - low, x + high, y - 12 + offset - high), fill=INK, width=2)
    else:
        step = 32 if kind == "line" else 11
        for start in range(0, 32, step):
            pen.line((x + start, y, x + min(start + step - 4 * (kind == "dashes"), 32), y), fill=INK, width=3)


def stack_strips(strips: Sequence[Picture]) -> Picture:
    """Put strips below each other."""
    from PIL import Image as Pillow

    picture = Pillow.new("RGB", (WIDTH, sum(strip.height for strip in strips)), PAPER)
    top = 0
    for strip in strips:
        picture.paste(strip, (0, top))
        top += strip.height
    return picture
