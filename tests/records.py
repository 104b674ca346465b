"""Records of weights for tests, and how they are published and registered."""

from __future__ import annotations

import hashlib
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import save
from tensors import TINY

import medzoo
from medzoo import registry
from medzoo.errors import WeightsCorrupt, WeightsUnavailable
from medzoo.weights.download import fetch_file
from medzoo.weights.record import HubFile, UrlFile, Weights

REPO, FILE, REVISION = "owner/repo", "model.safetensors", "c" * 40
WHO = "cnn3d_small:test"
TOKEN = "hf_aSecretThatIsNeverShown"
MAX_WAIT = 10.0  # seconds that a download may wait for a server that does not answer

E = TypeVar("E", bound=BaseException)


def weight_bytes(seed: int = 0) -> bytes:
    """Return a safetensors file of the tiny cnn3d_small with one output."""
    torch.manual_seed(seed)
    return save(medzoo.create("cnn3d_small", **TINY).state_dict())


def some_bytes(size: int = 10_000) -> bytes:
    """Return pseudorandom bytes: a download does not parse the file."""
    return hashlib.shake_128(b"weights").digest(size)


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return a digest in the form of a record."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def record_of(source: Any, data: bytes, **changes: Any) -> Weights:
    """Return a record of these bytes at a source."""
    stated: dict[str, Any] = {
        "tag": "test",
        "digest": digest_of(data),
        "size": len(data),
        "license": "CC0-1.0",
        "citation": "none",
        "trained_on": "nothing",
        "labels": ("mutation",),
        "task": "binary",
        "options": TINY,
    }
    return Weights(source=source, **stated | changes)


def on_hub(hub: Any, data: bytes, *, pinned: bool = True, **changes: Any) -> Weights:
    """Publish bytes on the test's Hub, and return their record."""
    hub.add(REPO, {FILE: data, "config.json": b"{}"}, revision=REVISION)
    return record_of(HubFile(repo=REPO, file=FILE, revision=REVISION if pinned else None), data, **changes)


def at_url(hub: Any, data: bytes, path: str = "/files/weights.safetensors", **changes: Any) -> Weights:
    """Publish bytes as a plain file on the test's server, and return their record."""
    return record_of(UrlFile(url=hub.put(path, data)), data, **changes)


PUBLISHERS: dict[str, Callable[..., Weights]] = {"hub": on_hub, "url": at_url}
PATHS = {"hub": f"/{REPO}/resolve/*", "url": "/files/*"}


def publish(model: str, record: Weights, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Register a record as the only weights of a model, for a test or, without ``monkeypatch``, for the process."""
    spec = replace(registry.describe(model), weights=MappingProxyType({record.tag: record}))
    if monkeypatch:
        monkeypatch.setitem(registry._MODELS, model, spec)
    else:
        registry._MODELS[model] = spec


def refusal(record: Weights) -> WeightsUnavailable:
    """Return the error of a file that is unavailable, which must name the weights."""
    return _failure(record, WeightsUnavailable)


def corruption(record: Weights) -> WeightsCorrupt:
    """Return the error of a file with wrong bytes, which must name the weights."""
    return _failure(record, WeightsCorrupt)


def _failure(record: Weights, kind: type[E]) -> E:
    with pytest.raises(kind) as caught:
        fetch_file(record, who=WHO)
    assert type(caught.value) is kind
    assert WHO in str(caught.value)
    return caught.value


def full_traceback(error: BaseException) -> str:
    """Return the traceback of an error and of its causes."""
    return "".join(traceback.format_exception(error))


def contents(folder: Path) -> list[bytes]:
    """Return the content of every file in a folder and its subfolders, each file once."""
    found = (Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
    return [path.read_bytes() for path in found if path.is_file() and not path.is_symlink()]


def check_only_file(data: bytes, folder: Path) -> None:
    """Check that the caches contain no other file of the size of weights, complete or partial."""
    assert {found for found in contents(folder) if len(found) > 500} <= {data}
