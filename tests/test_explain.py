"""``medzoo.explain``: one image and many, targets, warnings and errors, and a model that stays as it was."""

from __future__ import annotations

import copy
import gc
import pickle
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image as Picture
from tensors import scatter_weights, tiny
from torch import nn

import medzoo
from medzoo.errors import ConfigError, DataError, InputError
from medzoo.interpretation.explain import explain_each
from medzoo.interpretation.explanation import Explanation, Explanations
from medzoo.visual.phantoms import draw_xray, write_ct, write_xray

MODELS = medzoo.list_models()
LABELS = ["Effusion", "Mass", "Nodule"]

# A random model may raise an output nowhere.
quiet = pytest.mark.filterwarnings("ignore:.*No region raised:UserWarning")


def trained(name="xray_cnn", labels=LABELS, small=True):
    """Return a tiny model of small images with named, trained outputs, all of whose layers count."""
    torch.manual_seed(11)
    model = tiny(name, num_classes=len(labels)).eval()
    scatter_weights(model)
    if small:
        model.preprocessing = replace(model.preprocessing, size=medzoo.describe(name).tiny_size, fit="resize")
    return model.set_outputs(labels=labels, task="multilabel" if len(labels) > 1 else "binary")


def x_ray(seed=0, size=(60, 44)):
    return np.random.default_rng(seed).integers(0, 256, (1, *size), np.uint8)


def volume(seed=0):
    return np.random.default_rng(seed).random((1, 20, 18, 22)).astype(np.float32)


