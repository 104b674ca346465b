"""``medzoo.optimize``: the same outputs sooner."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import medzoo
from medzoo.inference import fold
from medzoo.inference.optimize import fast_form
from medzoo.kernels import conv_stage
from medzoo.kernels.cpu import conv as cpu_conv
from medzoo.kernels.cpu.conv import PairedConv
from medzoo.nn.guards import Watch

MODELS = medzoo.list_models()
CONVOLUTIONAL = ["cnn3d_small", "cnn3d_base", "xray_cnn"]
FOLDED = [*CONVOLUTIONAL, "resnet18_multilabel", "densenet121_xray"]
# DenseNet is folded as ResNet is, and Swin not at all: outputs are checked in every run, the rest in slow ones.
OWN = [*CONVOLUTIONAL, "resnet18_multilabel"]


def slowly(*names):
    """Mark models that only slow runs need."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


OWN_AND_SLOWLY_DENSE = [*OWN, *slowly("densenet121_xray")]
OWN_AND_SLOWLY_ALL = [*OWN, *slowly("densenet121_xray", "swin_encoder_mlp")]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def trained(model):
    """Give every BatchNorm what training leaves: means, variances, and scales of both signs and zero."""
    generator = torch.Generator().manual_seed(3)

    def draw(like):
        return torch.randn(like.shape, generator=generator)

    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.weight.copy_(draw(norm.weight))
            norm.weight[0] = 0.0
            norm.bias.copy_(draw(norm.bias))
            norm.running_mean.copy_(0.1 * draw(norm.bias))
            norm.running_var.copy_(0.5 + draw(norm.bias).square())
    return model.eval()


def tiny(name, **options):
    return trained(medzoo.create(name, **dict(medzoo.describe(name).tiny) | options))


def batch(name, n=2):
    spec = medzoo.describe(name)
    return torch.randn(n, spec.input_spec.channels, *spec.tiny_size)


def near(got, expected):
    """Hold to 1e-5, or to that share of the largest value above one."""
    assert got.shape == expected.shape
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * max(1.0, largest))


@pytest.mark.parametrize("name", MODELS)
def test_the_outputs_are_equal(name):
    model, x = tiny(name), batch(name)
    fast = medzoo.optimize(model)
    near(fast(x), model(x))
    assert (fast_form(fast) is None) == (name == "swin_encoder_mlp")


@pytest.mark.parametrize("name", OWN_AND_SLOWLY_ALL)
def test_every_verb_gives_equal_values(name):
    model, x = tiny(name), batch(name)
    fast = medzoo.optimize(model)
    before = x.clone()
    for some in (x[:0], x[:1], torch.cat([x, x[:1]])):
        near(fast(some), model(some))
    near(fast.forward_features(x), model.forward_features(x))
    near(fast.forward_head(fast.forward_features(x), pre_logits=True), model.forward_head(model.encoder(x), True))
    (last, maps), (expected_last, expected_maps) = fast.forward_intermediates(x), model.forward_intermediates(x)
    near(last, expected_last)
    for got, expected in zip(maps, expected_maps, strict=True):
        near(got, expected)
    extractor = medzoo.FeatureExtractor(model, [0, -1]).eval()
    for got, expected in zip(medzoo.optimize(extractor)(x), extractor(x), strict=True):
        near(got, expected)
    model.reset_classifier(0)
    near(medzoo.optimize(model)(x), model(x))
    assert torch.equal(fast(x), fast(x))
    assert torch.equal(x, before)


def ways():
    """Name every way through a stage, and what leads there."""
    return {
        "slabs": {},
        "one row a slab": {(conv_stage, "SLAB_BYTES"): 1},
        "public operators": {(cpu_conv, "private_ops"): lambda dtype: False},
        "a GPU's, on the CPU": {(conv_stage, "on_cpu"): lambda x: False},
    }


