"""``group_by``: the figures of the groups of a column, such as site, sex or view, and how they differ.

Axes: n rows, l labels, p patients, g groups, b resamples at a time, r resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.data.identity import list_rows, names_patients
from medzoo.data.texts import StrArray
from medzoo.errors import ConfigError, DataError, did_you_mean
from medzoo.evaluation.bands import bands
from medzoo.evaluation.compare import Difference, by_chance, difference, units_of
from medzoo.evaluation.estimate import LEAST_PATIENTS, Estimate
from medzoo.evaluation.metrics import Counts, Metrics, count, measure
from medzoo.evaluation.proportions import wilson
from medzoo.evaluation.replicates import Options, Replicates, replicate
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.scores import Scores

__all__ = ["NOT_KNOWN", "GroupRow", "GroupTable", "group_by"]

NOT_KNOWN = "not known"
"""The group of the rows where a column is blank."""

METHOD = "bootstrap over patients, the same resamples in all groups"
_LISTED = 8  # suppressed groups above which they are one row: many rare values may be names
_CACHE_BYTES = 256 * 2**20  # of the resamples that are kept for the next group
_AVERAGES = ("macro_auroc", "macro_average_precision", "balanced_accuracy")
Array = NDArray[np.float64]
Figures = Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True)
class GroupRow:
    """A group of rows.

    Attributes:
        value: of the column.
        rows, patients: in it; ``None`` if suppressed. Without known patients each row counts as one.
        positive_patients: by label; ``None`` where those with or without it are too few to be shown.
        figures: by label (``""`` for all of them) and figure; empty if suppressed.
        differences: to the reference, likewise; empty for the reference.
        reference: whether it is the group that others are compared with.
    """

    value: str
    rows: int | None
    patients: int | None
    positive_patients: Mapping[str, int | None]
    figures: Figures
    differences: Mapping[str, Mapping[str, Difference]]
    reference: bool

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; figures of all labels are under the name ``""``."""
        figures, differences = (
            {label: {name: each.to_dict() for name, each in found.items()} for label, found in of.items()}
            for of in (self.figures, self.differences)
        )
        return {
            "value": self.value, "rows": self.rows, "patients": self.patients, "reference": self.reference,
            "positive_patients": dict(self.positive_patients), "figures": figures, "differences": differences,
        }  # fmt: skip


@dataclass(frozen=True)
class GroupTable:
    """The groups of a column, in the order of its values.

    Attributes:
        column: its name.
        rows: a row for each group.
        notes: how the groups were made, what is suppressed, and how the figures are to be read.
    """

    column: str
    rows: tuple[GroupRow, ...]
    notes: tuple[str, ...]

    def __getitem__(self, value: str) -> GroupRow:
        for row in self.rows:
            if row.value == value:
                return row
        raise ConfigError(f"groups of {self.column!r}: there is no {value!r}.{did_you_mean(value, self._values)}")

    @property
    def _values(self) -> list[str]:
        return [row.value for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"column": self.column, "rows": [row.to_dict() for row in self.rows], "notes": list(self.notes)}


def group_by(
    scores: Scores, column: str, *, eligible: Sequence[str], options: Options | None = None, resamples: int = 2000,
    seed: int = 0, title: str = "",
) -> GroupTable:  # fmt: skip
    """Return the figures of each group of a column, and their differences to the largest one.

    A patient may be in two groups: all are measured in the same resamples of all patients, so that a difference has the
    right interval. Groups of under 10 patients have neither counts nor figures. In others, a label with under 10
    patients with it or without it has neither: its figures would give the count away. Where the total would give away
    the one count that is not shown, the next smallest is not shown either. This prevents a count from being read off
    the table, not every calculation back from figures and their intervals.

    Args:
        scores: of a model.
        column: of ``scores.groups``. Numbers of many values are cut into bands.
        eligible: the labels that are averaged, in all groups the same: :attr:`Metrics.eligible` of all rows.
        options: what is computed beside the figures that need no choice.
        resamples: number of resamples of the patients.
        seed: of the bootstrap.
        title: of a progress bar; empty for none.

    Raises:
        ConfigError: there is no such column or label, or the column names patients.
        DataError: there are no rows.
    """
    for label in eligible:
        if label not in scores.labels:
            raise ConfigError(f"group_by: there is no label {label!r}.{did_you_mean(label, scores.labels)}")
    values, order, notes = _values(scores, column)
    if scores.patients is None:
        notes.append("patients are not known: each row counts as one")
    how, draws = options or Options(), _Cached(scores.clusters, resamples, seed)
    at = {value: np.flatnonzero(values == value) for value in order}
    groups = [_Group(value, rows, scores) for value, rows in at.items() if len(rows)]
    shown = [group for group in groups if group.count_shown]
    reference = max(shown, key=lambda group: (group.value != NOT_KNOWN, group.patients), default=None)
    chosen = [label in eligible for label in scores.labels]
    for group in shown:
        part = scores.select(group.rows)
        group.found = replicate(part, _Within(draws, group.rows), chosen, how, title=title)
        metrics = measure(part, options=how, resamples=resamples, seed=seed, eligible=eligible)
        group.figures = _figures(group, metrics, eligible)
    notes += _suppress(groups, scores.labels, column)
    rows = [_row(group, reference, chosen) for group in shown if reference is not None] + _suppressed(groups)
    rows.sort(key=lambda row: order.index(row.value) if row.value in order else len(order))
    made = [each for row in rows for figures in row.differences.values() for each in figures.values()]
    return GroupTable(column, tuple(rows), (*notes, *_confounded(shown, scores.labels, column), *by_chance(made)))


