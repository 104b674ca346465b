"""Downloads of wrong or incomplete files, and damaged caches, for the Hub and for plain URLs.

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
    MAX_WAIT,
    PATHS,
    PUBLISHERS,
    REPO,
    TOKEN,
    WHO,
    at_url,
    check_only_file,
    corruption,
    digest_of,
    on_hub,
    record_of,
    refusal,
    some_bytes,
)

from medzoo.errors import WeightsCorrupt, WeightsUnavailable
from medzoo.weights.cache import stored_file
from medzoo.weights.download import fetch_file

pytest_plugins = ["hub_fixtures"]

DATA = some_bytes()
EVERYWHERE = pytest.mark.parametrize("place", ["hub", "url"])


@pytest.fixture
def record(hub, place):
    return PUBLISHERS[place](hub, DATA)


@EVERYWHERE
@pytest.mark.parametrize("fault", [slow(1000, 0.001), unsized(), gzipped()])
def test_any_transfer_encoding_is_accepted(hub, record, place, fault):
    hub.fail(PATHS[place], fault, method="GET")
    assert fetch_file(record, who=WHO)[1] == DATA


@EVERYWHERE
def test_27_a_proxy_that_refuses_connections_is_a_medzoo_error(hub, record, place, waits, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://user:{TOKEN}@127.0.0.1:{closed.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        error = refusal(record)
    assert TOKEN not in str(error)
    assert not hub.requests
    assert sum(waits) <= MAX_WAIT


@EVERYWHERE
def test_35_a_body_that_is_cut_once_is_downloaded_again(hub, record, place, waits, tmp_path):
    hub.fail(PATHS[place], cut(4000), times=1)
    assert fetch_file(record, who=WHO)[1] == DATA
    check_only_file(DATA, tmp_path)


@EVERYWHERE
@pytest.mark.parametrize("after", [0, 4000])
def test_35_a_body_that_is_always_cut_is_a_medzoo_error(hub, record, place, waits, tmp_path, after):
    hub.fail(PATHS[place], cut(after))
    error = refusal(record)
    assert "httpx" not in type(error).__module__
    assert 1 < len(hub.asked("GET")) <= 20
    assert sum(waits) <= MAX_WAIT
    check_only_file(DATA, tmp_path)


@EVERYWHERE
@pytest.mark.parametrize("fault", [wrong_bytes(), truncated(), lfs_pointer(), unsized(cut=4000)])
def test_36_bytes_that_are_wrong_once_are_downloaded_again(hub, record, place, waits, tmp_path, fault):
    hub.fail(PATHS[place], fault, times=1, method="GET")
    path, data = fetch_file(record, who=WHO)
    assert data == path.read_bytes() == DATA
    assert len(hub.asked("GET")) == 2
    check_only_file(DATA, tmp_path)


@EVERYWHERE
def test_36_bytes_that_are_always_wrong_are_corrupt(hub, record, place, waits, tmp_path):
    hub.fail(PATHS[place], wrong_bytes())
    message = str(corruption(record))
    wrong = bytes(byte ^ 0x55 for byte in DATA)
    assert record.digest in message
    assert digest_of(wrong) in message
    assert str(tmp_path) in message
    assert len(hub.asked("GET")) == 2
    check_only_file(DATA, tmp_path)
    hub.clear_faults()
    assert fetch_file(record, who=WHO)[1] == DATA


@EVERYWHERE
def test_36_a_file_of_another_size_is_corrupt(hub, record, place, waits, tmp_path):
    hub.fail(PATHS[place], unsized(cut=len(DATA) - 1))
    with pytest.raises((WeightsCorrupt, WeightsUnavailable)) as caught:
        fetch_file(record, who=WHO)
    assert str(len(DATA)) in str(caught.value)
    assert str(len(DATA) - 1) in str(caught.value)
    check_only_file(DATA, tmp_path)


@pytest.mark.parametrize(("body", "reason"), [(WEB_PAGE, "web page"), (LFS_POINTER % (b"0" * 64, 99), "LFS pointer")])
@EVERYWHERE
def test_30_a_web_page_or_an_lfs_pointer_instead_of_weights_is_recognised(hub, place, waits, body, reason):
    # Published as the file itself, so that every header of the answer is correct and only the bytes are not.
    record = record_of(PUBLISHERS[place](hub, body).source, DATA)
    message = str(corruption(record))
    assert reason in message


def test_30_a_login_page_at_a_url_is_recognised(hub, waits, tmp_path):
    record = at_url(hub, DATA)
    hub.fail("*", web_page())
    with pytest.raises((WeightsCorrupt, WeightsUnavailable), match="web page") as caught:
        fetch_file(record, who=WHO)
    assert record.source.url in str(caught.value)
    hub.clear_faults()
    assert fetch_file(record, who=WHO)[1] == DATA


@EVERYWHERE
@pytest.mark.parametrize("harm", ["cut", "empty", "flipped", "longer"])
def test_37_38_a_cached_file_that_changed_is_downloaded_again(hub, record, place, tmp_path, harm):
    path, _ = fetch_file(record, who=WHO)
    flipped = bytes([*DATA[:-1], DATA[-1] ^ 1])
    path.resolve().write_bytes({"cut": DATA[:-1], "empty": b"", "flipped": flipped, "longer": DATA + b"\0"}[harm])
    asked = len(hub.asked("GET"))
    assert fetch_file(record, who=WHO) == (path, DATA)
    assert len(hub.asked("GET")) == asked + 1
    check_only_file(DATA, tmp_path)


@EVERYWHERE
def test_38_a_cached_file_that_changed_is_corrupt_offline(hub, record, place, monkeypatch):
    path, _ = fetch_file(record, who=WHO)
    path.resolve().write_bytes(DATA[:-1] + b"\0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    message = str(corruption(record))
    assert record.digest in message
    assert str(path) in message
    assert len(hub.requests) == asked


@EVERYWHERE
def test_38_a_cached_file_that_changed_is_an_error_when_the_server_is_down(hub, record, place, waits):
    path, _ = fetch_file(record, who=WHO)
    path.resolve().write_bytes(DATA[:-1] + b"\0")
    hub.stop()
    with pytest.raises((WeightsCorrupt, WeightsUnavailable)) as caught:
        fetch_file(record, who=WHO)
    assert type(caught.value) in (WeightsCorrupt, WeightsUnavailable)
    assert sum(waits) <= MAX_WAIT


@EVERYWHERE
def test_42_a_full_disk_is_an_error_before_the_download(hub, record, place, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 77, 77))
    message = str(refusal(record))
    assert f"{len(DATA):,}" in message
    assert "77 are free" in message
    assert str(tmp_path) in message
    assert not hub.asked("GET")


@EVERYWHERE
def test_41_a_file_that_another_process_removes_meanwhile_is_downloaded(hub, record, place, monkeypatch):
    path, _ = fetch_file(record, who=WHO)
    read = Path.read_bytes

    def read_late(self: Path) -> bytes:
        # As when another process found it damaged, and has not downloaded it again yet.
        monkeypatch.setattr(Path, "read_bytes", read)
        self.resolve().unlink()
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", read_late)
    assert fetch_file(record, who=WHO) == (path, DATA)


def test_another_version_without_symbolic_links_is_kept(hub):
    """Without symbolic links the file is in the snapshot itself, and there is no blob name to compare it with."""
    hub.add(REPO, {FILE: DATA[::-1]}, revision="a" * 40)
    theirs = Path(hf_hub_download(REPO, FILE))
    theirs.unlink()
    theirs.write_bytes(DATA[::-1])
    record = on_hub(hub, DATA, pinned=False)
    assert fetch_file(record, who=WHO)[1] == DATA
    assert theirs.read_bytes() == DATA[::-1]


def test_a_wrong_record_does_not_remove_a_file_of_the_user(hub, waits):
    record = on_hub(hub, DATA)
    theirs, _ = fetch_file(record, who=WHO)
    wrong = replace(record, digest="sha256:" + "0" * 64)
    hub.stop()
    refusal(wrong)
    assert theirs.read_bytes() == DATA


def test_38_a_damaged_copy_does_not_hide_a_good_one_offline(hub, monkeypatch):
    record = on_hub(hub, DATA)
    fetch_file(record, who=WHO)
    copy = stored_file(record.digest)
    copy.parent.mkdir(parents=True)
    copy.write_bytes(DATA[:-1])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_file(record, who=WHO)[1] == DATA
