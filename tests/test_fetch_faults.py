"""A fetch when the bytes are not those of the record: from the Hub, from a plain address, from a mirror, from a zip.

The numbers are those of docs/reliability.md.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from loopback_faults import (
    LFS_POINTER,
    WEB_PAGE,
    cut,
    hang,
    lfs_pointer,
    redirect,
    slow,
    stall,
    status,
    truncated,
    unsized,
    web_page,
    wrong_bytes,
)
from records import (
    PATHS,
    PUBLISHERS,
    WHO,
    all_told,
    at_url,
    digest_of,
    kept,
    publish,
    record_of,
    some_bytes,
    weight_bytes,
)
from tensors import TINY

import medzoo
from medzoo.errors import ConfigError, WeightsCorrupt, WeightsUnavailable
from medzoo.weights import web
from medzoo.weights.fetch import verified
from medzoo.weights.record import UrlFile, ZipMember

pytest_plugins = ["hub_fixtures"]

DATA = some_bytes()
TOKEN = "hf_aSecretThatNobodySees"
PATIENCE = 10.0  # seconds that a fetch may wait between its attempts
EVERYWHERE = pytest.mark.parametrize("place", ["hub", "url"])


@pytest.fixture
def home(hub, tmp_path):
    """Return the folder of files that are not the Hub's."""
    return tmp_path / "medzoo"


@pytest.fixture
def record(hub, place):
    return PUBLISHERS[place](hub, DATA)


def refusal(record) -> WeightsUnavailable:
    with pytest.raises(WeightsUnavailable) as caught:
        verified(record, who=WHO)
    assert type(caught.value) is WeightsUnavailable
    assert WHO in str(caught.value)
    return caught.value


def corruption(record) -> WeightsCorrupt:
    with pytest.raises(WeightsCorrupt) as caught:
        verified(record, who=WHO)
    assert type(caught.value) is WeightsCorrupt
    assert WHO in str(caught.value)
    return caught.value


def no_trace_but(data: bytes, folder: Path) -> None:
    """Hold the caches to keep no other file of the size of weights, whole or partial."""
    assert {found for found in kept(folder) if len(found) > 500} <= {data}


# Plain addresses that are well.


def test_a_plain_file_lies_under_its_digest(hub, home):
    record = at_url(hub, DATA)
    path, data = verified(record, who=WHO)
    assert data == path.read_bytes() == DATA
    assert path == home / "files" / "sha256" / hashlib.sha256(DATA).hexdigest()
    assert verified(record, who=WHO) == (path, DATA)
    assert len(hub.asked("GET")) == 1
    hub.stop()
    assert verified(record, who=WHO) == (path, DATA)


def test_a_weak_digest_is_held_too(hub, home):
    record = at_url(hub, DATA, digest=digest_of(DATA, "md5"), size=None)
    path, data = verified(record, who=WHO)
    assert data == DATA
    assert path == home / "files" / "md5" / hashlib.md5(DATA).hexdigest()
    path.write_bytes(DATA[::-1])
    assert verified(record, who=WHO)[1] == DATA


@pytest.mark.parametrize("fault", [slow(1000, 0.001), unsized()])
def test_a_plain_file_is_taken_as_it_comes(hub, fault):
    record = at_url(hub, DATA)
    hub.fail("/files/*", fault)
    assert verified(record, who=WHO)[1] == DATA


@pytest.mark.parametrize("origin", ["url", "elsewhere"])
def test_a_redirect_is_followed_and_no_token_is_sent(hub, monkeypatch, origin):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    record = at_url(hub, DATA)
    hub.put("/cdn/file", DATA)
    hub.fail("/files/*", redirect(getattr(hub, origin)("/cdn/file")))
    assert verified(record, who=WHO)[1] == DATA
    assert {request.token for request in hub.requests} == {None}


def test_the_home_is_read_at_the_call(hub, tmp_path, monkeypatch):
    record = at_url(hub, DATA)
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "another"))
    assert verified(record, who=WHO)[0].is_relative_to(tmp_path / "another")


def test_a_model_is_created_with_weights_of_a_plain_address(hub, monkeypatch):
    publish("cnn3d_small", at_url(hub, weight_bytes()), monkeypatch)
    model = medzoo.create("cnn3d_small", pretrained="test", **TINY)
    assert model.load_report is not None
    assert not model.load_report.new


# Plain addresses that are not; the Hub's own answers are in test_hub.py.


@pytest.mark.parametrize("number", [401, 403, 404, 410])
def test_34_an_address_that_has_no_file_is_named(hub, waits, number):
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
    assert sum(waits) <= PATIENCE


@pytest.mark.parametrize("number", [429, 503])
def test_29_an_address_that_was_busy_once_gives_the_file(hub, waits, number):
    record = at_url(hub, DATA)
    hub.fail("/files/*", status(number), times=1)
    assert verified(record, who=WHO)[1] == DATA


