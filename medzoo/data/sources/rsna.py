"""RSNA Pneumonia Detection Challenge of 2018: one row for each box in its CSV files, one for each image here.

What the set calls ``patientId``, in its files and in the DICOM headers, is the id of an image. The images are some of
ChestX-ray14, several of a patient; who they are of is in the mapping that the RSNA publishes apart.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from medzoo.data.columns import Columns
from medzoo.data.faults import Faults, quote
from medzoo.data.label_rules import LabelRules
from medzoo.data.sources.image_files import folder_with, index_images, match_images, need_columns
from medzoo.data.sources.options import SourceChoices
from medzoo.data.sources.published import PublishedData, TableFields
from medzoo.data.sources.rsna_mapping import MAPPING, MAPPING_NAME, load_mapping
from medzoo.data.table_csv import read_csv
from medzoo.data.table_rows import PATIENTS_UNKNOWN, assemble
from medzoo.errors import DataError
from medzoo.io.dicom.elements import text
from medzoo.io.dicom.header import age_of, wrap_dicom_errors
from medzoo.progress import track
from medzoo.weights.first_use import other_than_recorded

__all__ = ["ABOUT", "LABEL", "read"]

LABEL = "Lung Opacity"
"""What Target 1 is: radiologists marked an opacity that is suspicious for pneumonia, of which no diagnosis was made."""

_LABELS, _CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
_IMAGES = "stage_2_train_images"


def read(folder: Path, choices: SourceChoices) -> TableFields:
    """Return a row for each image of the training set.

    Raises:
        DataError: another layout, or everything that is wrong, by line.
    """
    root = folder_with(folder, (_LABELS,), ABOUT.layout)
    columns = _images(root)
    faults, ids = columns.faults, columns.values["id"]
    if (root / _CLASSES).is_file():
        columns.values["class"] = _classes(root / _CLASSES, ids, columns.values["Target"], faults)
    here = root / MAPPING
    mapping = choices.mapping if choices.mapping is not None else here if os.path.lexists(here) else None
    notes = [*columns.notes, f"{LABEL}: an opacity that radiologists found suspicious for pneumonia, no diagnosis"]
    if mapping is not None:
        columns.values["patient"] = _patients(Path(mapping), ids, faults)
        notes.append(f"patients by {Path(mapping).name}")
        if (known := other_than_recorded(MAPPING_NAME, Path(mapping))) is not None:
            notes.append(
                f"{Path(mapping).name} is another file than the one that was first fetched, {known}: who is of which "
                f"patient may differ; compare both with medzoo fetch data:{MAPPING_NAME}"
            )
    else:
        notes.append(
            f"{PATIENTS_UNKNOWN}get who the images are of with medzoo fetch data:{MAPPING_NAME} --to FILE and give "
            "mapping=FILE"
        )
    columns.values[LABEL] = columns.values.pop("Target")
    columns.values["image"] = [f"{one}.dcm" for one in ids]
    index, _ = index_images(root, [root / _IMAGES] if (root / _IMAGES).is_dir() else [], (".dcm",))
    if others := len(index.keys() - set(columns.values["image"])):
        notes.append(f"{others:,} files of {_IMAGES} left out, which have no row")
    columns, paths = match_images(Columns(columns.values, faults, tuple(notes)), "image", index, root, choices.missing)
    columns.values.update(_headers(paths, columns))
    return assemble(
        columns, ids=columns.values["image"], paths=paths, label=LABEL,
        patient="patient" if mapping is not None else None,
        groups=[name for name in ("class", "view", "sex", "age") if name in columns.values],
        published=True, rules=LabelRules(task="binary"),
    )  # fmt: skip


def _images(root: Path) -> Columns:
    """Return ``id`` and ``Target`` of each image, at the line of its first box."""
    given = read_csv(root / _LABELS, wanted=["patientId", "Target"], delimiter=",")
    need_columns(given, ("patientId", "Target"))
    ids, targets = given.values["patientId"], given.values["Target"]
    first: dict[str, int] = {}
    two = []
    for row, (one, target) in enumerate(zip(ids, targets, strict=True)):
        if targets[first.setdefault(one, row)] != target:
            two.append((row, f"line {given.faults.lines[first[one]]} has {quote(targets[first[one]])}"))
    given.faults.add_rows("rows with another Target than that of the same image", two, "Keep the right one.")
    given.faults.add_rows("rows without an image", ((r, "") for r in [first.get("")] if r is not None), "Name it.")
    boxes = Columns({"id": ids, "Target": targets}, given.faults, given.notes)
    return boxes.select(list(first.values()), f"{len(ids):,} rows, one for each box, are {len(first):,} images")


def _classes(path: Path, ids: Sequence[str], targets: Sequence[str], faults: Faults) -> list[str]:
    """Return the class of each image, which has one in each of its rows; a contradiction is a fault."""
    given = read_csv(path, wanted=["patientId", "class"], delimiter=",")
    need_columns(given, ("patientId", "class"))
    of_image: dict[str, str] = {}
    two = []
    for row, (one, name) in enumerate(zip(given.values["patientId"], given.values["class"], strict=True)):
        if of_image.setdefault(one, name) != name:
            two.append(f"line {given.faults.lines[row]}")
    given.faults.check()
    if two:
        faults.add_general(f"{path.name}: {len(two):,} rows with another class than that of the same image, {two[0]}.")
    found = [of_image.get(one, "") for one in ids]
    faults.add_rows(
        f"images whose Target is not that of their class in {path.name}",
        [(row, quote(name)) for row, name in enumerate(found) if name and (name == LABEL) != (targets[row] == "1")],
        "Take both files as they are published.",
    )  # fmt: skip
    return found


def _patients(path: Path, ids: Sequence[str], faults: Faults) -> list[str]:
    """Return the NIH patient of each image; an image that is not in the mapping is a fault."""
    of_image = load_mapping(path)
    faults.add_rows(
        f"images that are not in {path.name}", [(row, "") for row, one in enumerate(ids) if one not in of_image],
        "Whether such an image is of a patient in another part cannot be known: get the complete mapping.",
    )  # fmt: skip
    return [of_image.get(one, "?") for one in ids]


def _headers(paths: Sequence[str], columns: Columns) -> dict[str, list[str]]:
    """Return view, sex and age of each image from its header; pixels are not read. The PatientID is not used."""
    from pydicom import dcmread

    tags = ["ViewPosition", "PatientSex", "PatientAge", "SpecificCharacterSet"]
    found: dict[str, list[str]] = {"view": [], "sex": [], "age": []}
    wrong: list[tuple[int, str]] = []
    for row, path in enumerate(track(paths, "Reading DICOM headers")):
        values = ["", "", ""]
        if path:
            try:
                with wrap_dicom_errors(Path(path), "a DICOM header"):
                    ds = dcmread(path, stop_before_pixels=True, specific_tags=[*tags])
                    age = age_of(ds)
                    values = [text(ds, tags[0]), text(ds, tags[1]), "" if age is None else str(int(age))]
            except DataError as error:
                reason = str(error).removeprefix(f"{path}: ")
                wrong.append((row, f"{columns.values['image'][row]}: {reason.partition('. ')[0]}"))
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
    columns.faults.add_rows("images whose header cannot be read", wrong, "Unpack them again.")
    return found


ABOUT = PublishedData(
    title="RSNA Pneumonia Detection Challenge 2018: 26,684 frontal chest X-rays with boxes around lung opacities",
    get=(
        "Download it from https://www.kaggle.com/c/rsna-pneumonia-detection-challenge, where an account has to accept "
        "the rules, and unpack it. Who the images are of is in "
        f"https://s3.amazonaws.com/east1.public.rsna.org/AI/2018/{MAPPING}: put it beside the CSV files, or give "
        "--mapping FILE, in Python mapping=FILE. Without it, several images of a patient are in several parts."
    ),
    licence="the rules of the competition; the images are those of the NIH Clinical Center",
    citation=(
        "Shih et al., Radiology: Artificial Intelligence 1 (2019) e180041, doi:10.1148/ryai.2019180041; images: Wang "
        "et al., ChestX-ray8, CVPR 2017"
    ),
    layout=(
        f"{_LABELS}: patientId, x, y, width, height, Target; one row for each box",
        f"{_IMAGES}/*.dcm, each named by its patientId",
        f"{_CLASSES}: patientId, class; optional",
        f"{MAPPING}: optional",
    ),
    read=read,
    tables=(_LABELS, _CLASSES),
    options=("missing", "mapping"),
    counts={"rows": 26_684, "patients": 11_452, LABEL: 6_012},
)
