"""The commands for weights: ``fetch``, ``verify``, ``cache``, ``convert``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from medzoo.cli.tables import cli_message, console, megabytes
from medzoo.errors import MedzooError

__all__ = ["cache", "convert", "fetch", "verify"]


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME[:TAG]]...")
@click.option("--all", "everything", is_flag=True, help="Fetch all weights.")
@click.option(
    "--to", type=click.Path(), help="Also copy them to this folder, for another machine with MEDZOO_HOME=FOLDER."
)
def fetch(names: tuple[str, ...], everything: bool, to: str | None) -> None:
    """Download weights, verify their digests and convert them.

    NAME is a model, for its default weights, or MODEL:TAG. Afterwards they load without a network.
    """
    from medzoo.weights.verify import fetch_weights, find_records

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
def cache() -> None:
    """List the weight files on this machine, and which are stale."""
    from rich.table import Table

    from medzoo.weights.cache import home
    from medzoo.weights.verify import list_cache

    table = Table("weights", "state", "size", "file")
    entries = list_cache()
    for entry in entries:
        table.add_row(entry.what or "–", entry.state, megabytes(entry.size), str(entry.path))
    if entries:
        console().print(table)
    click.echo(f"{len(entries)} files, {megabytes(sum(entry.size for entry in entries))}; MEDZOO_HOME is {home()}")
    unused = [str(entry.path) for entry in entries if entry.state in ("stale", "left over")]
    if unused:
        click.echo("stale or left over, safe to delete:\n" + "\n".join(unused))


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
