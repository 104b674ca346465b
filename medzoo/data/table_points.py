"""Centres of what rows are about, in mm: the columns of a table that models of patches need.

Axes: n rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medzoo.data.columns import Columns
from medzoo.data.faults import quote
from medzoo.errors import ConfigError

__all__ = ["PointsFrame", "name_centres", "read_centres", "to_ras"]

PointsFrame = Literal["LPS", "RAS"]


def read_centres(columns: Columns, names: Sequence[str], frame: PointsFrame) -> NDArray[np.float64]:
    """Return the centres ``n 3`` in mm, RAS; what is no finite number is a fault, which is added.

    Args:
        columns: the table.
        names: three columns, x, y and z in mm.
        frame: of these numbers: ``"LPS"`` or ``"RAS"``.

    Raises:
        ConfigError: not three columns, or another frame.
    """
    if len(names) != 3 or len(set(names)) != 3:
        raise ConfigError(f"Table: expected point to be three columns, x, y and z in mm, got {list(names)}.")
    found = np.full((len(columns), 3), math.nan)
    wrong = []
    for row, cells in enumerate(zip(*(columns.values[name] for name in names), strict=True)):
        with suppress(ValueError):
            found[row] = [float(cell) for cell in cells]
        if not np.isfinite(found[row]).all():
            wrong.append((row, quote(", ".join(cells))))
    columns.faults.add_rows("rows whose point is not three finite numbers", wrong, "Give x, y and z in mm.")
    return to_ras(found, frame)


def to_ras(points: NDArray[np.float64], frame: PointsFrame) -> NDArray[np.float64]:
    """Return points ``n 3`` in mm, RAS.

    Raises:
        ConfigError: another frame.
    """
    if frame not in ("LPS", "RAS"):
        raise ConfigError(f"Table: expected points_frame 'LPS' or 'RAS', got {frame!r}.")
    return points * ([-1.0, -1.0, 1.0] if frame == "LPS" else [1.0, 1.0, 1.0])


def name_centres(images: Sequence[str], columns: Columns, names: Sequence[str]) -> list[str]:
    """Return the id of each row: its image and its centre, as they were given."""
    cells = zip(*(columns.values[name] for name in names), strict=True)
    return [f"{image} @ {', '.join(point)}" for image, point in zip(images, cells, strict=True)]
