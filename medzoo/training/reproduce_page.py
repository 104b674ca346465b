"""The table of a reproduction in a terminal, its page, and its picture."""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING, Any

from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.page.document import document
from medzoo.evaluation.page.markup import Footnotes, Markup, estimate_cell, number, sentence, table, tag
from medzoo.training.reproduce_ways import WAYS, FigureRow
from medzoo.version import __version__

if TYPE_CHECKING:
    from rich.console import Group

    from medzoo.training.reproduction import Reproduction

__all__ = ["draw", "page", "rich_table"]

_STYLE = "figure.reproduction img { display: block; max-width: 100%; height: auto; background: #fff }"
_EXPLAINED = (
    "Claimed is what the source reported on its own data, the other columns are on this data and model. As published: "
    "split and measured as the source did. Honest: split by patient, on rows that chose nothing. Labels permuted: the "
    "same, after the labels were dealt to other patients by chance, so that there is nothing to learn."
)
_LEGEND = "95 % intervals; those of rows ignore patients and are too narrow. Hollow: labels permuted"
# Okabe and Ito's vermilion and blue, which the colour-blind tell apart; a permuted way is an open marker.
_VERMILION, _BLUE, _INK, _GREY = "#d55e00", "#0072b2", "#1b1f24", "#57606a"
_COLOURS = {
    "as_published": _VERMILION, "permuted_as_published": _VERMILION, "honest": _BLUE, "permuted_honest": _BLUE,
}  # fmt: skip


def rich_table(found: Reproduction) -> Group:
    """Return the table, the sentence of each row and the notes for a terminal."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    shown = Table("figure", "claimed", *WAYS.values(), title=escape(_title(found)), title_justify="left")
    for row in found.figures:
        claimed = "–" if row.claimed is None else f"{row.claimed:g}"
        cells = [_cell(row.estimates[name], row.fewer(name)) for name in WAYS]
        shown.add_row(escape(row.title), claimed, *cells)
    lines = [f"{escape(row.title)}: {escape(row.sentence)}" for row in found.figures]
    ways = [f"{WAYS[way.name]}: {escape(way.describe())}" for way in found.ways]
    return Group(shown, *lines, "", *ways, *(f"note: {escape(note)}" for note in found.notes))


def _cell(estimate: Estimate, fewer: str) -> str:
    """Return a figure with its interval below it, and of how many labels it is where other columns have more."""
    if math.isnan(estimate.value):
        return "–"
    interval = "" if estimate.low is None or estimate.high is None else f"\n{estimate.low:.3f} to {estimate.high:.3f}"
    return f"{estimate.value:.3f}{interval}" + (f"\n{fewer}" if fewer else "")


def _title(found: Reproduction) -> str:
    return f"{found.recipe.name}: as published and honest"


def page(found: Reproduction, picture: bytes) -> bytes:
    """Return the page: the table, the sentences, the picture, and how each way was measured, in one file."""
    notes, first = Footnotes(), found.figures[0]
    source = Markup("data:image/png;base64," + base64.b64encode(picture).decode())
    alt = " ".join(f"{row.title}: {row.sentence}" for row in found.figures)
    shown = table(
        "Intervals of 95 %, by a bootstrap over patients, or of rows where the column notes it.",
        ["Figure", "Claimed by the source", *(_head(found, name) for name in WAYS)],
        [_row(row, notes) for row in found.figures],
        notes=notes,
    )
    ways = [part for way in found.ways for part in (tag("dt", WAYS[way.name]), tag("dd", way.describe()))]
    reference = found.recipe.source.reference
    body = [
        shown,
        tag("section", tag("h2", "What the differences are made of"),
            tag("dl", *(p for row in found.figures for p in (tag("dt", row.title), tag("dd", row.sentence))),
                class_="facts"), class_="short"),
        tag("section", tag("h2", "As a picture"),
            tag("figure", tag("img", src=source, alt=alt), class_="reproduction"), class_="short"),
        tag("section", tag("h2", "How each column was measured"), tag("dl", *ways, class_="facts"),
            tag("ul", *(tag("li", sentence(note)) for note in found.notes)), class_="short"),
    ]  # fmt: skip
    header = tag("header", tag("h1", _title(found)), tag("p", first.sentence, class_="lead"), tag("p", _EXPLAINED))
    made = (
        f"For research use. Made with medzoo {__version__}. The same figures are in the CSV and JSON files beside this."
    )
    footer = tag("footer", tag("p", f"Source: {sentence(reference)}") if reference else None, tag("p", made))
    return document(_title(found), header, body, footer, more_style=_STYLE).encode()


def _head(found: Reproduction, name: str) -> Markup:
    way = next(way for way in found.ways if way.name == name)
    of = f"{way.part} part, {len(way.scores):,} rows"
    return tag("th", WAYS[name].capitalize(), tag("br"), tag("small", f"{of}; intervals of {way.unit}s"), scope="col")


def _row(row: FigureRow, notes: Footnotes) -> Markup:
    same, below = row.same_chance, None
    if same is not None:
        below = tag("small", f"{row.chance_of}: {number(same)}", class_="small")
    elif row.chance_of:
        below = tag("small", f"in brackets: {row.chance_of}", class_="small")
    cells = [tag("th", row.title, tag("br") if below else None, below, scope="row")]
    cells.append(tag("td", "–" if row.claimed is None else f"{row.claimed:g}", class_="n"))
    for name in WAYS:
        cell, baseline = estimate_cell(row.estimates[name], notes), row.baseline(name)
        if same is None and baseline is not None:
            own = tag("small", f"({number(baseline)})", class_="small")
            cell = Markup(f"{cell.removesuffix('</td>')}{tag('br')}{own}</td>")
        if fewer := row.fewer(name):
            cell = Markup(cell.removesuffix("</td>") + notes.mark(fewer) + "</td>")
        cells.append(cell)
    return tag("tr", *cells)


def draw(found: Reproduction) -> bytes:
    """Return the picture as a PNG: each figure in every way with its interval, beside chance and the claim."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = sum(_height(row) for row in found.figures)
    inches = 0.26 * lines + 1.5
    style_of: dict[Any, Any] = {"font.size": 10, "font.family": "sans-serif", "axes.facecolor": "white"}
    with matplotlib.rc_context(style_of):
        figure = Figure(figsize=(10, inches), facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.3, 0.75 / inches, 0.46, 1 - 1.5 / inches))
        axes.set(xlim=(-0.02, 1.02), ylim=(lines, 0), yticks=[], xlabel=_LEGEND)
        axes.grid(axis="x", color=_GREY, alpha=0.2)
        axes.set_axisbelow(True)
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        axes.text(-0.63, -1.3, _title(found), transform=axes.get_yaxis_transform(), fontsize=13, weight="bold",
                  color=_INK, va="center")  # fmt: skip
        top = 0
        for row in found.figures:
            _draw_row(axes, row, found, top)
            top += _height(row)
        png = io.BytesIO()
        figure.savefig(png, dpi=150)
    return png.getvalue()


