"""``Columns``: the columns of a source as text, with the place of each row, before they are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medzoo.data.faults import Faults, join_some, quote
from medzoo.errors import DataError, did_you_mean

__all__ = ["Columns", "from_frame"]


@dataclass(frozen=True)
class Columns:
    """Columns of text.

    Attributes:
        values: the cells of each column, without space around them.
        faults: what is wrong so far, and where each row is in the source.
        notes: choices that were made.
    """

    values: dict[str, list[str]]
    faults: Faults
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.faults.lines)

    def select(self, rows: Sequence[int], note: str = "") -> Columns:
        """Return the columns of some rows, with one more note; faults that are added later are of these."""
        self.faults.lines = [self.faults.lines[row] for row in rows]
        values = {name: [cells[row] for row in rows] for name, cells in self.values.items()}
        return replace(self, values=values, notes=(*self.notes, *filter(None, [note])))

    def require(self, **roles: str | Sequence[str] | None) -> None:
        """Raise a DataError unless every column that a role names is there.

        Args:
            roles: the name of an argument, and the column or columns it was given.
        """
        missing = [
            (role, str(name))
            for role, given in roles.items()
            for name in ([given] if isinstance(given, str) else given or ())
            if name not in self.values
        ]
        if missing:
            wanted = join_some([f"{quote(name)} ({role}=)" for role, name in missing])
            found = join_some([quote(name) for name in self.values], 40)
            near = "".join(did_you_mean(name, self.values) for _, name in missing)
            raise DataError(
                f"{self.faults.source}: expected the column{'s' * (len(missing) > 1)} {wanted}; found {found}.{near} "
                "Name columns as they are written, capitals included."
            )


def from_frame(frame: Any) -> Columns:
    """Return the columns of a pandas DataFrame; missing values are blank.

    Raises:
        DataError: two columns of one name.
    """
    names = [str(name).strip() for name in frame.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"the frame: expected one column of each name, found {join_some(twice)} twice. Rename one.")
    faults = Faults("the frame")
    faults.lines = range(len(frame))
    columns: dict[str, list[str]] = {}
    for i, name in enumerate(names):
        cells = frame.iloc[:, i]
        values = zip(cells.tolist(), cells.isna().tolist(), strict=True)
        columns[name] = ["" if empty else _text(value) for value, empty in values]
    return Columns(columns, faults)


def _text(value: Any) -> str:
    """Return a cell as text; a number that pandas made a float because others are missing is an integer again."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer() and abs(float(value)) < 2**53:
        return str(int(value))
    return str(value).strip()
