"""The commands for weights: ``fetch``, ``verify``, ``cache``, ``convert``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import medzoo
from medzoo.cli.console import console
from medzoo.errors import MedzooError

__all__ = ["cache", "convert", "fetch", "verify", "weights_table"]


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME[:TAG]]...")
@click.option("--all", "everything", is_flag=True, help="All weights there are.")
@click.option("--to", type=click.Path(), help="Folder to fill too; MEDZOO_HOME=FOLDER reads it on another machine.")
def fetch(names: tuple[str, ...], everything: bool, to: str | None) -> None:
    """Have weights ready on this machine, checked and converted.

    NAME is a model, for its default weights, or MODEL:TAG. Ever after they load without a network.
    """
    from medzoo.weights.stock import fetch as fetch_one
    from medzoo.weights.stock import listed

    if bool(names) == everything:
        raise click.UsageError("expected names of weights or --all; medzoo list --pretrained has the names")
    failed: list[MedzooError] = []
    for spec, record in listed(names):
        try:
            click.echo(f"{spec.name}:{record.tag} {fetch_one(spec, record, Path(to) if to else None)}")
        except MedzooError as error:
            # One that cannot be had does not keep the others.
            click.echo(f"{type(error).__name__}: {error}", err=True)
            failed.append(error)
    if failed:
        sys.exit(failed[0].exit_code)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME[:TAG]...")
def verify(names: tuple[str, ...]) -> None:
    """Hold weights to their record: digest, strict load, golden outputs."""
    from medzoo.weights.stock import listed
    from medzoo.weights.stock import verify as verify_one

    for spec, record in listed(names):
        path, report, golden = verify_one(spec, record)
        strength = "weak: it finds damage, but no forgery" if record.weak else "right"
        click.echo(f"{spec.name}:{record.tag}\n{path}\ndigest {record.digest} ({strength})\n{report}\n{golden}\n")


@click.command()
def cache() -> None:
    """Tell which weight files are on this machine, and which are stale."""
    from rich.table import Table

    from medzoo.weights.cache import home
    from medzoo.weights.stock import holdings

    table = Table("weights", "state", "size", "file")
    found = holdings()
    for held in found:
        table.add_row(held.what or "–", held.state, _megabytes(held.size), str(held.path))
    if found:
        console().print(table)
    click.echo(f"{len(found)} files, {_megabytes(sum(held.size for held in found))}; MEDZOO_HOME is {home()}")
    loose = [str(held.path) for held in found if held.state in ("stale", "left over")]
    if loose:
        click.echo("stale or left over, safe to delete:\n" + "\n".join(loose))


@click.command()
@click.argument("file", type=click.Path())
@click.option("--model", "name", required=True, help="The registered model whose weights these are.")
@click.option("--strip", default="", help="Prefix that the trainer put before every name, such as 'model.'.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Builder option that the weights need.")
@click.option("--to", required=True, type=click.Path(), help="Folder to write.")
def convert(file: str, name: str, strip: str, options: tuple[str, ...], to: str) -> None:
    """Turn your own checkpoint FILE into a folder.

    medzoo.create("local-dir:FOLDER") takes it. No more of FILE is read than tensors.
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


def weights_table(names: list[str], license_: str | None = None, trained: bool = False) -> Any:
    """Return the table of the weights of some models."""
    from rich.table import Table

    from medzoo.registry import is_wanted

    table = Table("weights", "fills", "licence", "size", "digest", "trained on")
    for name in names:
        for record in medzoo.describe(name).weights.values():
            if is_wanted(record, license_, trained):
                licence = record.license + (" (non-commercial)" if record.non_commercial else "")
                table.add_row(
                    f"{name}:{record.tag}" + (" (default)" if record.default else ""),
                    "model" if record.part == "model" else "encoder only",
                    licence,
                    _megabytes(record.size) if record.size is not None else "not known",
                    "md5 (weak)" if record.weak else "sha256",
                    record.trained_on,
                )
    return table


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
