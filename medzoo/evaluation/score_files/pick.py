"""Which columns of scores are the labels of a table.

Axes: n rows, k columns of scores, l labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medzoo.data.faults import Faults, join_some, quote
from medzoo.data.table import Table
from medzoo.errors import ConfigError, did_you_mean
from medzoo.evaluation.label_match import loose, match_names, spelling_note
from medzoo.evaluation.score_files.columns import Given
from medzoo.evaluation.score_files.layout import ScoreOptions
from medzoo.evaluation.score_files.outputs import ADVICE, LabelledScores, check_sums, is_numbered, number_of

__all__ = ["pick_outputs"]


def pick_outputs(given: Given, table: Table, options: ScoreOptions, faults: Faults) -> LabelledScores:
    """Return the outputs that a table has labels of; targets follow when the rows are joined.

    Raises:
        ConfigError: no label is in both, or classes that exclude each other are not the same.
    """
    if options.task not in (None, table.task):
        raise ConfigError(f"{faults.source}: task={options.task!r}, but that of {table.source} is {table.task!r}.")
    names, k, n_labels = given.names, len(given.names), len(table.labels)
    if options.labels is not None:
        if len(options.labels) != k:
            raise ConfigError(f"{faults.source}: got {len(options.labels)} labels for {k} columns. {ADVICE}.")
        names = tuple(options.labels)
    matched = match_names(table.labels, names)
    if table.task == "binary" and k == 1 and (options.score is not None or _is_plain(names[0], table.labels[0])):
        matched = {table.labels[0]: names[0]}
    if table.task == "binary" and k == 2 and is_numbered(names):
        check_sums(given, faults)
        note = f"of two columns of classes that exclude each other, {quote(names[1])} is the positive one"
        found = _of_table(given.pair(1), table, {table.labels[0]: names[1]}, names[1:])
        return replace(found, notes=(note, *found.notes))
    notes: tuple[str, ...] = ()
    if len(matched) < n_labels and is_numbered(names) and k == n_labels:
        matched = dict(zip(table.labels, names, strict=True))
        notes = (f"columns of scores are taken in the order of the labels of the table: {join_some(table.labels, 30)}",)
    if table.task == "multiclass" and (len(matched) < n_labels or k != n_labels):
        raise ConfigError(
            f"{faults.source}: expected scores of the classes {join_some(table.labels, 20)}, found "
            f"{join_some([quote(n) for n in names], 20)}. {ADVICE}."
        )
    if not matched:
        near = "".join(did_you_mean(label, names) for label in table.labels[:3])
        raise ConfigError(
            f"{faults.source}: no label of {table.source} ({join_some(table.labels, 20)}) has scores, which are of "
            f"{join_some([quote(n) for n in names], 20)}.{near} {ADVICE}, or rename those of the table with its "
            "option names=."
        )
    found = _of_table(given, table, matched, names)
    if table.task == "multiclass":
        check_sums(found.given, faults)
    return replace(found, notes=notes + (() if notes else found.notes))


def _is_plain(name: str, label: str) -> bool:
    """Whether two names of the only label may be of the same, as one of them says nothing."""
    return number_of(name) is not None or "positive" in (loose(name), loose(label))


def _of_table(given: Given, table: Table, matched: dict[str, str], names: Sequence[str]) -> LabelledScores:
    """Return the outputs of labels of a table, in its order, by the name of their columns."""
    chosen = given.take([list(names).index(matched[label]) for label in matched])
    notes = spelling_note({n: m for n, m in matched.items() if number_of(m) is None}, "in the file")
    if without := [quote(label) for label in table.labels if label not in matched]:
        notes += (f"labels of the table without a score left out: {join_some(without, 20)}",)
    if extra := [quote(name) for name in names if name not in matched.values()]:
        notes += (f"scores of labels that the table does not have left out: {join_some(extra, 20)}",)
    index = tuple(list(table.labels).index(label) for label in matched)
    empty = np.zeros((0, len(index)), np.float32)
    return LabelledScores(chosen, tuple(matched), table.task, empty, index, notes)
