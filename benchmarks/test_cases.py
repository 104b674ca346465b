"""Every model and its hot paths beside their peers: equality first, then time in turn.

``pytest benchmarks/ --quick`` takes under 3 minutes on two cores, without it under 20; ``--full`` adds torch.compile,
``--results FOLDER`` writes the result file. The row that pytest-benchmark prints is ours alone: the peers run between
its rounds, and what came of them is in ``extra_info``. ``medzoo bench`` measures the same, and prints it as a table.
"""

from __future__ import annotations

import pytest

from medzoo.bench.race import Race
from medzoo.bench.suite import Skipped, budget, prepare, row


def test_case(benchmark, case, device, level, result):
    try:
        contest, found = prepare(case, device)
    except Skipped as reason:
        result["skipped"][case.id] = str(reason)
        pytest.skip(str(reason))
    if benchmark.disabled:
        if not found["peers"]:
            pytest.skip(f"nobody to compare with: {found['absent']}")
        benchmark(lambda: None)
        return
    race = Race(contest)
    peaks = race.peaks()
    benchmark.pedantic(race.ours, setup=race.peers, rounds=race.rounds(*budget(level, device)))
    done = row(race, found, peaks, result["ceilings"])
    benchmark.extra_info |= {key: value for key, value in done.items() if key not in ("id", "case")}
    benchmark.group = case.model
    result["rows"].append(done)
