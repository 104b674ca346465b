"""The effect of the resampling filter on a trained model, on drawn shapes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import filter_effect
from medzoo.contract import RESAMPLERS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*predicts one class")  # after one epoch
def test_both_filters_are_trained_and_scored_with_both(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("val", 24)):
        labels = np.arange(count) % 2
        grid = np.indices((64, 64, 64), dtype=np.float32)
        images = np.zeros((count, 64, 64, 64), np.uint8)
        for image, label in zip(images, labels, strict=True):
            centre, radius = rng.uniform(26, 38, (3, 1, 1, 1)), rng.uniform(8, 12) + 8 * label
            image[((grid - centre) ** 2).sum(0) < radius**2] = 255
        arrays[f"{part}_images"] = images
        arrays[f"{part}_labels"] = labels[:, None]
    np.savez(tmp_path / "shapes.npz", **arrays)
    scores = filter_effect.train_and_score(tmp_path / "shapes.npz", tmp_path / "runs", epochs=1)
    assert set(scores) == {(a, b) for a in RESAMPLERS for b in RESAMPLERS}
    same, other = ("triangle", "triangle"), ("triangle", "reference")
    assert not np.array_equal(scores[same].logits, scores[other].logits)
    line = filter_effect.compare(same, other, scores)
    moved = np.abs(scores[same].probabilities - scores[other].probabilities)
    assert line[:2] == ["triangle, triangle", "triangle, reference"]
    assert line[-1] == f"{moved.max():.4f}"
    assert len(line) == len(filter_effect.HEADERS)