def positive_target(model, source):
    """Return a label whose map is not zero."""
    found = medzoo.explain(model, [source], model.outputs.labels)[0]
    return max(found.cells, key=lambda label: found.cells[label].max())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Return the drawn X-ray and CT by number of axes."""
    folder = tmp_path_factory.mktemp("drawn")
    return {2: write_xray(folder), 3: write_ct(folder)}


@quiet
@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_explained_as_it_predicts(name, small, drawn):
    model = trained(name, small=small)
    path = drawn[model.input_spec.dims]
    found = medzoo.explain(model, [path], LABELS)[0]
    predicted = medzoo.predict(model, path)
    for field in ("probabilities", "logits"):
        assert getattr(found.prediction, field) == pytest.approx(getattr(predicted, field), abs=1e-5, rel=1e-5)
    same = {"probabilities": {}, "logits": {}}
    assert replace(found.prediction, **same) == replace(predicted, **same)
    assert found.targets == tuple(LABELS)
    assert found.method == "gradcam"
    sizes = {cells.shape for cells in found.cells.values()}
    assert len(sizes) == 1
    assert found.frame.shape == (4, 4)
    for label in LABELS:
        map_ = found[label].map
        assert map_.shape == found.image.array.shape[1:] == medzoo.read(path).array.shape[1:]
        assert map_.dtype == np.float32
        assert (map_ >= 0).all()
    assert max(cells.max() for cells in found.cells.values()) > 0


def test_one_image_is_an_explanation_and_several_are_a_list(drawn, tmp_path):
    model = trained()
    with_map = positive_target(model, drawn[2])
    alone = medzoo.explain(model, drawn[2], with_map)
    assert isinstance(alone, Explanation)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(drawn[2], folder / "a.png")
    (folder / "b.txt").write_text("no image")
    Picture.fromarray(draw_xray(70, 50)).save(folder / "c.png")
    (folder / "d.png").write_bytes((folder / "c.png").read_bytes()[:300])
    # Wrong axes fail, in a folder and beside images in memory.
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), folder / "e.nii")
    found, predicted = medzoo.explain(model, folder, with_map, batch_size=2), medzoo.predict(model, folder)
    assert isinstance(found, Explanations)
    assert [e.prediction.source for e in found] == [str(folder / "a.png"), str(folder / "c.png")]
    assert found.skipped == predicted.skipped
    assert list(found.skipped) == [str(folder / "b.txt")]
    assert [p.source for p in found.predictions] == [p.source for p in predicted]
    assert [p.error for p in found.failed] == [p.error for p in predicted.failed]
    assert len(found.failed) == 2
    assert found.predictions.counts() == predicted.counts()
    assert np.allclose(found[0].map, alone.map, atol=1e-6)
    with pytest.raises(DataError, match=r"d\.png"):
        medzoo.explain(model, folder / "d.png", with_map)
    with pytest.raises(DataError, match="array 1: expected finite values"):
        medzoo.explain(model, [x_ray(), np.full((1, 40, 40), np.nan, np.float32)], with_map)
    with pytest.raises(InputError, match="expected a path"):
        medzoo.explain(model, [3], with_map)
    assert medzoo.explain(model, [], with_map) == []


@quiet
def test_a_batch_has_the_maps_of_its_images():
    model = trained("cnn3d_small")
    images = [volume(i) for i in range(4)]
    one_by_one = medzoo.explain(model, images, LABELS)
    together = medzoo.explain(model, images, LABELS, batch_size=3)
    default = medzoo.explain(model, images, batch_size=3)
    for a, b, c in zip(one_by_one, together, default, strict=True):
        for label in LABELS:
            assert np.allclose(a.cells[label], b.cells[label], atol=1e-4 * a.cells[label].max() + 1e-7)
        assert c.targets == (max(a.prediction.probabilities, key=a.prediction.probabilities.get),)
        assert np.array_equal(c.cells[c.targets[0]], b.cells[c.targets[0]])
        assert all(cells.base is None for cells in b.cells.values()), "no map keeps the memory of a batch"
    with pytest.raises(ConfigError, match="expected batch_size to be an int >= 1, got 0"):
        medzoo.explain(model, images, batch_size=0)


def test_points_of_a_scan_have_a_map_each(tmp_path):
    model = trained("cnn3d_small", ["nodule"])
    model.preprocessing = medzoo.Preprocessing(
        size=(16,) * 3, orientation="SPL", intensity="window", window=(-1000, 400), patch=(30, 30, 30)
    )
    path = tmp_path / "scan.nii.gz"
    values = np.random.default_rng(0).normal(-500, 300, (40, 36, 30)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])), path)
    points = [(40, 36, 45), (20, 30, 60), (999, 0, 0)]
    found = medzoo.explain(model, path, points=points, points_frame="RAS", method="occlusion", mask_size=8)
    assert [e.prediction.point for e in found] == points[:2]
    assert [p.point for p in found.failed] == points[2:]
    for explanation in found:
        covered = np.argwhere(explanation.map != 0)
        middle = (covered.min(0) + covered.max(0)) / 2 * (2, 2, 3)
        assert np.abs(middle - explanation.prediction.point).max() <= 3
    with pytest.raises(ConfigError, match=r"Give points="):
        medzoo.explain(model, path)


def test_several_explanations_hold_no_images_but_read_them_again(tmp_path):
    model, held, paths = trained(), [], []
    for i in range(3):
        paths.append(tmp_path / f"{i}.png")
        Picture.fromarray(x_ray(i)[0]).save(paths[-1])
    given = medzoo.read(paths[0])
    found = medzoo.explain(model, [*paths, given], LABELS)
    assert found[3].image is given
    assert found[0].image is not found[0].image
    held = weakref.ref(found[0].image.array)
    gc.collect()
    assert held() is None
    assert np.array_equal(found[1].image.array, x_ray(1))
    again = pickle.loads(pickle.dumps(found[2]))
    assert np.array_equal(again.image.array, x_ray(2))
    assert np.array_equal(again["Mass"].map, found[2]["Mass"].map)
    # A generator for folders of any size: each result has its image, and keeps none of the others.
    arrays = []
    for result in explain_each(model, paths, LABELS):
        assert result.image is result.image
        arrays.append(weakref.ref(result.image.array))
    del result
    gc.collect()
    assert [array() for array in arrays] == [None] * 3
    Picture.fromarray(x_ray(1, (30, 30))[0]).save(paths[1])
    with pytest.raises(
        DataError, match=r"1\.png: expected the image that was explained, got another one: it was changed since"
    ):
        _ = found[1].image
    assert found[1]["Mass"].map.shape == (60, 44), "the map needs no image"


@quiet
def test_a_map_is_not_drawn_over_other_values_or_another_position(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.nii", "d.nii")]
    for path in paths[:2]:
        Picture.fromarray(x_ray()[0]).save(path)
    for path in paths[2:]:
        nibabel.save(nibabel.Nifti1Image(volume()[0], np.eye(4)), path)
    flat, solid = medzoo.explain(trained(), paths[:2]), medzoo.explain(trained("cnn3d_small"), paths[2:])
    Picture.fromarray(255 - x_ray()[0]).save(paths[0])
    nibabel.save(nibabel.Nifti1Image(volume()[0], np.diag([1.0, 1.0, 2.0, 1.0])), paths[2])
    for changed, kept, name in ((*flat, "map.png"), (*solid, "map.nii")):
        with pytest.raises(DataError, match="expected the image that was explained, got another one"):
            changed.save(tmp_path / name)
        assert kept.save(tmp_path / name).exists()
    given = x_ray()
    found = medzoo.explain(trained(), [given, x_ray(1)])
    assert np.array_equal(found[0].image.array, given)
    given[:] = 0
    with pytest.raises(DataError, match="array 0: expected the image that was explained"):
        _ = found[0].image


def test_explain_each_yields_failures_and_checks_at_once(tmp_path):
    model = trained()
    path = tmp_path / "a.png"
    Picture.fromarray(x_ray()[0]).save(path)
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    run = explain_each(model, tmp_path, "Mass", batch_size=4)
    assert len(run) == 2
    good, bad = run
    assert isinstance(good, Explanation)
    assert isinstance(bad, medzoo.Prediction)
    assert bad.error
    with pytest.raises(ConfigError, match="expected method to be"):
        explain_each(model, tmp_path, "Mass", "gradcma")


def test_a_map_is_a_new_array_each_time():
    model = trained()
    found = medzoo.explain(model, x_ray(), positive_target(model, x_ray()))
    first = found.map
    assert first.max() > 0
    first[:] = -1
    assert found.map.max() > 0


def test_progress_counts_images(tmp_path):
    calls = []
    medzoo.explain(trained(), [x_ray(i) for i in range(3)], LABELS, batch_size=2, progress=lambda *d: calls.append(d))
    assert calls == [(1, 3), (2, 3), (3, 3)]


# Targets


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("Efusion", r"got 'Efusion'\. Did you mean 'Effusion'\? They are Effusion, Mass, Nodule\."),
        (["Mass", "Hernia"], r"got 'Hernia'\. They are Effusion, Mass, Nodule\."),
        ([], r"expected the target among its outputs, got \[\]\."),
        (1, r"got 1\. They are"),
        ([["Mass"]], r"got \['Mass'\]\."),
    ],
)
def test_an_unknown_target_is_an_error(target, message):
    with pytest.raises(
        ConfigError, match=r"^xray_cnn: expected the target among its outputs, " + message.split("outputs, ")[-1]
    ):
        medzoo.explain(trained(), x_ray(), target)


@quiet
def test_untrained_outputs_are_refused_or_marked():
    model = tiny("xray_cnn", num_classes=3).eval()
    with pytest.raises(ConfigError, match=r"^xray_cnn: no output was trained"):
        medzoo.explain(model, x_ray())
    model.set_outputs(labels=LABELS, trained=[False, True, True])
    with pytest.raises(ConfigError, match=r"the output 'Effusion' was not trained, so a map of it means nothing\."):
        medzoo.explain(model, x_ray(), ["Mass", "Effusion"])
    with torch.no_grad():
        model.head.classifier.bias.copy_(torch.tensor([9.0, 1.0, 2.0]))
    found = medzoo.explain(model, [x_ray()], allow_untrained=True)[0]
    assert found.targets == ("Nodule",), "the most probable of those that were trained"
    assert found.prediction.untrained == ("Effusion",)
    assert medzoo.explain(model, [x_ray()], "Effusion", allow_untrained=True)[0].targets == ("Effusion",)


@quiet
@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_the_default_target_of_each_task(task):
    labels = LABELS if task == "multiclass" else ["Mass"]
    model = tiny("xray_cnn", num_classes=len(labels)).eval().set_outputs(labels=labels, task=task)
    found = medzoo.explain(model, [x_ray()])[0]
    assert found.targets == (max(found.prediction.probabilities, key=found.prediction.probabilities.get),)
    assert medzoo.explain(model, [x_ray()], (labels[0], labels[0]))[0].targets == (labels[0],)


@quiet
def test_models_that_cannot_be_explained_are_errors():
    model = tiny("xray_cnn", num_classes=0)
    with pytest.raises(ConfigError, match=r"it has no outputs to name \(num_classes=0\)"):
        medzoo.explain(model, x_ray())
    with pytest.raises(ConfigError, match=r"^explain: expected a model from medzoo\.create, got FeatureExtractor\."):
        medzoo.explain(tiny("xray_cnn", features_only=True), x_ray())
    model = trained()
    with pytest.raises(
        ConfigError, match=r"expected method to be 'gradcam', 'gradcam\+\+' or 'occlusion', got 'gradcm'\. "
    ):
        medzoo.explain(model, x_ray(), method="gradcm")
    with pytest.raises(ConfigError, match=r"Did you mean 'encoder\.stages\.1'"):
        medzoo.explain(model, x_ray(), layer="encoder.stage.1")
    with pytest.raises(ConfigError, match="expected a device of this machine, got 'gpu'"):
        medzoo.explain(model, x_ray(), device="gpu")
    model.outputs = replace(model.outputs, caution="Its patients are in the training data.")
    with pytest.raises(ConfigError, match="expected a model without a caution, as strict"):
        medzoo.explain(model, x_ray(), strict=True)
    with pytest.warns(UserWarning, match="Its patients are in the training data"):
        found = medzoo.explain(model, x_ray(), LABELS)
    assert found.prediction.warning == "the array: Its patients are in the training data."


# Warnings


def test_a_map_that_is_too_coarse_or_zero_has_a_warning():
    model = trained("cnn3d_small", ["nodule"])
    image = np.random.default_rng(0).random((1, 20, 20, 20)).astype(np.float32)
    with pytest.warns(UserWarning, match=r"The map of encoder\.stages\.2\.norm has 3 x 3 x 3 cells, too few to point"):
        found = medzoo.explain(model, image, layer="encoder.stages.2.norm")
    assert found.layer == "encoder.stages.2.norm"
    assert found.cells["nodule"].shape == (3, 3, 3)
    with torch.no_grad():
        model.head.classifier.weight.zero_()
    for method in ("gradcam", "gradcam++", "occlusion"):
        with pytest.warns(
            UserWarning, match=r"^the array: No region raised 'nodule': its map has no positive value\.$"
        ):
            found = medzoo.explain(model, image, method=method)
        assert not found.cells["nodule"].any()
        assert not found.map.any()
        assert found.warning == "the array: No region raised 'nodule': its map has no positive value."


def test_warnings_of_images_are_those_of_predict():
    model = trained()
    odd = np.full((1, 40, 40), 0.5, np.float32)
    with pytest.warns(UserWarning, match="the array") as predicted:
        result = medzoo.predict(model, odd)
    with pytest.warns(UserWarning, match="the array") as explained:
        found = medzoo.explain(model, odd, LABELS)
    assert found.prediction.warning == result.warning != ""
    assert str(explained[0].message).startswith(str(predicted[0].message))
    with pytest.raises(DataError, match="the array"):
        medzoo.explain(model, odd, LABELS, strict=True)


def test_logits_and_maps_that_are_not_finite_are_errors():
    model = trained()
    with torch.no_grad():
        model.head.classifier.bias[0] = float("nan")
    found = medzoo.explain(model, [x_ray(), x_ray(1)], "Mass", batch_size=2)
    assert found == []
    assert [p.reason for p in found.failed] == ["outputs that are not finite"] * 2
    with pytest.raises(DataError, match="the model returned NaN or infinity"):
        medzoo.explain(model, x_ray(), "Mass")


@quiet
@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_an_image_that_exceeds_the_memory_is_recorded(method):
    class Full(nn.Module):
        def forward(self, x):
            if x[:, 0].mean() > 0.6:  # the second image
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return x

    model = trained()
    model.encoder.stages[0].relu = nn.Sequential(nn.ReLU(), Full())
    with torch.no_grad():
        model.encoder.stages[0].conv.weight.zero_()
        model.encoder.stages[0].conv.bias.zero_()
        model.encoder.stages[0].conv.weight[0, 0, 1, 1] = 1
    dark = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (1, 32, 1))
    dark[0, :, 16:] //= 4
    dark[0, 0, 0] = 255
    light = 255 - dark
    found = medzoo.explain(model, [dark, light], LABELS, method)
    assert [e.prediction.source for e in found] == ["array 0"]
    assert [p.reason for p in found.failed] == ["out of memory"]


# The model


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def snapshot(model):
    """Return all that a user may see of a model, and of the state of the process."""
    tensors, modules = model.state_dict(keep_vars=True).items(), list(model.modules())
    return {
        "tensors": {key: (id(t), 0 if t.is_inference() else t._version, t.clone()) for key, t in tensors},
        "training": [m.training for m in modules],
        "hooks": [[dict(getattr(m, name)) for name in HOOKS] for m in modules],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "required": [p.requires_grad for p in model.parameters()],
        "inplace": [getattr(m, "inplace", None) for m in modules],
        "attributes": [(type(m), sorted(m.__dict__)) for m in modules],
        "random": (torch.get_rng_state(), np.random.get_state()[1].copy()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
    }


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def with_gradients(model):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return model


def with_hooks(model):
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append("forward"))
    model.head.register_full_backward_hook(lambda *_: calls.append("backward"))
    model.calls = calls
    return model


def in_inference_mode(model):
    with torch.inference_mode():
        return copy.deepcopy(model)


STATES = {
    "training": lambda m: m.train(),
    "gradients": with_gradients,
    "frozen": lambda m: m.freeze_encoder(),
    "no gradients": lambda m: m.requires_grad_(False),
    "optimized": medzoo.optimize,
    "graphs": lambda m: medzoo.optimize(m, cuda_graph=True),
    "bfloat16": lambda m: m.bfloat16(),
    "half": lambda m: m.half(),
    "hooks": with_hooks,
    "made in inference mode": in_inference_mode,
    "checkpointing": lambda m: m.set_grad_checkpointing() or m,
}


@quiet
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("cnn3d_small", "gradcam"),
        ("xray_cnn", "occlusion"),
        pytest.param("resnet18_multilabel", "gradcam", marks=pytest.mark.slow),
        pytest.param("densenet121_xray", "gradcam", marks=pytest.mark.slow),
        pytest.param("swin_encoder_mlp", "gradcam++", marks=pytest.mark.slow),
    ],
)
def test_the_model_stays_as_it_was(state, name, method):
    plain = trained(name)
    images = [x_ray() if plain.input_spec.dims == 2 else volume()]
    options = {"mask_size": 16} if method == "occlusion" else {}
    # Low precision rounds the weights once: the arithmetic is in float32.
    rounded = plain if state not in ("bfloat16", "half") else copy.deepcopy(STATES[state](plain)).float()
    expected = medzoo.explain(rounded, images, LABELS, method, **options)[0]
    model = STATES[state](plain)
    before = snapshot(model)
    found = medzoo.explain(model, images, LABELS, method, **options)[0]
    assert equal(snapshot(model), before)
    largest = max(np.abs(cells).max() for cells in expected.cells.values())
    assert largest > 0
    for label in LABELS:
        assert np.abs(found.cells[label] - expected.cells[label]).max() <= 1e-4 * largest
    if state == "hooks":
        assert set(model.calls) == {"forward"}, "hooks that may change a result run, those of training do not"


@quiet
@pytest.mark.parametrize("context", ["no_grad", "inference_mode", "plain", "double", "autocast"])
def test_contexts_of_the_caller(context):
    model = trained()
    expected = medzoo.explain(model, [x_ray()], LABELS)[0]
    manager = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "plain": lambda: medzoo.set_fast_paths(False),
        "double": lambda: DefaultDtype(torch.float64),
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    }[context]
    with manager():
        before = snapshot(model)
        found = medzoo.explain(model, [x_ray()], LABELS)[0]
        assert equal(snapshot(model), before)
    for label in LABELS:
        assert found.cells[label].dtype == np.float32
        assert np.allclose(found.cells[label], expected.cells[label], atol=1e-5 * expected.cells[label].max())


class DefaultDtype:
    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_):
        torch.set_default_dtype(self.before)


def test_the_model_stays_as_it_was_after_an_error():
    model = trained().train()
    before = snapshot(model)

    def stop(*_):
        raise KeyboardInterrupt

    for options in ({"layer": "encoder.nothing"}, {"layer": "head.classifier"}, {"target": "Hernia"}):
        with pytest.raises(ConfigError):
            medzoo.explain(model, x_ray(), **options)
    with pytest.raises(KeyboardInterrupt):
        medzoo.explain(model, [x_ray()], "Mass", "occlusion", mask_size=16, progress=stop)
    assert equal(snapshot(model), before)


@quiet
@pytest.mark.parametrize("name", ["xray_cnn", pytest.param("densenet121_xray", marks=pytest.mark.slow)])
def test_threads_explain_and_predict_on_one_model(name):
    model = trained(name).train()
    images = [x_ray(i) for i in range(3)]
    maps = [e.cells for e in medzoo.explain(model, images, LABELS)]
    logits = [p.logits for p in medzoo.predict(model, images)]

    def work(i):
        if i % 2:
            return [e.cells for e in medzoo.explain(model, images, LABELS)]
        return [p.logits for p in medzoo.predict(model, images)]

    with ThreadPoolExecutor(8) as pool:
        for i, result in enumerate(pool.map(work, range(8))):
            assert equal(result, maps) if i % 2 else result == logits
    assert all(module.training for module in model.modules())
