"""ChestX-ray14 of the NIH: its complete layout, and the small one of Coursera's course with three CSV files.

The names and columns are those of the published files; the age of up to 414 years is in the CSV file of 2017.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medzoo.data.columns import Columns
from medzoo.data.faults import Faults, join_some, quote
from medzoo.data.label_rules import LabelRules
from medzoo.data.sources.image_files import folder_with, index_images, match_images, need_columns
from medzoo.data.sources.options import SourceChoices
from medzoo.data.sources.published import PublishedData, TableFields
from medzoo.data.table_csv import read_csv
from medzoo.data.table_rows import assemble
from medzoo.data.texts import Texts
from medzoo.errors import ConfigError, DataError, did_you_mean
from medzoo.io.dicom.header import stated_age

__all__ = ["ABOUT", "FINDINGS", "read"]

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
"""The 14 findings, in the order of the paper."""

_NONE = "No Finding"
_COMPLETE = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")  # the later one first: its ages were corrected
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
_SMALL = {"train": "train-small.csv", "valid": "valid-small.csv", "test": "test.csv"}
_GROUPS = {"View Position": "view", "Patient Gender": "sex", "Patient Sex": "sex", "Follow-up #": "follow_up"}
_NAME = re.compile(r"([0-9]+)_[0-9]+\.png", re.IGNORECASE)


def read(folder: Path, choices: SourceChoices) -> TableFields:
    """Return the table of the layout that the files show.

    Raises:
        DataError: neither layout or both, or everything that is wrong, by line.
    """
    chosen = _chosen(choices.findings)
    root = folder_with(folder, (*_COMPLETE, _SMALL["train"]), ABOUT.layout)
    complete = [root / name for name in _COMPLETE if (root / name).is_file()]
    small = [(part, root / name) for part, name in _SMALL.items() if (root / name).is_file()]
    if not complete:
        return _read_small(root, small, chosen, choices)
    if (root / _SMALL["train"]).is_file():
        raise DataError(
            f"{root}: expected one of two layouts, found {complete[0].name} and {_SMALL['train']}. Move one away."
        )
    return _read_complete(root, complete[0], chosen, choices)


def _chosen(findings: Sequence[str] | None) -> tuple[str, ...]:
    """Return the findings that become labels."""
    chosen = FINDINGS if findings is None else tuple(findings)
    wrong = [name for name in chosen if name not in FINDINGS]
    if wrong or not chosen or len(set(chosen)) < len(chosen):
        near = did_you_mean(wrong[0], FINDINGS) if wrong else ""
        raise ConfigError(
            f"chestxray14: expected findings to be some of {', '.join(FINDINGS)}, each once, got "
            f"{', '.join(map(str, chosen)) or 'none'}.{near} Correct findings."
        )
    return chosen


def _read_complete(root: Path, path: Path, chosen: tuple[str, ...], choices: SourceChoices) -> TableFields:
    image, finding, patient = "Image Index", "Finding Labels", "Patient ID"
    given = read_csv(path, wanted=[image, finding, patient], delimiter=",")
    need_columns(given, (image, finding, patient))
    cells, faults = given.values, given.faults
    _check_patients(cells[image], cells[patient], faults)
    values = {"image": cells[image], "patient": cells[patient], **_columns_of(cells[finding], chosen, faults)}
    values |= {group: cells[column] for column, group in _GROUPS.items() if column in cells}
    notes = [*given.notes, *_left_out(chosen)]
    if "Patient Age" in cells:
        values["age"], note = _ages(cells["Patient Age"])
        notes += note
    if (parts := _official_parts(root, faults)) is not None:
        values["split"] = [parts.get(name, "") for name in cells[image]]
        if unlisted := values["split"].count(""):
            notes.append(f"{unlisted:,} images are in neither official list, and so in no part")
    folders = [p for p in sorted(root.glob("images*")) if p.is_dir()]
    folders += [p / "images" for p in folders if (p / "images").is_dir()]
    index, again = index_images(root, [*folders, root], (".png",))
    notes += [f"{again:,} files with the name of another one left out"] if again else []
    columns, paths = match_images(Columns(values, faults, tuple(notes)), "image", index, root, choices.missing)
    return _assembled(columns, paths, chosen)


def _assembled(columns: Columns, paths: Sequence[str], chosen: tuple[str, ...]) -> TableFields:
    """Return the fields of a table of columns that are named as in it."""
    return assemble(
        columns, ids=columns.values["image"], paths=paths, label=list(chosen), patient="patient",
        groups=[name for name in columns.values if name not in {"image", "patient", *chosen}],
        published=True, rules=LabelRules(),
    )  # fmt: skip


def _left_out(chosen: tuple[str, ...]) -> list[str]:
    left = [name for name in FINDINGS if name not in chosen]
    return [f"findings left out: {join_some(left, len(left))}"] if left else []


def _columns_of(cells: Sequence[str], chosen: tuple[str, ...], faults: Faults) -> dict[str, list[str]]:
    """Return a column of 0 and 1 for each finding, of the findings that ``|`` joins.

    A finding that no row has is a column of 0, so that a part of the set has the outputs of the complete one.
    """
    own = [{part.strip() for part in cell.split("|")} for cell in cells]
    known = {*FINDINGS, _NONE}
    unknown = [(row, join_some(sorted(map(quote, found - known)))) for row, found in enumerate(own) if found - known]
    names = sorted({name for found in own for name in found - known})
    near = next(filter(None, (did_you_mean(name, known) for name in names)), "")
    faults.add_rows("rows with an unknown finding", unknown, f"Take the file as it is published.{near}")
    both = [(row, "") for row, found in enumerate(own) if _NONE in found and len(found) > 1]
    faults.add_rows(f"rows with {quote(_NONE)} and findings", both, "Take the file as it is published.")
    return {name: ["1" if name in found else "0" for found in own] for name in chosen}


def _check_patients(images: Sequence[str], patients: Sequence[str], faults: Faults) -> None:
    """Add a fault for a file whose name, which starts with the patient, is in the row of another one."""
    other = [
        (row, "") for row, (image, patient) in enumerate(zip(images, patients, strict=True))
        if (named := _NAME.fullmatch(image)) and patient.isdecimal() and named[1].lstrip("0") != patient.lstrip("0")
    ]  # fmt: skip
    faults.add_rows(
        "rows whose Patient ID is not the one with which the name of the image starts", other,
        "Columns may have been sorted apart: take the file as it is published.",
    )  # fmt: skip


def _ages(cells: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return ages in whole years, blank where they cannot be right, and a note on how many those are."""
    ages = [stated_age(cell) for cell in cells]
    wrong = sum(age is None and bool(cell) for age, cell in zip(ages, cells, strict=True))
    note = f"{wrong:,} ages that cannot be right left blank, such as over 130 years"
    return ["" if age is None else str(int(age)) for age in ages], [note] if wrong else []


