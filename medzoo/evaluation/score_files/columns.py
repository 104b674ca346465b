"""Numbers and targets of a file of scores.

Axes: n rows, k columns of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.data.columns import Columns
from medzoo.data.faults import Faults, quote
from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.score_files.layout import Layout, Scale

__all__ = ["SUM_TOLERANCE", "Given", "Truth", "normalised_all", "read_binary", "read_given", "read_truth"]

FloatArray = NDArray[np.float64]

SUM_TOLERANCE = 1e-3
"""By how much the sum of the probabilities of all classes may differ from 1, in a file with few digits."""

_ZERO_ONE = {"0": 0.0, "1": 1.0, "": np.nan}
_BLANK = frozenset({"", "nan", "na", "n/a", "<na>", "null", "none"})


@dataclass(frozen=True)
class Given:
    """Columns of scores.

    Attributes:
        names: of the labels in the names of the k columns; ``""`` for none.
        logits: ``n k``; ``None`` if not given.
        probabilities: likewise. One of both is given.
        notes: how they were read.
    """

    names: tuple[str, ...]
    logits: FloatArray | None
    probabilities: FloatArray | None
    notes: tuple[str, ...] = ()

    def take(self, columns: Sequence[int]) -> Given:
        """Return some of the columns."""
        at = list(columns)
        return replace(
            self, names=tuple(self.names[i] for i in at),
            logits=None if self.logits is None else self.logits[:, at],
            probabilities=None if self.probabilities is None else self.probabilities[:, at],
        )  # fmt: skip

    def sums_to_one(self) -> NDArray[np.bool_] | None:
        """Whether the probabilities of each row sum to 1, ``n``; ``None`` where only logits are known."""
        if self.probabilities is None:
            return None
        return np.abs(self.probabilities.sum(1) - 1) <= SUM_TOLERANCE

    def pair(self, positive: int) -> Given:
        """Return the scores of the positive one of two classes that exclude each other, ``n 1``."""
        return Given(
            (self.names[positive],),
            None if self.logits is None else (self.logits[:, positive] - self.logits[:, 1 - positive])[:, None],
            None if self.probabilities is None else self.probabilities[:, [positive]],
            self.notes,
        )


@dataclass(frozen=True)
class Truth:
    """Targets in a file of scores.

    Attributes:
        columns: ``n`` of 0, 1 and NaN by the name in :class:`Given`.
        texts: of the only column of targets, as :func:`normalised`; ``None`` for none.
        column: the name of the latter.
    """

    columns: dict[str, NDArray[np.float32]]
    texts: list[str] | None
    column: str = ""


def normalised(text: str) -> str:
    """Return a cell with 1.0 and True as 1, and what stands for no value as blank.

    >>> [normalised(text) for text in ("1.0", "FALSE", "NaN", "2", "Edema")]
    ['1', '0', '', '2', 'Edema']
    """
    low = text.lower()
    if low in _BLANK:
        return ""
    if low in ("true", "false"):
        return "1" if low == "true" else "0"
    return text.removesuffix(".0") if text.removesuffix(".0").isdigit() else text


def normalised_all(cells: Sequence[str]) -> list[str]:
    """Return cells as :func:`normalised`; each distinct one is looked at once."""
    known = {cell: normalised(cell) for cell in set(cells)}
    return [known[cell] for cell in cells]


def read_binary(texts: Sequence[str], what: str, faults: Faults, column: str = "") -> NDArray[np.float32]:
    """Return texts of 0, 1 and blank as ``n`` of 0, 1 and NaN; others are faults."""
    about, bad = f"{column} " if column else "", set(texts) - set(_ZERO_ONE)
    wrong = [(row, f"{about}{quote(text)}") for row, text in enumerate(texts) if text in bad] if bad else []
    faults.add_rows(f"{what} that are not 0 or 1", wrong, "Write 0 or 1, and nothing where it is not known.")
    return np.array([_ZERO_ONE.get(text, np.nan) for text in texts], np.float32)


def read_truth(columns: Columns, layout: Layout, given: Given) -> Truth:
    """Return the targets of the file."""
    found = {
        name: read_binary(normalised_all(columns.values[column]), "targets", columns.faults, column)
        for name, column in layout.targets.items()
        if name in given.names
    }
    texts = None if layout.target is None or found else normalised_all(columns.values[layout.target])
    return Truth(found, texts, layout.target or "")


def read_given(columns: Columns, layout: Layout, scale: Scale, decimal_comma: bool) -> Given:
    """Return the scores of the file.

    Raises:
        ConfigError: the labels have no kind of score in common.
        DataError: it is not known whether they are probabilities.
    """
    faults, names = columns.faults, tuple(layout.scores)
    common = set.intersection(*(set(kinds) for kinds in layout.scores.values()))
    if not common:
        raise ConfigError(
            f"{faults.source}: expected scores of one kind for all labels, found probabilities of some and logits of "
            "others. Give score= with one column for each label."
        )
    commas = False

    def matrix(kind: Any) -> FloatArray:
        nonlocal commas
        found = []
        for kinds in layout.scores.values():
            numbers, comma = _numbers(columns.values[kinds[kind]], kinds[kind], decimal_comma, faults)
            commas |= comma
            found.append(numbers)
        return np.stack(found, 1) if found else np.zeros((len(columns), 0))

    logits = probabilities = None
    notes: tuple[str, ...] = ()
    if scale == "logit":
        logits = matrix(next(k for k in ("logit", "score", "probability") if k in common))
    elif scale == "probability":
        probabilities = matrix(next(k for k in ("probability", "score", "logit") if k in common))
    else:
        logits = matrix("logit") if "logit" in common else None
        probabilities = matrix("probability") if "probability" in common else None
        if logits is None and probabilities is None:
            probabilities = _plain(matrix("score"), layout, faults)
            notes += ("scores are taken as probabilities, as all of them are from 0 to 1",)
    notes += ("a comma in a score is taken as its decimal point",) if commas else ()
    probabilities = None if probabilities is None else _check_range(probabilities, names, faults)
    if (
        probabilities is not None and logits is None and probabilities.size
        and np.isin(probabilities, (0, 1)).all()
    ):  # fmt: skip
        notes += ("every score is 0 or 1: these are calls, which order the rows in two groups alone",)
    return Given(names, logits, probabilities, notes)


def _numbers(cells: Sequence[str], column: str, decimal_comma: bool, faults: Faults) -> tuple[FloatArray, bool]:
    """Return cells as numbers, and whether one had a decimal comma; what is no finite number is a fault."""
    comma = decimal_comma and any("," in cell for cell in cells)
    if comma:
        cells = [cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell for cell in cells]
    try:
        values = np.array(cells, np.float64)
    except ValueError:
        values = np.array([_number(cell) for cell in cells], np.float64)
    bad = np.flatnonzero(~np.isfinite(values)).tolist()
    blank = [row for row in bad if cells[row].lower() in _BLANK]
    faults.add_rows(
        "rows without a score", ((row, column) for row in blank),
        "A model that gives no answer has no score: leave such rows out, and count them.",
    )  # fmt: skip
    rest = sorted(set(bad) - set(blank))
    faults.add_rows(
        "scores that are no finite number", ((row, f"{column} {quote(cells[row])}") for row in rest), "Correct them."
    )  # fmt: skip
    return values, comma


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _plain(values: FloatArray, layout: Layout, faults: Faults) -> FloatArray:
    """Return scores of unknown scale if they can be probabilities.

    Raises:
        DataError: they cannot.
    """
    known = values[np.isfinite(values)]
    if known.size and not (known.min() >= 0 and known.max() <= 1):
        faults.check()
        listed = ", ".join(quote(kinds["score"]) for kinds in list(layout.scores.values())[:3])
        raise DataError(
            f"{faults.source}: expected scores from 0 to 1, found {known.min():g} to {known.max():g} in {listed}. Are "
            "these logits? Give scale='logit'. Divide percentages by 100."
        )
    return values


def _check_range(values: FloatArray, names: Sequence[str], faults: Faults) -> FloatArray:
    """Return probabilities, limited to [0, 1] where rounding exceeded it; others are faults."""
    outside = (values < -1e-6) | (values > 1 + 1e-6)
    faults.add_rows(
        "probabilities that are not from 0 to 1",
        ((int(r), f"{names[c] + ' ' if names[c] else ''}{values[r, c]:g}") for r, c in np.argwhere(outside)),
        "If they are logits, give scale='logit'. Divide percentages by 100.",
    )
    return np.clip(values, 0, 1)
