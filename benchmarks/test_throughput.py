"""From file to prediction: reading, the transform and the forward pass by themselves, then all with worker processes.

A 1024² DICOM X-ray through ``densenet121_xray`` and a 512 × 512 × 30 CT series through ``cnn3d_base``, both phantoms.
``test_folder`` predicts 8 copies with 0, 1 and 2 processes that read ahead: if reading is the bottleneck, workers
shorten it; if the forward pass is, they hide the reading.

Run it with ``pytest benchmarks/test_throughput.py``.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

import medzoo
from medzoo.visual.phantoms import draw_ct, draw_xray, write_ct_series, write_xray

CASES = {"xray": "densenet121_xray", "ct": "cnn3d_base"}
COPIES = 8


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("throughput")
    return {
        "xray": write_xray(folder, draw_xray(1024, 1024)),
        "ct": write_ct_series(folder, draw_ct((512, 512, 30))),
    }


@pytest.fixture(scope="module")
def models():
    return {case: medzoo.create(name).eval() for case, name in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_read(benchmark, case, sources):
    benchmark.pedantic(medzoo.read, (sources[case],), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("case", CASES)
def test_transform(benchmark, case, sources, models):
    image, transform = medzoo.read(sources[case]), medzoo.transform(models[case])
    benchmark.pedantic(transform, (image,), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("case", CASES)
def test_forward(benchmark, case, sources, models):
    x = medzoo.transform(models[case])(sources[case])[None]
    with torch.inference_mode():
        benchmark.pedantic(models[case], (x,), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("case", CASES)
def test_folder(benchmark, case, workers, sources, models, tmp_path):
    copies = []
    for i in range(COPIES):
        copy = tmp_path / f"{i}{sources[case].suffix}"
        (shutil.copytree if sources[case].is_dir() else shutil.copy)(sources[case], copy)
        copies.append(copy)
    expected = medzoo.predict(models[case], copies[:1], allow_untrained=True)[0].logits
    found = benchmark.pedantic(
        medzoo.predict,
        (models[case], copies),
        {"num_workers": workers, "allow_untrained": True},
        rounds=3,
    )
    assert len(found) == COPIES
    for prediction in found:
        np.testing.assert_allclose(list(prediction.logits.values()), list(expected.values()), rtol=1e-4, atol=1e-4)
    benchmark.extra_info |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "images": COPIES}
