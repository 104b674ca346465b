"""The biases of boxes, remembered while their table stays as it is.

Axes: t tokens of a box, k keys of a box, m heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medzoo.nn.boxes import BoxType

__all__ = ["BiasMemo"]


class BiasMemo:
    """The biases of the boxes met so far, for one table.

    It holds a copy of the table, and what it remembers counts only while the table still equals it, in whatever way
    the table was changed. Each bias is made from the copy, so a thread that changes the table spoils nothing. Copies
    and pickles of a model start with an empty memo.
    """

    # 16 MB for each block, three times what an input of 96³ needs; reached by inputs of many sizes.
    LIMIT = 2**22

    def __init__(self) -> None:
        self._known: tuple[Tensor, dict[BoxType, Tensor]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (BiasMemo, ())

    def recall(self, table: Tensor) -> tuple[Tensor, dict[BoxType, Tensor]]:
        """Return the copy of ``table`` and the biases made from it."""
        known = self._known
        if known is None or known[0].dtype != table.dtype or not torch.equal(known[0], table):
            known = (table.detach().clone(), {})
        elif sum(bias.numel() for bias in known[1].values()) > self.LIMIT:
            known = (known[0], {})
        self._known = known
        return known
