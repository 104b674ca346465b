"""The last sections of a report's page: examples, the data, the limits, how it was made, and the checklists."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import TYPE_CHECKING

from medzoo.evaluation.checklist import checklist_table
from medzoo.evaluation.examples import Example
from medzoo.evaluation.page.markup import Markup, join, number, sentence, tag
from medzoo.evaluation.page.wording import SOURCES, limits, methods, reading_notes, some

if TYPE_CHECKING:
    from medzoo.evaluation.report import Report

__all__ = ["cannot", "checklist", "data", "examples", "made"]


def examples(report: Report) -> Markup | None:
    """Return right and wrong examples."""
    if not report.examples:
        return None
    parts: list[str | None] = [
        tag("p", "The most confident wrong and right calls of each output, half of them of positive cases where "
            "there are as many. Cases are named by pseudonyms, which cannot be traced back without the key of the "
            "project."),
        _maps(report),
    ]  # fmt: skip
    for label in dict.fromkeys(example.label for example in report.examples):
        mine = [example for example in report.examples if example.label == label]
        rows = (
            [mine]
            if len(mine) <= 2
            else [[e for e in mine if e.kind == k] for k in dict.fromkeys(e.kind for e in mine)]
        )
        kind = "examples maps" if report.maps is not None and report.maps.layer else "examples"
        parts += [tag("h3", label), *(tag("div", *map(_example, row), class_=kind) for row in rows)]
    return join(parts)


def _maps(report: Report) -> Markup | None:
    """Return what the maps over the images are, and what they are not."""
    maps = report.maps
    if maps is None:
        return None
    if maps.why:
        return tag("p", f"There are no activation maps: {maps.why}".rstrip(".") + ".")
    cells = " × ".join(map(str, maps.size))
    text = (
        f"Beside each image is the map of its output over the same pixels, as the network saw them: {maps.method} of "
        f"the layer {maps.layer}, {cells} cells. It is a map of influence, not a localisation: it shows what raised "
        "this output, also where the call is negative, and need not show where a finding is. Yellow is the maximum "
        "of each map, so that colours cannot be compared between pictures."
    )
    if maps.coarse:
        text += " With so few cells along an axis a map cannot point within the image."
    if len(maps.size) == 3:
        text += " Of a volume, the planes through the maximum are shown."
    return tag("p", text)


def _example(example: Example) -> Markup:
    what = "positive" if example.called else "negative"
    truth = example.truth or ("positive" if example.target else "negative")
    called = example.label if example.truth else what
    picture = absent = None
    if example.image is not None:
        data, alt = base64.b64encode(example.image.png).decode(), f"Case {example.case}, {example.kind}"
        if example.image.has_map:
            alt += f": the image, and the map of {example.label} over it"
        picture = tag("img", src=f"data:image/png;base64,{data}", alt=alt, loading="lazy")
        if example.image.has_map is False:
            absent = tag("p", f"No map: nothing in the image raised {example.label}", class_="small")
    return tag(
        "div", picture,
        tag("p", tag("strong", _what(example)), f": called {called}, is {truth}"),
        tag("p", f"probability {number(example.probability)}, case {example.case}", class_="small"), absent,
        class_=example.kind if example.kind in ("wrong", "correct") else None,
    )  # fmt: skip


def _what(example: Example) -> str:
    """Return the kind of a call, and of a wrong one which kind of wrong."""
    if example.kind == "correct" or example.truth:
        return example.kind.capitalize()
    return "Missed positive" if example.target else "False alarm"


def data(report: Report) -> Markup | None:
    """Return which data it was, and how often it was looked at."""
    known = [(key, report.facts[key]) for key in ("data", "fingerprint", "split") if key in report.facts]
    if report.openings is not None:
        known.append(("opened", f"{some(report.openings, 'time')}, this one included, as far as this computer counted"))
    notes = [tag("li", sentence(text)) for text in reading_notes(report)]
    read = join([tag("h3", "How it was read"), tag("ul", *notes)]) if notes else None
    return join([_facts(known) if known else None, read]) if known or read else None


def _facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    cells = [cell for name, text in pairs for cell in (tag("dt", f"{name[:1].upper()}{name[1:]}"), tag("dd", text))]
    return tag("dl", *cells, class_="facts")


def cannot(report: Report) -> Markup:
    """Return the limits."""
    return tag("ul", *(tag("li", text) for text in limits(report)))


def made(report: Report) -> Markup:
    """Return how the report was made."""
    metrics = report.metrics
    known = [(key, text) for key, text in report.facts.items() if key not in ("data", "fingerprint", "split")]
    unit = "rows" if metrics.patients is None else "patients"
    known += [("resamples", f"{metrics.resamples:,}, of {unit}"), ("seed of the resamples", str(metrics.seed))]
    sources = [tag("li", f"{text}, doi:", tag("a", doi, href=f"https://doi.org/{doi}")) for text, doi in SOURCES]
    return join([_facts(known), tag("h3", "Methods"), tag("p", methods(report)), tag("ul", *sources, class_="small")])


def checklist(report: Report) -> Markup | None:
    """Return the drafts of the checklists, what the run does not know left blank."""
    if not report.checklist:
        return None
    return checklist_table(report.checklist)
