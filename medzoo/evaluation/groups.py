"""``group_by``: the figures of the groups of a column, such as site, sex or view, and how they differ.

Counts of under 10 patients are not shown, and neither are those, and the figures, from which they follow by addition or
by solving an equation; :mod:`medzoo.evaluation.suppression` chooses them, the same in all tables of a report. Values of
under 10 patients are one group without their names, as a rare value may be an id. This protects from what one report
states as a number. It does not protect from a count worked out of an interval or of the digits of a figure (a
sensitivity of 0.947 is 18 of 19), or out of the order in which cells are hidden; from columns that cut the rows nearly
alike, from reports of nearly the same rows, or from who knows some of the patients.

Axes: n rows, l labels, p patients, g groups, b resamples at a time, r resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.data.identity import list_rows
from medzoo.errors import ConfigError, did_you_mean
from medzoo.evaluation.bands import NOT_KNOWN, split_column
from medzoo.evaluation.compare import Difference, by_chance, difference, units_of
from medzoo.evaluation.estimate import LEAST_PATIENTS, Estimate
from medzoo.evaluation.metrics import Counts, Metrics, count, measure
from medzoo.evaluation.proportions import wilson
from medzoo.evaluation.replicates import Options, Replicates, replicate
from medzoo.evaluation.resample import CachedResamples, ResamplesWithin
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.suppression import hide_also, hide_small

__all__ = ["NOT_KNOWN", "GroupRow", "GroupTable", "group_by"]

METHOD = "bootstrap over patients, the same resamples in all groups"
_FEW = f"not shown: under {LEAST_PATIENTS} positive or negative patients"
_FOLLOWS = "not shown: a small count follows from it"
_ECE = "no interval, as it is biased upward in small samples"  # without how many rows there are
# With the sensitivity and the specificity, each of these gives the share of positive rows.
_OF_PREVALENCE = ("prevalence", "accuracy", "ppv", "npv", "f1")
Array = NDArray[np.float64]
Figures = Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True)
class GroupRow:
    """A group of rows.

    Attributes:
        value: of the column, or which ones; values of under 10 patients are ``"other (n values)"``.
        rows, patients: with a known label; ``None`` if suppressed. Without known patients each row counts as one.
        positive_patients: by label; ``None`` where those with or without it are too few, or others would follow.
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
    right interval. Groups of under 10 patients have neither counts nor figures, and labels with under 10 patients with
    or without them have none in a group; see :mod:`medzoo.evaluation.groups` for what else is not shown.

    Args:
        scores: of a model.
        column: of ``scores.groups``. Numbers of many values are cut into bands; rare values are one group.
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
    known = ~np.isnan(scores.targets).all(1)
    scores = scores.select(np.flatnonzero(known)) if known.any() else scores
    column_of = split_column(scores, column)
    values, order, notes = column_of.values, column_of.order, list(column_of.notes)
    if scores.patients is None:
        notes.append("patients are not known: each row counts as one")
    how, draws = options or Options(), CachedResamples(scores.clusters, resamples, seed)
    at = {value: np.flatnonzero(values == value) for value in order}
    groups = [_Group(value, rows, scores) for value, rows in at.items() if len(rows)]
    shown = [group for group in groups if not group.small]
    reference = max(shown, key=lambda group: (group.value in column_of.plain, group.patients), default=None)
    chosen = [label in eligible for label in scores.labels]
    for group in shown:
        part = scores.select(group.rows)
        group.found = replicate(part, ResamplesWithin(draws, group.rows), chosen, how, title=title)
        metrics = measure(
            part, options=how, resamples=resamples, seed=seed, eligible=eligible, replicates=group.found
        )  # fmt: skip
        group.figures = _figures(group, metrics, eligible)
    notes += _suppress(groups, scores, column, column_of.other)
    rows = [_row(group, reference, chosen) for group in groups]
    rows.sort(key=lambda row: order.index(row.value))
    made = [each for row in rows for figures in row.differences.values() for each in figures.values()]
    return GroupTable(column, tuple(rows), (*notes, *_confounded(shown, scores.labels, column), *by_chance(made)))


