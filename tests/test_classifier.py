"""The classifier's verbs where one model is enough."""

from __future__ import annotations

import pytest
import torch
from tensors import TINY

import medzoo
from medzoo.classifier import Classifier, FeatureInfo
from medzoo.errors import ConfigError
from medzoo.input_spec import InputSpec
from medzoo.nn.conv import ConvEncoder, StageTable
from medzoo.nn.head import Head


@pytest.fixture
def model():
    return medzoo.create("cnn3d_small", **TINY).eval()


def test_a_classifier_of_ones_own_parts():
    table = StageTable(stages=2, kernel=3, padding=1, order=("norm", "relu", "pool"), pool=2)
    encoder = ConvEncoder(1, (4, 6), table, dims=2)
    own = Classifier(encoder, Head(6, 3), input_spec=InputSpec("b c h w", channels=1, size=(8, 8), minimum=4))
    assert own(torch.zeros(2, 1, 9, 5)).shape == (2, 3)
    assert own.name == "Classifier"
    assert own.outputs.labels == ("class_0", "class_1", "class_2")
    assert own.load_report is None


def test_feature_info_is_a_list_of_dicts_and_timms_verbs(model):
    info = model.feature_info
    assert isinstance(info, FeatureInfo)
    assert info[0] == {"num_chs": 4, "reduction": 3, "module": "stages.0"}
    assert info.channels() == [4, 8, 8]
    assert info.reduction() == [3, 9, 27]
    assert info.module_name() == ["stages.0", "stages.1", "stages.2"]


def test_swin_tells_all_five_maps():
    info = medzoo.create("swin_encoder_mlp", feature_size=12).feature_info
    assert info.channels() == [12, 24, 48, 96, 192]
    assert info.reduction() == [2, 4, 8, 16, 32]


def test_pre_logits_widths():
    widths = {"swin_encoder_mlp": 256, "cnn3d_base": 512, "xray_cnn": 1024, "resnet18_multilabel": 512}
    for name, width in widths.items():
        model = medzoo.create(name)
        assert model.get_classifier().in_features == model.head_hidden_size == width


@pytest.mark.parametrize("count", [-1, 2.0, True])
def test_reset_classifier_refuses_what_is_no_number_of_classes(model, count):
    with pytest.raises(ConfigError, match="expected num_classes to be an int >= 0"):
        model.reset_classifier(count)


def test_reset_classifier_keeps_device_and_precision():
    model = medzoo.create("cnn3d_small", **TINY).to(torch.bfloat16)
    model.reset_classifier(4)
    assert model.head.classifier.weight.dtype == torch.bfloat16
    model.reset_classifier(4, whole_head=True)
    assert model.head.fc.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("task", "count", "expected"),
    [
        ("binary", 3, "multiclass"),
        ("multiclass", 1, "binary"),
        ("multilabel", 1, "multilabel"),
        ("binary", 1, "binary"),
    ],
)
def test_reset_classifier_keeps_the_task_where_it_can(task, count, expected):
    start = {"binary": 1, "multiclass": 4, "multilabel": 2}[task]
    model = medzoo.create("cnn3d_small", num_classes=start, task=task, **TINY)
    model.reset_classifier(count)
    assert model.outputs.task == expected


def test_layer_decay_is_a_factor(model):
    for bad in (0.0, 1.5):
        with pytest.raises(ConfigError, match=r"expected layer_decay in \(0, 1\]"):
            model.param_groups(1e-3, layer_decay=bad)


def test_param_groups_leave_out_what_is_frozen(model):
    groups = model.freeze_encoder().param_groups(1e-3)
    ids = {id(p) for group in groups for p in group["params"]}
    assert ids == {id(p) for p in model.head.parameters()}


def test_probabilities_and_positives_follow_the_task():
    logits = torch.tensor([[0.0, 2.0, -2.0]])
    many = medzoo.Outputs(("a", "b", "c"), "multilabel", (0.6, 0.5, 0.1))
    one = medzoo.Outputs(("a", "b", "c"), "multiclass")
    torch.testing.assert_close(many.probabilities(logits), logits.sigmoid())
    assert many.positive(many.probabilities(logits)).tolist() == [[False, True, True]]
    torch.testing.assert_close(one.probabilities(logits).sum(), torch.tensor(1.0))
    assert one.positive(one.probabilities(logits)).tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (1, 2, 3, 4)}, "expected size of 2 or 3 numbers"),
        ({"size": (8, 8), "intensity": "window"}, r"intensity='window' and window=\(low, high\) go together"),
        ({"size": (8, 8), "window": (0, 1)}, "go together"),
        ({"size": (8, 8), "intensity": "window", "window": (1, 0)}, "with low < high"),
        ({"size": (8, 8), "std": (0.0,)}, "expected finite mean and std above 0"),
        ({"size": (8, 8, 8), "orientation": "RRS"}, "expected an orientation of one of RL, one of AP and one of SI"),
        ({"size": (8, 8, 8), "orientation": "XYZ"}, "expected an orientation"),
        ({"size": (8, 8, 8), "spacing": (1.0, 1.0)}, "expected spacing to be 3 numbers of mm above 0"),
        ({"size": (8, 8), "intensity": "log"}, "expected intensity to be one of 'unit', 'window', 'zscore'"),
    ],
)
def test_a_preprocessing_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        medzoo.Preprocessing(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ("a",), "task": "multiclass"}, "needs 2 outputs or more"),
        ({"labels": ("a", "b"), "task": "multiclass", "thresholds": (0.5, 0.5)}, "has no thresholds"),
        ({"labels": ("a", "b"), "task": "multilabel", "thresholds": (0.5,)}, "expected 2 thresholds"),
        ({"labels": ("a", "b"), "task": "multilabel", "trained": (True,)}, "expected 2 values in trained"),
    ],
)
def test_outputs_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        medzoo.Outputs(**arguments)
