"""What surrounds a forward pass: the input check, ``import medzoo``, ``create`` with weights, and reading files.

The figures are printed, and saved in ``extra_info``. Files are phantoms: a 1024² DICOM X-ray for ``densenet121_xray``,
a 512 × 512 × 30 CT series for ``cnn3d_base``. ``test_step`` times reading, the transform and the forward pass by
themselves, ``test_beyond`` what ``predict`` adds to the three, ``test_folder`` 8 copies with threads or 1 and 2
processes that read ahead, and without: if reading is the bottleneck, they shorten it; if the forward pass is, they hide
the reading.
"""

from __future__ import annotations

import functools
import shutil
import time
import timeit
from statistics import median

import numpy as np
import pytest
import torch

import medzoo
from benchmarks.conftest import DEVICE
from benchmarks.suite import STARTUP_MODEL, create_and_peer, measure_startup
from medzoo import build_check
from medzoo.visual.phantoms import draw_ct, draw_xray, write_ct_series, write_xray

CASES = {"xray": "densenet121_xray", "ct": "cnn3d_base"}
COPIES = 8


@pytest.mark.parametrize("name", ["cnn3d_small", "swin_encoder_mlp", "resnet18_multilabel"])
def test_check(benchmark, name):
    """The target is less than 1 % of ``cnn3d_small`` at 64³, batch 1."""
    model = medzoo.create(name).eval()
    spec = model.input_spec
    x = torch.randn(1, spec.channels, *spec.size)
    with torch.inference_mode():
        model(x)
        forward = timeit.repeat(lambda: model(x), number=1, repeat=5)
        benchmark(model.check_input, x)
    if benchmark.stats:
        share = benchmark.stats.stats.median / median(forward)
        benchmark.extra_info |= {"forward_s": median(forward), "share_of_forward": share, "torch": torch.__version__}
        print(f"\n{name}: the check is {share:.3%} of a forward pass of {1000 * median(forward):.1f} ms")


@pytest.mark.parametrize("name", ["densenet121_xray", "swin_encoder_mlp"])
def test_build_check(benchmark, name):
    """What the first ``create`` of a model checks, for the two models with the most modules: the target is 2 ms."""
    spec = medzoo.describe(name)
    with torch.device("meta"):
        model = spec.builder(**spec.options)
    assert benchmark(lambda: list(build_check.build_faults(spec, model, spec.options))) == []


def test_startup(benchmark, result, tmp_path):
    """``import medzoo`` adds at most 0.1 s to ``import torch``; ``create`` takes two thirds of the plain way.

    No tensor is first filled with random values, only to be overwritten. pytest-benchmark's row is all of it.
    """
    # 52 million parameters; a few if the timing is disabled.
    rounds, options = (1, medzoo.describe(STARTUP_MODEL).tiny) if benchmark.disabled else (7, {})
    ours, plain = create_and_peer(tmp_path, options)
    expected, found = plain().state_dict(), ours().state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
    del expected, found
    measured = benchmark.pedantic(measure_startup, (rounds, options))
    assert all(times["medzoo"]["median"] > 0 for times in measured.values())
    if benchmark.stats:
        benchmark.extra_info |= measured
        result["startup"] = measured
        imported, created = measured["import"], measured["create"]
        print(f"\nmedzoo adds {imported['value']:.3f} s to the {imported['torch']['median']:.2f} s of import torch")
        print(f"create takes {created['value']:.0%} of init + torch.load + load_state_dict")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("throughput")
    return {
        "xray": write_xray(folder, draw_xray(1024, 1024)),
        "ct": write_ct_series(folder, draw_ct((512, 512, 30))),
    }


@pytest.fixture(scope="module")
def models():
    return {case: medzoo.create(name).eval().to(DEVICE) for case, name in CASES.items()}


@pytest.mark.parametrize("step", ["read", "transform", "forward"])
@pytest.mark.parametrize("case", CASES)
def test_step(benchmark, case, step, sources, models):
    image, transform = medzoo.read(sources[case]), medzoo.transform(models[case])
    call, given = {
        "read": (medzoo.read, sources[case]),
        "transform": (transform, image),
        # To the device and back: the copy of the logits waits for a GPU to finish.
        "forward": (lambda x: models[case](x.to(DEVICE)).cpu(), transform(image)[None]),
    }[step]
    with torch.inference_mode():
        benchmark.pedantic(call, (given,), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("name", ["densenet121_xray", "resnet18_multilabel", "xray_cnn", "cnn3d_base"])
def test_beyond(benchmark, name, sources):
    """What one call for one file adds to read + transform + optimized forward: the target is 3 ms, then 1 ms.

    The three take turns, and the medians of the differences are reported. ``predict`` compares the weights with those
    that were folded, at the speed of the memory: 31 MB in all for densenet121_xray, 90 MB for resnet18_multilabel. A
    ``Predictor`` needs not.
    """
    model, path = medzoo.create(name).eval().to(DEVICE), sources["ct" if name == "cnn3d_base" else "xray"]
    how, fast = medzoo.transform(model), medzoo.optimize(model)
    predictor = medzoo.Predictor(model, allow_untrained=True)

    def steps():
        with torch.inference_mode():
            return fast(how(medzoo.read(path))[None].to(DEVICE)).float().cpu()

    def taken(function):
        start = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - start)

    calls = {"predict": functools.partial(medzoo.predict, model, path, allow_untrained=True)}
    calls["Predictor"] = functools.partial(predictor, path)
    for call in calls.values():
        np.testing.assert_allclose(list(call().logits.values()), steps()[0], rtol=1e-4, atol=1e-4)
    rounds = 1 if benchmark.disabled else 41
    times = [{"steps": taken(steps)} | {key: taken(call) for key, call in calls.items()} for _ in range(rounds)]
    beyond = {key: median(took[key] - took["steps"] for took in times) for key in calls}
    benchmark.extra_info |= {"beyond_ms": beyond, "torch": torch.__version__}
    whole = median(took["steps"] for took in times)
    print(f"\n{name}: {', '.join(f'{key} {ms:.1f} ms' for key, ms in beyond.items())} beyond {whole:.0f} ms")
    benchmark.pedantic(calls["predict"], rounds=1)


@pytest.mark.parametrize("workers", ["none", 0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_folder(benchmark, case, workers, sources, models, tmp_path, monkeypatch):
    if workers == "none":
        monkeypatch.setattr("medzoo.inference.reading._reader_threads", lambda _: 0)
    copies = []
    for i in range(COPIES):
        copy = tmp_path / f"{i}{sources[case].suffix}"
        (shutil.copytree if sources[case].is_dir() else shutil.copy)(sources[case], copy)
        copies.append(copy)
    expected = medzoo.predict(models[case], copies[:1], allow_untrained=True)[0].logits
    found = benchmark.pedantic(
        medzoo.predict,
        (models[case], copies),
        {"num_workers": workers if workers != "none" else 0, "allow_untrained": True},
        rounds=3,
    )
    assert len(found) == COPIES
    largest = max(map(abs, expected.values()))
    for prediction in found:
        # A GPU convolves in TF32, in another order for another batch.
        close = 1e-4 if DEVICE.type == "cpu" else 1e-3 * largest
        np.testing.assert_allclose(list(prediction.logits.values()), list(expected.values()), rtol=1e-4, atol=close)
    benchmark.extra_info |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "images": COPIES}
