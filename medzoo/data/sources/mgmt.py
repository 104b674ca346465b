"""RSNA-MICCAI Brain Tumor Radiogenomic Classification: MGMT promoter methylation from MR, one row per case.

The layout is that of https://www.kaggle.com/competitions/rsna-miccai-brain-tumor-radiogenomic-classification. The
slices of a series are sorted by their position when they are read: their numbers neither start at 1 nor have no gaps.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from medzoo.data.columns import Columns
from medzoo.data.faults import join_some
from medzoo.data.identity import hashed
from medzoo.data.labels import LabelRules
from medzoo.data.sources.options import SourceChoices
from medzoo.data.sources.published import PublishedData, TableFields
from medzoo.data.sources.tree import OUTSIDE, OUTSIDE_ADVICE, leads_out, one_file, walk_tree
from medzoo.data.table_csv import read_csv
from medzoo.data.table_paths import absolute
from medzoo.data.table_rows import assemble
from medzoo.errors import ConfigError, DataError, did_you_mean
from medzoo.progress import track

__all__ = ["ABOUT", "LABEL", "SEQUENCES"]

LABEL = "MGMT methylated"
SEQUENCES = ("FLAIR", "T1w", "T1wCE", "T2w")
_TABLE, _ID, _VALUE = "train_labels.csv", "BraTS21ID", "MGMT_value"
_LEFT_OUT = ("00109", "00123", "00709")
_GET = "Unpack the archive of the competition into it; see medzoo fetch data:mgmt."
_CASE = re.compile(r"\d{5}")
_SHORT = re.compile(r"\d{1,4}")
_NUMBER = re.compile(r"\d+")


def _read(folder: Path, choices: SourceChoices) -> TableFields:
    sequence = choices.sequence or "FLAIR"
    if sequence not in SEQUENCES:
        raise ConfigError(
            f"from_source('mgmt'): expected sequence to be one of {', '.join(map(repr, SEQUENCES))}, got {sequence!r}."
            f"{did_you_mean(sequence, SEQUENCES)}"
        )
    cases, tables = _find(folder)
    path = one_file(tables, _TABLE, folder)
    if path is None:
        raise DataError(f"{folder}: expected {_TABLE} in it or in a folder below, found none. {_GET}")
    if not cases:
        raise DataError(f"{folder}: expected folders of cases such as train/00000/{sequence}, found none. {_GET}")
    columns = _with_ids(read_csv(path, wanted=[_ID, _VALUE]))
    kept = [row for row, case in enumerate(columns.values[_ID]) if case not in _LEFT_OUT]
    if count := len(columns) - len(kept):
        columns = columns.select(kept)
        note = f"{count} cases left out, as the organisers advise ({', '.join(_LEFT_OUT)}): images are missing or blank"
        columns = replace(columns, notes=(*columns.notes, note))
    if unlabelled := len(cases.keys() - set(columns.values[_ID]) - set(_LEFT_OUT)):
        columns = replace(columns, notes=(*columns.notes, f"{unlabelled:,} cases without a label left out"))
    columns, paths = _with_images(columns, cases, sequence, choices, folder)
    ids = [f"case {hashed(case)} {sequence}" for case in columns.values[_ID]]
    return assemble(
        columns, ids=ids, paths=paths, label=_VALUE, patient=_ID, groups=[], published=True,
        rules=LabelRules(names=[LABEL]),
    )  # fmt: skip


def _find(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """Return the folders of the cases by id, without those of the unlabelled test, and the tables."""
    cases: dict[str, Path] = {}
    tables: list[Path] = []
    twice: list[str] = []
    short: set[Path] = set()

    def enter(below: Path) -> bool:
        return below.name != "test" and not _CASE.fullmatch(below.parent.name)

    for here, names in walk_tree(folder, enter):
        if _CASE.fullmatch(here.name) and cases.setdefault(here.name, here) != here:
            both = [path.parent.relative_to(folder).as_posix() for path in (cases[here.name], here)]
            twice.append(f"case {hashed(here.name)} in {' and '.join(both)}")
        if here.name in SEQUENCES and _SHORT.fullmatch(here.parent.name):
            short.add(here.parent)
        tables += [here / _TABLE] if _TABLE in names else []
    if short:
        raise DataError(
            f"{folder}: expected folders of cases named by ids of five digits, such as train/00000/FLAIR, found "
            f"{len(short):,} with fewer digits, which have lost zeros in front. Unpack the archive again, or put the "
            "zeros back, as 00012 for 12."
        )
    if twice:
        raise DataError(
            f"{folder}: expected each case once, found {len(twice):,} twice: {join_some(twice, 3)}. Remove one."
        )
    return cases, tables


def _with_ids(columns: Columns) -> Columns:
    """Return the rows with ids of five digits; zeros in front that a spreadsheet removed are put back."""
    columns.require(patient=_ID, label=_VALUE)
    faults, given = columns.faults, columns.values[_ID]
    wrong = [(row, "") for row, case in enumerate(given) if not re.fullmatch(r"[0-9]{1,5}", case)]
    faults.add_rows(
        f"rows whose {_ID} is not five digits", wrong,
        "Copy the file again from its source. A spreadsheet writes 00009 as 9 or 9.0: keep the column as text.",
    )  # fmt: skip
    columns.values[_ID] = full = [case.zfill(5) for case in given]
    first: dict[str, int] = {}
    twice = [
        (row, f"the id of line {faults.lines[first[case]]}")
        for row, case in enumerate(full) if first.setdefault(case, row) != row
    ]  # fmt: skip
    faults.add_rows("rows with the id of another row", twice, "Keep one row for each case.")
    short = sum(len(case) < 5 for case in given)
    note = f"{short:,} ids had lost zeros in front, as in a spreadsheet, which were put back: ids have five digits"
    return replace(columns, notes=(*columns.notes, note)) if short else columns


def _with_images(
    columns: Columns, cases: dict[str, Path], sequence: str, choices: SourceChoices, folder: Path
) -> tuple[Columns, list[str]]:
    """Return the rows whose images are there, and the files of each."""
    faults, found = columns.faults, dict[int, str]()
    absent, empty, outside = list[tuple[int, str]](), list[tuple[int, str]](), list[tuple[int, str]]()
    root = os.path.realpath(folder)
    for row, case in enumerate(track(columns.values[_ID], "listing images")):
        files = _slices(cases[case] / sequence) if case in cases else []
        if not files:
            absent.append((row, ""))
        elif leads_out(files, root):
            outside.append((row, ""))
        elif any(file.stat().st_size == 0 for file in files):
            empty.append((row, ""))
        else:
            found[row] = "\n".join(map(absolute, files))
    faults.add_rows(f"cases with {OUTSIDE}", outside, OUTSIDE_ADVICE)
    faults.add_rows("cases with empty files (0 bytes)", empty, "Unpack the archive again.")
    if choices.missing == "refuse":
        faults.add_rows(
            f"cases without images of {sequence}", absent,
            f"Looked in {folder}: unpack the other cases, or give missing='drop' to leave these out.",
        )  # fmt: skip
        faults.check()
    elif absent:
        columns = replace(
            columns, notes=(*columns.notes, f"{len(absent):,} cases without images of {sequence} left out")
        )
    faults.check()
    return columns.select(list(found)), list(found.values())


def _slices(folder: Path) -> list[Path]:
    """Return the files of a series by their number, for the eye; reading sorts them by position."""
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.suffix.lower() == ".dcm" and not path.name.startswith(".")]
    return sorted(files, key=lambda path: ([int(number) for number in _NUMBER.findall(path.name)], path.name))


ABOUT = PublishedData(
    title="RSNA-MICCAI Brain Tumor Radiogenomic Classification: MGMT promoter methylation of 585 glioblastomas, MR",
    get="Download the data of https://www.kaggle.com/competitions/rsna-miccai-brain-tumor-radiogenomic-classification, "
    "137 GB, after accepting its rules, and unpack it. The labelled part, train, and one sequence are enough.",
    licence="the rules of the competition: research and education, no redistribution",
    citation="Baid et al., The RSNA-ASNR-MICCAI BraTS 2021 Benchmark on Brain Tumor Segmentation and Radiogenomic "
    "Classification, 2021, arXiv:2107.02314",
    layout=(
        "train/00000/{FLAIR,T1w,T1wCE,T2w}/Image-N.dcm: 585 cases",
        "train_labels.csv: BraTS21ID, MGMT_value; 00109, 00123 and 00709 are left out",
    ),
    read=_read,
    tables=(_TABLE,),
    options=("missing", "sequence"),
    counts={"rows": 582, "patients": 582},
)
