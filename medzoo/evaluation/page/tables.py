"""The tables of results of a report: per output, of all outputs, the calls, and the predictive values."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from medzoo.contract import Outputs
from medzoo.evaluation.case_counts import FEW
from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.metrics import LabelMetrics, Metrics
from medzoo.evaluation.page.markup import Footnotes, Markup, estimate_cell, join, number, table, tag
from medzoo.evaluation.page.wording import CALLS, PROBABILITIES, RANKING, estimate_of, name_of, some

__all__ = [
    "FEW_COLUMNS", "calibration_table", "common_reasons", "confusion_table", "overall_table", "prevalence_table",
    "results_tables", "threshold_table",
]  # fmt: skip

_DECIMAL = re.compile(r"\d+\.\d+")
FEW_COLUMNS = 3
"""Outputs that are columns of one table; more are rows of several."""


def results_tables(metrics: Metrics, unit: str) -> Markup:
    """Return the figures of each output.

    Args:
        metrics: of the outputs.
        unit: what a case is, ``"patients"`` or ``"rows"``.
    """
    if len(metrics.labels) == 1:
        return _of_one(metrics, unit)
    if len(metrics.labels) <= FEW_COLUMNS:
        return _by_column(metrics, unit)
    return join(
        _by_row(metrics, title, figures, unit) for title, figures in _kinds(metrics) if _present(metrics, figures)
    )


def _kinds(metrics: Metrics) -> tuple[tuple[str, Sequence[str]], ...]:
    called = "As called: the most probable class" if metrics.confusion is not None else "At the threshold"
    return (("Ranking", RANKING), (called, CALLS), ("Probabilities", PROBABILITIES))


def _present(metrics: Metrics, figures: Sequence[str]) -> list[str]:
    return [figure for figure in figures if any(figure in m.values for m in metrics.labels)]


def label_header(m: LabelMetrics, notes: Footnotes | None = None) -> Markup:
    """Return the header of an output's row, with a mark if it has too few patients."""
    few = notes.mark(FEW) if notes is not None and not m.counts.eligible else None
    return tag("th", m.label, few, scope="row", class_=None if m.counts.eligible else "few")


def _of_one(metrics: Metrics, unit: str) -> Markup:
    """Return the figures of the one output, as small tables beside each other."""
    notes, m = Footnotes(), metrics.labels[0]
    parts: list[tuple[str, list[tuple[str, Markup]]]] = [
        ("Cases", [(title, tag("td", text, class_="n")) for title, text in _counts(m, unit).items()])
    ]
    for title, figures in _kinds(metrics):
        cells = [(name_of(f, metrics), estimate_cell(estimate_of(m, f), notes)) for f in _present(metrics, figures)]
        parts += [(f"{title}, with 95 % intervals", cells)] if cells else []
    shown = [
        table(title, ["Figure", m.label], [tag("tr", tag("th", name, scope="row"), cell) for name, cell in cells])
        for title, cells in parts
    ]
    return join([tag("div", *shown, class_="plots single tables"), notes.render()])


def _by_column(metrics: Metrics, unit: str) -> Markup:
    notes, width = Footnotes(), str(len(metrics.labels) + 1)
    counted = [_counts(m, unit) for m in metrics.labels]
    rows = [
        tag("tr", tag("th", title, scope="row"), *(tag("td", counts[title], class_="n") for counts in counted))
        for title in counted[0]
        if title != "Threshold" or metrics.confusion is None
    ]
    for title, figures in _kinds(metrics):
        present = _present(metrics, figures)
        if present:
            rows.append(tag("tr", tag("th", title, scope="colgroup", colspan=width), class_="part"))
        for figure in present:
            estimates = common_reasons([estimate_of(m, figure) for m in metrics.labels])
            cells = [estimate_cell(estimate, notes) for estimate in estimates]
            rows.append(tag("tr", tag("th", name_of(figure, metrics), scope="row"), *cells))
    head = ["Figure", *(m.label for m in metrics.labels)]
    return table("Figures of each output, with 95 % intervals", head, rows, notes=notes)


def _counts(m: LabelMetrics, unit: str) -> dict[str, str]:
    c = m.counts
    return {
        "Positive rows": f"{c.positive:,}", f"Positive {unit}": f"{c.positive_patients:,}",
        "Negative rows": f"{c.negative:,}", f"Negative {unit}": f"{c.negative_patients:,}",
        "Rows without a label": f"{c.unknown:,}", "Threshold": "–" if m.threshold is None else number(m.threshold),
    }  # fmt: skip


