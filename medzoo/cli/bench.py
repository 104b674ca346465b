"""``medzoo bench``: latency, throughput and peak memory of models on this machine, as one table.

Weights are random, which does not change the time. Peak memory is what one forward pass needs on top of the weights and
the input: on a GPU, what PyTorch's allocator adds; on a CPU under Linux, how much the resident memory of the process
grows. Comparisons with other libraries are in the repository's ``benchmarks/``, which is not installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import platform
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import medzoo
from medzoo.cli.tables import console, megabytes
from medzoo.errors import ConfigError, InputError, check_int
from medzoo.progress import track
from medzoo.version import __version__

if TYPE_CHECKING:
    import torch

    from medzoo.registry import ModelSpec

__all__ = ["bench"]

DTYPES = ("float32", "bfloat16", "float16")
# Seconds that a model is timed for at least, seconds of one measurement, and the least number of rounds.
MIN_SECONDS, MIN_MEASUREMENT, MIN_ROUNDS = 2.0, 0.01, 5


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--device", help="Such as cpu or cuda:0; by default a GPU if there is one.")
@click.option("--dtype", default="float32", help=f"{', '.join(DTYPES)}.")
@click.option("--batch", type=int, default=1, help="Images or volumes in one forward pass.")
@click.option("--size", type=int, help="Pixels or voxels of every side; by default what the model was designed for.")
def bench(models: tuple[str, ...], device: str | None, dtype: str, batch: int, size: int | None) -> None:
    """Measure latency, throughput and peak memory on this machine.

    MODEL is a registered name; without any, all models are measured. Each runs as created (eager) and optimized, in
    turn, with random weights.
    """
    import torch
    from rich.table import Column, Table

    from medzoo.features import is_out_of_memory

    specs = [medzoo.describe(name) for name in models or medzoo.list_models()]
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices = (*gpus, "cpu", *(["cuda"] if gpus else []))
    device = device or devices[0]
    for option, choice, known in (("--device", device, devices), ("--dtype", dtype, DTYPES)):
        if choice not in known:
            expected = f"expected {option} to be one of {', '.join(known)}"
            raise ConfigError(f"medzoo bench: {expected}, got {choice!r}. Choose one.")
    check_int("medzoo bench", "--batch", batch, 1)
    check_int("medzoo bench", "--size", 1 if size is None else size, 1)
    target = torch.device(device)
    gpu = target.type == "cuda"
    cpu_name = _find(r"model name\s*:\s*(.+)", "/proc/cpuinfo") or platform.machine()
    name = torch.cuda.get_device_name(target) if gpu else cpu_name
    latency = Column("latency", overflow="fold")  # a narrow terminal must not cut numbers
    table = Table("model", "input", "mode", latency, "throughput", "peak memory", title_justify="left")
    table.title = (
        f"{name}, torch {torch.__version__}, medzoo {__version__}, {torch.get_num_threads()} threads, {dtype}, "
        f"{datetime.datetime.now():%Y-%m-%d %H:%M}"
    )
    for spec in track(specs, "models"):
        sides = spec.input_spec.size if size is None else (size,) * spec.input_spec.dims
        shape = (batch, spec.input_spec.channels, *sides)
        first = (spec.name, " × ".join(map(str, shape)))
        try:
            rows = _measure(spec, shape, target, getattr(torch, dtype))
        except (RuntimeError, InputError) as error:  # PyTorch's, or the model's for its forward pass
            if not (is_out_of_memory(error) or is_out_of_memory(error.__cause__)):
                raise
            table.add_row(*first, "", "out of memory")
            continue
        for mode, (seconds, peak) in rows.items():
            low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
            times = f"{median * 1e3:,.2f} ms ({low * 1e3:,.2f}–{high * 1e3:,.2f})"
            rate = f"{batch / median:,.2f} {'images' if spec.input_spec.dims == 2 else 'volumes'}/s"
            table.add_row(*first, mode, times, rate, "not measurable" if peak is None else megabytes(peak))
            first = ("", "")
    console().print(table)
    added = "PyTorch's allocator on the GPU" if gpu else "the resident memory of this process"
    click.echo("Random weights. Latency is of one batch: median (quartiles).")
    click.echo(f"Peak memory is what one forward pass adds to {added}, without weights and input.")


def _measure(
    spec: ModelSpec, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> dict[str, tuple[list[float], int | None]]:
    """Return the seconds of a forward pass in each round, and the peak memory in bytes, of each mode."""
    import torch

    options: dict[str, Any] = {"size": shape[2:]} if "size" in spec.options else {}
    model = medzoo.create(spec.name, **options).eval().to(device, dtype)
    x = torch.randn(shape, device=device).to(dtype)
    calls = {"eager": partial(model, x), "optimized": partial(medzoo.optimize(model), x)}

    def time_calls(call: Callable[[], Any], repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / repeats

    with torch.inference_mode():
        once = {mode: min(time_calls(call, 1) for _ in range(3)) for mode, call in calls.items()}
        peaks = {mode: _peak_bytes(call, device) for mode, call in calls.items()}
        seconds: dict[str, list[float]] = {mode: [] for mode in calls}
        end = time.perf_counter() + MIN_SECONDS
        # In turn, because the clocks and the load of a machine drift.
        while time.perf_counter() < end or len(seconds["eager"]) < MIN_ROUNDS:
            for mode, call in calls.items():
                seconds[mode].append(time_calls(call, max(1, round(MIN_MEASUREMENT / once[mode]))))
    return {mode: (seconds[mode], peaks[mode]) for mode in calls}


def _peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Return the bytes a call adds to what is in use, or ``None`` if that is not measurable."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    # Freed memory that the process keeps would not count again. Windows has no CDLL(None), macOS no malloc_trim.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        # Linux: reset the high-water mark of resident memory to the present value.
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = int(_find(r"VmRSS:\s*(\d+)", "/proc/self/status"))
        call()
        return max(0, int(_find(r"VmHWM:\s*(\d+)", "/proc/self/status")) - before) * 1024
    except (OSError, ValueError):  # another system, or a container that forbids it or reports no such line
        return None


def _find(pattern: str, file: str) -> str:
    """Return the first group of a pattern in a file, or an empty string."""
    found = re.search(pattern, Path(file).read_text(encoding="utf-8")) if Path(file).exists() else None
    return found[1].strip() if found else ""
