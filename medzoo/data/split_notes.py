"""What is worth knowing of a split: what its check cannot see, and how its labels are distributed.

A part is 0 for train, 1 for valid, 2 for test, and -1 for rows in none. Axes: n rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medzoo.data.identity import Dropped, list_rows
from medzoo.data.leak import NAMES, Keys

__all__ = ["split_notes"]

_BLIND = (
    "compared were patients and the hash of decoded pixels; an image that was encoded again, scaled or cropped is not "
    "recognised, nor are images that pretrained weights were trained on"
)


def split_notes(
    keys: Keys, which: NDArray[np.int64], dropped: Sequence[Dropped], wanted: Sequence[float] | None
) -> list[str]:
    """Return the notes, the most general first.

    Args:
        keys: of the table.
        which: the part of each row.
        dropped: rows in no part.
        wanted: the shares that were asked for; ``None`` compares with the shares of rows.
    """
    table = keys.table
    notes = [_BLIND]
    if table.patients is None:
        notes.append("no patients are known: images of one person may be in different parts")
    constant = [str(table.ids[row]) for row in np.flatnonzero(keys.identities.constant)]
    if constant:
        notes.append(f"{len(constant):,} constant images are alike and were not compared: {list_rows(constant, ', ')}")
    if dropped:
        notes.append(f"{len(dropped):,} rows are in no part, such as {dropped[0].id}: {dropped[0].reason}")
    used = which >= 0
    sizes = np.bincount(which[used], minlength=3)
    shares = np.asarray(wanted if wanted is not None else sizes / sizes.sum())
    worst, where = -1.0, ""
    texts = []
    for i, label in enumerate(table.labels):
        positive = table.targets[:, i] == 1
        known = np.bincount(which[used & ~np.isnan(table.targets[:, i])], minlength=3)
        counts = np.bincount(which[used & positive], minlength=3)
        texts.append(f"{label} " + " / ".join(f"{c / k:.1%}" if k else "-" for c, k in zip(counts, known, strict=True)))
        notes += [f"{label} has no positive row in {NAMES[part]}" for part in (0, 1) if not counts[part]]
        notes += [f"{label} has no negative row in {NAMES[part]}" for part in (0, 1) if counts[part] == known[part]]
        for part in map(int, np.flatnonzero(shares > 0)):
            deviation = abs(counts[part] / max(counts.sum(), 1) - shares[part]) / shares[part]
            if counts.sum() and deviation > worst:
                worst = float(deviation)
                where = f"{label} in {NAMES[part]}, {counts[part]} of {counts.sum()}"
    notes.append(f"share of positives in train / valid / test: {', '.join(texts)}")
    if where:
        notes.append(f"largest relative deviation of a label's share from that of its part: {worst:.2g} ({where})")
    return notes
