"""``draw_sweep``: the validation figure of every run of a sweep as one picture.

Two fields are a heat map, one field a line with intervals, more fields a sorted list of intervals.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medzoo.evaluation.estimate import Estimate
from medzoo.training.sweep_choice import FIGURES, SweepRow
from medzoo.training.sweep_grid import Grid, value_text
from medzoo.training.sweep_table import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_sweep"]

INK, GREY, BLUE, ORANGE = "#1b1f24", "#6b737c", "#0072b2", "#d55e00"  # distinct for the colour-blind
STYLE: dict[str, Any] = {
    "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY, "xtick.color": INK,
    "ytick.color": INK, "grid.color": GREY, "grid.alpha": 0.25, "legend.frameon": False, "axes.titlesize": 11,
}  # fmt: skip
MOST_CELLS = 12  # values of a field that a heat map has room for


def draw_sweep(sweep: Sweep, grid: Grid) -> bytes:
    """Return the picture as PNG. Nothing of pyplot changes.

    Args:
        sweep: its rows.
        grid: the values of its fields.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fields = [name for name in grid.values if name != grid.seed] or list(grid.values)
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        if len(fields) == 2 and max(len(grid.values[name]) for name in fields) <= MOST_CELLS:
            _heat_map(figure, sweep, grid, fields)
        elif len(fields) == 1:
            _line(figure, sweep, grid, fields[0])
        else:
            _list(figure, sweep, grid)
        png = io.BytesIO()
        figure.savefig(png, dpi=130)
    return png.getvalue()


def _heat_map(figure: Figure, sweep: Sweep, grid: Grid, fields: Sequence[str]) -> None:
    """Draw the values of the first field downwards, and those of the second to the right."""
    down, right = ([*_in_order(grid.values[name])] for name in fields)
    cells = {(i, j): [row for row in sweep.rows if (row.values[fields[0]], row.values[fields[1]]) == (y, x)]
             for i, y in enumerate(down) for j, x in enumerate(right)}  # fmt: skip
    values = np.full((len(down), len(right)), math.nan)
    for place, rows in cells.items():
        known = _known(rows, sweep)
        values[place] = np.mean(known) if known else math.nan
    figure.set_size_inches(max(5.2, 2.6 + 1.35 * len(right)), max(2.9, 1.7 + 0.85 * len(down)))
    axes = figure.add_subplot()
    low, high = _colour_range(sweep, values)
    image = axes.imshow(
        values, cmap="cividis_r" if sweep.by == "log_loss" else "cividis", vmin=low, vmax=high, aspect="auto"
    )
    for (i, j), rows in cells.items():
        light = (values[i, j] - low) / (high - low) > 0.5 if not math.isnan(values[i, j]) else sweep.by != "log_loss"
        _cell(axes, i, j, rows, sweep, INK if light != (sweep.by == "log_loss") else "white", float(values[i, j]))
    axes.set_xticks(range(len(right)), [_short(value) for value in right])
    axes.set_yticks(range(len(down)), [_short(value) for value in down])
    axes.set(xlabel=fields[1], ylabel=fields[0])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.colorbar(image, ax=axes, label=_label(sweep), fraction=0.06, pad=0.03)
    _title(figure, sweep, "framed: chosen", "≈: not separable from it", seeds=_has_seeds(grid))


