"""Which counts of a table are not shown: those of 1 to 9 patients, and others from which those would follow.

The tables of a report share one choice, as two tables that hide different cells give both away.

Axes: v cells whose sum is known, k kinds of counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medzoo.evaluation.estimate import LEAST_PATIENTS

__all__ = ["hide_also", "hide_small"]

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def hide_small(
    patients: IntArray, rows: IntArray, names: Sequence[str], *, first: Sequence[int] = ()
) -> tuple[BoolArray, BoolArray]:
    """Return the cells of 1 to 9 patients, ``v``, and those that are hidden as well; 0 is shown.

    Args:
        patients: ``v``, of each cell. Their sum is known.
        rows: ``v``, likewise.
        names: of the cells.
        first: cells that are hidden before others, such as that of several values together.

    >>> small, also = hide_small(np.array([80, 20, 3]), np.array([80, 90, 6]), "ABC")
    >>> small.tolist(), also.tolist()
    ([False, False, True], [False, True, False])
    """
    small = (patients > 0) & (patients < LEAST_PATIENTS)
    return small, hide_also(small, patients, rows, names, first=first) & ~small


def hide_also(
    small: BoolArray, patients: IntArray, rows: IntArray, names: Sequence[str], *, sums: Sequence[IntArray] = (),
    least: int = 1, first: Sequence[int] = (),
) -> BoolArray:  # fmt: skip
    """Return the cells to hide, ``v``, where the small ones have to be: those of the fewest patients are added.

    They are enough when there are two or none, when their sum is 10 or more, and when their sum, with what is known of
    each (a small one has at most 9, another at least 10), leaves more than one solution; else all are hidden.

    Args:
        small: ``v``, the cells to hide in any case.
        patients: ``v``, of each cell.
        rows: ``v``. Of cells of as many patients that of the fewest rows is hidden, then that of the first name.
        names: of the cells.
        sums: each ``v``, the counts whose sums are known; empty for ``patients``.
        least: that a small cell has.
        first: cells that are hidden before others.
    """
    hidden = small.copy()
    order = sorted(
        np.flatnonzero(patients > 0).tolist(), key=lambda i: (i not in first, patients[i], rows[i], names[i])
    )
    for cell in (i for i in order if patients[i] and not small[i]):
        if not small.any() or all(_open(hidden, small, of, least) for of in sums or (patients,)):
            break
        hidden[cell] = True
    return hidden


def _open(hidden: BoolArray, small: BoolArray, of: IntArray, least: int) -> bool:
    """Whether the sum of the hidden cells leaves open what is in each."""
    total, few = int(of[hidden].sum()), int(small.sum())
    others = int(hidden.sum()) - few
    if few + others < 2 or total < LEAST_PATIENTS:
        return False
    if others:
        return total > least * few + LEAST_PATIENTS * others
    return total != (LEAST_PATIENTS - 1) * few
