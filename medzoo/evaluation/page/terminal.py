"""The lines that a terminal shows of a report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from medzoo.evaluation.compare import Difference
from medzoo.evaluation.groups import GroupTable
from medzoo.evaluation.metrics import LabelMetrics
from medzoo.evaluation.page.markup import sentence
from medzoo.evaluation.page.verdicts import accuracies
from medzoo.evaluation.page.wording import (
    calibration_of,
    cases,
    estimate_of,
    headline,
    in_words,
    name_of,
    reading_notes,
    some,
    warnings_of,
)

if TYPE_CHECKING:
    from medzoo.evaluation.report import Report

__all__ = ["terminal_lines"]

_FEW = 3  # outputs that have a line each


def terminal_lines(report: Report) -> Iterator[str]:
    """Yield the lines of a report whose texts are shareable already: figures, parts, notes."""
    metrics = report.metrics
    yield f"{report.title}: {cases(metrics)}"
    for m in metrics.labels:
        yield f"  {_label(report, m)}"
        both = [f"{what} {estimate}" for what, estimate in accuracies(m, metrics)]
        if both:
            yield f"  {m.label}: accuracy {', '.join(both)}"
    if len(metrics.labels) > 1:
        what, figure = headline(metrics)
        yield f"  {what} {in_words(figure)}."
    if report.scores.task == "multiclass":
        known = [(name, metrics.overall.get(name)) for name in ("accuracy", "balanced_accuracy")]
        yield "  " + ", ".join(
            f"{name_of(name, metrics)} {estimate}" for name, estimate in known if estimate is not None
        )
    for line in (*_comparison(report), *map(_group, report.groups), *_readers(report), *_seeds(report)):
        yield f"  {line}"
    yield from (f"  Note: {text}" for text in warnings_of(report))
    yield from (f"  Read: {text}" for text in reading_notes(report))


def _label(report: Report, m: LabelMetrics) -> str:
    unit = "row" if report.scores.patients is None else "patient"
    parts = [some(m.counts.positive_patients, f"positive {unit}"), f"AUROC {m['auroc']}"]
    at = "no threshold" if m.threshold is None else f"at {m.threshold:.3g}"
    if report.scores.task == "multiclass":
        at = "as the most probable class"
    called = [f"{name} {e}" for name in ("sensitivity", "specificity") if m.calls and (e := estimate_of(m, name))]
    parts += [f"{at}: {called[0]}", *called[1:]] if called else [at]
    fit = [f"{name} {e}" for name, e in calibration_of(m)]
    return f"{m.label}: {', '.join(parts)}" + (f", calibration {', '.join(fit)}" if fit else "")


def _comparison(report: Report) -> Iterator[str]:
    """Yield the difference of AUROC of each output, or of the mean of many."""
    found = report.comparison
    if found is None:
        return
    start = f"Against {found.names[1]} on {some(found.rows, 'row')}"
    several = len(found.labels) > 1
    if len(found.labels) <= _FEW:
        for label, figures in found.labels.items():
            if "auroc" in figures:
                yield f"{start}: {f'{label}, ' if several else ''}AUROC {figures['auroc']}"
    else:
        figure = next((f for f in ("macro_auroc", "macro_auroc_all") if f in found.overall), None)
        if figure is not None:
            yield f"{start}: {name_of(figure)} {found.overall[figure]}"


def _group(table: GroupTable) -> str:
    """Return the largest difference of an AUROC that is separable from none, or that there is none."""
    reference = next((row.value for row in table.rows if row.reference), "the reference")
    known: list[tuple[str, str, Difference]] = [
        (row.value, f"{name_of(figure)}{f' of {label}' if label and len(row.differences) > 1 else ''}", difference)
        for row in table.rows for label, of in row.differences.items() for figure, difference in of.items()
        if figure in ("auroc", "macro_auroc") and difference.separable is not None
    ]  # fmt: skip
    if not known:
        return f"By {table.column}: no difference of AUROC has an interval"
    apart = [one for one in known if one[2].separable]
    if not apart:
        return f"By {table.column}: no difference of AUROC is separable"
    value, figure, difference = max(apart, key=lambda one: abs(one[2].difference.value))
    return f"By {table.column}: the largest difference is that of {value} to {reference}, {figure} {difference}"


def _readers(report: Report) -> Iterator[str]:
    several = len(report.metrics.labels) > 1
    for row in report.readers:
        yield f"Reader {row.reader}{f', {row.label}' if several else ''}: kappa with the model {row.kappa}"
    for pair in report.agreements:
        yield f"Readers {pair.first} and {pair.second}{f', {pair.label}' if several else ''}: kappa {pair.kappa}"


def _seeds(report: Report) -> Iterator[str]:
    found = report.seeds
    if found is None:
        return
    pairs = [(label, figures["auroc"]) for label, figures in found.labels.items() if "auroc" in figures]
    several = len(found.labels) > 1
    known = [(f"AUROC{f' of {label}' if several else ''}", pair) for label, pair in pairs]
    if several and "macro_auroc" in found.overall:
        known = [(name_of("macro_auroc"), found.overall["macro_auroc"]), *(known if len(known) <= _FEW else [])]
    for name, (mean, sd) in known[: _FEW + 1]:
        shown = "not all have one" if math.isnan(mean) else f"mean {mean:.3f}, SD {sd:.3f}"
        yield sentence(f"over {len(found.names)} trainings, {name}: {shown}").rstrip(".")
