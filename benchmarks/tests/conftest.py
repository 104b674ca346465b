"""Cases, results and helpers that several tests of the suite share."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product

import pytest
import torch

from benchmarks import suite
from benchmarks.build import build_case
from benchmarks.cases import CREATED, EAGER, Case
from benchmarks.environment import describe_environment
from benchmarks.timing import InterleavedTimer
from benchmarks.work import work

CPU = torch.device("cpu")
CASE = Case("cnn3d_small", (16, 16, 16), peers=(EAGER, CREATED), tiny=True)
OTHER = Case("xray_cnn", (32, 32), tiny=True)


def small_case():
    """Return a training case of a tiny model, built."""
    return build_case(Case("cnn3d_small", (16, 16, 16), mode="train", peers=(EAGER,), tiny=True), CPU)


def raising(error):
    def call(*_, **__):
        raise error

    return call


@pytest.fixture
def no_ceilings(monkeypatch):
    """Leave out the measurement of ceilings."""
    monkeypatch.setattr(suite, "measure_ceilings", lambda device, **_: {})


@pytest.fixture(scope="module")
def result():
    """Return a result of real rows on tiny models; its ceilings are made up."""
    built = small_case()
    found = {"case": asdict(built.case), "id": built.case.id, "absent": {"timm": "timm is not installed"}}
    found["peers"] = {EAGER: {"difference": 1e-7, "gradient_difference": 1e-7}}
    timer = InterleavedTimer(built)
    timer.run(3)
    ceilings = {"matmul float32": 1e11, "matmul bfloat16": 2e11, "copy": 1e10}
    rows = [suite.finish_row(timer, found, timer.peaks(), ceilings)]
    for side, batch in product((64, 128), (1, 8)):
        case = Case("swin_encoder_mlp", (side,) * 3, batch=batch)
        time = {"median": 1e-7 * case.voxels, "low": 0.9e-7 * case.voxels, "high": 1.1e-7 * case.voxels}
        peak = 100 * case.voxels
        rows.append(
            rows[0]
            | {"case": asdict(case), "id": case.id, "seconds": time, "peak": peak, "peers": {}, "absent": {}}
            | asdict(work(case))
        )
    environment = describe_environment(CPU) | {"level": "quick"}
    made = {"environment": environment, "ceilings": ceilings, "rows": rows, "startup": {}}
    return json.loads(json.dumps(made | {"skipped": {"big": "needs about 9 GB"}, "failed": {}}))
