"""How the values of a preprocessed image are stored in fewer bytes, by a rule that looks at that image alone.

==========================  ================================================  =======  ==========================
intensity                   values                                            stored   largest error
==========================  ================================================  =======  ==========================
``unit``, ``window``        in [0, 1], of an image of 8 bits                  uint8    1/510
``unit``, ``window``        in [0, 1], of any other                           uint16   1/131,070
``zscore(_nonzero)``        at most 64 standard deviations                    float16  2**-11 of the value
any                         any other                                         float32  none
==========================  ================================================  =======  ==========================

Values that 8 bits hold exactly, such as masks of 0 and 1 and images that keep their size, stay exact. A file has one
type for all of its images: the widest that one of them needs. A wider type holds the values of a narrower one exactly,
so what is read for an image does not depend on the others.

Axes: c channels, s spatial axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.contract import Preprocessing
from medzoo.io.image import Image

__all__ = ["decode", "encode", "storage_type", "widen", "wider"]

# From narrow to wide.
_TYPES = ("uint8", "uint16", "float16", "float32")
_FULL = {"uint8": np.float32(255), "uint16": np.float32(65535)}
# Values beyond it would be off by more than 1/64 in float16.
_LARGEST_HALF = 64.0


def storage_type(x: NDArray[np.float32], image: Image, how: Preprocessing) -> str:
    """Return the type to store an image ``c *s`` in, by the rule of this module.

    Args:
        x: its preprocessed values.
        image: what was read.
        how: the preprocessing.
    """
    low, high = float(x.min()), float(x.max())
    if how.intensity in ("zscore", "zscore_nonzero"):
        return "float16" if max(-low, high) <= _LARGEST_HALF else "float32"
    if low < 0 or high > 1:
        return "float32"
    return "uint8" if image.array.dtype.kind in "ub" and image.array.dtype.itemsize == 1 else "uint16"


def wider(first: str, second: str) -> str:
    """Return the type that holds the values of both.

    >>> wider("uint16", "uint8"), wider("float32", "float16")
    ('uint16', 'float32')
    """
    return max(first, second, key=_TYPES.index)


def encode(x: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """Round the values of an image to a type."""
    if kind in _FULL:
        return np.rint(x * _FULL[kind]).astype(kind)
    return x.astype(kind)


def widen(values: NDArray[Any], kind: str) -> NDArray[Any]:
    """Return stored values in a wider type, to which :func:`decode` gives the same numbers.

    >>> values = np.arange(256, dtype=np.uint8)
    >>> all((decode(widen(values, kind)) == decode(values)).all() for kind in ("uint8", "uint16", "float32"))
    True
    """
    if values.dtype == kind:
        return values
    if kind == "uint16":
        return values.astype(np.uint16) * np.uint16(257)
    return decode(values)


def decode(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return stored values as a new array of float32."""
    full = _FULL.get(values.dtype.name)
    x = values.astype(np.float32)
    # A division is rounded correctly, so 2 and 514 of 65,535 are the same float as 2 of 255.
    return x if full is None else np.divide(x, full, out=x)
