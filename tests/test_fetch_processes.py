"""A fetch in processes that are killed, run at once, have a full disk, may not write, or must not connect.

The numbers are those of docs/reliability.md.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from loopback import client_environment
from loopback_faults import Fault, hang, slow, stall
from nursery import Nursery
from records import FILE, PATHS, REPO, REVISION, digest_of, kept, some_bytes, weight_bytes

pytest_plugins = ["hub_fixtures"]

LARGE = some_bytes(12 << 20)  # more than the Hub's client writes at a time, so that a part of it is on the disk
SMALL = some_bytes(256 << 10)
EVERYWHERE = pytest.mark.parametrize("place", ["hub", "url"])
POINTS: list[tuple[str, Fault]] = [
    ("HEAD", hang()),
    ("GET", hang()),
    *(
        ("GET", stall(after))
        for after in (0, 1, 4 << 20, 10 << 20, (10 << 20) + 1, 11 << 20, len(LARGE) - 1, len(LARGE))
    ),
]


@pytest.fixture
def nursery(hub, tmp_path):
    with Nursery(client_environment(hub, tmp_path), tmp_path) as started:
        yield started


def publish(hub, place: str, data: bytes, name: str = REPO) -> tuple[str, str, str, int]:
    """Publish a file, and return what a child needs to know to fetch it."""
    if place == "hub":
        hub.add(name, {FILE: data}, revision=REVISION)
        return place, name, digest_of(data), len(data)
    return place, hub.put(f"/files/{name}", data), digest_of(data), len(data)


def whole(folder: Path, *files: bytes) -> bool:
    """Whether the caches keep these files and no other as large, whole or in part, outside of what is temporary."""
    final = [p for part in ("hub/**/blobs/*", "files/**/*") for p in folder.rglob(part) if p.is_file()]
    found = {p.read_bytes() for p in final if p.suffix == "" and not p.name.startswith((".", "tmp"))}
    return found == set(files)


@EVERYWHERE
def test_28_offline_and_empty_no_socket_connects(hub, place, tmp_path):
    job = publish(hub, place, SMALL)
    with Nursery(client_environment(hub, tmp_path) | {"HF_HUB_OFFLINE": "1"}, tmp_path) as nursery:
        said = nursery.start(*job).result()
    assert said["error"] == "WeightsUnavailable"
    assert "HF_HUB_OFFLINE" in said["message"]
    assert said["connections"] == []
    assert not hub.requests


@EVERYWHERE
def test_25_a_model_with_cached_weights_is_created_without_a_connection(hub, place, nursery):
    job = publish(hub, place, weight_bytes())
    first = nursery.start(*job).result()
    assert first["connections"]
    asked = len(hub.requests)
    second = nursery.start(*job, create=True).result()
    assert second == {**first, "connections": []}
    assert len(hub.requests) == asked


@EVERYWHERE
def test_40_a_killed_fetch_does_no_harm(hub, place, nursery, tmp_path):
    job = publish(hub, place, LARGE)
    for method, fault in POINTS:
        if place == "url" and method == "HEAD":
            continue
        hub.fail(PATHS[place], fault, times=1, method=method)
        child = nursery.start(*job)
        assert hub.stalled.acquire(timeout=30)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() in (-signal.SIGKILL, 0)
        said = nursery.start(*job).result()
        assert said["digest"] == job[2]
        assert whole(tmp_path, LARGE)
        Path(said["path"]).resolve().unlink()
        Path(said["path"]).unlink(missing_ok=True)


@EVERYWHERE
def test_40_what_a_killed_fetch_left_stays_out_of_the_way(hub, place, nursery, tmp_path):
    job = publish(hub, place, LARGE)
    for _ in range(3):
        hub.fail(PATHS[place], stall(11 << 20), times=1)
        child = nursery.start(*job)
        assert hub.stalled.acquire(timeout=30)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert nursery.start(*job).result()["digest"] == job[2]
    asked = len(hub.requests)
    assert nursery.start(*job).result()["connections"] == []
    assert len(hub.requests) == asked


def fetch_at_once(hub, place: str, nursery: Nursery, folder: Path, *, processes: int, rounds: int, flock: bool) -> None:
    published = []
    for number in range(rounds):
        data = SMALL + bytes([number])
        published.append(data)
        job = publish(hub, place, data, name=f"owner/repo{number}")
        hub.fail(f"*repo{number}*", slow(len(data) // 4, 0.02))
        children = [nursery.start(*job, flock=flock) for _ in range(processes)]
        assert {child.result().get("digest") for child in children} == {job[2]}
        assert whole(folder, *published)
    # No part of a file is left anywhere, not even as a temporary one.
    assert {len(found) for found in kept(folder) if len(found) > 1000} == {len(SMALL) + 1}


@EVERYWHERE
@pytest.mark.parametrize("flock", [True, False])
def test_41_two_processes_fetch_at_once(hub, place, nursery, tmp_path, flock):
    fetch_at_once(hub, place, nursery, tmp_path, processes=2, rounds=1, flock=flock)


@pytest.mark.slow
@EVERYWHERE
@pytest.mark.parametrize("flock", [True, False])
def test_41_eight_processes_fetch_at_once_five_times(hub, place, nursery, tmp_path, flock):
    fetch_at_once(hub, place, nursery, tmp_path, processes=8, rounds=5, flock=flock)


@EVERYWHERE
def test_42_a_full_disk_is_told_with_what_is_needed_and_free(hub, place, nursery, tmp_path):
    job = publish(hub, place, SMALL)
    said = nursery.start(*job, limit=64 << 10).result()
    assert said["error"] == "WeightsUnavailable"
    digits = said["message"].replace(",", "").replace(" ", "").replace("_", "")
    assert str(len(SMALL)) in digits
    assert "free" in said["message"]
    assert str(tmp_path) in said["message"]
    assert not [found for found in kept(tmp_path) if len(found) > 1000]
    assert nursery.start(*job).result()["digest"] == job[2]
    assert nursery.start(*job, limit=64 << 10).result()["digest"] == job[2]


@EVERYWHERE
def test_43_a_folder_that_may_not_be_written_is_read_or_named(hub, place, nursery, tmp_path):
    cached = publish(hub, place, SMALL)
    new = publish(hub, place, SMALL[::-1], name="owner/new")
    first = nursery.start(*cached).result()
    home = tmp_path / ("hf" if place == "hub" else "medzoo")
    folders = [home, *(path for path in home.rglob("*") if path.is_dir() and not path.is_symlink())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert nursery.start(*cached, powerless=True).result() == {**first, "connections": []}
        said = nursery.start(*new, powerless=True).result()
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert said["error"] == "WeightsUnavailable"
    assert str(home) in said["message"]
    assert ("HF_HOME" if place == "hub" else "MEDZOO_HOME") in said["message"]
    assert nursery.start(*new).result()["digest"] == new[2]
