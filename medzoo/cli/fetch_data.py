"""``medzoo fetch data:NAME``: where a published data set is from, and whether what is here is all of it."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import numpy as np

from medzoo.cli.tables import console
from medzoo.data.sources.catalogue import SOURCES
from medzoo.data.sources.options import SourceOptions
from medzoo.data.sources.published import PublishedData
from medzoo.data.sources.rsna_mapping import MAPPING_NAME, MAPPING_URL, MOST_BYTES, check_mapping
from medzoo.errors import ConfigError, did_you_mean
from medzoo.weights.first_use import fetch_unlisted

__all__ = ["PREFIX", "fetch_data"]

PREFIX = "data:"


def fetch_data(name: str, folder: str | None, to: str | None) -> None:
    """Describe a data set, and check what there is of it; or download the mapping of RSNA, all that is fetched.

    Args:
        name: after ``data:``.
        folder: of the set, or the file that it is, to check; ``None`` for none.
        to: the file to write the mapping to; for another set the same as ``folder``.

    Raises:
        ConfigError: no such set, or an option that does not go with it.
        DataError: the folder has another layout, or the mapping is another file than before.
        WeightsUnavailable: the mapping cannot be downloaded.
    """
    if name == MAPPING_NAME:
        if folder is not None or to is None:
            raise ConfigError(f"{PREFIX}{MAPPING_NAME}: expected the file to write. Give --to FILE.json alone.")
        _fetch_mapping(Path(to))
        return
    if name not in SOURCES:
        known = [*SOURCES, MAPPING_NAME]
        raise ConfigError(f"no data set {name!r}.{did_you_mean(name, known)} There are {', '.join(known)}.")
    if folder is not None and to is not None:
        raise ConfigError(f"{PREFIX}{name}: expected one folder, got --check and --to. Leave --to out.")
    about, here = SOURCES[name], folder if folder is not None else to
    _describe(name, about)
    if here is None:
        where = f"FILE{about.suffix}" if about.suffix else "FOLDER"
        click.echo(f"medzoo downloads no images. Check what you have: medzoo fetch {PREFIX}{name} --check {where}")
    else:
        _check(name, about, Path(here))


def _describe(name: str, about: PublishedData) -> None:
    """Print what a set is, and where it is from."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=name, show_header=False, title_justify="left")
    rows = {"what": about.title, "how to get it": about.get, "licence": about.licence, "citation": about.citation}
    rows["layout"] = "\n".join(about.layout)
    rows["options"] = ", ".join(about.options) or "none"
    rows["published"] = ", ".join(f"{what} {count:,}" for what, count in about.counts.items()) or "no counts known"
    for what, text in rows.items():
        table.add_row(what, Text(text))
    console().print(table)


def _check(name: str, about: PublishedData, folder: Path) -> None:
    """Read a folder or file as a training does, and print its counts beside those that are published."""
    import medzoo

    if not (folder.is_dir() or (about.suffix and folder.is_file())):
        raise ConfigError(
            f"{folder}: expected the {about.place} of {name}, found none. Get it as described, or correct it."
        )
    options: SourceOptions = {"missing": "drop"} if "missing" in about.options else {}
    table = medzoo.Table.from_source(name, folder, **options)
    counts: dict[str, int | None] = {"rows": len(table)}
    counts["patients"] = None if table.patients is None else len(np.unique(table.patients))
    positives = np.nansum(table.targets, 0).astype(int).tolist()
    counts |= dict(zip(table.labels, positives, strict=True))
    _print_counts(counts, about)
    for note in table.notes:
        click.echo(f"note: {note}")
    differing = [what for what, count in about.counts.items() if counts.get(what) != count]
    compared = [what for what in about.counts if what not in differing]
    if differing:
        click.echo(f"{folder}: other than published: {', '.join(differing)}. Images that are absent were left out.")
    elif compared:
        click.echo(f"{folder}: as published: {', '.join(compared)}.")
    else:
        click.echo(f"{folder}: its layout can be read; no published counts are known to compare with.")


def _print_counts(counts: dict[str, int | None], about: PublishedData) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("count", "here", "published")
    for what in (*counts, *(name for name in about.counts if name not in counts)):
        kind = what if what in ("rows", "patients") else f"positive: {what}"
        table.add_row(Text(kind), _number(counts.get(what)), _number(about.counts.get(what)))
    console().print(table)


def _number(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def _fetch_mapping(to: Path) -> None:
    """Download the mapping to a file, or to a folder under its own name, unless it is there."""
    path = to / MAPPING_URL.rpartition("/")[2] if to.is_dir() else to
    records, digest = fetch_unlisted(MAPPING_URL, MAPPING_NAME, path, check_mapping, MOST_BYTES)
    click.echo(f"{path}: {records:,} records, {digest}")
    click.echo(f"Next: medzoo train rsna --data FOLDER --mapping {shlex.quote(str(path))} --to RUN")
