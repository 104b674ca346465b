"""The tests' own server against the real clients, on which the other tests rely."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pooch
import pytest
import requests
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback import CERTIFICATE, client_environment
from loopback_faults import bare, cut, lfs_pointer, redirect, slow, status, truncated, unsized, web_page, wrong_bytes

pytest_plugins = ["hub_fixtures"]

DATA = bytes(range(256)) * 40
FILE = "model.safetensors"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_repository_is_downloaded_by_commit_and_by_branch(hub):
    commit = hub.add("o/r", {FILE: DATA, "config.json": b"{}"}, revision="a" * 40)
    assert Path(hf_hub_download("o/r", FILE, revision=commit)).read_bytes() == DATA
    assert [request.method for request in hub.requests] == ["HEAD", "GET"]
    newest = hub.add("o/r", {FILE: DATA[::-1]})
    path = Path(hf_hub_download("o/r", FILE))
    assert path.read_bytes() == DATA[::-1]
    assert path.parent.name == newest
    asked = len(hub.requests)
    hf_hub_download("o/r", FILE, revision=commit)
    assert len(hub.requests) == asked
    assert sorted(path.name for path in Path(snapshot_download("o/r", revision=commit)).iterdir()) == [
        "config.json",
        FILE,
    ]


def test_missing_files_raise_the_errors_of_the_client(hub):
    commit = hub.add("o/r", {FILE: DATA})
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("o/none", FILE)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("o/r", FILE, revision="b" * 40)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("o/r", "other.safetensors", revision=commit)
    hub.fail("/o/r/*", status(403, "GatedRepo", "Access to model o/r is restricted."))
    with pytest.raises(GatedRepoError):
        hf_hub_download("o/r", FILE)


@pytest.mark.parametrize("fault", [bare(), web_page(), status(403), status(404)])
def test_an_answer_of_another_server_is_not_a_file(hub, fault):
    hub.add("o/r", {FILE: DATA})
    hub.fail("/o/r/*", fault)
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("o/r", FILE)
    hub.clear_faults()
    assert Path(hf_hub_download("o/r", FILE)).read_bytes() == DATA


def test_a_busy_hub_is_retried(hub, waits):
    hub.add("o/r", {FILE: DATA})
    hub.fail("/o/r/*", status(503), times=2)
    hub.fail("/o/r/*", status(429, headers={"Retry-After": "3"}), times=1)
    assert Path(hf_hub_download("o/r", FILE)).read_bytes() == DATA
    assert [request.method for request in hub.requests] == ["HEAD"] * 4 + ["GET"]
    assert waits == [1, 4.0]


def test_a_cut_body_is_requested_again(hub, waits):
    hub.add("o/r", {FILE: DATA})
    hub.fail("/o/r/*", cut(1000), times=2)
    assert Path(hf_hub_download("o/r", FILE)).read_bytes() == DATA
    assert len(hub.asked("GET")) == 3


def test_bodies_of_the_wrong_size_are_refused_and_wrong_bytes_are_not(hub):
    hub.add("o/r", {FILE: DATA})
    for fault in (truncated(3), lfs_pointer()):
        hub.fail("/o/r/*", fault, times=1)
        with pytest.raises(OSError, match="Consistency check failed"):
            hf_hub_download("o/r", FILE)
    hub.fail("/o/r/*", wrong_bytes(), times=1)
    wrong = Path(hf_hub_download("o/r", FILE))
    assert wrong.read_bytes() != DATA
    assert wrong.resolve().name == sha256(DATA)


def test_a_token_is_not_sent_to_another_origin(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.add("o/r", {FILE: DATA})
    hub.put("/cdn/file", DATA)
    hub.fail("/o/r/*", redirect(hub.elsewhere("/cdn/file")))
    assert Path(hf_hub_download("o/r", FILE)).read_bytes() == DATA
    assert [request.token for request in hub.requests] == ["hf_secret", None]
    assert hub.requests[0].port != hub.requests[1].port


def test_a_renamed_repository_is_followed_and_a_loop_ends(hub):
    hub.add("o/new", {FILE: DATA})
    hub.fail("/o/old/*", redirect(f"/o/new/resolve/main/{FILE}", 307))
    assert Path(hf_hub_download("o/old", FILE)).read_bytes() == DATA
    hub.fail("/o/loop/*", redirect(f"/o/loop/resolve/main/{FILE}"))
    # The client does not catch this error of its HTTP library, so it is matched by its text.
    with pytest.raises(Exception, match="Exceeded 20 redirects"):
        hf_hub_download("o/loop", FILE)
    assert len(hub.asked("HEAD", "/o/loop/*")) == 20


def test_plain_files_are_retrieved(hub, tmp_path):
    url = hub.put("/files/x", DATA)
    known = f"sha256:{sha256(DATA)}"
    hub.fail("/files/x", slow(4096, 0.001), times=1)
    assert Path(pooch.retrieve(url, known, fname="x", path=tmp_path / "a")).read_bytes() == DATA
    hub.fail("/moved", redirect("/files/x"))
    assert Path(pooch.retrieve(hub.url("/moved"), known, fname="x", path=tmp_path / "b")).read_bytes() == DATA
    mirror = hub.mirror(DATA, "md5", under="/mirror")
    assert requests.get(f"{mirror}/md5/{hashlib.md5(DATA).hexdigest()}", timeout=5).content == DATA
    hub.fail("/files/x", wrong_bytes(), times=1)
    with pytest.raises(ValueError, match="hash"):
        pooch.retrieve(url, known, fname="x", path=tmp_path / "c")
    hub.fail("/files/x", cut(100), times=1)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        pooch.retrieve(url, known, fname="x", path=tmp_path / "d")
    hub.fail("/files/x", redirect("/files/x"))
    with pytest.raises(requests.exceptions.TooManyRedirects):
        pooch.retrieve(url, known, fname="x", path=tmp_path / "e")


def test_a_body_without_a_length(hub):
    url = hub.put("/files/x", DATA)
    hub.fail("/files/x", unsized(), times=1)
    complete = requests.get(url, timeout=5)
    assert complete.content == DATA
    assert "Content-Length" not in complete.headers
    hub.fail("/files/x", unsized(cut=7), times=1)
    assert requests.get(url, timeout=5).content == DATA[:7]


def test_a_range_is_answered(hub):
    url = hub.put("/files/x", DATA)
    part = requests.get(url, headers={"Range": "bytes=100-"}, timeout=5)
    assert (part.status_code, part.content) == (206, DATA[100:])
    assert part.headers["Content-Range"] == f"bytes 100-{len(DATA) - 1}/{len(DATA)}"


# The client sends large files in a way that its HTTP library deprecates.
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_folder_is_pushed_and_downloaded(hub, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / FILE).write_bytes(DATA)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    api = HfApi(token="hf_secret")
    assert api.create_repo("o/pushed").repo_id == "o/pushed"
    api.create_repo("o/pushed", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("o/pushed")
    pushed = api.upload_folder(repo_id="o/pushed", folder_path=folder, token="hf_secret")
    assert Path(hf_hub_download("o/pushed", FILE, revision=pushed.oid)).read_bytes() == DATA
    assert hub.repos["o/pushed"].commits[pushed.oid].keys() == {".gitattributes", FILE, "config.json", "README.md"}
    assert {request.token for request in hub.asked("POST")} == {"hf_secret"}
    api.delete_file("config.json", "o/pushed")
    assert sorted(api.list_repo_files("o/pushed")) == [".gitattributes", "README.md", FILE]
    checks = api.verify_repo_checksums("o/pushed", revision=pushed.oid)
    assert not checks.mismatches
    assert len(hub.asked("PUT")) == 1
    api.upload_folder(repo_id="o/pushed", folder_path=folder)
    assert len(hub.asked("PUT")) == 1


def test_another_process_finds_the_server(hub, tmp_path):
    hub.add("o/r", {FILE: DATA})
    code = "import json, huggingface_hub as h; print(json.dumps(h.hf_hub_download('o/r', 'model.safetensors')))"
    environment = {**os.environ, **client_environment(hub, tmp_path / "child")}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    path = Path(json.loads(answer.stdout))
    assert path.is_relative_to(tmp_path / "child")
    assert path.read_bytes() == DATA
    assert {request.token for request in hub.requests} == {None}


def test_a_tls_port_is_trusted_only_with_its_certificate(hub):
    hub.put("/files/x", DATA)
    assert requests.get(hub.secure("/files/x"), timeout=5, verify=str(CERTIFICATE)).content == DATA
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(hub.secure("/files/x"), timeout=5)


def test_a_stopped_server_refuses_connections(hub):
    hub.stop()
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(hub.url("/files/x"), timeout=5)