def _official_parts(root: Path, faults: Faults) -> dict[str, str] | None:
    """Return the part of each image by the official lists; ``None`` without them."""
    there = {part: root / name for part, name in _LISTS.items() if (root / name).is_file()}
    if not there:
        return None
    if len(there) < len(_LISTS):
        faults.add_general(
            f"expected {' and '.join(_LISTS.values())}, found {next(iter(there.values())).name} alone. Download the "
            "other list too, or move this one away to draw a split."
        )
        return None
    listed = {part: _names(path) for part, path in there.items()}
    if twice := sorted(listed["train"] & listed["test"]):
        names = join_some(list(map(quote, twice)))
        faults.add_general(
            f"{len(twice):,} images are in both {' and '.join(_LISTS.values())}: {names}. Take the lists as they are "
            "published."
        )
    return {name: part for part, names in listed.items() for name in names}


def _names(path: Path) -> set[str]:
    """Return the names of images that a text file lists, one a line."""
    try:
        return set(filter(None, map(str.strip, path.read_text("utf-8-sig").split("\n"))))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a list of images as text, cannot read it ({error}).") from None


def _read_small(
    root: Path, files: Sequence[tuple[str, Path]], chosen: tuple[str, ...], choices: SourceChoices
) -> TableFields:
    """Return the table of the CSV files of the parts, with what is wrong in any of them."""
    folders = [p for p in (root / "images-small", root / "images", root) if p.is_dir()]
    index, _ = index_images(root, folders, (".png",))
    found: list[TableFields] = []
    faults: list[str] = []
    for part, path in files:
        try:
            found.append(_read_part(root, part, path, index, chosen, choices))
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError("\n".join(faults))
    return _joined(root, found, _left_out(chosen))


