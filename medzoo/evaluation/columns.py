"""What a column beside the labels can be summarised by: how often each of few values, or the middle of its numbers.

Axes: n rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medzoo.data.identity import names_patients
from medzoo.data.texts import StrArray
from medzoo.evaluation.estimate import LEAST_PATIENTS

__all__ = [
    "FEW", "OTHER", "UNSTATED_VALUE", "FewValues", "few_values", "kind_of_column", "numbers", "patients_of_each",
    "without_blanks",
]  # fmt: skip

FEW = 10
"""Values up to which a column is summarised by how often each of them is."""
OTHER, UNSTATED_VALUE = "other", "not stated"
_LEAST_NUMBERS = 0.9
_LONGEST = 40
_PARTS = {"train", "training", "valid", "val", "validation", "dev", "test", "testing"}
_DICOM_AGE = re.compile(r"(\d{1,3})([DWMY])")
_PER_YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}


def kind_of_column(
    values: StrArray, patients: NDArray[Any] | None
) -> Literal["few", "numbers", "many", "names", "parts"]:
    """Return how a column can be summarised.

    Args:
        values: the column, as text.
        patients: of the rows, as text or numbers, if they are known.

    Returns:
        ``"names"`` for a column that comes near to naming patients and is not shown; ``"parts"`` for one of train,
        valid and test, which states nothing about the data; ``"few"`` for at most :data:`FEW` values; ``"numbers"``
        where 90 % of the values of any other column are numbers; else ``"many"``.
    """
    if names_patients(values, patients):
        return "names"
    found = np.setdiff1d(np.char.lower(without_blanks(values)), [""])
    if len(found) and set(found.tolist()) <= _PARTS:
        return "parts"
    if len(found) <= FEW:
        return "few"
    return "numbers" if np.mean(~np.isnan(numbers(values))) >= _LEAST_NUMBERS else "many"


def without_blanks(values: StrArray) -> StrArray:
    """Return a column without space around its values, and empty where it says nothing: blank, or ``nan``.

    >>> without_blanks(np.array([" F", "NaN", " "])).tolist()
    ['F', '', '']
    """
    texts = np.char.strip(values)
    return np.where(np.char.lower(texts) == "nan", "", texts)


def numbers(values: StrArray) -> NDArray[np.float64]:
    """Return a column as numbers ``n``; NaN for what is none. Ages as DICOM writes them become years.

    >>> numbers(np.array(["58", "058Y", "006M", "", "nan", "old"]))
    array([58. , 58. ,  0.5,  nan,  nan,  nan])
    """
    known, at = np.unique(values, return_inverse=True)
    return np.array([_number(str(value).strip()) for value in known], dtype=np.float64)[at]


def _number(text: str) -> float:
    age = _DICOM_AGE.fullmatch(text)
    if age:
        return float(age[1]) / _PER_YEAR[age[2]]
    try:
        number = float(text)
    except ValueError:
        return float("nan")
    return number if np.isfinite(number) else float("nan")


@dataclass(frozen=True, eq=False)
class FewValues:
    """A column of few values.

    Attributes:
        names: the values, the most frequent first, then :data:`OTHER` and :data:`UNSTATED_VALUE`, if there are such.
        codes: ``n``, the place of each row's value among them.
        others: the place of :data:`OTHER`, if it is there.
    """

    names: tuple[str, ...]
    codes: NDArray[np.int64]
    others: tuple[int, ...] = ()


def few_values(values: StrArray, clusters: NDArray[np.int64]) -> FewValues:
    """Return a column as one of few values; those of under 10 patients are one, as a rare value may name a person.

    Args:
        values: the column.
        clusters: the patient of each row as a number.

    >>> found = few_values(np.array(["F"] * 20 + ["M"] * 30 + ["X", ""]), np.arange(52))
    >>> found.names, np.bincount(found.codes).tolist()
    (('M', 'F', 'other', 'not stated'), [30, 20, 1, 1])
    """
    known, codes = np.unique(without_blanks(values), return_inverse=True)
    rows = np.bincount(codes, minlength=len(known))
    patients = patients_of_each(codes, clusters, len(known))
    listed = [i for i in np.argsort(-rows, kind="stable").tolist() if known[i] != "" and patients[i] >= LEAST_PATIENTS]
    rare = [i for i in range(len(known)) if known[i] != "" and i not in listed]
    blank = [i for i in range(len(known)) if known[i] == ""]
    names = [_short(str(known[i])) for i in listed]
    place = np.zeros(len(known), np.int64)
    place[listed] = np.arange(len(listed))
    for members, name in ((rare, OTHER), (blank, UNSTATED_VALUE)):
        if members:
            place[members] = len(names)
            names.append(name)
    return FewValues(tuple(names), place[codes], (len(listed),) if rare else ())


def patients_of_each(codes: NDArray[np.int64], clusters: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the number of patients with each code from 0 to ``count - 1``; negative codes are in none."""
    used, most = codes >= 0, int(clusters.max(initial=-1)) + 1
    pairs = np.unique(codes[used].astype(np.int64) * most + clusters[used])
    return np.bincount(pairs // max(1, most), minlength=count)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
