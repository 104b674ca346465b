"""Whether the images that a model is evaluated on are among those that it was trained on.

Axes: n rows.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medzoo.data.identity import list_rows, pseudonym
from medzoo.data.pixel_hashes import name_row, pixel_hashes
from medzoo.data.pixels import PixelStore
from medzoo.data.table import Table
from medzoo.errors import DataError
from medzoo.evaluation.run_record import PART, RunRecord

__all__ = ["Seen", "find_seen", "seen_notes"]

Seen = Literal["refuse", "drop", "allow"]


def find_seen(record: RunRecord, table: Table, pixels: PixelStore) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Return which rows of a table, ``n``, are of patients or images that a run was trained or chosen on, and notes.

    Chosen on are the rows of its validation part: they set its thresholds, its calibration and when it stopped.

    Args:
        record: of the run.
        table: the rows.
        pixels: their images.
    """
    own = record.read_table()
    own = own.select(np.flatnonzero(np.isin(own.groups[PART], ("train", "valid"))))
    seen = np.zeros(len(table), bool)
    notes = []
    if table.patients is None or own.patients is None:
        notes.append("patients are not known on both sides, so that those of the training could not be looked for")
    else:
        known = {pseudonym(str(patient)) for patient in own.patients}
        seen |= np.array([pseudonym(str(patient)) in known for patient in table.patients], bool)
    try:
        trained = pixel_hashes(own)
    except DataError:
        notes.append("images of the training cannot be read any more, so that they could not be looked for")
        return seen, tuple(notes)
    here = pixels.identities
    usable = ~here.constant & (here.pixels != "")
    return seen | (usable & np.isin(here.pixels, trained.pixels[~trained.constant])), tuple(notes)


def seen_notes(table: Table, found: NDArray[np.bool_], seen: Seen) -> tuple[str, ...]:
    """Return what the report says of rows that the run has seen.

    Raises:
        DataError: there are some, and ``seen`` is ``"refuse"``.
    """
    count = int(found.sum())
    if not count:
        return ()
    what = f"{count:,} of {len(table):,} rows are of patients or images that the run was trained or chosen on"
    if seen == "refuse":
        rows = list_rows([name_row(table, int(row)) for row in np.flatnonzero(found)])
        raise DataError(
            f"{table.source}: {what}: {rows}. Figures on them say nothing about new patients. Leave them out with "
            "seen='drop'."
        )
    if seen == "drop":
        return (f"{what}, and were left out",)
    return (f"{what}, and are among those that were evaluated: these figures say nothing about new patients",)
