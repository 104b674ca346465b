"""Saved models on the Hub: pushed, created again, and the errors if that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from loopback_faults import status, web_page, wrong_bytes
from records import FILE, MAX_WAIT, REPO, TOKEN, full_traceback
from tensors import TINY

import medzoo
from medzoo.errors import ConfigError, MedzooError, WeightsCorrupt, WeightsUnavailable

# The client sends large files in a way that its HTTP library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
pytest_plugins = ["hub_fixtures"]

X = torch.linspace(0, 1, 16**3).reshape(1, 1, 16, 16, 16)
NAME = f"hf-hub:{REPO}"


@pytest.fixture
def model():
    return medzoo.create("cnn3d_small", labels=["a", "b"], task="multilabel", **TINY).eval()


@pytest.fixture
def pushed(hub, model):
    """Push the model, and return its name with the commit."""
    return model.push_to_hub(REPO, token=TOKEN, license="CC0-1.0", intended_use=medzoo.IntendedUse(("CT",)))


def logits(model):
    with torch.no_grad():
        return model(X)


def replaced(hub, **files: bytes) -> None:
    """Publish the newest commit again with other files."""
    tree = hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]
    hub.add(REPO, {**tree, **{name.replace("__", "."): data for name, data in files.items()}})


def test_a_pushed_model_is_restored(hub, model, pushed):
    assert pushed == f"{NAME}@{hub.repos[REPO].branches['main']}"
    assert {request.token for request in hub.asked("POST")} == {TOKEN}
    again = medzoo.create(pushed)
    assert torch.equal(logits(again), logits(model))
    assert again.outputs.labels == ("a", "b")
    assert not again.load_report.new
    assert {request.token for request in hub.asked("HEAD")} == {None}
    assert again.load_report.intended_use == medzoo.IntendedUse(("CT",))


def test_25_a_commit_that_is_cached_is_created_without_a_request(hub, model, pushed):
    medzoo.create(pushed)
    asked = len(hub.requests)
    hub.stop()
    assert torch.equal(logits(medzoo.create(pushed)), logits(model))
    assert len(hub.requests) == asked


def test_28_a_commit_that_is_cached_is_created_offline(hub, pushed, monkeypatch):
    medzoo.create(pushed)
    medzoo.create(NAME)
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    medzoo.create(pushed)
    medzoo.create(NAME)
    assert len(hub.requests) == asked


def test_a_branch_is_requested_each_time(hub, model, pushed):
    medzoo.create(NAME)
    with torch.no_grad():
        model.head.classifier.weight.mul_(2)
    newer = model.push_to_hub(REPO, token=TOKEN)
    assert newer != pushed
    assert torch.equal(logits(medzoo.create(NAME)), logits(model))
    assert not torch.equal(logits(medzoo.create(pushed)), logits(model))


def test_27_a_branch_is_read_from_the_cache_when_the_hub_is_down(hub, model, pushed, waits):
    medzoo.create(NAME)
    hub.stop()
    assert torch.equal(logits(medzoo.create(NAME)), logits(model))
    assert sum(waits) <= MAX_WAIT


def test_27_a_hub_that_is_down_is_an_error_with_advice(hub, pushed, waits):
    hub.stop()
    with pytest.raises(WeightsUnavailable) as caught:
        medzoo.create(pushed)
    for part in (REPO, constants.HF_HUB_CACHE, "HF_HUB_OFFLINE"):
        assert part in str(caught.value)
    assert sum(waits) <= MAX_WAIT


def test_30_a_login_page_is_recognised(hub, pushed):
    hub.fail("*", web_page())
    with pytest.raises(WeightsUnavailable, match="not a Hub response"):
        medzoo.create(pushed)


@pytest.mark.parametrize("name", ["owner/none", f"{REPO}@{'0' * 40}", f"{REPO}@nobranch"])
def test_32_33_a_missing_repository_or_revision_is_named(hub, pushed, name):
    with pytest.raises(WeightsUnavailable) as caught:
        medzoo.create(f"hf-hub:{name}")
    assert name in str(caught.value)


def test_36_wrong_weights_are_downloaded_again_once(hub, model, pushed):
    hub.fail(f"*/{FILE}", wrong_bytes(), times=1)
    assert torch.equal(logits(medzoo.create(pushed)), logits(model))
    assert len(hub.asked("GET", f"*/{FILE}")) == 2


def test_36_weights_that_are_not_those_of_the_config_are_corrupt(hub, pushed):
    right = hub.repos[REPO].commits[hub.repos[REPO].branches["main"]][FILE]
    replaced(hub, model__safetensors=right[:-1] + b"\0")
    with pytest.raises(WeightsCorrupt, match="sha256:"):
        medzoo.create(NAME)


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"model": 1}',
        b'{"architecture": "resnet18", "num_classes": 10}',
        b"\xff\xfe",
    ],
)
def test_115_a_config_that_medzoo_did_not_write_is_refused(hub, pushed, config):
    replaced(hub, config__json=config)
    with pytest.raises(ConfigError):
        medzoo.create(NAME)
    assert not hub.asked("GET", f"*/{FILE}")


def test_115_a_config_with_more_than_a_model_is_refused(hub, pushed):
    tree = hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]
    config = json.loads(tree["config.json"])
    for change in ({"model": "../x"}, {"model": "os.system"}, {"options": {"widths": [10**9]}}, {"dtype": "object"}):
        replaced(hub, config__json=json.dumps(config | change).encode())
        with pytest.raises(MedzooError):
            medzoo.create(NAME)


@pytest.mark.parametrize("place", ["", "repo", "../x", "a/b/c", "owner/repo@", "owner/..", "https://x/y", "o/r\n"])
def test_115_an_invalid_name_is_refused_without_a_request(hub, place):
    with pytest.raises(ConfigError, match="hf-hub:owner/repo"):
        medzoo.create(f"hf-hub:{place}")
    assert not hub.requests


@pytest.mark.parametrize("number", [401, 403])
def test_31_a_push_that_is_refused_shows_no_token(hub, model, number):
    hub.fail("/api/*", status(number, None, "You do not have the rights"))
    with pytest.raises(WeightsUnavailable, match="hf auth login") as caught:
        model.push_to_hub(REPO, token=TOKEN)
    assert TOKEN not in full_traceback(caught.value)
    assert REPO in str(caught.value)
    assert not hub.repos


def test_27_a_push_to_a_hub_that_is_down_is_a_medzoo_error(hub, model, waits):
    hub.stop()
    with pytest.raises(WeightsUnavailable) as caught:
        model.push_to_hub(REPO, token=TOKEN)
    assert REPO in str(caught.value)
    assert TOKEN not in full_traceback(caught.value)


def test_the_card_on_the_hub_has_the_code_to_load_it(hub, pushed):
    card = hub.repos[REPO].commits[pushed.rpartition("@")[2]]["README.md"].decode()
    assert f'model = medzoo.create("{NAME}")\n' in card
    assert 'license: "cc0-1.0"' in card


@pytest.mark.parametrize("code", ["RepoNotFound", "GatedRepo", "RevisionNotFound", "EntryNotFound"])
def test_31_32_a_withdrawn_model_is_not_read_from_the_cache(hub, pushed, code):
    medzoo.create(NAME)
    hub.fail("/owner/*", status(401 if code != "EntryNotFound" else 404, code))
    with pytest.raises(WeightsUnavailable, match=REPO):
        medzoo.create(NAME)


@pytest.mark.parametrize("harm", [lambda config: config.replace(b'"a"', b'"x"'), lambda config: config[:100]])
def test_37_38_a_cached_config_that_changed_is_downloaded_again(hub, pushed, harm):
    medzoo.create(pushed)
    config = hub_cached(pushed, "config.json")
    config.write_bytes(harm(config.read_bytes()))
    assert medzoo.create(pushed).outputs.labels == ("a", "b")


def hub_cached(place, file):
    commit = place.rpartition("@")[2]
    folder = Path(constants.HF_HUB_CACHE) / f"models--{REPO.replace('/', '--')}" / "snapshots" / commit
    return (folder / file).resolve()


def test_a_mirror_is_not_used_for_a_users_own_model(hub, model, pushed, monkeypatch):
    monkeypatch.setenv("MEDZOO_MIRROR", hub.url("/mirror"))
    assert torch.equal(logits(medzoo.create(pushed)), logits(model))
    assert not hub.asked("GET", "/mirror*")