@pytest.mark.parametrize("way", ways())
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_way_through_a_stage_gives_equal_values(name, way, monkeypatch):
    for (module, attribute), value in ways()[way].items():
        monkeypatch.setattr(module, attribute, value)
    model = tiny(name, num_classes=0)
    fast, spec = medzoo.optimize(model), model.input_spec
    smallest = [spec.minimum] * spec.dims
    for more in ([0, 0, 0], [1, 0, 2], [7, 3, 1], [4, 9, 11]):
        x = torch.randn(2, spec.channels, *[s + m for s, m in zip(smallest, more, strict=False)])
        near(fast(x), model(x))
        for got, expected in zip(fast.forward_intermediates(x)[1], model.forward_intermediates(x)[1], strict=True):
            near(got, expected)
    assert all(fast_form(fast).folded(i) for i in range(len(model.encoder.stages)))


@pytest.mark.parametrize(("padding", "rows"), [(0, 4), (1, 10)])
def test_pairs_of_planes_are_the_convolution_and_its_maximum(padding, rows, monkeypatch):
    x, weight, bias = torch.randn(1, 16, rows, 7, 9), torch.randn(24, 16, 3, 3, 3), torch.randn(24)
    exact = F.conv3d(x.double(), weight.double(), bias.double(), padding=(0, padding, padding))
    expected = F.max_pool3d(exact, (2, 1, 1)).movedim(1, -1)[0]
    for usable in (cpu_conv.private_ops(torch.float32), False):
        monkeypatch.setattr(cpu_conv, "private_ops", lambda dtype, usable=usable: usable)
        near(PairedConv(weight, bias, padding)(x).double(), expected)


@pytest.mark.parametrize("slab", [1, 2**18, 2**22])
def test_wide_stages_run_by_pairs_of_planes(slab, monkeypatch):
    monkeypatch.setattr(conv_stage, "SLAB_BYTES", slab)
    model = trained(medzoo.create("cnn3d_base", widths=(16, 16, 16, 16), hidden=8))
    fast = medzoo.optimize(model)
    for size in ([46, 46, 46], [49, 46, 51]):
        x = torch.randn(1, 1, *size)
        near(fast.forward_features(x), model.forward_features(x))
    assert [fast_form(fast).folded(i).paired is not None for i in range(4)] == [False, True, True, True]


@pytest.mark.parametrize("name", ["resnet18_multilabel", *slowly("densenet121_xray")])
def test_timms_encoders_need_no_private_operator(name, monkeypatch):
    monkeypatch.setattr(cpu_conv, "private_ops", lambda dtype: False)
    model, x = tiny(name), batch(name)
    near(medzoo.optimize(model)(x), model(x))


def test_the_private_operators_are_tried_before_they_are_used(monkeypatch):
    def wrong(*_):
        raise RuntimeError("no such operator")

    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(cpu_conv, "_private_conv", wrong)
        assert cpu_conv.private_ops.__wrapped__(dtype) is False
        monkeypatch.setattr(cpu_conv, "_private_conv", lambda x, *_: x.new_zeros(1, 2, 2, 4, 4))
        assert cpu_conv.private_ops.__wrapped__(dtype) is False


