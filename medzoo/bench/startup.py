"""What comes before the first forward pass: ``import medzoo``, and ``create`` with weights from a file."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import medzoo
from medzoo.bench.race import spread

__all__ = ["MODEL", "create_and_peer", "measure_startup"]

MODEL = "xray_cnn"
TORCH, MEDZOO = "import torch", "import torch; import medzoo; medzoo.list_models()"


def create_and_peer(folder: Path, options: dict[str, Any] | None = None) -> tuple[Callable[[], nn.Module], ...]:
    """Return two ways from the same tensors in a file to a model: ours, and what everyone writes.

    Both files have just been written, so both are read from the system's cache.
    """
    chosen = options or {}
    model = medzoo.create(MODEL, **chosen)
    weights, checkpoint = folder / "model.safetensors", folder / "model.pt"
    save_file(model.state_dict(), weights)
    torch.save(model.state_dict(), checkpoint)

    def plain() -> nn.Module:
        built = medzoo.create(MODEL, **chosen)
        built.load_state_dict(torch.load(checkpoint, weights_only=True))
        return built

    return lambda: medzoo.create(MODEL, pretrained=weights, **chosen), plain


def measure_startup(rounds: int = 7) -> dict[str, Any]:
    """Return seconds of each way, in turn, and ``value``: what import adds, and create's share of the plain way."""
    found: dict[str, Any] = {}
    times = _in_turn({"torch": lambda: _python(TORCH), "medzoo": lambda: _python(MEDZOO)}, rounds)
    added = spread([b - a for a, b in zip(times["torch"], times["medzoo"], strict=True)])
    found["import"] = {"value": added["median"], **{name: spread(each) for name, each in times.items()}}
    with tempfile.TemporaryDirectory() as folder:
        ours, plain = create_and_peer(Path(folder))
        times = _in_turn({"init + load": plain, "medzoo": ours}, rounds)
    share = spread([b / a for a, b in zip(times["init + load"], times["medzoo"], strict=True)])
    found["create"] = {"value": share["median"], **{name: spread(each) for name, each in times.items()}}
    return found


def _in_turn(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time each way once a round, after a round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if i:
                times[name].append(time.perf_counter() - start)
    return times


def _python(code: str) -> None:
    """Run code in a fresh process."""
    subprocess.run([sys.executable, "-c", code], check=True)