def _by_row(metrics: Metrics, title: str, figures: Sequence[str], unit: str) -> Markup:
    notes, present = Footnotes(), _present(metrics, figures)
    first = title == "Ranking"
    counts = ["Positive rows", f"Positive {unit}"] if first else ["Threshold"] if title == "At the threshold" else []
    rows = []
    columns = [common_reasons([estimate_of(m, figure) for m in metrics.labels]) for figure in present]
    for i, m in enumerate(metrics.labels):
        threshold = "–" if m.threshold is None else number(m.threshold)
        known = [f"{m.counts.positive:,}", f"{m.counts.positive_patients:,}"] if first else [threshold] * len(counts)
        cells = [tag("td", text, class_="n") for text in known]
        cells += [estimate_cell(column[i], notes) for column in columns]
        rows.append(tag("tr", label_header(m, notes), *cells, class_=None if m.counts.eligible else "few"))
    head = ["Output", *counts, *(name_of(figure, metrics) for figure in present)]
    return table(f"{title}, with 95 % intervals", head, rows, notes=notes)


def overall_table(metrics: Metrics) -> Markup:
    """Return the figures of all outputs, with how many of them count and which."""
    notes, rows = Footnotes(), []
    everything = len(metrics.labels)
    for figure, estimate in metrics.overall.items():
        if (everything == 1 and figure != "exact_match") or (figure == "exact_match" and (
            "accuracy" in metrics.overall or everything == 1
        )):  # fmt: skip
            continue
        name = name_of(figure, metrics)
        if figure == "exact_match" and math.isnan(estimate.value) and any(m.calls is None for m in metrics.labels):
            estimate = replace(estimate, why="not every output has a threshold")
        if figure.startswith("macro_"):
            base = figure.removeprefix("macro_").removesuffix("_all")
            defined = sum(m[base].value == m[base].value for m in metrics.labels)
            name = f"{name_of('macro_' + base, metrics)}, " + (
                f"over all: {defined} of {everything} outputs have one" if figure.endswith("_all")
                else f"over the {some(len(metrics.eligible), 'output')} with enough patients"
            )  # fmt: skip
        rows.append(tag("tr", tag("th", name, scope="row"), estimate_cell(estimate, notes)))
    if not rows:
        return Markup()
    shown = table("All outputs together", ["Figure", "Value"], rows, notes=notes)
    if len(metrics.eligible) in (0, everything):
        return shown
    named = tag("p", f"With enough patients: {', '.join(metrics.eligible)}.", class_="small")
    return join([shown, named])


def confusion_table(metrics: Metrics) -> Markup:
    """Return what was called by what is true: classes, or positive and negative of each output."""
    if metrics.confusion is not None:
        names = [m.label for m in metrics.labels]
        rows = []
        for name, counts in zip(names, metrics.confusion.tolist(), strict=True):
            total = sum(counts)
            cells = [_shaded(count, total) for count in counts]
            rows.append(tag("tr", tag("th", name, scope="row"), *cells, tag("td", f"{total:,}", class_="n")))
        caption = "Confusion matrix: rows are the true class, columns the predicted one; shares are of the true class"
        return table(caption, ["True class", *names, "All"], rows, class_="confusion")
    called = [m for m in metrics.labels if m.calls is not None]
    rows = []
    for m in called:
        tp, fp, fn, tn = m.calls or (0, 0, 0, 0)
        cells = [_shaded(tp, tp + fn), _shaded(fn, tp + fn), _shaded(fp, fp + tn), _shaded(tn, fp + tn)]
        rows.append(tag("tr", label_header(m), *cells))
    head = [
        "Output",
        "Positive, called positive",
        "Positive, missed",
        "Negative, called positive",
        "Negative, called negative",
    ]
    caption = "Calls, in rows: what is true and what was called; shares are of the true class"
    return table(caption, head, rows, class_="confusion") if rows else Markup()


def _shaded(count: int, total: int) -> Markup:
    share = count / total if total else 0.0
    percent = tag("small", f"{share:.0%}") if total else None
    return tag("td", tag("span", f"{count:,}", class_="v"), " ", percent, class_="n", style=f"--share:{share:.2f}")


