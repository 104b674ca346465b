"""How much memory a call needs: measured, and estimated beforehand so that what cannot fit is not begun."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medzoo.bench.cases import COMPILED, MONAI, Case
from medzoo.bench.peers import WINDOW
from medzoo.models.swin import DEPTHS, HEADS, PATCH

__all__ = ["available", "estimate", "measure_peak"]


def measure_peak(call: Callable[[], Any], device: torch.device) -> int | None:
    """Return the bytes a call needed on top of what was there before, or ``None`` where that cannot be measured.

    On Linux the kernel's high-water mark of resident memory is set back before the call. Freed heap is given back
    first: what an earlier call left behind would be used again without counting.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except OSError:  # no Linux, or a container that forbids it
        return None


def _status(key: str) -> int:
    """Return a figure of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def available(device: torch.device) -> int:
    """Return the bytes that are free, with a tenth kept back."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.9)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 62
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return int(free * 0.9)


def estimate(case: Case, who: str) -> int:
    """Return about how many bytes a call of ``who`` needs at its peak; rather too many than too few.

    A map of the first stage counts most. For MONAI's Swin encoder it is the attention scores of the padded windows,
    ``heads × tokens × window`` numbers: written three times by the default path (product, with bias, softmax), once and
    a bias as large by the flash path, and kept by every block of the first stage for a backward pass. For everyone
    else it is activations: about 12 maps of the widest stage, kept for each layer in training.
    """
    size = 2 if case.dtype == "bfloat16" else 4
    train = case.mode == "train"
    if case.model != "swin_encoder_mlp":
        widest = {"cnn3d_small": 32, "cnn3d_base": 64, "xray_cnn": 16, "resnet18_multilabel": 16}.get(case.model, 64)
        return case.voxels * widest * size * (8 if train else 4)
    tokens = [side // PATCH for side in case.size]
    maps = case.batch * math.prod(tokens) * 48 * size * (12 * DEPTHS[0] * 2 if train else 12)
    if who not in (*MONAI, COMPILED):
        return maps
    padded = case.batch * math.prod(-(-side // w) * w for side, w in zip(tokens, WINDOW, strict=True))
    scores = padded * math.prod(WINDOW) * HEADS[0] * size
    return maps + scores * (2 * DEPTHS[0] + 2 if train else 3)
