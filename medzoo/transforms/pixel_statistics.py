"""What the checks of an image and its z-score need to know of its values, each read once and in the stored type.

A CT of 16-bit integers is a quarter of its values in float64, and half of them in float32: its extremes and counts are
taken from the integers, and its sums in pieces that stay in the processor's cache.

Axes: c channels, s spatial axes.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PixelStatistics", "as_float32"]

# Values that are summed at once in float64: half a megabyte.
PIECE = 2**16


def as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return values as writable float32 in the order in which they are in memory; a copy only where it is needed."""
    with np.errstate(over="ignore"):  # the caller finds what is infinite
        values = array.astype(np.float32, order="K", copy=False)
    usable = values.flags.writeable and values.dtype.isnative and min(values.strides) >= 0
    return values if usable else values.copy(order="K")


class PixelStatistics:
    """The extremes, counts and moments of an image ``c *s``; each is computed when it is first asked for.

    The results are those of the values as float32, summed in float64. A value that is not finite makes an extreme so.

    Args:
        array: the values, integers or floats of any type and order in memory.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        exact = array.dtype.kind in "biu" and array.dtype.itemsize <= 2
        # Without a copy where they are without gaps, in any order of the axes.
        self._values = (array if exact else as_float32(array)).ravel(order="K")
        self.count = array.size

    @cached_property
    def low(self) -> float:
        """The lowest value; NaN where there is one."""
        return float(self._values.min())

    @cached_property
    def high(self) -> float:
        """The highest value; NaN where there is one."""
        return float(self._values.max())

    @cached_property
    def at_low(self) -> int:
        """How many values are the lowest."""
        return self._count(self.low)

    @cached_property
    def at_high(self) -> int:
        """How many values are the highest."""
        return self._count(self.high)

    @cached_property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation, of the population."""
        # Sums about a value of the image: those about 0 cancel where the mean is far from it. The squares of 16-bit
        # integers add up to integers that float64 holds.
        about = float(self._values[0])
        total = squares = 0.0
        for start in range(0, self.count, PIECE):
            piece = self._values[start : start + PIECE].astype(np.float64)
            piece -= about
            total += float(piece.sum())
            # Not a dot product of BLAS, whose result depends on the number of threads.
            squares += float(np.einsum("i,i", piece, piece))
        shift = total / self.count
        return about + shift, math.sqrt(max(0.0, squares / self.count - shift * shift))

    def spread_without(self, value: float, many: int) -> float:
        """Return the standard deviation of the values other than ``value``, which ``many`` of them are; to 1e-5 of all.

        It follows from the moments: the squares about a mean are those within the two groups and between them.
        """
        mean, spread = self.moments
        rest = self.count - many
        return math.sqrt(max(0.0, self.count * (spread**2 - many * (value - mean) ** 2 / rest) / rest))

    def _count(self, value: float) -> int:
        same = self._values.dtype.type(value)  # a float would turn integers into floats first
        return sum(
            int(np.count_nonzero(self._values[start : start + PIECE] == same)) for start in range(0, self.count, PIECE)
        )