def common_reasons(estimates: Sequence[Estimate | None]) -> list[Estimate | None]:
    """Return the figures of several outputs with one reason where theirs differ in decimal numbers alone.

    >>> found = common_reasons([Estimate(0.1, why="0.02 of 20"), Estimate(0.2, why="0.05 of 20"), Estimate(0.3)])
    >>> [e.why for e in found]
    ['0.02 to 0.05 of 20', '0.02 to 0.05 of 20', '']
    """
    kinds: dict[str, list[list[str]]] = {}
    for estimate in estimates:
        if estimate is not None:
            kinds.setdefault(_DECIMAL.sub("{}", estimate.why), []).append(_DECIMAL.findall(estimate.why))

    def common(estimate: Estimate) -> Estimate:
        every = zip(*kinds[_DECIMAL.sub("{}", estimate.why)], strict=True)
        ends = [(min(numbers, key=float), max(numbers, key=float)) for numbers in every]
        texts = iter([low if low == high else f"{low} to {high}" for low, high in ends])
        return replace(estimate, why=_DECIMAL.sub(lambda _: next(texts), estimate.why))

    return [None if estimate is None else common(estimate) for estimate in estimates]


def threshold_table(metrics: Metrics, outputs: Outputs | None = None) -> Markup:
    """Return the threshold of each output, what it reached where it was chosen if that is stated, and here."""
    notes, rows = Footnotes(), []
    policy = None if outputs is None else outputs.policy
    then = {}
    if outputs is not None and policy is not None and policy.sensitivity and policy.specificity:
        then = dict(zip(outputs.labels, zip(policy.sensitivity, policy.specificity, strict=True), strict=True))
    for m in metrics.labels:
        reached = then.get(m.label, (None, None)) if then else ()
        first = [tag("td", "–" if value is None else number(value), class_="n") for value in reached]
        shown = "none" if m.threshold is None else number(m.threshold, 4)
        cells = [estimate_cell(estimate_of(m, figure), notes) for figure in ("sensitivity", "specificity")]
        rows.append(tag("tr", label_header(m), tag("td", shown, class_="n"), *first, *cells))
    where = f"on {policy.split}" if policy is not None and policy.split else "where it was chosen"
    chosen = [f"Sensitivity {where}", f"Specificity {where}"] if then else []
    head = ["Output", "Threshold (probability)", *chosen, "Sensitivity here", "Specificity here"]
    shown = table("Thresholds and what they reach on this data", head, rows, notes=notes)
    text = f"What a threshold reached {where} is optimistic: it was chosen on these rows."
    return join([shown, tag("p", text, class_="small") if then else None])


def calibration_table(outputs: Outputs) -> Markup | None:
    """Return the calibration that is part of the model; ``None`` without one."""
    found = outputs.calibration
    if found is None:
        return None
    fitted = f", fitted on {found.split}" if found.split else ""
    text = (
        f"Calibration, part of the model: {found.method}{fitted}. Each logit is slope × logit before + intercept; the "
        "thresholds are of the probabilities after it."
    )
    rows = [
        tag("tr", tag("th", label, scope="row"), tag("td", number(a), class_="n"), tag("td", number(b), class_="n"))
        for label, a, b in zip(outputs.labels, found.slope, found.intercept, strict=True)
    ]
    return join([tag("p", text), table("The calibration", ["Output", "Slope", "Intercept"], rows)])


def prevalence_table(metrics: Metrics) -> Markup:
    """Return accuracy and predictive values at the stated shares of positives, beside those of this data."""
    figures = ("accuracy", "ppv", "npv")
    notes, rows = Footnotes(), []
    for m, share in zip(metrics.labels, metrics.options.prevalence, strict=True):
        cells = [tag("td", number(share, 4), class_="n")]
        cells += [estimate_cell(m.values.get(f"{figure}_at_prevalence"), notes) for figure in figures]
        cells.append(tag("td", number(m["prevalence"].value, 4), class_="n"))
        cells += [estimate_cell(estimate_of(m, figure), notes) for figure in figures]
        rows.append(tag("tr", label_header(m), *cells))
    sampled, names = metrics.options.sampled, ("Accuracy", "PPV", "NPV")
    where = "in the sample" if sampled else "here"
    head = ["Output", "Share in the population" if sampled else "Stated share", *names, f"Share {where}"]
    there = "in the population, and in this sample" if sampled else "at a stated share, and at that of this data"
    caption = f"Accuracy and predictive values: positives as {there}"
    return table(caption, [*head, *(f"{name} {where}" for name in names)], rows, notes=notes)
