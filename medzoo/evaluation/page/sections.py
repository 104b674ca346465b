"""The sections of a report's page, in their order; those without data are ``None``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

from medzoo.evaluation.curves import LabelCurves
from medzoo.evaluation.metrics import LabelMetrics
from medzoo.evaluation.page import closing_sections as closing
from medzoo.evaluation.page import figures, more_tables, tables
from medzoo.evaluation.page.charts import flow_chart
from medzoo.evaluation.page.markup import Markup, join, number, sentence, tag
from medzoo.evaluation.page.wording import calibration_of, cases_of, methods, some

if TYPE_CHECKING:
    from medzoo.evaluation.report import Report

__all__ = ["SECTIONS"]

_SIGNS = "□△◇▽✚✖◁▷"
_BESIDE = 2  # outputs whose two kinds of panels are beside each other


def _text(*sentences: str) -> Markup:
    return tag("p", " ".join(sentences))


def _unit(report: Report) -> str:
    return "rows" if report.scores.patients is None else "patients"


def flow(report: Report) -> Markup | None:
    """Return the flow of rows, and the characteristics."""
    drawn = None if report.flow is None or not report.flow.steps else flow_chart(report.flow, "flow-chart")
    split = None
    if report.flow is not None and report.flow.parts:
        parts = (f"{part.text} {cases_of(part.rows, part.patients)}" for part in report.flow.parts)
        split = _text(f"Parts of the run: {'; '.join(parts)}.")
    known = None if report.characteristics is None else more_tables.characteristics_table(report.characteristics)
    return join([drawn, split, known]) if drawn or known else None


def results(report: Report) -> Markup:
    """Return the figures of each output and of all."""
    metrics = report.metrics
    confusion = tables.confusion_table(metrics)
    return join(
        [
            tag("p", methods(report), class_="small"),
            tables.results_tables(metrics, _unit(report)), tables.overall_table(metrics),
            tag("h3", "What was called") if confusion else None, confusion,
        ]
    )  # fmt: skip


def _drawable(report: Report) -> list[tuple[int, LabelCurves, LabelMetrics]]:
    """Return the number of each output that has both classes, with its curves and figures."""
    numbers = {label: i for i, label in enumerate(report.scores.labels)}
    every = [(numbers[curves.label], curves, report.metrics[curves.label]) for curves in report.curves]
    return [(i, curves, m) for i, curves, m in every if not math.isnan(m["auroc"].value)]


def _not_drawn(report: Report) -> Markup | None:
    shown = {curves.label for _, curves, _ in _drawable(report)}
    others = [curves.label for curves in report.curves if curves.label not in shown]
    return tag("p", f"No curve, as all rows are of one class: {', '.join(others)}.", class_="small") if others else None


def _panels(report: Report, drawn: Iterable[tuple[LabelMetrics, str, Markup]]) -> Markup:
    shown = []
    for m, text, svg in drawn:
        note = (
            ""
            if m.counts.eligible
            else f". Too few {_unit(report)} ({m.counts.positive_patients:,} positive) for intervals."
        )
        few = None if m.counts.eligible else "few"
        caption = tag("figcaption", tag("b", m.label), tag("span", f"{text}{note}".removeprefix(". ")), class_=few)
        shown.append(tag("figure", caption, svg))
    return tag("div", *shown, class_="plots single" if len(_drawable(report)) <= _BESIDE else "plots")


def _two_kinds(
    report: Report, *kinds: tuple[str, Markup, list[tuple[LabelMetrics, str, Markup]]]
) -> Markup:  # fmt: skip
    """Return the panels of two kinds, each with its title and lead: beside each other for one or two outputs."""
    leads, every = [lead for _, lead, _ in kinds], [drawn for _, _, drawn in kinds]
    if len(every[0]) <= _BESIDE:
        return join([*leads, _panels(report, chain.from_iterable(zip(*every, strict=True)))])
    return join(join([tag("h3", title), lead, _panels(report, drawn)]) for title, lead, drawn in kinds)


def _legend(*entries: tuple[str, str]) -> Markup:
    """Return what the lines of the figures are: the attributes of a line, and its text."""
    items = []
    for kind, text in entries:
        colour, _, dash = kind.partition(" ")
        if dash == "band":
            mark = tag("rect", width="36", height="12", y="2", style=f"fill:var(--{colour});opacity:.25")
        elif dash == "point":
            mark = tag("circle", cx="18", cy="8", r="5", style=f"fill:var(--{colour})")
        else:
            mark = tag(
                "path", d="M0 8H36", stroke_dasharray=dash or None, style=f"stroke:var(--{colour});stroke-width:3"
            )
        items.append(tag("li", tag("svg", mark, viewBox="0 0 36 16", aria_hidden="true"), f" {text}"))
    return tag("ul", *items, class_="legend")


def ranking(report: Report) -> Markup | None:
    """Return the ROC curves and those of precision and recall."""
    if not _drawable(report):
        return None
    signs = {name: i for i, name in enumerate(dict.fromkeys(row.reader for row in report.readers))}
    roc, pr = [], []
    for i, curves, m in _drawable(report):
        shown = [(figures.MARKERS[signs[r.reader] % 8], r) for r in report.readers if r.label == curves.label]
        roc.append((m, f"AUROC {m['auroc']}", figures.roc_figure(curves, m, f"roc-{i}", shown)))
        pr.append((m, f"Average precision {m['average_precision']}", figures.pr_figure(curves, m, f"pr-{i}")))
    lines = [("series-1", "curve"), ("series-1 band", "95 % interval at each point")]
    point = ("series-1 point", "as called" if report.scores.task == "multiclass" else "at the threshold")
    calls = [point] if any(m.calls is not None for m in report.metrics.labels) else []
    readers = _text(
        "Outlined signs are the readers, each on the rows that the reader called, and the curve is of all rows; the",
        "section on readers has both on the same rows.",
    ) if signs else None  # fmt: skip
    lines.append(("line 8 6", "chance"))
    first = ("ROC curves", join([_legend(*lines, *calls), readers]), roc)
    sampled = report.metrics.options.sampled
    lead = _text("Precision is of this sample: it is another in the population.") if sampled else Markup()
    return join([_two_kinds(report, first, ("Precision and recall", lead, pr)), _not_drawn(report)])


def calibration(report: Report) -> Markup | None:
    """Return the reliability of the probabilities, before and after the calibration, and the decision curves."""
    if not _drawable(report):
        return None
    before = {} if report.before is None else {curves.label: curves for curves in report.before[1]}
    reliability, benefit = [], []
    for i, curves, m in _drawable(report):
        p, old = (report.moved or report.scores).probabilities[:, i], before.get(curves.label)
        fit = [f"{name} {number(e.value, 2)}" for name, e in calibration_of(m)]
        text = ", ".join([f"Brier score {number(m['brier'].value)}", *fit])
        if (limit := figures.reliability_limit(curves, old)) < 1:
            text += f", axes to {limit:g}"
        reliability.append((m, text, figures.reliability_figure(curves, m, p, f"reliability-{i}", old)))
        benefit.append((m, "Net benefit", figures.decision_figure(curves, m, f"decision-{i}")))
    lines = [("series-1", "observed share with 95 % interval"), ("line 8 6", "perfect"), ("muted band", "predictions")]
    lines += [("series-2 4 4", "before calibration")] if before else []
    first = join([
        _text("Where the reliability curve lies below the diagonal, the probabilities are too high. The bars show how",
              "often each probability is predicted.", *_of_the_sample(report)),
        _legend(*lines),
    ])  # fmt: skip
    decision = ("Decision curves", _decision_lead(report), benefit)
    shown = _two_kinds(report, ("Reliability", first, reliability), decision)
    return join([shown, _before_after(report)])


def _before_after(report: Report) -> Markup | None:
    if report.before is None:
        return None
    wanted = ("brier", "log_loss", "ece", "calibration_slope", "calibration_intercept")
    return more_tables.before_table(report.before[0], report.metrics, wanted)


def _of_the_sample(report: Report) -> list[str]:
    """Return which probabilities are shown of rows that were sampled by class."""
    if not report.metrics.options.sampled:
        return []
    if report.moved is None:
        return ["Both are of this sample, and of the probabilities as they are."]
    return ["The probabilities of the model are for the population. Here they are moved in closed form to the share of",
            "positives of this sample: if they are right here, they are right there."]  # fmt: skip


def _decision_lead(report: Report) -> Markup:
    """Return what the decision curves show."""
    lines = (("series-1", "model"), ("muted 8 4", "treat all"), ("muted", "treat none"))
    return join([
        _text("Net benefit: true positives minus false positives per case, each false positive weighted by the odds",
              "of the threshold probability at which one would treat. The model helps at the thresholds where its",
              "curve is above both others, if the probabilities are calibrated.",
              *(["The curve is of this sample and its probabilities."] if report.metrics.options.sampled else [])),
        _legend(*lines),
    ])  # fmt: skip


def thresholds(report: Report) -> Markup | None:
    """Return what was decided: thresholds and calibration; and predictive values at another share of positives."""
    metrics, rule = report.metrics, report.scores.threshold_rule
    parts = []
    fitted = None if report.outputs is None else tables.calibration_table(report.outputs)
    if report.scores.task == "multiclass":
        return fitted
    if any(m.threshold is not None for m in metrics.labels):
        how = (
            f"How the thresholds were chosen: {rule.rstrip('.')}."
            if rule
            else "How the thresholds were chosen is not known."
        )
        parts += [_text(how), tables.threshold_table(metrics, report.outputs)]
    else:
        parts.append(
            _text("No threshold was chosen: no case is called positive or negative, and 0.5 is not put in its place.")
        )
    parts.append(fitted or Markup())
    if metrics.options.prevalence:
        parts += [
            tag("h3", "In the population" if metrics.options.sampled else "At a stated share of positives"),
            _text("From the sensitivity and specificity here, taken to hold there too."),
            tables.prevalence_table(metrics),
        ]
    return join(parts)


def groups(report: Report) -> Markup | None:
    """Return the figures by group."""
    if not report.groups:
        return None
    labels = [m.label for m in report.metrics.labels]
    shown = [join([tag("h3", f"By {g.column}"), more_tables.group_tables(g, labels)]) for g in report.groups]
    averaged = report.metrics.eligible
    text = ["Groups under 10 rows or patients are not shown. A difference whose interval holds 0 is not separable",
            "from none: that is no proof that there is none."]  # fmt: skip
    if len(labels) > 1 and averaged:
        text.append(f"Means are over the same outputs in every group: {', '.join(averaged)}.")
    return join([_text(*text), *shown])


def comparison(report: Report) -> Markup | None:
    """Return the differences to another model."""
    found = report.comparison
    if found is None:
        return None
    patients = "" if found.patients is None else f" of {some(found.patients, 'patient')}"
    text = (f"{found.names[0]} and {found.names[1]} on the same {some(found.rows, 'row')}{patients}; differences are "
            "paired by patient.")  # fmt: skip
    return join(
        [
            _text(text),
            more_tables.comparison_table(found),
            *(tag("p", sentence(n), class_="small") for n in found.notes),
        ]
    )


def readers(report: Report) -> Markup | None:
    """Return the human readers beside the model."""
    if not report.readers:
        return None
    names = dict.fromkeys(row.reader for row in report.readers)
    signs = {name: _SIGNS[i % len(_SIGNS)] for i, name in enumerate(names)}
    pairs = more_tables.agreement_table(report.agreements) if report.agreements else None
    text = _text(
        "The model's figures here are of the rows that the reader called. A reader's point above or below the ROC",
        "curve is no test: the curve is of all rows, and both have an uncertainty.",
    )
    return join([text, more_tables.reader_table(report.readers, signs), pairs])


def seeds(report: Report) -> Markup | None:
    """Return the mean and standard deviation over trainings."""
    if report.seeds is None:
        return None
    text = "The trainings differ in their seed alone. Their spread is no interval over patients: it comes on top of it."
    return join([_text(text), more_tables.seed_table(report.seeds)])


def log(report: Report) -> Markup | None:
    """Return the learning curves."""
    drawn = figures.log_figures(report.log) if report.log else []
    panels = [tag("figure", tag("figcaption", tag("b", what)), svg) for what, svg in drawn]
    return tag("div", *panels, class_="plots") if panels else None


def drift(report: Report) -> Markup | None:
    """Return how this data differs from that of the training."""
    return None if report.drift is None else more_tables.drift_table(report.drift)


SECTIONS = (
    ("flow", "Rows and patients", flow), ("results", "Results", results),
    ("ranking", "ROC, precision and recall", ranking),
    ("calibration", "Calibration and decision curves", calibration),
    ("thresholds", "Thresholds and predictive values", thresholds), ("groups", "Groups", groups),
    ("comparison", "Comparison", comparison), ("readers", "Readers", readers), ("seeds", "Several trainings", seeds),
    ("learning", "Learning curves", log), ("drift", "This data beside the training's", drift),
    ("examples", "Right and wrong examples", closing.examples), ("data", "Data", closing.data),
    ("limits", "What this report cannot show", closing.cannot), ("made", "How it was made", closing.made),
    ("checklist", "Checklist, a draft", closing.checklist),
)  # fmt: skip
"""The anchor, the title and the function of each section."""
