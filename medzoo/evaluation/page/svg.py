"""Figures of matplotlib as SVG that stands in a page: in its colours and fonts, without a name that another has.

A figure is drawn in marker colours, which become CSS variables: it is light, dark or printed as the page is.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from medzoo.evaluation.page.markup import Markup, tag

__all__ = ["COLOURS", "figure", "own_style", "render"]

COLOURS = {
    "ink": "#010101", "muted": "#020202", "line": "#030303", "series-1": "#040404", "series-2": "#050505",
    "series-3": "#060606", "series-4": "#070707", "page": "#080808",
}  # fmt: skip
"""The marker colour of each variable of the page's style."""

_P = ParamSpec("_P")
_T = TypeVar("_T")
_KINDS = (
    "axes", "figure", "font", "grid", "legend", "lines", "patch", "path", "savefig", "svg", "text", "xtick", "ytick",
)  # fmt: skip
_LOCK = threading.RLock()  # rcParams, which hold the kind of the text of an SVG, are those of the process
_DROPPED = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL)
_FONT = re.compile(r"font: (?:(\w+) )?([\d.]+)px [^;\"]*")  # as matplotlib before 3.9 writes it
_FAMILY = re.compile(r" ?font-family: [^;\"]*;?| ?transform=\"rotate\(-0 [^\"]*\"")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")


def own_style(draw: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a function that draws use matplotlib's own settings, whatever a program or a user has set, and alone."""

    @wraps(draw)
    def inside(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        import matplotlib

        known = matplotlib.rcParamsDefault
        settings = {key: known[key] for key in known if key.split(".")[0] in _KINDS}
        settings |= {"svg.fonttype": "none", "svg.hashsalt": "medzoo"}
        with _LOCK, matplotlib.rc_context(settings):
            return draw(*args, **kwargs)

    return inside


def figure(width: float, height: float, left: float = 44) -> tuple[Any, Any]:
    """Return a figure and its axes.

    Args:
        width: in points, which are the pixels of the SVG's own size.
        height: likewise.
        left: of the axes, for the numbers beside them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width / 72, height / 72))
    FigureCanvasAgg(drawn)
    # Places of our own: a layout engine would draw each figure twice to measure its texts.
    axes = drawn.add_axes((left / width, 34 / height, (width - left - 6) / width, (height - 40) / height))
    drawn.patch.set_visible(False)
    _style(axes)
    return drawn, axes


def _style(axes: Any) -> None:
    """Give axes the colours of the page."""
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set(color=COLOURS["line"], linewidth=0.8, visible=side in ("left", "bottom"))
    axes.tick_params(colors=COLOURS["line"], labelcolor=COLOURS["muted"], labelsize=8, length=3, width=0.8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=COLOURS["muted"], size=8.5)
    axes.grid(visible=True, color=COLOURS["line"], alpha=0.35, linewidth=0.6)
    axes.set_axisbelow(True)


def render(drawn: Any, name: str, title: str) -> Markup:
    """Return a figure as SVG.

    Args:
        drawn: the figure.
        name: that no other figure of the page has; letters, digits and hyphens.
        title: what the figure shows, for those who cannot see it.
    """
    text = io.StringIO()
    drawn.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(_clean(text.getvalue(), name, title))


def _clean(svg: str, name: str, title: str) -> str:
    svg = _DROPPED.sub("", svg)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = _FONT.sub(lambda m: f"font-size: {m[2]}px" + (f"; font-weight: {m[1]}" if m[1] else ""), svg)
    svg = re.sub(r"<[^>]*>", lambda m: _NUMBER.sub(_short, m[0]), svg)  # in elements, not in the texts of the ticks
    svg = _FAMILY.sub("", svg)
    svg = re.sub(r"<defs>\s*</defs>", "", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg).strip()
    box = re.search(r'viewBox="([^"]*)"', svg)
    begin = tag("title", title, id=f"{name}-title")
    opening = f'<svg viewBox="{box[1] if box else "0 0 1 1"}" role="img" aria-labelledby="{name}-title">'
    return re.sub(r"<svg[^>]*>", lambda _: opening + begin, svg, count=1)


def _short(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
