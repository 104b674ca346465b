"""What is kept of weights on this machine, and the commands that fetch, verify and list them."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from click.testing import CliRunner
from records import WHO, at_url, digest_of, on_hub, publish, record_of, weight_bytes
from safetensors.torch import load_file, save
from tensors import TINY
from test_public_weights import saved_pt

import medzoo
from medzoo import registry
from medzoo.cli.main import main
from medzoo.errors import ConfigError, WeightsCorrupt, WeightsUnavailable
from medzoo.weights.cache import converted_folder, home
from medzoo.weights.record import UrlFile
from medzoo.weights.stock import golden_input, listed

pytest_plugins = ["hub_fixtures"]


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def checkpoint(hub, monkeypatch):
    """Give cnn3d_small a record of a PyTorch checkpoint behind a URL."""
    model = medzoo.create("cnn3d_small", **TINY).eval()
    data = saved_pt({"state_dict": {f"module.{name}": t for name, t in model.state_dict().items()}, "epoch": 3})
    record = at_url(hub, data, "/files/weights.pt")
    publish("cnn3d_small", record, monkeypatch)
    return model, record


def converted(record):
    return sorted(converted_folder(record.digest, record.layout).iterdir())


def test_a_foreign_file_is_converted_once_and_kept_under_its_own_digest(hub, checkpoint, monkeypatch):
    model, record = checkpoint
    x = torch.randn(2, 1, 16, 16, 16)
    assert torch.equal(medzoo.create("cnn3d_small", pretrained="test")(x), model(x))
    (kept,) = converted(record)
    asked = len(hub.requests)
    # The checkpoint is not even needed any more.
    for path in (home() / "files").rglob("*"):
        if path.is_file():
            path.unlink()
    monkeypatch.setattr("torch.load", None)
    again = medzoo.create("cnn3d_small", pretrained="test")
    assert torch.equal(again(x), model(x))
    assert again.load_report.digest == record.digest
    assert len(hub.requests) == asked
    assert converted(record) == [kept]


@pytest.mark.parametrize("harm", ["flipped", "cut", "renamed", "empty"])
def test_a_kept_conversion_that_changed_is_made_again(checkpoint, harm, caplog):
    model, record = checkpoint
    medzoo.create("cnn3d_small", pretrained="test")
    (kept,) = converted(record)
    sound = kept.read_bytes()
    if harm == "renamed":
        kept.rename(kept.with_stem("0" * 64))
    else:
        kept.write_bytes({"flipped": sound[:-1] + bytes([sound[-1] ^ 1]), "cut": sound[:-1], "empty": b""}[harm])
    x = torch.randn(2, 1, 16, 16, 16)
    with caplog.at_level(logging.WARNING, logger="medzoo"):
        assert torch.equal(medzoo.create("cnn3d_small", pretrained="test")(x), model(x))
    assert "made again" in caplog.text
    assert kept.read_bytes() == sound
    assert converted(record) == [kept]


def test_a_home_that_cannot_be_written_costs_a_conversion_each_time_and_no_more(checkpoint, monkeypatch, caplog):
    def sealed(path, data):
        raise PermissionError(13, "Permission denied", str(path))

    model, record = checkpoint
    monkeypatch.setattr("medzoo.weights.download.write_atomically", sealed)
    x = torch.randn(2, 1, 16, 16, 16)
    with caplog.at_level(logging.INFO, logger="medzoo"):
        assert torch.equal(medzoo.create("cnn3d_small", pretrained="test")(x), model(x))
    assert "the conversion is not kept" in caplog.text
    assert converted(record) == []


@pytest.mark.parametrize("place", [on_hub, at_url])
def test_fetch_to_a_folder_that_another_machine_reads(hub, place, tmp_path, monkeypatch):
    data = weight_bytes()
    record = place(hub, data)
    publish("cnn3d_small", record, monkeypatch)
    result = run("fetch", WHO, "--to", tmp_path / "stick")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert result.stdout.startswith(f"{WHO} {tmp_path / 'stick'}")
    hub.stop()
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "stick"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    assert medzoo.create("cnn3d_small", pretrained="test").load_report.digest == record.digest


def test_fetch_to_brings_the_conversion_too(checkpoint, tmp_path, monkeypatch):
    _, record = checkpoint
    assert run("fetch", WHO, "--to", tmp_path / "stick").exit_code == 0
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "stick"))
    monkeypatch.setattr("torch.load", None)
    assert medzoo.create("cnn3d_small", pretrained="test").load_report.digest == record.digest


def test_fetch_goes_on_past_what_cannot_be_had(hub, monkeypatch):
    good = at_url(hub, weight_bytes())
    gone = replace(good, tag="gone", source=UrlFile(hub.url("/files/none")), digest="sha256:" + "0" * 64)
    spec = replace(registry.describe("cnn3d_small"), weights=MappingProxyType({"gone": gone, "test": good}))
    monkeypatch.setitem(registry._MODELS, "cnn3d_small", spec)
    result = run("fetch", "cnn3d_small:gone", WHO)
    assert result.exit_code == 3
    assert result.stderr.startswith("WeightsUnavailable: cnn3d_small:gone: ")
    assert result.stdout.startswith(WHO)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "expected names of weights or --all"),
        (["--all", "cnn3d_small"], "expected names of weights or --all"),
        (["cnn3d_smal"], "Did you mean 'cnn3d_small'"),
        (["densenet121_xray:xrv_al"], "Did you mean 'xrv_all'? Tags: xrv_all, xrv_mimic_ch, xrv_chex."),
        (["xray_cnn"], "no default weights"),
    ],
)
def test_fetch_of_no_weights_is_a_usage_error(arguments, says):
    result = run("fetch", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr


def test_verify_tells_digest_and_tensors(hub, monkeypatch):
    record = on_hub(hub, weight_bytes())
    publish("cnn3d_small", record, monkeypatch)
    result = run("verify", WHO)
    assert result.exit_code == 0, result.output
    assert f"digest {record.digest} (right)" in result.stdout
    assert "25 of 25 tensors loaded, 0 random" in result.stdout
    assert "no golden outputs are recorded" in result.stdout


def test_verify_calls_md5_weak(hub, monkeypatch):
    data = weight_bytes()
    publish("cnn3d_small", at_url(hub, data, digest=digest_of(data, "md5")), monkeypatch)
    result = run("verify", WHO)
    assert "(weak: it finds damage, but no forgery)" in result.stdout


def test_verify_compares_golden_outputs(hub, monkeypatch):
    data = weight_bytes()
    record = at_url(hub, data)
    publish("cnn3d_small", record, monkeypatch)
    model = medzoo.create("cnn3d_small", pretrained="test")
    golden = tuple(model(golden_input(model.input_spec)).flatten().tolist())
    publish("cnn3d_small", replace(record, golden=golden), monkeypatch)
    assert "golden outputs agree within" in run("verify", WHO).stdout
    publish("cnn3d_small", replace(record, golden=(golden[0] + 0.01,)), monkeypatch)
    result = run("verify", WHO)
    assert result.exit_code == WeightsCorrupt.exit_code
    assert "computes otherwise" in result.stderr


def test_cache_tells_what_is_there_and_what_is_stale(hub, checkpoint, monkeypatch):
    medzoo.create("cnn3d_small", pretrained="test")
    (home() / "files" / "sha256" / ("0" * 64)).write_bytes(b"old")
    (home() / "files" / "sha256" / "tmpabc").write_bytes(b"cut")
    os.utime(home() / "files" / "sha256" / "tmpabc", (0, 0))
    (home() / "files" / "sha256" / "tmpdef").write_bytes(b"not there yet")
    (home() / "notes.txt").write_text("the user's own")
    result = run("cache")
    assert result.exit_code == 0
    states = [
        state for state in ("file", "converted", "stale", "left over", "arriving") if f"│ {state} " in result.stdout
    ]
    assert states == ["file", "converted", "stale", "left over", "arriving"]
    assert "5 files" in result.stdout
    assert "tmpdef" not in result.stdout.partition("safe to delete")[2]
    assert "safe to delete" in result.stdout
    assert "notes.txt" not in result.stdout


def test_list_tells_part_licence_size_and_digest():
    result = run("list", "--pretrained")
    for said in ("xrv_all (default)", "encoder only", "Apache-2.0", "28.4 MB", "md5 (weak)", "not known"):
        assert said in result.stdout
    assert "cnn3d_base" not in result.stdout
    trained = run("list", "--trained").stdout
    assert "xrv_chex" in trained
    assert "btcv" not in trained
    assert run("list", "--license", "bsd*").stdout.count("resnet18_multilabel") == 1


def test_a_licence_that_forbids_commerce_is_marked(hub, monkeypatch):
    publish("cnn3d_small", at_url(hub, weight_bytes(), license="CC-BY-NC-4.0"), monkeypatch)
    assert "CC-BY-NC-4.0 (non-commercial)" in run("list", "--pretrained").stdout


def test_models_by_their_weights():
    assert medzoo.list_models(trained=True) == ["densenet121_xray"]
    assert medzoo.list_models(license="BSD-3-clause") == ["resnet18_multilabel"]
    assert medzoo.list_models(pretrained=True, license="apache-*", trained=True) == ["densenet121_xray"]
    assert medzoo.list_models(license="none such") == []


def test_every_record_is_listed_once():
    tags = [(spec.name, record.tag) for spec, record in listed()]
    assert len(set(tags)) == len(tags) == 9
    chosen = listed(["swin_encoder_mlp", "densenet121_xray:xrv_chex"])
    assert [record.tag for _, record in chosen] == ["btcv", "xrv_chex"]


@pytest.mark.parametrize("digest", ["", "abc", "sha256:", "sha256:" + "g" * 64, "sha1:" + "0" * 40, "md5:" + "0" * 64])
def test_a_digest_that_is_none_is_refused(digest):
    with pytest.raises(ConfigError, match="expected digest 'sha256:' and 64 hex digits"):
        record_of(UrlFile("https://x/y"), b"", digest=digest)


def forge(kept, record, **metadata):
    """Put other tensors in the place of a conversion, under their own digest."""
    tensors = {name: tensor + 1 for name, tensor in load_file(kept).items()}
    told = {"source": record.digest, "dropped": [], **metadata}
    data = save(tensors, metadata={"medzoo": json.dumps(told)})
    kept.unlink()
    kept.with_stem(digest_of(data).partition(":")[2]).write_bytes(data)


@pytest.mark.parametrize("command", ["verify", "fetch"])
def test_a_forged_conversion_is_made_again(checkpoint, command):
    _, record = checkpoint
    medzoo.create("cnn3d_small", pretrained="test")
    (kept,) = converted(record)
    sound = kept.read_bytes()
    forge(kept, record)
    assert run(command, WHO).exit_code == 0
    assert converted(record) == [kept]
    assert kept.read_bytes() == sound


def test_a_conversion_of_another_file_is_not_used(checkpoint, caplog):
    model, record = checkpoint
    medzoo.create("cnn3d_small", pretrained="test")
    (kept,) = converted(record)
    forge(kept, record, source="sha256:" + "0" * 64)
    x = torch.randn(2, 1, 16, 16, 16)
    assert torch.equal(medzoo.create("cnn3d_small", pretrained="test")(x), model(x))
    assert "it was made from sha256:0000" in caplog.text


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
