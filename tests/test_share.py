"""Saved models on the Hub, and back: the real client against a server of our own."""

from __future__ import annotations

import json

import pytest
import torch
from loopback_faults import status
from tensors import TINY

import medzoo
from medzoo.errors import ConfigError, WeightsCorrupt, WeightsUnavailable

pytest_plugins = ["hub_fixtures"]
# The Hub's client calls its HTTP library by a way that the library has left behind.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

X = torch.linspace(-1, 1, 2 * 16**3).view(2, 1, 16, 16, 16)


@pytest.fixture
def pushed(hub):
    model = medzoo.create("cnn3d_small", labels=["wild type", "mutant"], task="multiclass", **TINY).eval()
    model.set_outputs(trained=True)
    place = model.push_to_hub("ward/egfr", token="hf_secret", license="Apache-2.0", trained_on="drawings")
    return model, place


def test_what_was_pushed_comes_back_bit_equal(pushed):
    model, place = pushed
    commit = place.rpartition("@")[2]
    assert place == f"hf-hub:ward/egfr@{commit}"
    assert len(commit) == 40
    again = medzoo.create(place)
    assert torch.equal(again(X), model(X))
    assert again.outputs == model.outputs
    assert again.load_report.source == f"cnn3d_small:ward/egfr@{commit[:12]}"
    assert torch.equal(medzoo.create("hf-hub:ward/egfr")(X), model(X))


def test_the_card_on_the_hub_says_how_to_load_it(hub, pushed):
    card = next(iter(hub.repos["ward/egfr"].commits.values()))["README.md"].decode()
    assert 'model = medzoo.create("hf-hub:ward/egfr")\n' in card


def test_a_commit_that_is_cached_asks_nothing(hub, pushed):
    _, place = pushed
    medzoo.create(place)
    asked = len(hub.requests)
    medzoo.create(place)
    assert len(hub.requests) == asked


def test_a_branch_is_what_it_was_last_time_where_the_hub_is_gone(hub, pushed, waits, caplog):
    model, _ = pushed
    medzoo.create("hf-hub:ward/egfr")
    hub.stop()
    assert torch.equal(medzoo.create("hf-hub:ward/egfr")(X), model(X))
    assert "as it was last time" in caplog.text
    with pytest.raises(WeightsUnavailable, match="ward/other"):
        medzoo.create("hf-hub:ward/other")


def test_a_newer_commit_of_the_branch_is_taken(hub, pushed):
    medzoo.create("hf-hub:ward/egfr")
    other = medzoo.create("cnn3d_small", num_classes=3, **TINY)
    other.push_to_hub("ward/egfr", token="hf_secret")
    assert medzoo.create("hf-hub:ward/egfr").num_classes == 3


def test_115_a_repository_whose_config_is_not_medzoos(hub):
    hub.add("google/bert", {"config.json": json.dumps({"architectures": ["Bert"]}).encode(), "model.safetensors": b""})
    with pytest.raises(ConfigError, match="expected a config that medzoo wrote"):
        medzoo.create("hf-hub:google/bert")


def test_115_a_repository_without_a_config(hub):
    hub.add("some/files", {"model.safetensors": b""})
    with pytest.raises(WeightsUnavailable, match=r"no such file\. Check the name and the revision"):
        medzoo.create("hf-hub:some/files")


def test_weights_that_are_not_the_configs_are_fetched_once_more_and_refused(hub, pushed):
    files = dict(next(iter(hub.repos["ward/egfr"].commits.values())))
    other = bytearray(files["model.safetensors"])
    other[-1] ^= 1
    hub.add("ward/forged", {**files, "model.safetensors": bytes(other)})
    with pytest.raises(WeightsCorrupt, match="It was fetched twice from ward/forged@"):
        medzoo.create("hf-hub:ward/forged")


@pytest.mark.parametrize("place", ["", "x", "a/b/c", "../etc/x", "a/b@", "https://huggingface.co/a/b", "a b/c"])
def test_a_place_that_is_no_repository(place):
    with pytest.raises(ConfigError, match="expected 'hf-hub:owner/repo' or 'hf-hub:owner/repo@revision'"):
        medzoo.create(f"hf-hub:{place}")


def test_a_push_that_the_hub_refuses_tells_no_token(hub):
    hub.fail("/api/*", status(403))
    with pytest.raises(WeightsUnavailable, match="hf auth login") as caught:
        medzoo.create("cnn3d_small", **TINY).push_to_hub("ward/egfr", token="hf_secret")
    assert "hf_secret" not in str(caught.value)
