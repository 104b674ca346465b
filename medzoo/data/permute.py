"""``permute_labels``: the same images and labels, without a link between them.

Axes: n rows, l labels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medzoo.data.table import Table
from medzoo.errors import DataError, check_int

__all__ = ["permute_labels"]


def permute_labels(table: Table, *, seed: int = 0) -> Table:
    """Return a table in which each image has the labels of another patient, so that it has no link to its label.

    The patients are put into a random order, one after another with all their rows, and the labels are shifted along
    it by a random number of rows, at least as many as any patient has. So every row of labels is used once, and the
    share of positives of each label stays exactly as it was. What is alike within a patient mostly stays so: a
    patient's rows get rows that follow each other, of one other patient or of a few. Where no patients are known, each
    row counts as one.

    A model that is trained on it can learn nothing about a patient that it has not seen. What is measured above chance
    shows a fault in the way of measuring.

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
    order = np.argsort(rank[keys], kind="stable")
    targets = np.empty_like(table.targets)
    targets[order] = np.roll(table.targets[order], int(rng.integers(most, n - most + 1)), axis=0)
    unit = "row" if table.patients is None else "patient"
    note = f"labels are permuted by {unit} with seed {seed}, so that no image has a link to its label"
    return replace(table, targets=targets, source=f"{table.source}, with permuted labels", notes=(*table.notes, note))
