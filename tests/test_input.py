"""Inputs that a model refuses, with the exact message, and unusual inputs that it accepts.

The cases that apply to every model (memory layouts, compile, export, batches of one and of zero) are in test_zoo.py.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

import medzoo
from medzoo.errors import InputError, ShapeError
from medzoo.input_spec import InputSpec


@pytest.fixture(scope="module")
def swin():
    return medzoo.create("swin_encoder_mlp", feature_size=12).eval()


@pytest.fixture(scope="module")
def cnn():
    return medzoo.create("cnn3d_small", size=16, widths=(4, 8, 8)).eval()


@pytest.fixture(scope="module")
def resnet():
    return medzoo.create("resnet18_multilabel").eval()


SWIN = "swin_encoder_mlp: expected 'b 1 d h w' with d, h, w multiples of 32, got "
SMALL = "cnn3d_small: expected 'b 1 d h w' with d, h, w = 16, 16, 16, got "
RESNET = "resnet18_multilabel: expected 'b 3 h w' with h, w of at least 32, got "


@pytest.mark.parametrize(
    ("model", "shape", "fault"),
    [
        ("swin", (96, 96, 96), "that is 3 axes, not 5; add the batch and channel axes with x[None, None]."),
        ("swin", (1, 96, 96, 96), "that is 4 axes, not 5; add the batch axis with x[None]."),
        ("swin", (2, 96, 96, 96), "that is 4 axes, not 5; add the channel axis with x[:, None]."),
        ("resnet", (320, 320), "that is 2 axes, not 4."),
        ("resnet", (2, 320, 320), "that is 3 axes, not 4."),
        ("resnet", (3, 320, 320), "that is 3 axes, not 4; add the batch axis with x[None]."),
        ("resnet", (1, 3, 8, 320, 320), "that is 5 axes, not 4."),
    ],
)
def test_45_wrong_number_of_axes(model, shape, fault, request):
    expected = {"swin": SWIN, "resnet": RESNET}[model]
    with pytest.raises(ShapeError, match=f"^{re.escape(f'{expected}{shape}: {fault}')}$"):
        request.getfixturevalue(model)(torch.zeros(shape))


def test_46_wrong_channels(swin):
    message = SWIN + "(2, 4, 64, 64, 64): c=4 is not 1; medzoo.create(..., in_chans=4) makes such a model."
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        swin(torch.zeros(2, 4, 64, 64, 64))


def test_46_channels_last_get_advice_to_move_them(resnet):
    message = RESNET + "(2, 320, 320, 3): c=320 is not 3; if the channels are last, move them with x.movedim(-1, 1)."
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        resnet(torch.zeros(2, 320, 320, 3))


def test_47_below_the_minimum(resnet):
    message = RESNET + "(1, 3, 31, 40): h=31 is not; the nearest is 32."
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        resnet(torch.zeros(1, 3, 31, 40))


@pytest.mark.parametrize(
    ("shape", "fault"),
    [
        ((2, 1, 60, 96, 96), "d=60 is not; the nearest are 32 and 64."),
        ((2, 1, 96, 96, 16), "w=16 is not; the nearest is 32."),
        ((1, 1, 60, 96, 100), "d=60 is not; the nearest are 32 and 64, w=100 is not; the nearest are 96 and 128."),
    ],
)
def test_48_not_a_multiple(swin, shape, fault):
    with pytest.raises(ShapeError, match=f"^{re.escape(f'{SWIN}{shape}: {fault}')}$"):
        swin(torch.zeros(shape))


def test_48_a_flatten_head_accepts_its_own_size_only(cnn):
    # 17 gives the same number of features as 16 after three poolings, so no matmul would fail.
    message = SMALL + "(1, 1, 17, 16, 16): d=17 is not 16; build it with size=..., or for any size with pool='avg'."
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        cnn(torch.zeros(1, 1, 17, 16, 16))
    assert cnn.encoder(torch.zeros(1, 1, 17, 16, 16)).shape == cnn.encoder(torch.zeros(1, 1, 16, 16, 16)).shape


def test_50_zero_spatial_size(swin):
    with pytest.raises(InputError, match=r"h=0 is not; the nearest is 32\."):
        swin(torch.zeros(1, 1, 32, 0, 32))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_51_integers(cnn, dtype):
    message = (
        f"cnn3d_small: expected torch.float32, got {dtype}. Prepare it with medzoo.transform(model), or with "
        "x.float() / 255 if it holds 8-bit grey levels."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        cnn(torch.zeros(1, 1, 16, 16, 16, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_52_53_another_precision(cnn, dtype):
    message = (
        f"cnn3d_small: expected torch.float32, as the model's parameters are, got {dtype}. Cast it with "
        "x.to(torch.float32), or run under torch.autocast('cpu')."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        cnn(torch.zeros(1, 1, 16, 16, 16, dtype=dtype))


def test_53_autocast_may_mix_precisions(cnn):
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = cnn(x.to(torch.bfloat16))
    torch.testing.assert_close(got.float(), cnn(x), rtol=0.05, atol=0.05)


def test_52_float64_is_refused_under_autocast_too(cnn):
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(InputError, match=r"got torch\.float64"):
        cnn(torch.zeros(1, 1, 16, 16, 16, dtype=torch.float64))


def test_54_another_device(cnn):
    message = (
        "cnn3d_small: expected a tensor on cpu, where the model is, got one on meta. Move it with x.to('cpu'), or the "
        "model with model.to('meta')."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        cnn(torch.zeros(1, 1, 16, 16, 16, device="meta"))


def test_55_forward_does_not_check_for_nan(cnn):
    assert cnn(torch.full((1, 1, 16, 16, 16), float("nan"))).isnan().all()


@pytest.mark.parametrize(
    ("thing", "name"),
    [(np.zeros((1, 1, 16, 16, 16), np.float32), "ndarray"), (Image.new("L", (4, 4)), "Image"), ([[0.0]], "list")],
)
def test_58_not_a_tensor(cnn, thing, name):
    message = (
        f"cnn3d_small: expected a torch.Tensor, got {name}. medzoo.predict(model, ...) takes paths, images and "
        "arrays; medzoo.transform(model) makes the tensor."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        cnn(thing)


def test_59_a_frozen_batchnorm_accepts_a_batch_of_one():
    model = medzoo.create("resnet18_multilabel").train()
    lone = torch.randn(1, 3, 32, 32)
    message = (
        "resnet18_multilabel: expected a batch of two or more, or a side of at least 33, got (1, 3, 32, 32) in "
        "training: BatchNorm would see one value of each channel. Use a larger batch or input, or model.eval()."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        model(lone)
    assert model.freeze_encoder()(lone).isfinite().all()
    model.freeze_encoder(False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert model.encoder.training
    assert model(lone).isfinite().all()


def test_60_the_model_is_usable_after_out_of_memory():
    model = medzoo.create("cnn3d_base", widths=(4, 4, 8, 8)).eval()
    # 2 * 10^15 voxels as a view of one: no machine has the memory for the first convolution.
    vast = torch.zeros(1).expand(1, 1, 131072, 131072, 131072)
    extractor = medzoo.create("cnn3d_base", widths=(4, 4, 8, 8), features_only=True).eval()
    for forward in (model, model.forward_features, model.forward_intermediates, extractor):
        with pytest.raises(InputError, match=r"^cnn3d_base: \(1, 1, 131072, .* needs more memory than cpu has\. Use a"):
            forward(vast)
    assert model(torch.zeros(1, 1, 46, 46, 46)).isfinite().all()


def test_a_minimum_above_the_multiple_is_in_the_text():
    spec = InputSpec("b c h w", channels=1, size=(64, 64), multiple=4, minimum=64)
    assert str(spec) == "'b 1 h w' with h, w multiples of 4 of at least 64"


def test_other_runtime_errors_are_unchanged(cnn, monkeypatch):
    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(cnn, "forward_features", broken)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        cnn(torch.zeros(1, 1, 16, 16, 16))


def test_61_fullgraph_wraps_the_error_and_names_it(cnn):
    compiled = torch.compile(cnn, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"ShapeError") as raised:
        compiled(torch.zeros(1, 1, 17, 16, 16))
    assert type(raised.value).__module__.startswith("torch._dynamo")
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("length", "expected"), [(1, (32, 32)), (32, (32, 32)), (33, (32, 64)), (60, (32, 64)), (1000, (992, 1024))]
)
def test_nearest_valid_sizes(length, expected):
    spec = InputSpec("b c d h w", channels=1, size=(96, 96, 96), multiple=32, minimum=32)
    assert spec.nearest(length) == expected
    assert all(spec.fits([size] * 3) for size in expected)
