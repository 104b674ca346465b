"""What changes a model after its fast path was made, and what should keep the fast path away."""

from __future__ import annotations

import pytest
import torch
from tensors import scatter_weights
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

import medzoo
from medzoo.errors import ConfigError
from medzoo.kernels import dispatch
from medzoo.kernels.cpu import conv as cpu_conv
from medzoo.kernels.cpu import linear
from medzoo.kernels.dispatch import set_fast_paths
from medzoo.models.swin import PatchEmbed
from medzoo.nn import guards
from medzoo.nn.guards import Copies
from medzoo.nn.patch_merging import PatchMerging
from medzoo.nn.swin_block import SwinBlock

CONVOLUTIONAL = ("cnn3d_small", "cnn3d_base", "xray_cnn")


def tiny(name):
    model = medzoo.create(name, **dict(medzoo.describe(name).tiny)).eval()
    scatter_weights(model)
    return model


def batch(name, n=2):
    spec = medzoo.describe(name)
    return torch.randn(n, spec.input_spec.channels, *spec.tiny_size)


def near(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def same_after(change, name, x):
    """Run a fast model, change it and the plain one alike, and run both again."""
    model = tiny(name)
    fast = medzoo.optimize(model)
    with torch.inference_mode():
        near(fast(x), model(x))
    for one in (model, fast):
        change(one)
    with torch.inference_mode():
        near(fast(x), model(x))


def writes_through_data(model):
    conv = model.encoder.stages[0].conv
    conv.weight.data.copy_(conv.weight * 3)
    conv.bias.data.add_(1)


def sets_eps(model):
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = 0.5


def goes_to_bfloat16_and_back(model):
    model.bfloat16().float()


@pytest.mark.parametrize("change", [writes_through_data, sets_eps, goes_to_bfloat16_and_back])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_an_optimized_model_follows_what_is_done_to_it(name, change):
    same_after(change, name, batch(name))


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, "resnet18_multilabel"])
def test_a_copy_made_in_inference_mode_follows_its_weights(name):
    model, x = tiny(name), batch(name)
    with torch.inference_mode():
        fast = medzoo.optimize(model)
        fast(x)
    other = {n: t * 1.5 if t.is_floating_point() else t for n, t in model.state_dict().items()}
    fast.load_state_dict(other)
    model.load_state_dict(other)
    with torch.inference_mode():
        near(fast(x), model(x))


@pytest.mark.parametrize("part", ["encoder.stages.0.conv", "encoder.stages.1.relu", "head.classifier"])
def test_a_forward_put_in_by_hand_runs(part):
    model, x = tiny("cnn3d_small"), batch("cnn3d_small")
    module = model.get_submodule(part)
    plain = module.forward
    module.forward = lambda y: plain(y) + 100
    with torch.inference_mode():
        near(medzoo.optimize(model)(x), model(x))


@pytest.mark.parametrize("name", ["cnn3d_small", "resnet18_multilabel"])
def test_who_counts_or_listens_sees_the_plain_modules(name):
    model, x = tiny(name), batch(name)
    fast, counts, calls = medzoo.optimize(model), [], []
    for one in (model, fast):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            one(x)
        counts.append(counter.get_total_flops())
        seen = []
        handle = register_module_forward_hook(lambda *_, seen=seen: seen.append(1))
        with torch.inference_mode():
            one(x)
        handle.remove()
        calls.append(len(seen))
    assert counts[0] == counts[1] > 0
    assert calls[0] == calls[1] > 0


def test_what_cannot_be_copied_is_said():
    model = tiny("cnn3d_small")
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.encoder.stages[0].conv)
    with torch.no_grad():
        model(batch("cnn3d_small"))
    with torch.enable_grad():
        model.encoder.stages[0].conv.weight = model.encoder.stages[0].conv.weight_v * 1
    with pytest.raises(ConfigError, match=r"expected a model that can be copied, .*utils\.weight_norm"):
        medzoo.optimize(model)


def test_a_default_device_keeps_the_fast_path(monkeypatch):
    block, x, calls = SwinBlock(12, 3, True, 0.0).eval(), torch.randn(1, 8, 8, 8, 12), []
    run = dispatch.run_by_slabs
    monkeypatch.setattr(dispatch, "run_by_slabs", lambda *a: calls.append(1) or run(*a))
    with torch.device("cpu"), torch.no_grad():
        block(x)
    assert calls == [1]
    with torch.device("meta"), torch.no_grad():
        block(x)
    assert calls == [1]


