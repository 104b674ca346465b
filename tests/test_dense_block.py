"""timm's DenseNet for inference: blocks in one map and transitions that pool first, against timm's own modules."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from timm.models.densenet import DenseNet
from torch import nn

import medzoo
from medzoo.inference.dense_block import FoldedDenseBlock, FoldedTransition
from medzoo.inference.fold import FoldedEncoder

SEEDS = itertools.count()


def dense(**options):
    """Return a DenseNet without a head, in eval mode, as if it had been trained: scales may be negative or 0."""
    torch.manual_seed(next(SEEDS))
    how = {"growth_rate": 8, "block_config": (2, 3, 2), "bn_size": 2, "in_chans": 1, "num_classes": 0}
    how |= {"global_pool": ""} | options
    model = DenseNet(**how).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.weight.data[::7] = 0
    return model.requires_grad_(False)


def kinds(model, fold=None):
    """Return how many blocks and transitions are folded."""
    folded = (fold or FoldedEncoder(model))._current()[0]
    return tuple(sum(type(m) is kind for m in folded.modules()) for kind in (FoldedDenseBlock, FoldedTransition))


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (2, 1, 72, 50), (3, 1, 33, 129)])
def test_outputs_are_those_of_timm(shape):
    model = dense()
    x = torch.randn(shape)
    with torch.inference_mode():
        fast = FoldedEncoder(model)
        found, expected = fast(x), model(x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        assert kinds(model, fast) == (3, 2)
        # Every map on the way, of which those of the blocks are views into nothing that changes later.
        maps = fast.forward_intermediates(x, intermediates_only=True)
        for got, want in zip(maps, model.forward_intermediates(x, intermediates_only=True), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_float64_is_no_farther_than_from_the_plain_modules():
    model, x = dense(), torch.randn(2, 1, 96, 80)
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(x.double())
        ours, plain = (float((y - exact).norm()) for y in (FoldedEncoder(model)(x), model(x)))
    assert ours <= 1.5 * plain


def test_the_encoder_and_its_input_are_not_changed():
    model, x = dense(), torch.randn(1, 1, 64, 64)
    before, given = copy.deepcopy(model.state_dict()), x.clone()
    with torch.inference_mode():
        FoldedEncoder(model)(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, given)


WRITTEN = [
    "features.denseblock1.denselayer2.norm1.bias",
    "features.denseblock2.denselayer1.norm1.running_var",
    "features.denseblock2.denselayer3.conv1.weight",
    "features.denseblock3.denselayer1.norm2.weight",
    "features.denseblock3.denselayer2.conv2.weight",
    "features.transition1.norm.running_mean",
    "features.transition2.conv.weight",
]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_write_through_data_is_seen_once_it_is_looked_for(name):
    model, x = dense(), torch.randn(1, 1, 64, 64)
    fast = FoldedEncoder(model)
    with torch.inference_mode():
        before = fast(x)
    tensor = dict([*model.named_parameters(), *model.named_buffers()])[name]
    tensor.data.add_(0.5)
    fast.verify()
    with torch.inference_mode():
        found, expected = fast(x), model(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(found, before, rtol=1e-4)


def layer_of(model):
    return model.features.denseblock2.denselayer2


def leaky(model):
    layer_of(model).norm1.act = nn.LeakyReLU()


def by_batch(model):
    layer_of(model).norm2.running_mean = layer_of(model).norm2.running_var = None


def grouped(model):
    layer_of(model).conv1 = nn.Conv2d(layer_of(model).conv1.in_channels, 16, 1, groups=2)


def training(model):
    layer_of(model).train()


def nearly_zero(model):
    layer_of(model).norm1.weight.data[3] = 1e-42


@pytest.mark.parametrize("change", [leaky, by_batch, grouped, training, nearly_zero])
def test_a_block_that_is_otherwise_stays(change):
    model, x = dense(), torch.randn(2, 1, 64, 64)
    change(model)
    with torch.inference_mode():
        fast = FoldedEncoder(model)
        expected = copy.deepcopy(model)(x)
        torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert kinds(model, fast) == (2, 2)


def test_a_transition_with_another_pooling_stays():
    model, x = dense(), torch.randn(1, 1, 64, 64)
    model.features.transition1.pool = nn.MaxPool2d(2)  # which a convolution does not commute with
    with torch.inference_mode():
        fast = FoldedEncoder(model)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    assert kinds(model, fast) == (3, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_keep_their_blocks(dtype):
    assert kinds(dense().to(dtype)) == (0, 0)


def test_what_is_no_number_stays_so():
    model, x = dense(), torch.randn(1, 1, 64, 64)
    x[..., 20, 20] = torch.nan
    with torch.inference_mode():
        assert FoldedEncoder(model)(x).isnan().any()


def test_the_model_of_the_zoo_is_folded():
    model = medzoo.create("densenet121_xray", **medzoo.describe("densenet121_xray").tiny).eval()
    blocks, transitions = kinds(model.encoder)
    assert blocks == transitions + 1 > 1
