"""Running cases into rows, and rows into a result file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from medzoo.bench.cases import Case, Level
from medzoo.bench.ceilings import measure_ceilings
from medzoo.bench.contest import OURS, Contest, build
from medzoo.bench.environment import describe_environment, result_name
from medzoo.bench.memory import available, estimate
from medzoo.bench.race import Race, differences, spread
from medzoo.bench.work import work
from medzoo.errors import MedzooError

__all__ = ["BenchmarkError", "Skipped", "budget", "prepare", "row", "run_suite", "write_result"]

# Seconds and the least number of rounds for a row.
BUDGET: dict[Level, tuple[float, int]] = {"quick": (3.0, 3), "usual": (10.0, 5), "full": (20.0, 7)}
# A GPU makes as many rounds in this share of the time.
GPU_SHARE = 0.2


class BenchmarkError(MedzooError, RuntimeError):
    """A model and a peer that should agree do not: nothing is timed."""

    exit_code = 7


class Skipped(Exception):
    """A case that this machine cannot run; the message says why."""


def prepare(case: Case, device: torch.device) -> tuple[Contest, dict[str, Any]]:
    """Build a case and check that everyone agrees.

    Returns:
        The contest, and what is known of the row so far.

    Raises:
        Skipped: our own model would not fit into the memory.
        BenchmarkError: a peer's outputs or gradients are not ours.
    """
    fits, absent = _fitting(case, device)
    contest = build(fits, device)
    absent |= contest.absent
    found: dict[str, Any] = {"case": asdict(case), "id": case.id, "peers": {}, "absent": absent}
    for name, difference in differences(contest).items():
        if not difference.ok:
            raise BenchmarkError(
                f"{case.id}: expected the outputs of {name}, got a difference of {difference.output:.1e}"
                + (f" and of {difference.gradient:.1e} in a gradient" if difference.gradient is not None else "")
                + ". Nothing was timed."
            )
        found["peers"][name] = {"difference": difference.output, "gradient_difference": difference.gradient}
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


def run_case(case: Case, device: torch.device, level: Level, ceilings: dict[str, float]) -> dict[str, Any]:
    """Check, measure and time one case."""
    contest, found = prepare(case, device)
    race = Race(contest)
    peaks = race.peaks()
    race.run(race.rounds(*budget(level, device)))
    return row(race, found, peaks, ceilings)


def run_suite(
    cases: Iterable[Case],
    device: torch.device,
    level: Level,
    *,
    tell: Callable[[str, dict[str, Any] | None], None] = lambda _name, _row: None,
    limit: float = float("inf"),
) -> dict[str, Any]:
    """Run cases into a result.

    Args:
        cases: what to run.
        device: where.
        level: how long each row may take.
        tell: hears of each case before it, and of its row after.
        limit: seconds after which no further case begins.
    """
    start = time.perf_counter()
    result: dict[str, Any] = {
        "environment": describe_environment(device) | {"level": level},
        "ceilings": measure_ceilings(device, quick=level == "quick"),
        "rows": [],
        "skipped": {},
        "failed": {},
        "startup": {},
    }
    for case in cases:
        if time.perf_counter() - start > limit:
            result["skipped"][case.id] = f"the time limit of {limit:.0f} s was reached"
            continue
        tell(case.id, None)
        try:
            done = run_case(case, device, level, result["ceilings"])
        except Skipped as reason:
            result["skipped"][case.id] = str(reason)
            continue
        except BenchmarkError as error:
            # The other rows are still worth having; whoever asked for them is told at the end.
            result["failed"][case.id] = str(error)
            continue
        result["rows"].append(done)
        tell(case.id, done)
    return result


def write_result(result: dict[str, Any], folder: Path) -> Path:
    """Write a result under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / result_name(result["environment"])
    file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return file
