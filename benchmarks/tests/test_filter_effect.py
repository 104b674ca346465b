"""The effect of the resampling filter on a trained model, on drawn shapes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import filter_effect
from medzoo.contract import RESAMPLERS


@pytest.mark.slow
def test_both_filters_are_trained_and_scored_with_both(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 24), ("val", 24)):
        labels = np.arange(count) % 2
        radii = 10 + 8 * labels + rng.uniform(-2, 2, count)
        x = np.indices((64, 64, 64), dtype=np.float32) - 31.5
        arrays[f"{part}_images"] = np.array([(np.hypot(np.hypot(*x[:2]), x[2]) < r) * 255 for r in radii], np.uint8)
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
