"""``Predictor``, and what ``predict`` keeps with a model: the results are those of a model without it."""

from __future__ import annotations

import copy
import functools
import gc
import os
import pickle
import re
import sys
import threading
import urllib.error
import urllib.request
import weakref
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import medzoo
from medzoo.errors import ConfigError, InputError
from medzoo.inference import fold
from medzoo.inference.optimize import FEW, _Guard, optimized_view
from medzoo.visual.phantoms import write_ct, write_xray

# One of our own encoders and one of timm's; the others of their kinds take longer, or have no norm.
TWO_KINDS = ("cnn3d_base", "resnet18_multilabel")


def tiny(name):
    """Return a model whose BatchNorm changes something."""
    return copy.deepcopy(made(name))


@functools.cache
def made(name):
    model = medzoo.create(name, **medzoo.describe(name).tiny).eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def image_for(model, seed=0):
    """Return an array that a model takes."""
    size = model.preprocessing.size
    return np.random.default_rng(seed).random((model.input_spec.channels, *size), dtype=np.float32)


def logits(model, image, **options):
    return medzoo.predict(model, image, allow_untrained=True, **options).logits


def norm_of(model):
    return next(m for m in reversed(list(model.encoder.modules())) if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)))


def conv_of(model):
    return next(m for m in model.encoder.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))


def replace_weight(model):
    conv = conv_of(model)
    conv.weight = nn.Parameter(conv.weight.detach() * 0.5)


def write_one_value(model):
    conv_of(model).weight.data.view(-1)[-1] += 0.25


def swap_two_channels(model):
    weight = conv_of(model).weight.data
    weight.copy_(weight.flip(0))


def transpose(model):
    weight = conv_of(model).weight
    weight.data = weight.data.transpose(-1, -2)


CHANGES = {
    "write in place": lambda m: conv_of(m).weight.detach().mul_(0.5),
    "write through data": lambda m: conv_of(m).weight.data.mul_(0.5),
    "write one value through data": write_one_value,
    "reorder through data": swap_two_channels,
    "set data to a view of it": transpose,
    "set data": lambda m: setattr(conv_of(m).weight, "data", conv_of(m).weight.data * 0.5),
    "write a statistic through data": lambda m: norm_of(m).running_var.data.mul_(3),
    "write the scale of a norm through data": lambda m: norm_of(m).weight.data.neg_(),
    "replace a parameter": replace_weight,
    "set eps": lambda m: setattr(norm_of(m), "eps", 1.0),
    "hook": lambda m: conv_of(m).register_forward_hook(lambda _m, _x, out: out * 0.5),
    "hook the encoder": lambda m: m.encoder.register_forward_hook(lambda _m, _x, out: out * 0.5),
    "load": lambda m: m.load_state_dict(
        {k: v * 0.5 if v.is_floating_point() else v for k, v in m.state_dict().items()}
    ),
    "replace the encoder": lambda m: setattr(m, "encoder", tiny(m.name).encoder.apply(_halve)),
    "cast": lambda m: m.bfloat16(),
    "new classifier": lambda m: m.reset_classifier(2),
}


def _halve(module):
    for parameter in module.parameters(recurse=False):
        parameter.data.mul_(0.5)


# By default those that differ by the kind of encoder; the others once more, slowly, for each model that is folded.
BRIEF = {
    "cnn3d_base": (
        "write through data",
        "set data to a view of it",
        "set data",
        "replace the encoder",
        "hook the encoder",
        "load",
        "cast",
    ),
    "resnet18_multilabel": ("reorder through data", "set data to a view of it", "write a statistic through data"),
    "densenet121_xray": (),
}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param(name, change, marks=[pytest.mark.slow] * (change not in brief))
        for name, brief in BRIEF.items()
        for change in CHANGES
    ],
)
def test_fault_139_predict_sees_any_change_of_a_model(name, change):
    model = tiny(name)
    image = image_for(model)
    before = logits(model, image)
    assert logits(model, image) == before
    CHANGES[change](model)
    after = logits(model, image)
    assert after != before
    assert after == logits(copy.deepcopy(model), image)


