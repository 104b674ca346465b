"""TorchXRayVision's pickles of a whole module: their tensors come out, and nothing else of them does anything."""

from __future__ import annotations

import sys

import pytest
import torch
from whole_modules import saved, torchvisions, upstreams

import medzoo
from medzoo.weights.unpickle import read_checkpoint

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
SMALL = {"growth_rate": 4, "block_config": (2, 1), "num_init_features": 8}


@FORMATS
def test_a_whole_densenet_gives_torchvisions_outputs(tmp_path, zipped):
    theirs = torchvisions()
    (tmp_path / "all.pt").write_bytes(saved(upstreams(theirs, op_threshs=torch.rand(18)), zipped))
    tensors, digest = read_checkpoint(tmp_path / "all.pt")
    assert "torchxrayvision" not in sys.modules
    assert digest.startswith("sha256:")
    expected = theirs.state_dict()
    assert list(tensors) == list(expected)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert all(tensors[name].dtype == expected[name].dtype for name in expected)
    model = medzoo.create("densenet121_xray").eval()
    report = medzoo.load_state(model, tensors)
    assert (len(report.loaded), report.new) == (727, ())
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-4, atol=2e-5)
