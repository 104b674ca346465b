"""The plots of a result: ratios to the peers, the roofline, throughput over batch, and how cost scales.

They have a transparent background and grey text, to be legible on light and dark pages, and are byte-identical for the
same result and the same matplotlib.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.cases import OWN
from benchmarks.targets import Headline

# Distinct for the colour-blind (Okabe and Ito, 2008), then grey.
COLOURS = ("#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#7f7f7f")
GREY = "#7f7f7f"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medzoo",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
}


def draw(result: dict[str, Any], folder: Path, stem: str) -> dict[str, Path]:
    """Write each plot for which there are enough rows, and return the files by what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    with matplotlib.rc_context(STYLE):
        plots = {
            "ratios": _ratios(result),
            "roofline": _roofline(result),
            "throughput": _throughput(result) if "cuda" in result["environment"] else None,
            "scaling": _scaling(result),
            "memory": _scaling(result, "peak"),
        }
        for name, figure in plots.items():
            if figure:
                written[name] = folder / f"{stem}-{name}.svg"
                _save(figure, written[name])
    return written


def draw_summary(groups: list[list[Headline]], file: Path) -> None:
    """Write the plot of the headline figures: medzoo's speed relative to the fastest peer, in each setting."""
    file.parent.mkdir(parents=True, exist_ok=True)
    settings = dict.fromkeys(headline.setting for group in groups for headline in group)
    colours = dict(zip(settings, COLOURS, strict=False))
    bars: list[tuple[str, dict[str, float] | None, str]] = []
    for group in groups:
        first = group[0]
        device = "GPU" if "cuda" in first.environment else "CPU"
        bars.append((f"{first.row['case']['subject']}, {device}, against {first.peer}", None, ""))
        for headline in group:
            peer = "" if headline.peer == first.peer else f", against {headline.peer}"
            bars.append((headline.setting + peer, headline.ratio, colours[headline.setting]))
    with matplotlib.rc_context(STYLE):
        _save(_bars("Inference speed relative to the fastest other implementation (= 1)", bars), file)


def _save(figure: Figure, file: Path) -> None:
    """Write a figure as SVG without date and version."""
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def _figure(width: float, height: float, left: float = 0.0, right: float = 0.0) -> Figure:
    """Return a figure of a size in inches, with a margin in case the viewer's font is wider than DejaVu Sans."""
    return Figure((width, height), layout=ConstrainedLayoutEngine(rect=(left, 0, 1 - left - right, 1)))


