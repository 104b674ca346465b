"""``medzoo.optimize``: the same outputs sooner."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import medzoo

MODELS = medzoo.list_models()


def trained(model):
    """Give every BatchNorm what training leaves: means, variances, and scales of both signs."""
    generator = torch.Generator().manual_seed(3)

    def draw(like):
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.weight.copy_(draw(norm.weight))
                norm.bias.copy_(draw(norm.bias))
                norm.running_mean.copy_(0.1 * draw(norm.bias))
                norm.running_var.copy_(0.5 + draw(norm.bias).square())
    return model.eval()


def tiny(name, **options):
    return trained(medzoo.create(name, **dict(medzoo.describe(name).tiny) | options))


def batch(name, n=2):
    spec = medzoo.describe(name)
    return torch.randn(n, spec.input_spec.channels, *spec.tiny_size)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def near(got, expected):
    """Hold to 1e-5 of the largest value, where that is above one."""
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("name", MODELS)
def test_the_outputs_are_equal(name):
    model, x = tiny(name), batch(name)
    near(medzoo.optimize(model)(x), model(x))
