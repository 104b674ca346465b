"""Every model and its hot paths beside their peers: agreement first, then time in turn.

``pytest benchmarks/ --quick`` takes under 3 minutes on two cores, without it under 20. ``--full`` adds torch.compile,
``--results FOLDER`` writes the result file. The row that pytest-benchmark prints is medzoo's own: the peers run between
its rounds, and their results are in ``extra_info``. ``python -m benchmarks run`` measures the same, and prints it as a
table.
"""

from __future__ import annotations

import pytest

from benchmarks.suite import Skipped, finish_row, prepare, row_budget
from benchmarks.timing import InterleavedTimer


def test_case(benchmark, case, device, level, result):
    try:
        built, found = prepare(case, device)
    except Skipped as reason:
        result["skipped"][case.id] = str(reason)
        pytest.skip(str(reason))
    if benchmark.disabled:
        if not found["peers"]:
            pytest.skip(f"no peer to compare with: {found['absent']}")
        benchmark(lambda: None)
        return
    timer = InterleavedTimer(built)
    peaks = timer.peaks()
    rounds = timer.rounds(*row_budget(level, device))
    benchmark.pedantic(timer.time_ours, setup=timer.time_peers, rounds=rounds)
    done = finish_row(timer, found, peaks, result["ceilings"])
    benchmark.extra_info |= {key: value for key, value in done.items() if key not in ("id", "case")}
    benchmark.group = case.model
    result["rows"].append(done)
