"""Statistics of an image, each read once, equal those of NumPy in float64 and of PyTorch in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import medzoo
from medzoo.errors import DataError
from medzoo.transforms import pixel_statistics
from medzoo.transforms.pixel_statistics import PixelStatistics, as_float32
from medzoo.transforms.transform import Transform

RNG = np.random.default_rng(0)
ARRAYS: dict[str, NDArray[Any]] = {
    "int16": RNG.integers(-1024, 3071, (2, 9, 61, 73)).astype(np.int16),
    "uint16": RNG.integers(0, 2**16, (1, 300, 301)).astype(np.uint16),
    "uint8": RNG.integers(0, 256, (3, 40, 50)).astype(np.uint8),
    "int8": RNG.integers(-128, 128, (1, 40, 50)).astype(np.int8),
    "bool": RNG.random((1, 40, 50)) < 0.3,
    "int32": RNG.integers(-(2**30), 2**30, (1, 8, 40, 50)).astype(np.int32),
    "float32": RNG.normal(3, 5, (1, 70, 40, 50)).astype(np.float32),
    "float64 far from 0": RNG.normal(1e6, 3, (1, 70, 40, 50)),
    "float16": RNG.normal(0, 3, (1, 40, 50)).astype(np.float16),
    "big-endian": RNG.normal(0, 3, (1, 40, 50)).astype(">f4"),
    "columns first": np.asfortranarray(RNG.integers(0, 90, (1, 20, 30, 40)).astype(np.int16)),
    "gaps": RNG.integers(0, 90, (1, 20, 30, 40)).astype(np.int16)[:, ::2, :, 5:],
    "reversed": RNG.integers(0, 90, (1, 20, 30, 40)).astype(np.int16)[:, ::-1, :, ::-1],
    "constant": np.full((1, 30, 50), 0.1, np.float32),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_they_are_numpys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array = ARRAYS[name]
    exact = array.astype(np.float32).astype(np.float64)
    for piece in (pixel_statistics.PIECE, 1000):
        monkeypatch.setattr(pixel_statistics, "PIECE", piece)
        found = PixelStatistics(array)
        assert (found.count, found.low, found.high) == (array.size, exact.min(), exact.max())
        assert found.at_low == (exact == exact.min()).sum()
        assert found.at_high == (exact == exact.max()).sum()
        assert found.moments == pytest.approx((exact.mean(), exact.std()), rel=1e-12, abs=1e-12)
        for value, many in ((found.low, found.at_low), (found.high, found.at_high)):
            if many < array.size:
                rest = exact[exact != value].std()
                assert found.spread_without(value, many) == pytest.approx(rest, rel=1e-6, abs=1e-5 * exact.std())


@pytest.mark.parametrize("name", ARRAYS)
def test_values_are_writable_float32_in_their_order(name: str) -> None:
    array = ARRAYS[name].copy(order="K")
    array.setflags(write=False)
    found = as_float32(array)
    np.testing.assert_array_equal(found, array.astype(np.float32))
    assert found.flags.writeable
    assert found.dtype == np.float32
    if name == "columns first":
        assert found.flags.f_contiguous, "the axes were copied into another order"
    mine = np.ones((1, 4, 4), np.float32)
    assert np.shares_memory(as_float32(mine), mine)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_what_is_not_finite_is_found(value: float, dtype: Any) -> None:
    image = RNG.random((1, 30, 40)).astype(dtype)
    image[0, 3, 5:8] = value
    transform = Transform(medzoo.Preprocessing(size=(8, 8)), 1, "model")
    with pytest.raises(DataError, match=r"expected finite values, got 3 NaN or infinite\."):
        transform.check(medzoo.Image(image))
    image = np.ones((1, 30, 40))
    image[0, 0, 0] = 1e39  # beyond float32
    with pytest.raises(DataError, match=r"got 1 NaN or infinite\."):
        transform.check(medzoo.Image(image))


@pytest.mark.parametrize("name", ["int16", "uint16", "uint8", "float32", "constant"])
@pytest.mark.parametrize("resample", ["reference", "triangle"])
def test_a_z_score_is_pytorchs(name: str, resample: Any) -> None:
    array = ARRAYS[name]
    how = medzoo.Preprocessing(size=array.shape[1:], intensity="zscore", resample=resample)
    found = Transform(how, len(array), "model").examine(medzoo.Image(array))
    x = torch.from_numpy(array.astype(np.float32))
    mean, std = x.mean(), x.std(correction=0)
    torch.testing.assert_close(found.tensor, (x - mean) / (std if name != "constant" else 1), atol=2e-6, rtol=1e-6)
    assert any(step.startswith(f"z-score: mean {float(mean):.4g}, standard deviation") for step in found.steps)
