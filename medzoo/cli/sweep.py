"""``medzoo sweep``: a grid of trainings from the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from medzoo.cli.recipe_options import RecipeCommand, chosen_fields, messages, needed, recipe_options
from medzoo.cli.tables import console, next_steps
from medzoo.errors import ConfigError
from medzoo.extra import require_train_extra

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from medzoo.training.sweep_table import Sweep

__all__ = ["sweep"]


@click.command(cls=RecipeCommand)
@click.argument("recipe")
@recipe_options()
@click.option(
    "--over", "grids", metavar="FIELD=A,B,…", multiple=True, help="Values of a field, each with each of the others."
)
@click.option("--to", metavar="FOLDER", help="Folder of the sweep: a new one, or one to continue.")
@click.option(
    "--by", type=click.Choice(["auroc", "log_loss", "accuracy"]), default="auroc", help="What a run is chosen by."
)
def sweep(
    recipe: str, data: str | None, root: str | None, grids: tuple[str, ...], to: str | None, by: Any, **options: Any
) -> None:  # fmt: skip
    """Train RECIPE with every combination of some values, and choose one.

    RECIPE is a name of "medzoo recipes" or a .yaml file. The run that is best on the validation part is chosen, and
    each other run is compared with it. The same command again continues a sweep that was stopped.

    \b
    medzoo sweep table --data n.csv --over batch=16,64 --over lr=1e-4,2e-4 --to runs/s
    """  # noqa: D301  # click reads the \b
    require_train_extra()
    over = parse_grid(grids)
    if to is None:
        raise ConfigError("expected the folder of the sweep. Give --to FOLDER, such as --to runs/s.")
    with messages("sweep"):
        from medzoo.evaluation.run_record import RunRecord
        from medzoo.training.sweep import sweep as run

        found = run(recipe, needed(data), over=over, to=to, root=root, by=by, **chosen_fields(options))
    console().print(sweep_table(found))
    for note in found.notes:
        click.echo(note)
    click.echo(f"{found.folder}: the runs are in {found.table.name}, and drawn in {found.figure.name}.")
    chosen = RunRecord(found.chosen.folder)
    click.echo(next_steps(chosen.path, chosen.weights().preprocessing))


def parse_grid(texts: tuple[str, ...]) -> dict[str, list[Any]]:
    """Return the values of texts such as ``"batch=16,64"``, which are written as in a recipe.

    >>> parse_grid(("batch=16,64", "lr=1e-4", "augment.flip=[x], [x, y]"))
    {'batch': [16, 64], 'lr': [0.0001], 'augment.flip': [['x'], ['x', 'y']]}
    """
    from medzoo.training.overrides import parse_settings

    if not texts:
        raise ConfigError("expected the values to try. Give --over, such as --over lr=1e-4,2e-4.")
    for text in texts:
        if text.partition("=")[2].strip(", ") == "":
            raise ConfigError(f"--over: expected FIELD=A,B,…, such as lr=1e-4,2e-4, got {text!r}.")
    return parse_settings("{}=[{}]".format(*text.split("=", 1)) for text in texts)


def sweep_table(found: Sweep) -> RichTable:
    """Return a table with one row per run, the best first."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(*found.header())
    for row, line in zip(found.ranked(), found.lines(), strict=True):
        table.add_row(*map(escape, line), style="bold" if row.chosen else None)
    return table
