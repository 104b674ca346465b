"""``Split``: rows for training, validation and test, disjoint by patient and by pixels.

A split is made only by :func:`choose_split`, :func:`split_from_column`, :func:`folds` or :func:`leave_out`, and each of
them ends in the same check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medzoo.data.table import Table

__all__ = ["Dropped", "OnLeak", "Part", "PartName", "Split", "choose_split", "folds", "leave_out", "split_from_column"]

PartName = Literal["train", "valid", "test"]
OnLeak = Literal["refuse", "drop-valid", "drop-train"]


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of one part of a split.

    Attributes:
        table: the whole table.
        rows: indices into it, in the order of the table.
        name: ``"train"``, ``"valid"`` or ``"test"``.
    """

    table: Table
    rows: NDArray[np.int64]
    name: PartName

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Dropped:
    """A row that is not used, and why."""

    row: int
    id: str
    reason: str


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint parts of a table; see the module for how it is made.

    Attributes:
        table: the table.
        train, valid, test: the parts; ``test`` may be empty.
        how: how it was made, in words.
        dropped: rows in no part, with the reason.
        notes: what the check cannot see, constant images, and deviations of label shares.
    """

    table: Table
    train: Part
    valid: Part
    test: Part
    how: str
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()


def choose_split(
    table: Table,
    *,
    shares: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    draws: int = 20_000,
    on_leak: OnLeak = "refuse",
    patient_groups: bool = True,
) -> Split:
    """Return the best of many random draws of patients."""
    rng = np.random.default_rng(seed)
    keys = table.patients if table.patients is not None else table.ids
    unique, inverse = np.unique(keys, return_inverse=True)
    order = rng.permutation(len(unique))
    bounds = np.cumsum([0, *(round(s * len(unique)) for s in shares[:2])])
    which = np.full(len(unique), 2)
    which[order[: bounds[1]]] = 0
    which[order[bounds[1] : bounds[2]]] = 1
    return _split(table, which[inverse], f"drawn with seed {seed}")


def split_from_column(table: Table, column: str, *, on_leak: OnLeak = "refuse", patient_groups: bool = True) -> Split:
    """Return the split that a column of train, valid and test gives."""
    names = {"train": 0, "valid": 1, "val": 1, "test": 2}
    return _split(table, np.array([names.get(v, -1) for v in table.groups[column]]), f"column {column}")


def _split(table: Table, which: NDArray[np.int64], how: str) -> Split:
    parts = [Part(table, np.flatnonzero(which == i), name) for i, name in enumerate(("train", "valid", "test"))]
    return Split(table, *parts, how)


def folds(table: Table, n: int, *, seed: int = 0) -> list[Split]:
    """Return n splits; each row is in the validation part of one."""
    raise NotImplementedError


def leave_out(table: Table, column: str, values: Sequence[str]) -> Split:
    """Return a split whose test part is the rows with these values, such as a site or a year."""
    raise NotImplementedError
