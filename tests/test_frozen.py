"""A head on stored features becomes the head that the frozen model would have got, and the rest can follow."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from training_data import data_module, image_split, trainer

import medzoo
from medzoo import ClassificationTask, Recipe
from medzoo.errors import ConfigError, TrainError
from medzoo.training.frozen import FeatureStore, fit_phases, phases
from medzoo.training.recipe import OptimizerSection
from medzoo.training.setup import Setup

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning"),
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),
]
# One head that averages the map, and one that flattens it.
MODELS = [pytest.param("cnn3d_base", marks=pytest.mark.slow), "cnn3d_small"]


def stored(name, **options):
    few = {"n": 12, "valid": 4} if name == "cnn3d_base" else {}
    model, split, pixels = image_split(name, seeded=True, **few)
    return model, split, pixels, FeatureStore(model, pixels, split.train, split.valid, **options)


@pytest.mark.parametrize("name", MODELS)
def test_the_head_gives_the_logits_of_the_whole_model(name):
    model, _, pixels, store = stored(name)
    model.eval()
    for row in (0, 7, 11):
        image = pixels.transform.normalise(pixels.read(row))[None]
        with torch.inference_mode():
            assert_close(model.forward_head(store.read(row)[None]), model(image), rtol=1e-5, atol=1e-6)


def test_flattening_and_averaging_heads_are_both_among_the_models():
    assert {medzoo.create(name).head.flattens for name in ("cnn3d_base", "cnn3d_small")} == {False, True}


@pytest.mark.parametrize("name", MODELS)
def test_training_on_features_equals_training_the_frozen_model(name):
    """Dropout is active, so the random numbers have to be those of the frozen model too."""
    heads = []
    for freeze in ("encoder", "features"):
        model, split, pixels, store = stored(name)
        assert any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.head.modules())
        before = model.head.classifier.weight.detach().clone()
        task = ClassificationTask(model, freeze=freeze, optimizer=OptimizerSection(lr=1e-2))
        torch.manual_seed(3)
        data = data_module(split, store if freeze == "features" else pixels)
        fit = trainer(max_epochs=3, num_sanity_val_steps=0)
        fit.fit(task, datamodule=data)
        assert (model.head.classifier.weight - before).abs().max() > 1e-3
        heads.append((model.state_dict(), fit.callback_metrics, task.predictions))
    (direct, metrics, seen), (features, found, given) = heads
    for key, value in direct.items():
        assert_close(features[key], value, rtol=0, atol=1e-5)
    assert torch.equal(seen.rows, given.rows)
    assert_close(given.logits, seen.logits, rtol=0, atol=1e-4)
    assert found["valid_loss"].item() == pytest.approx(metrics["valid_loss"].item(), abs=1e-5)


def test_features_beyond_the_memory_are_in_a_file(tmp_path):
    model, split, pixels, store = stored("cnn3d_small")
    other = FeatureStore(model, pixels, split.train, split.valid, folder=tmp_path, memory=0, batch_size=5)
    assert (tmp_path / "features.f32").stat().st_size == other.nbytes == store.nbytes
    assert other.shape == store.shape
    size = len(pickle.dumps((other.table, other._position)))
    copy = pickle.loads(pickle.dumps(other))
    assert len(pickle.dumps(other)) < size + 1000
    for row in range(24):
        assert torch.equal(copy.read(row), other.read(row))
        assert_close(other.read(row), store.read(row), rtol=1e-5, atol=1e-6)


def test_a_temporary_file_goes_with_its_store():
    model, split, pixels, _ = stored("cnn3d_small")
    store = FeatureStore(model, pixels, split.train, memory=0)
    path = store._path
    assert path.exists()
    del store
    assert not path.exists()


def test_computing_changes_no_mode_and_no_statistic():
    model, split, pixels = image_split("cnn3d_small")
    before = {name: value.clone() for name, value in model.train().state_dict().items()}
    FeatureStore(model, pixels, split.train)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_rows_that_have_no_features():
    model, split, pixels, _ = stored("cnn3d_small")
    store = FeatureStore(model, pixels, split.train)
    with pytest.raises(ConfigError, match=r"row 23 \(from 0\) is in none of the parts"):
        store.read(23)
    with pytest.raises(ConfigError, match="rows to compute features of"):
        FeatureStore(model, pixels)


# --- phases ---


def recipe(**train):
    return Recipe(model={"name": "cnn3d_small"}, optimizer={"lr": 0.01}, train={"epochs": 2, "batch": 4, **train})


def test_phases_of_a_recipe():
    plain = recipe()
    assert phases(plain) == (plain,)
    augmented = recipe(freeze="features", then="finetune", then_epochs=5).model_copy(
        update={"augment": type(plain.augment)(flip=["x"])}
    )
    first, second = phases(augmented)
    assert (first.train.freeze, first.train.epochs, first.optimizer.lr, list(first.augment.flip)) == (
        "features", 2, 0.01, [],
    )  # fmt: skip
    assert (second.train.freeze, second.train.epochs, second.optimizer.lr, list(second.augment.flip)) == (
        "none", 5, pytest.approx(0.001), ["x"],
    )  # fmt: skip
    assert phases(recipe(freeze="encoder", then="finetune", then_lr=0.3))[1].optimizer.lr == 0.3
    assert all(phase.train.then is None for phase in (first, second))


def test_augmentation_of_features_is_refused():
    with pytest.raises(ConfigError, match=r"augment: expected nothing beside train\.freeze: features"):
        recipe(freeze="features").with_(rotate=10)
    assert recipe(freeze="features", then="finetune").with_(rotate=10).augment.rotate == 10


def setup_of(**train):
    model, split, pixels = image_split("cnn3d_small", seeded=True)
    data = data_module(split, pixels)
    return Setup(recipe(**train), split.table, model, pixels, split, data, ClassificationTask(model), split.how)


def fit(setup, folder):
    """Stand in for medzoo's ``fit``: train to the end."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    trainer(max_epochs=setup.recipe.train.epochs, num_sanity_val_steps=0).fit(setup.task, datamodule=setup.data)


