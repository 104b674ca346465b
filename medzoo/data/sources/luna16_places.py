"""The CSV files of LUNA16: places in scans, with a value each. They have up to 755,000 rows.

Axes: n rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medzoo.data.faults import Faults
from medzoo.data.table_csv import read_csv
from medzoo.data.table_points import to_ras
from medzoo.data.texts import StrArray

__all__ = ["Places", "read_places"]


@dataclass(frozen=True, eq=False)
class Places:
    """Rows of one of the files.

    Attributes:
        names: the distinct seriesuids.
        series: ``n``, the index of each row's seriesuid.
        points: ``n 3`` in mm, RAS.
        values: ``n``, the last column.
        lines: ``n``, the line of each row in the file.
        faults: rows without a scan or with what is no number; they have the series -1 or NaN.
    """

    names: StrArray
    series: NDArray[np.int64]
    points: NDArray[np.float64]
    values: NDArray[np.float64]
    lines: NDArray[np.int64]
    faults: Faults

    def __len__(self) -> int:
        return len(self.series)


def read_places(path: Path, value: str) -> Places:
    """Read a file with the columns ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` and ``value``, in LPS mm.

    Raises:
        DataError: a file that is no such CSV, or rows with too many or too few fields.
    """
    points = ("coordX", "coordY", "coordZ")
    names, series, numbers, lines = _columns(path, ("seriesuid", *points, value))
    faults = Faults(str(path), "line")
    faults.lines = lines  # type: ignore[assignment]  # an array: a list would have an object for each row
    blank = np.flatnonzero(series < 0).tolist()
    faults.add_rows("rows without a seriesuid", ((row, "") for row in blank), "Give each row its scan.")
    wrong = np.flatnonzero(~np.isfinite(numbers).all(1)).tolist()
    faults.add_rows(
        f"rows in which {', '.join(points)} and {value} are not finite numbers", ((row, "") for row in wrong),
        "Copy the file again from its source.",
    )  # fmt: skip
    return Places(names, series, to_ras(numbers[:, :3], "LPS"), numbers[:, 3], lines, faults)


def _columns(
    path: Path, wanted: Sequence[str]
) -> tuple[StrArray, NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return the distinct scans, the scan of each row, the numbers ``n 4``, and the lines of the rows."""
    quick = _parse(path, wanted)
    if quick is None:  # takes ten times as long, and reports what is wrong by line
        columns = read_csv(path, wanted=wanted)
        columns.require(columns=wanted)
        columns.faults.check()
        distinct, codes = np.unique(np.array(columns.values["seriesuid"], np.str_), return_inverse=True)
        numbers = np.array([[_number(cell) for cell in columns.values[name]] for name in wanted[1:]]).T
        lines = np.array(columns.faults.lines, np.int64)
    else:
        distinct, codes, numbers = quick
        lines = np.arange(2, len(codes) + 2)
    names, place = np.unique(np.char.strip(distinct), return_inverse=True)
    return names, np.where(names == "", -1, np.arange(len(names)))[place[codes]], numbers, lines


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _parse(
    path: Path, wanted: Sequence[str]
) -> tuple[StrArray, NDArray[np.int64], NDArray[np.float64]] | None:  # fmt: skip
    """Return the scans, the scan of each row and the numbers; ``None`` for a file with anything unusual in it."""
    from pyarrow import ArrowException, csv, float64, string

    kinds = {name: float64() if i else string() for i, name in enumerate(wanted)}
    try:
        found = csv.read_csv(
            path, csv.ReadOptions(use_threads=False), csv.ParseOptions(ignore_empty_lines=False),
            csv.ConvertOptions(column_types=kinds, include_columns=list(wanted)),
        ).combine_chunks()  # fmt: skip
    except (ArrowException, OSError, UnicodeDecodeError):
        return None
    if any(column.null_count for column in found.columns):  # also of a blank line
        return None
    series = found["seriesuid"].combine_chunks().dictionary_encode()
    numbers = np.stack([found[name].to_numpy() for name in wanted[1:]], axis=1)
    return np.array(series.dictionary.to_pylist(), np.str_), series.indices.to_numpy().astype(np.int64), numbers