@pytest.mark.parametrize("name", OWN_AND_SLOWLY_DENSE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_run_the_plain_modules(name, dtype):
    model, x = tiny(name).to(dtype), batch(name).to(dtype)
    assert torch.equal(medzoo.optimize(model)(x), model(x))
    near(medzoo.optimize(model).float()(x.float()), model.float()(x.float()))


@pytest.mark.parametrize("usable", [None, False], ids=["as tried", "public operators"])
@pytest.mark.parametrize("name", OWN_AND_SLOWLY_DENSE)
def test_bfloat16_lies_as_close_to_float32_as_the_plain_model(name, usable, monkeypatch):
    if usable is not None:
        monkeypatch.setattr(cpu_conv, "private_ops", lambda dtype: usable)
    model = tiny(name)
    x = torch.randn(8, *batch(name).shape[1:])
    exact = model.forward_features(x)
    half, y = model.bfloat16(), x.bfloat16()
    fast = medzoo.optimize(half)
    ours, plain = ((m.forward_features(y).float() - exact).norm() for m in (fast, half))
    # Both are roundings, so either may be the closer one by chance.
    assert ours <= 1.5 * plain
    assert fast(y).dtype == torch.bfloat16
    assert "unchanged" not in repr(fast)


@pytest.mark.parametrize("where", ["in the image", "in a kernel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OWN_AND_SLOWLY_DENSE)
def test_nan_stays_nan(name, dtype, where):
    model, x = tiny(name).to(dtype), batch(name).to(dtype)
    if where == "in a kernel":
        next(iter(model.encoder.parameters())).flatten()[0] = torch.nan
    else:
        x[0, 0].flatten()[x[0, 0].numel() // 2] = torch.nan
    assert model(x)[0].isnan().all()
    assert medzoo.optimize(model)(x)[0].isnan().all()


@pytest.mark.parametrize("name", OWN_AND_SLOWLY_DENSE)
def test_one_type_inside_another_is_refused_as_in_the_plain_model(name):
    model, x = tiny(name), batch(name)
    convolutions = [m for m in model.encoder.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
    convolutions[1].bfloat16()
    for m in (model, medzoo.optimize(model)):
        with pytest.raises(RuntimeError, match=r"(?i)type|expected torch\.bfloat16"):
            m(x)


def test_kernels_are_packed_again_for_another_size():
    model = tiny("resnet18_multilabel")
    fast = medzoo.optimize(model)
    for size, images in ((64, 2), (96, 1), (64, 2)):
        x = torch.randn(images, 3, size, size)
        near(fast(x), model(x))


@pytest.mark.parametrize("name", OWN_AND_SLOWLY_DENSE)
def test_layouts_and_views_give_equal_values(name):
    model, x = tiny(name), batch(name)
    fast, expected = medzoo.optimize(model), model(x)
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    for variant in (x.to(memory_format=layout), torch.stack([x, x], -1)[..., 0], x.flip(-1).flip(-1)):
        near(fast(variant), expected)
    near(fast(x[:1].expand_as(x)), expected[:1].expand_as(expected))


@pytest.mark.parametrize("name", OWN_AND_SLOWLY_ALL)
def test_its_tensors_are_the_originals(name, tmp_path):
    model, x = tiny(name), batch(name)
    fast, expected = medzoo.optimize(model), model(x)
    fast(x)
    assert fast.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in fast.state_dict().items())
    again = medzoo.create(f"local-dir:{fast.save_pretrained(tmp_path / 'saved')}")
    assert torch.equal(again(x), expected)
    assert not any(p.requires_grad for p in fast.parameters())
    assert all(p.requires_grad for p in model.parameters())
    for parameter in model.parameters():  # what training does to the original
        parameter.zero_()
    near(fast(x), expected)
    fast.load_state_dict(model.state_dict())
    near(fast(x), model(x))


@pytest.mark.parametrize("name", OWN_AND_SLOWLY_ALL)
def test_it_is_copied_stored_and_optimized_again(name):
    model, x = tiny(name), batch(name)
    fast, expected = medzoo.optimize(model), model(x)
    fast(x)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), medzoo.optimize(fast), fast.to("cpu")):
        assert type(other) is type(fast)
        near(other(x), expected)
    for key in ("name", "outputs", "preprocessing", "input_spec", "options", "load_report"):
        assert getattr(fast, key) == getattr(model, key)


@pytest.mark.parametrize("name", OWN_AND_SLOWLY_ALL)
def test_it_refuses_to_be_trained(name):
    model = tiny(name).train()
    fast, x = medzoo.optimize(model), batch(name)
    assert model.training
    assert not any(module.training for module in fast.modules())
    what = rf"^{name}: this model is from medzoo.optimize, for inference alone: .*Use the model it was made from"
    for refused in (
        fast.train,
        fast.requires_grad_,
        lambda: fast.freeze_encoder(False),
        lambda: fast.reset_classifier(2),
    ):
        with pytest.raises(medzoo.errors.ConfigError, match=what):
            refused()
    assert fast.eval().freeze_encoder().requires_grad_(False) is fast
    next(fast.parameters()).requires_grad = True
    with torch.enable_grad(), pytest.raises(medzoo.errors.ConfigError, match=what):
        fast(x)


@pytest.mark.parametrize("name", OWN_AND_SLOWLY_ALL)
def test_it_checks_its_input_as_before(name):
    model = tiny(name)
    fast, x = medzoo.optimize(model), batch(name)
    for wrong in (x[0], x[..., :1], torch.cat([x, x], 1), x.double(), x.byte(), "x.png"):
        with pytest.raises(medzoo.errors.InputError) as said:
            model(wrong)
        with pytest.raises(type(said.value)) as again:
            fast(wrong)
        assert str(again.value) == str(said.value)


@pytest.mark.parametrize("name", OWN_AND_SLOWLY_DENSE)
def test_a_gradient_to_the_input_is_the_plain_one(name):
    model, x = tiny(name), batch(name)

    def gradient(net):
        leaf = x.clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(net(leaf).sum(), leaf)[0]

    assert torch.equal(gradient(medzoo.optimize(model)), gradient(model))


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *slowly("resnet18_multilabel")])
def test_the_plain_modules_are_compiled_and_exported(name):
    torch._dynamo.reset()
    model, x = tiny(name), batch(name)
    fast, expected = medzoo.optimize(model), model(x)
    near(torch.compile(fast, backend="eager", fullgraph=True)(x), expected)
    program = torch.export.export(fast, (x,), dynamic_shapes=({0: torch.export.Dim("b")},))
    near(program.module()(x), expected)
    assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), model(x))


