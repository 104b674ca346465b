"""The targets, and whether each is met: every target beside what was measured for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medzoo.bench.cases import CHANNELS_LAST, COMPILED, EAGER, MONAI, TIMM
from medzoo.bench.table import figure

__all__ = ["CARDS", "GPU", "TARGETS", "Target", "judged", "targets"]

DEFAULT, FLASH = MONAI


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        row: the id of the row that it is about.
        what: ``"time"`` and ``"peak"``: how many times as much the peer needs; ``"difference"`` and ``"gradient"``: how
            far we may be from it; ``"seconds"`` and ``"samples/s"``: ours alone.
        peer: who it is against.
        must: the least, or for differences and seconds the most, that meets the target; 0.0 for none.
        thp: the same with ``THP_MEM_ALLOC_ENABLE=1``, where it is another; 0.0 where there is no such target.
        then: what we would like next.
    """

    row: str
    what: str
    peer: str
    must: float
    then: float
    thp: float | None = None


def _swin() -> list[Target]:
    found = []
    for size in ("64x64x64", "96x96x96"):
        row, train = (f"swin_encoder_mlp-{size}-b1-float32-{mode}" for mode in ("forward", "train"))
        found += [
            Target(row, "time", DEFAULT, 5.0, 10.0),
            Target(row, "time", FLASH, 1.8, 3.5),
            Target(row, "peak", FLASH, 5.0, 10.0),
            Target(row, "difference", DEFAULT, 2e-5, 6e-6),
            Target(train, "time", DEFAULT, 2.5, 4.0),
            Target(train, "peak", DEFAULT, 2.0, 4.0),
            Target(train, "gradient", DEFAULT, 1e-5, 6e-6),
        ]
    return found


TARGETS = [
    *_swin(),
    Target("cnn3d_small-96x96x96-b1-float32-forward", "time", EAGER, 8.0, 10.0, thp=3.5),
    Target("cnn3d_small-96x96x96-b1-float32-forward", "time", COMPILED, 0.0, 5.0),
    Target("cnn3d_base-64x128x128-b1-float32-forward", "time", EAGER, 4.0, 5.0, thp=3.0),
    Target("cnn3d_base-64x128x128-b1-float32-forward", "time", COMPILED, 0.0, 1.7),
    Target("xray_cnn-320x320-b1-float32-forward", "time", EAGER, 2.0, 2.2),
    Target("xray_cnn-320x320-b8-float32-forward", "time", EAGER, 4.0, 5.3),
    Target("resnet18_multilabel-320x320-b1-float32-forward", "time", TIMM, 1.2, 1.6),
    Target("resnet18_multilabel-320x320-b8-float32-forward", "time", TIMM, 1.2, 1.6),
    Target("startup/import", "seconds", "import torch", 0.1, 0.02),
    Target("startup/create", "share", "init + torch.load + load_state_dict", 2 / 3, 0.5),
    Target("scaling/batch 1 to 8", "growth", "linear", 1.2, 1.0),
    Target("scaling/64³ to 128³", "growth", "linear", 1.2, 1.0),
    Target("scaling/peak, batch 1 to 8", "growth", "linear", 1.2, 1.0),
]
SWIN = "swin_encoder_mlp-96x96x96-b8-bfloat16-forward"
CONV = "cnn3d_base-64x128x128-b64-bfloat16-forward"
# Ratios hold for any GPU; seconds and rates for the cards whose name contains the key. Each with and without a graph.
ROWS = ((SWIN, CONV), (f"{SWIN}-graph", f"{CONV}-graph"))
GPU = [
    target
    for swin, conv in ROWS
    for target in (Target(swin, "time", FLASH, 1.5, 3.0), Target(conv, "time", CHANNELS_LAST, 2.0, 3.0))
]
# Seconds of Swin and volumes/s of the convolutional model: the target, and the next one.
CARDS = {"H100": ((5e-3, 2.2e-3), (4500.0, 8000.0)), "H200": ((3.5e-3, 1.5e-3), (6500.0, 12000.0))}
MOST = ("difference", "gradient", "seconds", "share", "growth")


def targets(environment: dict[str, Any]) -> list[Target]:
    """Return the targets of the device that a result was measured on."""
    if "cuda" not in environment:
        return TARGETS
    found = list(GPU)
    for card, (seconds, rate) in CARDS.items():
        if card in environment["device"]:
            for swin, conv in ROWS:
                found += [Target(swin, "seconds", "", *seconds), Target(conv, "samples/s", "", *rate)]
    return found


def judged(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a line for each target: row, what, against, target, next, measured, and whether it is met."""
    rows = {row["id"]: row for row in result["rows"]}
    thp = result["environment"]["allocator"] == "thp"
    lines: list[tuple[str, ...]] = []
    for target in targets(result["environment"]):
        must = target.thp if thp and target.thp is not None else target.must
        value = _measured(target, rows, result)
        sign = "≤" if target.what in MOST else "≥"
        met = value is not None and (value <= must if target.what in MOST else value >= must)
        lines.append((
            target.row,
            target.what,
            target.peer,
            f"{sign} {figure(must)}" if must else "–",
            f"{sign} {figure(target.then)}",
            "not measured" if value is None else figure(value),
            "" if value is None or not must else "met" if met else "**missed**",
        ))  # fmt: skip
    return lines


def _measured(target: Target, rows: dict[str, Any], result: dict[str, Any]) -> float | None:
    """Return what was measured for a target, or ``None``."""
    kind, _, name = target.row.partition("/")
    if kind == "startup":
        return result.get("startup", {}).get(name, {}).get("value")
    if kind == "scaling":
        return growth(rows).get(name)
    row = rows.get(target.row)
    if row is None:
        return None
    if target.what == "seconds":
        return float(row["seconds"]["median"])
    if target.what == "samples/s":
        return float(row["samples_per_second"])
    peer = row["peers"].get(target.peer)
    if peer is None:
        return None
    if target.what == "peak":
        # A megabyte is the grain of a process' resident memory: below it a ratio says nothing.
        return None if row["peak"] is None else peer["peak"] / max(row["peak"], 1_000_000)
    read: dict[str, Callable[[], float | None]] = {
        "time": lambda: peer["ratio"]["median"],
        "difference": lambda: peer["difference"],
        "gradient": lambda: peer["gradient_difference"],
    }
    return read[target.what]()


def growth(rows: dict[str, Any]) -> dict[str, float]:
    """Return how cost grew as the work did: seconds for each voxel at the large end over those at the small one."""

    def of(side: int, batch: int, key: str) -> float | None:
        row = rows.get(f"swin_encoder_mlp-{side}x{side}x{side}-b{batch}-float32-forward")
        value = row and (row["seconds"]["median"] if key == "seconds" else row["peak"])
        return value / batch / side**3 if value else None

    found = {}
    for name, start, end, key in (
        ("batch 1 to 8", (64, 1), (64, 8), "seconds"),
        ("64³ to 128³", (64, 1), (128, 1), "seconds"),
        ("peak, batch 1 to 8", (64, 1), (64, 8), "peak"),
    ):
        small, large = of(*start, key), of(*end, key)
        if small and large:
            found[name] = large / small
    return found
