"""``check_model``, and the quick check of the first ``create``: a sound plugin, and plugins with one fault each."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import medzoo
from medzoo import build_check, registry
from medzoo.errors import RegistrationError
from medzoo.nn import Encoder, Head

INPUT = medzoo.InputSpec("b c h w", channels=1, size=(16, 16), minimum=4)
FACTS = {
    "input_spec": INPUT,
    "outputs": medzoo.Outputs(labels=("positive",), task="binary"),
    "preprocessing": medzoo.Preprocessing(size=INPUT.size),
    "parameters": 345,
    "summary": "for a test",
    "source": "here",
    "citation": "none",
    "cam_layer": "encoder.stages.1.relu",
    "tiny": {},
    "tiny_size": (8, 12),
}
NAME = r"^test_model_check\.plugin_net: "


class Stages(Encoder):
    """Two stages of a convolution, ReLU and pooling."""

    def __init__(self, in_chans, widths=(4, 8)):
        super().__init__()
        self.stages = nn.ModuleList()
        for i, (before, width) in enumerate(zip((in_chans, *widths), widths, strict=False)):
            parts = {"conv": nn.Conv2d(before, width, 3, padding=1), "relu": nn.ReLU(), "pool": nn.MaxPool2d(2)}
            self.stages.append(nn.Sequential())
            for name, part in parts.items():
                self.stages[i].add_module(name, part)
            self.feature_info.append({"num_chs": width, "reduction": 2 ** (i + 1), "module": f"stages.{i}"})

    def stage(self, i, x):
        return self.stages[i](x)


@pytest.fixture
def add(monkeypatch):
    """Return a function that registers a plugin, changed in one respect, until the test ends."""
    medzoo.list_models()
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))

    def register(change=None, *, encoder=Stages, kind=medzoo.Classifier, width=None, follow=True, **facts):
        facts = FACTS | facts

        def plugin_net(*, num_classes=1, in_chans=1):
            if not follow:
                num_classes = in_chans = 1
            stages = encoder(in_chans)
            head = Head(width or stages.num_features, num_classes)
            model = kind(stages, head, input_spec=INPUT.with_channels(in_chans))
            return (change and change(model)) or model

        return medzoo.register(**facts)(plugin_net)

    return register


def test_a_sound_model_has_no_fault_and_a_summary(add):
    add()
    state = torch.get_rng_state()
    report = medzoo.check_model("plugin_net")
    assert torch.equal(torch.get_rng_state(), state)
    assert str(report).splitlines()[:3] == [
        "plugin_net, built by test_model_check.plugin_net: 345 parameters",
        "maps of the tiny form: 4 channels at stride 2, 8 channels at stride 4",
        "output of cam_layer: (8, 4, 6)",
    ]
    assert "gradients" in report.checks


def test_an_unknown_model_is_answered_with_the_nearest():
    with pytest.raises(medzoo.errors.UnknownModelError, match="Did you mean 'xray_cnn'"):
        medzoo.check_model("xray_cn")


def info(i, **values):
    return lambda model: model.encoder.feature_info[i].update(values)


def attribute(where, name, value):
    return lambda model: setattr(model.get_submodule(where) if where else model, name, value)


class Counted(Stages):
    num_features = 5


BUILD_FAULTS = {
    "parameters": (
        {"parameters": 300},
        r"parameters: expected 300, as registered, got 345\. If the model is as intended, register parameters=345\.$",
    ),
    "cam_layer": (
        {"cam_layer": "encoder.stages.1.relv"},
        r"cam_layer: expected the name of a module, got 'encoder\.stages\.1\.relv'\. Did you mean "
        r"'encoder\.stages\.1\.relu'\? model\.named_modules\(\) lists them\.$",
    ),
    "no cam_layer": ({"cam_layer": ""}, r"cam_layer: expected the name of a module, got ''\."),
    "head width": (
        {"width": 4, "parameters": 341},
        r"head: expected Head\(8, \.\.\.\), the channels of the encoder's last map, got Head\(4, \.\.\.\)\. "
        r"Write Head\(encoder\.num_features, num_classes\)\.$",
    ),
    "num_features": (
        {"encoder": Counted, "width": 8},
        r"encoder\.num_features: expected 8, the num_chs of the last map in feature_info, got 5\. Make the two equal",
    ),
    "channels of the last map": (
        {"change": info(-1, num_chs=16), "width": 8},
        r"head: expected Head\(16, \.\.\.\).*, got Head\(8",
    ),
    "no feature_info": (
        {"change": lambda model: model.encoder.feature_info.clear()},
        r"encoder\.feature_info: expected a dict with num_chs, reduction, module for each map, got \[\]\. Append one",
    ),
    "a map without a module": (
        {"change": lambda model: model.encoder.feature_info[0].pop("module") and None},
        r"encoder\.feature_info: expected a dict with num_chs, reduction, module for each map, got \[\{'num_chs': 4",
    ),
    "shrinking strides": (
        {"change": info(1, reduction=1)},
        r"encoder\.feature_info: expected .* which never shrinks, got \[2, 1\]\. Multiply",
    ),
    "an unknown module": (
        {"change": info(1, module="stage.1")},
        r"encoder\.feature_info\[1\]: expected module to name a module of the encoder, got 'stage\.1'\. "
        r"Did you mean 'stages\.1'\?",
    ),
    "no Classifier": (
        {"change": lambda model: model.encoder},
        r"the builder: expected a medzoo\.Classifier, got Stages\. Return Classifier\(encoder, head, input_spec=",
    ),
    "no Head": (
        {"change": attribute("", "head", nn.Linear(7, 1))},
        r"head: expected a medzoo\.nn\.Head, got Linear\. Return Classifier\(encoder, Head\(\.\.\.\), input_spec",
    ),
    "a third root": (
        {"change": attribute("", "scale", nn.Parameter(torch.ones(0)))},
        r"state dict: expected the roots encoder\. and head\. alone, got scale too\. Move them into the encoder\.$",
    ),
    "another input": (
        {"input_spec": replace(INPUT, multiple=4)},
        r"input_spec: expected InputSpec\(.*multiple=4.*, as registered, got InputSpec\(.*multiple=1.*Register what",
    ),
}


@pytest.mark.parametrize("kind", [medzoo.create, medzoo.check_model])
@pytest.mark.parametrize(("plugin", "message"), BUILD_FAULTS.values(), ids=BUILD_FAULTS)
def test_create_and_check_model_refuse_what_is_not_as_registered(add, kind, plugin, message):
    add(**plugin)
    for _ in range(2 if kind is medzoo.create else 1):  # a model that failed is checked again
        with pytest.raises(
            RegistrationError, match=NAME + r"(\d+ faults:\n(.*\n)*- )?" + message.replace("$", r"(\n|$)")
        ):
            kind("plugin_net")


def test_create_lists_every_fault_at_once(add):
    add(parameters=300, cam_layer="encoder.stage", width=4)
    with pytest.raises(RegistrationError, match=NAME + "3 faults:\n- head: .*\n- cam_layer: .*\n- parameters: "):
        medzoo.create("plugin_net")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_classes": 3},
            r"head\.classifier: expected 3 outputs for num_classes=3, got 1\. Pass num_classes to Head",
        ),
        ({"in_chans": 2}, r"input_spec: expected 2 channels for in_chans=2, got 1\. Write Classifier\(.*with_channels"),
    ],
)
def test_create_refuses_a_builder_that_ignores_an_option(add, options, message):
    add(follow=False)
    with pytest.raises(RegistrationError, match=NAME + message):
        medzoo.create("plugin_net", **options)


def test_parameters_are_counted_with_the_default_options_alone(add):
    add(parameters=300)
    medzoo.create("plugin_net", num_classes=2)
    with pytest.raises(RegistrationError, match="expected 300"):
        medzoo.create("plugin_net")


def test_a_model_that_passed_is_not_checked_again(add, monkeypatch):
    add()
    medzoo.create("plugin_net", num_classes=2)
    medzoo.create("plugin_net")
    monkeypatch.setattr(build_check, "build_faults", None)
    for options in ({}, {"num_classes": 2}, {"in_chans": 3}):
        medzoo.create("plugin_net", **options)
    monkeypatch.undo()
    medzoo.list_models()
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    add(parameters=300)  # another model of the same name
    with pytest.raises(RegistrationError, match="expected 300"):
        medzoo.create("plugin_net")


class Random(Stages):
    def stage(self, i, x):
        return super().stage(i, x) + torch.rand(())


class InPlace(Stages):
    def stage(self, i, x):
        return super().stage(i, x.mul_(2) if i == 0 and not x.requires_grad else x)


class Counting(Stages):
    def __init__(self, in_chans):
        super().__init__(in_chans)
        self.register_buffer("calls", torch.zeros(()))

    def stage(self, i, x):
        self.calls += 1
        return super().stage(i, x)


class Batched(Stages):
    def stage(self, i, x):
        return super().stage(i, x - x.mean(0, keepdim=True))


class Unused(Stages):
    def __init__(self, in_chans):
        super().__init__(in_chans)
        self.unused = nn.Parameter(torch.ones(1))


class RootOfZero(Stages):
    def stage(self, i, x):
        return super().stage(i, x + (x - x).square().sum().sqrt())


class Twice(Stages):
    def __init__(self, in_chans):
        super().__init__(in_chans)
        self.again = self.stages


class Unsaved(Stages):
    def __init__(self, in_chans):
        super().__init__(in_chans)
        self.drawn = torch.rand(1).tolist()[0] if not torch.empty(()).is_meta else 0.0

    def stage(self, i, x):
        return super().stage(i, x + self.drawn)


class Pooled(Stages):
    def publish(self, x):
        return x.mean((2, 3))


class Shared(Stages):
    def __init__(self, in_chans):
        super().__init__(in_chans)
        self.act = nn.ReLU()

    def stage(self, i, x):
        return self.act(super().stage(i, x))


class Fixed(Stages):
    def __init__(self, in_chans):
        super().__init__(in_chans)
        self.position = nn.Parameter(torch.zeros(8, 2, 3))

    def stage(self, i, x):
        return super().stage(i, x) + (self.position if i else 0.0)


class Normalised(Stages):
    def __init__(self, in_chans):
        super().__init__(in_chans)
        self.stages[1].add_module("norm", nn.BatchNorm2d(8))


class Forgetful(Stages):
    def stage(self, i, x):
        return super().stage(i, x) * (2.0 if self.grad_checkpointing else 1.0)


class Unpicklable(Stages):
    def __init__(self, in_chans):
        super().__init__(in_chans)
        self.then = lambda x: x


class NeverEmpty(Stages):
    def stage(self, i, x):
        assert len(x), "no image"
        return super().stage(i, x)


class Float32(Stages):
    def stage(self, i, x):
        return super().stage(i, x + torch.zeros(1))


class Scaled(medzoo.Classifier):
    def forward_head(self, x, pre_logits=False):
        return self.head(x, pre_logits=pre_logits) * (1.0 if pre_logits else 2.0)


class Squeezed(medzoo.Classifier):
    def forward_head(self, x, pre_logits=False):
        return self.head(x, pre_logits=pre_logits)[:, :1].squeeze(1)


def no_bias(model):
    model.head.classifier.bias = None


def nan_bias(model):
    nn.init.constant_(model.head.classifier.bias, float("nan"))


MODEL_FAULTS = {
    "labels": ({"kind": Squeezed}, r"logits: expected \(3, 1\) for a batch of 3, got \(3,\)\. Let Head"),
    "nan": ({"change": nan_bias}, r"logits: expected finite values, got NaN or infinity"),
    "random": ({"encoder": Random}, r"eval mode: expected two passes to be bit-equal, got a difference of \d"),
    "in place": ({"encoder": InPlace}, r"eval mode: expected the input unchanged, got other values in it"),
    "counting": (
        {"encoder": Counting},
        r"eval mode: expected an unchanged state dict, got other values of encoder\.calls",
    ),
    "batch": ({"encoder": Batched}, r"rows of a batch: expected the same logits for an image alone and in a batch"),
    "unused": (
        {"encoder": Unused, "parameters": 346},
        r"gradients: expected one for encoder\.unused, got none\. Use the parameter in forward, or remove it\.",
    ),
    "infinite": ({"encoder": RootOfZero}, r"gradients: expected finite values for encoder\.stages\.0\.conv\.weight"),
    "twice": (
        {"encoder": Twice},
        r"state dict: expected tensors that share no memory, got encoder\.stages\.0\.conv\.weight and encoder\.again",
    ),
    "no bias": (
        {"change": no_bias, "parameters": 344},
        r"state dict: expected a weight and a bias of head\.classifier",
    ),
    "unsaved": ({"encoder": Unsaved}, r"safetensors: expected bit-equal logits after loading, got others"),
    "unsaved folder": ({"encoder": Unsaved}, r"save_pretrained: expected bit-equal logits from the folder, got others"),
    "pooled": (
        {"encoder": Pooled},
        r"head: expected the encoder to return 'b c h w' with b=2 and c=8, .* got \(2, 8\)",
    ),
    "scaled": ({"kind": Scaled}, r"head: expected the logits to be head\.classifier of forward_head"),
    "num_chs": (
        {"change": info(0, num_chs=5)},
        r"feature_info: expected map 0 \(stages\.0\) to have num_chs=5 on axis 1, got \(2, 4, 4, 6\)\. Correct",
    ),
    "reduction": (
        {"change": info(1, reduction=8)},
        r"feature_info: expected map 1 \(stages\.1\) with reduction=8 to grow by 2 along h for 16 more .* got 4",
    ),
    "module": (
        {"change": info(0, module="stages.0.conv")},
        r"feature_info: expected the module of map 0 \(stages\.0\.conv\) to run once and return \(2, 4, 4, 6\), got "
        r"\[\(2, 4, 8, 12\)\]\. Name the module whose output is the map\.",
    ),
    "cam vector": (
        {"cam_layer": "head.pool"},
        r"cam_layer: expected head\.pool to return a map 'b c h w' with b=2, got \(2, 8\)\. Name a layer that does\.",
    ),
    "cam twice": (
        {"encoder": Shared, "cam_layer": "encoder.act"},
        r"cam_layer: expected encoder\.act to run once in a forward pass, got 2 times\. Name another\.",
    ),
    "cam never": ({"cam_layer": "encoder.stages"}, r"cam_layer: expected encoder\.stages to run once .*, got 0 times"),
    "num_classes": ({"follow": False}, r"num_classes: expected \(2, 5\) for num_classes=5, got \(2, 1\)"),
    "in_chans": ({"follow": False}, r"in_chans: expected no error, got ShapeError: plugin_net: expected 'b 1 h w'"),
    "features_only": (
        {"encoder": Unsaved},
        r"features_only: expected the maps of the classifier, got others\. Let num_classes change nothing",
    ),
    "fixed size": (
        {"encoder": Fixed, "parameters": 393},
        r"sizes: expected the encoder to take an image of size \(16, 24\), got RuntimeError: .*"
        r"Take any size in the encoder, or state multiple in input_spec\.",
    ),
    "lone sample": (
        {"encoder": Normalised, "parameters": 361},
        r"sizes: expected the encoder to train on one image of size \(4, 4\), got ValueError: Expected more than 1 "
        r"value per channel.*Raise lone_minimum in input_spec\.",
    ),
    "pickle": ({"encoder": Unpicklable}, r"copies: expected no error, got .*lambda"),
    "empty batch": ({"encoder": NeverEmpty}, r"empty batch: expected no error, got AssertionError: no image"),
    "bfloat16": ({"encoder": Float32}, r"bfloat16: expected no error, got RuntimeError: "),
    "checkpointing": (
        {"encoder": Forgetful},
        r"training: expected the same logits with set_grad_checkpointing\(\), got others",
    ),
    "frozen": (
        {"change": lambda model: model.encoder.requires_grad_(False) and None, "parameters": 9},
        r"training: expected param_groups to hold every parameter once, got others\. Freeze no parameter",
    ),
}


@pytest.mark.parametrize(("plugin", "message"), MODEL_FAULTS.values(), ids=MODEL_FAULTS)
def test_check_model_finds(add, plugin, message):
    add(**plugin)
    with pytest.raises(RegistrationError, match=NAME + r"(\d+ faults:\n(.*\n)*- )?" + message) as caught:
        medzoo.check_model("plugin_net")
    assert not re.search(r"  |\.\.\s|None", str(caught.value))


def test_a_minimum_that_is_too_small_is_found(add, monkeypatch):
    small = replace(INPUT, minimum=2)
    monkeypatch.setitem(globals(), "INPUT", small)
    add(input_spec=small)
    message = (
        r"sizes: expected the encoder to take an image of size \(2, 2\), got RuntimeError: .*Raise minimum in input"
    )
    with pytest.raises(RegistrationError, match=message):
        medzoo.check_model("plugin_net")


def test_a_tiny_form_that_cannot_be_built_is_reported(add):
    add(tiny={"in_chans": -1})
    message = (
        NAME + r"the tiny form: expected no error, got ConfigError: plugin_net: expected in_chans to be an int >= 1"
    )
    with pytest.raises(RegistrationError, match=message) as caught:
        medzoo.check_model("plugin_net")
    assert isinstance(caught.value.__cause__, medzoo.errors.ConfigError)


def test_a_builder_that_fails_is_reported(add):
    add(width=-1)
    message = (
        NAME + r"the builder with its default options: expected no error, got RuntimeError: .*Change the builder\.$"
    )
    with pytest.raises(RegistrationError, match=message):
        medzoo.check_model("plugin_net")


def test_check_model_lists_faults_of_every_kind_and_keeps_the_first_cause(add):
    add(parameters=300, encoder=Twice)
    with pytest.raises(RegistrationError, match=NAME + r"\d faults:\n- parameters: (.*\n)+- state dict: ") as caught:
        medzoo.check_model("plugin_net")
    assert isinstance(caught.value.__cause__, RuntimeError)  # safetensors refuses shared tensors


def test_an_array_as_an_option_is_compared_with_no_error(add):
    add()
    spec = medzoo.describe("plugin_net")
    built = spec.builder()
    for value in (np.array([1, 2]), torch.ones(2)):
        build_check.check_build(spec, built, {"num_classes": 1, "in_chans": 1, "extra": value})
        assert not build_check._are_default(spec, {"num_classes": value, "in_chans": 1})


def test_a_lazy_module_is_a_fault(add):
    def lazy(model):
        model.encoder.stages[0].conv = nn.LazyConv2d(4, 3, padding=1)

    add(change=lazy)
    with pytest.raises(RegistrationError, match="parameters: expected a size for each, got a lazy module"):
        medzoo.create("plugin_net")


def test_check_model_works_in_inference_mode(add):
    add()
    with torch.inference_mode():
        assert medzoo.check_model("plugin_net").parameters == FACTS["parameters"]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"parameters": True}, "parameters: expected the number of trainable ones"),
        ({"tiny_size": (8.0, 12.0)}, r"tiny_size: expected ints of 1 or more, got \(8\.0, 12\.0\)"),
        (
            {"weights": (medzoo.Weights.of_file(Path("w.safetensors")),)},
            r"weights 'w\.safetensors': expected a record with a digest",
        ),
    ],
)
def test_register_refuses_what_is_nearly_right(add, facts, message):
    with pytest.raises(RegistrationError, match=message):
        add(**facts)
