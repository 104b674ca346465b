"""Fixtures that several test files share."""

from __future__ import annotations

import functools
import gc
import os
import warnings
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: more threads would only wait, in children too
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from safetensors.torch import save_file
from tensors import TINY

import medzoo

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: more threads would only wait
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leave what collecting has made out of garbage collections, which take a tenth of the time otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _cublas_started(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu"):
        start_cublas()


@functools.cache
def start_cublas() -> None:
    """Run a first backward pass, in which cuBLAS may warn that its thread has no CUDA context yet."""
    with warnings.catch_warnings(action="ignore"):
        x = torch.ones(2, 2, device="cuda", requires_grad=True)
        (x @ x).sum().backward()


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of real images, which are not part of the repository."""
    given = os.environ.get("MEDZOO_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} is absent; set MEDZOO_DATA to a folder that has them")
    return folder


@pytest.fixture
def saved(tmp_path):
    """Return a tiny cnn3d_small with 3 outputs, and the file of its tensors."""
    model = medzoo.create("cnn3d_small", num_classes=3, **TINY).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return model, tmp_path / "model.safetensors"
