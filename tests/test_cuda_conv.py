"""The Triton kernels of the convolution stages: in Triton's interpreter on the CPU, and on a GPU by marker."""

from __future__ import annotations

import pytest
import torch
from interpreted import poison, run_interpreted
from torch import nn

import medzoo
from medzoo.inference import fold
from medzoo.inference.fold import fold_stage
from medzoo.kernels import conv_stage
from medzoo.kernels.cpu import conv as cpu_conv
from medzoo.nn.conv import ConvStage, StageTable

pytest.importorskip("triton")

ORDERS = (("relu", "pool"), ("relu", "norm", "pool"), ("relu", "pool", "norm"))
CONVOLUTIONAL = ("cnn3d_small", "cnn3d_base", "xray_cnn")
FOLDED = (*CONVOLUTIONAL, "resnet18_multilabel", "densenet121_xray")


def trained(module, seed=3):
    """Give every BatchNorm what training leaves: means, variances, and scales of both signs and zero."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
            norm.running_var.square_().add_(0.5)
            norm.weight.data[0] = 0.0
    return module.eval()


def stage_of(channels, kernel, padding, pool, order, dims=3, in_chans=1):
    return trained(ConvStage(in_chans, channels, StageTable(1, kernel, padding, order, pool), dims)).requires_grad_(
        False
    )


def distance(got, expected):
    assert got.shape == expected.shape
    return float((got.double() - expected).norm() / expected.norm())


# (channels, kernel, padding, pool, size): no cubes, rows left over by the pooling, channels that are no power of two.
CONVOLVED = [
    (64, 3, 0, 2, (6, 9, 12)),
    (32, 2, 1, 3, (5, 7, 9)),
    (5, 3, 1, 2, (4, 6, 5)),
    (70, 2, 0, 2, (3, 4, 8)),
    (3, 3, 0, 3, (6, 5, 10)),
    (16, 1, 0, 2, (4, 5, 6)),
]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize(("channels", "kernel", "padding", "pool", "size"), CONVOLVED)
def interpreted_convolution_and_pooling(channels, kernel, padding, pool, size, order, monkeypatch):
    poison(monkeypatch)
    stage, x = stage_of(channels, kernel, padding, pool, order), torch.randn(2, 1, *size)
    half, y = stage.half(), x.half()
    folded = fold_stage(half)
    got = folded._run_on_gpu(y)
    assert folded.windows is not None
    assert got.dtype == torch.float16
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    assert distance(got, stage.double()(y.double())) <= 1e-3


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize(
    ("channels", "pool", "size"),
    [(64, 2, (4, 7, 5)), (5, 2, (5, 5, 9)), (20, 3, (8, 6, 7)), (130, 2, (4, 4, 5)), (16, 2, (9, 6)), (7, 3, (6, 11))],
)
def interpreted_pooling(channels, pool, size, order, monkeypatch):
    poison(monkeypatch)
    for in_chans, dtype in ((3, torch.float32), (1, torch.float32), (3, torch.float16)):
        stage = stage_of(channels, 3, 1, pool, order, len(size), in_chans).to(dtype)
        x = torch.randn(2, in_chans, *size, dtype=dtype)
        folded = fold_stage(stage)
        got = folded._run_on_gpu(x)
        assert folded.windows is None or dtype == torch.float16
        assert got.is_contiguous(memory_format=cpu_conv.CHANNELS_LAST[len(size)])
        assert distance(got, stage.double()(x.double())) <= (1e-6 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize(("channels", "kernel", "padding", "pool", "size"), CONVOLVED[:3])
def interpreted_nan(channels, kernel, padding, pool, size, order):
    """NaN reaches what it reaches in the plain stage, from the input and from the map of the library."""
    stage = stage_of(channels, kernel, padding, pool, order).half()
    folded = fold_stage(stage)
    (d, h, w), x = size, torch.randn(4, 1, *size).half()
    for i, place in enumerate([(0, 0, 0), (d // 2, h // 2, w // 2), (d - 1, h - 1, w - 1)]):
        x[i, 0][place] = torch.nan
    assert torch.equal(folded._run_on_gpu(x).isnan(), stage(x).isnan())
    folded.windows = None
    assert torch.equal(folded._run_on_gpu(x).isnan(), stage(x).isnan())


def interpreted_nan_weight():
    stage = stage_of(8, 3, 0, 2, ORDERS[2]).half()
    stage.conv.weight[5, 0, 1, 1, 1] = torch.nan
    x = torch.randn(2, 1, 6, 6, 6).half()
    assert torch.equal(fold_stage(stage)._run_on_gpu(x).isnan(), stage(x).isnan())


def interpreted_other_layouts_and_nothing_left():
    stage = stage_of(8, 3, 0, 2, ORDERS[0]).half()
    folded, x = fold_stage(stage), torch.randn(2, 1, 6, 7, 8).half()
    expected = stage.double()(x.double())
    for variant in (x.transpose(2, 4).contiguous().transpose(2, 4), x.to(memory_format=torch.channels_last_3d)):
        assert distance(folded._run_on_gpu(variant), expected) <= 1e-3
    assert folded._run_on_gpu(x[:, :, :3]).shape == (2, 8, 0, 2, 3)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def interpreted_model(name, monkeypatch):
    for module in (fold, conv_stage, cpu_conv):
        monkeypatch.setattr(module, "on_cpu", lambda x: False)
    monkeypatch.setattr("medzoo.inference.optimize.served", lambda x: True)
    options = dict(medzoo.describe(name).tiny)
    model = trained(medzoo.create(name, **options)).half()
    x = torch.randn(1, model.input_spec.channels, *medzoo.describe(name).tiny_size).half()
    fast = medzoo.optimize(model)
    with torch.no_grad():
        got, expected = fast.forward_features(x), model.double().forward_features(x.double())
    assert distance(got, expected) <= 5e-3
    assert "pooled by Triton" in repr(fast)


@pytest.mark.parametrize("op", ["conv_pool", "pool_last"])
def interpreted_opcheck(op):
    """The operators' fake kernels and schemas match what they do."""
    from medzoo.kernels.cuda.conv_pool import pack_windows

    c = torch.randn(8)
    if op == "conv_pool":
        x, weight = torch.randn(2, 1, 5, 6, 7).half(), torch.randn(8, 1, 3, 3, 3).half()
        arguments = (x, pack_windows(weight, 2), c, None, None, c, c, 3, 0, 2, 32, 4, 1)
    else:
        arguments = (torch.randn(2, 5, 6, 7, 8), c, c, None, None, None, 2)
    torch.library.opcheck(getattr(torch.ops.medzoo, op).default, arguments)