def run_phases(setup, folder, run=fit):
    """Run all phases, and return the setup of the last."""
    seen = []
    fit_phases(setup, folder, lambda part, here: (seen.append(part), run(part, here)))
    return seen[-1]


def test_the_whole_model_follows_the_head(tmp_path):
    weights = {}

    def watched(setup, folder):
        weights["before", folder.name] = {k: v.clone() for k, v in setup.model.state_dict().items()}
        fit(setup, folder)
        weights["after", folder.name] = {k: v.clone() for k, v in setup.model.state_dict().items()}

    setup = setup_of(freeze="features", then="finetune")
    last = run_phases(setup, tmp_path / "run", watched)
    assert last.recipe.train.freeze == "none"
    assert last.data is setup.data
    for key, value in weights["before", "frozen"].items():
        after, end = weights["after", "frozen"][key], weights["after", "run"][key]
        assert torch.equal(value, after) == key.startswith("encoder."), key
        assert not torch.equal(after, end), key
    assert (tmp_path / "run" / "frozen" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "features").exists()


def test_a_second_phase_that_was_killed_starts_from_the_end_of_the_first(tmp_path):
    whole = run_phases(setup_of(freeze="features", then="finetune"), tmp_path / "whole").model.state_dict()

    def killed(setup, folder):
        if folder.name != "frozen":
            raise KeyboardInterrupt
        fit(setup, folder)

    with pytest.raises(KeyboardInterrupt):
        fit_phases(setup_of(freeze="features", then="finetune"), tmp_path / "killed", killed)
    torch.manual_seed(99)
    again = []

    def counted(setup, folder):
        again.append(folder.name)
        fit(setup, folder)

    found = run_phases(setup_of(freeze="features", then="finetune"), tmp_path / "killed", counted).model.state_dict()
    assert again == ["killed"]
    assert all(torch.equal(found[name], value) for name, value in whole.items())


def test_weights_of_a_first_phase_that_do_not_fit(tmp_path):
    (tmp_path / "frozen").mkdir()
    (tmp_path / "frozen" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(TrainError, match=r"model.safetensors: the weights of the frozen training cannot be loaded"):
        fit_phases(setup_of(freeze="features", then="finetune"), tmp_path, fit)


def test_one_phase_of_features(tmp_path):
    last = run_phases(setup_of(freeze="features"), tmp_path)
    assert isinstance(last.data.pixels, FeatureStore)
    assert np.isfinite(last.task.predictions.logits.numpy()).all()
    assert sorted(tmp_path.iterdir()) == []
