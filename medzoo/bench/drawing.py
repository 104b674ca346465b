"""Plots as SVG, in text: small, sharp, and without a plotting library.

A plot is a frame with two axes, linear or logarithmic, and marks in data coordinates. Everything is drawn on white, so
that it reads on a dark page too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

__all__ = ["COLOURS", "Plot", "bars"]

# Distinct for the colour-blind (Okabe and Ito, 2008), and grey.
COLOURS = ("#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#7f7f7f")
FONT = "font-family='system-ui, sans-serif' font-size='12'"


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """Wrap parts into a document."""
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' width='{width:g}' "
            f"height='{height:g}' role='img' {FONT}>",
            f"<title>{escape(title)}</title>",
            f"<rect width='{width:g}' height='{height:g}' fill='white'/>",
            f"<text x='{width / 2:g}' y='20' text-anchor='middle' font-weight='bold'>{escape(title)}</text>",
            *parts,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, what: str, anchor: str = "start", extra: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'{extra}>{escape(what)}</text>"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#dddddd", extra: str = "") -> str:
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}'{extra}/>"


@dataclass
class Plot:
    """A frame with two logarithmic axes.

    Attributes:
        title: what it shows.
        x_name: the horizontal axis, with its unit.
        y_name: the vertical axis, with its unit.
        x: its range.
        y: its range.
    """

    title: str
    x_name: str
    y_name: str
    x: tuple[float, float]
    y: tuple[float, float]
    parts: list[str] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)

    WIDTH, HEIGHT = 780, 440
    LEFT, RIGHT, TOP, BOTTOM = 70, 530, 40, 390

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point of the data lies on the page, kept inside the frame's range."""
        along = math.log(x / self.x[0]) / math.log(self.x[1] / self.x[0])
        up = math.log(y / self.y[0]) / math.log(self.y[1] / self.y[0])
        return self.LEFT + along * (self.RIGHT - self.LEFT), self.BOTTOM - up * (self.BOTTOM - self.TOP)

    def line(self, points: Sequence[tuple[float, float]], colour: str, name: str = "", *, dashed: bool = False) -> None:
        """Draw a line through points."""
        where = " ".join("{:.1f},{:.1f}".format(*self.place(*point)) for point in points)
        dash = " stroke-dasharray='5 4'" if dashed else ""
        self.parts.append(f"<polyline points='{where}' fill='none' stroke='{colour}' stroke-width='1.5'{dash}/>")
        if name:
            self.legend.append((name, colour))

    def dots(self, points: Sequence[tuple[float, float]], colour: str, name: str = "", *, hollow: bool = False) -> None:
        """Draw a dot at each point."""
        for point in points:
            x, y = self.place(*point)
            fill = "white" if hollow else colour
            self.parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{fill}' stroke='{colour}'/>")
        if name:
            self.legend.append((name, colour))

    def svg(self) -> str:
        """Return the picture."""
        parts = []
        for tick in ticks(*self.x):
            x, _ = self.place(tick, self.y[0])
            parts += [_line(x, self.TOP, x, self.BOTTOM), _text(x, self.BOTTOM + 16, number(tick), "middle")]
        for tick in ticks(*self.y):
            _, y = self.place(self.x[0], tick)
            parts += [_line(self.LEFT, y, self.RIGHT, y), _text(self.LEFT - 6, y + 4, number(tick), "end")]
        middle = (self.TOP + self.BOTTOM) / 2
        parts += [
            _text((self.LEFT + self.RIGHT) / 2, self.BOTTOM + 38, self.x_name, "middle"),
            _text(18, middle, self.y_name, "middle", f" transform='rotate(-90 18 {middle:g})'"),
            f"<rect x='{self.LEFT}' y='{self.TOP}' width='{self.RIGHT - self.LEFT}' height='{self.BOTTOM - self.TOP}' "
            "fill='none' stroke='#888888'/>",
            *self.parts,
        ]
        for i, (name, colour) in enumerate(self.legend):
            y = self.TOP + 8 + 20 * i
            parts += [
                f"<rect x='{self.RIGHT + 14}' y='{y - 5:g}' width='10' height='10' fill='{colour}'/>",
                _text(self.RIGHT + 30, y + 4, name),
            ]
        return _svg(self.WIDTH, self.HEIGHT, self.title, parts)


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers of a logarithmic axis: every decade, and 2 and 5 between where there are few.

    >>> ticks(1, 100), ticks(0.5, 3)
    ([1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0], [0.5, 1.0, 2.0])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    found = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return [tick for tick in found if low * 0.999 <= tick <= high * 1.001]


def number(value: float) -> str:
    """Return a tick's label.

    >>> number(0.05), number(200.0), number(2e6)
    ('0.05', '200', '2M')
    """
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


def bars(title: str, groups: Sequence[tuple[str, Sequence[tuple[str, float, float, float, str]]]]) -> str:
    """Return horizontal bars in groups, with a line from the lower to the upper quartile and a mark at 1.

    Args:
        title: what it shows.
        groups: a name, and for each bar its name, value, quartiles and colour.
    """
    left, right, high = 340, 650, 22
    longest = max([value for _, group in groups for _, value, *_ in group], default=1.0) * 1.05
    scale = (right - left) / longest
    parts: list[str] = []
    y = 44.0
    for name, group in groups:
        parts.append(_text(8, y + 12, name, extra=" font-weight='bold'"))
        y += high - 2
        top_of_group = y
        for who, value, low, top, colour in group:
            parts += [
                _text(left - 8, y + 12, who, "end"),
                f"<rect x='{left}' y='{y:g}' width='{value * scale:.1f}' height='15' fill='{colour}'/>",
                _line(left + low * scale, y + 7.5, left + min(top, longest) * scale, y + 7.5, "#333333"),
                _text(left + min(max(value, top), longest) * scale + 6, y + 12, f"{value:.2f}×"),
            ]
            y += high - 3
        # Beside the bars only: names are longer than the place to the left of it.
        parts.append(_line(left + scale, top_of_group - 2, left + scale, y - 2, "#333333", " stroke-dasharray='3 3'"))
        y += 6
    return _svg(720, y + 12, title, parts)
