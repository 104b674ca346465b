"""Maps of a layer against captum and plain autograd, for every model; which layer is chosen, and which are refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from tensors import scatter_weights, tiny
from torch import nn
from torch.nn import functional as F

import medzoo
from medzoo.classifier import Classifier
from medzoo.errors import ConfigError
from medzoo.inference.view import float32_view, without_values
from medzoo.interpretation.cell_frame import cell_frame
from medzoo.interpretation.choose import choose_layer
from medzoo.interpretation.layer_maps import layer_maps, layer_shapes
from medzoo.nn.head import Head

MODELS = medzoo.list_models()
# What is shown of each by the comparison with captum, which all run.
LARGE = ("cnn3d_base", "densenet121_xray", "resnet18_multilabel", "swin_encoder_mlp")
SOME = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in MODELS]


def scattered(name, **options):
    """Return a tiny model whose logits depend on every parameter, and whose norms are those of eval mode."""
    torch.manual_seed(3)
    model = tiny(name, **options).eval()
    scatter_weights(model)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return model


def batch(model, n, larger=False):
    """Return images of the tiny size, or of a larger one with different sides; one with a flatten head takes one."""
    size, spec = list(medzoo.describe(model.name).tiny_size), model.input_spec
    if larger:
        size[0] += max(spec.multiple, 16)
    return torch.randn(n, spec.channels, *size, generator=torch.Generator().manual_seed(1))


def view_of(model):
    return float32_view(model, torch.device("cpu"))


def picks(*targets):
    return lambda logits: torch.tensor(targets).expand(len(logits), -1)


@pytest.mark.parametrize("larger", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_the_maps_of_captum(name, larger):
    model = scattered(name, num_classes=3)
    if larger and model.input_spec.exact:
        model = scattered(name, num_classes=3, pool="avg", size=48)
    oracle = copy.deepcopy(model).requires_grad_(True)
    x, view = batch(model, 2, larger), view_of(model)
    chosen = choose_layer(view, x).name
    stages = [f"encoder.{info['module']}" for info in model.feature_info]
    other = next(stage for stage in reversed(stages) if stage != chosen)
    for layer in {medzoo.describe(name).cam_layer, chosen, other}:
        logits, maps = layer_maps(view, layer, x, picks(0, 1, 2))
        assert torch.allclose(logits, model(x), atol=1e-5)
        captum = LayerGradCam(oracle, oracle.get_submodule(layer))
        expected = torch.cat([captum.attribute(x, target=i, relu_attributions=True).detach() for i in range(3)], 1)
        assert expected.max() > 0, "nothing would be compared"
        assert (maps - expected).abs().max() <= 1e-5 * expected.max()


def plus_plus(model, layer, x, targets):
    """Return Grad-CAM++ of each row from autograd and the formula in float64, with nothing added to a denominator."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, out: kept.append(out) or out.clone())
    logits = model(x)
    handle.remove()
    (gradients,) = torch.autograd.grad(logits.gather(1, torch.tensor(targets)[:, None]).sum(), kept[0])
    maps = []
    for a, g in zip(kept[0].detach().double().flatten(2), gradients.double().flatten(2), strict=True):
        bottom = 2 * g**2 + (a * g**3).sum(1, keepdim=True)
        alpha = torch.where(g == 0, 0, g**2 / bottom)
        weights = (alpha * F.relu(g)).sum(1, keepdim=True)
        maps.append(F.relu((weights * a).sum(0)).view(kept[0].shape[2:]))
    return torch.stack(maps).float()


@pytest.mark.parametrize("name", SOME)
def test_gradcam_plus_plus_of_a_batch_is_that_of_autograd(name):
    model = scattered(name, num_classes=3).requires_grad_(True)
    x = batch(model, 3)
    view = view_of(model)
    layer, targets = choose_layer(view, x).name, [2, 0, 1]
    _, maps = layer_maps(view, layer, x, lambda _: torch.tensor(targets)[:, None], "gradcam++")
    expected = plus_plus(model, layer, x, targets)
    assert expected.max() > 0
    assert (maps[:, 0] - expected).abs().max() <= 1e-4 * expected.max()


