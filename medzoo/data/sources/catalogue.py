"""The published data sets that medzoo reads, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from medzoo.data.sources import chestxray14, egfr, kermany, luna16, medmnist, mgmt, rsna
from medzoo.data.sources.options import SourceChoices, SourceOptions
from medzoo.data.sources.published import PublishedData, TableFields
from medzoo.errors import ConfigError, DataError, did_you_mean

__all__ = ["SOURCES", "published", "read_source"]

SOURCES: Mapping[str, PublishedData] = MappingProxyType(
    {
        "chestxray14": chestxray14.ABOUT,
        "egfr": egfr.ABOUT,
        "kermany": kermany.ABOUT,
        "luna16": luna16.ABOUT,
        "medmnist": medmnist.ABOUT,
        "mgmt": mgmt.ABOUT,
        "rsna": rsna.ABOUT,
    }
)  # fmt: skip
"""The data sets by name; each is described where its layout is read."""


def published(name: str) -> PublishedData:
    """Return a data set by its name.

    Raises:
        ConfigError: there is no such set.
    """
    if name not in SOURCES:
        raise ConfigError(f"no data set {name!r}.{did_you_mean(name, SOURCES)} There are {', '.join(SOURCES)}.")
    return SOURCES[name]


def read_source(name: str, folder: Path, options: SourceOptions) -> TableFields:
    """Return the fields of the table of a published data set; see :meth:`medzoo.Table.from_source`."""
    about = published(name)
    choices = SourceChoices.of(f"from_source({name!r})", options, about.options)
    if not folder.exists():
        raise DataError(
            f"{folder}: expected the {about.place} of {name}, found nothing there. See medzoo fetch data:{name}."
        )
    return about.read(folder, choices)
