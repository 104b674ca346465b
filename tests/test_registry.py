"""The registry: names, look-ups, and models of other packages."""

from __future__ import annotations

import importlib.metadata
import re

import pytest

import medzoo
from medzoo import registry
from medzoo.contract import Outputs, Preprocessing
from medzoo.errors import ConfigError, RegistrationError, UnknownModelError
from medzoo.input_spec import InputSpec
from medzoo.weights.record import UrlFile

NAMES = ["cnn3d_base", "cnn3d_small", "densenet121_xray", "resnet18_multilabel", "swin_encoder_mlp", "xray_cnn"]


@pytest.fixture
def facts():
    """Return what register needs beside the builder."""
    return {
        "input_spec": InputSpec("b c h w", channels=1, size=(8, 8)),
        "outputs": Outputs(labels=("x",), task="binary"),
        "preprocessing": Preprocessing(size=(8, 8)),
        "parameters": 0,
        "summary": "for a test",
        "source": "here",
        "citation": "none",
        "cam_layer": "encoder",
        "tiny": {},
        "tiny_size": (8, 8),
    }


@pytest.fixture
def scratch(monkeypatch):
    """Keep what a test registers out of the zoo."""
    medzoo.list_models()
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))


def test_the_six_models():
    assert medzoo.list_models() == NAMES


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"pattern": "cnn3d*"}, ["cnn3d_base", "cnn3d_small"]),
        ({"dims": 3}, ["cnn3d_base", "cnn3d_small", "swin_encoder_mlp"]),
        ({"dims": 2}, ["densenet121_xray", "resnet18_multilabel", "xray_cnn"]),
        ({"task": "multilabel"}, ["densenet121_xray", "resnet18_multilabel", "xray_cnn"]),
        ({"task": "multiclass"}, []),
        ({"pattern": "CNN3D*"}, []),
        ({"dims": 3, "pattern": "*mlp"}, ["swin_encoder_mlp"]),
    ],
)
def test_list_models_filters(arguments, expected):
    assert medzoo.list_models(**arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "multilable"}, "got 'multilable'. Did you mean 'multilabel'?"),
        ({"dims": 4}, "expected dims 2 or 3, got 4"),
        ({"dims": "3"}, "expected dims 2 or 3, got '3'"),
    ],
)
def test_a_filter_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        medzoo.list_models(**arguments)


def test_an_unknown_model_is_answered_with_the_nearest():
    message = r"^no model 'cnn3d_smal'\. Did you mean 'cnn3d_small'\? medzoo\.list_models\(\) names all 6\.$"
    for look_up in (medzoo.describe, medzoo.create):
        with pytest.raises(UnknownModelError, match=message):
            look_up("cnn3d_smal")


@pytest.mark.parametrize("name", ["../x", "", "hf_hub:a/b", "swin_encoder_mlp:btcv"])
def test_115_a_strange_name_is_unknown(name):
    with pytest.raises(UnknownModelError, match="no model"):
        medzoo.create(name)


def test_a_name_is_registered_once(facts, scratch):
    def cnn3d_small(*, num_classes=1, in_chans=1): ...

    message = (
        r"^test_registry\.cnn3d_small: a model 'cnn3d_small' is already registered by medzoo\.models\.cnn; "
        r"give this one another name\.$"
    )
    with pytest.raises(RegistrationError, match=message):
        medzoo.register(**facts)(cnn3d_small)


def test_a_builder_has_named_options_only(facts, scratch):
    def loose(num_classes=1, **rest): ...

    message = (
        r"^test_registry\.loose: expected keyword-only options with defaults, got num_classes, rest\. "
        r"Put a \* before them\.$"
    )
    with pytest.raises(RegistrationError, match=message):
        medzoo.register(**facts)(loose)


def test_a_builder_has_classes_and_channels(facts, scratch):
    def plain(*, num_classes=1): ...

    with pytest.raises(
        RegistrationError, match=r"\.plain: expected the options num_classes and in_chans among its own"
    ):
        medzoo.register(**facts)(plain)


def weights(tag="a", **facts):
    return medzoo.Weights(
        tag=tag, source=UrlFile("https://x/f"), digest="md5:" + "0" * 32, license="MIT", citation="", trained_on="",
        part="encoder", **facts,
    )  # fmt: skip


def labelled(*labels):
    return Outputs(labels=labels, task="multilabel")


