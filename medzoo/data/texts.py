"""``Texts``: many strings in two arrays, for the paths of a table.

An array of NumPy strings takes four bytes a character of the longest in every row, which for the files of one long
series among radiographs is more than the memory there is. A list of strings has a reference count in each, so that
reading it in a forked worker copies its pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["StrArray", "Texts"]

StrArray = NDArray[np.str_]
"""Text, one for each row."""


class Texts:
    """Strings that do not change; indexed as an array, and converted to one by :func:`numpy.asarray`.

    >>> names = Texts(["a.png", "b.png", "c.png"])
    >>> names[-1], list(names[np.array([True, False, True])])
    ('c.png', ['a.png', 'c.png'])
    """

    def __init__(self, values: Iterable[str]) -> None:
        encoded = [value.encode() for value in values]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        return (self._text(row) for row in range(len(self)))

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> str: ...
    @overload
    def __getitem__(self, key: slice | NDArray[Any]) -> Texts: ...
    def __getitem__(self, key: Any) -> str | Texts:
        rows = np.arange(len(self))[key]
        return Texts(map(self._text, rows)) if isinstance(rows, np.ndarray) else self._text(int(rows))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(list(self), dtype=dtype or np.str_)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self._bytes.nbytes + self._ends.nbytes

    def _text(self, row: int) -> str:
        start = self._ends[row - 1] if row else 0
        return self._bytes[start : self._ends[row]].tobytes().decode()
