"""The tables of a report beside the results: groups, comparison, readers, seeds, characteristics, drift."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from medzoo.evaluation.compare import Comparison, Difference
from medzoo.evaluation.drift import Drift
from medzoo.evaluation.estimate import LEAST_PATIENTS, Estimate
from medzoo.evaluation.flow import Characteristics
from medzoo.evaluation.groups import GroupRow, GroupTable
from medzoo.evaluation.metrics import Metrics
from medzoo.evaluation.page.charts import interval_axis, interval_line, interval_range
from medzoo.evaluation.page.markup import Footnotes, Markup, estimate_cell, join, number, sentence, table, tag
from medzoo.evaluation.page.tables import common_reasons
from medzoo.evaluation.page.wording import name_of
from medzoo.evaluation.readers import Agreement, ReaderRow
from medzoo.evaluation.seeds import SeedSummary

__all__ = [
    "agreement_table", "before_table", "characteristics_table", "comparison_table", "drift_table", "group_tables",
    "reader_table", "seed_table",
]  # fmt: skip

_SUPPRESSED = f"not shown: under {LEAST_PATIENTS} patients"


def _count(value: int | None) -> Markup:
    if value is None:
        return tag("td", "not shown", class_="n none")
    return tag("td", f"{value:,}", class_="n")


def _difference(difference: Difference | None, notes: Footnotes, words: tuple[str, str]) -> tuple[Markup, Markup]:
    """Return the cell of a difference and that of what it means."""
    if difference is None:
        return tag("td", "–", class_="n none"), tag("td", "–", class_="none")
    cell = estimate_cell(difference.difference, notes)
    if difference.separable is None:
        return cell, tag("td", "–", class_="none")
    verdict = words[int(difference.difference.value < 0)] if difference.separable else "not separable"
    return cell, tag("td", verdict, class_=None if difference.separable else "none")


def group_tables(found: GroupTable, labels: Sequence[str]) -> Markup:
    """Return a forest plot of a column's groups with the differences to the reference; then each output by group."""
    key, figure = ("", "macro_auroc") if len(labels) > 1 else (labels[0], "auroc")
    notes = Footnotes()
    estimates = [e for row in found.rows if (e := row.figures.get(key, {}).get(figure)) is not None]
    span = interval_range(estimates, (0.5, 1.0))
    reference = next((r.figures.get(key, {}).get(figure) for r in found.rows if r.reference), None)
    at = None if reference is None else reference.value
    rows = []
    for row in found.rows:
        estimate = row.figures.get(key, {}).get(figure)
        suppressed = Estimate(math.nan, why=_SUPPRESSED)
        cells = [_count(row.rows), _count(row.patients)]
        if len(labels) == 1:
            cells.append(_count(row.positive_patients.get(labels[0])))
        cells += [estimate_cell(estimate or suppressed, notes), interval_line(estimate, span, at)]
        if row.reference:
            cells.append(tag("td", "reference", colspan="2", class_="none"))
        else:
            cells += _difference(row.differences.get(key, {}).get(figure), notes, ("higher", "lower"))
        rows.append(tag("tr", tag("th", row.value, scope="row"), *cells))
    head: list[str] = [found.column, "Rows", "Patients"]
    head += ["Positive patients"] if len(labels) == 1 else []
    head += [name_of(figure), interval_axis(span), "Difference", "Means"]
    shown = table(f"{name_of(figure)} by {found.column}", head, rows, notes=notes, class_="groups")
    return join(
        [shown, _groups_by_label(found, labels), *(tag("p", sentence(note), class_="small") for note in found.notes)]
    )


def _groups_by_label(found: GroupTable, labels: Sequence[str]) -> Markup:
    notes = Footnotes()
    shown = [row for row in found.rows if row.figures]
    if len(labels) == 1:
        known = [f for f in ("sensitivity", "specificity", "ppv", "npv") if any(f in _of(r, labels[0]) for r in shown)]
        if not known:
            return Markup()
        rows = [
            tag(
                "tr",
                tag("th", row.value, scope="row"),
                *(estimate_cell(_of(row, labels[0]).get(f), notes) for f in known),
            )
            for row in shown
        ]
        return table(f"At the threshold, by {found.column}", [found.column, *map(name_of, known)], rows, notes=notes)
    rows = [
        tag("tr", tag("th", label, scope="row"), *(estimate_cell(_of(row, label).get("auroc"), notes) for row in shown))
        for label in labels
    ]
    caption = f"AUROC of each output by {found.column}"
    return table(caption, ["Output", *(row.value for row in shown)], rows, notes=notes) if shown else Markup()


def _of(row: GroupRow, label: str) -> Mapping[str, Estimate]:
    return row.figures.get(label, {})


def comparison_table(found: Comparison) -> Markup:
    """Return the differences of two models, each with what it means."""
    this, other = found.names
    overall = found.overall if len(found.labels) > 1 else {}  # of one output they are the same
    every = [(None, overall), *found.labels.items()]
    wanted = (
        None if len(found.labels) <= 3 else ("auroc", "average_precision", "macro_auroc", "macro_average_precision")
    )
    pairs = [
        (label, figure, difference)
        for label, figures in every
        for figure, difference in figures.items()
        if label is None or wanted is None or figure in wanted
    ]
    notes = Footnotes()
    most = max(
        map(
            abs,
            interval_range([difference.difference for _, _, difference in pairs if _small(difference)], (-0.1, 0.1)),
        )
    )
    at_zero = (-most, most)
    rows = []
    for label, figure, difference in pairs:
        name = name_of(figure) if label is None else f"{label}: {name_of(figure)}"
        cells = [tag("td", number(value), class_="n") for value in (difference.this, difference.other)]
        cell, verdict = _difference(difference, notes, (f"{this} higher", f"{other} higher"))
        line = interval_line(difference.difference if _small(difference) else None, at_zero, 0.0)
        rows.append(tag("tr", tag("th", name, scope="row"), *cells, cell, line, verdict))
    head = ["Figure", this, other, f"{this} − {other}", interval_axis(at_zero, 0.0), "Means"]
    shown = table(f"{this} and {other} on the rows of both", head, rows, notes=notes, class_="groups")
    lower = tag("p", "Of Brier score, log-loss and ECE the lower is the better.", class_="small")
    return join([shown, lower if any(f in ("brier", "log_loss", "ece") for _, f, _ in pairs) else None])


