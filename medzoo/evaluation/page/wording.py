"""The sentences of a report: names of figures, what it says first, its warnings, its limits and its sources."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from medzoo.evaluation.case_counts import FEW
from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.metrics import BOOTSTRAP, LabelMetrics, Metrics
from medzoo.evaluation.page.verdicts import chance_sentences, join_labels

if TYPE_CHECKING:
    from medzoo.evaluation.report import Report

__all__ = [
    "CALLS", "NAMES", "PROBABILITIES", "RANKING", "SOURCES", "calibration_of", "cases", "cases_of", "estimate_of",
    "headline", "limits", "methods", "name_of", "reading_notes", "some", "summary", "warnings_of",
]  # fmt: skip

NAMES = {
    "auroc": "AUROC", "average_precision": "Average precision", "accuracy": "Accuracy", "sensitivity": "Sensitivity",
    "specificity": "Specificity", "ppv": "PPV", "npv": "NPV", "f1": "F1", "brier": "Brier score",
    "log_loss": "Log-loss", "prevalence": "Share of positives", "ece": "ECE", "calibration_slope": "Calibration slope",
    "calibration_intercept": "Calibration intercept", "exact_match": "Exact match",
    "balanced_accuracy": "Balanced accuracy", "macro_auroc": "Mean AUROC",
    "macro_average_precision": "Mean average precision", "macro_auroc_all": "Mean AUROC of all outputs",
    "macro_average_precision_all": "Mean average precision of all outputs",
    "accuracy_at_prevalence": "Accuracy at the stated share", "ppv_at_prevalence": "PPV at the stated share",
    "npv_at_prevalence": "NPV at the stated share", "sensitivity_at_specificity": "Sensitivity at a specificity",
    "specificity_at_sensitivity": "Specificity at a sensitivity", "kappa": "Cohen's kappa",
}  # fmt: skip
RANKING = ("auroc", "average_precision", "sensitivity_at_specificity", "specificity_at_sensitivity")
CALLS = ("sensitivity", "specificity", "ppv", "npv", "f1", "accuracy")
PROBABILITIES = ("brier", "log_loss", "ece", "calibration_slope", "calibration_intercept")
# Figures that are others at another share of positives: where rows were sampled by class, they are of the sample.
_OF_SAMPLE = (
    "accuracy", "f1", "average_precision", "exact_match", "macro_average_precision", "macro_average_precision_all",
    "brier", "log_loss", "ece", "calibration_intercept",
)  # fmt: skip
# Notes of what was recognised in a file of scores, as the readers of medzoo.evaluation.score_files.read word them.
_READING = re.compile(
    r"^(patients are in the column|scores are joined with|scores are taken as probabilities|"
    r"a comma in a score is taken|the file has no (header|ids)|columns of scores are taken in|"
    r"of two columns of classes|"
    r"labels exclude each other|classes are numbered)|^.{1,80} is the positive (class|one)$",
    re.IGNORECASE,
)
SOURCES = (
    ("Bootstrap over patients: each resample draws patients with all their rows. Efron and Tibshirani, An Introduction "
     "to the Bootstrap, 1993; Field and Welsh, J R Stat Soc B 2007", "10.1111/j.1467-9868.2007.00593.x"),
    ("Wilson's interval of a proportion. Wilson, J Am Stat Assoc 1927", "10.1080/01621459.1927.10502953"),
    ("Newcombe's interval of an AUROC. Newcombe, Stat Med 2006", "10.1002/sim.2324"),
    ("Expanded percentiles. Hesterberg, Am Stat 2015", "10.1080/00031305.2015.1089789"),
    ("Calibration slope and intercept. Van Calster et al., BMC Medicine 2019", "10.1186/s12916-019-1466-7"),
    ("Net benefit. Vickers and Elkin, Med Decis Making 2006", "10.1177/0272989X06295361"),
    ("Agreement. Cohen, Educ Psychol Meas 1960", "10.1177/001316446002000104"),
)  # fmt: skip


def name_of(figure: str, metrics: Metrics | None = None) -> str:
    """Return the name of a figure; the unknown keep theirs."""
    if metrics is not None and figure == "sensitivity_at_specificity":
        return f"Sensitivity at specificity {metrics.options.specificity:g}"
    if metrics is not None and figure == "specificity_at_sensitivity":
        return f"Specificity at sensitivity {metrics.options.sensitivity:g}"
    name = NAMES.get(figure, figure.replace("_", " ").capitalize())
    of_sample = metrics is not None and metrics.options.sampled and figure in _OF_SAMPLE
    return f"{name}, of this sample" if of_sample else name


def estimate_of(label: LabelMetrics, figure: str) -> Estimate | None:
    """Return a figure of an output, with the reason if it has no call; ``None`` if it was not computed."""
    found = label.values.get(figure)
    if found is not None and label.calls is None and math.isnan(found.value) and figure in CALLS:
        return replace(found, why="no threshold was chosen, so no call is made")
    return found


def calibration_of(label: LabelMetrics) -> list[tuple[str, Estimate]]:
    """Return slope and intercept of the calibration as far as they are known; with few patients they are noise."""
    found = [(name, label.values.get(f"calibration_{name}")) for name in ("slope", "intercept")]
    return [(name, e) for name, e in found if label.counts.eligible and e is not None and not math.isnan(e.value)]


def some(count: int, what: str) -> str:
    """Return a count with its noun.

    >>> some(1, "row"), some(1200, "patient")
    ('1 row', '1,200 patients')
    """
    return f"{count:,} {what}{'s' * (count != 1)}"


def cases(metrics: Metrics) -> str:
    """Return the rows and patients."""
    return cases_of(metrics.rows, metrics.patients)


def cases_of(rows: int, patients: int | None) -> str:
    """Return counts of rows and patients.

    >>> cases_of(1200, 300), cases_of(1, None)
    ('1,200 rows of 300 patients', '1 row')
    """
    return some(rows, "row") if patients is None else f"{some(rows, 'row')} of {some(patients, 'patient')}"


def headline(metrics: Metrics) -> tuple[str, Estimate]:
    """Return the figure that a report begins with, and what it is of."""
    if len(metrics.labels) == 1:
        return f"The AUROC of {metrics.labels[0].label}", metrics.labels[0]["auroc"]
    if not metrics.eligible:
        return f"The mean AUROC of all {len(metrics.labels)} outputs", metrics.overall["macro_auroc_all"]
    number = len(metrics.eligible)
    if number == 1:
        one = f"The AUROC of {metrics.eligible[0]}, the one output of {len(metrics.labels)} with enough patients,"
        return one, metrics.overall["macro_auroc"]
    what = "all" if number == len(metrics.labels) else f"the {number} of {len(metrics.labels)}"
    return f"The mean AUROC of {what} outputs with enough patients", metrics.overall["macro_auroc"]


def in_words(estimate: Estimate) -> str:
    """Return a figure with its interval as part of a sentence."""
    if math.isnan(estimate.value):
        return f"cannot be computed ({estimate.why or 'not defined for these rows'})"
    if estimate.low is None or estimate.high is None:
        return f"is {estimate.value:.3f}, without an interval ({estimate.why or 'none was computed'})"
    return f"is {estimate.value:.3f} (95 % interval {estimate.low:.3f} to {estimate.high:.3f})"


def summary(report: Report) -> str:
    """Return the paragraph that a report begins with: model, data, main figure, and what it cannot say."""
    metrics, facts = report.metrics, report.facts
    model = facts.get("model", "The model")
    data = f" ({facts['data']})" if "data" in facts else ""
    what, figure = headline(metrics)
    accuracy = metrics.overall.get("accuracy")
    more = f" The accuracy {in_words(accuracy)}." if accuracy is not None else ""
    chance = "".join(f" {text}" for text in chance_sentences(metrics))
    return (
        f"{model} was evaluated on {cases(metrics)}{data}. {what} {in_words(figure)}.{chance}{more} This states how "
        "the scores relate to the labels of these cases. It cannot state how the model does on patients, scanners or "
        "sites unlike these, whether the labels are right, or whether its use helps anyone."
    )


def warnings_of(report: Report) -> list[str]:
    """Return what a reader should know before the figures: what was noted, and what follows from them."""
    metrics = report.metrics
    found = chance_sentences(metrics)
    few = [m for m in metrics.labels if not m.counts.eligible]
    if few:
        named = ", ".join(f"{m.label} ({m.counts.positive_patients:,})" for m in few)
        unit = "patients" if report.scores.patients is not None else "rows"
        found.append(f"No intervals, as {FEW}; positive {unit} in brackets: {named}.")
    if report.scores.patients is None:
        found.append(
            "The patients are not known: each row counts as a patient. Where patients have several rows, the intervals "
            "are too narrow."
        )
    without = [m.label for m in metrics.labels if m.threshold is None]
    if without and report.scores.task != "multiclass":
        found.append(f"No threshold, and so no positive or negative call, for {join_labels(without)}.")
    found += _calibration_warning(metrics)
    if report.openings is not None and report.openings > 1:
        found.append(
            f"This test data was opened {report.openings} times. Choices made after looking at it make the figures "
            "optimistic."
        )
    return [*found, *(text for text in _notes(report) if not _READING.search(text))]


def reading_notes(report: Report) -> list[str]:
    """Return the notes that state how a file was read; they are no warnings."""
    return [text for text in _notes(report) if _READING.search(text)]


def _notes(report: Report) -> list[str]:
    return [*dict.fromkeys([*report.scores.notes, *report.notes])]


def _calibration_warning(metrics: Metrics) -> list[str]:
    found = []
    for name, perfect in (("slope", 1), ("intercept", 0)):
        every = [(m.label, m.values.get(f"calibration_{name}")) for m in metrics.labels]
        off = [
            f"{label} ({e.value:.2f})" for label, e in every
            if e is not None and e.low is not None and e.high is not None and not e.low <= perfect <= e.high
        ]  # fmt: skip
        found += [f"{name}s whose interval leaves out {perfect}: {join_labels(off)}"] if off else []
    where = " in this sample" if metrics.options.sampled else ""
    return [f"The probabilities are not calibrated{where}: {'; '.join(found)}."] if found else []


def limits(report: Report) -> list[str]:
    """Return what the figures cannot show."""
    scores = report.scores
    found = [
        "For research use. This is no evidence of clinical benefit, and the model is no medical device by it.",
        "The figures hold for patients like these. Another site, scanner, protocol or share of positives can change "
        "all of them; PPV and NPV change with the share of positives even where nothing else does.",
        "The labels are taken as true. Errors and doubts in them are in every figure.",
    ]
    if scores.patients is None:
        found.append("Without known patients it cannot be checked that training and test data share none.")
    else:
        found.append(
            "Patients are kept apart by the identifiers of the table. One person under two identifiers, and images "
            "that the pretrained weights have seen, would not be noticed."
        )
    if len(report.metrics.labels) > 1 or report.groups:
        found.append(
            "Many intervals are shown, and none is widened for their number: of 20 true differences of zero, about "
            "one is expected to look separable."
        )
    return found


def methods(report: Report) -> str:
    """Return how the intervals were computed: each method of the report, with the figures that have it."""
    used: dict[str, list[str]] = {}
    for figure, method in _intervals(report):
        if figure not in used.setdefault(method, []):
            used[method].append(figure)
    if not used:
        return "No figure has an interval; the reason is beside each."
    sentences = ["Intervals are 95 %", *(f"{', '.join(figures)}: {method}" for method, figures in used.items())]
    metrics = report.metrics
    unit = "rows, as the patients are not known" if metrics.patients is None else "patients, each with all its rows"
    own = "; that of the bands has resamples of its own" if _banded(report) else ""
    sentences.append(f"The bootstrap draws {metrics.resamples:,} times from the {unit} (seed {metrics.seed}){own}")
    return " ".join(f"{text}." for text in sentences)


def _banded(report: Report) -> bool:
    return any(b is not None for c in report.curves for b in (c.roc_band, c.pr_band, c.net_benefit_band))


def _intervals(report: Report) -> Iterator[tuple[str, str]]:
    """Yield the name of each figure that has an interval, and how it was computed."""
    several, metrics = len(report.metrics.labels) > 1, report.metrics
    # Of one output, the figures of all outputs are its own.
    figures = [*(m.values for m in metrics.labels), *([metrics.overall] if several else [])]
    figures += [of for g in report.groups for row in g.rows for label, of in row.figures.items() if label or several]
    found = [(name_of(name), e) for of in figures for name, e in of.items()]
    found += [("Observed share", b.observed) for c in report.curves for b in c.reliability]
    for row in report.readers:
        own = (row.sensitivity, row.model_sensitivity), (row.specificity, row.model_specificity)
        found += [
            (n, e) for n, es in zip(("Sensitivity", "Specificity"), own, strict=True) for e in es if e is not None
        ]
        found.append((NAMES["kappa"], row.kappa))
    found += [(NAMES["kappa"], row.kappa) for row in report.agreements]
    yield from ((name, _method(e.method)) for name, e in found if e.low is not None)
    if _banded(report):
        yield "Bands of curves", f"percentiles of the {BOOTSTRAP} at each point"
    compared = [report.comparison.overall, *report.comparison.labels.values()] if report.comparison else []
    between = [of for g in report.groups for row in g.rows for of in row.differences.values()]
    for name, parts in (("Differences of the models", compared), ("Differences between groups", between)):
        for method in {d.difference.method: None for of in parts for d in of.values() if d.separable is not None}:
            yield name, f"expanded percentiles of the {method}"


def _method(method: str) -> str:
    """Return the method of an estimate in words that name what the bootstrap is used for."""
    if method == BOOTSTRAP:
        return f"percentiles of the {method}"
    return f"standard error of the {method}" if method.startswith(BOOTSTRAP) else method
