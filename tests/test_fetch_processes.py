"""Downloads in processes that are killed, run at once, have a full disk, may not write, or must not connect.

The numbers are those of docs/reliability.md.
"""

from __future__ import annotations

import os
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fork_server import Child, ForkServer
from loopback import Loopback, client_environment
from loopback_faults import Fault, hang, slow, stall
from records import FILE, PATHS, REPO, REVISION, contents, digest_of, some_bytes, weight_bytes

pytest_plugins = ["hub_fixtures"]

LARGE = some_bytes(12 << 20)  # more than the Hub's client writes at a time, so that a part of it is on disk
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
def fork_server():
    with ForkServer() as started:
        yield started


class Machine:
    """The environment of the child processes of a test: a server, their own folders, and a file to download."""

    def __init__(self, hub: Loopback, place: str, fork_server: ForkServer, folder: Path) -> None:
        self.hub, self.place, self.fork_server, self.folder = hub, place, fork_server, folder
        self.environment = client_environment(hub, folder)
        self.outputs = (folder / f"child{number}.json" for number in count())

    def publish(self, data: bytes, name: str = REPO) -> dict[str, Any]:
        """Publish a file, and return the job that downloads it."""
        known = {"digest": digest_of(data), "size": len(data)}
        if self.place == "url":
            return {"url": self.hub.put(f"/files/{name}", data), **known}
        self.hub.add(name, {FILE: data}, revision=REVISION)
        return {"repo": name, **known}

    def start(self, job: dict[str, Any], **how: Any) -> Child:
        return self.fork_server.start(self.environment, next(self.outputs), job, **how)

    def fetch(self, job: dict[str, Any], **how: Any) -> dict[str, Any]:
        return self.start(job, **how).result()

    def kill(self, job: dict[str, Any]) -> int:
        """Start a child, kill it once the server has stalled on it, and return its exit status."""
        child = self.start(job)
        assert self.hub.stalled.acquire(timeout=60)
        os.kill(child.pid, signal.SIGKILL)
        return child.wait()


@pytest.fixture(params=["hub", "url"])
def machine(hub, request, fork_server, tmp_path):
    return Machine(hub, request.param, fork_server, tmp_path)


def holds_only(folder: Path, *files: bytes) -> bool:
    """Whether the caches contain exactly these files, apart from temporary ones."""
    final = [p for part in ("hub/**/blobs/*", "files/**/*") for p in folder.rglob(part) if p.is_file()]
    found = {p.read_bytes() for p in final if p.suffix == "" and not p.name.startswith((".", "tmp"))}
    return found == set(files)


def test_28_offline_with_an_empty_cache_no_socket_connects(hub, machine):
    job = machine.publish(SMALL)
    machine.environment["HF_HUB_OFFLINE"] = "1"
    result = machine.fetch(job)
    assert result["error"] == "WeightsUnavailable"
    assert "HF_HUB_OFFLINE" in result["message"]
    assert result["connections"] == []
    assert not hub.requests


def test_25_a_model_with_cached_weights_is_created_without_a_connection(hub, machine):
    job = machine.publish(weight_bytes())
    first = machine.fetch(job)
    assert first["connections"]
    asked = len(hub.requests)
    assert machine.fetch(job, create=True) == {**first, "connections": []}
    assert len(hub.requests) == asked


@pytest.mark.slow
def test_40_a_killed_download_does_no_harm(hub, machine):
    job = machine.publish(LARGE)
    for method, fault in POINTS:
        if method in METHODS[machine.place]:
            hub.fail(PATHS[machine.place], fault, times=1, method=method)
            assert machine.kill(job) in (-signal.SIGKILL, 0)
            result = machine.fetch(job)
            assert result["digest"] == job["digest"]
            assert holds_only(machine.folder, LARGE)
            Path(result["path"]).resolve().unlink()
            Path(result["path"]).unlink(missing_ok=True)


def test_40_partial_files_of_killed_downloads_are_ignored(hub, machine):
    job = machine.publish(LARGE)
    for _ in range(2):
        hub.fail(PATHS[machine.place], stall(11 << 20), times=1)
        assert machine.kill(job) == -signal.SIGKILL
    assert machine.fetch(job)["digest"] == job["digest"]
    asked = len(hub.requests)
    assert machine.fetch(job)["connections"] == []
    assert len(hub.requests) == asked


def download_at_once(machine: Machine, *, processes: int, rounds: int, flock: bool) -> None:
    published = []
    for number in range(rounds):
        published.append(SMALL + bytes([number]))
        job = machine.publish(published[-1], name=f"owner/repo{number}")
        machine.hub.fail(f"*repo{number}*", slow(len(SMALL) // 4, 0.05))
        children = [machine.start(job, flock=flock) for _ in range(processes)]
        assert [child.result().get("digest") for child in children] == [job["digest"]] * processes
        assert holds_only(machine.folder, *published)
    # No partial file is left anywhere, not even as a temporary one.
    assert {len(found) for found in contents(machine.folder) if len(found) > 1000} == {len(SMALL) + 1}


@pytest.mark.parametrize("flock", [True, False])
def test_41_two_processes_download_at_once(machine, flock):
    download_at_once(machine, processes=2, rounds=1, flock=flock)


@pytest.mark.slow
@pytest.mark.parametrize("flock", [True, False])
def test_41_eight_processes_download_at_once_five_times(machine, flock):
    download_at_once(machine, processes=8, rounds=5, flock=flock)


def repair_at_once(machine: Machine, *, processes: int, rounds: int) -> None:
    job = machine.publish(SMALL)
    path = Path(machine.fetch(job)["path"])
    machine.hub.fail(PATHS[machine.place], slow(len(SMALL) // 4, 0.02))
    for _ in range(rounds):
        path.resolve().write_bytes(SMALL[:-1])
        children = [machine.start(job) for _ in range(processes)]
        result = [child.result() for child in children]
        assert [one.get("digest") or one for one in result] == [job["digest"]] * processes


def test_41_two_processes_repair_a_file_at_once(machine):
    repair_at_once(machine, processes=2, rounds=2)


@pytest.mark.slow
def test_41_eight_processes_repair_a_file_at_once_five_times(machine):
    repair_at_once(machine, processes=8, rounds=5)


def test_42_a_full_disk_is_an_error_with_the_needed_and_free_bytes(machine):
    job = machine.publish(SMALL)
    result = machine.fetch(job, limit=64 << 10)
    assert result["error"] == "WeightsUnavailable"
    assert str(len(SMALL)) in result["message"].replace(",", "").replace(" ", "").replace("_", "")
    assert "free" in result["message"]
    assert str(machine.folder) in result["message"]
    assert not [found for found in contents(machine.folder) if len(found) > 1000]
    assert machine.fetch(job)["digest"] == job["digest"]
    assert machine.fetch(job, limit=64 << 10)["digest"] == job["digest"]


def test_43_a_read_only_folder_is_read_or_named(machine):
    cached, new = machine.publish(SMALL), machine.publish(SMALL[::-1], name="owner/new")
    first = machine.fetch(cached)
    home = machine.folder / ("hf" if machine.place == "hub" else "medzoo")
    folders = [home, *(path for path in home.rglob("*") if path.is_dir() and not path.is_symlink())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        read = machine.fetch(cached, powerless=True)
        result = machine.fetch(new, powerless=True)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert read == {**first, "connections": []}
    assert result["error"] == "WeightsUnavailable"
    assert str(home) in result["message"]
    assert ("HF_HOME" if machine.place == "hub" else "MEDZOO_HOME") in result["message"]
    assert machine.fetch(new)["digest"] == new["digest"]
