"""DICOM folders with labels in a CSV file: a row is joined to the images of its study by a header element.

Neither the value of the key nor the patient id is ever part of a message: rows are named by line, images by file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medzoo.data.columns import Columns
from medzoo.data.faults import Faults, join_some, quote
from medzoo.data.table_paths import absolute
from medzoo.errors import ConfigError, DataError, did_you_mean
from medzoo.io.dicom.elements import text
from medzoo.io.dicom.header import modality_of, wrap_dicom_errors
from medzoo.io.folder import ScanItem, scan

__all__ = ["Choose", "Unmatched", "join_dicom"]

Choose = Literal["refuse", "most-slices", "all"]
Unmatched = Literal["refuse", "drop"]

_GROUPS = {"modality": "Modality", "view": "ViewPosition", "sex": "PatientSex", "manufacturer": "Manufacturer"}
_SIMILAR = "AccessionNumber", "StudyInstanceUID", "PatientID", "SeriesInstanceUID", "SOPInstanceUID"


@dataclass(frozen=True)
class _Study:
    """An image, and what its header says."""

    item: ScanItem
    key: str
    patient: str
    groups: tuple[str, ...]
    slices: int


def join_dicom(
    folder: str | os.PathLike[str],
    columns: Columns,
    *,
    key: str,
    column: str,
    choose: Choose,
    unmatched: Unmatched,
    patient: str | None,
) -> tuple[Columns, list[str], list[str]]:
    """Return the rows of labels with what the headers give, the id and the path of each image.

    Args:
        folder: the DICOM files, in any folders below.
        columns: the labels.
        key: keyword of the header element that is in the CSV file too.
        column: its column there.
        choose: what to do with several images of one row.
        unmatched: what to do with rows without an image, and images without a row.
        patient: keyword of the element that names the patient, which becomes the column ``patient``.

    Raises:
        DataError: the folder has no DICOM image.
        ConfigError: an unknown keyword or option.
    """
    for keyword in filter(None, (key, patient)):
        _check_keyword(keyword)
    for name, given, known in (
        ("choose", choose, ("refuse", "most-slices", "all")),
        ("unmatched", unmatched, ("refuse", "drop")),
    ):
        if given not in known:
            raise ConfigError(f"from_dicom: expected {name} to be one of {', '.join(map(repr, known))}, got {given!r}.")
    faults, notes = columns.faults, list(columns.notes)
    studies = _studies(Path(folder), key, patient, faults, notes)
    rows = _match(studies, columns.values[column], choose, unmatched, faults, notes)
    lines = [faults.lines[row] for row, _ in rows]
    joined = {name: [cells[row] for row, _ in rows] for name, cells in columns.values.items()}
    for i, name in enumerate(_GROUPS):
        joined.setdefault(name, [study.groups[i] for _, study in rows])
    if patient is not None:
        joined["patient"] = [study.patient for _, study in rows]
    faults.lines = lines
    result = replace(columns, values=joined, notes=tuple(notes))
    paths = ["\n".join(map(absolute, study.item.paths)) for _, study in rows]
    return result, [study.item.label for _, study in rows], paths


def _check_keyword(keyword: str) -> None:
    from pydicom.datadict import tag_for_keyword

    if tag_for_keyword(keyword) is None:
        raise ConfigError(
            f"from_dicom: expected the keyword of a DICOM element, got {keyword!r}.{did_you_mean(keyword, _SIMILAR)} "
            f"Such are {', '.join(_SIMILAR)}."
        )


def _studies(folder: Path, key: str, patient: str | None, faults: Faults, notes: list[str]) -> list[_Study]:
    """Return the images of a folder with their headers, which are read once more, of the first file of each."""
    found: list[_Study] = []
    others = 0
    for item in scan(folder):
        if item.kind == "lost":
            faults.add_general(f"{item.label}: {item.reason}. Copy it again, or remove its series.")
        elif item.kind == "skip":
            others += 1
        elif item.stack is not None:
            faults.add_general(f"{item.label}: a file with several stacks. Write each stack to a file of its own.")
        elif (study := _study(item, key, patient, faults)) is not None:
            found.append(study)
        else:
            others += 1
    if not found:
        faults.check()
        raise DataError(f"{folder}: expected DICOM images, found none among {others} files. Is it the right folder?")
    if others:
        notes.append(f"{others:,} files are no DICOM images and left out")
    return found


def _study(item: ScanItem, key: str, patient: str | None, faults: Faults) -> _Study | None:
    """Return an image with its header; ``None`` for a format that is not DICOM."""
    from pydicom import dcmread
    from pydicom.misc import is_dicom

    path = item.paths[0]
    try:
        if len(item.paths) == 1 and not is_dicom(path):
            return None
        with wrap_dicom_errors(path, "a DICOM header"):
            tags = [key, *filter(None, [patient]), *_GROUPS.values(), "SOPClassUID", "SpecificCharacterSet"]
            ds = dcmread(path, stop_before_pixels=True, specific_tags=[*tags, "NumberOfFrames"])
            groups = tuple(modality_of(ds) if name == "modality" else text(ds, tag) for name, tag in _GROUPS.items())
            count = max(len(item.paths), int(text(ds, "NumberOfFrames") or 1))
            return _Study(item, text(ds, key).strip(), text(ds, patient).strip() if patient else "", groups, count)
    except (DataError, OSError) as error:
        faults.add_general(str(error))
        return None


def _match(
    studies: Sequence[_Study], keys: Sequence[str], choose: Choose, unmatched: Unmatched, faults: Faults,
    notes: list[str],
) -> list[tuple[int, _Study]]:  # fmt: skip
    """Return the pairs of row and image, in the order of the rows."""
    of_key: dict[str, list[_Study]] = {}
    for study in studies:
        of_key.setdefault(study.key, []).append(study)
    row_of: dict[str, int] = {}
    twice, blank, absent, pairs = [], [], [], []
    ambiguous: list[tuple[int, str]] = []
    for row, key in enumerate(keys):
        if not key:
            blank.append((row, ""))
        elif row_of.setdefault(key, row) != row:
            twice.append((row, f"the key of line {faults.lines[row_of[key]]}"))
        elif key not in of_key:
            absent.append((row, ""))
        else:
            chosen = _choose(of_key[key], choose)
            if not chosen:
                ambiguous.append((row, join_some([quote(study.item.label) for study in of_key[key]], 3)))
            pairs += [(row, study) for study in chosen]
    faults.add_rows("rows with a blank key", blank, "Give each its key, or remove it.")
    faults.add_rows("rows with the key of another row", twice, "Keep one row for each key.")
    faults.add_rows(
        "rows that several images match" + (", equal in slices" if choose == "most-slices" else ""), ambiguous,
        "Choose with choose='most-slices' or 'all', or by key='SeriesInstanceUID'." if choose == "refuse" else
        "Choose by key='SeriesInstanceUID', or remove one.",
    )  # fmt: skip
    left = [study for study in studies if study.key not in row_of]
    _report_unmatched(absent, left, keys, of_key, unmatched, faults, notes)
    if choose != "refuse" and (count := sum(len(of_key[key]) > 1 for key in row_of if key in of_key)):
        notes.append(f"{count:,} rows match several images: choose={choose!r}")
    return pairs


def _choose(found: list[_Study], choose: Choose) -> list[_Study]:
    """Return the images to use; none if that is not clear."""
    if len(found) == 1 or choose == "all":
        return found
    most = max(study.slices for study in found)
    best = [study for study in found if study.slices == most]
    return best if choose == "most-slices" and len(best) == 1 else []


def _report_unmatched(
    rows: list[tuple[int, str]], images: list[_Study], keys: Sequence[str], of_key: dict[str, Any],
    unmatched: Unmatched, faults: Faults, notes: list[str],
) -> None:  # fmt: skip
    files = [quote(study.item.label) for study in images]
    if unmatched == "drop":
        if rows:
            listed = join_some([str(faults.lines[row]) for row, _ in rows])
            notes.append(f"{len(rows):,} rows without an image left out: lines {listed}")
        if files:
            notes.append(f"{len(files):,} images without a row left out: {join_some(files)}")
        return
    hint = ""
    if rows and {key.lstrip("0") for key in of_key} & {keys[row].lstrip("0") for row, _ in rows}:
        hint = " Some would match but for zeros in front, which Excel removes: keep the column as text."
    faults.add_rows(
        "rows without an image", rows, f"Check key= and column=, or give unmatched='drop' to leave them out.{hint}"
    )
    if files:
        faults.add_general(
            f"{len(files):,} images without a row: {join_some(files)}. Add rows, or give unmatched='drop'."
        )
