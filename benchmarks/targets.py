"""The targets and whether each is met, and the headline figures of the models."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from benchmarks.cases import CHANNELS_LAST, COMPILED, EAGER, MONAI, OWN, TIMM, select
from benchmarks.results import figure

DEFAULT, FLASH = MONAI


class Target(NamedTuple):
    """A target of a row, as a value that must be reached, or not exceeded for what is in ``UPPER_BOUNDS``."""

    row: str
    what: str  # "time", "peak": the peer's over medzoo's; "difference", "gradient": between them; or medzoo's own
    peer: str
    required: float  # 0.0 for none
    following: float  # the next target
    thp: float | None = None  # the required value with THP_MEM_ALLOC_ENABLE=1, if it is another


SWIN_TARGETS = (
    Target("forward", "time", DEFAULT, 8.0, 15.0),
    Target("forward", "time", FLASH, 3.5, 5.0),
    Target("forward", "peak", FLASH, 5.0, 10.0),
    Target("forward", "difference", DEFAULT, 2e-5, 6e-6),
    Target("train", "time", DEFAULT, 2.5, 4.0),
    Target("train", "peak", DEFAULT, 2.0, 4.0),
    Target("train", "gradient", DEFAULT, 1e-5, 6e-6),
)
TARGETS = [
    *(
        target._replace(row=f"swin_encoder_mlp-{size}-b1-float32-{target.row}")
        for size in ("64x64x64", "96x96x96")
        for target in SWIN_TARGETS
    ),
    Target("cnn3d_small-96x96x96-b1-float32-forward", "time", EAGER, 8.0, 10.0, thp=3.5),
    Target("cnn3d_small-96x96x96-b1-float32-forward", "time", COMPILED, 0.0, 5.0),
    Target("cnn3d_base-64x128x128-b1-float32-forward", "time", EAGER, 4.0, 5.0, thp=3.0),
    Target("cnn3d_base-64x128x128-b1-float32-forward", "time", COMPILED, 0.0, 1.7),
    Target("xray_cnn-320x320-b1-float32-forward", "time", EAGER, 2.0, 2.2),
    Target("xray_cnn-320x320-b8-float32-forward", "time", EAGER, 4.0, 5.3),
    Target("cnn3d_small-64x64x64-b8-float32-train", "time", EAGER, 3.0, 5.0),
    Target("cnn3d_base-64x128x128-b2-float32-train", "time", EAGER, 2.0, 3.0),
    Target("xray_cnn-320x320-b8-float32-train", "time", EAGER, 2.0, 3.0),
    Target("resnet18_multilabel-320x320-b1-float32-forward", "time", TIMM, 1.2, 1.6),
    Target("resnet18_multilabel-320x320-b8-float32-forward", "time", TIMM, 1.2, 1.6),
    Target("densenet121_xray-224x224-b1-float32-forward", "time", TIMM, 1.0, 1.4),
    Target("startup/import", "seconds", "import torch", 0.1, 0.02),
    Target("startup/create", "share", "init + torch.load + load_state_dict", 2 / 3, 0.5),
    Target("scaling/batch 1 to 8", "growth", "linear", 1.2, 1.0),
    Target("scaling/64³ to 128³", "growth", "linear", 1.2, 1.0),
    Target("scaling/peak, batch 1 to 8", "growth", "linear", 1.2, 1.0),
]
SWIN = "swin_encoder_mlp-96x96x96-b8-bfloat16-forward"
CONV = "cnn3d_base-64x128x128-b64-bfloat16-forward"
# Ratios apply to any GPU; seconds and rates to the cards whose name contains the key. Each with and without a graph.
GPU_ROWS = ((SWIN, CONV), (f"{SWIN}-graph", f"{CONV}-graph"))
# Seconds of the Swin encoder and volumes/s of the convolutional model: the target, and the next one.
CARDS = {"H100": ((5e-3, 2.2e-3), (4500.0, 8000.0)), "H200": ((3.5e-3, 1.5e-3), (6500.0, 12000.0))}
UPPER_BOUNDS = ("difference", "gradient", "seconds", "share", "growth")

# The rows, besides those with a target, that show how cost grows with batch and volume.
SCALING = {f"swin_encoder_mlp-{size}-float32-forward" for size in ("64x64x64-b8", "128x128x128-b1")}
# The row that stands for each model in the summary.
HEADLINES = {
    "cpu": (
        "swin_encoder_mlp-96x96x96-b1-float32-forward",
        "cnn3d_small-96x96x96-b1-float32-forward",
        "cnn3d_base-64x128x128-b1-float32-forward",
        "xray_cnn-320x320-b1-float32-forward",
        "resnet18_multilabel-320x320-b1-float32-forward",
        "densenet121_xray-224x224-b1-float32-forward",
    ),
    "cuda": (SWIN, CONV),
}
# Beside as many busy processes as cores, no model is slower than its plain layers.
PLAIN = {"swin_encoder_mlp": DEFAULT, "resnet18_multilabel": TIMM, "densenet121_xray": TIMM}
BUSY_TARGETS = [Target(row, "time", PLAIN.get(row.partition("-")[0], EAGER), 1.0, 2.0) for row in HEADLINES["cpu"]]


def target_rows(models: list[str]) -> list[str]:
    """Return the ids of the rows of some models, or of all, that a target needs."""
    wanted = {target.row for target in TARGETS} | SCALING
    return [case.id for case in select(models) if case.id in wanted]


def targets(environment: dict[str, Any]) -> list[Target]:
    """Return the targets of the device that a result was measured on."""
    if environment.get("busy"):
        return BUSY_TARGETS
    if "cuda" not in environment:
        return TARGETS
    found = []
    for swin, conv in GPU_ROWS:
        found += [Target(swin, "time", FLASH, 1.5, 3.0), Target(conv, "time", CHANNELS_LAST, 2.0, 3.0)]
    for card, (seconds, rate) in CARDS.items():
        if card in environment["device"]:
            for swin, conv in GPU_ROWS:
                found += [Target(swin, "seconds", "", *seconds), Target(conv, "samples/s", "", *rate)]
    return found


def check_targets(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a line for each target: row, what, against, target, next, measured, and whether it is met."""
    rows = {row["id"]: row for row in result["rows"]}
    thp = result["environment"]["allocator"] == "thp"
    lines: list[tuple[str, ...]] = []
    for target in targets(result["environment"]):
        required = target.thp if thp and target.thp is not None else target.required
        value = _measured(target, rows, result)
        upper = target.what in UPPER_BOUNDS
        sign = "≤" if upper else "≥"
        met = value is not None and (value <= required if upper else value >= required)
        lines.append((
            *target[:3],
            f"{sign} {figure(required)}" if required else "–",
            f"{sign} {figure(target.following)}",
            "not measured" if value is None else figure(value),
            "" if value is None or not required else "met" if met else "**missed**",
        ))  # fmt: skip
    return lines


