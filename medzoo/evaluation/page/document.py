"""The frame of every page: one file of HTML without a script and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

from medzoo.evaluation.page.markup import Markup, tag
from medzoo.evaluation.page.style import style

__all__ = ["document"]

# The browser itself refuses whatever is not in the file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"


def document(title: str, header: Markup, body: Iterable[str | None], footer: Markup, *, more_style: str = "") -> str:
    """Return a page.

    Args:
        title: of the window.
        header: begins the page.
        body: its sections.
        footer: ends it.
        more_style: CSS beside that of every page.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        Markup(f"<style>{style()}{more_style}</style>"),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', header, tag('main', *body), footer), lang='en')}\n"
