"""Files of scores of any model: ids, patients, targets and scores, checked once, all faults by line.

Axes: n rows, k columns of scores, l labels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.contract import check_task
from medzoo.data.columns import Columns
from medzoo.data.faults import Faults, join_some, quote
from medzoo.data.table import Table
from medzoo.data.table_csv import read_records
from medzoo.data.table_rows import check_patients, group_columns
from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.caution import caution_of_file
from medzoo.evaluation.score_files.columns import SUM_TOLERANCE, Given, read_given, read_truth
from medzoo.evaluation.score_files.join import join_table
from medzoo.evaluation.score_files.layout import INDEX, PATIENTS, Layout, ScoreOptions, recognise
from medzoo.evaluation.score_files.outputs import LabelledScores, name_outputs
from medzoo.evaluation.score_files.pick import pick_outputs
from medzoo.evaluation.score_files.readers import read_readers

__all__ = ["read_scores", "thresholds_of"]

Fields = dict[str, Any]
OWN_TOLERANCE = 1e-5  # of float32


def read_scores(
    path: str | os.PathLike[str], options: ScoreOptions, *, table: Table | None, partial: bool, delimiter: str | None
) -> Fields:
    """Return the fields of the scores, ``logits`` and ``probabilities`` as they are given; one may be ``None``.

    Args:
        path: the file.
        options: what the user named.
        table: gives ids, targets, patients and groups of the rows; ``None`` takes those of the file.
        partial: accept rows of the table without a score, and scores without a row.
        delimiter: of the file; ``None`` recognises it.

    Raises:
        DataError: everything that is wrong with the file, by line.
        ConfigError: it is not clear what a column is; names the option to give. Or the file is of a run of
            :func:`medzoo.reproduce` that is not honest.
    """
    _check(options)
    columns, decimal_comma, notes = _read(path, options, table, delimiter)
    source = columns.faults.source
    _check_run(Path(source))
    columns.require(
        **{n: getattr(options, n) or None for n in ("image", "patient", "groups")},
        target=_names(options.target), score=_names(options.score),
    )  # fmt: skip
    layout = recognise(
        list(columns.values), options, source, None if table is None else table.labels, columns.values
    )  # fmt: skip
    given = read_given(columns, layout, options.scale, decimal_comma)
    if table is None:
        found, fields = _alone(columns, layout, options, given)
    else:
        found, fields = _joined(columns, layout, options, given, table, partial)
    return {
        **fields, "logits": found.given.logits, "probabilities": found.given.probabilities,
        "tolerance": OWN_TOLERANCE if layout.own else SUM_TOLERANCE, "labels": found.labels, "task": found.task,
        "source": source, "notes": notes + given.notes + found.notes + fields["notes"],
    }  # fmt: skip


def _check(options: ScoreOptions) -> None:
    if options.scale not in ("auto", "probability", "logit"):
        raise ConfigError(f"Scores: expected scale 'auto', 'probability' or 'logit', got {options.scale!r}.")
    if isinstance(options.labels, str):
        raise ConfigError(f"Scores: expected labels to be a list of names, got the text {options.labels!r}.")
    if not options.reader:
        raise ConfigError("Scores: expected reader to be what the names of readers' columns begin with, got ''.")
    if options.task is not None:
        check_task("Scores", options.task)


def _check_run(path: Path) -> None:
    """Raise ConfigError for a file in the folder of a run whose figures say nothing about new patients."""
    folder, caution = caution_of_file(path)
    if caution:
        raise ConfigError(
            f"{path}: expected scores whose figures hold for new patients, got those of a reproduction. {caution} Take "
            f"those of the honest run, {folder.parent / 'honest'}."
        )


def _names(given: str | Sequence[str] | Mapping[str, str] | None) -> str | Sequence[str] | None:
    return list(given.values()) if isinstance(given, Mapping) else given


def _read(
    path: str | os.PathLike[str], options: ScoreOptions, table: Table | None, delimiter: str | None
) -> tuple[Columns, bool, tuple[str, ...]]:
    """Return the columns of the file, whether numbers may have a decimal comma, and notes on its header."""
    here, delimiter, records = read_records(path, wanted=options.named, delimiter=delimiter)
    notes: tuple[str, ...] = ()
    header = [name.strip() for name in records[0][1]]
    if _is_row(header):
        notes = ("the file has no header: its first column is taken as ids, the others as scores",)
        header = ["id", *(str(i) for i in range(len(header) - 1))]
        if table is None and options.labels is None:
            raise ConfigError(
                f"{here}: the file has no header, so that it names no label. Give labels=, or the table= of the "
                "images, which has the targets too."
            )
    else:
        records = records[1:]
    # As pandas names columns without a name when it reads and writes them again.
    header = ["" if re.fullmatch(r"Unnamed: \d+(\.\d+)?", name) else name for name in header]
    if header and not header[0]:
        header[0] = INDEX
    if twice := sorted({quote(name) for name in header if name and header.count(name) > 1}):
        raise DataError(
            f"{here}: expected one column of each name, found {join_some(twice)} more than once. Rename all but one."
        )
    if not records:
        raise DataError(f"{here}: expected rows below the header, found none. Add the rows, or give another file.")
    if unnamed := header.count(""):
        notes += (f"{unnamed} column{'s' * (unnamed > 1)} without a name left out",)
    return _columns(here, header, records), delimiter != ",", notes


def _is_row(cells: Sequence[str]) -> bool:
    """Whether the first line of a file is no header: a text and then numbers, of which one is no integer.

    >>> _is_row(["a.png", "0.5", "1.0"]), _is_row(["", "0", "1"]), _is_row(["id", "probability"])
    (True, False, False)
    """
    numbers = cells[1:]
    return bool(numbers and cells[0]) and all(map(_is_number, numbers)) and not all(n.isdigit() for n in numbers)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _columns(path: Path, header: list[str], records: list[tuple[int, list[str]]]) -> Columns:
    """Return the columns that have a name; rows of another length are faults."""
    faults = Faults(str(path), "line")
    width, kept = len(header), records
    if any(len(fields) != width for _, fields in records):
        records = [(line, fields if any(fields[width:]) else fields[:width]) for line, fields in records]
        kept = [(line, fields) for line, fields in records if len(fields) == width]
        faults.add(
            "rows with another number of fields than the header",
            ((line, f"{len(fields)} fields") for line, fields in records if len(fields) != width),
            f"The header has {width}. Put a value that holds the delimiter in quotes.",
        )
    faults.lines = [line for line, _ in kept]
    cells = list(zip(*(fields for _, fields in kept), strict=True)) or [()] * width
    return Columns(
        {name: [cell.strip() for cell in values] for name, values in zip(header, cells, strict=True) if name}, faults
    )


def _alone(columns: Columns, layout: Layout, options: ScoreOptions, given: Given) -> tuple[LabelledScores, Fields]:
    """Return outputs and fields of a file that has its own targets."""
    faults = columns.faults
    truth = read_truth(columns, layout, given)
    found = name_outputs(given, truth, options, faults)
    ids, notes = _ids(columns, layout)
    cells = [] if layout.patient is None else columns.values[layout.patient]
    patients = check_patients(cells, faults) if any(cells) else None  # medzoo writes blanks where none are known
    if patients is None:
        listed = ", ".join(PATIENTS[:2])
        notes += (f"no patients are known ({listed}, …), so that each row is counted as a patient of its own",)
    else:
        notes += (f"patients are in the column {_shown(layout.patient)}",)
    chosen = options.groups is not None
    groups, left_out = group_columns(
        {n: columns.values[n] for n in options.groups or ()} if chosen
        else {n: v for n, v in columns.values.items() if n not in layout.used}, chosen=chosen,
    )  # fmt: skip
    readers = read_readers(columns.values, options.reader, found.labels, found.task, faults)
    faults.check()
    return found, {
        "ids": ids, "targets": found.targets, "patients": patients, "groups": groups, "readers": readers,
        "notes": notes + left_out,
    }  # fmt: skip


def _joined(
    columns: Columns, layout: Layout, options: ScoreOptions, given: Given, table: Table, partial: bool
) -> tuple[LabelledScores, Fields]:
    """Return outputs and fields of scores whose targets, patients and groups are those of a table."""
    faults = columns.faults
    if layout.image is None:
        listed = join_some([quote(n) for n in columns.values if n != INDEX], 40)
        raise ConfigError(
            f"{faults.source}: expected a column of ids, by which scores are joined with the table, found none that "
            f"is known among {listed}. Give image= with its name."
        )
    ids, notes = _ids(columns, layout)
    truth = read_truth(columns, layout, given)
    found = pick_outputs(given, table, options, faults)
    faults.check()
    rows, at, how = join_table(ids, table, partial, faults)
    part = table.select(rows)
    found = found.take(at, part, truth, faults, np.asarray(faults.lines)[at], layout.by_name)
    extra = {n: np.asarray(columns.values[n], np.str_)[at].tolist() for n in options.groups or ()}
    groups, _ = group_columns(extra)
    faults.lines = np.asarray(faults.lines)[at].tolist()
    in_file = {
        n: np.asarray(v, np.str_)[at].tolist() for n, v in columns.values.items() if n.startswith(options.reader)
    }
    in_table = {n: v.tolist() for n, v in part.groups.items() if n.startswith(options.reader)}
    readers = read_readers({**in_table, **in_file}, options.reader, found.labels, found.task, faults)
    faults.check()
    return found, {
        "ids": part.ids, "targets": found.targets, "patients": part.patients, "readers": readers,
        "groups": {n: v for n, v in part.groups.items() if not n.startswith(options.reader)} | groups,
        "notes": notes + how + part.notes,
    }  # fmt: skip


def _ids(columns: Columns, layout: Layout) -> tuple[NDArray[np.str_], tuple[str, ...]]:
    """Return the id of each row, which is its line where the file has none."""
    faults = columns.faults
    if layout.image is None:
        return np.array([f"line {line}" for line in faults.lines], np.str_), (
            "the file has no ids: rows are named by their line",
        )
    cells = columns.values[layout.image]
    faults.add_rows("rows without an id", ((i, "") for i, c in enumerate(cells) if not c), "Give each row its id.")
    first: dict[str, int] = {}
    twice = [
        (i, f"the id of line {faults.lines[first[c]]}")
        for i, c in enumerate(cells) if c and first.setdefault(c, i) != i
    ]  # fmt: skip
    faults.add_rows(
        "rows with the id of another row", twice,
        "Keep one of them. If it is no id of an image, give image= with the column that is one, or image='' for none.",
    )  # fmt: skip
    return np.array(cells, np.str_), (f"ids are in the column {_shown(layout.image)}",)


def _shown(name: str | None) -> str:
    return "without a name" if name == INDEX else quote(name or "")


def thresholds_of(
    given: float | Sequence[float | None] | Mapping[str, float | None] | None, labels: Sequence[str], task: str
) -> tuple[float | None, ...]:
    """Return one threshold for each label; none where none was given.

    >>> thresholds_of({"Edema": 0.2}, ("Mass", "Edema"), "multilabel"), thresholds_of(None, ("Mass",), "binary")
    ((None, 0.2), ())
    """
    if given is None:
        return ()
    if task == "multiclass":
        raise ConfigError("Scores: a multiclass task takes the most probable label. Leave thresholds out.")
    values: list[float | None]
    if isinstance(given, Mapping):
        if unknown := [name for name in given if name not in labels]:
            raise ConfigError(
                f"Scores: thresholds has {join_some([quote(n) for n in unknown])}, but the labels are "
                f"{join_some(labels, 20)}. Name them as they are."
            )
        values = [given.get(label) for label in labels]
    else:
        values = [given] * len(labels) if isinstance(given, (int, float)) else list(given)
    if len(values) != len(labels) or any(v is not None and not 0 < v < 1 for v in values):
        raise ConfigError(
            f"Scores: expected thresholds to be a probability between 0 and 1 for each of {len(labels)} labels, got "
            f"{given!r}. Thresholds are for probabilities, also where the scores are logits."
        )
    return tuple(None if v is None else float(v) for v in values)
