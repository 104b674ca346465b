"""A fetch in processes that are killed, run at once, have a full disk, may not write, or must not connect.

The numbers are those of docs/reliability.md.
"""

from __future__ import annotations

import os
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback, client_environment
from loopback_faults import Fault, hang, slow, stall
from nursery import Child, Nursery
from records import FILE, PATHS, REPO, REVISION, digest_of, kept, some_bytes, weight_bytes

pytest_plugins = ["hub_fixtures"]

LARGE = some_bytes(12 << 20)  # more than the Hub's client writes at a time, so that a part of it is on the disk
SMALL = some_bytes(256 << 10)
METHODS = {"hub": ("HEAD", "GET"), "url": ("GET",)}
POINTS: list[tuple[str, Fault]] = [
    ("HEAD", hang()),
    ("GET", hang()),
    *(
        ("GET", stall(after))
        for after in (0, 1, 4 << 20, 10 << 20, (10 << 20) + 1, 11 << 20, len(LARGE) - 1, len(LARGE))
    ),
]


@pytest.fixture(scope="module")
def nursery():
    with Nursery() as started:
        yield started


class Machine:
    """Where the children of one test run: a server, folders of their own, and a file that they fetch."""

    def __init__(self, hub: Loopback, place: str, nursery: Nursery, folder: Path) -> None:
        self.hub, self.place, self.nursery, self.folder = hub, place, nursery, folder
        self.environment = client_environment(hub, folder)
        self.outputs = (folder / f"child{number}.json" for number in count())

    def publish(self, data: bytes, name: str = REPO) -> dict[str, Any]:
        """Publish a file, and return what a child needs to know to fetch it."""
        known = {"digest": digest_of(data), "size": len(data)}
        if self.place == "url":
            return {"url": self.hub.put(f"/files/{name}", data), **known}
        self.hub.add(name, {FILE: data}, revision=REVISION)
        return {"repo": name, **known}

    def start(self, job: dict[str, Any], **how: Any) -> Child:
        return self.nursery.start(self.environment, next(self.outputs), job, **how)

    def fetch(self, job: dict[str, Any], **how: Any) -> dict[str, Any]:
        return self.start(job, **how).result()

    def kill(self, job: dict[str, Any]) -> int:
        """Start a child, kill it when the server has stalled on it, and return its status."""
        child = self.start(job)
        assert self.hub.stalled.acquire(timeout=60)
        os.kill(child.pid, signal.SIGKILL)
        return child.wait()


@pytest.fixture(params=["hub", "url"])
def machine(hub, request, nursery, tmp_path):
    return Machine(hub, request.param, nursery, tmp_path)


def whole(folder: Path, *files: bytes) -> bool:
    """Whether the caches keep these files and no other as large, whole or in part, outside of what is temporary."""
    final = [p for part in ("hub/**/blobs/*", "files/**/*") for p in folder.rglob(part) if p.is_file()]
    found = {p.read_bytes() for p in final if p.suffix == "" and not p.name.startswith((".", "tmp"))}
    return found == set(files)


def test_28_offline_and_empty_no_socket_connects(hub, machine):
    job = machine.publish(SMALL)
    machine.environment["HF_HUB_OFFLINE"] = "1"
    said = machine.fetch(job)
    assert said["error"] == "WeightsUnavailable"
    assert "HF_HUB_OFFLINE" in said["message"]
    assert said["connections"] == []
    assert not hub.requests


def test_25_a_model_with_cached_weights_is_created_without_a_connection(hub, machine):
    job = machine.publish(weight_bytes())
    first = machine.fetch(job)
    assert first["connections"]
    asked = len(hub.requests)
    assert machine.fetch(job, create=True) == {**first, "connections": []}
    assert len(hub.requests) == asked


def test_40_a_killed_fetch_does_no_harm(hub, machine):
    job = machine.publish(LARGE)
    for method, fault in POINTS:
        if method in METHODS[machine.place]:
            hub.fail(PATHS[machine.place], fault, times=1, method=method)
            assert machine.kill(job) in (-signal.SIGKILL, 0)
            said = machine.fetch(job)
            assert said["digest"] == job["digest"]
            assert whole(machine.folder, LARGE)
            Path(said["path"]).resolve().unlink()
            Path(said["path"]).unlink(missing_ok=True)


