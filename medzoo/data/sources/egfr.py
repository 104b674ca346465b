"""NSCLC Radiogenomics: EGFR mutation from CT of the chest, one row per case.

The layout is that of TCIA, doi:10.7937/K9/TCIA.2017.7hs46erv, and of Bakr et al., doi:10.1038/sdata.2018.202. Messages
name cases by line and the ids of rows have a hash of the case; paths of images have the names of their folders.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from medzoo.data.columns import Columns
from medzoo.data.faults import quote
from medzoo.data.identity import hashed
from medzoo.data.labels import LabelRules
from medzoo.data.roi import note_sizes
from medzoo.data.sources.egfr_series import Choice, choose_ct, read_case
from medzoo.data.sources.options import SourceChoices
from medzoo.data.sources.published import PublishedData, TableFields
from medzoo.data.sources.tree import OUTSIDE, OUTSIDE_ADVICE, leads_out, one_file, walk_tree
from medzoo.data.table_csv import read_csv
from medzoo.data.table_paths import absolute
from medzoo.data.table_rows import assemble
from medzoo.errors import ConfigError, DataError, did_you_mean
from medzoo.progress import track

__all__ = ["ABOUT", "LABEL"]

LABEL = "EGFR mutant"
_TABLE = "NSCLCR01Radiogenomic_DATA_LABELS*.csv"
_CASE, _STATUS = "Case ID", "EGFR mutation status"
_CASE_NAME = re.compile(r"(R01|AMC)-\d{3}")
_MEANING = {"mutant": "1", "wildtype": "0"}
_NOT_KNOWN = ("unknown", "not collected", "")
# Columns of the table, and what they are called as groups.
_GROUPS = {
    "Patient affiliation": "affiliation", "Gender": "sex", "Ethnicity": "ethnicity", "Smoking status": "smoking",
    "Histology": "histology", "Age at Histological Diagnosis": "age", "Pathological T stage": "t_stage",
}  # fmt: skip
_RELOAD = "Download the cases with the NBIA Data Retriever"
# Why a case is not used, and what to do where it has to be.
_ABSENT = {
    "folder": f"{_RELOAD}, or give missing='drop' to leave these out.",
    "CT series": f"{_RELOAD}, or give missing='drop' to leave these out.",
    "segmentation of a CT": "Give missing='drop' to leave them out, or roi=None and patch=None for complete scans.",
}
# What is wrong with a case: another CT than the right one may be taken, so that it is not left out in silence.
_UNREADABLE = "series that cannot be read"
_MOVED = "cases whose folder has images of another PatientID"
_LINKED = f"cases with {OUTSIDE}"
_WRONG = {_UNREADABLE: f"{_RELOAD}.", _MOVED: f"{_RELOAD}.", _LINKED: OUTSIDE_ADVICE}


def _read(folder: Path, choices: SourceChoices) -> TableFields:
    if choices.roi not in (None, "seg"):
        raise ConfigError(
            f"from_source('egfr'): expected roi 'seg' or None, got {choices.roi!r}.{did_you_mean(choices.roi, ['seg'])}"
            " A column of boxes or masks is for a table of your own."
        )
    folders: dict[str, list[Path]] = {}
    tables = list[Path]()
    for here, names in walk_tree(folder, lambda below: not _CASE_NAME.fullmatch(below.parent.name)):
        if _CASE_NAME.fullmatch(here.name):
            folders.setdefault(here.name, []).append(here)
        tables += [here / name for name in names if fnmatch(name, _TABLE)]
    path = one_file(tables, _TABLE, folder)
    if path is None:
        raise DataError(
            f"{folder}: expected {_TABLE} in it or in a folder below, found none. See medzoo fetch data:egfr."
        )
    if not folders:
        raise DataError(
            f"{folder}: expected folders of cases such as 'NSCLC Radiogenomics/R01-001', found none. {_RELOAD}."
        )
    columns = read_csv(path, wanted=[_CASE, _STATUS])
    columns.require(case=_CASE, label=_STATUS)
    columns = _known(columns)
    chosen, columns = _with_images(columns, folders, choices, os.path.realpath(folder))
    return _fields(columns, chosen, choices)


def _known(columns: Columns) -> Columns:
    """Return the rows whose status is known, as 0 and 1; others are counted, and misspelt ones are faults."""
    faults, cases = columns.faults, columns.values[_CASE]
    first: dict[str, int] = {}
    twice = [
        (i, f"the case of line {faults.lines[first[c]]}") for i, c in enumerate(cases) if first.setdefault(c, i) != i
    ]
    faults.add_rows("rows with the case of another row", twice, "Keep one row for each case.")
    wrong = [(i, "") for i, case in enumerate(cases) if not _CASE_NAME.fullmatch(case)]
    faults.add_rows("rows whose Case ID is not R01- or AMC- and three digits", wrong, "Correct them.")
    status = [value.lower() for value in columns.values[_STATUS]]
    odd = [
        (i, quote(columns.values[_STATUS][i]))
        for i, value in enumerate(status) if value not in (*_MEANING, *_NOT_KNOWN)
    ]  # fmt: skip
    faults.add_rows(
        f"values of {_STATUS!r} that are not known", odd, "Give Mutant, Wildtype, Unknown or Not collected."
    )
    counts = Counter(columns.values[_STATUS][i] or "blank" for i, value in enumerate(status) if value in _NOT_KNOWN)
    notes = tuple(f"left out, as {_STATUS} is {name}: {count:,}" for name, count in sorted(counts.items()))
    columns = replace(columns, notes=(*columns.notes, *notes))
    columns.values[_STATUS] = [_MEANING.get(value, "") for value in status]
    return columns.select([i for i, value in enumerate(status) if value not in _NOT_KNOWN])


def _with_images(
    columns: Columns, folders: Mapping[str, list[Path]], choices: SourceChoices, root: str
) -> tuple[list[Choice], Columns]:  # fmt: skip
    """Return the choice for each row that has images, and these rows."""
    faults, found = columns.faults, dict[int, Choice]()
    absent: dict[str, list[tuple[int, str]]] = {what: [] for what in _ABSENT}
    wrong: dict[str, list[tuple[int, str]]] = {what: [] for what in _WRONG}
    for row, case in enumerate(track(columns.values[_CASE], "reading headers")):
        if case not in folders:
            absent["folder"].append((row, ""))
            continue
        series, unreadable = read_case(folders[case])
        wrong[_UNREADABLE] += [(row, text) for text in unreadable]
        if any(one.patient not in ("", case) for one in series):
            wrong[_MOVED].append((row, ""))
            continue
        if leads_out([file for one in series if one.modality in ("CT", "SEG") for file in one.files], root):
            wrong[_LINKED].append((row, ""))
            continue
        try:
            chosen = choose_ct(series, with_tumour=choices.roi is not None)
        except DataError as error:
            wrong[_UNREADABLE].append((row, str(error)))
            continue
        if chosen is None:
            absent["CT series"].append((row, ""))
        elif choices.roi is not None and chosen.tumour is None:
            absent["segmentation of a CT"].append((row, ""))
        else:
            found[row] = chosen
    for what, rows in wrong.items():
        faults.add_rows(what, rows, _WRONG[what])
    if choices.missing == "refuse":
        for what, rows in absent.items():
            faults.add_rows(f"cases without a {what}", rows, _ABSENT[what])
    faults.check()
    notes = tuple(f"left out, without a {what}: {len(rows):,}" for what, rows in absent.items() if rows)
    return list(found.values()), replace(columns, notes=(*columns.notes, *notes)).select(list(found))


def _fields(columns: Columns, chosen: list[Choice], choices: SourceChoices) -> TableFields:
    cases = columns.values[_CASE]
    kept = {"case": cases, "label": columns.values[_STATUS], "cohort": [case[:3] for case in cases]}
    kept |= {group: columns.values[name] for name, group in _GROUPS.items() if name in columns.values}
    kept["manufacturer"] = [one.ct.manufacturer for one in chosen]
    points = None
    if choices.roi is not None:
        points = np.array([one.tumour.centre for one in chosen if one.tumour is not None], np.float64).reshape(-1, 3)
    notes = (*columns.notes, *_notes(chosen, choices))
    return assemble(
        replace(columns, values=kept, notes=notes), ids=[f"case {hashed(case)} CT" for case in cases],
        paths=["\n".join(map(absolute, one.ct.files)) for one in chosen], label="label", patient="case", groups=None,
        published=True, rules=LabelRules(names=[LABEL]), points=points,
    )  # fmt: skip


def _notes(chosen: list[Choice], choices: SourceChoices) -> tuple[str, ...]:
    """Return what was chosen, counted."""
    several, equal = sum(one.of > 1 for one in chosen), sum(one.equal for one in chosen)
    slices = [one.ct.slices for one in chosen] or [0]
    notes = [
        f"{several:,} of {len(chosen):,} cases have several CT series: the one with the most slices was taken, "
        f"{min(slices):,} to {max(slices):,}"
    ]
    if equal:
        notes.append(f"{equal:,} cases have several CT series of as many slices: the first by number was taken")
    if choices.roi is None:
        return (*notes, "roi is None: a tumour is a few voxels of a complete CT at 64 × 64 × 64. See roi='seg'")
    if by_frame := sum(one.by_frame for one in chosen):
        notes.append(
            f"{by_frame:,} cases have a segmentation that names a series that is not there: the longest CT of the same "
            "frame of reference was taken"
        )
    doubled = sum(one.segmentations > 1 for one in chosen)
    if doubled:
        notes.append(f"{doubled:,} cases have several segmentations: the one that marks the most was taken")
    return (*notes, *note_sizes([one.tumour.sides for one in chosen if one.tumour is not None], "tumours"))


ABOUT = PublishedData(
    title="NSCLC Radiogenomics: EGFR mutation status of 211 cases of lung cancer, with CT, PET and segmentations",
    get="Download the collection 'NSCLC Radiogenomics' of https://www.cancerimagingarchive.net with the NBIA Data "
    "Retriever, 98 GB, and the clinical CSV file of the same page, into one folder. The CT and SEG series are enough.",
    licence="CC BY 3.0",
    citation="Bakr et al., A radiogenomic dataset of non-small cell lung cancer, Scientific Data 5 (2018) 180202, "
    "doi:10.1038/sdata.2018.202",
    layout=(
        "NSCLCR01Radiogenomic_DATA_LABELS_2018-05-22_1500-shifted.csv: 211 cases; Case ID, EGFR mutation status, …",
        "manifest-…/NSCLC Radiogenomics/R01-001/STUDY/SERIES/1-001.dcm: CT, PET and SEG",
    ),
    read=_read,
    tables=(_TABLE,),
    options=("missing", "roi"),
)
