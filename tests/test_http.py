"""Downloads from a URL, from a mirror and out of an archive, with and without faults.

The numbers are those of docs/reliability.md. Faults that the Hub has as well are in test_fetch_faults.py.
"""

from __future__ import annotations

import hashlib
import io
import sys
import threading
import zipfile
from dataclasses import replace

import pytest
from huggingface_hub import constants
from loopback import CERTIFICATE
from loopback_faults import (
    cut,
    hang,
    redirect,
    stall,
    status,
    wrong_bytes,
)
from records import (
    MAX_WAIT,
    PUBLISHERS,
    TOKEN,
    WHO,
    at_url,
    check_only_file,
    corruption,
    digest_of,
    full_traceback,
    publish,
    record_of,
    refusal,
    some_bytes,
    weight_bytes,
)
from tensors import TINY

import medzoo
from medzoo.errors import ConfigError, WeightsCorrupt, WeightsUnavailable
from medzoo.weights import http
from medzoo.weights.download import fetch_file
from medzoo.weights.downloader import CHUNK_BYTES
from medzoo.weights.record import UrlFile, ZipMember

pytest_plugins = ["hub_fixtures"]

DATA = some_bytes()
EVERYWHERE = pytest.mark.parametrize("place", ["hub", "url"])


@pytest.fixture
def home(hub, tmp_path):
    """Return the folder of files that are not from the Hub."""
    return tmp_path / "medzoo"


@pytest.fixture
def record(hub, place):
    return PUBLISHERS[place](hub, DATA)


# URLs without faults.


def test_a_file_is_stored_under_its_digest(hub, home):
    record = at_url(hub, DATA)
    path, data = fetch_file(record, who=WHO)
    assert data == path.read_bytes() == DATA
    assert path == home / "files" / "sha256" / hashlib.sha256(DATA).hexdigest()
    assert fetch_file(record, who=WHO) == (path, DATA)
    assert len(hub.asked("GET")) == 1
    hub.stop()
    assert fetch_file(record, who=WHO) == (path, DATA)


def test_an_md5_digest_is_verified_too(hub, home):
    record = at_url(hub, DATA, digest=digest_of(DATA, "md5"), size=None)
    path, data = fetch_file(record, who=WHO)
    assert data == DATA
    assert path == home / "files" / "md5" / hashlib.md5(DATA).hexdigest()
    path.write_bytes(DATA[::-1])
    assert fetch_file(record, who=WHO)[1] == DATA


@pytest.mark.parametrize("origin", ["url", "elsewhere"])
def test_a_redirect_is_followed_and_no_token_is_sent(hub, monkeypatch, origin):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    record = at_url(hub, DATA)
    hub.put("/cdn/file", DATA)
    hub.fail("/files/*", redirect(getattr(hub, origin)("/cdn/file")))
    assert fetch_file(record, who=WHO)[1] == DATA
    assert {request.token for request in hub.requests} == {None}


def test_medzoo_home_is_read_at_the_call(hub, tmp_path, monkeypatch):
    record = at_url(hub, DATA)
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "another"))
    assert fetch_file(record, who=WHO)[0].is_relative_to(tmp_path / "another")


def test_a_model_is_created_with_weights_of_a_url(hub, monkeypatch):
    publish("cnn3d_small", at_url(hub, weight_bytes()), monkeypatch)
    model = medzoo.create("cnn3d_small", pretrained="test", **TINY)
    assert model.load_report is not None
    assert not model.load_report.new


# URLs with faults; the answers of the Hub are in test_hub.py.


@pytest.mark.parametrize("number", [401, 403, 404, 410])
def test_34_a_url_without_a_file_is_named(hub, waits, number):
    record = at_url(hub, DATA)
    hub.fail("/files/*", status(number))
    message = str(refusal(record))
    assert record.source.url in message
    assert str(number) in message
    assert len(hub.requests) <= 2


@pytest.mark.parametrize("number", [429, 500, 503])
def test_29_a_busy_address_is_asked_again_and_not_for_ever(hub, waits, number):
    record = at_url(hub, DATA)
    hub.fail("/files/*", status(number, headers={"Retry-After": "3600"}))
    message = str(refusal(record))
    assert record.source.url in message
    assert str(number) in message
    assert 1 < len(hub.requests) <= 10
    assert sum(waits) <= MAX_WAIT