@pytest.mark.parametrize("name", ["xray_cnn", pytest.param("resnet18_multilabel", marks=pytest.mark.slow)])
def test_fault_139_predict_sees_the_mode_the_outputs_and_the_preprocessing(name):
    model = tiny(name)
    image = image_for(model)
    before = logits(model, image)
    model.train()
    assert list(logits(model, image).values()) == pytest.approx(list(before.values()), abs=1e-5)
    model.eval()
    assert logits(model, image) == before
    model.set_outputs(labels=[f"label {i}" for i in range(model.num_classes)])
    assert list(logits(model, image).items()) == [(f"label {i}", v) for i, v in enumerate(before.values())]
    model.preprocessing = medzoo.Preprocessing(size=model.preprocessing.size, mean=(0.5,), std=(0.25,))
    assert logits(model, image) == logits(copy.deepcopy(model), image)
    assert logits(model, image) != before


def test_each_call_gives_the_same_numbers():
    """Which path runs depends neither on how often predict was called nor on how many images there are."""
    model = tiny("resnet18_multilabel")
    images = [image_for(model, seed) for seed in range(FEW)]  # with so many, a copy of a model is folded too
    first = logits(model, images[0])
    assert all(logits(model, images[0]) == first for _ in range(3))
    assert medzoo.predict(model, images, allow_untrained=True)[0].logits == first


@pytest.mark.parametrize("name", TWO_KINDS)
def test_what_is_kept_goes_with_the_model_and_is_in_no_copy(name):
    model = tiny(name)
    size, keys = len(pickle.dumps(model)), list(model.state_dict())
    kept = [weakref.ref(model), weakref.ref(model.encoder)]
    logits(model, image_for(model))
    kept.append(weakref.ref(model._fast))
    assert len(pickle.dumps(model)) == size
    assert list(model.state_dict()) == keys
    assert all(module is not model._fast for module in model.modules())
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert other._fast is None
    gc.collect()
    gc.disable()
    try:
        del other, model
        assert [ref() for ref in kept] == [None, None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("name", TWO_KINDS)
def test_what_is_kept_is_freed_when_the_model_is_moved_or_cast(name):
    model = tiny(name)
    logits(model, image_for(model))
    kept = weakref.ref(conv_of(model).weight.untyped_storage())
    derived = copy.copy(model._fast.__dict__)
    model.to("cpu").float()  # nothing moves
    assert model._fast.__dict__ == derived
    del derived
    model.double()
    assert kept() is None


def test_a_write_through_data_drops_the_graphs_that_read_what_was_derived():
    fast = medzoo.optimize(tiny("resnet18_multilabel"), cuda_graph=True)
    with torch.inference_mode():
        fast(torch.from_numpy(image_for(fast))[None])
    fast._graphs._guard = _Guard(fast)  # as after a capture
    optimized_view(fast, None)
    assert fast._graphs._guard is not None
    swap_two_channels(fast)
    assert fast._graphs._guard.holds()  # PyTorch counts no such write
    optimized_view(fast, None)
    assert fast._graphs._guard is None


@pytest.mark.gpu
def test_predict_sees_a_write_through_data_of_a_model_with_graphs():
    fast = medzoo.optimize(tiny("resnet18_multilabel").cuda(), cuda_graph=True)
    image = image_for(fast)
    before = logits(fast, image)
    assert len(fast._graphs) == 1
    swap_two_channels(fast)
    after = logits(fast, image)
    assert after != before
    assert after == logits(medzoo.optimize(fast), image)


@pytest.fixture
def fast_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("fast_switches")
@pytest.mark.parametrize("name", ["xray_cnn", *(pytest.param(name, marks=pytest.mark.slow) for name in TWO_KINDS)])
def test_fault_137_eight_threads_on_a_fresh_model(name):
    model = tiny(name)
    images = [image_for(model, seed) for seed in range(8)]
    alone = [logits(copy.deepcopy(model), image) for image in images]
    predictor = medzoo.Predictor(model, allow_untrained=True)
    start = threading.Barrier(8)

    def run(i):
        start.wait(30)
        return [(logits(model, images[i]), predictor(images[i]).logits) for _ in range(2)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, range(8)))
    assert found == [[(expected, expected)] * 2 for expected in alone]


