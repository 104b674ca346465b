"""Drafts of two reporting guidelines, answered where the run knows the answer and blank elsewhere.

The items are those of CLAIM 2024 (Tejani et al., Radiology: Artificial Intelligence 2024, doi:10.1148/ryai.240300) and
of TRIPOD+AI (Collins et al., BMJ 2024, doi:10.1136/bmj-2023-078378) by their numbers, in a few words of our own; the
guidelines say in full what each asks for. An answer is a draft for an author: a figure or a method that is in the
report is named, and nothing is judged to be sufficient.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medzoo.evaluation.page.markup import Markup, join, table, tag
from medzoo.evaluation.page.wording import cases, headline, in_words, methods, name_of, some

if TYPE_CHECKING:
    from medzoo.evaluation.report import Report

__all__ = ["ChecklistItem", "checklist_table", "draft"]

BLANK = "to be filled in"


@dataclass(frozen=True)
class ChecklistItem:
    """One item of a guideline.

    Attributes:
        guideline: ``"CLAIM 2024"`` or ``"TRIPOD+AI"``.
        number: of the item there, such as ``"12a"``.
        topic: what it asks for, in short.
        answer: what the run knows; empty for what an author has to fill in.
        where: the section of the report, by its anchor; empty for none.
    """

    guideline: str
    number: str
    topic: str
    answer: str = ""
    where: str = ""


_SOURCES = {"CLAIM 2024": "10.1148/ryai.240300", "TRIPOD+AI": "10.1136/bmj-2023-078378"}

# Number, what it asks for, and the answer of _answers() that belongs to it, if one can.
_CLAIM = (
    ("1", "Title or abstract: AI is used, and which kind", ""),
    ("2", "Abstract: design, methods, results, conclusions in short", ""),
    ("3", "Background, and the role that the model is meant for", "use"),
    ("4", "Aims and hypotheses", ""),
    ("5", "Prospective or retrospective", ""),
    ("6", "Goal of the study, such as building or testing a model", ""),
    ("7", "Where the data comes from", "source"),
    ("8", "Who was included and excluded", "excluded"),
    ("9", "Preprocessing of the images", "preprocessing"),
    ("10", "Parts of images or data that were selected", "selected"),
    ("11", "How the data was de-identified", ""),
    ("12", "How missing data was handled", "missing"),
    ("13", "How the images were acquired", "acquisition"),
    ("14", "What the reference standard is", "labels"),
    ("15", "Why this reference standard", ""),
    ("16", "Who or what made the reference labels", ""),
    ("17", "How the test set was labelled", ""),
    ("18", "Agreement within and between those who labelled", "agreement"),
    ("19", "How cases were assigned to the parts", "split"),
    ("20", "At which level the parts share nothing", "level"),
    ("21", "How large the test set was meant to be, and why", ""),
    ("22", "The model in detail", "model"),
    ("23", "Software and versions", "software"),
    ("24", "Initial values of the parameters", "initial"),
    ("25", "How the model was trained", "training"),
    ("26", "How the final model was selected", "selection"),
    ("27", "Ensembles, if any", "ensemble"),
    ("28", "Measures of performance", "measures"),
    ("29", "Uncertainty and tests", "uncertainty"),
    ("30", "Robustness or sensitivity analyses", "groups"),
    ("31", "Explanations of the model's outputs", ""),
    ("32", "Evaluation on internal data", "internal"),
    ("33", "Testing on external data", "external"),
    ("34", "Registration of a trial", ""),
    ("35", "Cases included and excluded", "flow"),
    ("36", "Characteristics of the cases of each part", "characteristics"),
    ("37", "Performance with its uncertainty", "performance"),
    ("38", "Diagnostic accuracy with its precision", "accuracy"),
    ("39", "Analysis of errors", "errors"),
    ("40", "Limitations", "limits"),
    ("41", "What it means for practice", ""),
    ("42", "Where the protocol or further detail is", ""),
    ("43", "Whether software, model and data can be had", ""),
    ("44", "Funding", ""),
)
_TRIPOD = (
    ("1", "Title: a prediction model, of what, for whom", ""),
    ("2", "Abstract, by its own checklist", ""),
    ("3a", "Setting in health care, and reasons for the model", ""),
    ("3b", "For whom and by whom it is used, and where in care", "use"),
    ("3c", "Known inequalities between groups", ""),
    ("4", "Objectives: development, evaluation or both", ""),
    ("5a", "Sources of the data, and how representative they are", "source"),
    ("5b", "Dates of the data", "dates"),
    ("6a", "Setting, and number of sites", ""),
    ("6b", "Who was eligible", "excluded"),
    ("6c", "Treatments", ""),
    ("7", "Preparation and quality control of the data", "preprocessing"),
    ("8a", "The outcome, and how it was assessed", "labels"),
    ("8b", "Who assessed it, if that took judgement", ""),
    ("8c", "Whether that was blinded", ""),
    ("9a", "Choice of predictors", "input"),
    ("9b", "Definition and measurement of predictors", "acquisition"),
    ("9c", "Who assessed predictors, if that took judgement", ""),
    ("10", "Sample size and its reasons", ""),
    ("11", "Missing data", "missing"),
    ("12a", "How the data was used for development and evaluation", "split"),
    ("12b", "Handling of predictors", "preprocessing"),
    ("12c", "Kind of model, building steps, tuning, internal validation", "training"),
    ("12d", "Differences between clusters, such as sites", "groups"),
    ("12e", "Measures and plots of performance", "measures"),
    ("12f", "Updating of the model, such as recalibration", "updating"),
    ("12g", "How the predictions were computed", "predictions"),
    ("13", "Class imbalance, and what was done about it", "imbalance"),
    ("14", "Fairness", "groups"),
    ("15", "Output of the model, and thresholds", "thresholds"),
    ("16", "Differences between development and evaluation data", "drift"),
    ("17", "Ethical approval and consent", ""),
    ("18a", "Funding", ""),
    ("18b", "Conflicts of interest", ""),
    ("18c", "Protocol", ""),
    ("18d", "Registration", ""),
    ("18e", "Availability of the data", ""),
    ("18f", "Availability of the code", ""),
    ("19", "Involvement of patients and the public", ""),
    ("20a", "Flow of participants, with and without the outcome", "flow"),
    ("20b", "Characteristics of participants", "characteristics"),
    ("20c", "Evaluation data beside development data", "drift"),
    ("21", "Participants and outcome events in each analysis", "events"),
    ("22", "The full model, so that it can be used", "model"),
    ("23a", "Performance with intervals, in key groups too", "performance"),
    ("23b", "Heterogeneity between clusters", "groups"),
    ("24", "Results of an updating", "updating"),
    ("25", "Interpretation, with fairness", ""),
    ("26", "Limitations", "limits"),
    ("27a", "Poor or missing input in use", ""),
    ("27b", "What users have to do and know", ""),
    ("27c", "Next steps of research", ""),
)
# Facts that answer as they are.
_FACTS = {
    "use": "intended use", "source": "data", "preprocessing": "preprocessing", "acquisition": "acquisition",
    "labels": "labels from", "split": "split", "software": "software", "initial": "initial parameters",
    "level": "split level", "training": "training",
    "selection": "selection", "ensemble": "ensemble", "external": "external data", "dates": "dates of the data",
    "imbalance": "imbalance",
}  # fmt: skip


def draft(report: Report) -> tuple[ChecklistItem, ...]:
    """Return the items of both guidelines with the answers that the report has.

    Args:
        report: whose data and ``facts`` answer. Facts that answer an item: "intended use", "data", "preprocessing",
            "acquisition", "labels from", "split", "split level", "model", "weights", "software", "initial parameters",
            "training", "part", "selection", "ensemble", "external data", "dates of the data", "imbalance".
    """
    known = _answers(report)
    return tuple(
        ChecklistItem(guideline, number, topic, *known.get(key, ("", "")))
        for guideline, items in (("CLAIM 2024", _CLAIM), ("TRIPOD+AI", _TRIPOD))
        for number, topic, key in items
    )


def _answers(report: Report) -> dict[str, tuple[str, str]]:
    """Return what is known, by key: the answer and its section."""
    metrics, scores, facts = report.metrics, report.scores, report.facts
    found = {key: (facts[fact], "made") for key, fact in _FACTS.items() if facts.get(fact)}
    if "data" in facts:
        found["source"] = (f"{facts['data']}: {cases(metrics)}.", "data")
    if "software" not in found and facts.get("made with"):
        found["software"] = (facts["made with"], "made")
    if facts.get("model"):
        text = facts["model"] + (f", weights {facts['weights']}" if facts.get("weights") else "")
        found["model"] = (text, "made")
    unknown = sum(m.counts.unknown for m in metrics.labels)
    found["missing"] = (
        f"Rows without a label of an output are left out of its figures: {some(unknown, 'value')} in all.",
        "results",
    )
    if facts.get("part"):
        found["internal"] = (f"The {facts['part']} part of the data of the run: {cases(metrics)}.", "results")
    figures = list(dict.fromkeys(name_of(f, metrics) for m in metrics.labels for f in m.values))
    plots = "; ROC, precision and recall, reliability and decision curves" if report.curves else ""
    found["measures"] = (", ".join(figures) + plots + ".", "results")
    found["uncertainty"] = (methods(report), "made")
    what, figure = headline(metrics)
    found["performance"] = (f"{what} {in_words(figure)}.", "results")
    events = ", ".join(f"{m.label} {m.counts.positive_patients:,}" for m in metrics.labels)
    unit = "patients" if scores.patients is not None else "rows"
    found["events"] = (f"{cases(metrics)}; positive {unit}: {events}.", "results")
    found["limits"] = ("A draft is in the report; the author adds those of the study.", "limits")
    return found | _more_answers(report)


def _more_answers(report: Report) -> dict[str, tuple[str, str]]:
    """Return the answers of the parts that a report may lack."""
    metrics, found = report.metrics, {}
    called = [m for m in metrics.labels if m.calls is not None]
    if called:
        pairs = "; ".join(f"{m.label}: sensitivity {m['sensitivity']}, specificity {m['specificity']}" for m in called)
        found["accuracy"] = (f"{pairs}.", "results")
    if any(m.threshold is not None for m in metrics.labels):
        rule = report.scores.threshold_rule
        chosen = f"thresholds by {rule}" if rule else "how thresholds were chosen is not known"
        found["thresholds"] = (f"Probabilities; {chosen}.", "thresholds")
    if report.flow is not None:
        dropped = [f"{rows:,} {reason}" for step in report.flow.steps for reason, rows in step.dropped]
        found["flow"] = ("The flow of rows and patients is drawn.", "flow")
        found["excluded"] = (f"Left out: {'; '.join(dropped)}." if dropped else "No row was left out.", "flow")
    if report.characteristics is not None:
        found["characteristics"] = ("A table of each part.", "flow")
    if report.groups:
        columns = ", ".join(group.column for group in report.groups)
        found["groups"] = (f"Figures and differences with intervals by {columns}.", "groups")
    if report.agreements:
        found["agreement"] = ("Cohen's kappa of each two readers.", "readers")
    if report.examples:
        found["errors"] = ("The most confident wrong calls of each output are listed.", "examples")
    if report.drift is not None:
        large = [row.what for row in report.drift.rows if row.large]
        found["drift"] = (f"Large differences: {', '.join(large) or 'none'}.", "drift")
    calibration = None if report.outputs is None else report.outputs.calibration
    # One that was fitted to the run's own validation part belongs to the training.
    if calibration is not None and calibration.split != "validation":
        fitted = f" on {calibration.split}" if calibration.split else ""
        after = "; figures before and after are given" if report.before is not None else ""
        found["updating"] = (f"Recalibrated ({calibration.method}){fitted}{after}.", "calibration")
    return found


def checklist_table(items: Iterable[ChecklistItem]) -> Markup:
    """Return the items of each guideline as a table."""
    every = tuple(items)
    parts = [
        tag("p", "A draft from what the run knows. Every answer is for the author to check, and what is blank to be "
            "filled in. Topics are in short; the guidelines say in full what is asked for.")
    ]  # fmt: skip
    for guideline in dict.fromkeys(item.guideline for item in every):
        mine = [item for item in every if item.guideline == guideline]
        rows = [
            tag("tr", tag("th", item.number, scope="row"), tag("td", item.topic),
                tag("td", item.answer) if item.answer else tag("td", BLANK, class_="blank"),
                tag("td", tag("a", item.where, href=f"#{item.where}") if item.where else "–"))
            for item in mine
        ]  # fmt: skip
        answered = sum(bool(item.answer) for item in mine)
        caption = f"{guideline}: {answered} of {len(mine)} items have a draft"
        doi = _SOURCES.get(guideline)
        parts += [tag("h3", guideline), table(caption, ["Item", "Topic", "Draft", "Where"], rows, class_="checklist")]
        if doi:
            parts.append(tag("p", "doi:", tag("a", doi, href=f"https://doi.org/{doi}"), class_="small"))
    return join(parts)
