"""``medzoo reproduce``: the figures of a source beside the honest ones."""

from __future__ import annotations

from typing import Any

import click

from medzoo.cli.recipe_options import RecipeCommand, messages, needed, recipe_options, resolve
from medzoo.cli.tables import console
from medzoo.errors import ConfigError
from medzoo.extra import require_train_extra

__all__ = ["reproduce"]


@click.command(cls=RecipeCommand)
@click.argument("recipe")
@recipe_options()
@click.option("--to", metavar="FOLDER", help="Folder of the runs and the table; one that was stopped continues.")
def reproduce(recipe: str, data: str | None, root: str | None, to: str | None, **options: Any) -> None:
    """Measure RECIPE as its source did, and honestly.

    RECIPE is a name of "medzoo recipes" or a .yaml file, with source.protocol. The model is trained four times: with
    the split of the source and with one by patient, each with the labels as they are and with permuted labels, of which
    nothing can be learned. Called again, it continues.

    \b
    medzoo reproduce chestxray14 --data NIH/ --to runs/reproduced
    """  # noqa: D301  # click reads the \b
    require_train_extra()
    resolved = resolve(recipe, options)
    if to is None:
        raise ConfigError("expected the folder of the runs. Give --to FOLDER, such as --to runs/reproduced.")
    with messages("train"):
        from medzoo.training.reproduce import reproduce as run

        found = run(resolved, needed(data), to=to, root=root)
    console().print(found)
    page = found.folder / "reproduction.html"
    click.echo(f"{page} has the table and the picture; .csv, .json and .png are beside it.")
