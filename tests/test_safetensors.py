"""The one-pass reader of safetensors files against that of the safetensors library."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from medzoo.errors import WeightsCorrupt
from medzoo.weights import safetensors
from medzoo.weights.safetensors import SAFETENSORS_DTYPES, read_safetensors


def read(data):
    return read_safetensors(io.BytesIO(data), len(data), "file")


def values_of(dtype):
    values = torch.arange(-6, 18).reshape(2, 3, 4)
    return (values > 0) if dtype == torch.bool else values.to(dtype)


@pytest.mark.parametrize("dtype", SAFETENSORS_DTYPES.values(), ids=str)
def test_every_dtype_is_read_bit_for_bit(dtype):
    tensors = {"a": values_of(dtype), "b": values_of(dtype)[0, 0, 0].clone(), "c": values_of(dtype)[:0].clone()}
    data = save(tensors, metadata={"k": "v"})
    found, metadata, digest = read(data)
    assert metadata == {"k": "v"}
    assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("piece", [1, 7, 64, 2**24])
def test_pieces_of_any_length_give_the_same_tensors(monkeypatch, piece):
    tensors = {name: torch.randn(size) for name, size in (("a", 100), ("b", 1), ("c", 33))}
    monkeypatch.setattr(safetensors, "PIECE", piece)
    data = save(tensors)
    found, _, digest = read(data)
    assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_tensors_do_not_share_their_memory():
    found, _, _ = read(save({"a": torch.ones(4), "b": torch.ones(4)}))
    found["a"].zero_()
    assert found["b"].sum() == 4
    assert found["a"].untyped_storage().nbytes() == 16


def test_a_file_that_shrinks_or_grows_meanwhile():
    data = save({"a": torch.ones(100)})
    with pytest.raises(WeightsCorrupt, match="it was cut while it was read"):
        read_safetensors(io.BytesIO(data[:-8]), len(data), "file")
    with pytest.raises(WeightsCorrupt, match="it grew while it was read"):
        read_safetensors(io.BytesIO(data + b"x"), len(data), "file")


@pytest.mark.parametrize("count", [2000, pytest.param(40_000, marks=pytest.mark.slow)])
def test_mutants_are_read_like_the_library_or_refused(count):
    """Files that the library refuses are refused, and files that both read give the same tensors."""
    generator = np.random.default_rng(0)
    valid = save({"encoder.a": torch.randn(2, 3), "head.b": torch.randn(3).half(), "c": torch.arange(3)}, {"k": "v"})
    outcomes = {"both": 0, "neither": 0, "library": 0}
    end = int.from_bytes(valid[:8], "little") + 8
    for _ in range(count):
        data = bytearray(valid)
        for _ in range(int(generator.integers(1, 4))):
            data[int(generator.integers(end))] = int(generator.integers(32, 127))
        if generator.random() < 0.1:
            data = data[: int(generator.integers(len(data)))]
        data[4:8] = bytes(4)
        try:
            theirs = load(bytes(data))
        except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError, TypeError, AttributeError):
            theirs = None
        try:
            ours, _, _ = read(bytes(data))
        except WeightsCorrupt:
            outcomes["neither" if theirs is None else "library"] += 1
            continue
        assert theirs is not None, bytes(data[:end])
        assert theirs.keys() == ours.keys()
        for name, tensor in theirs.items():
            assert tensor.shape == ours[name].shape
            assert torch.equal(tensor.reshape(-1).view(torch.uint8), ours[name].reshape(-1).view(torch.uint8))
        outcomes["both"] += 1
    assert outcomes["both"] > count / 100
    assert outcomes["neither"] > count / 10
