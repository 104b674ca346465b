"""The page of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.page.document import document
from medzoo.evaluation.page.markup import Markup, number, sentence, tag
from medzoo.evaluation.page.sections import SECTIONS
from medzoo.evaluation.page.verdicts import accuracies
from medzoo.evaluation.page.wording import estimate_of, headline, summary, warnings_of

if TYPE_CHECKING:
    from medzoo.evaluation.report import Report

__all__ = ["page"]

_SHORT = ("data", "limits", "made", "seeds", "learning", "thresholds", "readers", "comparison", "drift")


def page(report: Report) -> str:
    """Return the page of a report whose texts are shareable already."""
    shown = [(anchor, title, body) for anchor, title, build in SECTIONS if (body := build(report)) is not None]
    contents = tag("ol", *(tag("li", tag("a", title, href=f"#{anchor}")) for anchor, title, _ in shown))
    header = tag(
        "header",
        tag("h1", report.title), tag("p", summary(report), class_="lead"), _main(report), _warnings(report),
        tag("nav", tag("h2", "Contents"), contents, aria_label="Contents"),
    )  # fmt: skip
    sections = [
        tag("section", tag("h2", title, id=f"{anchor}-title"), body, id=anchor, aria_labelledby=f"{anchor}-title",
            class_="short" if anchor in _SHORT else None)
        for anchor, title, body in shown
    ]  # fmt: skip
    made = report.facts.get("made with", "medzoo")
    footer = tag(
        "footer", tag("p", f"For research use. Made with {made}. The same figures are in the JSON file beside this.")
    )
    return document(report.title, header, sections, footer)


def _main(report: Report) -> Markup:
    """Return the main figures, large."""
    metrics = report.metrics
    what, figure = headline(metrics)
    shown: list[tuple[str, str, str]] = [(what.removeprefix("The ").rstrip(","), *_large(figure))]
    shown[0] = (shown[0][0][:1].upper() + shown[0][0][1:], *shown[0][1:])
    if len(metrics.labels) == 1:
        for name in ("sensitivity", "specificity"):
            estimate = estimate_of(metrics.labels[0], name)
            if estimate is not None:
                shown.append((f"{name.capitalize()} at the threshold", *_large(estimate)))
        shown += [(f"Accuracy {what}", *_large(estimate)) for what, estimate in accuracies(metrics.labels[0], metrics)]
    elif "balanced_accuracy" in metrics.overall:
        shown.append(("Balanced accuracy", *_large(metrics.overall["balanced_accuracy"])))
    rows = f"{metrics.rows:,}" if metrics.patients is None else f"{metrics.patients:,}"
    small = "patients not known" if metrics.patients is None else f"{metrics.rows:,} rows"
    shown.append(("Rows" if metrics.patients is None else "Patients", rows, small))
    cells = [tag("div", tag("dt", name), tag("dd", value, tag("small", more))) for name, value, more in shown]
    return tag("dl", *cells, class_="main")


def _large(estimate: Estimate) -> tuple[str, str]:
    if estimate.low is None or estimate.high is None:
        return number(estimate.value), f"no interval: {estimate.why}" if estimate.why else "no interval"
    return number(estimate.value), f"95 % interval {number(estimate.low)} to {number(estimate.high)}"


def _warnings(report: Report) -> Markup | None:
    found = warnings_of(report)
    if not found:
        return None
    return tag(
        "div",
        tag("h2", "Before reading on"),
        tag("ul", *(tag("li", sentence(text)) for text in found)),
        class_="warnings",
    )