def _cell(axes: Axes, i: int, j: int, rows: Sequence[SweepRow], sweep: Sweep, colour: str, value: float) -> None:
    """Write the figure of a cell and its interval, or why there is none."""
    from matplotlib.patches import Rectangle

    if math.isnan(value):
        text = rows[0].status if rows else ""
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor="#eef0f2", edgecolor="#c3c9d0", hatch="///", lw=0))
        axes.text(j, i, text, ha="center", va="center", color=INK, bbox={"facecolor": "#eef0f2", "lw": 0, "pad": 2})
        return
    found = _figure(rows[0], sweep) if len(rows) == 1 else None
    same = any(row.separable is False for row in rows)
    below = f"mean of {len(_known(rows, sweep))} seeds" if len(rows) > 1 else _range(found)
    up = 0.1 if below else 0.0
    axes.text(j, i - up, f"{'≈ ' if same else ''}{value:.3f}", ha="center", va="center", color=colour, fontsize=11)
    axes.text(j, i + 0.22, below, ha="center", va="center", color=colour, fontsize=8)
    if any(row.chosen for row in rows):
        frame: dict[str, Any] = {"fill": False, "clip_on": False, "zorder": 3}
        axes.add_patch(Rectangle((j - 0.48, i - 0.47), 0.96, 0.94, edgecolor="white", lw=5.5, **frame))
        axes.add_patch(Rectangle((j - 0.48, i - 0.47), 0.96, 0.94, edgecolor=ORANGE, lw=3, **frame))