def _height(row: FigureRow) -> int:
    """Return the lines of a figure: its title, the claim, the ways, and a space."""
    return 2 + len(WAYS) + (row.claimed is not None)


def _draw_row(axes: Any, row: FigureRow, found: Reproduction, top: int) -> None:
    """Draw one figure, whose first line is the title."""
    left, right = axes.get_yaxis_transform(), {"color": _INK, "va": "center", "fontsize": 9}
    title = row.title.partition(":")[0]
    axes.text(-0.63, top + 0.5, title, transform=left, va="center", weight="bold", color=_INK)
    same, known = row.same_chance, [one for name in WAYS if (one := row.baseline(name)) is not None]
    dashes = {"color": _GREY, "linestyle": (0, (3, 2)), "linewidth": 1.2, "zorder": 1}
    if known:
        at = known[0] if same is None else same
        align = "right" if at > 0.75 else "left" if at < 0.25 else "center"
        text = f"dashed: {row.chance_of}, each of its rows" if same is None else f"{row.chance_of}: {same:.3f}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(at, top + 0.5, text, ha=align, va="center", color=_GREY, fontsize=8, bbox=box)
    if same is not None:
        axes.plot([same] * 2, [top + 0.95, top + _height(row) - 1], **dashes)
    y = top + 1.5
    if row.claimed is not None:
        axes.plot([row.claimed], [y], marker="D", markersize=6, color=_INK)
        axes.text(-0.02, y, "claimed by the source", transform=left, ha="right", va="center", color=_INK)
        axes.text(1.04, y, f"{row.claimed:g}", transform=left, **right)
        y += 1
    for way in found.ways:
        estimate, colour, baseline = row.estimates[way.name], _COLOURS[way.name], row.baseline(way.name)
        if same is None and baseline is not None:
            axes.plot([baseline] * 2, [y - 0.45, y + 0.45], **dashes)
        hollow = way.name.startswith("permuted")
        axes.text(-0.02, y, WAYS[way.name], transform=left, ha="right", va="center", color=_INK)
        if not math.isnan(estimate.value):
            if estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=1.8, solid_capstyle="butt")
            axes.plot([estimate.value], [y], marker="o", markersize=7, color=colour, clip_on=False,
                      markerfacecolor="white" if hollow else colour, markeredgewidth=1.6)  # fmt: skip
        text = str(estimate).replace(" (no interval)", "")
        text += f"  of {way.unit}s" if estimate.low is not None and way.unit == "row" else ""
        axes.text(1.04, y, text, transform=left, **right)
        y += 1
