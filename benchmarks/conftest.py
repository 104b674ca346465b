"""Options of ``pytest benchmarks/``, and the result file of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.cases import select, tiny
from benchmarks.environment import describe_environment, measure_ceilings
from benchmarks.results import write_result

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RESULT = pytest.StashKey[dict]()


def pytest_addoption(parser):
    group = parser.getgroup("medzoo")
    group.addoption("--quick", action="store_const", dest="level", const="quick", default="usual")
    group.addoption("--full", action="store_const", dest="level", const="full", help="torch.compile with freezing too")
    group.addoption("--results", type=Path, help="folder to write the result file to")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Keep everything in one process: another would take the time that is measured."""
    if hasattr(config.option, "numprocesses"):
        config.option.numprocesses, config.option.dist = 0, "no"


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames and metafunc.function.__name__ == "test_case":
        config = metafunc.config
        cases = select(level=config.getoption("level"), device=DEVICE.type)
        if config.getoption("benchmark_disable"):
            # Only agreement is checked then.
            cases = tiny(case for case in cases if case.peers)
        metafunc.parametrize("case", cases, ids=lambda case: case.id)


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # the peers' own; the suite's tests are strict
        if config.getoption("level") == "quick" and "sources" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="--quick leaves out reading, which has no peer"))


def pytest_sessionfinish(session):
    result, folder = session.config.stash.get(RESULT, None), session.config.getoption("results")
    if folder and result and result["rows"]:
        print(f"\n{write_result(result, folder)}")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def result(request):
    """Return the result that rows are added to; the machine and its ceilings are measured first."""
    result = {"environment": {}, "ceilings": {}, "rows": [], "skipped": {}, "failed": {}, "startup": {}}
    request.config.stash[RESULT], level = result, request.config.getoption("level")
    if not request.config.getoption("benchmark_disable"):
        result["environment"] = describe_environment(DEVICE) | {"level": level}
        result["ceilings"] = measure_ceilings(DEVICE, quick=level == "quick")
    return result