def test_40_what_killed_fetches_left_stays_out_of_the_way(hub, machine):
    job = machine.publish(LARGE)
    for _ in range(2):
        hub.fail(PATHS[machine.place], stall(11 << 20), times=1)
        assert machine.kill(job) == -signal.SIGKILL
    assert machine.fetch(job)["digest"] == job["digest"]
    asked = len(hub.requests)
    assert machine.fetch(job)["connections"] == []
    assert len(hub.requests) == asked


def fetch_at_once(machine: Machine, *, processes: int, rounds: int, flock: bool) -> None:
    published = []
    for number in range(rounds):
        published.append(SMALL + bytes([number]))
        job = machine.publish(published[-1], name=f"owner/repo{number}")
        machine.hub.fail(f"*repo{number}*", slow(len(SMALL) // 4, 0.05))
        children = [machine.start(job, flock=flock) for _ in range(processes)]
        assert [child.result().get("digest") for child in children] == [job["digest"]] * processes
        assert whole(machine.folder, *published)
    # No part of a file is left anywhere, not even as a temporary one.
    assert {len(found) for found in kept(machine.folder) if len(found) > 1000} == {len(SMALL) + 1}


@pytest.mark.parametrize("flock", [True, False])
def test_41_two_processes_fetch_at_once(machine, flock):
    fetch_at_once(machine, processes=2, rounds=1, flock=flock)


@pytest.mark.slow
@pytest.mark.parametrize("flock", [True, False])
def test_41_eight_processes_fetch_at_once_five_times(machine, flock):
    fetch_at_once(machine, processes=8, rounds=5, flock=flock)


def heal_at_once(machine: Machine, *, processes: int, rounds: int) -> None:
    job = machine.publish(SMALL)
    path = Path(machine.fetch(job)["path"])
    machine.hub.fail(PATHS[machine.place], slow(len(SMALL) // 4, 0.02))
    for _ in range(rounds):
        path.resolve().write_bytes(SMALL[:-1])
        children = [machine.start(job) for _ in range(processes)]
        said = [child.result() for child in children]
        assert [one.get("digest") or one for one in said] == [job["digest"]] * processes


def test_41_two_processes_heal_a_file_at_once(machine):
    heal_at_once(machine, processes=2, rounds=2)


@pytest.mark.slow
def test_41_eight_processes_heal_a_file_at_once_five_times(machine):
    heal_at_once(machine, processes=8, rounds=5)


def test_42_a_full_disk_is_told_with_what_is_needed_and_free(machine):
    job = machine.publish(SMALL)
    said = machine.fetch(job, limit=64 << 10)
    assert said["error"] == "WeightsUnavailable"
    assert str(len(SMALL)) in said["message"].replace(",", "").replace(" ", "").replace("_", "")
    assert "free" in said["message"]
    assert str(machine.folder) in said["message"]
    assert not [found for found in kept(machine.folder) if len(found) > 1000]
    assert machine.fetch(job)["digest"] == job["digest"]
    assert machine.fetch(job, limit=64 << 10)["digest"] == job["digest"]


def test_43_a_folder_that_may_not_be_written_is_read_or_named(machine):
    cached, new = machine.publish(SMALL), machine.publish(SMALL[::-1], name="owner/new")
    first = machine.fetch(cached)
    home = machine.folder / ("hf" if machine.place == "hub" else "medzoo")
    folders = [home, *(path for path in home.rglob("*") if path.is_dir() and not path.is_symlink())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        read = machine.fetch(cached, powerless=True)
        said = machine.fetch(new, powerless=True)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert read == {**first, "connections": []}
    assert said["error"] == "WeightsUnavailable"
    assert str(home) in said["message"]
    assert ("HF_HOME" if machine.place == "hub" else "MEDZOO_HOME") in said["message"]
    assert machine.fetch(new)["digest"] == new["digest"]
