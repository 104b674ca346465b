"""From files to answers: the ways that ``python -m benchmarks studies`` times give the same logits for every study."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import medzoo
from benchmarks.pipelines import MEDZOO, MODELS, REFERENCE, WAYS, make_model
from benchmarks.studies import measure, table, write_studies

SIZES = {"ct": (200, 180, 24), "xray": (256, 240)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WAYS)
def test_measure(kind, tmp_path):
    found = measure(kind, tmp_path, copies=4, turns=2, size=SIZES[kind])
    assert {*found["ways"], *found["absent"]} == set(WAYS[kind])
    assert found["ways"][MEDZOO]["difference"] == 0
    assert all(way["seconds"]["median"] > 0 and way["peak"] > 1e7 for way in found["ways"].values())
    text = table([found])
    assert f"4 {'CT series' if kind == 'ct' else 'X-rays'}" in text
    assert MODELS[kind] in text
    if kind == "ct":
        # MONAI's filter is the reference one, so that the pipelines differ in rounding alone.
        reference = found["ways"][REFERENCE]["difference"]
        monai = found["ways"]["MONAI"]["difference"]
        assert abs(monai - reference) < 1e-3 < reference


@pytest.mark.parametrize("kind", WAYS)
def test_studies_differ_in_their_identifiers_alone(kind, tmp_path):
    studies = write_studies(kind, tmp_path, 3, SIZES[kind])
    images = [medzoo.read(study) for study in studies]
    for key in ("patient", "study", "series"):
        assert len({image.identity[key] for image in images}) == 3
    assert all(np.array_equal(image.array, images[0].array) for image in images)


def test_the_weights_are_the_same_in_every_process():
    a, b = (make_model("xray").state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
