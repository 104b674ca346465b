"""Agreement of two models, the peers, and memory. No assertion on seconds."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from timm.models import ResNet
from torch import nn

import medzoo
from benchmarks import suite
from benchmarks.build import build_case, train
from benchmarks.cases import EAGER, Case
from benchmarks.peers import (
    TABLES,
    Chain,
    ChannelsLast,
    MonaiFeatures,
    eager,
    fastest_plain,
    matched_parameters,
)
from benchmarks.tests.conftest import CPU, small_case
from benchmarks.timing import differences, measure_peak, spread

# Agreement


class Off(nn.Module):
    def __init__(self, module, by):
        super().__init__()
        self.module, self.by = module, by

    def forward(self, x):
        return self.module(x) + self.by


def test_outputs_and_gradients_agree():
    difference = differences(small_case())[EAGER]
    assert difference.ok
    assert difference.output <= 2e-5
    assert difference.gradient <= 1e-5


def test_a_wrong_output_is_found():
    built = small_case()
    built.calls[EAGER] = partial(train, Off(built.modules[EAGER], 1e-3))
    assert not differences(built)[EAGER].ok


def test_a_wrong_gradient_is_found():
    built = small_case()
    built.modules[EAGER][0][0].weight.register_hook(lambda grad: grad * 1.001)
    difference = differences(built)[EAGER]
    assert difference.output <= 2e-5
    assert not difference.ok


def test_a_missing_gradient_is_found():
    built = small_case()
    built.modules[EAGER][0][0].weight.requires_grad_(False)
    assert differences(built)[EAGER].gradient == math.inf


def test_disagreement_is_reported_and_not_timed(monkeypatch, no_ceilings):
    built = small_case()
    built.calls[EAGER] = partial(train, Off(built.modules[EAGER], 1.0))
    monkeypatch.setattr(suite, "build_case", lambda case, device: built)
    monkeypatch.setattr(suite, "InterleavedTimer", None)
    result = suite.run_suite([built.case], CPU, "quick")
    assert not result["rows"]
    assert "expected the outputs of eager PyTorch, got a difference of 1.0e+00" in result["failed"][built.case.id]


def test_inference_rows_run_the_optimized_model():
    built = build_case(Case("cnn3d_base", (46, 46, 62), peers=(EAGER,), tiny=True), CPU)
    assert differences(built)[EAGER].ok


def test_bfloat16_is_compared_with_float32_in_training(no_ceilings):
    case = Case("cnn3d_small", (16, 16, 16), dtype="bfloat16", mode="train", peers=(EAGER,), tiny=True)
    assert not suite.run_suite([case], CPU, "quick")["failed"]


def test_spread_of_one_value():
    assert spread([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0}


def test_peak_memory_is_what_a_call_adds():
    peak = measure_peak(lambda: torch.ones(50_000_000).sum(), CPU)
    if peak is None:
        pytest.skip("this system does not let a process reset its high-water mark")
    assert 190e6 < peak < 260e6


# Peers


def test_the_plain_peer_runs_the_modules_and_not_medzoos_forward(monkeypatch):
    model = medzoo.create("cnn3d_base", **medzoo.describe("cnn3d_base").tiny).eval()
    x = torch.randn(1, 1, 46, 46, 62)
    expected = model(x)
    plain = eager(model)
    monkeypatch.setattr("medzoo.nn.conv.ConvStage.forward", None)
    assert torch.equal(plain(x), expected)


def test_parameters_pair_by_name_or_else_in_order():
    a, b = nn.Sequential(nn.Linear(2, 3)), nn.ModuleDict({"other": nn.Linear(2, 3)})
    (mine, theirs), _ = matched_parameters(a, b)
    assert mine is a[0].weight
    assert theirs is b["other"].weight
    with pytest.raises(ValueError, match=r"expected parameters of the same shapes, got \(3, 2\) and \(2, 3\)"):
        matched_parameters(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 2)))


def test_the_stage_tables_are_the_models():
    for name, (table, options) in TABLES.items():
        model = medzoo.create(name, num_classes=0, **options)
        assert len(model.encoder.stages) == table.stages
        chain = Chain(model.encoder, model.head).eval()
        x = torch.randn(1, model.input_spec.channels, *medzoo.describe(name).tiny_size)
        with torch.no_grad():
            assert torch.equal(chain(x), model.eval()(x))


def test_the_channels_last_peer_is_channels_last_from_its_first_convolution_on():
    model = medzoo.create("cnn3d_base", **medzoo.describe("cnn3d_base").tiny).eval()
    peer, seen = ChannelsLast(model), []
    first = next(module for module in peer.modules() if isinstance(module, nn.Conv3d))
    first.register_forward_hook(lambda module, args, out: seen.extend((args[0], module.weight, out)))
    x = torch.randn(2, 1, 46, 46, 62)
    with torch.no_grad():
        torch.testing.assert_close(peer(x), model(x))
    assert [tensor.stride(1) for tensor in seen] == [1, 1, 1]
    assert seen[0].data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("name", "cpu", "cuda"),
    [
        ("cnn3d_base", Chain, ChannelsLast),
        ("xray_cnn", Chain, ChannelsLast),
        ("resnet18_multilabel", ResNet, ResNet),
        ("swin_encoder_mlp", MonaiFeatures, MonaiFeatures),
    ],
)
def test_the_compiled_peer_is_the_fastest_of_its_device(name, cpu, cuda):
    options = medzoo.describe(name).tiny | ({"num_classes": 0} if name == "swin_encoder_mlp" else {})
    model = medzoo.create(name, **options)
    assert type(fastest_plain(model, "cpu")) is cpu
    assert type(fastest_plain(model, "cuda")) is cuda
