"""SIGKILL anywhere: a resumed training has the weights of one that was never stopped. Minutes on 2 cores."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from training_children import STEPS, TrainingServer

pytestmark = pytest.mark.slow

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two threads": {"train": {"threads": 2}},
    "accumulate": {"train": {"accumulate": 3, "checkpoint_minutes": 1e-9}, "optimizer": {"clip": 0.1}},
    "ema": {"train": {"ema": 0.9}},
    "stop": {"train": {"epochs": 6, "stop_after": 2, "batchnorm": "frozen"}, "optimizer": {"lr": 1e-30}},
    "frozen": {"train": {"freeze": "encoder"}},
    "sgd with warm-up": {"optimizer": {"kind": "sgd"}, "schedule": {"kind": "exponential", "gamma": 0.9}},
}
EPOCHS = 3
RANDOM = random.Random(97)


@pytest.fixture(scope="module")
def children():
    with TrainingServer() as started:
        yield started


@pytest.fixture(scope="module")
def whole(children, tmp_path_factory):
    """Return the results of trainings that are not stopped."""
    results: dict[str, dict[str, Any]] = {}

    def get(name: str) -> dict[str, Any]:
        if name not in results:
            folder = tmp_path_factory.mktemp("whole") / "run"
            results[name] = children.train(folder, VARIANTS[name]).result()
        return results[name]

    return get


def check(children: TrainingServer, folder: Path, name: str, expected: dict[str, Any], *jobs: dict[str, Any]) -> None:
    """Kill a training once for each job, finish it, and compare."""
    for job in jobs:
        assert children.train(folder, VARIANTS[name], **job).wait() == -9, job
    found = children.train(folder, VARIANTS[name]).result()
    assert found["digest"] == expected["digest"]
    assert found["step"] == expected["step"]
    # Each validation that is repeated has the same result.
    assert expected["losses"][len(expected["losses"]) - len(found["losses"]) :] == found["losses"]


@pytest.mark.parametrize("step", RANDOM.sample(range(1, EPOCHS * STEPS + 1), 20))
@pytest.mark.parametrize("name", ["plain", "two threads"])
def test_fault_97_killed_at_a_random_step(children, whole, tmp_path, name, step):
    check(children, tmp_path / "run", name, whole(name), {"kill": ("batch", step)})


SPECIAL = {
    "before anything was saved": {"kill": ("start", 1)},
    "the last batch of an epoch": {"kill": ("batch", STEPS)},
    "inside the first validation": {"kill": ("validation", 1)},
    "inside the last validation": {"kill": ("validation", 2 * EPOCHS)},
    "the end of an epoch": {"kill": ("epoch_end", 1)},
    "the start of an epoch": {"kill": ("epoch_start", 1)},
    "the first batch of an epoch": {"kill": ("start", STEPS + 1)},
    "the end": {"kill": ("train_end", 0)},
    "in the middle of the first checkpoint": {"write": ("middle", 1)},
    "in the middle of a checkpoint": {"write": ("middle", 4)},
    "before the rename of a checkpoint": {"write": ("before_rename", 4)},
    "after the rename of a checkpoint": {"write": ("after_rename", 4)},
}


@pytest.mark.parametrize("place", SPECIAL)
def test_fault_97_killed_at_a_special_place(children, whole, tmp_path, place):
    check(children, tmp_path / "run", "plain", whole("plain"), SPECIAL[place])


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("plain", "two threads")])
def test_fault_97_killed_with(children, whole, tmp_path, name):
    for place in (("batch", 5), ("batch", 12), ("validation", 3), ("train_end", 0)):
        check(children, tmp_path / f"{place[0]}{place[1]}", name, whole(name), {"kill": place})


def test_variants_are_what_their_names_say(whole):
    assert len({whole(name)["digest"] for name in VARIANTS if name != "two threads"}) == len(VARIANTS) - 1
    assert whole("accumulate")["step"] == 3 * EPOCHS
    assert whole("stop")["step"] == 3 * STEPS


def test_fault_97_killed_twice_and_with_other_workers_between(children, whole, tmp_path):
    folder, expected = tmp_path / "run", whole("plain")
    for workers, kill in ((0, ("batch", 7)), (4, ("batch", 8)), (0, ("batch", 3))):
        sections = {"train": {"workers": workers}}
        assert children.train(folder, sections, kill=kill).wait() == -9
    found = children.train(folder, {"train": {"workers": 4}}).result()
    assert found["digest"] == expected["digest"]
    assert found["step"] == expected["step"]