@pytest.mark.slow
def test_the_kernels_give_equal_values_in_the_interpreter():
    run_interpreted(__file__)


def test_a_map_of_one_channel_says_that_its_channels_lie_last():
    for x in (torch.randn(2, 1, 3, 4, 5), torch.randn(2, 1, 4, 5), torch.randn(2, 3, 4, 5, 6)):
        got = cpu_conv.channels_last(x)
        assert torch.equal(got, x)
        like = torch.empty(x.shape, memory_format=cpu_conv.CHANNELS_LAST[x.ndim - 2])
        assert got.stride() == like.stride()


@pytest.mark.gpu
@pytest.mark.parametrize("name", FOLDED)
def test_bfloat16_on_a_gpu_lies_as_close_to_float64_as_the_plain_model(name):
    model = trained(medzoo.create(name)).cuda()
    x = torch.randn(2, model.input_spec.channels, *model.input_spec.size, device="cuda")
    half, y = model.bfloat16(), x.bfloat16()
    with torch.no_grad():
        fast = medzoo.optimize(half)
        ours, plain = fast.forward_features(y), half.forward_features(y)
        exact = half.double().forward_features(y.double())
    # A kernel with BatchNorm folded in is rounded once more than one without: twice the variance, √2 of the distance.
    limit = max((1.3 if name in CONVOLUTIONAL else 1.5) * distance(plain, exact), 1e-3)
    assert distance(ours, exact) <= (min(limit, 1e-2) if name in CONVOLUTIONAL else limit)
    assert name not in CONVOLUTIONAL or "pooled by Triton" in repr(fast)


@pytest.mark.gpu
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize(("channels", "kernel", "padding", "pool", "size"), [*CONVOLVED, (64, 3, 0, 2, (33, 70, 65))])
def test_a_stage_of_one_channel_on_a_gpu(channels, kernel, padding, pool, size, order):
    stage = stage_of(channels, kernel, padding, pool, order).cuda().bfloat16()
    x = torch.randn(3, 1, *size, device="cuda", dtype=torch.bfloat16)
    x[1, 0, 1, 1, 1] = torch.nan
    folded = fold_stage(stage)
    got, plain = folded(x), stage(x)
    assert folded.windows is not None
    assert torch.equal(got.isnan(), plain.isnan())
    exact = stage.double()(x.double()).nan_to_num()
    assert distance(got.nan_to_num(), exact) <= max(1e-2, 1.3 * distance(plain.nan_to_num(), exact))


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_warm_forward_never_waits_for_the_gpu(name):
    model = medzoo.create(name).cuda().bfloat16().eval()
    x = torch.randn(2, model.input_spec.channels, *model.input_spec.size, device="cuda", dtype=torch.bfloat16)
    fast = medzoo.optimize(model)
    with torch.inference_mode():
        expected = fast(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()  # a capture fails on any wait
        with torch.cuda.graph(graph):
            out = fast(x)
        graph.replay()
        torch.cuda.synchronize()
    assert torch.equal(out, expected)