def test_gradcam_plus_plus_does_not_depend_on_the_scale_of_the_gradient():
    """MONAI adds 1e-7 to squares of a gradient, which an average over many cells makes smaller than that."""
    model = scattered("cnn3d_base").requires_grad_(True)
    x = torch.randn(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(2))
    layer = "encoder.stages.0.relu"  # 62 x 62 x 62 cells
    _, maps = layer_maps(view_of(model), layer, x, picks(0), "gradcam++")
    expected = plus_plus(model, layer, x, [0])
    assert (maps[:, 0] - expected).abs().max() <= 1e-3 * expected.max()


@pytest.mark.parametrize("name", SOME)
def test_rows_and_targets_do_not_influence_each_other(name):
    model = scattered(name, num_classes=3)
    x = batch(model, 3)
    view = view_of(model)
    layer, targets = choose_layer(view, x).name, torch.tensor([[0, 1], [2, 0], [1, 2]])
    logits, maps = layer_maps(view, layer, x, lambda _: targets)
    assert maps.max() > 0
    for row in range(3):
        for column in range(2):
            alone, own = layer_maps(view, layer, x[row : row + 1], picks(int(targets[row, column])))
            assert torch.allclose(alone[0], logits[row], atol=1e-5)
            # Sums of many channels that nearly cancel differ by rounding between batches.
            assert (own[0, 0] - maps[row, column]).abs().max() <= 1e-3 * maps.max()


@pytest.mark.parametrize(
    ("side", "layer", "cells"),
    [
        pytest.param(128, "encoder", 4, marks=pytest.mark.slow),
        (96, "encoder.layers3", 6),
        (64, "encoder.layers3", 4),
        (32, "encoder.layers2", 4),
    ],
)
def test_the_layer_of_swin_is_chosen_by_size(side, layer, cells):
    found = choose_layer(view_of(tiny("swin_encoder_mlp")), torch.zeros(1, 1, side, side, side))
    assert (found.name, found.size, found.is_coarse) == (layer, (cells,) * 3, False)


@pytest.mark.parametrize("name", SOME)
def test_at_the_default_size_every_model_has_a_layer_that_points(name):
    spec = medzoo.describe(name)
    model = tiny(name, **({"size": spec.input_spec.size} if "size" in spec.options else {}))
    x = torch.zeros(1, spec.input_spec.channels, *spec.input_spec.size)
    found = choose_layer(view_of(model), x)
    assert not found.is_coarse
    assert name == "swin_encoder_mlp" or found.name == spec.cam_layer


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_layers_and_frames_do_not_depend_on_values(name):
    """What is found from shapes alone is what a pass over the image finds."""
    view, x = view_of(tiny(name)), batch(tiny(name), 1)
    stages = [f"encoder.{info['module']}" for info in view.feature_info]
    assert without_values(view, x, lambda view, x: x.device.type) == "meta"
    sizes = layer_shapes(view, stages, x)
    assert without_values(view, x, lambda view, x: layer_shapes(view, stages, x)) == sizes
    for stage, (shape,) in sizes.items():

        def frame(view, x, stage=stage, shape=shape):
            return cell_frame(view, stage, x, shape[2:])

        assert np.array_equal(without_values(view, x, frame), frame(view, x))


def test_a_map_that_is_coarse_everywhere_is_the_largest():
    model = tiny("cnn3d_base")
    found = choose_layer(view_of(model), torch.zeros(1, 1, 46, 46, 46), "encoder.stages.3.pool")
    assert (found.size, found.is_coarse) == ((1, 1, 1), True)


