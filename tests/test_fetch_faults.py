"""A fetch when what comes, or what lies in a cache, is not the file of the record, wherever it comes from.

The numbers are those of docs/reliability.md.
"""

from __future__ import annotations

import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download
from loopback_faults import (
    LFS_POINTER,
    WEB_PAGE,
    cut,
    gzipped,
    lfs_pointer,
    slow,
    truncated,
    unsized,
    web_page,
    wrong_bytes,
)
from records import (
    FILE,
    PATHS,
    PATIENCE,
    PUBLISHERS,
    REPO,
    TOKEN,
    WHO,
    at_url,
    corruption,
    digest_of,
    no_trace_but,
    on_hub,
    record_of,
    refusal,
    some_bytes,
)

from medzoo.errors import WeightsCorrupt, WeightsUnavailable
from medzoo.weights.cache import stored_file
from medzoo.weights.fetch_file import verified

pytest_plugins = ["hub_fixtures"]

DATA = some_bytes()
EVERYWHERE = pytest.mark.parametrize("place", ["hub", "url"])


@pytest.fixture
def record(hub, place):
    return PUBLISHERS[place](hub, DATA)


@EVERYWHERE
@pytest.mark.parametrize("fault", [slow(1000, 0.001), unsized(), gzipped()])
def test_a_file_is_taken_as_it_comes(hub, record, place, fault):
    hub.fail(PATHS[place], fault, method="GET")
    assert verified(record, who=WHO)[1] == DATA


