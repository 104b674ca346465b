"""``split_column``: the groups of a column; many numbers, such as ages, are cut into bands, and rare values are one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from medzoo.data.identity import names_patients
from medzoo.data.texts import StrArray
from medzoo.errors import ConfigError, DataError, did_you_mean
from medzoo.evaluation.columns import patients_of_each, without_blanks
from medzoo.evaluation.estimate import LEAST_PATIENTS
from medzoo.evaluation.scores import Scores

__all__ = ["NOT_KNOWN", "Bands", "SplitColumn", "bands", "split_column"]

NOT_KNOWN = "not known"
"""The group of the rows where a column is blank."""

_MANY = 12  # different numbers above which they are cut
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?", re.ASCII)  # 007 is a code
_DICOM_AGE = re.compile(r"([0-9]{3})([DWMY])", re.ASCII)
_PER_YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}
_AGE_COLUMN = re.compile(r"(?<![A-Za-z])[Aa]ge(?![a-z])|(?<=[a-z])Age(?![a-z])|(?<![A-Z])AGE(?![A-Z])")
_OLDEST = 120


@dataclass(frozen=True, eq=False)
class Bands:
    """The values of a column, cut into bands if they are many numbers.

    Attributes:
        values: the group of each row.
        order: all groups, in order.
        measured: whether the values are ages or other measurements, which may differ for most patients and yet do not
            name them once they are cut.
        note: how they were cut; empty if they were not.
    """

    values: StrArray
    order: tuple[str, ...]
    measured: bool = False
    note: str = ""


def bands(column: str, values: StrArray, clusters: NDArray[np.int64]) -> Bands:
    """Cut a column of many numbers: into decades if they are ages, or whole numbers as ages are, else into quartiles.

    Args:
        column: its name.
        values: of each row; none is blank. An age may be written as in DICOM, such as ``064Y``.
        clusters: the patient of each row.

    >>> ages = np.array([str(age) for age in range(18, 78)])
    >>> bands("age", ages, np.arange(60)).order
    ('10-19', '20-29', '30-39', '40-49', '50-59', '60-69', '70-79')
    """
    texts, at = np.unique(values, return_inverse=True)
    found = [_number(text) for text in texts.tolist()]
    numbers = np.array([number for number in found if number is not None])
    if not len(texts) or len(numbers) < len(texts):
        return Bands(values, tuple(texts.tolist()))
    if len(texts) <= _MANY:
        return Bands(values, tuple(texts[np.argsort(numbers, kind="stable")].tolist()))
    whole = bool((numbers == np.floor(numbers)).all())
    age = bool(_AGE_COLUMN.search(column)) or any(_DICOM_AGE.fullmatch(text) for text in texts.tolist())
    like_age = whole and numbers.min() >= 0 and np.ptp(numbers) >= 30 and numbers.max() <= _OLDEST
    # Whole numbers that differ for all patients may number them.
    shared = len(np.unique(np.stack([at.astype(np.int64), clusters]), axis=1).T) > len(texts)
    if age or like_age:
        edges, names = np.arange(0.0, _OLDEST + 1, 10), ["under 0"]
        names += [f"{low:.0f}-{low + 9:.0f}" for low in edges[:-1]] + [f"{_OLDEST} and over"]
        band = np.searchsorted(edges, numbers, side="right")
        how = "bands of ten" + ("" if age else "; if they are codes, not amounts, put a letter before each")
    else:
        edges, names = _quartiles(numbers[at], whole)
        band = np.searchsorted(edges, numbers, side="left")
        how = "quarters of the rows"
    order = tuple(names[i] for i in sorted(set(band.tolist())))
    note = f"the {len(texts):,} different numbers of {column} were cut into {how}"
    return Bands(np.array(names)[band][at], order, measured=age or not whole or bool(like_age and shared), note=note)


def _number(text: str) -> float | None:
    """Return a number, or an age in years; ``None`` for other text.

    >>> _number("064Y"), _number("018M"), _number("-1.5"), _number("007"), _number("nan")
    (64.0, 1.5, -1.5, None, None)
    """
    if age := _DICOM_AGE.fullmatch(text):
        return int(age[1]) / _PER_YEAR[age[2]]
    return float(text) if _NUMBER.fullmatch(text) else None


def _quartiles(numbers: NDArray[np.float64], whole: bool) -> tuple[NDArray[np.float64], list[str]]:
    """Return the upper edges of the bands but the last, rounded, and the names of all bands."""
    edges = np.quantile(numbers, [0.25, 0.5, 0.75])
    rounded = np.unique([round(edge) if whole else float(f"{edge:.3g}") for edge in edges]).astype(float)
    texts = [f"{edge:.0f}" if whole else f"{edge:g}" for edge in rounded]
    between = [f"over {low} to {high}" for low, high in pairwise(texts)]
    return rounded, [f"up to {texts[0]}", *between, f"over {texts[-1]}"]


@dataclass(frozen=True, eq=False)
class SplitColumn:
    """The groups of a column.

    Attributes:
        values: the group of each row.
        order: all groups, in order.
        other: the group of the values of under 10 patients; empty for none.
        notes: how the groups were made.
    """

    values: StrArray
    order: tuple[str, ...]
    other: str
    notes: tuple[str, ...]

    @property
    def plain(self) -> tuple[str, ...]:
        """The groups that are values, or bands of them."""
        return tuple(value for value in self.order if value not in (self.other, NOT_KNOWN))


def split_column(scores: Scores, column: str) -> SplitColumn:
    """Return the groups of a column of scores.

    Values of under 10 patients are one group, which does not name them: a rare value may be an id. Bands are named.

    Raises:
        ConfigError: there is no such column, or it names patients.
        DataError: there are no rows.
    """
    if column not in scores.groups:
        there = f"There are {', '.join(scores.groups)}." if scores.groups else f"{scores.source} has no other columns."
        raise ConfigError(f"group_by: there is no column {column!r}.{did_you_mean(column, scores.groups)} {there}")
    if not len(scores):
        raise DataError(f"group_by: expected rows, got none in {scores.source}.")
    given, clusters = without_blanks(np.asarray(scores.groups[column], np.str_)), scores.clusters
    stated = given != ""
    cut = bands(column, given[stated], clusters[stated])
    if names_patients(given, scores.patients) and not cut.measured:
        whose = f"{len(scores):,} rows" if scores.patients is None else f"{len(np.unique(scores.patients)):,} patients"
        raise ConfigError(
            f"group_by: {column!r} has {len(np.unique(given)):,} different values in {whose}, so it may name them. "
            "Choose a column of few values, such as site, sex or view."
        )
    values, order, other, notes = cut.values.astype(object), cut.order, "", (cut.note,) if cut.note else ()
    if not cut.note and order:
        known, codes = np.unique(cut.values, return_inverse=True)
        rare = patients_of_each(codes, clusters[stated], len(known)) < LEAST_PATIENTS
        order = tuple(value for value in order if value not in set(known[rare].tolist()))
        if rare.any():
            other = f"other ({rare.sum():,} {'value' if rare.sum() == 1 else 'values'})"
            values[rare[codes]] = other
            notes = (f"values of {column} of under {LEAST_PATIENTS} patients are one group, without their names",)
    found = np.full(len(scores), NOT_KNOWN, object)
    found[stated] = values
    return SplitColumn(found.astype(np.str_), (*order, *([other] if other else []), NOT_KNOWN), other, notes)
