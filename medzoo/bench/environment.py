"""Where a result was measured: everything that its figures depend on and that a reader cannot see in them."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from medzoo.version import __version__

__all__ = ["ALLOCATORS", "allocator", "describe_environment", "gpu_state", "result_name"]

# torch reads the variable once, at its first large allocation: a setting needs a process of its own.
ALLOCATORS = {"default": {}, "thp": {"THP_MEM_ALLOC_ENABLE": "1"}}
VARIABLES = ("THP_MEM_ALLOC_ENABLE", "LD_PRELOAD", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF")
# What nvidia-smi is asked for; megahertz and watts, with their units.
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


def allocator() -> str:
    """Return which of :data:`ALLOCATORS` this process runs with."""
    return "thp" if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1" else "default"


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return the machine, the versions and the settings."""
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
        "memory_gb": round(_memory() / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "allocator": allocator(),
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
    """Return the driver, the clocks now and at most, and the power limit of a GPU; ``None`` without nvidia-smi."""
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


def result_name(environment: dict[str, Any]) -> str:
    """Return the file name ``<date>_<device>_<torch>.json``; rows alone and another allocator are named behind.

    >>> result_name({"date": "2026-01-31 10:00 UTC", "device": "AMD EPYC 9", "versions": {"torch": "2.15.0+cu132"},
    ...              "allocator": "thp"})
    '2026-01-31_amd-epyc-9_torch2.15.0_thp.json'
    """
    device = re.sub(r"[^a-z0-9]+", "-", environment["device"].lower()).strip("-")
    torch_version = environment["versions"]["torch"].partition("+")[0]
    setting = "_alone" if environment.get("alone") else ""
    setting += "" if environment["allocator"] == "default" else f"_{environment['allocator']}"
    return f"{environment['date'][:10]}_{device}_torch{torch_version}{setting}.json"


def _cpu() -> str:
    """Return the processor's name."""
    found = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    return found[1].strip() if found else platform.processor() or platform.machine()


def _memory() -> int:
    """Return the machine's memory in bytes."""
    found = re.search(r"MemTotal:\s*(\d+)", _read("/proc/meminfo"))
    return int(found[1]) * 1024 if found else 0


def _read(path: str) -> str:
    """Return a file's text, or an empty string where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