@EVERYWHERE
def test_27_a_proxy_that_refuses_is_our_own_error(hub, record, place, waits, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://user:{TOKEN}@127.0.0.1:{nobody.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        error = refusal(record)
    assert TOKEN not in str(error)
    assert not hub.requests
    assert sum(waits) <= PATIENCE


@EVERYWHERE
def test_35_a_body_that_is_cut_once_is_fetched_again(hub, record, place, waits, tmp_path):
    hub.fail(PATHS[place], cut(4000), times=1)
    assert verified(record, who=WHO)[1] == DATA
    no_trace_but(DATA, tmp_path)


@EVERYWHERE
@pytest.mark.parametrize("after", [0, 4000])
def test_35_a_body_that_is_always_cut_is_our_own_error(hub, record, place, waits, tmp_path, after):
    hub.fail(PATHS[place], cut(after))
    error = refusal(record)
    assert "httpx" not in type(error).__module__
    assert 1 < len(hub.asked("GET")) <= 20
    assert sum(waits) <= PATIENCE
    no_trace_but(DATA, tmp_path)


@EVERYWHERE
@pytest.mark.parametrize("fault", [wrong_bytes(), truncated(), lfs_pointer(), unsized(cut=4000)])
def test_36_wrong_bytes_that_came_once_are_healed(hub, record, place, waits, tmp_path, fault):
    hub.fail(PATHS[place], fault, times=1, method="GET")
    path, data = verified(record, who=WHO)
    assert data == path.read_bytes() == DATA
    assert len(hub.asked("GET")) == 2
    no_trace_but(DATA, tmp_path)


@EVERYWHERE
def test_36_wrong_bytes_that_always_come_are_corrupt(hub, record, place, waits, tmp_path):
    hub.fail(PATHS[place], wrong_bytes())
    message = str(corruption(record))
    wrong = bytes(byte ^ 0x55 for byte in DATA)
    assert record.digest in message
    assert digest_of(wrong) in message
    assert str(tmp_path) in message
    assert len(hub.asked("GET")) == 2
    no_trace_but(DATA, tmp_path)
    hub.mend()
    assert verified(record, who=WHO)[1] == DATA


@EVERYWHERE
def test_36_a_file_of_another_size_is_corrupt(hub, record, place, waits, tmp_path):
    hub.fail(PATHS[place], unsized(cut=len(DATA) - 1))
    with pytest.raises((WeightsCorrupt, WeightsUnavailable)) as caught:
        verified(record, who=WHO)
    assert str(len(DATA)) in str(caught.value)
    assert str(len(DATA) - 1) in str(caught.value)
    no_trace_but(DATA, tmp_path)


@pytest.mark.parametrize(("body", "says"), [(WEB_PAGE, "web page"), (LFS_POINTER % (b"0" * 64, 99), "LFS pointer")])
@EVERYWHERE
def test_30_a_page_or_a_pointer_in_the_place_of_weights_is_recognised(hub, place, waits, body, says):
    # Published as such, so that every header of the answer is right: only the bytes are not.
    record = record_of(PUBLISHERS[place](hub, body).source, DATA)
    message = str(corruption(record))
    assert says in message


def test_30_a_portal_in_the_way_of_an_address_is_recognised(hub, waits, tmp_path):
    record = at_url(hub, DATA)
    hub.fail("*", web_page())
    with pytest.raises((WeightsCorrupt, WeightsUnavailable), match="web page") as caught:
        verified(record, who=WHO)
    assert record.source.url in str(caught.value)
    hub.mend()
    assert verified(record, who=WHO)[1] == DATA


@EVERYWHERE
@pytest.mark.parametrize("harm", ["cut", "empty", "flipped", "longer"])
def test_37_38_a_cached_file_that_changed_is_healed_once(hub, record, place, tmp_path, harm):
    path, _ = verified(record, who=WHO)
    flipped = bytes([*DATA[:-1], DATA[-1] ^ 1])
    path.resolve().write_bytes({"cut": DATA[:-1], "empty": b"", "flipped": flipped, "longer": DATA + b"\0"}[harm])
    asked = len(hub.asked("GET"))
    assert verified(record, who=WHO) == (path, DATA)
    assert len(hub.asked("GET")) == asked + 1
    no_trace_but(DATA, tmp_path)


@EVERYWHERE
def test_38_a_cached_file_that_changed_is_corrupt_offline(hub, record, place, monkeypatch):
    path, _ = verified(record, who=WHO)
    path.resolve().write_bytes(DATA[:-1] + b"\0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    message = str(corruption(record))
    assert record.digest in message
    assert str(path) in message
    assert len(hub.requests) == asked


@EVERYWHERE
def test_38_a_cached_file_that_changed_is_said_to_when_the_server_is_gone(hub, record, place, waits):
    path, _ = verified(record, who=WHO)
    path.resolve().write_bytes(DATA[:-1] + b"\0")
    hub.stop()
    with pytest.raises((WeightsCorrupt, WeightsUnavailable)) as caught:
        verified(record, who=WHO)
    assert type(caught.value) in (WeightsCorrupt, WeightsUnavailable)
    assert sum(waits) <= PATIENCE


@EVERYWHERE
def test_42_a_disk_without_room_is_told_before_anything_is_fetched(hub, record, place, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 77, 77))
    message = str(refusal(record))
    assert f"{len(DATA):,}" in message
    assert "77 are free" in message
    assert str(tmp_path) in message
    assert not hub.asked("GET")


@EVERYWHERE
def test_41_a_file_that_another_process_drops_meanwhile_is_fetched(hub, record, place, monkeypatch):
    path, _ = verified(record, who=WHO)
    read = Path.read_bytes

    def read_late(self: Path) -> bytes:
        # As when another process found it wrong, and has not fetched it again yet.
        monkeypatch.setattr(Path, "read_bytes", read)
        self.resolve().unlink()
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", read_late)
    assert verified(record, who=WHO) == (path, DATA)


def test_a_sound_file_without_links_is_left_to_its_owner(hub):
    """Where a system has no links, the file lies in the snapshot itself, and nothing tells what it should be."""
    hub.add(REPO, {FILE: DATA[::-1]}, revision="a" * 40)
    theirs = Path(hf_hub_download(REPO, FILE))
    theirs.unlink()
    theirs.write_bytes(DATA[::-1])
    record = on_hub(hub, DATA, pinned=False)
    assert verified(record, who=WHO)[1] == DATA
    assert theirs.read_bytes() == DATA[::-1]


def test_a_record_that_errs_does_not_cost_the_user_a_file(hub, waits):
    record = on_hub(hub, DATA)
    theirs, _ = verified(record, who=WHO)
    wrong = replace(record, digest="sha256:" + "0" * 64)
    hub.stop()
    refusal(wrong)
    assert theirs.read_bytes() == DATA


def test_38_a_damaged_copy_does_not_hide_a_good_one_offline(hub, monkeypatch):
    record = on_hub(hub, DATA)
    verified(record, who=WHO)
    copy = stored_file(record.digest)
    copy.parent.mkdir(parents=True)
    copy.write_bytes(DATA[:-1])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert verified(record, who=WHO)[1] == DATA
