"""``Flow``: from all rows of the data to those that were evaluated, and what was left out on the way and why.

It has counts and reasons, and neither ids nor paths: a reason that names a row or a patient is replaced by its kind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.data.identity import Dropped
from medzoo.data.table import Table
from medzoo.errors import DataError
from medzoo.evaluation.run_record import PART, RunRecord
from medzoo.evaluation.scores import Scores

__all__ = [
    "PART_NAMES", "Characteristics", "Flow", "FlowStep", "flow_of_run", "flow_of_scores", "kind_of_reason",
    "rows_in_table",
]  # fmt: skip

PART_NAMES = ("train", "valid", "test")
NO_LABEL, NO_SCORE = "no label is known", "no score"

# What a row was left out for, as medzoo writes it, and its kind, which names nobody.
_REASONS = (
    (r"patient [0-9a-f]+ is also in \w+", "patient also in another part"),
    (r"an image with the same pixels is in \w+", "same image in another part"),
    (r"(no part in column .*)", r"\1"),
    (r".*another kind of image.*", "another kind of image"),
    (r"(cannot be (read|used)).*", "cannot be read"),
)
# What was left out of a source before it became a table, in the notes of the table.
_BEFORE = (
    (r"([\d,]+) duplicate rows? left out", "duplicate row"),
    (r"([\d,]+) rows without an image left out.*", "no image"),
)


@dataclass(frozen=True)
class FlowStep:
    """A step on the way to the rows that were evaluated.

    Attributes:
        text: what the rows are, such as ``"rows in a part of the split"``.
        rows: how many there are.
        patients: of how many patients; ``None`` if that is not known.
        dropped: why rows are not in the next step, and how many; the next step has the others.
    """

    text: str
    rows: int
    patients: int | None
    dropped: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Flow:
    """From all rows to those that were evaluated.

    Attributes:
        steps: one after the other; each has the rows of the one before without its ``dropped``.
        parts: train, valid and test of the run, if it has them.
    """

    steps: tuple[FlowStep, ...]
    parts: tuple[FlowStep, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""

        def plain(steps: Iterable[FlowStep]) -> list[dict[str, Any]]:
            return [asdict(step) | {"dropped": dict(step.dropped)} for step in steps]

        return {"steps": plain(self.steps), "parts": plain(self.parts)}


@dataclass(frozen=True)
class Characteristics:
    """Who and what is in the data: "table 1" of a paper.

    Attributes:
        columns: the parts, such as train, valid and all.
        rows: a name, and the text of each column.
        notes: what the texts mean, and which columns of the data are not shown.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        rows = [{"name": name, **dict(zip(self.columns, texts, strict=True))} for name, texts in self.rows]
        return {"columns": list(self.columns), "rows": rows, "notes": list(self.notes)}


def kind_of_reason(text: str) -> str:
    """Return why a row was left out, without who or what it is.

    >>> kind_of_reason("patient e993f758 is also in test"), kind_of_reason("cannot be used: /data/anna.png: is empty")
    ('patient also in another part', 'cannot be read')
    >>> kind_of_reason("as Anna wished")
    'another reason'
    """
    for pattern, kind in _REASONS:
        found = re.fullmatch(pattern, text, re.DOTALL)
        if found:
            return found.expand(kind)
    return "another reason"


def flow_of_scores(scores: Scores | Table, dropped: Sequence[Dropped] = ()) -> Flow:
    """Return the flow of scores, or of a table, that are of no run.

    Args:
        scores: the rows.
        dropped: rows of their source that have no score.
    """
    known = _known(scores)
    absent = _by_kind({each.id: each.reason for each in dropped if each.id not in set(scores.ids.tolist())}.values())
    count = sum(n for _, n in absent)
    patients = None if absent else _patients(scores, np.ones(len(scores), bool))
    unlabelled = _counted({NO_LABEL: int((~known).sum())})
    steps = [
        *_source(scores.notes, len(scores) + count),
        FlowStep("rows of the data", len(scores) + count, patients, (*absent, *unlabelled)),
        FlowStep("rows evaluated", int(known.sum()), _patients(scores, known)),
    ]
    return Flow(tuple(steps))


