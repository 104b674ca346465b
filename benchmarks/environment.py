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
import timeit
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from medzoo.version import __version__

# torch reads the variable once, at its first large allocation: a setting needs a process of its own.
ALLOCATORS = {"default": {}, "thp": {"THP_MEM_ALLOC_ENABLE": "1"}}
# How many processes ``python -m benchmarks run --busy`` has started, for the processes that measure beside them.
BUSY = "MEDZOO_BENCHMARKS_BUSY"
VARIABLES = ("THP_MEM_ALLOC_ENABLE", "LD_PRELOAD", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF")
# Fields of nvidia-smi; it adds the units, MHz and W.
CLOCKS = tuple(f"clocks.{which}.{unit}" for which in ("current", "max") for unit in ("sm", "memory"))
GPU_FIELDS = ("uuid", "name", "driver_version", *CLOCKS, "power.limit")
PACKAGES = ("torch", "triton", "monai", "timm", "einops", "numpy", "onnxruntime", "pytest-benchmark")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return the machine, the versions and the settings, as a result file stores them."""
    versions = dict.fromkeys(PACKAGES, "absent")
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    model = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    cpu = model[1].strip() if model else platform.processor() or platform.machine()
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": cpu if device.type == "cpu" else torch.cuda.get_device_name(device),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(kilobytes("/proc/meminfo", "MemTotal") * 1024 / 1e9, 1),
        "busy": int(os.environ.get(BUSY, 0)),
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
    free = kilobytes("/proc/meminfo", "MemAvailable") * 1024 or (1 << 62)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(ValueError):  # an absent file, or "max", which is no limit
            free = min(free, int(_read(limit)) - int(_read(used)))
    return int(free * 0.9)


def kilobytes(path: str, key: str) -> int:
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

    ``quick`` multiplies smaller matrices on a CPU. ``tiny`` ones are too small to mean anything: a CPU without bfloat16
    takes minutes otherwise.
    """
    found: dict[str, float] = {}
    cuda = device.type == "cuda"
    seconds = 0.05 if tiny else 0.5
    side = 256 if tiny else 8192 if cuda else 2048 if quick else 4096
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        name = str(dtype).removeprefix("torch.")
        multiply = partial(torch.mm, a, b, out=torch.empty_like(a))
        found[f"torch.mm {name}"] = 2 * side**3 / _fastest(multiply, device, seconds)
        if not cuda and not tiny:
            # A linear layer of the Swin encoder's size; some builds have no oneDNN, some processors not this dtype.
            rows, k, n = 13824, 96, 384
            x, weight = torch.randn(rows, k).to(dtype), torch.randn(n, k).to(dtype)
            with contextlib.suppress(AttributeError, RuntimeError):
                linear = partial(torch.ops.mkldnn._linear_pointwise, x, weight, None, "none", [], "")
                found[f"oneDNN {name}"] = 2 * rows * k * n / _fastest(linear, device, seconds)
        found[f"matmul {name}"] = max(v for k, v in found.items() if k.endswith(name))
    count = 1 << (20 if tiny else 30 if cuda else 28)
    source = torch.ones(count // 4, device=device)
    found["copy"] = 2 * count / _fastest(partial(torch.empty_like(source).copy_, source), device, seconds)
    return found


def _fastest(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Return the seconds of the fastest of several calls: a ceiling is what was reached once."""

    def run() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        times = timeit.repeat(run, number=1, repeat=3)[2:]  # the first two are not warm
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            times.append(timeit.timeit(run, number=1))
    return min(times)
