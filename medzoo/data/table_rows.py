"""From columns to the fields of a :class:`~medzoo.Table`: labels, patients, groups and duplicates, checked once.

Axes: n rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medzoo.data.columns import Columns
from medzoo.data.faults import Faults, quote
from medzoo.data.labels import LabelRules, Labels, read_labels
from medzoo.data.texts import Texts
from medzoo.errors import ConfigError, DataError

__all__ = ["PATIENTS_UNKNOWN", "Duplicates", "assemble", "assemble_arrays", "check_patients", "group_columns"]

Duplicates = Literal["refuse", "drop"]

PATIENTS_UNKNOWN = "the patients are not known: "
"""How the note of a table begins that says how its patients can be had."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LONGEST = 256  # characters of a group's value; a report in a column would take as much memory in every row


def assemble(
    columns: Columns,
    *,
    ids: Sequence[str],
    paths: Sequence[str],
    label: str | Sequence[str],
    patient: str | None,
    groups: Sequence[str] | None,
    used: Sequence[str] = (),
    duplicates: Duplicates = "refuse",
    rules: LabelRules,
    points: NDArray[np.float64] | None = None,
    published: bool = False,
) -> dict[str, Any]:
    """Return the fields of a table, or raise one error with everything that is wrong.

    Args:
        columns: the source.
        ids: the id of each row.
        paths: the image of each row, ``""`` where it is a fault that was added already.
        label: column of the label, or several.
        patient: column of the patient.
        groups: columns to keep as groups; ``None`` keeps all others.
        used: further columns that are no group.
        duplicates: whether a row whose image and labels an earlier one has is a fault or is left out.
        rules: what labels mean.
        points: the centre of each row in mm, RAS; rows with the same image and other centres are no duplicates.
        published: whether the rows are of a published set, in which it is known who they are of.

    Raises:
        DataError: anything that is wrong, by row.
    """
    if duplicates not in ("refuse", "drop"):
        raise ConfigError(f"Table: expected duplicates to be 'refuse' or 'drop', got {duplicates!r}. Choose one.")
    faults, names = columns.faults, [label] if isinstance(label, str) else list(label)
    if not names:
        raise ConfigError("Table: expected label to be a column or several, got none. Name them.")
    cells = np.array([columns.values[name] for name in names], np.str_).T
    labels = read_labels(cells, names, rules, faults)
    patients = check_patients(columns.values[patient], faults) if patient is not None else None
    places = paths if points is None else [
        path and f"{path}\n{point.tolist()}" for path, point in zip(paths, points, strict=True)
    ]  # fmt: skip
    keep = _without_duplicates(places, labels, patients, duplicates, faults)
    kept, group_notes = group_columns(
        {n: columns.values[n] for n in groups if n in columns.values} if groups is not None
        else {n: v for n, v in columns.values.items() if n not in {*names, patient, *used}},
        chosen=groups is not None,
    )  # fmt: skip
    faults.check()
    if len(columns) < 2:
        raise DataError(f"{faults.source}: expected 2 rows or more, found {len(columns)}. Add the others.")
    left_out = len(columns) - len(keep)
    notes = (*columns.notes, *labels.notes, *(() if published else _patient_notes(patients)), *group_notes)
    notes += (f"{left_out:,} duplicate row{'s' * (left_out > 1)} left out",) if left_out else ()
    return {
        "ids": np.array(ids, np.str_)[keep],
        "targets": labels.targets[keep],
        "labels": labels.names,
        "task": labels.task,
        "paths": Texts(paths[row] for row in keep),
        "patients": None if patients is None else patients[keep],
        "groups": {name: values[keep] for name, values in kept.items()},
        "points": None if points is None else points[keep],
        "lines": np.array(faults.lines, np.int64)[keep],
        "source": faults.source,
        "notes": notes,
    }