@pytest.mark.parametrize("number", [429, 503])
def test_29_a_url_that_is_busy_once_gives_the_file(hub, waits, number):
    record = at_url(hub, DATA)
    hub.fail("/files/*", status(number), times=1)
    assert fetch_file(record, who=WHO)[1] == DATA


def test_35_a_large_body_that_is_cut_once_is_requested_once_more(hub, waits):
    data = bytes(4 * CHUNK_BYTES)
    record = at_url(hub, data)
    hub.fail("/files/*", cut(len(data) - 1), times=1)
    assert fetch_file(record, who=WHO)[1] == data
    assert len(hub.asked("GET")) == 2


def test_the_progress_bar_of_a_failed_download_ends(hub, waits, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    data = bytes(4 * CHUNK_BYTES)
    record = at_url(hub, data)
    hub.fail("/files/*", cut(len(data) - 1))
    refusal(record)
    assert WHO in capsys.readouterr().err
    for thread in threading.enumerate():
        if type(thread).__name__ == "_RefreshThread":  # rich stops it and does not wait for its end
            thread.join(10)
            assert not thread.is_alive()


def test_27_a_url_that_refuses_is_an_error_with_advice(hub, home, waits):
    record = at_url(hub, DATA)
    hub.stop()
    message = str(refusal(record))
    for part in (record.source.url, str(home), "MEDZOO_HOME", "medzoo fetch"):
        assert part in message
    assert sum(waits) <= MAX_WAIT


@pytest.mark.parametrize("fault", [hang(), stall(4000)])
def test_27_a_url_that_hangs_times_out(hub, waits, monkeypatch, fault):
    monkeypatch.setattr(http, "READ_TIMEOUT", 0.05)
    record = at_url(hub, DATA)
    hub.fail("/files/*", fault)
    assert record.source.url in str(refusal(record))
    assert len(hub.requests) <= 6
    assert sum(waits) <= MAX_WAIT


def test_the_certificates_are_read_at_the_call(hub, monkeypatch, waits):
    record = at_url(hub, DATA)
    monkeypatch.delenv("SSL_CERT_FILE")
    secure = replace(record, source=UrlFile(url=hub.secure("/files/weights.safetensors")))
    refusal(secure)
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    assert fetch_file(secure, who=WHO)[1] == DATA


@pytest.mark.parametrize("certificates", [None, "/no/such/certificates.pem"])
def test_27_a_server_that_is_not_trusted_is_a_medzoo_error(hub, waits, monkeypatch, certificates):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    if certificates:
        monkeypatch.setenv("SSL_CERT_FILE", certificates)
    record = at_url(hub, DATA)
    secure = replace(record, source=UrlFile(url=hub.secure("/files/weights.safetensors")))
    with pytest.raises((WeightsUnavailable, ConfigError)) as caught:
        fetch_file(secure, who=WHO)
    assert "SSL_CERT_FILE" in str(caught.value)
    assert certificates is None or certificates in str(caught.value)


def test_28_offline_no_url_is_requested(hub, waits, monkeypatch):
    record = at_url(hub, DATA)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = str(refusal(record))
    assert "HF_HUB_OFFLINE" in message
    assert "medzoo fetch" in message
    assert not hub.requests


def test_a_redirect_loop_ends(hub, waits):
    record = at_url(hub, DATA)
    hub.fail("/files/*", redirect("/files/weights.safetensors"))
    assert record.source.url in str(refusal(record))
    assert len(hub.requests) <= 100


# A mirror.


@EVERYWHERE
def test_a_mirror_is_used_instead_and_gets_no_token(hub, record, place, home, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MEDZOO_MIRROR", hub.mirror(DATA, under="/mirror"))
    path, data = fetch_file(record, who=WHO)
    assert data == DATA
    assert path == home / "files" / "sha256" / hashlib.sha256(DATA).hexdigest()
    assert [request.path for request in hub.asked("GET")] == [f"/mirror/sha256/{hashlib.sha256(DATA).hexdigest()}"]
    assert {request.path.split("/")[1] for request in hub.requests} == {"mirror"}
    assert {request.token for request in hub.requests} == {None}


@EVERYWHERE
def test_a_mirror_with_wrong_bytes_is_refused(hub, record, place, waits, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDZOO_MIRROR", hub.mirror(DATA, under="/mirror"))
    hub.fail("/mirror/*", wrong_bytes())
    with pytest.raises(WeightsCorrupt):
        fetch_file(record, who=WHO)
    check_only_file(DATA, tmp_path)


def test_a_mirror_without_the_file_is_named(hub, waits, monkeypatch):
    record = at_url(hub, DATA)
    monkeypatch.setenv("MEDZOO_MIRROR", hub.url("/mirror"))
    error = refusal(record)
    assert hub.url("/mirror") in str(error)
    assert "MEDZOO_MIRROR" in str(error)
    assert TOKEN not in full_traceback(error)


def test_the_password_of_a_mirror_is_not_shown(hub, waits, monkeypatch):
    record = at_url(hub, DATA)
    monkeypatch.setenv("MEDZOO_MIRROR", hub.url("/mirror").replace("//", f"//user:{TOKEN}@"))
    assert TOKEN not in str(refusal(record))
    hub.stop()
    assert TOKEN not in str(refusal(record))


# A member of an archive.


def archived(hub, data: bytes = DATA, member: str = "dir/weights.safetensors"):
    """Publish an archive with several members, and return the record of one."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README", "not the weights")
        archive.writestr("dir/weights.safetensors", data)
    url = hub.put("/files/archive.zip", packed.getvalue())
    source = ZipMember(url=url, member=member, digest=digest_of(packed.getvalue()), size=len(packed.getvalue()))
    return record_of(source, DATA)


def test_a_member_is_stored_under_its_own_digest(hub, home):
    record = archived(hub)
    path, data = fetch_file(record, who=WHO)
    assert data == DATA
    assert path == home / "files" / "sha256" / hashlib.sha256(DATA).hexdigest()
    hub.stop()
    assert fetch_file(record, who=WHO) == (path, DATA)


def test_36_an_archive_that_is_wrong_once_is_downloaded_again(hub, waits):
    record = archived(hub)
    hub.fail("/files/*", wrong_bytes(), times=1)
    assert fetch_file(record, who=WHO)[1] == DATA


def test_36_an_archive_that_is_always_wrong_is_corrupt(hub, waits):
    record = archived(hub)
    hub.fail("/files/*", wrong_bytes())
    assert record.source.digest in str(corruption(record))


def test_36_a_member_with_another_digest_is_corrupt(hub, waits):
    record = archived(hub, data=DATA[::-1])
    assert record.digest in str(corruption(record))


def test_34_a_missing_member_is_named(hub, waits):
    record = archived(hub, member="dir/other.safetensors")
    with pytest.raises((WeightsCorrupt, WeightsUnavailable), match=r"dir/other\.safetensors"):
        fetch_file(record, who=WHO)


def test_the_password_of_a_mirror_with_wrong_bytes_is_not_shown(hub, waits, monkeypatch, capfd):
    record = at_url(hub, DATA)
    monkeypatch.setenv("MEDZOO_MIRROR", hub.url("/mirror").replace("//", f"//user:{TOKEN}@"))
    hub.put(f"/mirror/{record.digest.replace(':', '/')}", DATA[::-1])
    assert TOKEN not in full_traceback(corruption(record))
    assert TOKEN not in capfd.readouterr().err


@pytest.mark.parametrize("mirror", [f"user:{TOKEN}@127.0.0.1/x", "127.0.0.1", "file:///etc", "ftp://127.0.0.1"])
def test_a_mirror_that_is_not_a_url_is_refused_and_not_shown(hub, monkeypatch, capfd, mirror):
    record = at_url(hub, DATA)
    monkeypatch.setenv("MEDZOO_MIRROR", mirror)
    with pytest.raises(ConfigError, match="MEDZOO_MIRROR: expected a URL that begins with http") as caught:
        fetch_file(record, who=WHO)
    assert TOKEN not in full_traceback(caught.value)
    assert TOKEN not in capfd.readouterr().err
    assert not hub.requests


def test_42_an_endless_body_is_stopped(hub):
    endless = bytes(8 * 2**20)
    record = replace(at_url(hub, endless), size=len(DATA))
    assert "got more" in str(corruption(record))
