"""``create``: options, outputs, and weights from a file, strictly."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensors import TINY, changed

import medzoo
from medzoo import registry
from medzoo.errors import ConfigError, WeightsCorrupt
from medzoo.models.findings import CHESTXRAY14, TORCHXRAYVISION18
from medzoo.weights import cache
from medzoo.weights.record import PackagedFile


def test_an_unknown_option_is_answered_with_the_nearest():
    message = r"^cnn3d_small: no option 'widhts'\. Did you mean 'widths'\? It has dropout, hidden, in_chans"
    with pytest.raises(ConfigError, match=message):
        medzoo.create("cnn3d_small", widhts=(1, 2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": -1}, "expected num_classes to be an int >= 0, got -1"),
        ({"num_classes": "3"}, "expected num_classes to be an int >= 0, got '3'"),
        ({"in_chans": 0}, "expected in_chans to be an int >= 1, got 0"),
        ({"labels": "abc"}, "expected labels to be a list of names, got the text 'abc'"),
        ({"labels": ["a", "b"], "num_classes": 3}, "got 2 labels and num_classes=3"),
        ({"labels": ["a", "a"]}, "expected different labels, got 'a' more than once"),
        ({"num_classes": 2, "task": "binary"}, "a binary task has 1 output, got 2"),
        ({"task": "regression"}, "expected task 'binary', 'multilabel' or 'multiclass', got 'regression'"),
        ({"features_only": True, "num_classes": 2}, "features_only=True returns maps"),
        ({"out_indices": [0]}, "out_indices chooses among the maps"),
        ({"features_only": True, "out_indices": [3]}, r"its 3 maps, -3 to 2, or how many of the last, got \[3\]"),
        ({"features_only": True, "out_indices": []}, r"expected indices of its 3 maps"),
        ({"widths": (4, 8)}, r"^cnn3d_small: expected widths to be 3 numbers, got \(4, 8\)"),
        ({"size": 13}, r"expected size to be a number or \(d, h, w\), each at least 14, got 13"),
        ({"size": (64, 64)}, r"expected size to be a number or \(d, h, w\)"),
        ({"pool": "max"}, "expected pool 'flatten' or 'avg', got 'max'"),
        ({"preprocessing": medzoo.Preprocessing(size=(32, 32, 32))}, r"gives size \(32, 32, 32\), but the model takes"),
        ({"preprocessing": medzoo.Preprocessing(size=(64, 64))}, r"gives size \(64, 64\), but the model takes"),
        ({"pretrained": True}, r"there are no default weights \(tags: none yet\)"),
        ({"pretrained": "best"}, "no weights 'best'.*Tags: none yet"),
        ({"pretrained": ["a"]}, r"expected pretrained to be True, a tag or a path, got \['a'\]"),
        ({"pretraned": True}, "no option 'pretraned'. Did you mean 'pretrained'?"),
        ({"labels": []}, "expected one label or more, got none"),
        ({"labels": iter(["a"]), "num_classes": 2}, "got 1 labels and num_classes=2"),
        ({"num_classes": 0, "task": "foo"}, "expected task 'binary', 'multilabel' or 'multiclass', got 'foo'"),
        ({"preprocessing": {"size": 3}}, "expected preprocessing to be a medzoo.Preprocessing, got dict"),
        ({"widths": 4}, "expected widths to be 3 numbers, got 4"),
        ({"widths": (4, 8, -8)}, "expected widths to be an int >= 1, got -8"),
        ({"size": 16.0}, "expected size to be a number or"),
        ({"size": (64.0, 64.0, 64.0)}, "expected size to be a number or"),
        ({"dropout": 2.0}, r"expected dropout to be in \[0, 1\), got 2.0"),
        ({"hidden": 0}, "expected hidden to be an int >= 1, got 0"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        medzoo.create("cnn3d_small", **arguments)


@pytest.mark.parametrize(
    ("arguments", "labels", "task"),
    [
        ({}, ("positive",), "binary"),
        ({"num_classes": 3}, ("class_0", "class_1", "class_2"), "multiclass"),
        ({"num_classes": 3, "task": "multilabel"}, ("class_0", "class_1", "class_2"), "multilabel"),
        ({"labels": ["benign", "malignant"]}, ("benign", "malignant"), "multiclass"),
        ({"labels": ["benign", "malignant"], "task": "multilabel"}, ("benign", "malignant"), "multilabel"),
        ({"labels": ["EGFR"]}, ("EGFR",), "binary"),
    ],
)
def test_outputs_are_named_and_untrained(arguments, labels, task):
    outputs = medzoo.create("cnn3d_small", **TINY, **arguments).outputs
    assert (outputs.labels, outputs.task) == (labels, task)
    assert outputs.trained == (False,) * len(labels)
    assert outputs.thresholds == (() if task == "multiclass" else (0.5,) * len(labels))


def test_label_orders_are_the_documented_ones():
    assert medzoo.create("resnet18_multilabel").outputs.labels == CHESTXRAY14
    assert medzoo.create("densenet121_xray").outputs.labels == TORCHXRAYVISION18
    assert CHESTXRAY14[:3] == ("Atelectasis", "Cardiomegaly", "Effusion")
    assert TORCHXRAYVISION18[:3] == ("Atelectasis", "Consolidation", "Infiltration")
    assert set(CHESTXRAY14) < set(TORCHXRAYVISION18)


def test_preprocessing_follows_size_and_channels():
    assert medzoo.create("cnn3d_small", size=(16, 32, 32)).preprocessing.size == (16, 32, 32)
    grey = medzoo.create("resnet18_multilabel", in_chans=1).preprocessing
    assert grey.mean == pytest.approx((0.449,), abs=1e-3)
    assert grey.std == pytest.approx((0.226,), abs=1e-3)


def test_set_outputs_says_what_was_trained():
    model = medzoo.create("cnn3d_small", num_classes=2, **TINY)
    assert model.set_outputs(labels=["a", "b"], task="multilabel", thresholds=[0.2, 0.9]) is model
    assert model.outputs == medzoo.Outputs(("a", "b"), "multilabel", (0.2, 0.9), (True, True))
    model.set_outputs(trained=[True, False])
    assert model.outputs.trained == (True, False)
    assert model.outputs.thresholds == (0.2, 0.9)
    assert model.outputs.labels == ("a", "b")
    with pytest.raises(ConfigError, match=r"expected 2 labels.*got 3\. model\.reset_classifier\(3\) makes a layer"):
        model.set_outputs(labels=["a", "b", "c"])
    with pytest.raises(ConfigError, match="expected thresholds between 0 and 1"):
        model.set_outputs(thresholds=[0.0, 0.5])


def test_features_only_has_its_report(saved):
    _, path = saved
    extractor = medzoo.create("cnn3d_small", pretrained=path, features_only=True, **TINY)
    assert not extractor.training
    assert len(extractor.load_report.loaded) == 21
    assert set(extractor.load_report.dropped) == {
        f"head.{layer}.{kind}" for layer in ("fc", "classifier") for kind in ("weight", "bias")
    }


@pytest.fixture
def packaged(saved, monkeypatch):
    """Give cnn3d_small a record whose file is in a package folder of the test."""
    model, path = saved
    record = medzoo.Weights(
        tag="ours",
        source=PackagedFile(path.name),
        digest=f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",
        size=path.stat().st_size,
        license="Apache-2.0",
        citation="none",
        trained_on="nothing",
        labels=("a", "b", "c"),
        task="multiclass",
        options=TINY,
        preprocessing=medzoo.Preprocessing(size=(16, 16, 16), intensity="window", window=(-1000, 400)),
        default=True,
    )
    spec = replace(medzoo.describe("cnn3d_small"), weights={"ours": record})
    monkeypatch.setitem(registry._MODELS, "cnn3d_small", spec)
    monkeypatch.setattr(cache, "ASSETS", path.parent)
    return model, path


@pytest.mark.parametrize("pretrained", [True, "ours"])
def test_packaged_weights_bring_options_outputs_and_preprocessing(packaged, pretrained):
    original, _ = packaged
    model = medzoo.create("cnn3d_small", pretrained=pretrained)
    x = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(model(x), original(x))
    assert model.outputs == medzoo.Outputs(("a", "b", "c"), "multiclass", trained=(True,) * 3)
    assert model.preprocessing.window == (-1000, 400)
    assert model.load_report.source == "cnn3d_small:ours"
    assert "cnn3d_small" in medzoo.list_models(pretrained=True)


def test_packaged_weights_are_verified_against_their_digest(packaged):
    _, path = packaged
    changed(path, head__fc__bias=torch.ones(8))
    with pytest.raises(
        WeightsCorrupt, match=r"expected sha256:\w+, got sha256:\w+\. The file was changed after it was written"
    ):
        medzoo.create("cnn3d_small", pretrained=True)


def test_an_option_that_contradicts_the_weights_is_an_error(packaged):
    with pytest.raises(ConfigError, match=re.escape("the weights 'ours' need size=16, got 32")):
        medzoo.create("cnn3d_small", pretrained=True, size=32)


def test_a_misspelt_tag_is_answered_with_the_nearest(packaged):
    with pytest.raises(ConfigError, match=r"no weights 'our'\. Did you mean 'ours'\? Tags: 'ours'"):
        medzoo.create("cnn3d_small", pretrained="our")


def test_trained_outputs_are_not_given_other_meanings(packaged):
    same = medzoo.create("cnn3d_small", pretrained=True, labels=["a", "b", "c"])
    assert all(same.outputs.trained)
    for arguments in ({"labels": ["x", "y", "z"]}, {"task": "multilabel"}):
        with pytest.raises(ConfigError, match=r"the outputs of the weights 'ours' are a, b, c \(multiclass\), got"):
            medzoo.create("cnn3d_small", pretrained=True, **arguments)
    same.set_outputs(labels=["x", "y", "z"], trained=same.outputs.trained)
    assert same.outputs.labels == ("x", "y", "z")


def test_a_replaced_head_is_reported(packaged):
    model = medzoo.create("cnn3d_small", pretrained=True)
    model.reset_classifier(2)
    assert model.load_report.new == ("head.classifier.bias", "head.classifier.weight")
    assert "head.classifier.weight" not in model.load_report.loaded
    model.reset_classifier(2, whole_head=True)
    assert len(model.load_report.new) == 4
    model.set_outputs(labels=["p", "q"])
    scan = np.arange(-2048, 2048, dtype=np.int16).reshape(1, 16, 16, 16)
    found = medzoo.predict(model, medzoo.Image(scan, unit="HU"))
    assert found.provenance["weights"] == "cnn3d_small:ours, but for 4 new tensors of the head"


def test_the_mean_of_weights_is_averaged_and_reported_but_not_the_users_own(packaged, monkeypatch):
    spec = registry._MODELS["cnn3d_small"]
    how = replace(spec.weights["ours"].preprocessing, mean=(0.5,))
    monkeypatch.setitem(registry._MODELS, "cnn3d_small", spec)
    two = medzoo.create("cnn3d_small", pretrained=True, in_chans=2, preprocessing=how)
    assert two.load_report.notes == ("preprocessing mean: (0.0,) is recorded, here it is (0.5,)",)
    with pytest.raises(ConfigError, match="expected mean and std of preprocessing to be 1 or 1 numbers, got 3 and 1"):
        medzoo.create("cnn3d_small", pretrained=True, preprocessing=replace(how, mean=(1.0, 2.0, 3.0)))
    three = replace(spec.weights["ours"], preprocessing=replace(how, mean=(0.1, 0.2, 0.3)))
    monkeypatch.setitem(registry._MODELS, "cnn3d_small", replace(spec, weights={"ours": three}))
    averaged = medzoo.create("cnn3d_small", pretrained=True)
    assert averaged.preprocessing.mean == pytest.approx((0.2,))
    assert averaged.load_report.notes == ("mean and std of the input averaged over 3 channels",)


def test_new_labels_of_another_number_are_untrained(packaged):
    with pytest.warns(UserWarning, match=r"head\.classifier\.bias are randomly initialised"):
        model = medzoo.create("cnn3d_small", pretrained=True, labels=["x", "y"])
    assert model.outputs == medzoo.Outputs(("x", "y"), "multiclass", trained=(False, False))


@pytest.mark.parametrize("name", [None, 3, ["a"]])
def test_a_name_that_is_none_is_unknown(name):
    with pytest.raises(medzoo.errors.UnknownModelError, match="no model"):
        medzoo.create(name)


def test_numpy_numbers_are_numbers():
    assert medzoo.create("cnn3d_small", num_classes=np.int64(3), **TINY).num_classes == 3


@pytest.mark.parametrize(
    ("start", "count", "task"),
    [(0, 1, "binary"), (0, 3, "multiclass"), (1, 3, "multiclass"), (3, 1, "binary")],
)
def test_a_dropped_head_remembers_its_task(start, count, task):
    model = medzoo.create("cnn3d_small", num_classes=start, **TINY)
    model.reset_classifier(count)
    assert model.outputs.task == task


def test_a_file_of_torch_export_is_no_model():
    with pytest.raises(medzoo.errors.ConfigError, match=r"got a file of torch\.export, which torch\.export\.load runs"):
        medzoo.create("runs/model.pt2")
