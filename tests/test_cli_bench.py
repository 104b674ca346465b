"""``medzoo bench``: the table and its errors. No assertion on seconds."""

from __future__ import annotations

import re

import pytest
import torch
from click.testing import CliRunner

import medzoo
from medzoo.cli import bench as bench_module
from medzoo.cli.bench import bench
from medzoo.errors import ConfigError, ShapeError, UnknownModelError
from medzoo.nn.conv import ConvEncoder


def run(*arguments):
    return CliRunner().invoke(bench, [str(a) for a in arguments])


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(bench_module, "MIN_SECONDS", 0.0)


def test_the_table_has_both_modes_of_each_model():
    result = run("cnn3d_small", "xray_cnn", "--size", 32, "--batch", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert f"torch {torch.__version__}" in text
    assert f"{torch.get_num_threads()} threads, float32, 20" in text
    for name, shape, unit in (
        ("cnn3d_small", "2 × 1 × 32 × 32 × 32", "volumes"),
        ("xray_cnn", "2 × 3 × 32 × 32", "images"),
    ):
        row = rf"{name} +│ {shape} +│ eager +│ [\d.,]+ ms \([\d.,]+–[\d.,]+\) +│ [\d.,]+ {unit}/s +│"
        assert re.search(row, text), text
    assert text.count("│ optimized │") == 2
    assert "Random weights." in text
    assert "adds to the resident memory of this process, without weights and input." in text


def test_bfloat16_at_the_models_own_size(monkeypatch):
    seen = []
    monkeypatch.setattr(bench_module, "_measure", lambda *args: seen.append(args) or {"eager": ([1.0, 2.0, 3.0], None)})
    result = run("xray_cnn", "--dtype", "bfloat16", "--device", "cpu")
    assert seen == [(medzoo.describe("xray_cnn"), (1, 3, 320, 320), torch.device("cpu"), torch.bfloat16)]
    assert re.search(r"2,000\.00 ms \(1,500\.00–2,500\.00\) │ 0\.50 images/s │ not measurable", result.stdout), (
        result.stdout
    )


def test_without_a_model_all_are_measured(monkeypatch):
    monkeypatch.setattr(bench_module, "_measure", lambda *args: {"eager": ([1.0, 1.0], 1)})
    text = run("--device", "cpu").stdout
    assert all(name in text for name in medzoo.list_models())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        None,  # the model's own error in its forward pass
    ],
)
def test_a_model_that_needs_too_much_memory_costs_its_own_row_only(monkeypatch, error):
    real = bench_module._measure

    def measure(spec, *args):
        if spec.name == "cnn3d_small" and error is not None:
            raise error
        return real(spec, *args)

    def forward(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    if error is None:
        monkeypatch.setattr(ConvEncoder, "forward", forward)

    monkeypatch.setattr(bench_module, "_measure", measure)
    text = run("cnn3d_small", "resnet18_multilabel", "--size", 32, "--device", "cpu").stdout
    assert "out of memory" in text
    assert "images/s" in text


def test_another_error_about_memory_is_not_taken_for_it(monkeypatch):
    def measure(*_):
        raise RuntimeError("unsupported memory format option")

    monkeypatch.setattr(bench_module, "_measure", measure)
    assert str(run("cnn3d_small", "--device", "cpu").exception) == "unsupported memory format option"


def test_peak_memory_is_what_a_call_adds():
    peak = bench_module._peak_bytes(lambda: torch.ones(50_000_000).sum(), torch.device("cpu"))
    if peak is None:
        pytest.skip("this system does not let a process reset its high-water mark")
    assert 190e6 < peak < 260e6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--device", "cuda:99"], ConfigError, r"medzoo bench: expected --device to be one of cpu.*, got 'cuda:99'\."),
        (["--device", "gpu"], ConfigError, r"medzoo bench: expected --device to be one of cpu.*, got 'gpu'\."),
        (["--dtype", "int8"], ConfigError, "expected --dtype to be one of float32, bfloat16, float16, got 'int8'"),
        (["--batch", "0"], ConfigError, "medzoo bench: expected --batch to be an int >= 1, got 0"),
        (["--size", "0"], ConfigError, "medzoo bench: expected --size to be an int >= 1, got 0"),
        (["xray_cn"], UnknownModelError, "no model 'xray_cn'. Did you mean 'xray_cnn'?"),
        (["swin_encoder_mlp", "--size", "50"], ShapeError, "d=50 is not; the nearest are 32 and 64"),
    ],
)
def test_errors_are_those_of_medzoo(arguments, error, message):
    result = run(*arguments)
    assert type(result.exception) is error
    assert re.search(message.replace("?", r"\?"), str(result.exception))


def test_a_gpu_is_the_default(monkeypatch):
    seen = []
    monkeypatch.setattr(bench_module, "_measure", lambda *args: seen.append(args[2]) or {"eager": ([1.0, 1.0], 1)})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    for count, options in ((0, ()), (2, ()), (2, ("--device", "cuda")), (2, ("--device", "cuda:1"))):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert run("xray_cnn", *options).exit_code == 0
    assert [str(device) for device in seen] == ["cpu", "cuda:0", "cuda", "cuda:1"]