def test_27_an_address_that_refuses_is_named_with_what_to_do(hub, home, waits):
    record = at_url(hub, DATA)
    hub.stop()
    message = str(refusal(record))
    for part in (record.source.url, str(home), "MEDZOO_HOME", "medzoo fetch"):
        assert part in message
    assert sum(waits) <= PATIENCE


@pytest.mark.parametrize("fault", [hang(), stall(4000)])
def test_27_an_address_that_hangs_is_given_up(hub, waits, monkeypatch, fault):
    monkeypatch.setattr(web, "READ_TIMEOUT", 0.05)
    record = at_url(hub, DATA)
    hub.fail("/files/*", fault)
    assert record.source.url in str(refusal(record))
    assert len(hub.requests) <= 6
    assert sum(waits) <= PATIENCE


@pytest.mark.parametrize("certificates", [None, "/no/such/certificates.pem"])
def test_27_a_connection_that_cannot_be_trusted_is_our_own_error(hub, waits, monkeypatch, certificates):
    if certificates:
        monkeypatch.setenv("SSL_CERT_FILE", certificates)
    record = at_url(hub, DATA)
    secure = replace(record, source=UrlFile(url=record.source.url.replace("http:", "https:")))
    with pytest.raises((WeightsUnavailable, ConfigError)) as caught:
        verified(secure, who=WHO)
    assert "SSL_CERT_FILE" in str(caught.value)
    assert certificates is None or certificates in str(caught.value)


def test_28_offline_no_address_is_asked(hub, waits, monkeypatch):
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


# Bytes that are not the record's, wherever they come from.


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


# A mirror.


@EVERYWHERE
def test_a_mirror_is_asked_instead_and_gets_no_token(hub, record, place, home, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MEDZOO_MIRROR", hub.mirror(DATA, under="/mirror"))
    path, data = verified(record, who=WHO)
    assert data == DATA
    assert path == home / "files" / "sha256" / hashlib.sha256(DATA).hexdigest()
    assert [request.path for request in hub.asked("GET")] == [f"/mirror/sha256/{hashlib.sha256(DATA).hexdigest()}"]
    assert {request.path.split("/")[1] for request in hub.requests} == {"mirror"}
    assert {request.token for request in hub.requests} == {None}


@EVERYWHERE
def test_a_mirror_that_lies_is_not_believed(hub, record, place, waits, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDZOO_MIRROR", hub.mirror(DATA, under="/mirror"))
    hub.fail("/mirror/*", wrong_bytes())
    with pytest.raises(WeightsCorrupt):
        verified(record, who=WHO)
    no_trace_but(DATA, tmp_path)


def test_a_mirror_that_refuses_is_named(hub, waits, monkeypatch):
    record = at_url(hub, DATA)
    monkeypatch.setenv("MEDZOO_MIRROR", hub.url("/mirror"))
    error = refusal(record)
    assert hub.url("/mirror") in str(error)
    assert "MEDZOO_MIRROR" in str(error)
    assert TOKEN not in all_told(error)


# A member of an archive.


def archived(hub, data: bytes = DATA, member: str = "dir/weights.safetensors"):
    """Publish an archive with other members, too, and return the record of one."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README", "not the weights")
        archive.writestr("dir/weights.safetensors", data)
    url = hub.put("/files/archive.zip", packed.getvalue())
    source = ZipMember(url=url, member=member, digest=digest_of(packed.getvalue()), size=len(packed.getvalue()))
    return record_of(source, DATA)


def test_a_member_lies_under_its_own_digest(hub, home):
    record = archived(hub)
    path, data = verified(record, who=WHO)
    assert data == DATA
    assert path == home / "files" / "sha256" / hashlib.sha256(DATA).hexdigest()
    hub.stop()
    assert verified(record, who=WHO) == (path, DATA)


def test_36_an_archive_that_came_wrong_once_is_healed(hub, waits):
    record = archived(hub)
    hub.fail("/files/*", wrong_bytes(), times=1)
    assert verified(record, who=WHO)[1] == DATA


def test_36_an_archive_that_always_comes_wrong_is_corrupt(hub, waits):
    record = archived(hub)
    hub.fail("/files/*", wrong_bytes())
    assert record.source.digest in str(corruption(record))


def test_36_a_member_that_is_not_the_records_is_corrupt(hub, waits):
    record = archived(hub, data=DATA[::-1])
    assert record.digest in str(corruption(record))


def test_34_a_member_that_is_not_there_is_named(hub, waits):
    record = archived(hub, member="dir/other.safetensors")
    with pytest.raises((WeightsCorrupt, WeightsUnavailable), match=r"dir/other\.safetensors"):
        verified(record, who=WHO)
