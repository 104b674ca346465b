"""Table 1 of a paper: patients, labels and other columns in each part, without a cell that could name a person.

A cell of 1 to 9 patients is not shown, and neither is a second one where the first would follow from a total.

Axes: v values, p parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medzoo.data.table import Table
from medzoo.evaluation.columns import few_values, kind_of_column, numbers, patients_of_each
from medzoo.evaluation.estimate import LEAST_PATIENTS
from medzoo.evaluation.flow import PART_NAMES, Characteristics
from medzoo.evaluation.run_record import OWN_PREFIX, PART, RunRecord
from medzoo.evaluation.scores import Scores

__all__ = ["HIDDEN", "SMALL", "characteristics_of_run", "characteristics_of_scores", "hide_cells"]

SMALL, HIDDEN, NONE = f"<{LEAST_PATIENTS}", "not shown", "–"
_NEGATIVE, _POSITIVE, _UNKNOWN = range(3)

IntArray = NDArray[np.int64]
Line = tuple[str, tuple[str, ...]]


def characteristics_of_run(record: RunRecord) -> Characteristics:
    """Return the characteristics of the parts of a run, and of all rows in a part.

    Raises:
        DataError: the table of the run cannot be read.
    """
    table = record.read_rows()
    parts = {name: np.flatnonzero(table.groups[PART] == name) for name in PART_NAMES}
    parts = {name: rows for name, rows in parts.items() if len(rows)}
    return _characteristics(table, parts)


def characteristics_of_scores(scores: Scores | Table) -> Characteristics:
    """Return the characteristics of scores, or of a table, in one column ``"evaluated"``: rows with a known label."""
    return _characteristics(scores, {"evaluated": np.flatnonzero(~np.isnan(scores.targets).all(1))})


def _characteristics(data: Table | Scores, parts: Mapping[str, IntArray]) -> Characteristics:
    """Return the characteristics of parts that do not overlap; with several, their union is the last column."""
    found = _Parts(data, parts)
    notes = [
        f"{SMALL}: fewer than {LEAST_PATIENTS} patients; {HIDDEN}: another such cell would follow from it"
        if data.patients is not None
        else f"no patients are known: each row counts as one; {SMALL}: fewer than {LEAST_PATIENTS} rows"
    ]
    lines = [*found.sizes(), *found.labels()]
    who = None if data.patients is None else found.clusters[found.used]
    for name, values in data.groups.items():
        if name.startswith(OWN_PREFIX) or not any(np.char.strip(values[found.used]) != ""):
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
        self.rows = {**parts, "all": self.used} if self.summed else dict(parts)
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
            return self._counts([*names, "label not known"], codes.astype(np.int64), unknown=len(names))
        lines = []
        for i, name in enumerate(names):
            column = targets[:, i]
            codes = np.where(np.isnan(column), _UNKNOWN, np.where(column == 1, _POSITIVE, _NEGATIVE)).astype(np.int64)
            shown = {_POSITIVE: name, _UNKNOWN: f"{name} not known"}
            lines += self._counts(["", *shown.values()], codes, unknown=_UNKNOWN)
        return lines

    def few(self, name: str, values: NDArray[np.str_]) -> list[Line]:
        """Return how often each value is."""
        found, codes = few_values(values[self.used], self.clusters[self.used]), np.full(len(values), -1)
        codes[self.used] = found.codes
        return self._counts([f"{name}: {value}" for value in found.names], codes)

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
        return [(f"{name}, median (IQR)", tuple(texts)), *self._counts(["", f"{name} not stated"], absent, unknown=1)]

    def _counts(self, names: Sequence[str], codes: IntArray, unknown: int | None = None) -> list[Line]:
        """Return a line of rows and share for each code, with small cells hidden; a code without a name has none.

        Args:
            names: of the codes.
            codes: of each row of the data; -1 for rows in no part.
            unknown: the code that is left out of the share of the others, and whose line is left out if it is in none.
        """
        rows = np.stack([np.bincount(codes[at], minlength=len(names)) for at in self.rows.values()], 1)
        patients = np.stack(
            [patients_of_each(codes[at], self.clusters[at], len(names)) for at in self.rows.values()], 1
        )
        small, hidden = hide_cells(rows, patients, summed=self.summed)
        lines = []
        for v, name in enumerate(names):
            if not name or (v == unknown and not rows[v].any()):
                continue
            texts = []
            for p in range(rows.shape[1]):
                of = rows[:, p].sum() - (rows[unknown, p] if unknown is not None and v != unknown else 0)
                # With the count, the share would give how many are not known.
                secret = unknown is not None and (small | hidden)[unknown, p]
                share = f" ({rows[v, p] / of:.1%})" if of and not secret else ""
                texts.append(SMALL if small[v, p] else HIDDEN if hidden[v, p] else f"{rows[v, p]:,}{share}")
            lines.append((f"{name}, n (%)", tuple(texts)))
        return lines


def hide_cells(rows: IntArray, patients: IntArray, *, summed: bool) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the cells of under 10 patients, and those that are hidden as well so that no small one can be computed.

    The total of each part is known. Where the last part is the sum of the others, so is that of each value.

    Args:
        rows: ``v p``.
        patients: ``v p``.
        summed: whether the last part is the sum of the others.

    >>> small, hidden = hide_cells(np.array([[80], [20], [3]]), np.array([[80], [20], [3]]), summed=False)
    >>> small[:, 0].tolist(), hidden[:, 0].tolist()
    ([False, False, True], [False, True, False])
    """
    small = (patients > 0) & (patients < LEAST_PATIENTS)
    closed = small.copy()
    changed = True
    while changed:
        changed = False
        lines = [(slice(None), p) for p in range(rows.shape[1])]
        lines += [(v, slice(None)) for v in range(rows.shape[0])] if summed else []  # type: ignore[misc]
        for line in lines:
            open_ = ~closed[line] & (rows[line] > 0)
            if closed[line].sum() == 1 and open_.any():
                candidates = np.flatnonzero(open_)
                # Of a value in all parts, the sum is what a reader misses least.
                last = candidates[-1] == rows.shape[1] - 1 and isinstance(line[0], int)
                pick = candidates[-1] if last else candidates[rows[line][candidates].argmin()]
                closed[line][pick] = True
                changed = True
    return small, closed & ~small