def assemble_arrays(
    images: NDArray[Any],
    labels: Any,
    ids: Sequence[str],
    patients: Sequence[Any] | NDArray[Any] | None,
    groups: Mapping[str, Sequence[Any] | NDArray[Any]],
    source: str,
    rules: LabelRules,
) -> dict[str, Any]:
    """Return the fields of a table of images in memory, or raise one error with everything that is wrong."""
    n, faults = len(images), Faults(source)
    faults.lines = range(n)
    try:
        cells = np.asarray(labels)
    except ValueError:
        raise DataError(f"{source}: expected as many labels for each image, got rows of several lengths.") from None
    if cells.ndim not in (1, 2) or 0 in cells.shape:
        raise DataError(f"{source}: expected labels n or n l, got shape {cells.shape}. Give one row for each image.")
    lengths = {"labels": cells, "patients": patients, "ids": ids, **groups}
    if wrong := [f"{len(v)} {name}" for name, v in lengths.items() if v is not None and len(v) != n]:
        raise DataError(f"{source}: expected one value for each of {n} images, got {', '.join(wrong)}.")
    first: dict[str, int] = {}
    twice = [(i, f"the id of row {first[one]}") for i, one in enumerate(ids) if first.setdefault(one, i) != i]
    faults.add_rows("ids that another row has", twice, "Give each image an id of its own.")
    names = [f"label_{i}" for i in range(cells.shape[1])] if cells.ndim > 1 and cells.shape[1] > 1 else ["label"]
    found = read_labels(cells, names, rules, faults)
    known = None if patients is None else check_patients(patients, faults)
    kept, notes = group_columns(groups)
    faults.check()
    return {
        "ids": np.array(ids, np.str_),
        "targets": found.targets,
        "labels": found.names,
        "task": found.task,
        "arrays": images,
        "patients": known,
        "groups": kept,
        "lines": np.arange(n),
        "source": source,
        "notes": (*found.notes, *_patient_notes(known), *notes),
    }


def check_patients(values: Sequence[Any] | NDArray[Any], faults: Faults) -> NDArray[np.str_]:
    """Return patients as text without space around it; a row without one is a fault."""
    texts = [_patient(value) for value in values]
    faults.add_rows(
        "rows without a patient", ((row, "") for row, text in enumerate(texts) if not text),
        "Give each row its patient: whether such a row leaks into another part cannot be known.",
    )  # fmt: skip
    faults.add_rows(
        "patients with a control character", ((row, "") for row, text in enumerate(texts) if _CONTROL.search(text)),
        "Correct them.",
    )  # fmt: skip
    return np.array(texts, np.str_)


def _patient(value: Any) -> str:
    """Return a patient as text, ``""`` for none or NaN."""
    return "" if value is None or value != value else str(value).strip()


def _patient_notes(patients: NDArray[np.str_] | None) -> tuple[str, ...]:
    if patients is None or len(np.unique(patients)) < len(patients):
        return ()
    return ("every row has another patient: check that it is not the id of an image",)


def group_columns(
    values: Mapping[str, Sequence[Any] | NDArray[Any]], chosen: bool = True
) -> tuple[dict[str, NDArray[np.str_]], tuple[str, ...]]:
    """Return columns as arrays of text, and a note on those that are left out as too long to be groups.

    Raises:
        DataError: such a column was chosen.
    """
    kept: dict[str, NDArray[np.str_]] = {}
    long: list[str] = []
    for name, cells in values.items():
        texts = ["" if cell is None or cell != cell else str(cell).strip() for cell in cells]
        if max(map(len, texts), default=0) > _LONGEST:
            long.append(quote(name))
        else:
            kept[name] = np.array(texts, np.str_)
    if long and chosen:
        raise DataError(f"expected groups of at most {_LONGEST} characters, found longer ones in {', '.join(long)}.")
    note = f"columns left out, with values over {_LONGEST} characters: {', '.join(long)}"
    return kept, (note,) if long else ()


def _without_duplicates(
    paths: Sequence[str], labels: Labels, patients: NDArray[np.str_] | None, how: Duplicates, faults: Faults
) -> list[int]:
    """Return the rows to keep: the first of each image; what is not to be left out is a fault."""
    first: dict[str, int] = {}
    other: list[tuple[int, str]] = []
    same: list[tuple[int, str]] = []
    keep: list[int] = []
    for row, path in enumerate(paths):
        earlier = first.setdefault(path, row) if path else row
        if earlier == row:
            keep.append(row)
            continue
        equal = np.array_equal(labels.targets[row], labels.targets[earlier], equal_nan=True)
        place = (row, f"the image of {faults.word} {faults.lines[earlier]}")
        if equal and (patients is None or patients[row] == patients[earlier]):
            same.append(place)
        else:
            other.append(place)
    faults.add_rows(
        "rows with the image of another row and other labels or another patient", other,
        "Keep the right one. With one row per finding or box, make one row of them first.",
    )  # fmt: skip
    if how == "refuse":
        faults.add_rows(
            "rows with the image and labels of another row", same,
            "Remove them, or give duplicates='drop' to keep the first of each.",
        )  # fmt: skip
    return keep