def _bars(title: str, bars: Sequence[tuple[str, dict[str, float] | None, str]]) -> Figure:
    """Return horizontal bars with a line from the lower to the upper quartile.

    Args:
        title: what they show.
        bars: label, value and colour of each; one without a value is the heading of those that follow.
    """
    figure = _figure(10, 0.9 + 0.2 * len(bars), left=0.03)
    axes = figure.add_subplot(title=title)
    for y, (_, value, colour) in enumerate(bars):
        if value:
            axes.barh(y, value["median"], 0.8, color=colour, alpha=0.6)
            axes.plot([value["low"], value["high"]], [y, y], color=colour)
            axes.annotate(f"{value['median']:.2f}×", (max(value["median"], value["high"]), y), (4, 0),
                          textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    axes.axvline(1.0, color=GREY, linestyle=(0, (3, 3)), linewidth=1)
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars], fontsize=9)
    for label, (_, value, _) in zip(axes.get_yticklabels(), bars, strict=True):
        label.set_fontweight("normal" if value else "bold")
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1.1 * max(max(value["median"], value["high"]) for _, value, _ in bars if value))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _loglog(title: str, x_name: str, y_name: str) -> tuple[Figure, Axes]:
    """Return a figure with two logarithmic axes, labelled at 1, 2 and 5 in each decade."""
    figure = _figure(8, 4.4, right=0.04)
    axes = figure.add_subplot(title=title, xlabel=x_name, ylabel=y_name, xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    return figure, axes


def _legend(axes: Axes) -> None:
    """Put the legend to the right of the axes."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def _inference(result: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Return the most frequent dtype of the inference rows, and the rows in it."""
    rows = [row for row in result["rows"] if row["case"]["mode"] == "forward"]
    counted = Counter(row["case"]["dtype"] for row in rows).most_common(1)
    dtype = counted[0][0] if counted else "float32"
    return dtype, [row for row in rows if row["case"]["dtype"] == dtype]


def _ratios(result: dict[str, Any]) -> Figure | None:
    """Plot how many times as long as medzoo each peer takes, for full models; medzoo's own peers are grey."""
    names = dict.fromkeys(name for row in result["rows"] for name in row["peers"] if name not in OWN)
    colours = dict.fromkeys(OWN, GREY) | {name: COLOURS[1 + i % 5] for i, name in enumerate(names)}
    bars: list[tuple[str, dict[str, float] | None, str]] = []
    for row in result["rows"]:
        if row["peers"] and "/" not in row["case"]["subject"]:
            bars.append((row["id"], None, ""))
            bars += [(name, peer["ratio"], colours[name]) for name, peer in row["peers"].items()]
    return _bars("Time of each peer, medzoo = 1", bars) if bars else None


def _roofline(result: dict[str, Any]) -> Figure | None:
    """Plot the speed of each inference row in one dtype below what the machine allows at its operations per byte."""
    dtype, rows = _inference(result)
    if not rows or not result["ceilings"]:
        return None
    matmul, copy = result["ceilings"][f"matmul {dtype}"], result["ceilings"]["copy"]
    unit, scale = ("TFLOP/s", 1e12) if matmul >= 1e13 else ("GFLOP/s", 1e9)
    points: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for row in rows:
        model, _, part = row["case"]["subject"].partition("/")
        rate = row["flops"] / row["seconds"]["median"] / scale
        points.setdefault((model, bool(part)), []).append((row["flops"] / row["bytes"], rate))
    every = [point for group in points.values() for point in group]
    ridge, top = matmul / copy, matmul / scale
    x = (min(*(p[0] for p in every), ridge) / 2, max(*(p[0] for p in every), ridge) * 2)
    y = (min(*(p[1] for p in every), top) / 2, max(*(p[1] for p in every), top) * 2)
    rings = "; a ring is a part of a model" if any(part for _, part in points) else ""
    figure, axes = _loglog(f"Roofline, {dtype} inference{rings}", "operations per byte", unit)
    start = max(x[0], y[0] * scale / copy)
    axes.plot([start, ridge, x[1]], [start * copy / scale, top, top], color=GREY, label="measured ceilings")
    for colour, model in zip(COLOURS, dict.fromkeys(model for model, _ in points), strict=False):
        for part in (False, True):
            if (model, part) in points:
                _dots(axes, points[model, part], colour, None if part else model, hollow=part)
    axes.set(xlim=x, ylim=y)
    _legend(axes)
    return figure


def _dots(
    axes: Axes, points: Sequence[tuple[float, float]], colour: str, label: str | None = None, *, hollow: bool = False
) -> None:
    """Plot a dot or a ring at each point."""
    fill = "none" if hollow else colour
    axes.plot(*zip(*points, strict=True), "o", color=colour, markerfacecolor=fill, label=label)


def _throughput(result: dict[str, Any]) -> Figure | None:
    """Plot samples per second over batch, a line for each model and size that ran at several batches."""
    dtype, rows = _inference(result)
    lines: dict[str, list[tuple[float, float]]] = {}
    graphs: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        case = row["case"]
        name = f"{case['subject']} {'×'.join(map(str, case['size']))}"
        if "/" not in case["subject"]:
            found = graphs if case.get("graph") else lines
            found.setdefault(name, []).append((case["batch"], row["samples_per_second"]))
    lines = {name: sorted(line) for name, line in lines.items() if len(line) > 1}
    if not lines:
        return None
    rings = {name: graphs[name] for name in lines if name in graphs}
    title = f"Throughput over batch, {dtype} inference" + ("; a ring replays a CUDA graph" if rings else "")
    figure, axes = _loglog(title, "batch", "samples/s")
    for i, (name, line) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(*zip(*line, strict=True), "-o", color=colour, label=name)
        if name in rings:
            _dots(axes, rings[name], colour, hollow=True)
    _legend(axes)
    return figure


def _scaling(result: dict[str, Any], key: str = "seconds") -> Figure | None:
    """Plot the Swin encoder's time or memory over voxels, a line for each volume, beside linear scaling."""
    dtype, rows = _inference(result)
    lines: dict[int, list[tuple[float, float]]] = {}
    most = 1
    for row in rows:
        case = row["case"]
        value = row["seconds"]["median"] if key == "seconds" else (row["peak"] or 0) / 1e6
        if case["subject"] == "swin_encoder_mlp" and not case.get("graph") and value:
            most = max(most, case["batch"])
            lines.setdefault(case["size"][0], []).append((case["batch"] * case["size"][0] ** 3, value))
    points = sorted(point for line in lines.values() for point in line)
    if len(points) < 2:
        return None
    title, unit = ("Time", "seconds") if key == "seconds" else ("Peak memory", "MB")
    title = f"{title} of swin_encoder_mlp over voxels, {dtype}, batch 1 to {most}"
    figure, axes = _loglog(title, "voxels in one call", unit)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    (first, value), last = points[0], points[-1][0]
    end = min(last, first * max(y for _, y in points) * 1.5 / value)
    axes.plot([first, end], [value, value * end / first], "--", color=GREY, label="linear scaling")
    for i, (side, line) in enumerate(sorted(lines.items())):
        axes.plot(*zip(*sorted(line), strict=True), "-o", color=COLOURS[i], label=f"{side}³")
    _legend(axes)
    return figure