@pytest.mark.parametrize("name", OWN_AND_SLOWLY_DENSE)
def test_a_hook_is_called_and_sees_what_it_saw(name):
    """Set before or after, also a bound method; the part it listens to stays plain."""
    model, x = tiny(name), batch(name)
    layer = medzoo.describe(name).cam_layer
    seen = []
    model.get_submodule(layer).register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    fast = medzoo.optimize(model)
    near(fast(x), model(x))
    near(*seen)
    assert "unchanged" in repr(fast)
    other = medzoo.optimize(tiny(name))
    other(x)
    handle = other.get_submodule(layer).register_forward_hook(lambda module, args, out: seen.append(out))
    other(x)
    handle.remove()
    other(x)
    assert len(seen) == 3


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_stage_that_was_changed_is_not_folded(name):
    model, x = tiny(name), batch(name)
    model.encoder.stages[1].relu = nn.LeakyReLU(0.5)
    fast = medzoo.optimize(model)
    near(fast(x), model(x))
    count = len(model.encoder.stages)
    assert f"(optimized) encoder: {count - 1} of {count} stages: " in repr(fast)
    assert "(optimized) encoder: unchanged: stages.1" in repr(fast)
    fast.encoder.stages[1].relu = nn.ReLU()
    model.encoder.stages[1].relu = nn.ReLU()
    near(fast(x), model(x))
    assert "unchanged" not in repr(fast)
    fast.encoder.stages[0].conv.weight.mul_(2)  # in place, after it was folded
    model.encoder.stages[0].conv.weight.mul_(2)
    near(fast(x), model(x))


def test_repr_describes_what_was_done():
    text = repr(medzoo.optimize(tiny("cnn3d_small")))
    how = "3 of 3 stages: BatchNorm folded, pooled before ReLU, in slabs"
    assert text.startswith(f"OptimizedClassifier(\n  (optimized) encoder: {how}")
    assert "encoder: unchanged" in repr(medzoo.optimize(tiny("cnn3d_small").double()))
    assert "encoder: 20 BatchNorms folded" in repr(medzoo.optimize(tiny("resnet18_multilabel")))
    assert "encoder: unchanged" in repr(medzoo.optimize(tiny("swin_encoder_mlp")))


def test_torch_func_sees_the_plain_modules():
    model, x = tiny("cnn3d_small"), batch("cnn3d_small", 3)
    near(torch.func.vmap(medzoo.optimize(model))(x[:, None])[:, 0], model(x))


