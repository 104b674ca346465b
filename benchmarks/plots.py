"""The plots of a result: ratios to the peers, the roofline, throughput over batch, and how cost scales.

They have a transparent background and grey text, to be legible on light and dark pages, and are byte-identical for the
same result and the same matplotlib.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
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
Points = list[tuple[float, float]]
# Label, spread and colour of a bar; one without a spread is the heading of those that follow.
Bar = tuple[str, dict[str, float] | None, str]


@matplotlib.rc_context(STYLE)
def draw(result: dict[str, Any], folder: Path, stem: str) -> dict[str, Path]:
    """Write each plot for which there are enough rows, and return the files by what they show."""
    rows = [row for row in result["rows"] if row["case"]["mode"] == "forward"]
    dtypes = [row["case"]["dtype"] for row in rows]
    dtype = max(dtypes, key=dtypes.count, default="float32")  # the most frequent one
    rows = [row for row in rows if row["case"]["dtype"] == dtype]
    plots = {
        "ratios": _ratios(result["rows"]),
        "roofline": _roofline(rows, dtype, result["ceilings"]),
        "throughput": _throughput(rows, dtype) if "cuda" in result["environment"] else None,
        "scaling": _scaling(rows, dtype),
        "memory": _scaling(rows, dtype, "peak"),
    }
    return {name: _save(plot, folder / f"{stem}-{name}.svg") for name, plot in plots.items() if plot}


@matplotlib.rc_context(STYLE)
def draw_summary(groups: list[list[Headline]], file: Path) -> None:
    """Write the plot of the headline figures: medzoo's speed relative to the fastest peer, in each setting."""
    settings = dict.fromkeys(headline.setting for group in groups for headline in group)
    colours = dict(zip(settings, COLOURS, strict=False))
    bars: list[Bar] = []
    for group in groups:
        first = group[0]
        device = first.environment["device"].removeprefix("NVIDIA ") if "cuda" in first.environment else "CPU"
        bars.append((f"{first.row['case']['subject']}, {device}, against {first.peer}", None, ""))
        for headline in group:
            peer = "" if headline.peer == first.peer else f", against {headline.peer}"
            bars.append((headline.setting + peer, headline.ratio, colours[headline.setting]))
    _save(_bars("Inference speed relative to the fastest other implementation (= 1)", bars), file)


def _save(figure: Figure, file: Path) -> Path:
    """Write a figure as SVG without date and version."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return file


def _bars(title: str, bars: Sequence[Bar]) -> Figure:
    """Return horizontal bars with a line from the lower to the upper quartile."""
    figure = Figure((10, 0.9 + 0.2 * len(bars)), layout=ConstrainedLayoutEngine(rect=(0.03, 0, 0.97, 1)))
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
    figure = Figure((8, 4.4), layout=ConstrainedLayoutEngine(rect=(0, 0, 0.96, 1)))  # a margin for wider fonts
    axes = figure.add_subplot(title=title, xlabel=x_name, ylabel=y_name, xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    return figure, axes


def _series(axes: Axes, style: str, series: Mapping[str, Points], rings: Mapping[str, Points]) -> None:
    """Plot each series in a colour of its own, with rings in the same colour, and put a legend beside the axes."""
    for name, colour in zip(dict.fromkeys((*series, *rings)), itertools.cycle(COLOURS), strict=False):
        if name in series:
            axes.plot(*zip(*series[name], strict=True), style, color=colour, label=name)
        if name in rings:
            axes.plot(*zip(*rings[name], strict=True), "o", color=colour, markerfacecolor="none")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def _ratios(rows: Sequence[dict[str, Any]]) -> Figure | None:
    """Plot how many times as long as medzoo each peer takes, for full models; medzoo's own peers are grey."""
    names = dict.fromkeys(name for row in rows for name in row["peers"] if name not in OWN)
    colours = dict.fromkeys(OWN, GREY) | {name: COLOURS[1 + i % 5] for i, name in enumerate(names)}
    bars: list[Bar] = []
    for row in rows:
        if row["peers"] and "/" not in row["case"]["subject"]:
            bars.append((row["id"], None, ""))
            bars += [(name, peer["ratio"], colours[name]) for name, peer in row["peers"].items()]
    return _bars("Time of each peer, medzoo = 1", bars) if bars else None


def _roofline(rows: Sequence[dict[str, Any]], dtype: str, ceilings: dict[str, float]) -> Figure | None:
    """Plot the speed of each row below what the machine allows at its operations per byte."""
    if not rows or not ceilings:
        return None
    matmul, copy = ceilings[f"matmul {dtype}"], ceilings["copy"]
    unit, scale = ("TFLOP/s", 1e12) if matmul >= 1e13 else ("GFLOP/s", 1e9)
    ridge, top = matmul / copy, matmul / scale
    models: dict[str, Points] = {}
    parts: dict[str, Points] = {}
    for row in rows:
        model, _, part = row["case"]["subject"].partition("/")
        point = row["flops"] / row["bytes"], row["flops"] / row["seconds"]["median"] / scale
        (parts if part else models).setdefault(model, []).append(point)
    points = [(ridge, top), *itertools.chain(*models.values(), *parts.values())]
    (left, right), (bottom, upper) = ((min(axis) / 2, max(axis) * 2) for axis in zip(*points, strict=True))
    rings = "; a ring is a part of a model" if parts else ""
    figure, axes = _loglog(f"Roofline, {dtype} inference{rings}", "operations per byte", unit)
    start = max(left, bottom * scale / copy)
    axes.plot([start, ridge, right], [start * copy / scale, top, top], color=GREY, label="measured ceilings")
    _series(axes, "o", models, parts)
    axes.set(xlim=(left, right), ylim=(bottom, upper))
    return figure


def _throughput(rows: Sequence[dict[str, Any]], dtype: str) -> Figure | None:
    """Plot samples per second over batch, a line for each model and size that ran at several batches."""
    lines: dict[str, Points] = {}
    graphs: dict[str, Points] = {}
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
    _series(axes, "-o", lines, rings)
    return figure


def _scaling(rows: Sequence[dict[str, Any]], dtype: str, key: str = "seconds") -> Figure | None:
    """Plot the Swin encoder's time or memory over voxels, a line for each volume, beside linear scaling."""
    lines: dict[str, Points] = {}
    most = 1
    for row in sorted(rows, key=lambda row: (row["case"]["size"], row["case"]["batch"])):
        case = row["case"]
        value = row["seconds"]["median"] if key == "seconds" else (row["peak"] or 0) / 1e6
        if case["subject"] == "swin_encoder_mlp" and not case.get("graph") and value:
            most = max(most, case["batch"])
            side = case["size"][0]
            lines.setdefault(f"{side}³", []).append((case["batch"] * side**3, value))
    points = sorted(itertools.chain(*lines.values()))
    if len(points) < 2:
        return None
    title, unit = ("Time", "seconds") if key == "seconds" else ("Peak memory", "MB")
    title = f"{title} of swin_encoder_mlp over voxels, {dtype}, batch 1 to {most}"
    figure, axes = _loglog(title, "voxels in one call", unit)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    (first, value), last = points[0], points[-1][0]
    end = min(last, first * max(y for _, y in points) * 1.5 / value)
    axes.plot([first, end], [value, value * end / first], "--", color=GREY, label="linear scaling")
    _series(axes, "-o", lines, {})
    return figure