class _Group:
    """A group while its row is made."""

    def __init__(self, value: str, rows: NDArray[np.int64], scores: Scores) -> None:
        clusters, targets = scores.clusters[rows], scores.targets[rows]
        self.value, self.rows, self.patients = value, rows, len(np.unique(clusters))
        self.counts: list[Counts] = [count(targets[:, i], clusters) for i in range(len(scores.labels))]
        self.small = self.patients < LEAST_PATIENTS
        self.count_shown = not self.small
        self.positives: dict[str, int | None] = {
            label: c.positive_patients for label, c in zip(scores.labels, self.counts, strict=True)
        }
        self.figures: dict[str, dict[str, Estimate]] = {}
        self.found: Replicates | None = None

    def hide_count(self) -> None:
        """Remove the number of rows, and the reasons that state it."""
        self.count_shown = False
        for figures in self.figures.values():
            if "ece" in figures and not math.isnan(figures["ece"].value):
                figures["ece"] = Estimate(figures["ece"].value, why=_ECE)

    def hide_positives(self, label: str) -> None:
        """Remove the number of positive patients, and the figures that give the share of positive rows away."""
        self.positives[label] = None
        names = {label: _OF_PREVALENCE, "": ("accuracy", *(["exact_match"] if len(self.counts) == 1 else []))}
        for key, found in names.items():
            own = self.figures.get(key, {})
            own |= {name: Estimate(math.nan, why=_FOLLOWS) for name in found if name in own and own[name].why != _FEW}


def _figures(group: _Group, metrics: Metrics, eligible: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """Return the figures of a group without those that give a small count away."""
    few = [m.label for m, c in zip(metrics.labels, group.counts, strict=True) if not c.eligible]
    hidden = Estimate(math.nan, why=_FEW)
    found = {m.label: {name: hidden if m.label in few else e for name, e in m.values.items()} for m in metrics.labels}
    overall = {}
    for name, value in metrics.overall.items():
        if name.endswith("_all"):
            continue  # which labels have a value differs between groups
        of = eligible if name.startswith("macro_") else [m.label for m in metrics.labels]
        without = [label for label in of if label in few]
        overall[name] = replace(hidden, why=f"{_FEW}: {list_rows(without, ', ')}") if without else value
    return {"": overall, **found}


def _suppress(groups: Sequence[_Group], scores: Scores, column: str, other: str) -> list[str]:
    """Hide small counts and those that they follow from; return what to say about it."""
    names = [group.value for group in groups]
    patients, rows = (np.array(each) for each in zip(*((g.patients, len(g.rows)) for g in groups), strict=True))
    small, also = hide_small(patients, rows, names, first=[i for i, name in enumerate(names) if name == other])
    notes, follow = [], []
    if small.any():
        few = f"{small.sum()} of {len(groups)} groups of {column} have under {LEAST_PATIENTS} patients"
        notes.append(f"{few}: not shown")
    if also.any():
        listed = list_rows([repr(names[i]) for i in np.flatnonzero(also).tolist()], ", ")
        notes.append(f"the counts of {listed} are not shown, as those of the smallest follow from them")
    for place in np.flatnonzero(small | also).tolist():
        groups[place].hide_count()
    labels = range(len(scores.labels))
    # The classes of a row exclude each other, so that a count of one follows from those of all others.
    for members in [labels] if scores.task == "multiclass" else [[i] for i in labels]:
        sums = [np.array([g.counts[i].positive_patients for g in groups]) for i in members]
        sums += [np.array([g.counts[i].negative_patients for g in groups]) for i in members]
        without = np.array([any(not g.counts[i].eligible for i in members) for g in groups])
        ranked = sums[0] if len(members) == 1 else patients
        hidden = also | hide_also(without, ranked, rows, names, sums=sums, least=0, first=np.flatnonzero(also).tolist())
        for place in np.flatnonzero(hidden).tolist():
            for i in members:
                groups[place].hide_positives(scores.labels[i])
                if not (without | also)[place]:
                    follow.append(f"{scores.labels[i]} in {names[place]!r}")
    if follow:
        notes.append(f"positive patients that another group's would follow from are not shown: {list_rows(follow)}")
    return notes


def _row(group: _Group, reference: _Group | None, chosen: Sequence[bool]) -> GroupRow:
    """Return the row of a group."""
    if reference is None or group.small:
        return GroupRow(group.value, None, None, {}, {}, {}, reference=False)
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
