"""The pictures of a result: ratios to the peers, the roofline, throughput over batch, and cost as the work grows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from medzoo.bench.cases import OWN
from medzoo.bench.drawing import COLOURS, Plot, bars

__all__ = ["draw"]


def draw(result: dict[str, Any], folder: Path, stem: str) -> dict[str, Path]:
    """Write each picture that the rows suffice for, and return them by what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "ratios": _ratios(result),
        "roofline": _roofline(result),
        "throughput": _throughput(result) if "cuda" in result["environment"] else None,
        "scaling": _scaling(result),
        "memory": _scaling(result, "peak"),
    }
    written = {}
    for name, svg in pictures.items():
        if svg:
            written[name] = folder / f"{stem}-{name}.svg"
            written[name].write_text(svg, encoding="utf-8")
    return written


def _inference(result: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Return the dtype that most rows of inference have, and those rows."""
    rows = [row for row in result["rows"] if row["case"]["mode"] == "forward"]
    counted = Counter(row["case"]["dtype"] for row in rows).most_common(1)
    dtype = counted[0][0] if counted else "float32"
    return dtype, [row for row in rows if row["case"]["dtype"] == dtype]


def _colours(result: dict[str, Any]) -> dict[str, str]:
    """Give each peer a colour that is the same in every group, and our own models grey."""
    *others, grey = COLOURS[1:]
    names = dict.fromkeys(name for row in result["rows"] for name in row["peers"] if name not in OWN)
    return dict.fromkeys(OWN, grey) | {name: others[i % len(others)] for i, name in enumerate(names)}


def _ratios(result: dict[str, Any]) -> str | None:
    """Draw how many times as long as medzoo each peer takes, for the models whole."""
    colours = _colours(result)
    groups = [
        (
            row["id"],
            [
                (name, peer["ratio"]["median"], peer["ratio"]["low"], peer["ratio"]["high"], colours[name])
                for name, peer in row["peers"].items()
            ],
        )
        for row in result["rows"]
        if row["peers"] and "/" not in row["case"]["subject"]
    ]
    return bars("Time of each peer, medzoo = 1", groups) if groups else None


def _roofline(result: dict[str, Any]) -> str | None:
    """Draw each row of inference in one dtype below what the machine can do at its ratio of operations to bytes."""
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
    ridge = matmul / copy
    x = (min(*(p[0] for p in every), ridge) / 2, max(*(p[0] for p in every), ridge) * 2)
    y = (min(*(p[1] for p in every), matmul / scale) / 2, max(*(p[1] for p in every), matmul / scale) * 2)
    rings = "; a ring is a part of a model" if any(part for _, part in points) else ""
    plot = Plot(f"Roofline, {dtype} inference{rings}", "operations for each byte", unit, x, y)
    start = max(x[0], y[0] * scale / copy)
    plot.line(
        [(start, start * copy / scale), (ridge, matmul / scale), (x[1], matmul / scale)], "#333333", "measured ceilings"
    )
    models = dict.fromkeys(model for model, _ in points)
    for colour, model in zip(COLOURS, models, strict=False):
        plot.dots(points.get((model, False), []), colour, model)
        plot.dots(points.get((model, True), []), colour, hollow=True)
    return plot.svg()


def _throughput(result: dict[str, Any]) -> str | None:
    """Draw samples per second over batch, a line for each model and size that ran at several batches."""
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
    points = [point for line in (*lines.values(), *rings.values()) for point in line]
    batches, rates = zip(*points, strict=True)
    title = f"Throughput over batch, {dtype} inference" + ("; a ring replays a CUDA graph" if rings else "")
    x, y = (min(batches) / 1.3, max(batches) * 1.3), (min(rates) / 1.5, max(rates) * 1.5)
    plot = Plot(title, "batch", "samples/s", x, y)
    for i, (name, line) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        plot.line(line, colour)
        plot.dots(line, colour, name)
        plot.dots(rings.get(name, []), colour, hollow=True)
    return plot.svg()


def _scaling(result: dict[str, Any], key: str = "seconds") -> str | None:
    """Draw what the Swin encoder costs over voxels, a line for each volume, beside cost that grows as the voxels do."""
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
    voxels, values = [p[0] for p in points], [p[1] for p in points]
    title, unit = ("Time", "seconds") if key == "seconds" else ("Peak memory on top of the model", "MB")
    plot = Plot(
        f"{title} of swin_encoder_mlp over voxels, {dtype}, batch 1 to {most}",
        "voxels in one call",
        unit,
        (voxels[0] / 1.3, voxels[-1] * 1.3),
        (min(values) / 1.5, max(values) * 1.5),
    )
    end = min(voxels[-1], voxels[0] * max(values) * 1.5 / values[0])
    plot.line([(voxels[0], values[0]), (end, values[0] * end / voxels[0])], "#888888", "as the voxels do", dashed=True)
    for i, (side, line) in enumerate(sorted(lines.items())):
        plot.line(sorted(line), COLOURS[i])
        plot.dots(line, COLOURS[i], f"{side}³")
    return plot.svg()
