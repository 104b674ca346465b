"""What no two parts of a split may share: a patient, or an image with the same pixels.

A part is 0 for train, 1 for valid, 2 for test, and -1 for rows in none. Axes: n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medzoo.data.identity import Dropped, Identities, hashed, list_rows
from medzoo.data.pixel_hashes import name_row
from medzoo.data.table import Table
from medzoo.data.table_rows import PATIENTS_UNKNOWN
from medzoo.errors import ConfigError, DataError

__all__ = ["NAMES", "Keys", "OnLeak", "count_shared", "drop_leaks", "leak_error", "shared"]

NAMES = ("train", "valid", "test")
OnLeak = Literal["refuse", "drop-valid", "drop-train"]
# The parts in the order in which they keep their rows: a later one loses what it shares with an earlier one.
_KEEPING: dict[Literal["drop-valid", "drop-train"], tuple[int, ...]] = {
    "drop-valid": (0, 2, 1),
    "drop-train": (2, 1, 0),
}


@dataclass(frozen=True, eq=False)
class Keys:
    """The patient and the image of each row as numbers, ``n`` each; -1 is equal to nothing.

    Attributes:
        table: the table.
        patients: one number for each patient; all -1 where no patients are known.
        images: one number for each different image; -1 for constant images and for rows that cannot be used.
        identities: of the pixels.
    """

    table: Table
    patients: NDArray[np.int64]
    images: NDArray[np.int64]
    identities: Identities

    @classmethod
    def of(cls, table: Table, identities: Identities, patient_groups: bool) -> Keys:
        """Number the patients and images of a table.

        Raises:
            DataError: no patients are known, or that of a row is empty.
            ConfigError: ``patient_groups=False`` for a table with patients.
        """
        check_patients(table, patient_groups)
        none = np.full(len(table), -1)
        patients = none if table.patients is None else np.unique(table.patients, return_inverse=True)[1]
        images = np.unique(identities.pixels, return_inverse=True)[1]
        exempt = identities.constant | (identities.pixels == "")
        return cls(table, patients, np.where(exempt, -1, images), identities)

    def groups(self) -> NDArray[np.int64]:
        """Return a number for each row; rows that share a patient or an image, also through others, have the same."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        n = len(self.table)
        rows = np.arange(n)
        # A graph whose nodes are rows, then patients, then images; each row has an edge to its own.
        first = n + int(self.patients.max(initial=-1)) + 1
        starts = np.concatenate([rows[self.patients >= 0], rows[self.images >= 0]])
        ends = np.concatenate([n + self.patients[self.patients >= 0], first + self.images[self.images >= 0]])
        nodes = first + int(self.images.max(initial=-1)) + 1
        graph = coo_matrix((np.ones(len(starts), bool), (starts, ends)), shape=(nodes, nodes))
        found = connected_components(graph, directed=False)[1][:n]
        return np.unique(found, return_inverse=True)[1]


def check_patients(table: Table, patient_groups: bool) -> None:
    """Raise unless the patients are known, or it was stated that they are not."""
    if table.patients is None:
        if patient_groups:
            own = [note.removeprefix(PATIENTS_UNKNOWN) for note in table.notes if note.startswith(PATIENTS_UNKNOWN)]
            how = f"{own[0][:1].upper()}{own[0][1:]}" if own else "Give the table its patients"
            raise DataError(
                f"{table.source}: the patients are not known, so images of one person could be in train and in test. "
                f"{how}, or state that there are none: patient_groups=False."
            )
        return
    if not patient_groups:
        raise ConfigError(
            f"{table.source}: patient_groups=False is for a table without patients, and this one has them. Leave it "
            "out: images of a patient are always in one part."
        )
    empty = np.flatnonzero(np.char.strip(table.patients) == "")
    if len(empty):
        raise DataError(
            f"{table.source}: {len(empty):,} rows have no patient: "
            f"{list_rows([name_row(table, int(row)) for row in empty], ', ')}. Fill them in, or remove the rows."
        )


