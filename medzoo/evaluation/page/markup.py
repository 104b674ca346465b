"""Pieces of HTML in which every text is escaped: only what :func:`tag` returns is taken as markup."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from medzoo.evaluation.estimate import Estimate

__all__ = ["Footnotes", "Markup", "estimate_cell", "join", "number", "sentence", "table", "tag"]

_VOID = ("img", "meta", "br", "col")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(element: str, /, *children: str | None, **attributes: object) -> Markup:
    """Return an element; children and attributes are escaped unless they are :class:`Markup`.

    A trailing underscore of an attribute is left out, and others become hyphens; ``None`` leaves the attribute out.

    >>> tag("td", "<b>", class_="n", aria_label='a "b"')
    '<td class="n" aria-label="a &quot;b&quot;">&lt;b&gt;</td>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if element in _VOID:
        return Markup(f"<{element}{given}>")
    return Markup(f"<{element}{given}>{join(children)}</{element}>")


def join(parts: Iterable[str | None]) -> Markup:
    """Return texts, escaped, and markup, as it is, one after another."""
    return Markup("".join(_escape(part) for part in parts if part is not None))


def _escape(text: str) -> str:
    return text if isinstance(text, Markup) else html.escape(text, quote=True)


def number(value: float, digits: int = 3) -> str:
    """Return a figure with some digits after the point, or a dash if there is none.

    >>> number(-0.0412), number(float("nan"))
    ('−0.041', '–')
    """
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def sentence(text: str) -> str:
    """Return a note as a sentence.

    >>> sentence("3 rows had no label"), sentence("the test part!")
    ('3 rows had no label.', 'The test part!')
    """
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?", "…")) or not text else ".")


class Footnotes:
    """Reasons for what a table lacks, each written once below it and marked by a letter in the cells."""

    def __init__(self) -> None:
        self._known: list[str] = []

    def mark(self, text: str) -> Markup:
        """Return the mark of a reason, which is new or known."""
        if not text:
            return Markup()
        if text not in self._known:
            self._known.append(text)
        return tag("sup", self._letter(self._known.index(text)))

    def render(self) -> Markup:
        """Return the reasons."""
        if not self._known:
            return Markup()
        items = [tag("li", tag("sup", self._letter(i)), f" {sentence(text)}") for i, text in enumerate(self._known)]
        return tag("ul", *items, class_="notes")

    @staticmethod
    def _letter(i: int) -> str:
        return "abcdefghijklmnopqrstuvwxyz"[i % 26] * (i // 26 + 1)


def estimate_cell(estimate: Estimate | None, notes: Footnotes, digits: int = 3) -> Markup:
    """Return a figure with its interval below it, or the mark of the reason why it has none."""
    if estimate is None:
        return tag("td", "–", class_="n none")
    value = number(estimate.value, digits)
    if estimate.low is None or estimate.high is None:
        why = estimate.why or "no interval was computed"
        return tag("td", tag("span", value, class_="v"), notes.mark(why), class_="n none")
    interval = f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"
    return tag("td", tag("span", value, class_="v"), " ", tag("small", interval), class_="n")


def table(
    caption: str, head: Sequence[str], rows: Iterable[Markup], *, notes: Footnotes | None = None, class_: str = ""
) -> Markup:
    """Return a table with a caption that scrolls inside itself where the page is narrow.

    Args:
        caption: what the table is.
        head: of the columns; markup for those that are more than text.
        rows: the rows, whose first cell is a header.
        notes: that its cells refer to.
        class_: of the table.
    """
    header = [
        cell if cell.startswith("<th") and isinstance(cell, Markup) else tag("th", cell, scope="col") for cell in head
    ]
    inner = tag(
        "table",
        tag("caption", tag("span", caption)),
        tag("thead", tag("tr", *header)),
        tag("tbody", *rows),
        class_=class_ or None,
    )
    scroll = tag("div", inner, class_="scroll", role="region", tabindex="0", aria_label=caption)
    return join([scroll, notes.render() if notes else None])