@pytest.mark.usefixtures("fast_switches")
def test_fault_137_a_write_while_others_predict_is_seen_afterwards():
    """Threads fold while the weights are written; what they folded from is compared with what there is at the end."""
    model = tiny("resnet18_multilabel")
    image = image_for(model)
    stop = threading.Event()

    def predict():
        while not stop.is_set():
            logits(model, image)

    threads = [threading.Thread(target=predict) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(10):
        conv_of(model).weight.data.mul_(0.9 if i % 2 else 1.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert logits(model, image) == logits(copy.deepcopy(model), image)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fault_137_a_fork_predicts_the_same():
    model = tiny("resnet18_multilabel")
    image = image_for(model)
    expected = logits(model, image)
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # the threads of OpenMP are not there in a fork
        os._exit(0 if logits(model, image) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("cnn3d_small", "xray_cnn")))
        for name in medzoo.list_models()
    ],
)
def test_a_predictor_gives_what_predict_gives(name, tmp_path):
    model = tiny(name)
    path = (write_ct if model.input_spec.dims == 3 else write_xray)(tmp_path)
    predictor = medzoo.Predictor(model, allow_untrained=True, batch_size=2)
    array = image_for(model)
    for source in (path, str(path), array, torch.from_numpy(array), medzoo.read(path)):
        found, expected = predictor(source), medzoo.predict(model, source, allow_untrained=True)
        assert isinstance(found, medzoo.Prediction)
        assert found.to_dict() == expected.to_dict()
    for sources in ([path, array, array], (array,), [], tmp_path):
        found, expected = predictor(sources), medzoo.predict(model, sources, allow_untrained=True, batch_size=2)
        assert type(found) is type(expected)
        assert [one.to_dict() for one in found] == [one.to_dict() for one in expected]


def test_a_predictor_of_a_patch_model_takes_points(tmp_path):
    model = tiny("cnn3d_small")
    model.preprocessing = medzoo.Preprocessing(
        size=model.preprocessing.size,
        orientation="SPL",
        intensity="window",
        window=(-1000.0, 400.0),
        patch=(40, 40, 40),
    )
    path = write_ct(tmp_path)
    predictor = medzoo.Predictor(model, allow_untrained=True).warm_up()
    image = medzoo.read(path)
    centre = (image.affine @ [*(np.array(image.array.shape[1:]) / 2), 1])[:3].tolist()
    done = []
    (found,) = predictor(path, points=[centre], points_frame="RAS", progress=lambda *now: done.append(now))
    (expected,) = medzoo.predict(model, path, points=[centre], points_frame="RAS", allow_untrained=True)
    assert found.logits == expected.logits
    assert done == [(1, 1)]
    with pytest.raises(ConfigError, match="Give points="):
        predictor(path)


@pytest.mark.parametrize("change", ["write through data", "replace a parameter", "cast"])
def test_what_happens_to_the_model_afterwards_does_not_reach_a_predictor(change):
    model = tiny("cnn3d_base")
    image = image_for(model)
    predictor = medzoo.Predictor(model, allow_untrained=True)
    before = predictor(image)
    assert before.logits == logits(model, image)
    CHANGES[change](model)
    model.train()
    model.set_outputs(labels=[f"other {i}" for i in range(model.num_classes)])
    assert predictor(image).to_dict() == before.to_dict()


def test_a_predictor_leaves_the_model_as_it_was():
    model = tiny("xray_cnn").train()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    predictor = medzoo.Predictor(model, allow_untrained=True).warm_up()
    predictor(image_for(model))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert not {t.data_ptr() for t in predictor._model.parameters()} & {t.data_ptr() for t in model.parameters()}
    assert repr(predictor) == "Predictor(xray_cnn on cpu, batch_size=1)"


def test_a_pickled_predictor_gives_the_same():
    model = tiny("resnet18_multilabel")
    predictor = medzoo.Predictor(model, allow_untrained=True)
    cold = len(pickle.dumps(predictor))
    images = [image_for(model, seed) for seed in range(2)]
    expected = [one.to_dict() for one in predictor.warm_up()(images)]
    assert len(pickle.dumps(predictor)) == cold
    for other in (pickle.loads(pickle.dumps(predictor)), copy.deepcopy(predictor)):
        assert [one.to_dict() for one in other(images)] == expected


def test_warm_up_folds_and_packs_for_the_size_of_the_model(monkeypatch):
    model = tiny("resnet18_multilabel")
    predictor = medzoo.Predictor(model, allow_untrained=True, batch_size=4).warm_up()
    folds, packs = [], []
    real_fold, real_pack = fold._fold, fold.pack_conv
    monkeypatch.setattr(fold, "_fold", lambda *given: folds.append(1) or real_fold(*given))
    monkeypatch.setattr(fold, "pack_conv", lambda *given: packs.append(1) or real_pack(*given))
    assert predictor(image_for(model)).logits == logits(model, image_for(model))
    assert len(folds) == 1  # of the model itself, by predict
    assert len(packs) <= len(list(model.encoder.modules()))
    packs.clear()
    predictor(image_for(model))
    assert not packs