def _small(difference: Difference) -> bool:
    """Whether a difference is drawn with the others: that of a calibration slope would make theirs points."""
    values = (difference.difference.value, difference.difference.low, difference.difference.high)
    return all(value is None or abs(value) <= 1 for value in values)


def reader_table(rows: Iterable[ReaderRow], markers: Mapping[str, str]) -> Markup:
    """Return the readers' sensitivity and specificity beside the model's on the same rows, and their agreement.

    Args:
        rows: of readers and outputs.
        markers: the sign of each reader in the figures.
    """
    notes = Footnotes()
    shown = [
        tag("tr", tag("th", f"{markers.get(row.reader, '')} {row.reader}".strip(), scope="row"), tag("td", row.label),
            _rows(row),
            *(estimate_cell(e, notes) for e in (row.sensitivity, row.model_sensitivity, row.specificity,
                                                row.model_specificity, row.kappa)))
        for row in rows
    ]  # fmt: skip
    head = ["Reader", "Output", "Rows", "Sensitivity", "Model's sensitivity", "Specificity", "Model's specificity",
            "Kappa with the model"]  # fmt: skip
    return table("Readers, and the model on the rows that each of them called", head, shown, notes=notes)


def _rows(row: ReaderRow | Agreement) -> Markup:
    left = tag("small", f"{row.left_out:,} left out") if row.left_out else None
    return tag("td", f"{row.rows:,}", " " if left else None, left, class_="n")


def agreement_table(rows: Iterable[Agreement]) -> Markup:
    """Return the agreement of each two readers."""
    notes = Footnotes()
    shown = [
        tag("tr", tag("th", f"{row.first} and {row.second}", scope="row"), tag("td", row.label),
            _rows(row), estimate_cell(row.kappa, notes))
        for row in rows
    ]  # fmt: skip
    return table("Agreement of readers", ["Readers", "Output", "Rows", "Cohen's kappa"], shown, notes=notes)


def seed_table(found: SeedSummary) -> Markup:
    """Return the mean and standard deviation over seeds."""
    wanted = ("auroc", "average_precision", "sensitivity", "specificity", "brier")
    several = len(found.labels) > 1
    rows = [(name_of(figure), pair) for figure, pair in found.overall.items() if several or "macro" not in figure]
    for label, figures in found.labels.items():
        rows += [
            (f"{label}: {name_of(f)}", figures[f]) for f in wanted[: 5 if len(found.labels) <= 3 else 2] if f in figures
        ]
    shown = [
        tag("tr", tag("th", name, scope="row"), tag("td", number(mean), class_="n"), tag("td", number(sd), class_="n"))
        for name, (mean, sd) in rows
    ]
    return table(f"Mean and standard deviation over {len(found.names)} trainings", ["Figure", "Mean", "SD"], shown)


def characteristics_table(found: Characteristics) -> Markup:
    """Return table 1: what the cases of each part are."""
    rows = [
        tag("tr", tag("th", name, scope="row"), *(tag("td", v, class_="n") for v in values))
        for name, values in found.rows
    ]
    return table("Characteristics of each part", ["", *found.columns], rows)


def drift_table(found: Drift) -> Markup:
    """Return how the images and cases here differ from those of the training."""
    rows = []
    for row in found.rows:
        difference = "–" if row.difference is None else number(row.difference, 2)
        means = tag("strong", "large") if row.large else tag("span", "–" if row.difference is None else "small")
        cells = (
            tag("td", row.training, class_="n"),
            tag("td", row.here, class_="n"),
            tag("td", difference, class_="n"),
        )
        rows.append(tag("tr", tag("th", row.what, scope="row"), *cells, tag("td", means)))
    head = ["What", "Training", "Here", "Standardised difference", "Means"]
    shown = table("This data beside that of the training", head, rows)
    return join([shown, *(tag("p", sentence(note), class_="small") for note in found.notes)])


def before_table(before: Metrics, after: Metrics, figures: Sequence[str]) -> Markup:
    """Return the figures of the probabilities before and after the calibration."""
    notes, rows = Footnotes(), []
    present = [figure for figure in figures if figure in after.labels[0].values and figure in before.labels[0].values]
    both = [(m, when, found) for m in after.labels for when, found in (("before", before[m.label]), ("after", m))]
    columns = [common_reasons([found.values.get(figure) for _, _, found in both]) for figure in present]
    for i, (m, when, _) in enumerate(both):
        cells = [estimate_cell(column[i], notes) for column in columns]
        first = tag("th", m.label, scope="rowgroup", rowspan="2") if when == "before" else None
        rows.append(tag("tr", first, tag("td", when), *cells))
    head = ["Output", "Calibration", *(name_of(figure, after) for figure in present)]
    return table("Before and after the calibration", head, rows, notes=notes)
