"""The CSV files of LUNA16: places in scans, with a value each. They have up to 755,000 rows.

Axes: n rows.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.data.faults import Faults
from medzoo.data.table_csv import read_csv
from medzoo.data.table_points import to_ras
from medzoo.data.texts import StrArray

__all__ = ["Places", "read_places"]

_BOM = b"\xef\xbb\xbf"


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
    from pandas import to_numeric

    points = ["coordX", "coordY", "coordZ"]
    names, series, cells, lines = _cells(path, ["seriesuid", *points, value])
    faults = Faults(str(path), "line")
    faults.lines = lines  # type: ignore[assignment]  # an array: a list would have an object for each row
    numbers = np.stack([np.asarray(to_numeric(cells[name], errors="coerce"), np.float64) for name in cells], axis=1)
    blank = np.flatnonzero(series < 0).tolist()
    faults.add_rows("rows without a seriesuid", ((row, "") for row in blank), "Give each row its scan.")
    wrong = np.flatnonzero(~np.isfinite(numbers).all(1)).tolist()
    faults.add_rows(
        f"rows in which {', '.join(points)} and {value} are not finite numbers", ((row, "") for row in wrong),
        "Copy the file again from its source.",
    )  # fmt: skip
    return Places(names, series, to_ras(numbers[:, :3], "LPS"), numbers[:, 3], lines, faults)


def _cells(path: Path, wanted: Sequence[str]) -> tuple[StrArray, NDArray[np.int64], dict[str, Any], NDArray[np.int64]]:
    """Return the distinct scans, the scan of each row, the other columns, and the lines of the rows."""
    from pandas import read_csv as parse

    data = path.read_bytes().removeprefix(_BOM) if path.is_file() else b""
    if _is_regular(data, wanted):
        frame = parse(
            io.BytesIO(data), dtype={"seriesuid": "category"}, usecols=list(wanted), float_precision="round_trip"
        )
        texts, codes = [str(name).strip() for name in frame["seriesuid"].cat.categories], frame["seriesuid"].cat.codes
        names, place = np.unique(np.array(texts, np.str_), return_inverse=True)
        series = np.append(place, -1)[codes.to_numpy(np.int64)]  # a blank has the code -1
        return names, series, {name: frame[name] for name in wanted[1:]}, np.arange(2, len(frame) + 2)
    columns = read_csv(path, wanted=wanted)  # slower, and reports what is wrong by line
    columns.require(columns=wanted)
    columns.faults.check()
    names, series = np.unique(np.array(columns.values["seriesuid"], np.str_), return_inverse=True)
    series = np.where((names == "")[series], -1, series).astype(np.int64)
    lines = np.array(columns.faults.lines, np.int64)
    return names, series, {name: np.array(columns.values[name], object) for name in wanted[1:]}, lines


def _is_regular(data: bytes, wanted: Sequence[str]) -> bool:
    """Return whether every line has as many fields as the header, none of them quoted, so that no row can shift."""
    header = [name.strip() for name in data.partition(b"\n")[0].decode("latin-1").split(",")]
    if not data.isascii() or b'"' in data or b"\0" in data or not all(header.count(name) == 1 for name in wanted):
        return False
    if header != data.partition(b"\n")[0].decode().rstrip("\r").split(","):
        return False  # with space around a name
    array = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(array == ord("\n"))
    if len(ends) == 0 or ends[-1] != len(array) - 1:
        ends = np.append(ends, len(array))
    fields = np.diff(np.searchsorted(np.flatnonzero(array == ord(",")), ends), prepend=0)
    return len(fields) > 1 and bool((fields == len(header) - 1).all())
