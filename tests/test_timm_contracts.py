"""What timm's own suite requires of its models, required of every registered one; docs/stability.md lists it.

Where medzoo differs on purpose, a test proves the difference. What ``test_zoo.py`` proves is not repeated.
"""

from __future__ import annotations

import math
import warnings

import pytest
import timm
import torch
from safetensors.torch import save_file
from tensors import batch, scatter_weights, tiny
from timm.models import adapt_input_conv
from torch import nn

import medzoo
from medzoo.errors import ConfigError, InputError
from medzoo.input_spec import InputSpec
from medzoo.nn.encoder import Encoder
from medzoo.nn.head import Head

MODELS = medzoo.list_models()
every_model = pytest.mark.parametrize("name", MODELS)


def lopsided(name):
    """Return random images of which no two sides are equal."""
    spec = tiny(name, num_classes=0).input_spec
    sides = [spec.nearest(spec.minimum + 3 * i)[1] + spec.multiple * i for i in range(spec.dims)]
    assert len(set(sides)) == spec.dims
    return torch.randn(1, spec.channels, *sides)


def equal(some, others):
    """Whether two lists of maps are equal, bit for bit."""
    return len(some) == len(others) and all(map(torch.equal, some, others))


@every_model
def test_widths_are_those_that_the_model_states(name):
    model, x = tiny(name).eval(), batch(name)
    maps = model.forward_features(x)
    assert maps.shape[1] == model.num_features
    assert model.forward_head(maps, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model.get_classifier().out_features == model.num_classes
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(x).shape == (2, model.head_hidden_size)
    assert torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), model(x))


@every_model
def test_a_head_without_hidden_layers_gives_its_pre_logits_at_zero_classes(name):
    """As in timm. Where there is a hidden layer, timm keeps it and medzoo drops it."""
    model, x = tiny(name).eval(), batch(name)
    pre = model.forward_head(model.forward_features(x), pre_logits=True)
    hidden = [part for part in model.head.children() if isinstance(part, nn.Linear)][:-1]
    model.reset_classifier(0)
    assert torch.equal(pre, model(x)) == (not hidden)


