"""Rows of a file of scores joined with those of a table.

Axes: n rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from medzoo.data.faults import Faults, join_some, quote
from medzoo.data.table import Table
from medzoo.errors import DataError

__all__ = ["join_table"]

Rows = NDArray[np.int64]


def join_table(
    ids: Sequence[str] | NDArray[np.str_], table: Table, partial: bool, faults: Faults
) -> tuple[Rows, Rows, tuple[str, ...]]:
    """Return rows of the table, the rows of the file with their scores, and notes.

    Rows are joined by the id as it is given, else by the path of the image, else by the name of its file, which has to
    be unique on both sides: by the first of these that finds the most.

    Args:
        ids: of the file, each of them unique.
        table: the table.
        partial: accept rows without a partner.
        faults: of the file, for messages.

    Raises:
        DataError: no row has a partner, or some have none and ``partial`` is not given.
    """
    given, known = [str(one) for one in ids], [str(one) for one in table.ids]
    paths = [] if table.paths is None else [str(path) for path in table.paths]
    ways: list[tuple[str, list[str], list[str]]] = [("id", given, known)]
    if paths:
        ways.append(("path", [_slashes(one) for one in given], [_slashes(one) for one in paths]))
    names = _both(_file_name, given, [path.split("\n")[0] for path in paths] if paths else known)
    unique = all(len(set(side)) == len(side) for side in names)
    if unique:
        ways.append(("file name", *names))
    joined = {way: _join(*sides) for way, *sides in ways}
    way = max(joined, key=lambda one: len(joined[one][0]))
    rows, at = joined[way]
    if not len(rows):
        hint = "" if unique else " Their file names are not unique, so that they cannot be joined by them."
        raise DataError(
            f"{faults.source}: no score has the id of a row of {table.source}: there they are such as "
            f"{quote(known[0]) if known else 'none'}, here such as {quote(given[0])}.{hint} Give image= with the "
            "column of the same ids."
        )
    left, without = len(given) - len(at), len(known) - len(rows)
    notes: tuple[str, ...] = (f"scores are joined with {table.source} by {way}",)
    if left or without:
        first, second = f"{without:,} of {len(known):,} rows", f"{left:,} of {len(given):,} scores"
        text = f"{first} of the table have no score, and {second} no row"
        if not partial:
            absent = np.setdiff1d(np.arange(len(known)), rows)[:3]
            extra = np.setdiff1d(np.arange(len(given)), at)[:3]
            examples = [f"row {quote(known[i])}" for i in absent] + [
                f"{faults.word} {faults.lines[i]} ({quote(given[i])})" for i in extra
            ]
            raise DataError(
                f"{faults.source}: {text}, joined by {way}, such as {join_some(examples)}. Correct the ids, give the "
                "table of these rows alone, or partial=True to evaluate those that have both."
            )
        notes += (text,)
    return rows, at, notes


def _join(given: Sequence[str], known: Sequence[str]) -> tuple[Rows, Rows]:
    """Return the rows of ``known`` that are given, and where."""
    places = {one: i for i, one in enumerate(given)}
    pairs = [(row, places[one]) for row, one in enumerate(known) if one in places]
    rows = np.array(pairs, np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _both(how: Callable[[str], str], *sides: Sequence[str]) -> tuple[list[str], list[str]]:
    first, second = ([how(one) for one in side] for side in sides)
    return first, second


def _slashes(path: str) -> str:
    return path.replace("\\", "/")


def _file_name(path: str) -> str:
    r"""Return the last part of a path, of Windows too.

    >>> _file_name(r"C:\data\a.png"), _file_name("data/b.nii.gz")
    ('a.png', 'b.nii.gz')
    """
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