def shared(key: NDArray[np.int64], which: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the values of a key that are in more than one part."""
    used = (key >= 0) & (which >= 0)
    pairs = np.unique(np.stack([key[used], which[used]]), axis=1)
    values, counts = np.unique(pairs[0], return_counts=True)
    return values[counts > 1]


def count_shared(keys: Keys, which: NDArray[np.int64]) -> str:
    """Return in words how many patients and images are in more than one part."""
    found = []
    for key, what, known in (
        (keys.patients, "patients", keys.table.patients is not None), (keys.images, "images with the same pixels", True)
    ):  # fmt: skip
        values = shared(key, which)
        rows = int((np.isin(key, values) & (which >= 0)).sum())
        found.append(f"{len(values):,} {what} ({rows:,} rows)" if known else f"an unknown number of {what}")
    return f"it leaks on purpose: in more than one part are {' and '.join(found)}"


def drop_leaks(
    keys: Keys, which: NDArray[np.int64], on_leak: Literal["drop-valid", "drop-train"]
) -> tuple[NDArray[np.int64], list[Dropped]]:
    """Return the parts without the rows that leak, and those rows.

    ``"drop-valid"`` keeps train complete: valid and test lose what they share with it. ``"drop-train"`` keeps test
    complete: valid and train lose what they share with it, and train what it shares with valid. Between valid and test,
    it is valid that loses rows, in both cases.
    """
    which, dropped = which.copy(), []
    kept: list[int] = []
    for part in _KEEPING[on_leak]:
        reasons: dict[int, str] = {}
        for other in kept:
            for what, key in (("patient", keys.patients), ("image", keys.images)):
                there = key[(which == other) & (key >= 0)]
                for row in np.flatnonzero((which == part) & np.isin(key, there)):
                    reasons.setdefault(int(row), _reason(keys, int(row), what, NAMES[other]))
        which[list(reasons)] = -1
        dropped += [Dropped(row, str(keys.table.ids[row]), reason) for row, reason in reasons.items()]
        kept.append(part)
    return which, sorted(dropped, key=lambda each: each.row)


def _reason(keys: Keys, row: int, what: str, other: str) -> str:
    if what == "image":
        return f"an image with the same pixels is in {other}"
    assert keys.table.patients is not None  # noqa: S101  # else no key of a patient is 0 or more
    return f"patient {hashed(str(keys.table.patients[row]))} is also in {other}"


def leak_error(keys: Keys, which: NDArray[np.int64], who: str) -> DataError | None:
    """Return the error that lists what is in more than one part, or ``None``.

    Args:
        keys: of the table.
        which: the part of each row.
        who: what made the parts, such as ``"column 'split'"``.
    """
    table = keys.table
    patients, images = shared(keys.patients, which), shared(keys.images, which)
    if not len(patients) and not len(images):
        return None
    found = []
    if len(patients):
        count = int((np.isin(keys.patients, patients) & (which >= 0)).sum())
        names = [_patient(keys, which, value) for value in patients]
        found.append(
            f"{len(patients):,} patient{'s' * (len(patients) > 1)} ({count:,} rows), by the first digits of "
            f"the sha256 of their names: {list_rows(names)}"
        )
    if len(images):
        names = []
        for value in images:
            alike = np.flatnonzero((keys.images == value) & (which >= 0))
            names.append(" = ".join(f"{name_row(table, r)} {table.ids[r]} ({NAMES[which[r]]})" for r in alike[:4]))
        found.append(f"{len(images):,} image{'s' * (len(images) > 1)} with the same pixels: {list_rows(names)}")
    counts = {how: _count(which, drop_leaks(keys, which, how)[1]) for how in _KEEPING}
    return DataError(
        f"{table.source}: {who} puts into more than one part {'; and '.join(found)}. Correct it, or let choose_split "
        "divide the patients. Or drop rows: "
        + ", or ".join(f"on_leak={how!r} drops {text}" for how, text in counts.items())
        + "."
    )


def _patient(keys: Keys, which: NDArray[np.int64], value: int) -> str:
    own = (keys.patients == value) & (which >= 0)
    assert keys.table.patients is not None  # noqa: S101  # else there is no such value
    name = hashed(str(keys.table.patients[np.flatnonzero(own)[0]]))
    return f"{name} ({_counted(which[own])})"


def _count(which: NDArray[np.int64], dropped: Sequence[Dropped]) -> str:
    return _counted(which[[each.row for each in dropped]])


def _counted(parts: NDArray[np.int64]) -> str:
    """Return such as ``3 of train, 1 of test``."""
    counts = np.bincount(parts, minlength=3)
    return ", ".join(f"{count:,} of {name}" for name, count in zip(NAMES, counts, strict=True) if count)
