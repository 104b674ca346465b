"""Table 1 of a paper: patients, labels and other columns in each part, without a cell that could name a person.

A value of a column that 1 to 9 patients of a part have has no count, and neither have others from which it would
follow: those of :mod:`medzoo.evaluation.suppression`, as in the groups of a report. A value that is hidden in a part is
hidden in the column of all parts too. Labels have counts, as the results state them as well.

Axes: v values, p parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medzoo.data.table import Table
from medzoo.evaluation.columns import few_values, kind_of_column, numbers, patients_of_each, without_blanks
from medzoo.evaluation.estimate import LEAST_PATIENTS
from medzoo.evaluation.flow import PART_NAMES, Characteristics
from medzoo.evaluation.run_record import OWN_PREFIX, PART, RunRecord
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.suppression import hide_small

__all__ = ["HIDDEN", "SMALL", "characteristics_of_run", "characteristics_of_scores"]

SMALL, HIDDEN, NONE = f"<{LEAST_PATIENTS}", "not shown", "–"
_ALL = "all"
_NEGATIVE, _POSITIVE, _UNKNOWN = range(3)

IntArray = NDArray[np.int64]
Line = tuple[str, tuple[str, ...]]


def characteristics_of_run(record: RunRecord) -> Characteristics:
    """Return the characteristics of the rows with a known label of each part of a run, and of all of these.

    Raises:
        DataError: the table of the run cannot be read.
    """
    table = record.read_rows()
    known = ~np.isnan(table.targets).all(1)
    parts = {name: np.flatnonzero((table.groups[PART] == name) & known) for name in PART_NAMES}
    parts = {name: rows for name, rows in parts.items() if len(rows)}
    return _characteristics(table, parts)


def characteristics_of_scores(scores: Scores | Table) -> Characteristics:
    """Return the characteristics of scores, or of a table, in one column ``"evaluated"``: rows with a known label."""
    return _characteristics(scores, {"evaluated": np.flatnonzero(~np.isnan(scores.targets).all(1))})


def _characteristics(data: Table | Scores, parts: Mapping[str, IntArray]) -> Characteristics:
    """Return the characteristics of parts that do not overlap; with several, their union is the last column."""
    found = _Parts(data, parts)
    notes = [
        f"{SMALL}: fewer than {LEAST_PATIENTS} patients; {HIDDEN}: such a cell would follow from it"
        if data.patients is not None
        else f"no patients are known: each row counts as one; {SMALL}: fewer than {LEAST_PATIENTS} rows"
    ]
    lines = [*found.sizes(), *found.labels()]
    who = None if data.patients is None else found.clusters[found.used]
    for name, values in data.groups.items():
        if name.startswith(OWN_PREFIX) or not any(without_blanks(values[found.used]) != ""):
            continue
        kind = kind_of_column(values[found.used], who)
        if kind == "few":
            lines += found.few(name, values)
        elif kind == "numbers":
            lines += found.numbers(name, values)
        elif kind == "many":
            notes.append(f"column {name!r} has many values and is not shown")
    return Characteristics(tuple(found.rows), tuple(lines), tuple(notes))


class _Parts:
    """The parts of some data, each with its lines of the table."""

    def __init__(self, data: Table | Scores, parts: Mapping[str, IntArray]) -> None:
        self.data, self.summed = data, len(parts) > 1
        self.used = np.sort(np.concatenate([np.zeros(0, np.int64), *parts.values()]))
        self.rows = {**parts, _ALL: self.used} if self.summed else dict(parts)
        patients = np.arange(len(data)) if data.patients is None else data.patients
        self.clusters = np.unique(patients, return_inverse=True)[1].astype(np.int64)

    def sizes(self) -> list[Line]:
        """Return rows, patients, and images of each patient."""
        lines = [("rows", tuple(f"{len(rows):,}" for rows in self.rows.values()))]
        if self.data.patients is None:
            return lines
        images = [np.unique(self.clusters[rows], return_counts=True)[1] for rows in self.rows.values()]
        each = tuple(f"{np.median(n):g} ({n.min():,} to {n.max():,})" if len(n) else NONE for n in images)
        return [
            *lines, ("patients", tuple(f"{len(n):,}" for n in images)), ("images per patient, median (range)", each),
        ]  # fmt: skip

    def labels(self) -> list[Line]:
        """Return the positives of each label, and for how many rows a label is not known."""
        targets, names = self.data.targets, self.data.labels
        if self.data.task == "multiclass":
            codes = np.where(np.isnan(targets).any(1), len(names), np.nan_to_num(targets).argmax(1))
            return self._labels([*names, "label not known"], codes.astype(np.int64))
        lines = []
        for i, name in enumerate(names):
            column = targets[:, i]
            codes = np.where(np.isnan(column), _UNKNOWN, np.where(column == 1, _POSITIVE, _NEGATIVE)).astype(np.int64)
            lines += self._labels(["", name, f"{name} not known"], codes)
        return lines

    def _labels(self, names: Sequence[str], codes: IntArray) -> list[Line]:
        """Return a line of rows and share for each code; the last, of which there may be none, is that of the unknown.

        Args:
            names: of the codes; one that is empty has no line.
            codes: of each row of the data.
        """
        rows = np.stack([np.bincount(codes[at], minlength=len(names)) for at in self.rows.values()], 1)
        all_, last = rows.sum(0), len(names) - 1
        of = {v: all_ if v == last else all_ - rows[last] for v in range(len(names))}
        return [
            (f"{name}, n (%)", tuple(_share(n, total) for n, total in zip(rows[v], of[v], strict=True)))
            for v, name in enumerate(names) if name and (v != last or rows[v].any())
        ]  # fmt: skip

    def few(self, name: str, values: NDArray[np.str_]) -> list[Line]:
        """Return how often each value is."""
        found, codes = few_values(values[self.used], self.clusters[self.used]), np.full(len(values), -1)
        codes[self.used] = found.codes
        return self._counts([f"{name}: {value}" for value in found.names], codes, first=found.others)

    def numbers(self, name: str, values: NDArray[np.str_]) -> list[Line]:
        """Return the median and the interquartile range, and how often there is no number."""
        column, texts = numbers(values), []
        for rows in self.rows.values():
            known = rows[~np.isnan(column[rows])]
            if len(np.unique(self.clusters[known])) < LEAST_PATIENTS:
                texts.append(SMALL if len(known) else NONE)
            else:
                low, middle, high = np.percentile(column[known], [25, 50, 75])
                texts.append(f"{middle:.4g} ({low:.4g} to {high:.4g})")
        absent = np.isnan(column).astype(np.int64)
        lines = [(f"{name}, median (IQR)", tuple(texts))]
        return lines + self._counts(["", f"{name} not stated"], absent) if absent[self.used].any() else lines

    def _counts(self, names: Sequence[str], codes: IntArray, first: Sequence[int] = ()) -> list[Line]:
        """Return a line of rows and share for each code, without the counts that are not shown.

        Args:
            names: of the codes; one that is empty has no line.
            codes: of each row of the data; -1 for rows in no part.
            first: codes whose counts are hidden before others.
        """
        columns, hidden = [], np.zeros(len(names), bool)
        for part, at in self.rows.items():
            rows = np.bincount(codes[at], minlength=len(names))
            patients = patients_of_each(codes[at], self.clusters[at], len(names))
            small, also = hide_small(patients, rows, names, first=first)
            if self.summed and part == _ALL:
                # What is hidden here as well leaves the sums of the parts as they are.
                small, also = small & hidden, hidden & ~small
            hidden |= small | also
            columns.append([
                SMALL if small[v] else HIDDEN if also[v] else _share(rows[v], rows.sum()) for v in range(len(names))
            ])  # fmt: skip
        cells = zip(*columns, strict=True)
        return [(f"{name}, n (%)", texts) for name, texts in zip(names, cells, strict=True) if name]


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if total else f"{count:,}"