WRONG = {
    "a tag twice": (
        {"weights": (weights(), weights(), weights("b"))},
        "weights: expected different tags, got 'a' 2 times. Rename all but one.",
    ),
    "two defaults": (
        {"weights": (weights("a", default=True), weights("b", default=True))},
        "weights: expected at most one default, got 'a', 'b'. Choose one.",
    ),
    "an option of weights": (
        {"weights": (weights(options={"width": 3}),)},
        "weights 'a': the builder has no option 'width'. Did you mean 'widths'? It has in_chans, num_classes, widths.",
    ),
    "a tiny option": (
        {"tiny": {"hidden": 8, "widths": (4,)}},
        "tiny: the builder has no option 'hidden'. It has in_chans, num_classes, widths.",
    ),
    "tiny_size": (
        {"tiny_size": (8, 8, 8)},
        "tiny_size: expected (h, w), as the axes are 'b c h w', got (8,",
    ),
    "size": (
        {"input_spec": InputSpec("b c d h w", channels=1, size=(8, 8))},
        "input_spec.size: expected (d, h, w), as the axes are 'b c d h w', got (8, 8). Give as many numbers.",
    ),
    "axes": (
        {"input_spec": InputSpec("b h w c", channels=1, size=(8, 8))},
        "input_spec: expected axes 'b c h w' or 'b c d h w', got 'b h w c'. Write one of the two.",
    ),
    "preprocessing size": (
        {"preprocessing": Preprocessing(size=(16, 16))},
        "preprocessing: expected the size of input_spec, (8, 8), got (16, 16). Write Preprocessing(size=",
    ),
    "preprocessing mean": (
        {"preprocessing": Preprocessing(size=(8, 8), mean=(0.5, 0.5))},
        "preprocessing: expected 1 numbers for each of mean and std, got 2 and 1. Give one",
    ),
    "labels": (
        {"outputs": labelled("x", "y")},
        "outputs: expected as many labels as the builder's default num_classes=1, got 2. Give a label",
    ),
    "channels": (
        {"input_spec": InputSpec("b c h w", channels=3, size=(8, 8))},
        "input_spec: expected the channels of the builder's default in_chans=1, got channels=3. Make the two equal.",
    ),
    "parameters": (
        {"parameters": "11.2 M"},
        "parameters: expected the number of trainable ones, an int >= 0, got '11.2 M'. Count them.",
    ),
    "intended use": (
        {"intended_use": "CT"},
        "intended_use: expected medzoo.IntendedUse(...), got 'CT'. Write it so.",
    ),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
def test_a_registration_that_contradicts_itself_is_refused(facts, scratch, wrong, message):
    def their_model(*, num_classes=1, in_chans=1, widths=(8,)): ...

    with pytest.raises(RegistrationError, match=r"^test_registry\.their_model: (\d faults:\n- )?" + re.escape(message)):
        medzoo.register(**facts | wrong)(their_model)
    assert "their_model" not in medzoo.list_models()


def test_every_fault_of_a_registration_is_listed(facts, scratch):
    def their_model(*, num_classes=1, in_chans=1): ...

    facts |= {"tiny": {"width": 1}, "tiny_size": (8,), "weights": (weights(), weights())}
    with pytest.raises(RegistrationError, match=r"their_model: 3 faults:\n- tiny: .*\n- tiny_size: .*\n- weights: .*$"):
        medzoo.register(**facts)(their_model)


class Entry:
    """An entry point of another package."""

    name, value = "theirs", "their_package.models"

    def __init__(self, load):
        self.load = load


@pytest.fixture
def fresh_look_up(scratch, monkeypatch):
    registry._load_models.cache_clear()
    yield lambda entry: monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group else [])
    registry._load_models.cache_clear()


def test_another_package_adds_a_model(facts, fresh_look_up):
    def their_model(*, num_classes=1, in_chans=1): ...

    fresh_look_up(Entry(lambda: medzoo.register(**facts)(their_model)))
    assert medzoo.list_models() == sorted([*NAMES, "their_model"])
    assert medzoo.describe("their_model").builder is their_model


@pytest.mark.parametrize("kind", [ImportError, RuntimeError, KeyError])
def test_a_package_that_cannot_be_imported_leaves_the_zoo_whole(facts, fresh_look_up, kind):
    def half(*, num_classes=1, in_chans=1): ...

    def broken():
        medzoo.register(**facts)(half)
        raise kind("no module named y")

    fresh_look_up(Entry(broken))
    with pytest.warns(
        UserWarning, match=r"models of their_package\.models \(theirs\) are missing: .*no module named y"
    ):
        assert medzoo.list_models() == NAMES


def test_the_group_is_the_documented_one(monkeypatch, scratch):
    asked = []
    registry._load_models.cache_clear()
    monkeypatch.setattr(registry, "entry_points", lambda *, group: asked.append(group) or [])
    medzoo.list_models()
    registry._load_models.cache_clear()
    assert asked == ["medzoo.models"]
    assert importlib.metadata.version("medzoo") == medzoo.__version__


def test_describe_tells_the_options_and_their_defaults():
    assert medzoo.describe("cnn3d_base").options == {
        "num_classes": 1,
        "in_chans": 1,
        "widths": (64, 64, 128, 256),
        "hidden": 512,
        "dropout": 0.3,
    }
