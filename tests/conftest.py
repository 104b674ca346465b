"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tensors import TINY

import medzoo


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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
