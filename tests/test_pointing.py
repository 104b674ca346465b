"""Every model of the zoo, trained for seconds on images with a blob at a random place, points at it on the image.

The images are files of another size, spacing and orientation than what the model takes, so that a map that is mirrored,
transposed, shifted by a cell or taken from the wrong layer misses. Each image has a dark blob too, see ``blobs``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from blobs import INTENSITY, Grid, Planted, plant, points_at, train_on_blobs
from numpy.typing import NDArray

import medzoo


def turned(axes: str, spacing: tuple[float, ...], degrees: float) -> NDArray[np.float64]:
    """Return the affine of a scan whose axes run as named, turned about the axis from feet to head."""
    matrix = np.zeros((3, 3))
    for column, (letter, step) in enumerate(zip(axes, spacing, strict=True)):
        matrix["RLAPSI".index(letter) // 2, column] = step if letter in "RAS" else -step
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ matrix
    affine[:3, 3] = (-20, 35, -110)
    return affine


@dataclass(frozen=True)
class Setup:
    """What a model is trained on for seconds.

    Attributes:
        options: of the builder; what is not named is as it is registered.
        size: of the input of the model.
        grid: of the files.
        sigma: of a blob in mm; its radius is twice that, where it has 14 % of its height.
        preprocessing: what is not the default.
        steps, batch, lr: of the training.
    """

    options: dict[str, Any]
    size: tuple[int, ...]
    grid: Grid
    sigma: float
    steps: int
    batch: int = 8
    lr: float = 1e-3
    preprocessing: dict[str, Any] = field(default_factory=dict)


FLAT = np.eye(4)
MM = {"spacing": (1.0, 1.0, 1.0), "fit": "crop"}
SETUPS = {
    "xray_cnn": Setup({"size": (128, 96), "hidden": 256}, (128, 96), Grid((110, 160), FLAT), 8, 24, 16, 3e-4),
    "resnet18_multilabel": Setup({}, (128, 160), Grid((150, 200), FLAT), 12, 20),
    "densenet121_xray": Setup({}, (128, 160), Grid((200, 150), FLAT), 12, 12),
    "cnn3d_small": Setup(
        {"size": (40, 56, 48), "widths": (8, 16, 32), "hidden": 64},
        (40, 56, 48),
        Grid((56, 40, 60), turned("LSA", (1.0, 1.6, 0.8), 12)),
        5,
        32,
        preprocessing={"orientation": "SPL"},
    ),
    "cnn3d_base": Setup(
        {"widths": (8, 16, 32, 64), "hidden": 128},
        (62, 62, 78),
        Grid((54, 62, 64), turned("ARI", (1.2, 1.3, 1.0), 15)),
        6,
        24,
        4,
        2e-3,
        {"orientation": "SPL", **MM},
    ),
    "swin_encoder_mlp": Setup(
        {"feature_size": 12, "hidden": 64},
        (32, 32, 64),
        Grid((64, 25, 22), turned("SLP", (1.0, 1.4, 1.6), -10)),
        4,
        30,
        4,
        5e-4,
        {"orientation": "PLS", **MM},
    ),
}


def build(name: str, seed: int = 0) -> medzoo.Classifier:
    """Return a model with random weights that takes the files of its setup."""
    setup = SETUPS[name]
    how = medzoo.Preprocessing(size=setup.size, **INTENSITY[len(setup.size)], **setup.preprocessing)
    torch.manual_seed(seed)
    model = medzoo.create(name, num_classes=1, task="binary", labels=["blob"], preprocessing=how, **setup.options)
    model.intended_use = None  # a file of noise is of no body part
    return model.eval()


def pointing(model: medzoo.Classifier, planted: list[Planted], radius: float, **options: Any) -> float:
    """Return in what share of images the maximum of the map is in the blob, enlarged by half a cell."""
    found = medzoo.explain(model, [one.path for one in planted], "blob", batch_size=4, **options)
    hits = [points_at(explanation, one.centre, radius) for explanation, one in zip(found, planted, strict=True)]
    return sum(hits) / len(hits)


def test_every_model_has_a_setup():
    ours = [name for name in medzoo.list_models() if medzoo.describe(name).builder.__module__.startswith("medzoo.")]
    assert sorted(SETUPS) == ours


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*No region raised")  # random weights often have a map of zeros
@pytest.mark.parametrize("name", SETUPS)
def test_a_trained_model_points_at_the_blob(name, tmp_path):
    setup = SETUPS[name]
    model, radius = build(name), 2 * setup.sigma
    fresh = plant(tmp_path / "fresh", setup.grid, setup.sigma, [True] * 100, seed=1)
    seen = plant(tmp_path / "seen", setup.grid, setup.sigma, [False, True] * 32, seed=0)
    train_on_blobs(model, seen, steps=setup.steps, batch=setup.batch, lr=setup.lr)
    assert pointing(model, fresh, radius) >= 0.95
    # One random network may prefer what is bright to what is dark; several do not.
    random = [pointing(build(name, seed), fresh[:12], radius, allow_untrained=True) for seed in range(4)]
    assert np.mean(random) <= 0.5