def test_a_predictor_refuses_what_predict_refuses():
    model = tiny("xray_cnn")
    with pytest.raises(ConfigError, match="no output was trained"):
        medzoo.Predictor(model)
    with pytest.raises(ConfigError, match="expected batch_size to be an int >= 1, got 0"):
        medzoo.Predictor(model, batch_size=0, allow_untrained=True)
    with pytest.raises(ConfigError, match="expected a device of this machine, got 'meta'"):
        medzoo.Predictor(model, device="meta", allow_untrained=True)
    model.preprocessing = None
    with pytest.raises(ConfigError, match="expected a model with preprocessing"):
        medzoo.Predictor(model, allow_untrained=True)
    model = tiny("xray_cnn")
    with pytest.raises(ConfigError, match=r"expected a model from medzoo\.create, got str"):
        medzoo.Predictor("xray_cnn")
    with pytest.raises(InputError, match="expected a path"):
        medzoo.Predictor(model, allow_untrained=True)("")
    blank = np.full((1, 64, 64), 200.0, np.float32)
    with pytest.raises(medzoo.errors.DataError, match=r"expected values in \[0, 1\]"):
        medzoo.Predictor(model, allow_untrained=True, strict=True)(blank)
    with pytest.warns(UserWarning, match=r"expected values in \[0, 1\]"):
        medzoo.Predictor(model, allow_untrained=True)(blank)


def test_a_predictor_of_a_class_of_its_own():
    class Mine(medzoo.Classifier):
        """Whose forward is not known here."""

        def forward(self, x):
            return super().forward(x) * 2

    model = tiny("xray_cnn")
    mine = Mine(model.encoder, model.head, input_spec=model.input_spec, preprocessing=model.preprocessing, name="mine")
    image = image_for(model)
    found = medzoo.Predictor(mine.eval(), allow_untrained=True)(image)
    assert found.logits == logits(mine, image)
    plain = logits(model, image).values()
    assert list(found.logits.values()) == pytest.approx([2 * value for value in plain], abs=1e-5)


def test_a_predictor_of_an_exported_file(tmp_path):
    pytest.importorskip("onnxruntime")
    onnx_files = pytest.importorskip("onnx_files")
    file = medzoo.open_onnx(onnx_files.write_onnx(onnx_files.eager(2), tmp_path / "model.onnx"))
    images = [image_for(file, seed) for seed in range(3)]
    expected = [one.to_dict() for one in medzoo.predict(file, images, allow_untrained=True)]
    predictor = medzoo.Predictor(file, allow_untrained=True, batch_size=2).warm_up()
    for one in (predictor, pickle.loads(pickle.dumps(predictor))):
        assert [found.to_dict() for found in one(images)] == expected
    assert f"on {file.engine}" in repr(predictor)
    with pytest.raises(ConfigError, match="expected the CPU"):
        medzoo.Predictor(file, device="cuda", allow_untrained=True)


def test_the_server_of_the_docs_answers(tmp_path, monkeypatch):
    """The example is run word for word, on a port that is free."""
    text = (Path(__file__).parents[1] / "docs" / "contract.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Predictor(" in block]
    model = tiny("xray_cnn").set_outputs(labels=list(tiny("xray_cnn").outputs.labels))
    started = threading.Event()
    place = {}
    serve = ThreadingHTTPServer.serve_forever

    def serve_in_thread(server):
        place["server"] = server
        started.set()
        serve(server, 0.01)

    init = ThreadingHTTPServer.__init__
    monkeypatch.setattr(ThreadingHTTPServer, "__init__", lambda s, at, handler: init(s, (at[0], 0), handler))
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", serve_in_thread)
    thread = threading.Thread(target=exec, args=(code, {"model": model, "__name__": "server"}))
    thread.start()
    try:
        assert started.wait(60)
        server = place["server"]
        server.RequestHandlerClass.log_message = lambda *_: None
        url = f"http://127.0.0.1:{server.server_address[1]}"
        path = write_xray(tmp_path)
        with urllib.request.urlopen(url, data=path.read_bytes(), timeout=60) as answer:
            found = answer.read().decode()
        assert f'"{model.outputs.labels[0]}"' in found
        with pytest.raises(urllib.error.HTTPError, match="422") as refused:
            urllib.request.urlopen(url, data=b"no image", timeout=60)
        assert "expected" in refused.value.read().decode()
        refused.value.close()
    finally:
        place["server"].shutdown()
        place["server"].server_close()
        thread.join(60)