class _Group:
    """A group while its row is made."""

    def __init__(self, value: str, rows: NDArray[np.int64], scores: Scores) -> None:
        clusters = scores.clusters[rows]
        self.value, self.rows, self.patients = value, rows, len(np.unique(clusters))
        targets = scores.targets[rows]
        self.counts: list[Counts] = [count(targets[:, i], clusters) for i in range(len(scores.labels))]
        self.count_shown = self.patients >= LEAST_PATIENTS
        self.positives: dict[str, int | None] = {
            label: c.positive_patients if c.eligible and self.count_shown else None
            for label, c in zip(scores.labels, self.counts, strict=True)
        }
        self.figures: dict[str, dict[str, Estimate]] = {}
        self.found: Replicates | None = None

    def hide_prevalence(self, labels: Sequence[str]) -> None:
        """Remove the figure that gives the count of positive rows away."""
        for label in labels:
            if "prevalence" in self.figures.get(label, {}):
                self.figures[label]["prevalence"] = Estimate(math.nan, why="not shown: a small count follows from it")


class _Cached(Resamples):
    """Resamples whose draws are kept, as each group asks for them again."""

    def __init__(self, clusters: NDArray[np.int64], count: int, seed: int) -> None:
        super().__init__(clusters, count, seed)
        self._drawn: NDArray[np.uint8] | None = None
        if self.patients * count <= _CACHE_BYTES:
            parts = [super(_Cached, self).weights(step).astype(np.uint8) for step in self.steps()]
            self._drawn = np.concatenate(parts, 1)

    def weights(self, numbers: range) -> Array:
        if self._drawn is None:
            return super().weights(numbers)
        return self._drawn[:, numbers.start : numbers.stop].astype(np.float64)


class _Within(Resamples):
    """The resamples of all patients, of those patients who have one of the rows."""

    def __init__(self, of: Resamples, rows: NDArray[np.int64]) -> None:
        self._of, (self._kept, clusters) = of, np.unique(of.clusters[rows], return_inverse=True)
        super().__init__(clusters.astype(np.int64), of.count, of.seed)

    def steps(self, at_most: int = 64) -> list[range]:
        return self._of.steps(at_most)

    def weights(self, numbers: range) -> Array:
        return self._of.weights(numbers)[self._kept]


