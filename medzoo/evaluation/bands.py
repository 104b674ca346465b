"""``bands``: numbers of a column, such as ages, as a few groups."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from medzoo.data.texts import StrArray

__all__ = ["Bands", "bands"]

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
