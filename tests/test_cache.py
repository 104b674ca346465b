"""Cached files and conversions in ``MEDZOO_HOME``: reused, repaired and listed."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from loopback_faults import slow
from records import WHO, at_url, digest_of, on_hub, publish, record_of, weight_bytes
from safetensors.torch import load_file, save
from tensors import TINY
from test_public_weights import saved_pt

import medzoo
from medzoo.cli.main import main
from medzoo.errors import WeightsCorrupt, WeightsUnavailable
from medzoo.weights import cache as weights_cache
from medzoo.weights import download
from medzoo.weights.cache import converted_folder, download_lock, home
from medzoo.weights.download import fetch_file
from medzoo.weights.record import LocalFile
from medzoo.weights.safetensors import read_tensors

pytest_plugins = ["hub_fixtures"]


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def checkpoint(hub, monkeypatch):
    """Register a PyTorch checkpoint behind a URL as the weights of cnn3d_small."""
    model = medzoo.create("cnn3d_small", **TINY).eval()
    data = saved_pt({"state_dict": {f"module.{name}": t for name, t in model.state_dict().items()}, "epoch": 3})
    record = at_url(hub, data, "/files/weights.pt")
    publish("cnn3d_small", record, monkeypatch)
    return model, record


def converted(record):
    return sorted(converted_folder(record.digest, record.layout).iterdir())


def test_a_foreign_file_is_converted_once_and_cached_under_its_own_digest(hub, checkpoint, monkeypatch):
    model, record = checkpoint
    x = torch.randn(2, 1, 16, 16, 16)
    assert torch.equal(medzoo.create("cnn3d_small", pretrained="test")(x), model(x))
    (cached,) = converted(record)
    asked = len(hub.requests)
    # The checkpoint itself is not needed any more.
    for path in (home() / "files").rglob("*"):
        if path.is_file():
            path.unlink()
    monkeypatch.setattr("torch.load", None)
    again = medzoo.create("cnn3d_small", pretrained="test")
    assert torch.equal(again(x), model(x))
    assert again.load_report.digest == record.digest
    assert len(hub.requests) == asked
    assert converted(record) == [cached]


@pytest.mark.parametrize("harm", ["flipped", "cut", "renamed", "empty"])
def test_a_cached_conversion_that_changed_is_repeated(checkpoint, harm, caplog):
    model, record = checkpoint
    medzoo.create("cnn3d_small", pretrained="test")
    (cached,) = converted(record)
    valid = cached.read_bytes()
    if harm == "renamed":
        cached.rename(cached.with_stem("0" * 64))
    else:
        cached.write_bytes({"flipped": valid[:-1] + bytes([valid[-1] ^ 1]), "cut": valid[:-1], "empty": b""}[harm])
    x = torch.randn(2, 1, 16, 16, 16)
    with caplog.at_level(logging.WARNING, logger="medzoo"):
        assert torch.equal(medzoo.create("cnn3d_small", pretrained="test")(x), model(x))
    assert "converting again" in caplog.text
    assert cached.read_bytes() == valid
    assert converted(record) == [cached]


def test_a_read_only_home_converts_at_each_load(checkpoint, monkeypatch, caplog):
    def refuse(path, data):
        raise PermissionError(13, "Permission denied", str(path))

    model, record = checkpoint
    monkeypatch.setattr("medzoo.weights.obtain.write_atomically", refuse)
    x = torch.randn(2, 1, 16, 16, 16)
    with caplog.at_level(logging.INFO, logger="medzoo"):
        assert torch.equal(medzoo.create("cnn3d_small", pretrained="test")(x), model(x))
    assert "the conversion is not cached" in caplog.text
    assert converted(record) == []


def test_fetch_to_a_folder_includes_the_conversion(checkpoint, tmp_path, monkeypatch):
    _, record = checkpoint
    assert run("fetch", WHO, "--to", tmp_path / "stick").exit_code == 0
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "stick"))
    monkeypatch.setattr("torch.load", None)
    assert medzoo.create("cnn3d_small", pretrained="test").load_report.digest == record.digest


def test_the_cache_command_lists_every_file_and_its_state(hub, checkpoint, monkeypatch):
    medzoo.create("cnn3d_small", pretrained="test")
    (home() / "files" / "sha256" / ("0" * 64)).write_bytes(b"old")
    (home() / "files" / "sha256" / "tmpabc").write_bytes(b"cut")
    os.utime(home() / "files" / "sha256" / "tmpabc", (0, 0))
    (home() / "files" / "sha256" / "tmpdef").write_bytes(b"incomplete")
    (home() / "notes.txt").write_text("a file of the user")
    result = run("cache")
    assert result.exit_code == 0
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in result.stdout.splitlines() if "│" in row]
    assert [row[:2] for row in rows if row[1]] == [
        ["unknown", "stale"],
        [WHO, "file"],
        ["unknown", "left over"],
        ["unknown", "downloading"],
        [WHO, "converted"],
    ]
    assert {row[3] for row in rows if row[1] == "left over"} == {"1970-01-01"}
    assert "5 files" in result.stdout
    assert "medzoo cache --prune removes what is stale or left over" in result.stdout
    assert "notes.txt" not in result.stdout


OLD = "files/sha256/" + "0" * 64
LEFT_OVER = "files/sha256/tmpabc"
ARCHIVE = "archive-a1b2c3d4/archive.zip"
RUNNING = "files/sha256/tmpdef"


@pytest.fixture
def full(checkpoint):
    """Fill the cache with a registered file and its conversion, and with files that --prune removes."""
    medzoo.create("cnn3d_small", pretrained="test")
    for name in (OLD, LEFT_OVER, ARCHIVE, RUNNING):
        (home() / name).parent.mkdir(exist_ok=True)
        (home() / name).write_bytes(bytes(1_000_000))
    for name in (LEFT_OVER, ARCHIVE):
        os.utime(home() / name, (0, 0))
    return checkpoint[1]


def stored():
    return {
        path.relative_to(home()).as_posix()
        for path in home().rglob("*")
        if path.is_file() and ".locks" not in path.parts
    }


def test_prune_removes_what_no_registered_weights_refer_to(full):
    before = stored()
    result = run("cache", "--prune", "--yes")
    assert result.exit_code == 0
    assert "Removed 3 files, 3.0 MB." in result.stdout
    assert before - stored() == {OLD, LEFT_OVER, ARCHIVE}
    assert not (home() / ARCHIVE).parent.exists()
    assert "0 files" in run("cache", "--prune", "--yes").stdout
    medzoo.create("cnn3d_small", pretrained="test")


@pytest.mark.parametrize(
    ("arguments", "answer"), [(["--dry-run"], ""), ([], "n\n"), ([], ""), (["--yes", "--dry-run"], "")]
)
def test_prune_shows_what_it_would_remove(full, arguments, answer):
    before = stored()
    result = CliRunner().invoke(main, ["cache", "--prune", *arguments], input=answer)
    assert "3 files, 3.0 MB; to remove from" in result.stdout
    assert stored() == before
    assert ("Remove them? [y/N]" in result.stdout) == (not arguments)
    assert result.exit_code == (1 if not arguments and not answer else 0)


def test_prune_asks(full):
    result = CliRunner().invoke(main, ["cache", "--prune"], input="y\n")
    assert "Removed 3 files" in result.stdout


def test_older_than_selects_by_the_last_use(full):
    (stored_weights,) = (
        path for path in stored() if full.digest.partition(":")[2] in path and path.startswith("files")
    )
    year = 365 * 24 * 3600
    os.utime(home() / stored_weights, (time.time() - 2 * year, time.time() - 3 * year))
    listed = run("cache", "--older-than", "700d").stdout
    assert "3 files" in listed
    assert WHO in listed
    before = stored()
    assert "Removed 2 files" in run("cache", "--prune", "--yes", "--older-than", "800d").stdout
    assert "Removed 1 files" in run("cache", "--prune", "--yes", "--older-than", "100w").stdout
    assert before - stored() == {LEFT_OVER, ARCHIVE, stored_weights}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--yes"], "--yes and --dry-run need --prune"),
        (["--prune", "--older-than", "soon"], "expected a number and h, d or w, such as 30d, got 'soon'"),
    ],
)
def test_wrong_options_of_cache(arguments, message):
    result = run("cache", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_prune_leaves_what_a_process_downloads(full):
    """A stalled download writes nothing for an hour, but holds its lock."""
    before = stored()
    with download_lock("sha256:" + "0" * 64):
        result = run("cache", "--prune", "--yes")
    assert stored() == before
    assert "not removed, in use or not permitted" in result.stderr
    assert "Removed 0 files" in result.stdout


def test_prune_needs_no_locks(full, monkeypatch):
    """On a filesystem without locks, or where the folder of the locks cannot be written."""

    def unsupported(*arguments, **options):
        raise NotImplementedError("use SoftFileLock instead")

    monkeypatch.setattr("filelock.FileLock.acquire", unsupported)
    with download_lock("sha256:" + "0" * 64):
        assert "Removed 3 files" in run("cache", "--prune", "--yes").stdout


def test_prune_leaves_files_of_the_user_and_of_other_folders(full, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ("1" * 32)).write_bytes(b"not medzoo's")
    (home() / "files" / "md5").symlink_to(outside)
    users = [
        "files/patients/scan.nii",
        "files/sha256/notes.txt",
        "archive-2024/scan.zip",
        "converted/mine/x.safetensors",
    ]
    for name in users:
        (home() / name).parent.mkdir(exist_ok=True)
        (home() / name).write_bytes(b"the user's")
        os.utime(home() / name, (0, 0))
    before = stored()
    run("cache", "--prune", "--yes")
    run("cache", "--prune", "--yes", "--older-than", "0h")
    assert {*users} <= before & stored()
    assert (outside / ("1" * 32)).exists()


def test_the_cache_of_the_hub_is_listed_and_never_pruned(hub, monkeypatch):
    publish("cnn3d_small", on_hub(hub, weight_bytes()), monkeypatch)
    medzoo.create("cnn3d_small", pretrained="test")
    monkeypatch.setenv("MEDZOO_HOME", str(Path(os.environ["HF_HOME"])))
    assert WHO in run("cache").stdout
    result = run("cache", "--prune", "--yes", "--older-than", "0h")
    assert "0 files" in result.stdout
    assert WHO in run("cache").stdout


def test_a_file_of_several_records_is_listed_with_all_of_them(hub, monkeypatch):
    record = at_url(hub, weight_bytes())
    publish("cnn3d_small", record, monkeypatch)
    publish("xray_cnn", record, monkeypatch)
    fetch_file(record, who=WHO)
    assert "cnn3d_small:test, xray_cnn:test" in " ".join(run("cache").stdout.split())


def test_processes_that_wait_for_a_lock_download_once(hub):
    record = at_url(hub, weight_bytes())
    hub.fail("/files/*", slow(1000, 0.02))
    threads = [threading.Thread(target=fetch_file, args=(record, WHO)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.asked("GET")) == 1


def test_a_lock_that_is_never_released_delays_a_download_only(hub, monkeypatch):
    assert weights_cache.LOCK_TIMEOUT == 120
    monkeypatch.setattr(weights_cache, "LOCK_TIMEOUT", 0.1)
    record = at_url(hub, weight_bytes())
    with download_lock(record.digest):
        assert fetch_file(record, who=WHO)[1] == weight_bytes()


def forge(cached, record, **metadata):
    """Replace a conversion by other tensors, under their own digest."""
    tensors = {name: tensor + 1 for name, tensor in load_file(cached).items()}
    stated = {"source": record.digest, "dropped": [], **metadata}
    data = save(tensors, metadata={"medzoo": json.dumps(stated)})
    cached.unlink()
    cached.with_stem(digest_of(data).partition(":")[2]).write_bytes(data)


@pytest.mark.parametrize("command", ["verify", "fetch"])
def test_a_forged_conversion_is_replaced(checkpoint, command):
    _, record = checkpoint
    medzoo.create("cnn3d_small", pretrained="test")
    (cached,) = converted(record)
    valid = cached.read_bytes()
    forge(cached, record)
    assert run(command, WHO).exit_code == 0
    assert converted(record) == [cached]
    assert cached.read_bytes() == valid


def test_a_conversion_of_another_file_is_not_used(checkpoint, caplog):
    model, record = checkpoint
    medzoo.create("cnn3d_small", pretrained="test")
    (cached,) = converted(record)
    forge(cached, record, source="sha256:" + "0" * 64)
    x = torch.randn(2, 1, 16, 16, 16)
    assert torch.equal(medzoo.create("cnn3d_small", pretrained="test")(x), model(x))
    assert "it was converted from sha256:0000" in caplog.text


@pytest.mark.parametrize("where", ["home", "files"])
def test_a_home_that_is_a_file(hub, monkeypatch, tmp_path, where):
    publish("cnn3d_small", at_url(hub, weight_bytes()), monkeypatch)
    (tmp_path / "home").mkdir()
    blocked = tmp_path / "home" if where == "home" else tmp_path / "home" / "files"
    if where == "home":
        blocked.rmdir()
    blocked.write_text("")
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "home"))
    result = run("fetch", WHO)
    assert result.exit_code == WeightsUnavailable.exit_code
    assert "MEDZOO_HOME" in result.stderr


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(tmp_path):
    """The first read meets a damaged file, which another process then replaces by the right one."""
    data = weight_bytes()
    file = tmp_path / "f"
    file.write_bytes(data)
    calls = []

    def read(path, algorithm):
        calls.append(path)
        if len(calls) == 1:
            raise WeightsCorrupt("its tensors end at 1")
        return "content", digest_of(path.read_bytes(), algorithm)

    assert download._read(record_of(LocalFile(file), data), file, read) == ("content", "")
    assert len(calls) == 2


def test_a_file_that_is_removed_while_it_is_read_is_downloaded(hub):
    record = at_url(hub, weight_bytes())
    path, _ = fetch_file(record, WHO)
    asked, done = len(hub.requests), []

    def read(file, algorithm):
        if not done:
            done.append(file)
            file.unlink()
        return read_tensors(file, algorithm)

    again, tensors, digest = download.read_verified(record, WHO, read)
    assert (again, digest) == (path, record.digest)
    assert tensors
    assert len(hub.requests) > asked


def test_a_file_of_another_size_is_not_read(hub, monkeypatch):
    record = at_url(hub, weight_bytes())
    path, data = fetch_file(record, WHO)
    path.write_bytes(data + b"x")
    read = []
    monkeypatch.setattr(download, "_read_bytes", lambda file, algorithm: read.append(file) or (file.read_bytes(), ""))
    content, wrong = download._read(record, path, download._read_bytes)
    assert (content, read) == (None, [])
    assert wrong == f"{path}: expected {len(data):,} bytes, got {len(data) + 1:,}."
