"""The weights of the registry: listed, fetched and verified by the command line."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest
from click.testing import CliRunner
from records import WHO, at_url, digest_of, on_hub, publish, record_of, weight_bytes

import medzoo
from medzoo import registry
from medzoo.cli.main import main
from medzoo.errors import ConfigError, WeightsCorrupt
from medzoo.weights.record import UrlFile
from medzoo.weights.verify import find_records, golden_input

pytest_plugins = ["hub_fixtures"]


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


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


def test_fetch_continues_after_a_file_that_is_unavailable(hub, monkeypatch):
    good = at_url(hub, weight_bytes())
    gone = replace(good, tag="gone", source=UrlFile(hub.url("/files/none")), digest="sha256:" + "0" * 64)
    spec = replace(registry.describe("cnn3d_small"), weights=MappingProxyType({"gone": gone, "test": good}))
    monkeypatch.setitem(registry._MODELS, "cnn3d_small", spec)
    result = run("fetch", "cnn3d_small:gone", WHO)
    assert result.exit_code == 3
    assert result.stderr.startswith("WeightsUnavailable: cnn3d_small:gone: ")
    assert result.stdout.startswith(WHO)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected names of weights or --all"),
        (["--all", "cnn3d_small"], "expected names of weights or --all"),
        (["cnn3d_smal"], "Did you mean 'cnn3d_small'"),
        (["densenet121_xray:xrv_al"], "Did you mean 'xrv_all'? Tags: xrv_all, xrv_mimic_ch, xrv_chex."),
        (["xray_cnn"], "no default weights"),
    ],
)
def test_fetch_without_weights_is_a_usage_error(arguments, message):
    result = run("fetch", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_verify_prints_digest_and_tensors(hub, monkeypatch):
    record = on_hub(hub, weight_bytes())
    publish("cnn3d_small", record, monkeypatch)
    result = run("verify", WHO)
    assert result.exit_code == 0, result.output
    assert f"digest {record.digest} (verified)" in result.stdout
    assert "25 of 25 tensors loaded, 0 random" in result.stdout
    assert "no golden outputs are recorded" in result.stdout


def test_verify_calls_md5_weak(hub, monkeypatch):
    data = weight_bytes()
    publish("cnn3d_small", at_url(hub, data, digest=digest_of(data, "md5")), monkeypatch)
    result = run("verify", WHO)
    assert "(weak: detects damage, not forgery)" in result.stdout


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
    assert "computes differently" in result.stderr


def test_list_prints_part_licence_size_and_digest():
    result = run("list", "--pretrained")
    for text in ("xrv_all (default)", "encoder only", "Apache-2.0", "28.4 MB", "md5 (weak)", "not known"):
        assert text in result.stdout
    assert "cnn3d_base" not in result.stdout
    trained = run("list", "--trained").stdout
    assert "xrv_chex" in trained
    assert "btcv" not in trained
    assert run("list", "--license", "bsd*").stdout.count("resnet18_multilabel") == 1


def test_a_non_commercial_licence_is_marked(hub, monkeypatch):
    publish("cnn3d_small", at_url(hub, weight_bytes(), license="CC-BY-NC-4.0"), monkeypatch)
    assert "CC-BY-NC-4.0 (non-commercial)" in run("list", "--pretrained").stdout


def test_list_models_filters_by_weights():
    assert medzoo.list_models(trained=True) == ["densenet121_xray"]
    assert medzoo.list_models(license="BSD-3-clause") == ["resnet18_multilabel"]
    assert medzoo.list_models(pretrained=True, license="apache-*", trained=True) == ["densenet121_xray"]
    assert medzoo.list_models(license="none such") == []


def test_every_record_is_listed_once():
    tags = [(spec.name, record.tag) for spec, record in find_records()]
    assert len(set(tags)) == len(tags) == 9
    chosen = find_records(["swin_encoder_mlp", "densenet121_xray:xrv_chex"])
    assert [record.tag for _, record in chosen] == ["btcv", "xrv_chex"]


@pytest.mark.parametrize("digest", ["", "abc", "sha256:", "sha256:" + "g" * 64, "sha1:" + "0" * 40, "md5:" + "0" * 64])
def test_an_invalid_digest_is_refused(digest):
    with pytest.raises(ConfigError, match="expected digest 'sha256:' and 64 hex digits"):
        record_of(UrlFile("https://x/y"), b"", digest=digest)
