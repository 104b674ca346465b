"""``permute_labels``: the same images and labels, dealt to each other by chance.

Axes: n rows, l labels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medzoo.data.table import Table
from medzoo.errors import DataError, check_int

__all__ = ["permute_labels"]


def permute_labels(table: Table, *, seed: int = 0) -> Table:
    """Return a table in which each image has the labels of a row of another patient, drawn by chance.

    The patients are put into a random order, one after another with all their rows, which are in random order too, and
    the labels are shifted along it by a random number of rows, at least as many as any patient has. So every row of
    labels is used once, and the share of positives of each label stays exactly as it was. What all rows of a patient
    share mostly stays so: they get the labels of one other patient, or of a few. The order of the rows within a patient
    does not: where the label followed from it, as with a diseased eye always before a healthy one, each row of the
    patient is as likely as any other to get the one label or the other. Where no patients are known, each row counts
    as one.

    What a row shows says nothing of its label then, over all permutations; in a single one some link is left by chance,
    and the fewer the patients, the larger. A model that is trained on it does not rank patients that it has not seen
    better than chance, on average over seeds. What is far above that, in the interval of a measurement, is a fault of
    the way of measuring.

    Args:
        table: the table; it is not changed.
        seed: the permutation follows from it.

    Raises:
        DataError: a patient has more than half of the rows, or there are fewer than two.

    >>> table = Table.from_arrays(np.zeros((4, 8, 8)), [1, 1, 0, 0], patients=["a", "a", "b", "b"])
    >>> permute_labels(table).targets[:, 0]
    array([0., 0., 1., 1.], dtype=float32)
    """
    check_int("permute_labels", "seed", seed, 0)
    rng, n = np.random.default_rng(seed), len(table)
    keys = np.arange(n) if table.patients is None else np.unique(table.patients, return_inverse=True)[1]
    most = int(np.bincount(keys).max(initial=0))
    if n < 2 or 2 * most > n:
        raise DataError(
            f"{table.source}: expected no patient with more than half of the rows, so that labels can be exchanged "
            f"between patients, got one with {most:,} of {n:,}. Give more patients."
        )
    rank = rng.permutation(int(keys.max()) + 1)
    # Within a patient too: in the order of the file, labels would keep their place where all have as many rows.
    order = np.lexsort([rng.permutation(n), rank[keys]])
    targets = np.empty_like(table.targets)
    targets[order] = np.roll(table.targets[order], int(rng.integers(most, n - most + 1)), axis=0)
    unit = "row" if table.patients is None else "patient"
    note = (
        f"labels are permuted by {unit} with seed {seed}: which label an image has is chance, and so is what link "
        "there is between them"
    )
    return replace(table, targets=targets, source=f"{table.source}, with permuted labels", notes=(*table.notes, note))
