"""What human readers called, from columns ``reader:NAME`` or ``reader:NAME:LABEL``.

Axes: n rows, l labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medzoo.contract import Task
from medzoo.data.faults import Faults, join_some, quote
from medzoo.evaluation.label_match import match_names
from medzoo.evaluation.score_files.columns import normalised_all, read_binary

__all__ = ["read_readers"]


def read_readers(
    values: Mapping[str, Sequence[str]], prefix: str, labels: Sequence[str], task: Task, faults: Faults
) -> dict[str, NDArray[np.float32]]:
    """Return the calls of each reader, ``n l`` of 0, 1 and NaN.

    Args:
        values: columns as text.
        prefix: of the columns of readers.
        labels: of the scores.
        task: of the scores. Multiclass readers name a class, in one column.
        faults: where to add what is wrong.
    """
    found: dict[str, NDArray[np.float32]] = {}
    for column, cells in values.items():
        if not prefix or not column.startswith(prefix):
            continue
        rest, texts = column[len(prefix) :], normalised_all(cells)
        name, _, given = rest.rpartition(":")
        label = match_names([given], labels).get(given) if name else None
        if label is None and len(labels) > 1 and task != "multiclass":
            faults.add_general(
                f"the column {quote(column)} names no label of {join_some([quote(n) for n in labels], 20)}. Name it "
                f"{prefix}NAME:LABEL."
            )
            continue
        calls = found.setdefault(name if label else rest, np.full((len(texts), len(labels)), np.nan, np.float32))
        if label is None and task == "multiclass":
            calls[:] = _classes(texts, labels, column, faults)
        else:
            at = 0 if label is None else list(labels).index(label)
            calls[:, at] = read_binary(texts, "calls of readers", faults, column)
    return found


def _classes(texts: Sequence[str], labels: Sequence[str], column: str, faults: Faults) -> NDArray[np.float32]:
    """Return classes as one-hot rows."""
    places = {text: list(labels).index(name) for text, name in match_names(sorted(set(texts)), labels).items()}
    wrong = [(row, f"{column} {quote(text)}") for row, text in enumerate(texts) if text and text not in places]
    faults.add_rows("calls of readers that are no class", wrong, f"The classes are {join_some(labels, 20)}.")
    rows = np.full((len(texts), len(labels)), np.nan, np.float32)
    for row, text in enumerate(texts):
        if text in places:
            rows[row] = np.eye(len(labels), dtype=np.float32)[places[text]]
    return rows
