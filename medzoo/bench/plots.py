"""The pictures of a result: ratios to the peers, the roofline, and cost as the work grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medzoo.bench.drawing import COLOURS, Plot, bars

__all__ = ["draw"]


def draw(result: dict[str, Any], folder: Path, stem: str) -> dict[str, Path]:
    """Write each picture that the rows suffice for, and return them by what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"ratios": _ratios(result), "roofline": _roofline(result), "scaling": _scaling(result), "memory": None}
    pictures["memory"] = _scaling(result, "peak")
    written = {}
    for name, svg in pictures.items():
        if svg:
            written[name] = folder / f"{stem}-{name}.svg"
            written[name].write_text(svg, encoding="utf-8")
    return written


def _colours(result: dict[str, Any]) -> dict[str, str]:
    """Give each peer a colour that is the same in every group; grey stays for ourselves as created."""
    names = list(dict.fromkeys(name for row in result["rows"] for name in row["peers"]))
    return {name: COLOURS[1 + i % (len(COLOURS) - 1)] for i, name in enumerate(names)}


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
    """Draw each row of float32 inference below what the machine can do at its ratio of operations to bytes."""
    rows = [row for row in result["rows"] if row["case"]["dtype"] == "float32" and row["case"]["mode"] == "forward"]
    if not rows or not result["ceilings"]:
        return None
    matmul, copy = result["ceilings"]["matmul float32"], result["ceilings"]["copy"]
    points: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for row in rows:
        model, _, part = row["case"]["subject"].partition("/")
        rate = row["flops"] / row["seconds"]["median"] / 1e9
        points.setdefault((model, bool(part)), []).append((row["flops"] / row["bytes"], rate))
    every = [point for group in points.values() for point in group]
    ridge = matmul / copy
    x = (min(*(p[0] for p in every), ridge) / 2, max(*(p[0] for p in every), ridge) * 2)
    y = (min(*(p[1] for p in every), matmul / 1e9) / 2, matmul / 1e9 * 2)
    plot = Plot("Roofline, float32 inference; a ring is a part of a model", "operations for each byte", "GFLOP/s", x, y)
    start = max(x[0], y[0] * 1e9 / copy)
    plot.line(
        [(start, start * copy / 1e9), (ridge, matmul / 1e9), (x[1], matmul / 1e9)], "#333333", "measured ceilings"
    )
    models = dict.fromkeys(model for model, _ in points)
    for colour, model in zip(COLOURS, models, strict=False):
        plot.dots(points.get((model, False), []), colour, model)
        plot.dots(points.get((model, True), []), colour, hollow=True)
    return plot.svg()


def _scaling(result: dict[str, Any], key: str = "seconds") -> str | None:
    """Draw what the Swin encoder costs over voxels, a line for each volume, beside cost that grows as the voxels do."""
    lines: dict[int, list[tuple[float, float]]] = {}
    for row in result["rows"]:
        case = row["case"]
        plain = case["subject"] == "swin_encoder_mlp" and (case["dtype"], case["mode"]) == ("float32", "forward")
        value = row["seconds"]["median"] if key == "seconds" else (row["peak"] or 0) / 1e6
        if plain and value:
            lines.setdefault(case["size"][0], []).append((case["batch"] * case["size"][0] ** 3, value))
    points = sorted(point for line in lines.values() for point in line)
    if len(points) < 2:
        return None
    voxels, values = [p[0] for p in points], [p[1] for p in points]
    title, unit = ("Time", "seconds") if key == "seconds" else ("Peak memory on top of the model", "MB")
    plot = Plot(
        f"{title} of swin_encoder_mlp over voxels, batch 1 to 8",
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
