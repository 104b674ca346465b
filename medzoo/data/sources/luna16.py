"""LUNA16: candidates for lung nodules in CT, one row per candidate.

The layout and the advice on it are those of https://luna16.grand-challenge.org/Data and of the Zenodo records 3723295
and 4121926. Coordinates are LPS mm; a scan stands for a patient, as the files name none.

Axes: n rows.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medzoo.data.faults import Faults, join_some
from medzoo.data.sources.luna16_annotations import ANNOTATIONS, find_csv, read_nodules
from medzoo.data.sources.luna16_places import Places, read_places
from medzoo.data.sources.options import SourceChoices
from medzoo.data.sources.published import PublishedData, TableFields
from medzoo.data.sources.tree import OUTSIDE, OUTSIDE_ADVICE, leads_out, walk_tree
from medzoo.data.table_paths import absolute
from medzoo.data.texts import Texts
from medzoo.errors import DataError
from medzoo.io.files import wrap_read_errors
from medzoo.io.hashing import hash_text
from medzoo.io.metaimage_header import read_header
from medzoo.progress import track

__all__ = ["ABOUT", "LABEL", "scan_names"]

LABEL = "nodule"
_CANDIDATES = "candidates_V2.csv"
_OLD = "candidates.csv"
_SUBSET = re.compile(r"subset(\d)", re.IGNORECASE)


@dataclass(frozen=True)
class _Scan:
    path: Path
    subset: str


def _read(folder: Path, choices: SourceChoices) -> TableFields:
    found = _candidates(folder)
    places = read_places(found, "class")
    faults = places.faults
    scans = _scans(folder, faults)
    rows, notes = _there(places, scans, choices.missing, faults)
    wrong = rows[~np.isin(places.values[rows], (0, 1)) & np.isfinite(places.values[rows])]
    faults.add_rows(
        "candidates whose class is neither 0 nor 1", ((int(row), f"{places.values[row]:g}") for row in wrong),
        "Copy the file again from its source.",
    )  # fmt: skip
    _check_inside(folder, places, rows, scans, faults)
    rows, doubled = _without_duplicates(places, rows, faults)
    faults.check()
    if not (places.values[rows] == 1).any():
        raise DataError(f"{found}: expected candidates of class 1 in the scans, found none. Add other subsets.")
    population = float((places.values[rows] == 1).mean())
    kept, drawn = _draw(places, rows, choices)
    unhit = _missed_nodules(folder, places, rows, scans)
    notes += (*doubled, *drawn, *unhit, "a scan stands for a patient: the files name none")
    return _fields(places, kept, scans) | {
        "source": str(found),
        "prevalence": (population,) if drawn and len(kept) < len(rows) else None,
        "notes": notes,
    }


def _candidates(folder: Path) -> Path:
    found = find_csv(folder, _CANDIDATES)
    if found is not None:
        return found
    if find_csv(folder, _OLD) is not None:
        raise DataError(
            f"{folder}: expected {_CANDIDATES}, found {_OLD} alone, of which the publishers say that it should not be "
            f"used. Download {_CANDIDATES}."
        )
    raise DataError(
        f"{folder}: expected {_CANDIDATES} in it or in a folder below, found none. Give the folder that holds the "
        "subsets and the CSV files."
    )


def scan_names(folder: Path) -> frozenset[str]:
    """Return the seriesuid of every scan that is there, with candidates or without.

    Raises:
        DataError: there is none, or one is there twice.
    """
    faults = Faults(str(folder))
    found = _scans(folder, faults)
    faults.check()
    return frozenset(found)


def _scans(folder: Path, faults: Faults) -> dict[str, _Scan]:
    """Return the scans by seriesuid; masks of the lungs, which have the same names, are in no subset."""
    found: dict[str, _Scan] = {}
    twice = []
    for here, names in walk_tree(folder):
        parts = [match[1] for part in (folder.name, *here.relative_to(folder).parts) if (match := _match(part))]
        for name in names if parts else ():
            if name.lower().endswith(".mhd"):
                scan = _Scan(here / name, parts[-1])
                first = found.setdefault(name[: -len(".mhd")], scan)
                if first is not scan:
                    both = [one.path.parent.relative_to(folder).as_posix() for one in (first, scan)]
                    twice.append(f"{_name(scan.path.stem)} in {' and '.join(both)}")
    if twice:
        faults.add_general(f"{len(twice):,} scans are there twice: {join_some(twice, 3)}. Remove one of each.")
    if not found:
        raise DataError(f"{folder}: expected scans as subset0/SERIESUID.mhd, found none. Unpack the subsets into it.")
    return found


def _name(series: str) -> str:
    """Return what a scan is called in ids and messages: its seriesuid stands for a patient."""
    return f"scan {hash_text(series)}"


def _match(part: str) -> re.Match[str] | None:
    return _SUBSET.fullmatch(part)


def _there(
    places: Places, scans: Mapping[str, _Scan], missing: str, faults: Faults
) -> tuple[NDArray[np.int64], tuple[str, ...]]:  # fmt: skip
    """Return the rows without faults whose scan is there, and a note on the others."""
    known = np.array([name in scans for name in places.names.tolist()] + [True])  # the last is that of a blank
    there = known[places.series]
    absent = int((~there).sum())
    usable = there & (places.series >= 0) & np.isfinite(places.points).all(1)
    rows = np.flatnonzero(usable)
    if not absent:
        return rows, ()
    what = f"{absent:,} of {len(places):,} candidates are of {int((~known).sum()):,} scans that are not there"
    subsets = sorted({scan.subset for scan in scans.values()})
    if not there.any():
        faults.add_general(
            f"{what}, which is all of them. Check that the scans have the names of the column seriesuid."
        )
    elif missing == "refuse":
        faults.add_general(
            f"{what}; there are scans of subset {', '.join(subsets)}. Add the others, or give missing='drop' to leave "
            "their candidates out."
        )
    return rows, (f"{what} and left out; there are scans of subset {', '.join(subsets)}",)


def _check_inside(
    folder: Path, places: Places, rows: NDArray[np.int64], scans: Mapping[str, _Scan], faults: Faults
) -> None:  # fmt: skip
    """Add the candidates that are outside of their scan, and the scans that cannot be used."""
    order = rows[np.argsort(places.series[rows], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(places.series[order])) + 1) if len(order) else []
    outside: list[tuple[int, str]] = []
    unusable: list[tuple[int, str]] = []
    links: list[tuple[int, str]] = []
    root = os.path.realpath(folder)
    for own in track(groups, "reading headers"):
        first, series = int(own[0]), str(places.names[places.series[own[0]]])
        path = scans[series].path
        try:
            if leads_out([path], root):
                links.append((first, _name(series)))
                continue
            with wrap_read_errors(path, "a MetaImage"):
                header = read_header(path)
                if len(header.size) != 3:
                    raise DataError(f"{path}: expected a volume, found {len(header.size)} axes. Copy the scan again.")
                to_voxel = np.linalg.inv(header.affine)
        except np.linalg.LinAlgError:
            unusable.append((first, f"{_name(series)}: expected three independent axes, found a singular matrix"))
            continue
        except DataError as error:
            reason = str(error).removeprefix(f"{path}: ").partition(". ")[0].rstrip(".")
            unusable.append((first, f"{_name(series)}: {reason.replace(series, 'SERIESUID')}"))
            continue
        lps = places.points[own] * [-1.0, -1.0, 1.0]
        voxels = lps @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        bad = ((voxels < -0.5) | (voxels > np.array(header.size) - 0.5)).any(1)
        size = " × ".join(map(str, header.size))
        outside += [
            (int(row), f"voxel {', '.join(f'{v:.1f}' for v in voxel)} of {size}")
            for row, voxel in zip(own[bad], voxels[bad].tolist(), strict=True)
        ]
    faults.add_rows("scans that cannot be used, each at its first candidate", unusable, "Copy the scans again.")
    faults.add_rows(f"scans with {OUTSIDE}, each at its first candidate", links, OUTSIDE_ADVICE)
    faults.add_rows(
        "candidates outside of their scan", outside,
        "Coordinates are LPS mm of the scan that seriesuid names: copy the file and the scans again.",
    )  # fmt: skip


def _without_duplicates(
    places: Places, rows: NDArray[np.int64], faults: Faults
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the first row of each place; one place with two classes is a fault, which is added."""
    keys = (places.values, *places.points.T, places.series)
    order = rows[np.lexsort([key[rows] for key in keys])]
    before, after = order[:-1], order[1:]
    same = (places.series[before] == places.series[after]) & (places.points[before] == places.points[after]).all(1)
    equal = places.values[before] == places.values[after]
    faults.add_rows(
        "candidates at the place of another with another class",
        [
            (int(row), f"the place of line {places.lines[first]}")
            for first, row in zip(before[same & ~equal], after[same & ~equal], strict=True)
        ],
        "Keep the right one.",
    )
    doubled = after[same & equal]
    note = f"{len(doubled):,} candidates that are in the file twice left out"
    keep = np.ones(len(places), np.bool_)
    keep[doubled] = False
    return rows[keep[rows]], (note,) if len(doubled) else ()