class Odd(nn.Module):
    """An encoder of a user: a layer that runs twice, one that never does, one beside the logits, one with two results.

    Its sizes cannot be known without values, and it overwrites what its layers return and what they were given.
    """

    def __init__(self):
        super().__init__()
        self.first, self.same = nn.Conv2d(1, 6, 3, padding=1), nn.Identity()
        self.act, self.last = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.beside, self.unused, self.pair = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.LSTM(4, 4)
        self.feature_info = [{"num_chs": 6, "reduction": 1, "module": "last"}]

    def forward(self, x):
        x = self.first(x * float(x.abs().max() > 0))
        y = self.second(self.same(x).clone())
        x.add_(1)  # what `same` was given
        y = self.last(y.mul_(3))  # what `second` returned
        self.act(self.act(self.beside(y)))
        self.pair(torch.zeros(1, 1, 4))
        return y


@pytest.fixture
def odd():
    torch.manual_seed(0)
    spec = medzoo.InputSpec("b c h w", channels=1, size=(8, 10))
    model = Classifier(Odd(), Head(6, 2), input_spec=spec, name="odd").eval()
    scatter_weights(model)
    return model


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            "encoder.frist",
            r"got layer='encoder\.frist'\. Did you mean 'encoder\.first'\? The stages are encoder\.last\.",
        ),
        ("", r"the dotted name of a module, got layer=''\."),
        (3, r"the dotted name of a module, got layer=3\."),
        ("encoder.act", r"one map 'b c h w' in a forward pass, got encoder\.act, which ran 2 times\."),
        ("encoder.unused", r"got encoder\.unused, which ran 0 times\."),
        ("encoder.pair", r"got encoder\.pair, which returned no tensor\."),
        ("head.classifier", r"got head\.classifier, which returned \(1, 2\)\. The stages are encoder\.last\."),
    ],
)
def test_a_layer_without_one_map_is_an_error(odd, layer, message):
    with pytest.raises(ConfigError, match=r"^odd: expected .*" + message):
        choose_layer(view_of(odd), torch.rand(1, 1, 8, 10), layer)


@pytest.mark.parametrize("layer", ["encoder.layers1.0.downsample", "encoder.layers3.0.blocks.1", "encoder.layers1.0"])
def test_a_layer_with_its_channels_last_is_an_error(layer):
    # 48 channels at 48 x 48 x 48: the shape alone does not show it.
    view, x = view_of(tiny("swin_encoder_mlp", feature_size=48)), torch.zeros(1, 1, 96, 96, 96)
    if layer == "encoder.layers1.0":
        assert choose_layer(view, x, layer).size == (24, 24, 24)
        return
    with pytest.raises(ConfigError, match=r"which returned \(1, .*\), with the channels last\."):
        choose_layer(view, x, layer)


def test_a_layer_beside_the_logits_is_an_error(odd):
    with pytest.raises(ConfigError, match=r"^odd: expected a layer that the logits depend on, got encoder\.beside\."):
        layer_maps(view_of(odd), "encoder.beside", torch.rand(1, 1, 8, 10), picks(0))


@pytest.mark.parametrize("layer", ["first", "same", "second", "last"])
def test_layers_that_are_overwritten_give_their_own_maps(odd, layer):
    """In-place changes of what a layer returned and was given, and an in-place ReLU as the layer itself."""
    x, parts = torch.rand(2, 1, 8, 10), {}
    parts["first"] = odd.encoder.first(x)
    parts["same"] = parts["first"] + 0
    parts["second"] = odd.encoder.second(parts["same"])
    parts["last"] = F.relu(3 * parts["second"])
    expected_logits = odd.head(parts["last"])
    (g,) = torch.autograd.grad(expected_logits[:, 1].sum(), parts[layer])
    expected = F.relu((g.flatten(2).mean(2)[..., None, None] * parts[layer]).sum(1))
    logits, maps = layer_maps(view_of(odd), f"encoder.{layer}", x, picks(1))
    assert torch.allclose(logits, expected_logits, atol=1e-6)
    assert torch.allclose(maps[:, 0], expected, atol=1e-6)
    assert expected.max() > 1e-4
