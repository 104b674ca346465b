"""``PublishedData``: what a published data set is, where it is from, and how its layout is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medzoo.data.sources.options import SourceChoices

__all__ = ["PublishedData", "TableFields"]

TableFields = dict[str, Any]
"""The fields of a :class:`~medzoo.Table`, as :func:`~medzoo.data.table_rows.assemble` returns them."""


@dataclass(frozen=True)
class PublishedData:
    """A published data set.

    Attributes:
        title: what it is.
        get: where and how to get it, in sentences.
        licence: its terms.
        citation: of the publication.
        layout: the files and folders that are expected, one line each.
        read: from the folder and the choices to the fields of a table; raises DataError with everything that is wrong.
        options: which of :class:`~medzoo.data.sources.options.SourceOptions` it takes.
        tables: patterns of the names of its CSV files, which are no tables of images of their own.
        suffix: of the file that the set is published as; empty for a folder.
        counts: published figures of the complete set: ``rows``, ``patients``, and the positives of a label by its name.
    """

    title: str
    get: str
    licence: str
    citation: str
    layout: tuple[str, ...]
    read: Callable[[Path, SourceChoices], TableFields]
    options: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    suffix: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """What a path of it leads to, in messages: its file or its folder."""
        return f"{self.suffix} file" if self.suffix else "folder"