def _figures(group: _Group, metrics: Metrics, eligible: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """Return the figures of a group without those that give a small count away."""
    few = [m.label for m, c in zip(metrics.labels, group.counts, strict=True) if not c.eligible]
    single = [m.label for m, c in zip(metrics.labels, group.counts, strict=True) if not (c.positive and c.negative)]
    hidden = Estimate(math.nan, why=f"not shown: under {LEAST_PATIENTS} positive or negative patients")
    found = {m.label: {name: hidden if m.label in few else e for name, e in m.values.items()} for m in metrics.labels}
    overall = {}
    for name, value in metrics.overall.items():
        if name.endswith("_all"):
            continue  # which labels have a value differs between groups
        averaged = eligible if name.startswith("macro_") else [m.label for m in metrics.labels]
        without = [label for label in averaged if label in few] if name in _AVERAGES else []
        alone = [label for label in without if label in single]
        if alone:
            value = Estimate(math.nan, why=f"all rows are of one class: {list_rows(alone, ', ')}")
        elif without:
            value = replace(hidden, why=f"{hidden.why}: {list_rows(without, ', ')}")
        overall[name] = value
    return {"": overall, **found}


def _suppress(groups: Sequence[_Group], labels: Sequence[str], column: str) -> list[str]:
    """Hide the counts that follow from the totals and the one count that is not shown; return what to say about it."""
    shown, notes = [group for group in groups if group.count_shown], []
    small = len(groups) - len(shown)
    if small:
        notes.append(f"{small} of {len(groups)} groups of {column} have under {LEAST_PATIENTS} patients: not shown")
    if small == 1 and shown:
        least = min(shown, key=lambda group: group.patients)
        least.count_shown, least.positives = False, dict.fromkeys(labels)
        least.hide_prevalence(labels)
        notes.append(f"the counts of {least.value!r} are not shown, as those of the smallest group follow from them")
    also = []
    for label in labels:
        left = [group for group in groups if group.positives[label] is not None]
        if len(left) == len(groups) - 1 and left:
            least = min(left, key=lambda group: group.positives[label] or 0)
            least.positives[label] = None
            least.hide_prevalence([label])
            also.append(f"{label} in {least.value!r}")
    if also:
        notes.append(f"positive patients that another group's would follow from are not shown: {list_rows(also)}")
    return notes


def _row(group: _Group, reference: _Group, chosen: Sequence[bool]) -> GroupRow:
    """Return the row of a group that is shown."""
    differences: dict[str, dict[str, Difference]] = {}
    if group is not reference and group.found is not None and reference.found is not None:
        ours, theirs, both = group.found, reference.found, (group, reference)
        differences[""] = {
            name: _difference(
                group.figures[""][name], reference.figures[""][name], r - theirs.overall[name][1],
                min(units_of(name, each.counts, chosen, each.patients) for each in both),
            )
            for name, (_, r) in ours.overall.items() if name in group.figures[""]
        }  # fmt: skip
        for i, label in enumerate(group.positives):
            mine, other = group.figures[label], reference.figures[label]
            units = min(min(c.positive_patients, c.negative_patients) for c in (each.counts[i] for each in both))
            differences[label] = {
                name: _difference(mine[name], other[name], r[i] - theirs.labels[name][1][i], units)
                for name, (_, r) in ours.labels.items() if name in mine
            }  # fmt: skip
    rows, patients = (len(group.rows), group.patients) if group.count_shown else (None, None)
    return GroupRow(
        group.value, rows, patients, group.positives, group.figures, differences, reference=group is reference
    )


def _difference(mine: Estimate, other: Estimate, resampled: Array, units: int) -> Difference:
    """Return the difference of two figures, with an interval if both have one."""
    without = [each.why for each in (mine, other) if each.low is None]
    found = difference(mine.value, other.value, resampled, units, why=" ".join(without[:1]), method=METHOD)
    if without and math.isnan(found.difference.value):
        return replace(found, difference=Estimate(math.nan, why=without[0]))
    return found


def _suppressed(groups: Sequence[_Group]) -> list[GroupRow]:
    """Return the rows of the groups with too few patients; one row of many of them, as rare values may be names."""
    values = [group.value for group in groups if group.patients < LEAST_PATIENTS]
    if len(values) > _LISTED:
        values = [f"{len(values):,} values of under {LEAST_PATIENTS} patients each"]
    return [GroupRow(value, None, None, {}, {}, {}, reference=False) for value in values]


def _confounded(shown: Sequence[_Group], labels: Sequence[str], column: str) -> list[str]:
    """Say so where the prevalence differs so much that a score can gain by recognising the group."""
    found = []
    for i, label in enumerate(labels):
        counts = [group.counts[i] for group in shown]
        shares = [wilson(c.positive_patients, c.positive_patients + c.negative_patients) for c in counts]
        known = [e for e in shares if e.low is not None and e.high is not None]
        if len(known) < 2:
            continue
        most, least = max(known, key=lambda e: e.value), min(known, key=lambda e: e.value)
        if most.value > 2 * least.value and (most.low or 0.0) > (least.high or 0.0):
            found.append(label)
    if not found:
        return []
    return [
        f"the share of positive patients differs more than twofold between the groups of {column} for "
        f"{list_rows(found, ', ')}: over all rows, part of the AUROC measures how well a score recognises the group, "
        "not the finding. The figures within each group are free of that"
    ]


def _values(scores: Scores, column: str) -> tuple[StrArray, list[str], list[str]]:
    """Return the group of each row, all groups in their order, and what to say about them."""
    if column not in scores.groups:
        there = f"There are {', '.join(scores.groups)}." if scores.groups else f"{scores.source} has no other columns."
        raise ConfigError(f"group_by: there is no column {column!r}.{did_you_mean(column, scores.groups)} {there}")
    if not len(scores):
        raise DataError(f"group_by: expected rows, got none in {scores.source}.")
    texts, at = np.unique(np.asarray(scores.groups[column], np.str_), return_inverse=True)
    stripped = [text.strip() for text in texts.tolist()]
    blank = np.array([text.lower() in ("", "nan") for text in stripped])
    given = np.array([NOT_KNOWN if empty else text for empty, text in zip(blank, stripped, strict=True)])[at]
    cut = bands(column, given[given != NOT_KNOWN], scores.clusters[given != NOT_KNOWN])
    if names_patients(given, scores.patients) and not cut.measured:
        whose = f"{len(scores):,} rows" if scores.patients is None else f"{len(np.unique(scores.patients)):,} patients"
        raise ConfigError(
            f"group_by: {column!r} has {len(np.unique(given)):,} different values in {whose}, so it may name them. "
            "Choose a column of few values, such as site, sex or view."
        )
    found = given.astype(np.result_type(given, cut.values)) if len(cut.values) else given
    found[given != NOT_KNOWN] = cut.values
    return found, [*cut.order, NOT_KNOWN], [cut.note] if cut.note else []
