"""Chest X-rays of children by Kermany et al.: a folder for each class, and the patient in the name of each file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from medzoo.data.faults import join_some, quote
from medzoo.data.label_rules import LabelRules
from medzoo.data.sources.options import SourceChoices
from medzoo.data.sources.published import PublishedData, TableFields
from medzoo.data.table_folder import read_folder
from medzoo.data.table_rows import assemble
from medzoo.errors import ConfigError, DataError

__all__ = ["ABOUT", "read"]

_CLASSES = {"NORMAL": "0", "PNEUMONIA": "1"}
_PERSON = re.compile(r"(person\d+)_(bacteria|virus)_\d+(?:_\d+)?")
_NORMAL = re.compile(r"((?:NORMAL2-)?IM-\d+)(?:-\d+)+")
_NUMBERED = re.compile(r"(NORMAL|BACTERIA|VIRUS)-(\d+)-\d+")  # the third version of the archive
_RULES = ("number", "number-and-subtype")


def read(folder: Path, choices: SourceChoices) -> TableFields:
    """Return the table of a tree, in which the few images of ``val`` are of the training part.

    A number occurs with both subtypes, ``person7_bacteria_24`` and ``person7_virus_12``, and some in both train and
    test, though never with the same subtype: the numbers may start again with the subtype, or be of one person. The
    default takes the cautious reading.

    Raises:
        DataError: another tree, or names that give no patient, by file.
    """
    rule = choices.same_person or _RULES[0]
    if rule not in _RULES:
        raise ConfigError(f"kermany: expected same_person to be {' or '.join(_RULES)}, got {rule!r}. Choose one.")
    columns, paths = read_folder(folder, None)
    values, faults = columns.values, columns.faults
    kinds = sorted(set(values["label"]))
    if kinds != sorted(_CLASSES):
        raise DataError(
            f"{faults.source}: expected the folders {' and '.join(_CLASSES)} in each part, found {join_some(kinds)}. "
            "Give the folder as it is published; the recipe table reads folders of any classes."
        )
    named = [_named(Path(path).stem, rule) for path in values["path"]]
    faults.add_rows(
        "images whose name gives no patient",
        [(row, quote(values["path"][row])) for row, found in enumerate(named) if found is None],
        "Names are as person7_virus_12, IM-0115-0001, NORMAL2-IM-1427-0001 or BACTERIA-7422-0001. Remove these files.",
    )  # fmt: skip
    patients, subtypes = zip(*[found or ("?", "") for found in named], strict=True)
    faults.add_rows(
        "images in the folder of another class than that of their name",
        [
            (row, quote(values["path"][row])) for row, subtype in enumerate(subtypes)
            if subtype and (subtype == "normal") != (values["label"][row] == "NORMAL")
        ],
        "Move them to the folder of their class.",
    )  # fmt: skip
    notes = [*columns.notes, f"the patient by {rule}: see same_person"]
    if joined := values.get("split", []).count("valid"):
        values["split"] = ["train" if part == "valid" else part for part in values["split"]]
        notes.append(f"the {joined:,} images of val join train, of which a validation part is drawn by patient")
    values["pneumonia"] = [_CLASSES[kind] for kind in values["label"]]
    values |= {"patient": list(patients), "subtype": list(subtypes)}
    return assemble(
        replace(columns, notes=tuple(notes)), ids=values["path"], paths=paths, label="pneumonia", patient="patient",
        groups=[name for name in ("split", "subtype") if name in values], published=True, rules=LabelRules(),
    )  # fmt: skip


def _named(name: str, rule: str) -> tuple[str, str] | None:
    """Return the patient and the subtype of the name of a file; ``None`` for any other name.

    >>> _named("person7_virus_12", "number"), _named("person7_virus_12", "number-and-subtype")
    (('person7', 'virus'), ('person7 virus', 'virus'))
    >>> _named("NORMAL2-IM-1427-0001", "number")
    ('NORMAL2-IM-1427', 'normal')
    """
    if found := _PERSON.fullmatch(name):
        person, subtype = found[1], found[2]
    elif found := _NORMAL.fullmatch(name):
        return found[1], "normal"
    elif found := _NUMBERED.fullmatch(name):
        person, subtype = f"number {found[2]}", found[1].lower()
    else:
        return None
    return (f"{person} {subtype}" if rule == _RULES[1] else person), subtype


ABOUT = PublishedData(
    title="Kermany: 5,856 chest X-rays of children, normal or with pneumonia by bacteria or virus",
    get=(
        "Download it from https://doi.org/10.17632/rscbjbr9sj (ChestXRay2017.zip), or from Kaggle's "
        "paultimothymooney/chest-xray-pneumonia, and unpack it."
    ),
    licence="CC BY 4.0",
    citation="Kermany et al., Cell 172 (2018) 1122-1131, doi:10.1016/j.cell.2018.02.010; doi:10.17632/rscbjbr9sj.2",
    layout=(
        "chest_xray/train/{NORMAL,PNEUMONIA}/*.jpeg",
        "chest_xray/test/{NORMAL,PNEUMONIA}/*.jpeg",
        "chest_xray/val/{NORMAL,PNEUMONIA}/*.jpeg, of Kaggle's copy alone",
    ),
    read=read,
    options=("same_person",),
    counts={"rows": 5_856},
)
