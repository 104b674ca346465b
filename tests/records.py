"""Records of weights that tests fetch, and how a model gets one."""

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
from medzoo.weights.fetch_file import verified
from medzoo.weights.record import HubFile, UrlFile, Weights

REPO, FILE, REVISION = "owner/repo", "model.safetensors", "c" * 40
WHO = "cnn3d_small:test"
TOKEN = "hf_aSecretThatNobodySees"
PATIENCE = 10.0  # seconds that a fetch may wait for a server that does not answer

E = TypeVar("E", bound=BaseException)


def weight_bytes(seed: int = 0) -> bytes:
    """Return a safetensors file of the tiny cnn3d_small with one output."""
    torch.manual_seed(seed)
    return save(medzoo.create("cnn3d_small", **TINY).state_dict())


def some_bytes(size: int = 10_000) -> bytes:
    """Return bytes that look like nothing; the fetching of a file does not read it."""
    return hashlib.shake_128(b"weights").digest(size)


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return a digest as records state it."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def record_of(source: Any, data: bytes, **changes: Any) -> Weights:
    """Return a record of these bytes at a source."""
    stated: dict[str, Any] = {
        "tag": "test",
        "digest": digest_of(data),
        "size": len(data),
        "license": "CC0-1.0",
        "citation": "none",
        "trained_on": "random numbers",
        "labels": ("mutation",),
        "task": "binary",
        "options": TINY,
    }
    return Weights(source=source, **stated | changes)


def on_hub(hub: Any, data: bytes, *, pinned: bool = True, **changes: Any) -> Weights:
    """Publish bytes on the Hub of a test, and return their record."""
    hub.add(REPO, {FILE: data, "config.json": b"{}"}, revision=REVISION)
    return record_of(HubFile(repo=REPO, file=FILE, revision=REVISION if pinned else None), data, **changes)


def at_url(hub: Any, data: bytes, path: str = "/files/weights.safetensors", **changes: Any) -> Weights:
    """Publish bytes as a plain file of the server of a test, and return their record."""
    return record_of(UrlFile(url=hub.put(path, data)), data, **changes)


PUBLISHERS: dict[str, Callable[..., Weights]] = {"hub": on_hub, "url": at_url}
PATHS = {"hub": f"/{REPO}/resolve/*", "url": "/files/*"}


def publish(model: str, record: Weights, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Give a registered model this one set of weights for a test; without ``monkeypatch``, until the process ends."""
    spec = replace(registry.describe(model), weights=MappingProxyType({record.tag: record}))
    if monkeypatch:
        monkeypatch.setitem(registry._MODELS, model, spec)
    else:
        registry._MODELS[model] = spec


def refusal(record: Weights) -> WeightsUnavailable:
    """Return the error of a fetch that cannot be had, which is ours and says whose weights it is about."""
    return _failure(record, WeightsUnavailable)


def corruption(record: Weights) -> WeightsCorrupt:
    """Return the error of a fetch that gives other bytes, which is ours and says whose weights it is about."""
    return _failure(record, WeightsCorrupt)


def _failure(record: Weights, kind: type[E]) -> E:
    with pytest.raises(kind) as caught:
        verified(record, who=WHO)
    assert type(caught.value) is kind
    assert WHO in str(caught.value)
    return caught.value


def all_told(error: BaseException) -> str:
    """Return everything that an error would print, with the errors it came from."""
    return "".join(traceback.format_exception(error))


def kept(folder: Path) -> list[bytes]:
    """Return what every file under a folder holds, each file once."""
    found = (Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
    return [path.read_bytes() for path in found if path.is_file() and not path.is_symlink()]


def no_trace_but(data: bytes, folder: Path) -> None:
    """Hold the caches to keep no other file of the size of weights, whole or partial."""
    assert {found for found in kept(folder) if len(found) > 500} <= {data}