@every_model
@pytest.mark.parametrize("make", [batch, lopsided])
def test_maps_have_the_channels_and_strides_of_feature_info(name, make):
    model, x = tiny(name, num_classes=0).eval(), make(name)
    assert model(x).shape == (len(x), model.num_features)
    last, maps = model.forward_intermediates(x)
    assert torch.equal(last, model.forward_features(x))
    assert len(maps) == len(model.feature_info) >= 3
    for found, channels, stride in zip(
        maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert found.shape[:2] == (len(x), channels)
        assert all(s <= math.ceil(side / stride) + 1 for s, side in zip(found.shape[2:], x.shape[2:], strict=True))
        assert found.isfinite().all()


@every_model
def test_features_only_returns_every_map_by_default(name):
    torch.manual_seed(1)
    model = tiny(name).eval()
    torch.manual_seed(1)
    extractor, x = tiny(name, features_only=True).eval(), batch(name)
    assert extractor.feature_info == model.feature_info
    assert equal(extractor(x), model.forward_intermediates(x, intermediates_only=True))


@every_model
def test_stop_early_returns_the_map_of_the_largest_index(name):
    model, x = tiny(name).eval(), batch(name)
    _, maps = model.forward_intermediates(x)
    runs = []
    end = model.encoder.get_submodule(model.feature_info[-1]["module"])
    end.register_forward_hook(lambda *_: runs.append(1))
    for indices, largest in ([0], 0), ([1, 0], 1), ([-2], -2):
        last, _ = model.forward_intermediates(x, indices, stop_early=True)
        assert torch.equal(last, maps[largest])
    model.forward_intermediates(x, [0], intermediates_only=True)
    assert not runs
    last, chosen = model.forward_intermediates(x, [0])
    assert runs
    assert equal([last, *chosen], [model.forward_features(x), maps[0]])


@every_model
def test_output_fmt_moves_the_channels_of_the_list(name):
    model, x = tiny(name).eval(), batch(name)
    last, maps = model.forward_intermediates(x, output_fmt="NCHW")
    assert equal([last, *maps], [model.forward_features(x), *model.forward_intermediates(x, intermediates_only=True)])
    last, moved = model.forward_intermediates(x, output_fmt="NHWC")
    assert [m.shape[-1] for m in moved] == model.feature_info.channels()
    assert equal([last, *(m.movedim(-1, 1) for m in moved)], [model.forward_features(x), *maps])
    with pytest.raises(ConfigError, match=rf"^{name}: expected output_fmt to be 'NCHW' .* or 'NHWC' .*, got 'NLC'\.$"):
        model.forward_intermediates(x, output_fmt="NLC")


@every_model
def test_norm_changes_no_map_of_the_zoo(name):
    model, x = tiny(name).eval(), batch(name)
    scatter_weights(model)
    assert equal(model.forward_intermediates(x, norm=True)[1], model.forward_intermediates(x)[1])


@every_model
def test_an_encoder_has_the_verb_of_timms_models(name):
    model, x = tiny(name).eval(), batch(name)
    last, maps = model.forward_intermediates(x)
    got_last, got = model.encoder.forward_intermediates(x)
    assert equal([got_last, *got], [last, *maps])
    for indices in (2, [1], [-2, -1]):
        options = {"indices": indices, "norm": False, "stop_early": True, "intermediates_only": True}
        got = model.encoder.forward_intermediates(x, output_fmt="NCHW", **options)
        assert equal(got, model.forward_intermediates(x, **options))
    if isinstance(model.encoder, Encoder):
        last, (moved,) = model.encoder.forward_intermediates(x, [1], stop_early=True, output_fmt="NHWC")
        assert equal([last, moved.movedim(-1, 1)], [maps[1], maps[1]])
        who = type(model.encoder).__name__
        with pytest.raises(ConfigError, match=f"^{who}: expected output_fmt to be 'NCHW'"):
            model.encoder.forward_intermediates(x, output_fmt="CHWN")
        with pytest.raises(ConfigError, match=rf"^{who}: expected indices of its {len(maps)} maps"):
            model.encoder.forward_intermediates(x, len(maps) + 1)


@every_model
def test_an_optimized_model_has_it_too(name):
    model, x = tiny(name).eval(), batch(name)
    fast, options = medzoo.optimize(model), {"indices": [1, 0], "stop_early": True, "output_fmt": "NHWC"}
    with torch.inference_mode():
        (got_last, got), (last, maps) = (m.forward_intermediates(x, **options) for m in (fast, model))
    for a, b in zip([got_last, *got], [last, *maps], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max())))


@every_model
def test_a_model_around_timms_encoder_is_timms_model(name):
    """The same tensors in timm's own model give the same bits, by every verb."""
    model, x = tiny(name).eval(), batch(name)
    if not type(model.encoder).__module__.startswith("timm."):
        pytest.skip("the encoder is medzoo's")
    options = {"num_classes": model.num_classes, "in_chans": x.shape[1]}
    peer = timm.create_model(model.encoder.pretrained_cfg["architecture"], **options).eval()
    missing, unexpected = peer.load_state_dict(model.encoder.state_dict(), strict=False)
    assert not unexpected
    peer.get_classifier().load_state_dict(model.get_classifier().state_dict())
    assert len(missing) == len(model.get_classifier().state_dict())
    assert peer.num_features == model.num_features
    assert peer.head_hidden_size == model.head_hidden_size
    assert timm.models.FeatureInfo(peer.feature_info, 5).channels() == model.feature_info.channels()
    for indices in (None, 2, [0, -2]):
        last, maps = model.forward_intermediates(x, indices)
        peer_last, peer_maps = peer.forward_intermediates(x, indices)
        assert equal([last, *maps], [peer_last, *peer_maps])
        for flags in ({"stop_early": True}, {"norm": True}, {"output_fmt": "NCHW"}):
            flags |= {"indices": indices, "intermediates_only": True}
            assert equal(model.forward_intermediates(x, **flags), peer.forward_intermediates(x, **flags))
    # timm returns each once, in the order of the network.
    ours, theirs = (m.forward_intermediates(x, [2, 0, 2], intermediates_only=True) for m in (model, peer))
    assert equal(ours, [theirs[1], theirs[0], theirs[1]])
    for zero in (False, True):
        if zero:
            model.reset_classifier(0)
            peer.reset_classifier(0)
        torch.testing.assert_close(model(x), peer(x), rtol=1e-5, atol=1e-6)
        pre, peer_pre = (m.forward_head(m.forward_features(x), pre_logits=True) for m in (model, peer))
        torch.testing.assert_close(pre, peer_pre, rtol=1e-5, atol=1e-6)


