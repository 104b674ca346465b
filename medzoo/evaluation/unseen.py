"""Whether the images that a model is evaluated on are among those that it was trained on.

Axes: n rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medzoo.data.identity import Identities, list_rows, pseudonym
from medzoo.data.pixel_hashes import name_row
from medzoo.data.table import Table
from medzoo.errors import DataError
from medzoo.evaluation.run_record import PART, PIXELS, RunRecord

__all__ = ["Seen", "check_same", "find_seen", "seen_notes"]

Seen = Literal["refuse", "drop", "allow"]


def find_seen(
    record: RunRecord, table: Table, identities: Identities, parts: Sequence[str] = ("train", "valid")
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Return which rows of a table, ``n``, are of patients or images that a run was trained or chosen on, and notes.

    Chosen on are the rows of its validation part: they set its thresholds, its calibration and when it stopped. Images
    are compared by the hash of their decoded pixels, which the run has written down.

    Args:
        record: of the run.
        table: the rows.
        identities: of the pixels of the rows.
        parts: of the run that are looked for.
    """
    own = record.read_rows()
    used = np.isin(own.groups[PART], list(parts))
    seen, notes = np.zeros(len(table), bool), []
    if table.patients is None or own.patients is None:
        notes.append("patients are not known on both sides, so that those of the training could not be looked for")
    else:
        known = {pseudonym(str(patient)) for patient in own.patients[used]}
        seen |= np.array([pseudonym(str(patient)) in known for patient in table.patients], bool)
    if PIXELS in own.groups:
        known = {str(one) for one in own.groups[PIXELS][used]} - {""}
        seen |= np.array([str(one) in known for one in identities.compared], bool)
    else:
        notes.append("the run has no hashes of its images, so that those of the training could not be looked for")
    return seen, tuple(notes)


def seen_notes(table: Table, found: NDArray[np.bool_], seen: Seen, who: str) -> tuple[str, ...]:
    """Return what the report says of rows that a run has seen.

    Args:
        table: the rows.
        found: which were seen, ``n``.
        seen: what happens to them.
        who: the run.

    Raises:
        DataError: there are some, and ``seen`` is ``"refuse"``.
    """
    count = int(found.sum())
    if not count:
        return ()
    what = f"{count:,} of {len(table):,} rows are of patients or images that {who} was trained or chosen on"
    if seen == "refuse":
        rows = list_rows([name_row(table, int(row)) for row in np.flatnonzero(found)])
        raise DataError(
            f"{table.source}: {what}: {rows}. Figures on them say nothing about new patients. Leave them out with "
            "seen='drop'."
        )
    if seen == "drop":
        return (f"{what}, and were left out",)
    return (f"{what}, and are among those that were evaluated: these figures say nothing about new patients",)


def check_same(record: RunRecord, table: Table, identities: Identities) -> None:
    """Check that rows which are taken for those of a run, as they have the same ids, are the same.

    Raises:
        DataError: labels, patients or pixels are others.
    """
    own = record.read_rows()
    place = {str(one): row for row, one in enumerate(own.ids)}
    own = own.select([place[str(one)] for one in table.ids])
    same = (own.labels == table.labels) and np.array_equal(own.targets, table.targets, equal_nan=True)
    if same and own.patients is not None and table.patients is not None:
        same = all(pseudonym(str(a)) == pseudonym(str(b)) for a, b in zip(own.patients, table.patients, strict=True))
    if same and PIXELS in own.groups:
        same = bool((own.groups[PIXELS] == identities.compared).all())
    if not same:
        raise DataError(
            f"{table.source}: rows with the ids of the run have other labels, patients or pixels than it has. Give the "
            "table that it was trained on, or leave part out to evaluate another."
        )