def _colour_range(sweep: Sweep, values: Any) -> tuple[float, float]:
    """Return the ends of the colours: at least as far apart as an interval is wide, so that noise looks alike.

    Without intervals, that is 0.1.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0, 1.0
    intervals = [found for row in sweep.rows if (found := _figure(row, sweep)) is not None]
    widths = [found.high - found.low for found in intervals if found.low is not None and found.high is not None]
    span = max(float(known.max() - known.min()), float(np.median(widths)) if widths else 0.1)
    middle = (float(known.max()) + float(known.min())) / 2
    return middle - span / 2, middle + span / 2


def _line(figure: Figure, sweep: Sweep, grid: Grid, name: str) -> None:
    """Draw a figure over the values of one field, with intervals; numbers that span a decade on a log scale."""
    values = _in_order(grid.values[name])
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    logarithmic = numeric and min(values) > 0 and max(values) >= 10 * min(values)
    place = {repr(value): value if numeric else i for i, value in enumerate(values)}
    longest = max(len(_short(value)) for value in values)
    figure.set_size_inches(max(5.6, min(14, 2.5 + len(values) * max(0.9, 0.1 * longest))), 3.9)
    axes = figure.add_subplot()
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xlim(*_limits(list(place.values()), logarithmic=logarithmic))  # before the ticks, which else change it
    means = [_known([row for row in sweep.rows if row.values[name] == value], sweep) for value in values]
    if numeric:
        known = [(place[repr(v)], float(np.mean(own))) for v, own in zip(values, means, strict=True) if own]
        axes.plot([x for x, _ in known], [y for _, y in known], color=BLUE, lw=1.2, alpha=0.5, zorder=1)
    for row in sweep.rows:
        _point(axes, row, sweep, x=place[repr(row.values[name])], ends=not _has_seeds(grid))
    for value, own in zip(values, means, strict=True):
        if not own:
            status = next(row.status for row in sweep.rows if row.values[name] == value)
            at = (place[repr(value)], 0.04)
            axes.annotate(
                status, at, xycoords=("data", "axes fraction"), ha="center", rotation=90, color=GREY, fontsize=9
            )
    axes.minorticks_off()
    axes.set_xticks([place[repr(value)] for value in values], [_short(value) for value in values])
    axes.set(xlabel=name, ylabel=_label(sweep))
    axes.grid(visible=True, axis="y")
    _spines(axes)
    _title(figure, sweep, "orange: chosen", "hollow: not separable from it", seeds=_has_seeds(grid))


def _limits(places: Sequence[float], *, logarithmic: bool) -> tuple[float, float]:
    """Return the ends of an axis that has all places inside, those of runs without a figure too."""
    low, high = min(places), max(places)
    if logarithmic:
        pad = (high / low) ** 0.08
        return low / pad, high * pad
    pad = 0.08 * (high - low) or 0.5
    return low - pad, high + pad


def _list(figure: Figure, sweep: Sweep, grid: Grid) -> None:
    """Draw every run as a point with its interval, the chosen one on top and then the best first."""
    rows = sweep.ranked()
    longest = max(len(_values(row)) for row in rows)
    figure.set_size_inches(min(13, 5.2 + 0.075 * longest), 1.5 + 0.27 * len(rows))
    axes = figure.add_subplot()
    for i, row in enumerate(rows):
        if _figure(row, sweep) is None:
            axes.annotate(
                row.status, (0.02, i), xycoords=("axes fraction", "data"), va="center", color=GREY, fontsize=9
            )
        else:
            _point(axes, row, sweep, y=i)
    axes.set_yticks(range(len(rows)), [_values(row) for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set(xlabel=_label(sweep))
    axes.grid(visible=True, axis="x")
    _spines(axes)
    _title(figure, sweep, "orange: chosen", "hollow: not separable from it", seeds=_has_seeds(grid))


def _point(
    axes: Axes, row: SweepRow, sweep: Sweep, *, x: float | None = None, y: float | None = None, ends: bool = True
) -> None:
    """Draw the figure of a run, with its interval, upright at x or level at y."""
    found = _figure(row, sweep)
    if found is None or math.isnan(found.value):
        return
    colour = ORANGE if row.difference is None else BLUE  # another seed of what was chosen has none either
    bar = None
    if ends and found.low is not None and found.high is not None:
        bar = [[found.value - found.low], [found.high - found.value]]
    how: dict[str, Any] = {
        "color": colour, "marker": "o", "markersize": 8 if row.chosen else 6, "capsize": 3, "lw": 0, "elinewidth": 1.6,
        "markerfacecolor": "white" if row.separable is False else colour, "zorder": 3 if row.chosen else 2,
    }  # fmt: skip
    if x is not None:
        axes.errorbar([x], [found.value], yerr=bar, **how)
    elif y is not None:
        axes.errorbar([found.value], [y], xerr=bar, **how)


def _figure(row: SweepRow, sweep: Sweep) -> Estimate | None:
    found: Estimate | None = getattr(row, sweep.by)
    return found


def _known(rows: Sequence[SweepRow], sweep: Sweep) -> list[float]:
    """Return the figures of the runs that have one."""
    found = [_figure(row, sweep) for row in rows]
    return [one.value for one in found if one is not None and not math.isnan(one.value)]


def _label(sweep: Sweep) -> str:
    return f"{FIGURES[sweep.by]}, validation part"


def _title(figure: Figure, sweep: Sweep, mark: str, other: str, *, seeds: bool) -> None:
    """State what was chosen, and what the marks mean."""
    chosen = next((row for row in sweep.rows if row.chosen), None)
    intervals = any((found := _figure(row, sweep)) is not None and found.low is not None for row in sweep.rows)
    text = "no run has ended" if chosen is None else f"chosen of {len(sweep.rows)}: {_values(chosen)}"
    legend = [mark, *([other] if any(row.separable is not None for row in sweep.rows) else [])]
    legend += ["chosen by the mean over seeds"] if seeds else ["intervals of 95 %"] if intervals else []
    figure.suptitle(f"{text}\n{'; '.join(legend)}", fontsize=10, color=INK)


def _has_seeds(grid: Grid) -> bool:
    return grid.seed is not None and len(grid.values[grid.seed]) > 1


def _values(row: SweepRow) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in row.values.items())


def _short(value: Any) -> str:
    """Return a value for an axis."""
    text = f"{value:g}" if isinstance(value, float) else value_text(value)
    return text if len(text) <= 28 else f"{text[:27]}…"


def _range(found: Estimate | None) -> str:
    return "" if found is None or found.low is None or found.high is None else f"{found.low:.3f} to {found.high:.3f}"


def _in_order(values: Sequence[Any]) -> list[Any]:
    """Return numbers by their size, other values as they were given."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return sorted(values) if numbers else list(values)


def _spines(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
