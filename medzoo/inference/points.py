"""World coordinates of patches: a list, or a CSV file as LUNA16's ``annotations.csv``."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medzoo.errors import DataError

__all__ = ["Point", "read_points"]

Point = tuple[float, float, float]
COLUMNS = ("coordX", "coordY", "coordZ")


def read_points(points: str | os.PathLike[str] | Sequence[Sequence[float]]) -> dict[str, list[Point]]:
    """Return the points by series, ``""`` where the series is not told.

    Args:
        points: (x, y, z) each, in mm; or a CSV file with the columns ``coordX``, ``coordY``, ``coordZ``, and
            ``seriesuid`` where it holds several scans.

    Raises:
        DataError: the file cannot be read, lacks a column, or a row is not three numbers.
    """
    if not isinstance(points, (str, os.PathLike)):
        points = np.asarray(points).tolist() if hasattr(points, "shape") else points
        return {"": [_three(point, f"point {i}") for i, point in enumerate(points)]}
    path = Path(points)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: expected a CSV file of points, but it cannot be read ({type(error).__name__})."
        ) from error
    try:
        rows = csv.DictReader(text.splitlines())
        numbered = [(rows.line_num, row) for row in rows]
    except csv.Error as error:
        raise DataError(f"{path}: expected a CSV file of points, but it cannot be read ({error}).") from error
    missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise DataError(
            f"{path}: expected the columns {', '.join(COLUMNS)}, and seriesuid for several scans; "
            f"{', '.join(missing)} is not there. Rename the columns."
        )
    found: dict[str, list[Point]] = {}
    for number, row in numbered:
        point = _three([row[name] for name in COLUMNS], f"{path}, row {number}")
        found.setdefault((row.get("seriesuid") or "").strip(), []).append(point)
    if "" in found and len(found) > 1:
        raise DataError(
            f"{path}: expected a seriesuid in every row or in none, got {len(found[''])} rows without "
            "one. Fill them in."
        )
    return found


def _three(values: Sequence[object], where: str) -> Point:
    try:
        x, y, z = (float(str(v)) for v in values)
    except (TypeError, ValueError):
        raise DataError(f"{where}: expected three numbers in mm, got {values!r}.") from None
    # NaN is kept: it fails as a point outside of its scan, and the other points go on.
    return x, y, z
