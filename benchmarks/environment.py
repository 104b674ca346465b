"""The machine a result was measured on: versions, settings, free memory, and the best speed it reaches.

On a CPU two libraries compute matrix products, and either can be the faster: the BLAS behind ``torch.mm``, and oneDNN,
which ``torch.ops.mkldnn`` reaches in the same wheel. The ceiling is the better one.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from medzoo.version import __version__

# torch reads the variable once, at its first large allocation: a setting needs a process of its own.
ALLOCATORS = {"default": {}, "thp": {"THP_MEM_ALLOC_ENABLE": "1"}}
VARIABLES = ("THP_MEM_ALLOC_ENABLE", "LD_PRELOAD", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF")
# Fields of nvidia-smi; it adds the units, MHz and W.
GPU_FIELDS = (
    "uuid",
    "name",
    "driver_version",
    "clocks.current.sm",
    "clocks.current.memory",
    "clocks.max.sm",
    "clocks.max.memory",
    "power.limit",
)
PACKAGES = ("torch", "triton", "monai", "timm", "einops", "numpy", "pytest-benchmark")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return the machine, the versions and the settings, as a result file stores them."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": _cpu() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(_kilobytes("/proc/meminfo", "MemTotal") * 1024 / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "allocator": "thp" if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1" else "default",
        "huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "medzoo": __version__,
        "versions": {**versions, "torch": torch.__version__},
    }
    if device.type == "cuda":
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
            "device_memory_gb": round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1),
            "gpu": gpu_state(device),
        }
    return found


def gpu_state(device: torch.device) -> dict[str, str] | None:
    """Return a GPU's driver, current and maximal clocks, and power limit; ``None`` without nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    cards = [dict(zip(GPU_FIELDS, re.split(r",\s*", line.strip()), strict=False)) for line in answer.splitlines()]
    # torch may see fewer cards than nvidia-smi, and in another order.
    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    found = next((card for card in cards if uuid and uuid in card["uuid"]), cards[0] if cards else None)
    return found and {name: value for name, value in found.items() if name != "uuid"}


def available_memory(device: torch.device) -> int:
    """Return the free bytes, with a tenth in reserve."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.9)
    free = _kilobytes("/proc/meminfo", "MemAvailable") * 1024 or (1 << 62)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(ValueError):  # an absent file, or "max", which is no limit
            free = min(free, int(_read(limit)) - int(_read(used)))
    return int(free * 0.9)


def _cpu() -> str:
    """Return the processor's name."""
    found = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    return found[1].strip() if found else platform.processor() or platform.machine()


def _kilobytes(path: str, key: str) -> int:
    """Return a figure of a file such as ``/proc/meminfo``, or 0 if it is not there."""
    found = re.search(rf"{key}:\s*(\d+)", _read(path))
    return int(found[1]) if found else 0


def _read(path: str) -> str:
    """Return a file's text, or an empty string if there is none."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def measure_ceilings(device: torch.device, *, quick: bool = False, tiny: bool = False) -> dict[str, float]:
    """Return operations per second of matrix products in both dtypes, and bytes per second of a copy.

    Args:
        device: the device to measure.
        quick: multiply smaller matrices on a CPU.
        tiny: multiply matrices too small to mean anything, because a CPU without bfloat16 takes minutes otherwise.
    """
    found: dict[str, float] = {}
    cuda = device.type == "cuda"
    seconds = 0.05 if tiny else 0.5
    side = 256 if tiny else 8192 if cuda else 2048 if quick else 4096
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        name = str(dtype).removeprefix("torch.")
        took = _fastest(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, seconds)  # type: ignore[misc]
        found[f"torch.mm {name}"] = 2 * side**3 / took
        onednn = None if cuda or tiny else _onednn_linear(dtype)
        if onednn:
            call, flops = onednn
            found[f"oneDNN {name}"] = flops / _fastest(call, device, seconds)
        found[f"matmul {name}"] = max(v for k, v in found.items() if k.endswith(name))
    count = 1 << (20 if tiny else 30 if cuda else 28)
    source = torch.ones(count // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    found["copy"] = 2 * count / _fastest(lambda: target.copy_(source), device, seconds)
    return found


def _onednn_linear(dtype: torch.dtype) -> tuple[Callable[[], Any], int] | None:
    """Return a oneDNN linear layer of the Swin encoder's size and its operations; PyTorch keeps the call private."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    rows, k, n = 13824, 96, 384
    x, w = torch.randn(rows, k).to(dtype), torch.randn(n, k).to(dtype)
    linear = torch.ops.mkldnn._linear_pointwise
    try:
        linear(x, w, None, "none", [], "")
    except (RuntimeError, NotImplementedError):  # a build without oneDNN, or a processor without this dtype
        return None
    return lambda: linear(x, w, None, "none", [], ""), 2 * rows * k * n


def _fastest(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Return the seconds of the fastest of several calls: a ceiling is what was reached once."""
    best = float("inf")
    with torch.inference_mode():
        for _ in range(2):
            call()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or best == float("inf"):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
    return best