def _measured(target: Target, rows: dict[str, Any], result: dict[str, Any]) -> float | None:
    """Return the measured value of a target, or ``None``."""
    kind, _, name = target.row.partition("/")
    if kind == "startup":
        return cast(float | None, result.get("startup", {}).get(name, {}).get("value"))
    if kind == "scaling":
        return growth(rows).get(name)
    row = rows.get(target.row)
    if row is None or (target.peer and target.peer not in row["peers"]):
        return None
    if not target.peer:
        return float(row["seconds"]["median"] if target.what == "seconds" else row["samples_per_second"])
    peer = row["peers"][target.peer]
    measured: dict[str, float | None] = {
        "time": peer["ratio"]["median"],
        "difference": peer["difference"],
        "gradient": peer["gradient_difference"],
        # Resident memory is known to about a megabyte: below it a ratio says nothing.
        "peak": None if row["peak"] is None else peer["peak"] / max(row["peak"], 1_000_000),
    }
    return measured[target.what]


def growth(rows: dict[str, Any]) -> dict[str, float]:
    """Return the cost of a voxel at a large input over that at 64³ and batch 1; 1 is linear scaling."""

    def per_voxel(side: int, batch: int, key: str) -> float | None:
        row = rows.get(f"swin_encoder_mlp-{side}x{side}x{side}-b{batch}-float32-forward")
        value = row and (row["seconds"]["median"] if key == "seconds" else row["peak"])
        return value / batch / side**3 if value else None

    found = {}
    for name, side, batch, key in (
        ("batch 1 to 8", 64, 8, "seconds"),
        ("64³ to 128³", 128, 1, "seconds"),
        ("peak, batch 1 to 8", 64, 8, "peak"),
    ):
        small, large = per_voxel(64, 1, key), per_voxel(side, batch, key)
        if small and large:
            found[name] = large / small
    return found


def setting(environment: dict[str, Any], graph: bool = False) -> str:
    """Return what times depend on besides the device, in words that the page explains."""
    if "cuda" in environment:
        return "CUDA graph" if graph else "own process" if environment.get("alone") else "no CUDA graph"
    if environment.get("busy"):
        return "busy machine"
    if environment["allocator"] == "thp":
        return "huge pages"
    return "own process" if environment.get("alone") else "shared process"


class Headline(NamedTuple):
    """A row of a result, where it was measured, and the peer that takes least time, medzoo's own code not counted."""

    row: dict[str, Any]
    environment: dict[str, Any]
    setting: str
    peer: str
    ratio: dict[str, float]


def headlines(results: list[dict[str, Any]]) -> list[list[Headline]]:
    """Return one list for each model and device: a headline for each setting, the usual one first."""
    # A process per row is closest to a user's program, and the default allocator is what a user has.
    order = ("own process", "shared process", "huge pages", "busy machine", "no CUDA graph", "CUDA graph")
    groups: dict[tuple[str, str], list[Headline]] = {}
    for result in results:
        environment, rows = result["environment"], {row["id"]: row for row in result["rows"]}
        for name in HEADLINES["cuda" if "cuda" in environment else "cpu"]:
            for graph in (False, True):
                row = rows.get(name + "-graph" * graph, {"peers": {}})
                ratios = {peer: found["ratio"] for peer, found in row["peers"].items() if peer not in OWN}
                if ratios:
                    peer = min(ratios, key=lambda peer: ratios[peer]["median"])
                    headline = Headline(row, environment, setting(environment, graph), peer, ratios[peer])
                    groups.setdefault((environment["device"], name), []).append(headline)
    return [sorted(group, key=lambda headline: order.index(headline.setting)) for group in groups.values()]
