"""The commands for weights: ``fetch``, ``verify``, ``cache``, ``convert``."""

from __future__ import annotations

import datetime
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medzoo.cli.tables import cli_message, console, megabytes
from medzoo.errors import MedzooError

if TYPE_CHECKING:
    from medzoo.weights.cache import CacheEntry

__all__ = ["cache", "convert", "fetch", "verify"]


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME[:TAG] | data:NAME]...")
@click.option("--all", "everything", is_flag=True, help="Fetch all weights.")
@click.option(
    "--to", type=click.Path(), help="Also copy them to this folder, for another machine with MEDZOO_HOME=FOLDER."
)
@click.option(
    "--check", "folder", type=click.Path(), help="Folder or file of data:NAME, to be compared with what is published."
)
def fetch(names: tuple[str, ...], everything: bool, to: str | None, folder: str | None) -> None:
    """Download weights, verify their digests and convert them; or describe a published data set.

    NAME is a model, for its default weights, or MODEL:TAG. Afterwards they load without a network.

    data:NAME prints what a data set is, where to get it and its layout, and checks a folder of it. Images are never
    downloaded. data:rsna-mapping --to FILE is the one file that is: which patient the images of RSNA are of.
    """
    from medzoo.cli.fetch_data import PREFIX, fetch_data
    from medzoo.weights.verify import fetch_weights, find_records

    sets = [name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)]
    if sets:
        if everything or len(sets) < len(names) or (len(sets) > 1 and (to or folder)):
            raise click.UsageError("expected one data:NAME with a folder or a file, and no weights beside it")
        for name in sets:
            fetch_data(name, folder, to)
        return
    if folder is not None:
        raise click.UsageError("--check is for data:NAME; medzoo verify checks weights")
    if bool(names) == everything:
        raise click.UsageError("expected names of weights or --all; medzoo list --pretrained lists the names")
    failed: list[MedzooError] = []
    for spec, record in find_records(names):
        try:
            click.echo(f"{spec.name}:{record.tag} {fetch_weights(spec, record, Path(to) if to else None)}")
        except MedzooError as error:
            # The other weights are still fetched.
            click.echo(f"{type(error).__name__}: {cli_message(error)}", err=True)
            failed.append(error)
    if failed:
        sys.exit(failed[0].exit_code)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME[:TAG]...")
def verify(names: tuple[str, ...]) -> None:
    """Verify weights: digest, strict load, golden outputs."""
    from medzoo.weights.verify import find_records, verify_weights

    for spec, record in find_records(names):
        path, report, golden = verify_weights(spec, record)
        strength = "weak: detects damage, not forgery" if record.weak else "verified"
        click.echo(f"{spec.name}:{record.tag}\n{path}\ndigest {record.digest} ({strength})\n{report}\n{golden}\n")


@click.command()
@click.option("--prune", is_flag=True, help="Remove the files that no registered weights refer to, after asking.")
@click.option(
    "--older-than",
    "age",
    metavar="AGE",
    help="Only files that were not used for so long, such as 12h, 30d or 8w; with --prune, those of registered weights "
    "as well.",
)
@click.option("--yes", is_flag=True, help="Remove without asking.")
@click.option("--dry-run", is_flag=True, help="List what --prune would remove, and remove nothing.")
def cache(prune: bool, age: str | None, yes: bool, dry_run: bool) -> None:
    """List the weight files on this machine, and remove unused ones.

    Each file is listed with the weights it belongs to, or "unknown", and when it was last used, as far as the
    filesystem records it. Files in the cache of the Hugging Face Hub are listed, but never removed: hf cache does that.
    """
    from medzoo.weights.cache import home, remove_entries
    from medzoo.weights.verify import list_cache

    if (yes or dry_run) and not prune:
        raise click.UsageError("--yes and --dry-run need --prune")
    latest = None if age is None else time.time() - _seconds(age)
    entries = [entry for entry in list_cache() if latest is None or entry.last_used < latest]
    if not prune:
        _print_entries(entries, f"MEDZOO_HOME is {home()}")
        if any(entry.unused for entry in entries):
            click.echo("medzoo cache --prune removes what is stale or left over.")
        return
    chosen = [entry for entry in entries if entry.removable and (latest is not None or entry.unused)]
    _print_entries(chosen, f"to remove from {home()}")
    if not chosen or dry_run or not (yes or click.confirm("Remove them?")):
        click.echo("Nothing was removed.")
        return
    removed = remove_entries(chosen)
    click.echo(f"Removed {len(removed)} files, {megabytes(sum(entry.size for entry in removed))}.")
    for entry in chosen:
        if entry not in removed:
            click.echo(f"not removed, in use or not permitted: {entry.path}", err=True)


def _print_entries(entries: list[CacheEntry], summary: str) -> None:
    """Print a table of cached files, if there are any, and their number and size."""
    from rich.table import Table

    table = Table("weights", "state", "size", "last used", "file")
    for entry in entries:
        day = datetime.date.fromtimestamp(entry.last_used).isoformat()
        table.add_row(entry.what or "unknown", entry.state, megabytes(entry.size), day, str(entry.path))
    if entries:
        console().print(table)
    click.echo(f"{len(entries)} files, {megabytes(sum(entry.size for entry in entries))}; {summary}")


def _seconds(age: str) -> int:
    """Return the seconds of an age.

    >>> _seconds("30d") == 30 * 24 * 3600
    True
    """
    found = re.fullmatch(r"(\d+)([hdw])", age)
    if not found:
        raise click.BadParameter(
            f"expected a number and h, d or w, such as 30d, got {age!r}", param_hint="--older-than"
        )
    return int(found[1]) * {"h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}[found[2]]


@click.command()
@click.argument("file", type=click.Path())
@click.option("--model", "name", required=True, help="The registered model that the weights belong to.")
@click.option("--strip", default="", help="Prefix to remove from every tensor name, such as 'model.'.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Builder option that the weights need.")
@click.option("--to", required=True, type=click.Path(), help="Folder to write.")
def convert(file: str, name: str, strip: str, options: tuple[str, ...], to: str) -> None:
    """Convert your own checkpoint FILE to a folder.

    medzoo.create("local-dir:FOLDER") and medzoo predict local-dir:FOLDER load it. Only tensors are read from FILE; no
    code in it runs.
    """
    import json

    from medzoo.conversion import convert_checkpoint

    chosen = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise click.BadParameter(f"expected KEY=VALUE, got {option!r}", param_hint="--option")
        try:
            chosen[key] = json.loads(value)
        except json.JSONDecodeError:
            chosen[key] = value
    click.echo(convert_checkpoint(Path(file), name, Path(to), strip=strip, options=chosen))
