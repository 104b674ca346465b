"""Cached files and conversions in ``MEDZOO_HOME``: reused, repaired and listed."""

from __future__ import annotations

import json
import logging
import os

import pytest
import torch
from click.testing import CliRunner
from records import WHO, at_url, digest_of, publish, weight_bytes
from safetensors.torch import load_file, save
from tensors import TINY
from test_public_weights import saved_pt

import medzoo
from medzoo.cli.main import main
from medzoo.errors import WeightsUnavailable
from medzoo.weights.cache import converted_folder, home

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
    states = [
        state for state in ("file", "converted", "stale", "left over", "downloading") if f"│ {state} " in result.stdout
    ]
    assert states == ["file", "converted", "stale", "left over", "downloading"]
    assert "5 files" in result.stdout
    assert "tmpdef" not in result.stdout.partition("safe to delete")[2]
    assert "safe to delete" in result.stdout
    assert "notes.txt" not in result.stdout


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
