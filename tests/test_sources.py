"""Each model against its source: the same tensors through the source's arithmetic, layer by layer."""

from __future__ import annotations

import pytest
import timm
import torch
from tensors import scatter_weights
from torch.nn import functional as F

import medzoo

# Cubic and other shapes, b > 1, and sizes that pooling truncates.
BASE_SHAPES = [(2, 1, 46, 46, 46), (1, 1, 50, 64, 79), (1, 1, 64, 128, 128)]
SMALL_SIZES = [(16, 16, 16), (20, 31, 45), (64, 64, 64)]
XRAY_SIZES = [(32, 32), (47, 80), (320, 320)]
TIMM_SIZES = [(32, 32), (75, 64), (224, 224), (320, 320)]


def trained_looking(model):
    """Give BatchNorm statistics as after training."""
    scatter_weights(model)
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if hasattr(module, "running_var"):
            shape = module.running_mean.shape
            module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
    return model.eval()


def batch_norm(x, weights, prefix):
    """(x - mean) / sqrt(var + eps) * gamma + beta, from the tensors alone."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, var, gamma, beta = (
        weights[f"{prefix}.{name}"].view(shape) for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + 1e-5) * gamma + beta


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


@pytest.mark.parametrize("shape", BASE_SHAPES, ids=str)
def test_cnn3d_base_matches_the_keras_example(shape):
    """Conv3D(k3, relu) → MaxPool3D(2) → BatchNormalization, four times; average; Dense 512 relu; Dense 1."""
    widths = (64, 64, 128, 256) if shape[0] == 1 else (4, 4, 8, 8)
    model = trained_looking(medzoo.create("cnn3d_base", widths=widths))
    w, x = model.state_dict(), torch.randn(shape)
    y = x
    for i in range(4):
        y = F.conv3d(y, w[f"encoder.stages.{i}.conv.weight"], w[f"encoder.stages.{i}.conv.bias"]).clamp(min=0)
        y = batch_norm(F.max_pool3d(y, 2), w, f"encoder.stages.{i}.norm")
    y = linear(y.mean((2, 3, 4)), w, "head.fc").clamp(min=0)
    torch.testing.assert_close(model(x), linear(y, w, "head.classifier"), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("size", SMALL_SIZES, ids=str)
def test_cnn3d_small_matches_its_source(size):
    """Conv3d(k2, p1) → ReLU → BatchNorm3d → MaxPool3d(3), three times; flatten; two linear layers."""
    model = trained_looking(medzoo.create("cnn3d_small", size=size))
    w, x = model.state_dict(), torch.randn(2, 1, *size)
    y = x
    for i in range(3):
        kernel, bias = w[f"encoder.stages.{i}.conv.weight"], w[f"encoder.stages.{i}.conv.bias"]
        y = batch_norm(F.conv3d(y, kernel, bias, padding=1).clamp(min=0), w, f"encoder.stages.{i}.norm")
        y = F.max_pool3d(y, 3)
    y = linear(y.reshape(2, -1), w, "head.fc").clamp(min=0)
    torch.testing.assert_close(model(x), linear(y, w, "head.classifier"), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("size", XRAY_SIZES, ids=str)
def test_xray_cnn_matches_its_source(size):
    """Conv2d(k3, p1) → ReLU → MaxPool2d(2), four times; flatten; two linear layers with no activation between."""
    model = trained_looking(medzoo.create("xray_cnn", size=size))
    w, x = model.state_dict(), torch.randn(2, 3, *size)
    y = x
    for i in range(4):
        kernel, bias = w[f"encoder.stages.{i}.conv.weight"], w[f"encoder.stages.{i}.conv.bias"]
        y = F.max_pool2d(F.conv2d(y, kernel, bias, padding=1).clamp(min=0), 2)
    y = linear(linear(y.reshape(2, -1), w, "head.fc"), w, "head.classifier")
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("name", "peer", "last"), [
    ("resnet18_multilabel", "resnet18", "fc"),
    ("densenet121_xray", "densenet121", "classifier"),
])  # fmt: skip
@pytest.mark.parametrize(
    "size", [s if s[0] < 224 else pytest.param(s, marks=pytest.mark.slow) for s in TIMM_SIZES], ids=str
)
@torch.no_grad()
def test_timm_models_match_timm(name, peer, last, size):
    model = trained_looking(medzoo.create(name))
    theirs = timm.create_model(peer, num_classes=model.num_classes, in_chans=model.input_spec.channels).eval()
    tensors = {
        key.replace("head.classifier", last).removeprefix("encoder."): value
        for key, value in model.state_dict().items()
    }
    theirs.load_state_dict(tensors, strict=True)
    x = torch.randn(2, model.input_spec.channels, *size)
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(model.forward_features(x), theirs.forward_features(x))


def test_dropout_rates_match_the_sources():
    rates = {
        name: [m.p for m in medzoo.create(name).modules() if isinstance(m, torch.nn.Dropout)]
        for name in ("cnn3d_small", "cnn3d_base", "xray_cnn")
    }
    assert rates == {"cnn3d_small": [0.3], "cnn3d_base": [0.3], "xray_cnn": [0.25]}


def test_smaller_heads_of_flatten_models():
    assert medzoo.create("cnn3d_small", size=32, pool="avg").head.fc.in_features == 128
    assert medzoo.create("cnn3d_small", size=(32, 64, 64)).head.fc.in_features == 128 * 1 * 2 * 2
    assert medzoo.create("xray_cnn").head.fc.in_features == 51_200
    model = medzoo.create("xray_cnn", pool="avg", hidden=8).eval()
    assert model(torch.zeros(1, 3, 16, 99)).shape == (1, 14)
    assert model.preprocessing.size == (320, 320)