def _read_part(
    root: Path, part: str, path: Path, index: dict[str, str], chosen: tuple[str, ...], choices: SourceChoices
) -> TableFields:  # fmt: skip
    given = read_csv(path, wanted=["Image", "PatientId"], delimiter=",")
    # Columns by name: in these files, PatientId stands between the findings.
    need_columns(given, ("Image", "PatientId", *chosen))
    _check_patients(given.values["Image"], given.values["PatientId"], given.faults)
    values = {"image": given.values["Image"], "patient": given.values["PatientId"]}
    values |= {name: given.values[name] for name in chosen} | {"split": [part] * len(given)}
    columns, paths = match_images(Columns(values, given.faults, given.notes), "image", index, root, choices.missing)
    fields = _assembled(columns, paths, chosen)
    return {**fields, "notes": tuple(f"{path.name}: {note}" for note in fields["notes"])}


def _joined(root: Path, tables: Sequence[TableFields], notes: Sequence[str]) -> TableFields:
    """Return the fields of several tables of the same columns as those of one."""
    ids = np.concatenate([one["ids"] for one in tables])
    names, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DataError(
            f"{root}: expected each image in one file, found {int((counts > 1).sum()):,} in several: "
            f"{join_some(list(map(quote, names[counts > 1].tolist())))}. Keep one row of each."
        )
    joined: dict[str, Any] = {name: np.concatenate([one[name] for one in tables]) for name in ("targets", "lines")}
    return {
        **tables[0],
        **joined,
        "ids": ids,
        "paths": Texts(path for one in tables for path in one["paths"]),
        "patients": np.concatenate([one["patients"] for one in tables]),
        "groups": {"split": np.concatenate([one["groups"]["split"] for one in tables])},
        "source": str(root),
        "notes": (*notes, *(note for one in tables for note in one["notes"])),
    }


ABOUT = PublishedData(
    title="ChestX-ray14: 112,120 frontal chest X-rays of 30,805 patients with 14 findings mined from reports",
    get=(
        "Download the images and the files beside them from https://nihcc.app.box.com/v/ChestXray-NIHCC, or from "
        "Kaggle's nih-chest-xrays/data, and unpack the images. Some folders of images are enough, "
        "with --missing drop, in Python missing='drop'."
    ),
    licence="no restrictions on use; link to the NIH Clinical Center and cite the paper",
    citation="Wang et al., ChestX-ray8, CVPR 2017, doi:10.1109/CVPR.2017.369",
    layout=(
        "Data_Entry_2017_v2020.csv or Data_Entry_2017.csv, with images_001/images/*.png to images_012, images/*.png or "
        "*.png",
        "train_val_list.txt and test_list.txt, the official parts",
        "or train-small.csv, valid-small.csv and test.csv, with images-small/*.png",
    ),
    read=read,
    tables=("Data_Entry_2017*.csv", _SMALL["train"], _SMALL["valid"]),
    options=("missing", "findings"),
    counts={  # of Data_Entry_2017_v2020.csv
        "rows": 112_120,
        "patients": 30_805,
        "Infiltration": 19_894,
        "Effusion": 13_317,
        "Atelectasis": 11_559,
        "Nodule": 6_331,
        "Mass": 5_782,
        "Pneumothorax": 5_302,
        "Consolidation": 4_667,
        "Pleural_Thickening": 3_385,
        "Cardiomegaly": 2_776,
        "Emphysema": 2_516,
        "Edema": 2_303,
        "Fibrosis": 1_686,
        "Pneumonia": 1_431,
        "Hernia": 227,
    },
)