def test_what_is_no_model_of_medzoo_is_refused():
    class Mine(medzoo.Classifier):
        """Whose forward is not known here."""

    model = tiny("cnn3d_small")
    for other in (nn.Linear(2, 2), Mine(model.encoder, model.head, input_spec=model.input_spec)):
        with pytest.raises(medzoo.errors.ConfigError, match="expected a Classifier or a FeatureExtractor from medzoo"):
            medzoo.optimize(other)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_predict_runs_the_fast_path_and_leaves_the_model(name, monkeypatch):
    model = tiny(name).train()
    size = medzoo.describe(name).tiny_size
    channels = model.input_spec.channels
    images = [np.random.default_rng(i).random((channels, *size), dtype=np.float32) for i in range(3)]
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    ran = []
    monkeypatch.setattr(conv_stage.FoldedStage, "__call__", _told(ran, conv_stage.FoldedStage.__call__))
    found = medzoo.predict(model, images, allow_untrained=True, batch_size=2)
    assert ran
    monkeypatch.setattr("medzoo.inference.run.optimized_view", lambda model, images: model)
    for got, expected in zip(found, medzoo.predict(model, images, allow_untrained=True, batch_size=2), strict=True):
        np.testing.assert_allclose(list(got.logits.values()), list(expected.logits.values()), atol=1e-5)
        assert got.provenance == expected.provenance
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert type(model) is medzoo.Classifier
    assert "_fast" not in model.__dict__


def _told(calls, function):
    def wrapped(*args):
        calls.append(args)
        return function(*args)

    return wrapped


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDED)
def test_the_outputs_are_equal_at_the_documented_size(name):
    model = trained(medzoo.create(name))
    x = torch.randn(2, model.input_spec.channels, *model.input_spec.size)
    near(medzoo.optimize(model)(x), model(x))


@pytest.mark.gpu
@pytest.mark.parametrize("name", FOLDED)
def test_a_gpu_gives_equal_values(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, x = tiny(name).cuda(), batch(name).cuda()
    monkeypatch.setattr(fold, "LAUNCH_BOUND", 0)
    fast, expected = medzoo.optimize(model), model(x)
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    half = medzoo.optimize(model.bfloat16())(x.bfloat16())
    assert (half.float() - expected).norm() <= 0.05 * expected.norm()
    assert "unchanged" not in repr(fast)


def test_small_images_on_a_gpu_run_the_plain_stages():
    """Fake tensors have a device and a size, and no GPU is needed to ask for them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    encoder = medzoo.create("xray_cnn", pool="avg").encoder
    with FakeTensorMode():
        one, many = (torch.empty(n, 3, 320, 320, device="cuda") for n in (1, 64))
        volume = torch.empty(1, 1, 8, 8, 8, device="cuda")
    assert fold.is_launch_bound(encoder, one)
    assert not fold.is_launch_bound(encoder, many)
    assert not fold.is_launch_bound(encoder, volume)
    assert not fold.is_launch_bound(encoder, torch.empty(1, 3, 320, 320))


WATCHED = {
    "write": lambda m: m[0].weight.add_(1),
    "write a statistic": lambda m: m[1].running_var.mul_(2),
    "set data": lambda m: setattr(m[0].weight, "data", m[0].weight.data.clone()),
    "replace a parameter": lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.clone())),
    "replace a parameter of one number": lambda m: setattr(m[4], "weight", nn.Parameter(m[4].weight.clone())),
    "put a tensor in its place": lambda m: (delattr(m[0], "weight"), setattr(m[0], "weight", torch.zeros(2, 2, 1, 1))),
    "replace a module": lambda m: m.__setitem__(2, nn.ReLU()),
    "fill an empty one": lambda m: m[3].append(nn.ReLU()),
    "cast": lambda m: m.double(),
    "cast and back": lambda m: m.double().float(),
    "hook": lambda m: m[2].register_forward_hook(lambda *_: None),
    "hook after the hooks were replaced": lambda m: setattr(m[2], "_forward_hooks", {1: print}),
    "put a forward in": lambda m: setattr(m[2], "forward", torch.tanh),
    "set eps": lambda m: setattr(m[1], "eps", 0.1),
    "train a part": lambda m: m[1].train(),
    "parametrise": lambda m: nn.utils.parametrize.register_parametrization(m[0], "weight", nn.Identity()),
    "change the class": lambda m: setattr(m[2], "__class__", nn.Tanh),
}


@pytest.mark.parametrize("change", WATCHED)
def test_a_watch_notices(change):
    parts = (nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Sequential(), nn.Conv2d(1, 1, 1, bias=False))
    module = nn.Sequential(*parts).eval()
    watch = Watch(module, exact=False)
    assert watch.holds()
    WATCHED[change](module)
    assert not watch.holds()
    assert Watch(module, exact=False).holds()