def flow_of_run(record: RunRecord, scores: Scores, dropped: Sequence[Dropped] = ()) -> Flow:
    """Return the flow of a run, from its table to the rows of the scores.

    Args:
        record: the run.
        scores: of rows of its table.
        dropped: rows of the same part that have no score.

    Raises:
        DataError: scores of other rows.
    """
    table = record.read_rows()
    at, parts = rows_in_table(table, scores), table.groups[PART]
    reasons = {each.row: each.reason for each in reversed(record.dropped())}
    used = np.isin(parts, PART_NAMES)
    unused = _by_kind(reasons.get(row, "no reason was recorded") for row in np.flatnonzero(~used).tolist())
    evaluated = [name for name in PART_NAMES if (parts[at] == name).any()]
    inside = np.isin(parts, evaluated)
    others = {f"in {name}, which is not evaluated": int((parts == name).sum()) for name in PART_NAMES}
    scored = np.zeros(len(table), bool)
    scored[at] = True
    why = {each.id: each.reason for each in dropped}
    lost = _by_kind(why.get(str(table.ids[row]), NO_SCORE) for row in np.flatnonzero(inside & ~scored).tolist())
    known = np.zeros(len(table), bool)
    known[at[_known(scores)]] = True
    left = (*lost, *_counted({NO_LABEL: len(at) - int(known.sum())}))
    steps = [
        *_source(record.facts().get("notes", ()), len(table)),
        _step("rows of the table", table, np.ones(len(table), bool), unused),
        _step(
            "rows in a part of the split", table, used,
            _counted({text: n for text, n in others.items() if text.split()[1].rstrip(",") not in evaluated}),
        ),
        _step(f"rows of {' and '.join(evaluated) or 'no part'}", table, inside, left),
        _step("rows evaluated", table, known),
    ]  # fmt: skip
    return Flow(tuple(steps), tuple(_step(name, table, parts == name) for name in PART_NAMES))


def rows_in_table(table: Table, scores: Scores) -> NDArray[np.int64]:
    """Return the row of the table that each row of the scores is, ``n``.

    Raises:
        DataError: rows that are not in the table, or in no part of it.
    """
    parts = table.groups.get(PART)
    places = {
        str(one): row for row, one in enumerate(table.ids) if parts is None or parts[row] in PART_NAMES
    }  # fmt: skip
    absent = sum(str(one) not in places for one in scores.ids)
    if absent:
        raise DataError(
            f"{scores.source}: expected scores of rows of the run, but {absent:,} of {len(scores):,} ids are in no "
            "part of its table. For other data use flow_of_scores and characteristics_of_scores."
        )
    return np.array([places[str(one)] for one in scores.ids], dtype=np.int64)


def _step(text: str, table: Table, rows: NDArray[np.bool_], dropped: tuple[tuple[str, int], ...] = ()) -> FlowStep:
    return FlowStep(text, int(rows.sum()), _patients(table, rows), dropped)


def _patients(data: Table | Scores, rows: NDArray[np.bool_]) -> int | None:
    return None if data.patients is None else len(np.unique(data.patients[rows]))


def _known(data: Table | Scores) -> NDArray[np.bool_]:
    """Return whether a row has a label that is known."""
    return np.asarray(~np.isnan(data.targets).all(axis=1), dtype=bool)


def _source(notes: Iterable[str], rows: int) -> list[FlowStep]:
    """Return the step before the table, where its notes count what was left out of the source."""
    found: dict[str, int] = {}
    for note in notes:
        for pattern, reason in _BEFORE:
            counted = re.fullmatch(pattern, str(note))
            if counted:
                found[reason] = found.get(reason, 0) + int(counted[1].replace(",", ""))
    total = rows + sum(found.values())
    return [FlowStep("rows of the source", total, None, _counted(found))] if found else []


def _by_kind(reasons: Iterable[str]) -> tuple[tuple[str, int], ...]:
    own = (NO_SCORE, "no reason was recorded")
    return _counted(Counter(text if text in own else kind_of_reason(text) for text in reasons))


def _counted(found: dict[str, int]) -> tuple[tuple[str, int], ...]:
    """Return reasons with their rows, the most first; without those of none."""
    return tuple(sorted(((text, n) for text, n in found.items() if n), key=lambda each: (-each[1], each[0])))
