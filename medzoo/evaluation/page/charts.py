"""Drawings made of a few lines and boxes: the flow of rows, and the intervals of a forest plot."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable

from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.flow import Flow, FlowStep
from medzoo.evaluation.page.markup import Markup, join, tag

__all__ = ["flow_chart", "interval_axis", "interval_line", "interval_range"]

_LINE = 16  # px between two lines of text
_MAIN, _SIDE, _GAP = 210, 200, 40


def flow_chart(flow: Flow, name: str) -> Markup:
    """Return the steps from all rows to those evaluated as boxes; beside each arrow what was left out, and why."""
    y, parts = 1.0, []
    for i, step in enumerate(flow.steps):
        lines = [*textwrap.wrap(step.text, 30), _counts(step.rows, step.patients)]
        parts.append(_box(0.5, y, _MAIN - 1, lines, "step"))
        y += len(lines) * _LINE + 12
        side, last = _side_lines(step), i == len(flow.steps) - 1
        if last and not side:
            break
        height = len(side) * _LINE + 12
        gap = height + 14.0 if side else 26.0
        if not last:
            parts.append(_arrow(_MAIN / 2, y, _MAIN / 2, y + gap))
        if side:
            parts.append(_arrow(_MAIN / 2, y + gap / 2, _MAIN + _GAP - 1, y + gap / 2))
            parts.append(_box(_MAIN + _GAP, y + (gap - height) / 2, _SIDE, side, "aside"))
        y += gap
    width = _MAIN + _GAP + _SIDE + 1
    title = tag("title", "Flow of rows and patients", id=f"{name}-title")
    description = tag("desc", _in_words(flow), id=f"{name}-desc")
    arrow = tag(
        "defs",
        tag("marker", tag("path", d="M0 0L8 4L0 8z", class_="head"), id=f"{name}-head", viewBox="0 0 8 8", refX="7",
            refY="4", markerWidth="7", markerHeight="7", orient="auto"),
    )  # fmt: skip
    body = join(parts).replace("url(#head)", f"url(#{name}-head)")
    return tag(
        "svg", title, description, arrow, Markup(body), viewBox=f"0 0 {width} {y + 1:g}", role="img", class_="flow",
        aria_labelledby=f"{name}-title {name}-desc",
    )  # fmt: skip


def _counts(rows: int, patients: int | None) -> str:
    text = f"{rows:,} row{'s' * (rows != 1)}"
    return text if patients is None else f"{text}, {patients:,} patient{'s' * (patients != 1)}"


def _side_lines(step: FlowStep) -> list[str]:
    left_out = [line for reason, rows in step.dropped for line in textwrap.wrap(f"{rows:,} {reason}", 30)]
    total = sum(rows for _, rows in step.dropped)
    return [f"Left out: {_counts(total, None)}", *left_out] if left_out else []


def _in_words(flow: Flow) -> str:
    def one(step: FlowStep) -> str:
        dropped = "; ".join(f"{rows:,} {reason}" for reason, rows in step.dropped)
        return f"{step.text}: {_counts(step.rows, step.patients)}" + (f" (left out: {dropped})" if dropped else "")

    return ". ".join(map(one, flow.steps))


def _box(x: float, y: float, width: float, lines: Iterable[str], class_: str) -> Markup:
    texts = list(lines)
    spans = [tag("tspan", text, x=f"{x + 10:g}", y=f"{y + 6 + _LINE * (i + 0.75):g}") for i, text in enumerate(texts)]
    box = tag("rect", x=f"{x:g}", y=f"{y:g}", width=f"{width:g}", height=f"{len(texts) * _LINE + 12:g}", rx="4")
    return tag("g", box, tag("text", *spans), class_=class_)


def _arrow(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return tag("path", d=f"M{x1:g} {y1:g}L{x2:g} {y2:g}", class_="arrow", marker_end="url(#head)")


def interval_range(estimates: Iterable[Estimate], least: tuple[float, float]) -> tuple[float, float]:
    """Return the range of a forest plot: that of all intervals, in tenths, and at least the given one."""
    values = [v for e in estimates for v in (e.value, e.low, e.high) if v is not None and math.isfinite(v)]
    low, high = min([least[0], *values]), max([least[1], *values])
    return math.floor(low * 10 + 1e-9) / 10, math.ceil(high * 10 - 1e-9) / 10


def interval_axis(span: tuple[float, float], reference: float | None = None) -> Markup:
    """Return the header of a column of :func:`interval_line` with the ends of its range."""
    middle = tag("span", _end(reference)) if reference is not None and span[0] < reference < span[1] else None
    inner = tag(
        "span", tag("span", _end(span[0])), middle, tag("span", _end(span[1])), class_="axis", aria_hidden="true"
    )
    return tag("th", tag("span", "interval", class_="hidden"), inner, scope="col", class_="forest")


def _end(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def interval_line(estimate: Estimate | None, span: tuple[float, float], reference: float | None = None) -> Markup:
    """Return a cell with a point and its interval on the range, and a line at a reference value."""
    low, high = span
    parts = []

    def at(value: float) -> float:
        return round(4 + 192 * (min(max(value, low), high) - low) / (high - low), 1)

    if reference is not None and reference == reference:
        parts.append(tag("path", d=f"M{at(reference)} 0V24", class_="reference"))
    if estimate is not None and estimate.value == estimate.value:
        if estimate.low is not None and estimate.high is not None:
            a, b = at(estimate.low), at(estimate.high)
            parts.append(tag("path", d=f"M{a} 8V16M{a} 12H{b}M{b} 8V16", class_="whisker"))
        shape = "point" if estimate.low is not None else "point open"
        parts.append(tag("circle", cx=str(at(estimate.value)), cy="12", r="3.5", class_=shape))
    drawn = tag("svg", *parts, viewBox="0 0 200 24", aria_hidden="true")
    return tag("td", drawn, class_="forest")
