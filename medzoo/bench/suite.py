"""Running cases into rows, and rows into a result file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from medzoo.bench.cases import OWN, Case, Level
from medzoo.bench.ceilings import measure_ceilings
from medzoo.bench.contest import OURS, Contest, build
from medzoo.bench.environment import describe_environment, gpu_state, result_name
from medzoo.bench.failures import DeviceLost, describe_error, recover, release
from medzoo.bench.memory import available, estimate
from medzoo.bench.race import Race, differences, spread
from medzoo.bench.work import work
from medzoo.errors import MedzooError

__all__ = ["BenchmarkError", "Skipped", "budget", "prepare", "row", "run_suite", "write_result"]

# Seconds and the least number of rounds for a row.
BUDGET: dict[Level, tuple[float, int]] = {"quick": (3.0, 3), "usual": (10.0, 5), "full": (20.0, 7)}
# A GPU makes as many rounds in this share of the time.
GPU_SHARE = 0.1


class BenchmarkError(MedzooError, RuntimeError):
    """A model and a peer that should agree do not: nothing is timed."""

    exit_code = 7


class Skipped(Exception):
    """A case that this machine cannot run; the message says why."""


def prepare(case: Case, device: torch.device) -> tuple[Contest, dict[str, Any]]:
    """Build a case and check that everyone agrees.

    A peer that disagrees is left out of the row as long as another one, which is not our own model, agrees.

    Returns:
        The contest, and what is known of the row so far; ``"disagreed"`` has a message for each peer left out.

    Raises:
        Skipped: our own model would not fit into the memory.
        BenchmarkError: outputs or gradients differ from those of the peers.
    """
    fits, absent = _fitting(case, device)
    contest = build(fits, device)
    contest.absent |= absent
    peers: dict[str, Any] = {}
    disagreed: dict[str, str] = {}
    for name, difference in differences(contest).items():
        if difference.ok:
            peers[name] = {"difference": difference.output, "gradient_difference": difference.gradient}
            continue
        disagreed[name] = f"expected the outputs of {name}, got a difference of {difference.output:.1e}"
        if difference.gradient is not None:
            disagreed[name] += f" and of {difference.gradient:.1e} in a gradient"
    if disagreed and not peers.keys() - OWN:
        raise BenchmarkError(f"{case.id}: {'; '.join(disagreed.values())}. Nothing was timed.")
    for name, reason in disagreed.items():
        contest.drop(name, reason)
    found = {"case": asdict(case), "id": case.id, "peers": peers, "absent": contest.absent, "disagreed": disagreed}
    return contest, found


def _fitting(case: Case, device: torch.device) -> tuple[Case, dict[str, str]]:
    """Return the case with the peers that fit into memory, and why the others do not."""
    free = available(device)
    absent = {
        who: f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        for who in (OURS, *case.peers)
        if (needed := estimate(case, who)) > free
    }
    if OURS in absent:
        raise Skipped(absent[OURS])
    return replace(case, peers=tuple(name for name in case.peers if name not in absent)), absent


def budget(level: Level, device: torch.device) -> tuple[float, int]:
    """Return the seconds and the least number of rounds for a row."""
    seconds, least = BUDGET[level]
    return (seconds * GPU_SHARE, least) if device.type == "cuda" else (seconds, least)


def row(race: Race, found: dict[str, Any], peaks: dict[str, int | None], ceilings: dict[str, float]) -> dict[str, Any]:
    """Complete a row from the times of a race."""
    case = race.contest.case
    seconds, todo = spread(race.times[OURS]), work(case)
    peers = {
        name: {**known, "seconds": spread(race.times[name]), "ratio": race.ratios(name), "peak": peaks[name]}
        for name, known in found["peers"].items()
        if name in race.contest.calls
    }
    done = {
        **found,
        "rounds": len(race.times[OURS]),
        "seconds": seconds,
        "samples_per_second": case.batch / seconds["median"],
        "peak": peaks[OURS],
        "flops": todo.flops,
        "bytes": todo.bytes,
        "peers": peers,
    }
    if ceilings:
        done["share_of_matmul"] = todo.flops / seconds["median"] / ceilings[f"matmul {case.dtype}"]
        done["share_of_copy"] = todo.bytes / seconds["median"] / ceilings["copy"]
    return done


def run_case(
    case: Case, device: torch.device, level: Level, ceilings: dict[str, float], left: float = float("inf")
) -> dict[str, Any]:
    """Check, measure and time one case, with as many rounds as fit into the ``left`` seconds."""
    start = time.perf_counter()
    contest, found = prepare(case, device)
    race = Race(contest)
    peaks = race.peaks()
    most, least = (0.0, 1) if case.tiny else budget(level, device)
    race.run(race.rounds(min(most, left - (time.perf_counter() - start)), least))
    return row(race, found, peaks, ceilings)


def run_suite(
    cases: Iterable[Case],
    device: torch.device,
    level: Level,
    *,
    report: Callable[[str, dict[str, Any] | None], None] = lambda _name, _row: None,
    limit: float = float("inf"),
    folder: Path | None = None,
) -> dict[str, Any]:
    """Run cases into a result; one that fails costs its own row only.

    Args:
        cases: what to run.
        device: where.
        level: how long each row may take.
        report: called with each case's id and ``None`` before it runs, and with its row after.
        limit: seconds; a case begins only if those like it took less than what is left.
        folder: where the result file is written, again after each case.
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
    """Run a case and record its row, or why there is none; return why no further case can run, if so."""
    try:
        try:
            release(device)
            done = run_case(case, device, result["environment"]["level"], result["ceilings"], left)
        except Skipped as reason:
            result["skipped"][case.id] = str(reason)
        except BenchmarkError as error:
            result["failed"][case.id] = str(error)
        except DeviceLost:
            raise
        except Exception as error:
            result["failed"][case.id] = describe_error(error)
        else:
            result["rows"].append(done)
            if done["disagreed"]:
                result["failed"][case.id] = "; ".join(done["disagreed"].values())
            return ""
        recover(device)
    except DeviceLost as error:
        result["failed"].setdefault(case.id, str(error))
        return f"the GPU stopped working in {case.id}: {error}"
    return ""


def write_result(result: dict[str, Any], folder: Path) -> Path:
    """Write a result under its name, in place of an older one only when it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / result_name(result["environment"])
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(file)
    return file