@pytest.mark.parametrize(
    "trial", [linear.onednn_works.__wrapped__, lambda: cpu_conv.private_ops.__wrapped__(torch.float32)]
)
def test_a_trial_does_not_depend_on_defaults(trial):
    found = trial()
    torch.set_default_dtype(torch.float64)
    try:
        assert trial() == found
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert trial() == found


def test_parts_that_were_built_otherwise_run_as_they_are():
    merging, x = PatchMerging(6, "monai1.5").eval(), torch.randn(1, 4, 4, 4, 6)
    merging.reduction = nn.Linear(48, 12, bias=True)
    nn.init.constant_(merging.reduction.bias, 5.0)
    with torch.no_grad():
        fast = merging(x)
        with set_fast_paths(False):
            torch.testing.assert_close(fast, merging(x))
    embed, volume = PatchEmbed(1, 6), torch.randn(1, 1, 8, 8, 8)
    for conv in (nn.Conv3d(1, 6, 2, stride=1), nn.Conv3d(1, 6, 3, stride=2, padding=1)):
        embed.proj = conv
        torch.testing.assert_close(embed(volume), conv(volume))


@pytest.mark.parametrize("gone", ["qkv bias", "affine"])
def test_a_block_without_a_bias_or_a_scale_trains(gone):
    block = SwinBlock(12, 3, True, 0.0)
    if gone == "qkv bias":
        block.attn.qkv = nn.Linear(12, 36, bias=False)
    else:
        block.norm1 = nn.LayerNorm(12, elementwise_affine=False)
    x = torch.randn(1, 8, 8, 8, 12, requires_grad=True)
    block(x).square().sum().backward()
    found = x.grad.clone()
    x.grad = None
    with set_fast_paths(False):
        block(x).square().sum().backward()
    torch.testing.assert_close(found, x.grad)


def test_the_memo_of_biases_is_bounded():
    model = medzoo.create("swin_encoder_mlp", num_classes=0, feature_size=12).eval()
    memos = [block.attn.memo for block in model.modules() if isinstance(block, SwinBlock)]
    for memo in memos:
        memo.LIMIT = 1000
    with torch.no_grad():
        for size in ((32, 32, 32), (64, 32, 32), (32, 64, 32), (32, 32, 64)):
            x = torch.randn(1, 1, *size)
            found = model(x)
            with set_fast_paths(False):
                torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by_c", [True, False])
def test_copies_see_every_write_to_a_value(by_c, monkeypatch):
    """C compares bits, for which NaN is equal to itself."""
    if not by_c:
        monkeypatch.setattr(guards, "_memcmp", lambda: None)
    fill = float("nan") if by_c else 1.0
    channels_last = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    tensors = [torch.randn(4, 6), torch.randn(3), torch.tensor(7), channels_last, torch.full((2, 2), fill)]
    tensors += [torch.randn(5, 4).bfloat16()[1:], torch.randn(9)[1:], torch.full((3,), fill)]
    tensors += [torch.randn(6, 9)[:, :4], torch.zeros(0)]
    copies = Copies(tensors)
    assert copies.same()
    for tensor in tensors:
        if not tensor.numel():
            continue
        flat = tensor.data.view(-1) if tensor.is_contiguous() else tensor.data[(0,) * (tensor.ndim - 1)]
        before = flat[-1].clone()
        flat[-1] = 3
        assert not copies.same()
        flat[-1] = before
        assert copies.same()
    tensors[0].data.copy_(tensors[0].flip(0))
    assert not copies.same()


def test_copies_see_another_view_of_the_same_memory():
    for change in (lambda t: t.t(), lambda t: t[:2], lambda t: t[:1].expand(4, 4)):
        tensor = nn.Parameter(torch.arange(16.0).reshape(4, 4))
        copies = Copies([tensor])
        tensor.data = change(tensor.data)
        assert not copies.same()
        assert not copies.in_place()


@pytest.mark.gpu
def test_copies_on_a_gpu():
    tensors = [torch.randn(4, 6, device="cuda"), torch.randn(3, device="cuda").half()]
    copies = Copies(tensors)
    assert copies.same()
    tensors[1].data[2] = 3
    assert not copies.same()