@every_model
def test_another_number_of_channels_adapts_the_first_kernel_as_timm_does(name, tmp_path):
    before = tiny(name, in_chans=3).state_dict()
    save_file(before, tmp_path / "model.safetensors")
    for channels in (1, 5):
        after = tiny(name, in_chans=channels, pretrained=tmp_path / "model.safetensors").state_dict()
        (key,) = [key for key, tensor in before.items() if tensor.shape != after[key].shape]
        flat = before[key].flatten(3) if before[key].ndim == 5 else before[key]  # timm's have two spatial axes
        torch.testing.assert_close(after[key], adapt_input_conv(channels, flat).reshape(after[key].shape))


class Mapper(nn.Module):
    """An encoder of one's own, with no more than what a model has always called."""

    feature_info = ({"num_chs": 4, "reduction": 1, "module": "conv"},)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)

    def forward_intermediates(self, x, indices, *, stop_early, intermediates_only):
        assert stop_early
        assert intermediates_only
        return [self.conv(x) for _ in indices]


def test_an_encoder_of_ones_own_need_not_know_norm():
    spec = InputSpec("b c h w", channels=1, size=(4, 4))
    model = medzoo.Classifier(Mapper(), Head(4, 2), input_spec=spec)
    (found,) = model.forward_intermediates(torch.zeros(1, 1, 4, 4), output_fmt="NHWC", intermediates_only=True)
    assert found.shape == (1, 4, 4, 4)


def test_norm_reaches_an_encoder_of_timms():
    encoder = timm.create_model("test_vit", num_classes=0, global_pool="").eval()
    spec = InputSpec("b c h w", channels=3, size=(160, 160))
    model, x = medzoo.Classifier(encoder, Head(64, 2), input_spec=spec), torch.randn(1, 3, 160, 160)
    found = [model.forward_intermediates(x, 2, norm=norm, intermediates_only=True) for norm in (False, True)]
    for norm, maps in enumerate(found):
        assert equal(maps, encoder.forward_intermediates(x, 2, norm=bool(norm), intermediates_only=True))
    assert not equal(*found)


@every_model
def test_reset_classifier_has_no_pooling_argument(name):
    """A second ``True`` meant ``whole_head`` in an earlier version."""
    model = tiny(name)
    before = model.get_classifier()
    for pool in ("", "avg", True):
        message = (
            rf"^{name}: expected no global_pool, the second argument in timm, got {pool!r}\. .* whole_head=True is"
        )
        for call in (
            lambda p=pool: model.reset_classifier(5, p),
            lambda p=pool: model.reset_classifier(5, global_pool=p),
        ):
            with pytest.raises(ConfigError, match=message):
                call()
    with pytest.raises(TypeError, match="positional"):
        model.reset_classifier(5, None, True)
    assert model.get_classifier() is before
    model.reset_classifier(5, None)
    assert model.num_classes == 5


@every_model
def test_an_optimized_model_refuses_a_new_classifier_however_it_is_called(name):
    fast = medzoo.optimize(tiny(name))
    for arguments in ((2,), (2, None), (2, "avg")):
        with pytest.raises(ConfigError, match="for inference alone: it cannot have a new classifier"):
            fast.reset_classifier(*arguments)


@every_model
def test_torchscript_and_fx_are_not_supported(name):
    model = tiny(name).eval()
    with pytest.raises(InputError, match=f"^{name}: expected a torch.Tensor, got Proxy"):
        torch.fx.symbolic_trace(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch deprecates it
        with pytest.raises((RuntimeError, ValueError)):
            torch.jit.script(model)


@every_model
def test_what_timms_models_have_and_these_do_not(name):
    model, peer = tiny(name), timm.create_model("test_vit")
    for attribute in (
        "default_cfg", "pretrained_cfg", "global_pool", "prune_intermediate_layers", "group_matcher", "no_weight_decay"
    ):  # fmt: skip
        assert not hasattr(model, attribute)
        assert hasattr(peer, attribute)
