"""The biases of boxes, remembered while their table stays as it is.

Axes: t tokens of a box, k keys of a box, m heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from medzoo.kernels.boxes import BoxType

__all__ = ["BiasMemo"]


class BiasMemo:
    """The biases of the boxes met so far, for one table.

    It holds a copy of the table, and each bias is made from the copy, so a thread that changes the table spoils
    nothing. On a CPU what it remembers counts only while the table equals the copy, in whatever way the table was
    changed. On a GPU that comparison would wait for all work in flight; there it counts while the table is the same
    tensor and PyTorch counted no write to it, which leaves out writing through ``.data``. Copies and pickles of a model
    start with an empty memo.
    """

    # 16 MB for each block, three times what an input of 96³ needs; reached by inputs of many sizes.
    LIMIT = 2**22

    def __init__(self) -> None:
        self._known: _Known | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (BiasMemo, ())

    def recall(self, table: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, dict[BoxType, Tensor]]:
        """Return a copy of ``table`` in ``dtype``, its own by default, and the biases made from it."""
        dtype, known = dtype or table.dtype, self._known
        if known is None or known.copy.dtype != dtype or not known.holds(table):
            known = _Known(table.detach().to(dtype, copy=True), {}, table, _written(table))
        elif sum(bias.numel() for bias in list(known.biases.values())) > self.LIMIT:  # another thread may add to it
            known = known._replace(biases={})
        self._known = known
        return known.copy, known.biases


class _Known(NamedTuple):
    """A copy of a table, the biases made from it, and the table itself, with its address and writes at that time."""

    copy: Tensor
    biases: dict[BoxType, Tensor]
    table: Tensor
    written: tuple[int, int] | None

    def holds(self, table: Tensor) -> bool:
        """Whether the biases are still those of ``table``."""
        if table.is_cuda or self.copy.is_cuda:
            return self.table is table and self.written is not None and self.written == _written(table)
        return self.copy.dtype == table.dtype and torch.equal(self.copy, table)


def _written(table: Tensor) -> tuple[int, int] | None:
    """Return what changes when a table is moved or written to; ``None`` where PyTorch counts no writes."""
    return None if table.is_inference() else (table.data_ptr(), table._version)
