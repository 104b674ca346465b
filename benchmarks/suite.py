"""Runs cases into rows, and rows into a result; also times import and create."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import medzoo
from benchmarks.build import OURS, BuiltCase, DeviceLost, build_case, describe_error, recover, release
from benchmarks.cases import DERIVED, Case, Level
from benchmarks.environment import available_memory, describe_environment, gpu_state, measure_ceilings
from benchmarks.results import write_result
from benchmarks.timing import InterleavedTimer, differences, spread
from benchmarks.work import estimate_memory, work
from medzoo.errors import MedzooError

# Seconds and the least number of rounds for a row.
BUDGET: dict[Level, tuple[float, int]] = {"quick": (3.0, 3), "usual": (10.0, 5), "full": (20.0, 7)}
# A GPU runs as many rounds in this share of the time.
GPU_SHARE = 0.1
# The model that create is timed with, and the two programs whose times differ by the import of medzoo.
STARTUP_MODEL = "xray_cnn"
IMPORTS = {"torch": "import torch", "medzoo": "import torch; import medzoo; medzoo.list_models()"}


class BenchmarkError(MedzooError, RuntimeError):
    """A model and a peer that should agree do not: nothing is timed."""

    exit_code = 7


class Skipped(Exception):
    """A case that this machine cannot run; the message is the reason."""


def prepare(case: Case, device: torch.device) -> tuple[BuiltCase, dict[str, Any]]:
    """Build a case and check that all outputs agree; return it and the row so far.

    A peer that disagrees is dropped, with a message in ``"disagreed"``, as long as another one agrees that does not
    come from medzoo's own code.

    Raises:
        Skipped: medzoo's own model would not fit into memory.
        BenchmarkError: outputs or gradients differ from those of the peers.
    """
    fits, absent = _fitting(case, device)
    built = build_case(fits, device)
    built.absent |= absent
    peers: dict[str, Any] = {}
    disagreed: dict[str, str] = {}
    for name, difference in differences(built).items():
        if difference.ok:
            peers[name] = {"difference": difference.output, "gradient_difference": difference.gradient}
            continue
        disagreed[name] = f"expected the outputs of {name}, got a difference of {difference.output:.1e}"
        if difference.gradient is not None:
            disagreed[name] += f" and of {difference.gradient:.1e} in a gradient"
    if disagreed and not peers.keys() - DERIVED:
        raise BenchmarkError(f"{case.id}: {'; '.join(disagreed.values())}. Nothing was timed.")
    for name, reason in disagreed.items():
        built.drop(name, reason)
    found = {"case": asdict(case), "id": case.id, "peers": peers, "absent": built.absent, "disagreed": disagreed}
    return built, found


def _fitting(case: Case, device: torch.device) -> tuple[Case, dict[str, str]]:
    """Return the case with the peers that fit into memory, and the reason why the others do not."""
    free = available_memory(device)
    absent = {
        who: f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        for who in (OURS, *case.peers)
        if (needed := estimate_memory(case, who)) > free
    }
    if OURS in absent:
        raise Skipped(absent[OURS])
    return replace(case, peers=tuple(name for name in case.peers if name not in absent)), absent


def finish_row(
    timer: InterleavedTimer, found: dict[str, Any], peaks: dict[str, int | None], ceilings: dict[str, float]
) -> dict[str, Any]:
    """Complete a row that :func:`prepare` began with times, memory and the work of its case."""
    case, times = timer.built.case, timer.times
    seconds, needed = spread(times[OURS]), work(case)
    peers = {}
    for name, known in found["peers"].items():
        if name in timer.built.calls:
            ratio = spread([theirs / ours for theirs, ours in zip(times[name], times[OURS], strict=True)])
            peers[name] = {**known, "seconds": spread(times[name]), "ratio": ratio, "peak": peaks[name]}
    done = {
        **found,
        "rounds": len(times[OURS]),
        "seconds": seconds,
        "samples_per_second": case.batch / seconds["median"],
        "peak": peaks[OURS],
        **asdict(needed),
        "peers": peers,
    }
    if ceilings:
        done["share_of_matmul"] = needed.flops / seconds["median"] / ceilings[f"matmul {case.dtype}"]
        done["share_of_copy"] = needed.bytes / seconds["median"] / ceilings["copy"]
    return done


def run_case(
    case: Case,
    device: torch.device,
    level: Level,
    ceilings: dict[str, float],
    left: float = float("inf"),
    run: Callable[[InterleavedTimer, int], object] = InterleavedTimer.run,
) -> dict[str, Any]:
    """Check, measure and time one case, with as many rounds as fit into the ``left`` seconds, by ``run``."""
    start = time.perf_counter()
    built, found = prepare(case, device)
    timer = InterleavedTimer(built)
    peaks = timer.peaks()
    most, least = (0.0, 1) if case.tiny else BUDGET[level]
    if device.type == "cuda":
        most *= GPU_SHARE
    run(timer, timer.rounds(min(most, left - (time.perf_counter() - start)), least))
    return finish_row(timer, found, peaks, ceilings)


def run_suite(
    cases: Iterable[Case],
    device: torch.device,
    level: Level,
    *,
    report: Callable[[str, dict[str, Any] | None], object] = lambda _name, _row: None,
    limit: float = float("inf"),
    folder: Path | None = None,
) -> dict[str, Any]:
    """Run cases into a result; a case that fails costs only its own row.

    ``report`` is called with each case's id and ``None`` before it runs, and with its row afterwards. A case starts
    only if similar ones took less than what is left of the ``limit`` in seconds. The result file is written to
    ``folder`` after each case.
    """
    start, cases = time.perf_counter(), list(cases)
    result: dict[str, Any] = {
        "environment": describe_environment(device) | {"level": level},
        "ceilings": measure_ceilings(device, quick=level == "quick", tiny=all(case.tiny for case in cases)),
        "rows": [],
        "skipped": {},
        "failed": {},
        "startup": {},
    }
    if device.type == "cuda":
        result["environment"]["gpu"] = gpu_state(device)  # again: the ceilings have raised the clocks
    took: dict[tuple[str, str], float] = {}
    lost = ""
    for case in cases:
        begun = time.perf_counter()
        left, kind = limit - (begun - start), (case.model, case.mode)
        if lost or left < max(0.0, took.get(kind, max(took.values(), default=0.0))):
            result["skipped"][case.id] = lost or f"would pass the time limit of {limit:.0f} s"
            continue
        report(case.id, None)
        lost = _run_into(result, case, device, left)
        took[kind] = time.perf_counter() - begun
        if folder:
            write_result(result, folder)
        if case.id not in result["skipped"]:
            report(case.id, result["rows"][-1] if result["rows"] else {})
    return result


def _run_into(result: dict[str, Any], case: Case, device: torch.device, left: float) -> str:
    """Run a case and record its row, or why there is none; return why no further case can run, or an empty string."""
    try:
        release(device)
        done = run_case(case, device, result["environment"]["level"], result["ceilings"], left)
    except Skipped as reason:
        result["skipped"][case.id] = str(reason)
    except (BenchmarkError, DeviceLost) as error:
        result["failed"][case.id] = str(error)
    except Exception as error:
        result["failed"][case.id] = describe_error(error)
    else:
        result["rows"].append(done)
        if done["disagreed"]:
            result["failed"][case.id] = "; ".join(done["disagreed"].values())
        return ""
    try:
        recover(device)
    except DeviceLost as error:
        return f"the GPU stopped working in {case.id}: {error}"
    return ""


def run_isolated(
    rows: list[str],
    options: list[str],
    report: Callable[[str, dict[str, Any] | None], object],
    folder: Path | None = None,
) -> dict[str, Any]:
    """Run each row in a process of its own and join the results; each ceiling is the highest of all processes.

    On a machine whose memory has just been used, fresh pages are cheap, which helps models that allocate much. A
    process per row is closer to a user's program. ``options`` are those of ``run``. The result file is written to
    ``folder`` after each row.

    Raises:
        RuntimeError: a process ended without a result.
    """
    joined: dict[str, Any] = {}
    for row in rows:
        report(row, None)
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "benchmarks", "run", "--row", row, "--results", scratch, *options]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            files = list(Path(scratch).glob("*.json"))
            if len(files) != 1:
                raise RuntimeError(f"{row}: no result ({done.returncode}): {done.stderr[-2000:]}")
            found = json.loads(files[0].read_text(encoding="utf-8"))
        joined = joined or {**found, "rows": [], "environment": found["environment"] | {"alone": True}}
        joined["rows"] += found["rows"]
        for key in ("skipped", "failed"):
            joined[key] |= found[key]
        for name, value in found["ceilings"].items():
            joined["ceilings"][name] = max(value, joined["ceilings"].get(name, value))
        if folder:
            write_result(joined, folder)
        report(row, {})
    return joined


def create_and_peer(folder: Path, options: dict[str, Any]) -> tuple[Callable[[], nn.Module], ...]:
    """Return two ways from a weight file to a model: ``create``, and construction followed by ``load_state_dict``.

    Both files have just been written, so both are read from the system's cache.
    """
    model = medzoo.create(STARTUP_MODEL, **options)
    weights, checkpoint = folder / "model.safetensors", folder / "model.pt"
    save_file(model.state_dict(), weights)
    torch.save(model.state_dict(), checkpoint)

    def plain() -> nn.Module:
        built: nn.Module = medzoo.create(STARTUP_MODEL, **options)
        built.load_state_dict(torch.load(checkpoint, weights_only=True))
        return built

    return partial(medzoo.create, STARTUP_MODEL, pretrained=weights, **options), plain


def measure_startup(rounds: int = 7, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return seconds of each way, and ``value``: what the import adds, and create's share of the plain way."""
    with tempfile.TemporaryDirectory() as folder:
        ours, plain = create_and_peer(Path(folder), options or {})
        created = _interleaved({"init + load": plain, "medzoo": ours}, rounds)
    command = [sys.executable, "-c"]
    imported = _interleaved(
        {name: partial(subprocess.run, [*command, code], check=True) for name, code in IMPORTS.items()}, rounds
    )
    added = [ours - torch_alone for torch_alone, ours in zip(*imported.values(), strict=True)]
    share = [ours / plain for plain, ours in zip(*created.values(), strict=True)]
    return {
        "import": {"value": spread(added)["median"], **{name: spread(times) for name, times in imported.items()}},
        "create": {"value": spread(share)["median"], **{name: spread(times) for name, times in created.items()}},
    }


def _interleaved(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time each way once per round, after a round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            times[name].append(timeit.timeit(way, number=1))
    return {name: each[1:] for name, each in times.items()}
