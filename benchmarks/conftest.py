"""Options of ``pytest benchmarks/``, and the result file of a run."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from medzoo.bench.cases import select, tiny
from medzoo.bench.ceilings import measure_ceilings
from medzoo.bench.environment import describe_environment
from medzoo.bench.suite import write_result

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RESULT = pytest.StashKey[dict]()


def pytest_addoption(parser):
    group = parser.getgroup("medzoo")
    group.addoption("--quick", action="store_const", dest="level", const="quick", default="usual")
    group.addoption("--full", action="store_const", dest="level", const="full", help="torch.compile with freezing too")
    group.addoption("--results", type=Path, help="folder to write the result file to")


def pytest_configure(config):
    config.stash[RESULT] = {"environment": {}, "ceilings": {}, "rows": [], "skipped": {}, "failed": {}, "startup": {}}


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames and metafunc.function.__name__ == "test_case":
        config = metafunc.config
        cases = select(level=config.getoption("level"), device=DEVICE.type)
        if config.getoption("benchmark_disable"):
            # Only equality is checked then.
            cases = tiny(case for case in cases if case.peers)
        metafunc.parametrize("case", cases, ids=lambda case: case.id)


def pytest_collection_modifyitems(config, items):
    if config.getoption("level") == "quick":
        for item in items:
            if item.path.name == "test_throughput.py":
                item.add_marker(pytest.mark.skip(reason="--quick leaves out reading, which has no peer"))


def pytest_sessionfinish(session):
    result, folder = session.config.stash[RESULT], session.config.getoption("results")
    if folder and result["rows"]:
        print(f"\n{write_result(result, folder)}")


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        yield


@pytest.fixture(scope="session")
def device():
    return DEVICE


@pytest.fixture(scope="session")
def level(request):
    return request.config.getoption("level")


@pytest.fixture(scope="session")
def result(request, device, level):
    """The result that rows are added to; it opens with the machine and its ceilings, measured now."""
    result = request.config.stash[RESULT]
    if not request.config.getoption("benchmark_disable"):
        result["environment"] = describe_environment(device) | {"level": level}
        result["ceilings"] = measure_ceilings(device, quick=level == "quick")
    return result
