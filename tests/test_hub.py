"""Downloads from the Hub when the Hub, the network or the repository fails.

The numbers are those of docs/reliability.md. Faults that plain servers have as well are in test_fetch_faults.py.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download
from loopback_faults import WEB_PAGE, bare, hang, portal, redirect, stall, status, web_page
from records import (
    FILE,
    MAX_WAIT,
    REPO,
    REVISION,
    TOKEN,
    WHO,
    digest_of,
    full_traceback,
    on_hub,
    publish,
    refusal,
    some_bytes,
    weight_bytes,
)
from tensors import TINY

import medzoo
from medzoo.weights import hub as hub_client
from medzoo.weights.download import fetch_file
from medzoo.weights.record import HubFile

pytest_plugins = ["hub_fixtures"]

DATA = some_bytes()
ITEM = f"{REPO}@{REVISION}:{FILE}"


@pytest.fixture
def record(hub):
    return on_hub(hub, DATA)


def forbid_network(monkeypatch):
    def connect(self, address):
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)


def test_a_file_is_stored_in_the_cache_of_the_hub_client(hub, record):
    path, data = fetch_file(record, who=WHO)
    assert data == path.read_bytes() == DATA
    assert str(path) == hf_hub_download(REPO, FILE, revision=REVISION)
    asked = len(hub.requests)
    assert fetch_file(record, who=WHO) == (path, DATA)
    assert len(hub.requests) == asked


def test_the_newest_commit_is_used_if_none_is_pinned(hub):
    path, data = fetch_file(on_hub(hub, DATA, pinned=False), who=WHO)
    assert data == DATA
    assert REVISION in str(path)


def test_another_version_in_the_cache_is_neither_used_nor_removed(hub):
    hub.add(REPO, {FILE: DATA[::-1]}, revision="a" * 40)
    theirs = Path(hf_hub_download(REPO, FILE))
    record = on_hub(hub, DATA, pinned=False)
    assert fetch_file(record, who=WHO)[1] == DATA
    assert theirs.read_bytes() == DATA[::-1]


def test_another_version_in_the_cache_does_not_hide_the_correct_one_offline(hub, monkeypatch):
    record = on_hub(hub, DATA, pinned=False)
    fetch_file(record, who=WHO)
    for commit in ("0" * 40, "f" * 40):
        hub.add(REPO, {FILE: DATA[::-1]}, revision=commit)
        hf_hub_download(REPO, FILE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_file(record, who=WHO)[1] == DATA


def test_a_model_is_created_with_weights_of_the_hub(hub, monkeypatch):
    record = on_hub(hub, weight_bytes())
    publish("cnn3d_small", record, monkeypatch)
    model = medzoo.create("cnn3d_small", pretrained="test", **TINY)
    assert model.load_report is not None
    assert not model.load_report.new
    assert model.load_report.digest == record.digest
    asked = len(hub.requests)
    forbid_network(monkeypatch)
    medzoo.create("cnn3d_small", pretrained="test", **TINY)
    assert len(hub.requests) == asked


def test_a_token_stays_with_the_hub(hub, record, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.put("/cdn/file", DATA)
    hub.fail("/owner/*", redirect(hub.elsewhere("/cdn/file")))
    assert fetch_file(record, who=WHO)[1] == DATA
    assert {request.token for request in hub.asked("*", "/owner/*")} == {TOKEN}
    assert {request.token for request in hub.asked("*", "/cdn/*")} == {None}


def test_a_repository_that_was_renamed_is_followed(hub, record):
    hub.add("new/name", {FILE: DATA}, revision=REVISION)
    del hub.repos[REPO]
    hub.fail("/owner/*", redirect(f"/new/name/resolve/{REVISION}/{FILE}", 307))
    assert fetch_file(record, who=WHO)[1] == DATA


def test_a_redirect_loop_ends(hub, record, waits):
    hub.fail("/owner/*", redirect(f"/{REPO}/resolve/{REVISION}/{FILE}"))
    assert ITEM in str(refusal(record))
    assert len(hub.requests) <= 60


def test_25_a_hub_that_is_down_is_not_asked_for_a_cached_file(hub, record, monkeypatch):
    fetch_file(record, who=WHO)
    hub.stop()
    forbid_network(monkeypatch)
    assert fetch_file(record, who=WHO)[1] == DATA


def test_25_an_unpinned_file_is_read_from_the_cache_when_the_hub_is_down(hub, waits):
    record = on_hub(hub, DATA, pinned=False)
    fetch_file(record, who=WHO)
    hub.stop()
    assert fetch_file(record, who=WHO)[1] == DATA
    assert sum(waits) <= MAX_WAIT


def test_26_a_hub_that_never_answers_is_not_asked_for_a_cached_file(hub, record, monkeypatch):
    fetch_file(record, who=WHO)
    hub.fail("*", hang())
    forbid_network(monkeypatch)
    assert fetch_file(record, who=WHO)[1] == DATA


def test_27_a_hub_that_is_down_is_an_error_with_advice(hub, record, waits):
    hub.stop()
    message = str(refusal(record))
    for part in (REPO, constants.HF_HUB_CACHE, "HF_HUB_OFFLINE", "medzoo fetch"):
        assert part in message
    assert sum(waits) <= MAX_WAIT


def test_27_a_hub_that_hangs_times_out(hub, record, waits, monkeypatch):
    assert hub_client.CONNECT_TIMEOUT <= MAX_WAIT
    monkeypatch.setattr(hub_client, "CONNECT_TIMEOUT", 0.05)
    hub.fail("*", hang())
    message = str(refusal(record))
    assert REPO in message
    assert "medzoo fetch" in message
    # One probe without retries; the client itself would ask seven times for up to a minute each.
    assert len(hub.requests) == 1
    assert sum(waits) <= MAX_WAIT


@pytest.mark.parametrize("fault", [hang(), stall(4000)])
def test_27_a_download_that_hangs_times_out(hub, record, waits, monkeypatch, fault):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    hub.fail("/owner/*", fault, method="GET")
    message = str(refusal(record))
    assert REPO in message
    assert "medzoo fetch" in message
    assert len(hub.asked("GET")) <= 20
    assert sum(waits) <= MAX_WAIT


def test_28_offline_nothing_is_asked(hub, record, waits, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forbid_network(monkeypatch)
    message = str(refusal(record))
    for part in (REPO, constants.HF_HUB_CACHE, "HF_HUB_OFFLINE", "medzoo fetch"):
        assert part in message
    assert not hub.requests
    assert not waits


def test_28_offline_a_cached_file_is_read(hub, record, monkeypatch):
    fetch_file(record, who=WHO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forbid_network(monkeypatch)
    assert fetch_file(record, who=WHO)[1] == DATA


@pytest.mark.parametrize("number", [429, 500, 503])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_29_a_busy_hub_is_asked_a_limited_number_of_times(hub, record, waits, number, method):
    hub.fail("/owner/*", status(number, headers={"Retry-After": "3600"}), method=method)
    message = str(refusal(record))
    assert REPO in message
    assert str(number) in message
    assert "medzoo fetch" in message
    assert len(hub.requests) <= 20
    if (method, number) == ("GET", 429):
        # After 429 for a file, the client waits as long as the Hub asks, five times.
        assert len(waits) <= 5
    else:
        assert sum(waits) <= MAX_WAIT


@pytest.mark.parametrize("number", [429, 503])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_29_a_hub_that_was_busy_once_gives_the_file(hub, record, waits, number, method):
    hub.fail("/owner/*", status(number), times=1, method=method)
    assert fetch_file(record, who=WHO)[1] == DATA


@pytest.mark.parametrize("fault", [web_page, bare])
def test_30_a_login_page_is_recognised(hub, record, waits, fault):
    hub.fail("*", fault())
    message = str(refusal(record))
    assert "not a Hub response" in message
    assert REPO in message
    hub.clear_faults()
    assert fetch_file(record, who=WHO)[1] == DATA


def test_30_a_login_page_elsewhere_gets_no_token(hub, record, waits, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.put("/login", WEB_PAGE)
    hub.fail("/owner/*", portal(hub.elsewhere("/login")))
    error = refusal(record)
    assert "not a Hub response" in str(error)
    assert TOKEN not in full_traceback(error)
    assert {request.token for request in hub.asked("*", "/login")} <= {None}


@pytest.mark.parametrize("number", [401, 403])
@pytest.mark.parametrize("code", ["GatedRepo", None])
@pytest.mark.parametrize("token", [None, TOKEN])
def test_31_a_gated_repository_is_an_error_with_advice_and_without_the_token(
    hub, record, waits, monkeypatch, capfd, caplog, number, code, token
):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.fail("/owner/*", status(number, code, "Access to model owner/repo is restricted."))
    error = refusal(record)
    assert f"request access at {hub.url('/' + REPO)}, then hf auth login" in str(error)
    assert {request.token for request in hub.requests} == {token}
    printed = capfd.readouterr()
    assert TOKEN not in full_traceback(error) + caplog.text + printed.out + printed.err
    assert len(hub.requests) <= 3


def test_31_a_wrong_token_is_an_error_with_advice(hub, record, waits, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fail("/owner/*", status(401, None, "Invalid credentials in Authorization header"))
    error = refusal(record)
    assert "hf auth login" in str(error)
    assert TOKEN not in full_traceback(error)


@pytest.mark.parametrize("token", [None, TOKEN])
def test_32_a_repository_that_is_gone_is_named(hub, record, monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    del hub.repos[REPO]
    message = str(refusal(record))
    assert ITEM in message
    assert "upgrade medzoo" in message


def test_33_a_revision_that_is_gone_is_named(hub, record):
    hub.repos[REPO].commits.clear()
    message = str(refusal(record))
    assert ITEM in message
    assert "upgrade medzoo" in message


def test_34_a_file_that_is_gone_is_named(hub, record):
    del hub.repos[REPO].commits[REVISION][FILE]
    for _ in range(2):  # the client remembers that the file is absent
        message = str(refusal(record))
        assert ITEM in message
        assert "upgrade medzoo" in message
    gone = replace(record, source=HubFile(repo=REPO, file="moved/model.safetensors", revision=REVISION))
    assert f"{REPO}@{REVISION}:moved/model.safetensors" in str(refusal(gone))


def test_39_a_dangling_link_is_downloaded_again(hub, record, monkeypatch):
    path, _ = fetch_file(record, who=WHO)
    path.resolve().unlink()
    assert path.is_symlink()
    assert fetch_file(record, who=WHO) == (path, DATA)
    path.resolve().unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = str(refusal(record))
    assert str(Path(constants.HF_HUB_CACHE)) in message
    assert "HF_HUB_OFFLINE" in message


def lock_path(cache: Path) -> Path:
    """Return the lock file of the record's file, as the Hub's client names it."""
    lock = cache / ".locks" / f"models--{REPO.replace('/', '--')}" / f"{digest_of(DATA).partition(':')[2]}.lock"
    lock.parent.mkdir(parents=True)
    return lock


def test_44_a_lock_that_is_never_released_is_named(hub, record, waits, monkeypatch):
    assert hub_client.LOCK_TIMEOUT == 120
    monkeypatch.setattr(hub_client, "LOCK_TIMEOUT", 0.2)
    lock = lock_path(Path(constants.HF_HUB_CACHE))
    with lock.open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        message = str(refusal(record))
    assert str(lock) in message
    assert "0.2 s" in message
    assert not hub.asked("GET")
    assert fetch_file(record, who=WHO)[1] == DATA


@pytest.mark.filterwarnings("ignore:flock not supported:UserWarning")
def test_44_a_lock_file_that_was_left_behind_is_named(hub, record, waits, monkeypatch):
    """On a filesystem without locks the client's lock is a file; its owner was killed on another machine."""
    monkeypatch.setattr(hub_client, "LOCK_TIMEOUT", 0.2)

    def unknown(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    lock = lock_path(Path(constants.HF_HUB_CACHE))
    lock.write_text("4242\nanother-machine\n")
    monkeypatch.setattr(fcntl, "flock", unknown)
    assert str(lock) in str(refusal(record))
    lock.unlink()
    assert fetch_file(record, who=WHO)[1] == DATA


def test_44_waits_for_a_lock_of_a_process_that_downloads(hub, record, monkeypatch):
    monkeypatch.setattr(hub_client, "LOCK_TIMEOUT", 1.0)  # the other thread may have to wait for a core
    lock = lock_path(Path(constants.HF_HUB_CACHE))
    growing = lock.parents[2] / lock.parent.name / "blobs" / f"{lock.stem}.1a2b3c4d.incomplete"
    growing.parent.mkdir(parents=True)
    released = threading.Event()

    def download() -> None:
        with lock.open("w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            begun.set()
            for _ in range(75):
                growing.write_bytes(b"more")
                time.sleep(0.02)
            growing.unlink()
            released.set()

    begun = threading.Event()
    threading.Thread(target=download).start()
    begun.wait()
    assert fetch_file(record, who=WHO)[1] == DATA
    assert released.is_set()


def test_44_a_cached_file_is_read_while_another_process_has_the_lock(hub, record):
    fetch_file(record, who=WHO)
    with next(Path(constants.HF_HUB_CACHE).rglob("*.lock")).open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        assert fetch_file(record, who=WHO)[1] == DATA
