"""What is measured: a table of cases, each a model or a part of one at one input size.

Three levels: ``quick`` is a smoke test, ``usual`` is the full comparison, and ``full`` adds ``torch.compile`` with
freezing, which takes minutes to compile.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import medzoo
from medzoo.errors import UnknownModelError, did_you_mean

Level = Literal["quick", "usual", "full"]
LEVELS: tuple[Level, ...] = ("quick", "usual", "full")

MONAI = ("MONAI", "MONAI flash")
CREATED = "as created"
EAGER = "eager PyTorch"
CHANNELS_LAST = "eager, channels last"
TIMM = "timm"
COMPILED = "compile + freezing"
GRAPHLESS = "without a CUDA graph"
ONNXRUNTIME = "onnxruntime"
# Peers that are medzoo's own code. They share its bugs and its slowdowns, so they cannot vouch for it.
OWN = frozenset({CREATED, GRAPHLESS})
# Peers that compute what was exported from medzoo's model cannot vouch for it either.
DERIVED = OWN | {ONNXRUNTIME}


@dataclass(frozen=True)
class Case:
    """One row of a result: what runs, on which input, beside which peers."""

    subject: str  # a registered model, or "model/part"
    size: tuple[int, ...]  # spatial size of the input; for a part of the Swin encoder, of the full encoder's input
    batch: int = 1
    dtype: str = "float32"  # or "bfloat16"
    # A forward pass of medzoo.optimize's model, or of a part as it is; or forward and backward of the model as created.
    mode: Literal["forward", "train"] = "forward"
    peers: tuple[str, ...] = ()  # what is timed beside medzoo
    level: Level = "usual"  # the first level this case belongs to
    tiny: bool = False  # build the model with its registered ``tiny`` options, to check outputs and not to time
    graph: bool = False  # replay a CUDA graph of the optimized model; on a CPU it runs without one

    @property
    def model(self) -> str:
        """The registered model."""
        return self.subject.partition("/")[0]

    @property
    def part(self) -> str:
        """The part of the model, or an empty string for the full model."""
        return self.subject.partition("/")[2]

    @property
    def id(self) -> str:
        """A name without spaces, the same in pytest, tables and result files.

        >>> Case("swin_encoder_mlp", (96, 96, 96)).id
        'swin_encoder_mlp-96x96x96-b1-float32-forward'
        """
        size = "x".join(map(str, self.size))
        suffix = "-graph" * self.graph + "-tiny" * self.tiny
        return f"{self.subject}-{size}-b{self.batch}-{self.dtype}-{self.mode}{suffix}"

    @property
    def voxels(self) -> int:
        """Pixels or voxels in one call."""
        return self.batch * math.prod(self.size)


CUBE = {side: (side, side, side) for side in (64, 96, 128)}
BASE_SIZE = (64, 128, 128)
XRAY_SIZE = (320, 320)


def _cpu() -> list[Case]:
    """Return what is measured on a CPU: full models, their hot paths by themselves, and how the Swin encoder scales."""
    swin, conv, flat = (*MONAI, CREATED), (EAGER, CREATED), (TIMM, CREATED)
    # Beside onnxruntime at the default size of each model.
    rows = [
        Case("swin_encoder_mlp", CUBE[64], peers=swin, level="quick"),
        Case("swin_encoder_mlp", CUBE[64], batch=4, peers=swin),
        Case("swin_encoder_mlp", CUBE[96], peers=(*swin, ONNXRUNTIME)),
        Case("swin_encoder_mlp", CUBE[64], dtype="bfloat16", peers=swin),
        Case("swin_encoder_mlp", CUBE[96], dtype="bfloat16", peers=swin),
        Case("swin_encoder_mlp", CUBE[64], mode="train", peers=("MONAI",)),
        Case("swin_encoder_mlp", CUBE[96], mode="train", peers=("MONAI",)),
        Case("cnn3d_small", CUBE[64], peers=(*conv, ONNXRUNTIME)),
        Case("cnn3d_small", CUBE[64], batch=4, peers=conv),
        Case("cnn3d_small", CUBE[96], peers=conv, level="quick"),
        Case("cnn3d_small", CUBE[96], dtype="bfloat16", peers=conv),
        Case("cnn3d_small", CUBE[64], mode="train", peers=(EAGER,)),
        Case("cnn3d_small", CUBE[64], batch=8, mode="train", peers=(EAGER,)),
        Case("cnn3d_base", BASE_SIZE, peers=(*conv, ONNXRUNTIME), level="quick"),
        Case("cnn3d_base", CUBE[64], batch=4, peers=conv),
        Case("cnn3d_base", BASE_SIZE, dtype="bfloat16", peers=(*conv, CHANNELS_LAST)),
        # Of one volume, the mean of what the last BatchNorm returns is a constant, and every gradient before it noise.
        Case("cnn3d_base", BASE_SIZE, batch=2, mode="train", peers=(EAGER,)),
    ]
    for model, peers in (("xray_cnn", conv), ("resnet18_multilabel", flat)):
        case = Case(model, XRAY_SIZE, peers=peers)
        rows.append(replace(case, level="quick", peers=(*peers, ONNXRUNTIME)))
        rows += [replace(case, batch=8), replace(case, dtype="bfloat16")]
        rows.append(replace(case, mode="train", peers=peers[:1]))
    # Channels last it has no BatchNorm that would sum up in float32, and its gradients agree.
    rows.append(Case("xray_cnn", XRAY_SIZE, batch=8, mode="train", peers=(EAGER, CHANNELS_LAST)))
    case = Case("densenet121_xray", (224, 224), peers=flat)
    rows += [replace(case, peers=(*flat, ONNXRUNTIME)), replace(case, batch=8)]
    rows += [
        Case(f"swin_encoder_mlp/{part}", CUBE[side], peers=MONAI if part != "merging" else ("MONAI",))
        for part in ("attention", "attention shifted", "block", "block shifted", "merging")
        for side in (64, 96)
    ]
    stages = (("cnn3d_small", CUBE[96], 3), ("cnn3d_base", BASE_SIZE, 4), ("xray_cnn", XRAY_SIZE, 4))
    rows += [
        Case(f"{model}/stage {i}", size, peers=(EAGER,)) for model, size, count in stages for i in range(1, count + 1)
    ]
    return rows + [Case("swin_encoder_mlp", size, batch=batch) for size in CUBE.values() for batch in (1, 2, 4, 8)]


def _gpu() -> list[Case]:
    """Return what is measured on a GPU: bfloat16 and large batches, the rows with a target first."""
    swin, conv, flat = (*MONAI, CREATED), (EAGER, CHANNELS_LAST, CREATED), (TIMM, CREATED)
    half = "bfloat16"
    rows = [
        Case("swin_encoder_mlp", CUBE[96], batch=8, dtype=half, peers=swin, level="quick"),
        Case("cnn3d_base", BASE_SIZE, batch=64, dtype=half, peers=conv, level="quick"),
        Case("swin_encoder_mlp", CUBE[96], batch=8, dtype=half, peers=(MONAI[1], GRAPHLESS), graph=True),
        Case("cnn3d_base", BASE_SIZE, batch=64, dtype=half, peers=(CHANNELS_LAST, GRAPHLESS), graph=True),
        Case("swin_encoder_mlp", CUBE[96], dtype=half, peers=(MONAI[1], GRAPHLESS), graph=True),
        Case("cnn3d_base", BASE_SIZE, dtype=half, peers=(CHANNELS_LAST, GRAPHLESS), graph=True),
        Case("swin_encoder_mlp", CUBE[96], dtype=half, peers=swin),
        Case("swin_encoder_mlp", CUBE[96], batch=2, dtype=half, mode="train", peers=MONAI),
        Case("swin_encoder_mlp", CUBE[96], batch=8, dtype=half, mode="train", peers=MONAI),
        Case("cnn3d_base", BASE_SIZE, dtype=half, peers=conv),
        Case("cnn3d_base", BASE_SIZE, batch=16, dtype=half, mode="train", peers=(EAGER, CHANNELS_LAST)),
        Case("swin_encoder_mlp", CUBE[96], peers=swin),
        Case("swin_encoder_mlp", CUBE[64], dtype=half, peers=swin),
        Case("swin_encoder_mlp", CUBE[128], dtype=half, peers=swin),
        Case("swin_encoder_mlp", CUBE[96], mode="train", peers=MONAI),
        Case("cnn3d_small", CUBE[64], batch=64, dtype=half, peers=conv),
        Case("cnn3d_small", CUBE[96], dtype=half, peers=conv),
    ]
    for batch in (1, 64):
        rows += [
            Case("xray_cnn", XRAY_SIZE, batch=batch, dtype=half, peers=conv),
            Case("resnet18_multilabel", XRAY_SIZE, batch=batch, dtype=half, peers=flat),
            Case("densenet121_xray", (224, 224), batch=batch, dtype=half, peers=flat),
        ]
    # Without peers, until the memory is full.
    rows += [Case("swin_encoder_mlp", CUBE[96], batch=2**power, dtype=half) for power in range(8)]
    return rows + [Case("cnn3d_base", BASE_SIZE, batch=2**power, dtype=half) for power in range(10)]


def tiny(cases: Iterable[Case]) -> list[Case]:
    """Return each kind of case once, at its smallest size; among equals, the first that has peers.

    The Swin encoder's input is no cube, and one side is longer than two windows: its windows then meet every kind of
    border. onnxruntime takes part for the convolutional models alone: exporting the others takes longer than all else.
    """
    found: dict[str, Case] = {}
    for case in cases:
        size = (32, 64, 32) if case.model == "swin_encoder_mlp" else medzoo.describe(case.model).tiny_size
        peers = tuple(peer for peer in case.peers if peer != ONNXRUNTIME or EAGER in case.peers)
        small = replace(case, size=size, batch=2, tiny=True, peers=peers)
        if small.id not in found or not found[small.id].peers:
            found[small.id] = small
    return list(found.values())


def dry_run(cases: Iterable[Case]) -> list[Case]:
    """Return each kind of case once, at its fastest, to run all code of a suite and to time nothing.

    In float32, because bfloat16 is a hundred times as slow on a CPU without it. Each peer runs once per model; a case
    whose peers have all run before keeps its last one.
    """
    found, seen = [], set()
    for case in tiny(replace(case, dtype="float32") for case in cases):
        new = tuple(peer for peer in case.peers if (case.model, peer) not in seen)
        seen |= {(case.model, peer) for peer in new}
        small = replace(case, peers=new or case.peers[-1:])
        if case.model == "swin_encoder_mlp":  # most of the time is MONAI's
            small = replace(small, size=(32, 32, 32), batch=1)
        found.append(small)
    return found


def select(models: Collection[str] = (), level: Level = "usual", *, device: str = "cpu") -> list[Case]:
    """Return the cases of some models, or of all, up to a level.

    >>> [case.id for case in select(["xray_cnn"], "quick")]
    ['xray_cnn-320x320-b1-float32-forward']

    Raises:
        UnknownModelError: a model that has no case.
    """
    every: dict[str, Case] = {}
    for case in _gpu() if device == "cuda" else _cpu():
        every.setdefault(case.id, case)  # the one with peers comes first
    known = list(dict.fromkeys(case.model for case in every.values()))
    for name in models:
        if name not in known:
            raise UnknownModelError(
                f"no benchmark of {name!r}.{did_you_mean(name, known)} There are {', '.join(known)}."
            )
    chosen = [case for case in every.values() if not models or case.model in models]
    if level != "full":
        return [case for case in chosen if LEVELS.index(case.level) <= LEVELS.index(level)]
    # Compiling takes minutes: one case of each model, its first quick one if it has one.
    compiled: dict[str, Case] = {}
    for case in sorted(chosen, key=lambda case: LEVELS.index(case.level)):
        if case.peers and not case.part and case.mode == "forward" and not case.graph:
            compiled.setdefault(case.model, case)
    return [replace(case, peers=(*case.peers, COMPILED)) if case in compiled.values() else case for case in chosen]