def _draw(
    places: Places, rows: NDArray[np.int64], choices: SourceChoices
) -> tuple[NDArray[np.int64], tuple[str, ...]]:  # fmt: skip
    """Return all positives and the drawn negatives, in the order of the file, and a note."""
    if choices.negatives is None:
        return rows, ()
    is_positive = places.values[rows] == 1
    negatives, count = rows[~is_positive], round(choices.negatives * int(is_positive.sum()))
    if count >= len(negatives):
        note = f"all {len(negatives):,} negatives: {count:,} were to be drawn ({choices.negatives:g} for each positive)"
        return rows, (note,)
    lowest = np.argsort(_random_numbers(places, negatives, choices.sample_seed), kind="stable")[:count]
    note = (
        f"{count:,} of {len(negatives):,} negatives drawn, {choices.negatives:g} for each positive; sample_seed "
        f"{choices.sample_seed}"
    )
    return np.sort(np.concatenate([rows[is_positive], negatives[lowest]])), (note,)


def _random_numbers(places: Places, rows: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Return a number for each candidate that follows from the seed and from where it is, whatever the order is.

    The mixing is that of SplitMix64 (Steele, Lea and Flood, 2014, doi:10.1145/2660193.2660195).
    """
    of_scan = [hashlib.sha256(f"{seed}\n{name}".encode()).digest()[:8] for name in places.names.tolist()]
    state = np.frombuffer(b"".join(of_scan), "<u8")[places.series[rows]]
    for axis in range(3):
        bits = (places.points[rows, axis] + 0.0).view(np.uint64)  # -0.0 is 0.0
        state = (state ^ bits) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state ^= state >> np.uint64(31)
    return state


def _missed_nodules(
    folder: Path, places: Places, rows: NDArray[np.int64], scans: Mapping[str, _Scan]
) -> tuple[str, ...]:  # fmt: skip
    """Return a note on the annotated nodules that no candidate is in, as the challenge counts hits."""
    path = find_csv(folder, ANNOTATIONS)
    if path is None:
        return (f"{ANNOTATIONS} is not there: how many nodules no candidate hits is not known",)
    nodules = read_nodules(path)
    index = {name: i for i, name in enumerate(places.names.tolist())}
    order = rows[np.argsort(places.series[rows], kind="stable")]
    edges = np.searchsorted(places.series[order], np.arange(len(places.names) + 1))
    known = missed = 0
    for name, centre, diameter in zip(nodules.series.tolist(), nodules.centres, nodules.diameters, strict=True):
        if name not in scans:
            continue
        at, known = index.get(name, -1), known + 1
        own = order[edges[at] : edges[at + 1]] if at >= 0 else order[:0]
        missed += not (((places.points[own] - centre) ** 2).sum(1) < (diameter / 2) ** 2).any()
    return (f"{missed:,} of {known:,} annotated nodules of these scans are hit by no candidate",)


def _fields(places: Places, rows: NDArray[np.int64], scans: Mapping[str, _Scan]) -> TableFields:
    names = [scans.get(name) for name in places.names.tolist()]
    files = ["" if scan is None else absolute(scan.path) for scan in names]
    labels = [_name(name) for name in places.names.tolist()]
    series = places.series[rows]
    given = places.points[rows] * [-1.0, -1.0, 1.0] + 0.0  # as the file has it; -0.0 is 0.0
    ids = [f"{labels[at]} @ {x!r}, {y!r}, {z!r}" for at, (x, y, z) in zip(series.tolist(), given.tolist(), strict=True)]
    subsets = np.array(["" if scan is None else scan.subset for scan in names], np.str_)
    return {
        "ids": np.array(ids, np.str_),
        "targets": places.values[rows, None].astype(np.float32),
        "labels": (LABEL,),
        "task": "binary",
        "paths": Texts(files[at] for at in series.tolist()),
        "patients": places.names[series],
        "groups": {"subset": subsets[series]},
        "points": places.points[rows],
        "lines": places.lines[rows],
    }


ABOUT = PublishedData(
    title="LUNA16: candidates for lung nodules in 888 CT scans of LIDC-IDRI",
    get="Download the ten subsets and the CSV files from https://zenodo.org/records/3723295 and "
    "https://zenodo.org/records/4121926, and unpack the subsets into one folder. They take 120 GB. Some of the subsets "
    "are enough with --missing drop, in Python missing='drop'.",
    licence="CC BY 4.0; LIDC-IDRI CC BY 3.0",
    citation="Setio et al., Validation, comparison, and combination of algorithms for automatic detection of pulmonary "
    "nodules in computed tomography images: The LUNA16 challenge, Medical Image Analysis 42 (2017) 1-13, "
    "doi:10.1016/j.media.2017.06.015",
    layout=(
        "subset0/ … subset9/SERIESUID.mhd with SERIESUID.raw or .zraw: 888 scans",
        "candidates_V2.csv: seriesuid, coordX, coordY, coordZ, class; 754,975 rows",
        "annotations.csv: seriesuid, coordX, coordY, coordZ, diameter_mm; 1,186 nodules; optional",
        "annotations_excluded.csv: findings that are no nodules of the challenge; optional",
    ),
    read=_read,
    tables=(_CANDIDATES, _OLD, "annotations.csv", "annotations_excluded.csv"),
    options=("missing", "negatives", "sample_seed"),
    counts={"rows": 754_975, "patients": 888},
)
