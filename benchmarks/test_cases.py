"""Every model and its hot paths beside their peers: agreement first, then time in turn.

``pytest benchmarks/ --quick`` takes under 3 minutes on two cores, without it under 20. ``--full`` adds torch.compile,
``--results FOLDER`` writes the result file. The row that pytest-benchmark prints is medzoo's own: the peers run between
its rounds, and their results are in ``extra_info``. ``python -m benchmarks run`` prints the same as a table.
"""

from __future__ import annotations

import pytest

from benchmarks.conftest import DEVICE
from benchmarks.suite import Skipped, prepare, run_case


def test_case(benchmark, case, result):
    def run(timer, rounds):
        benchmark.pedantic(timer.time_ours, setup=timer.time_peers, rounds=rounds)

    try:
        if benchmark.disabled:
            _, found = prepare(case, DEVICE)
            if not found["peers"]:
                pytest.skip(f"no peer to compare with: {found['absent']}")
            benchmark(lambda: None)
            return
        done = run_case(case, DEVICE, result["environment"]["level"], result["ceilings"], run=run)
    except Skipped as reason:
        result["skipped"][case.id] = str(reason)
        pytest.skip(str(reason))
    benchmark.extra_info |= {key: value for key, value in done.items() if key not in ("id", "case")}
    benchmark.group = case.model
    result["rows"].append(done)
