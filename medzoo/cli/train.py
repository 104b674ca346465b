"""``medzoo recipes``, ``medzoo check`` and ``medzoo train``: the options of a person become one recipe."""

from __future__ import annotations

from typing import Any, Literal

import click

from medzoo.cli.recipe_options import RecipeCommand, messages, needed, recipe_options, resolve
from medzoo.cli.tables import console, next_steps
from medzoo.errors import ConfigError
from medzoo.extra import require_train_extra

__all__ = ["check", "recipes", "train"]


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List the recipes, show one, or copy one to edit it."""
    require_train_extra()
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from medzoo.training.recipe import Recipe
    from medzoo.training.recipe_files import list_recipes

    table = Table("recipe", "data", "model", "description")
    for name, description in list_recipes().items():
        recipe = Recipe.load(name)
        weights = recipe.model.pretrained
        tag = f":{weights}" if isinstance(weights, str) else " (pretrained)" if weights else ""
        table.add_row(name, recipe.data.source, recipe.model.name + tag, description)
    console().print(table)


@recipes.command("show")
@click.argument("name")
@click.option("--full", is_flag=True, help="Show every field with its value.")
def show_recipe(name: str, full: bool) -> None:
    """Print the recipe NAME, one of the package or a file."""
    from medzoo.training.recipe import Recipe
    from medzoo.training.recipe_files import list_recipes, recipe_text

    recipe = Recipe.load(name)
    click.echo(recipe.to_yaml() if full or name not in list_recipes() else recipe_text(name), nl=False)


@recipes.command("copy")
@click.argument("name")
@click.argument("file")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["yaml", "script"]),
    default="yaml",
    help="script: a Lightning script FILE.py, which gives the same weights on a CPU.",
)
def copy_recipe(name: str, file: str, kind: str) -> None:
    """Write the recipe NAME to a new FILE.yaml, or as a script to FILE.py, to edit it."""
    from medzoo.training.recipe_files import copy_recipe as write
    from medzoo.training.script import write_script

    click.echo(write_script(name, file) if kind == "script" else write(name, file))


@click.command(cls=RecipeCommand)
@click.argument("recipe")
@recipe_options()
@click.option("--out", metavar="FILE", help="Picture of a batch, such as check.png; others beside it.")
def check(recipe: str, data: str | None, root: str | None, out: str | None, **options: Any) -> None:
    """Check data for RECIPE without training.

    RECIPE is a name of "medzoo recipes" or a .yaml file. It shows the table, the split and whether it leaks, the
    classes, how exact a result can be, and the memory and the time of a training.
    """
    require_train_extra()
    resolved = resolve(recipe, options)
    from medzoo.training.check import check as run

    with messages("train"):
        console().print(run(resolved, needed(data), root=root, out=out))


@click.command(cls=RecipeCommand)
@click.argument("recipe", required=False)
@recipe_options()
@click.option("--to", metavar="FOLDER", help="Folder of the run, which must be new.")
@click.option("--resume", metavar="RUN", help="Folder of a run that was stopped, to continue it.")
@click.option("--dry-run", is_flag=True, help="Train two steps, write a checkpoint and continue it; keep nothing.")
@click.option("--inexact", is_flag=True, help="Continue although the machine may round differently.")
@click.option(
    "--logger", type=click.Choice(["csv", "tensorboard", "none"]), default="none", help="Log of Lightning, beside ours."
)
def train(
    recipe: str | None, data: str | None, root: str | None, to: str | None, resume: str | None, dry_run: bool,
    inexact: bool, logger: Literal["csv", "tensorboard", "none"], **options: Any,
) -> None:  # fmt: skip
    """Train RECIPE on data of your own.

    RECIPE is a name of "medzoo recipes" or a .yaml file.

    \b
    medzoo train luna16 --data LUNA16 --missing drop --freeze features --no-augment --to runs/features
    medzoo train table --data n.csv --root images --label-col grade --patient-col pid --to runs/a
    medzoo train --resume runs/a
    """  # noqa: D301  # click reads the \b
    require_train_extra()
    if resume is not None:
        given = [
            name for name, value in (("RECIPE", recipe), ("--data", data), ("--root", root), ("--to", to)) if value
        ]
        given += ["--dry-run"] * dry_run
        given += ["other options"] if any(value not in (None, ()) for value in options.values()) else []
        if given:
            raise ConfigError(f"--resume: expected the folder alone, as the run has its recipe, got {given[0]} too.")
        with messages("train"):
            from medzoo.training.loggers import run_logger
            from medzoo.training.run import resume as continue_run

            _print_run(continue_run(resume, inexact=inexact, logger=run_logger(logger, resume)))
        return
    if recipe is None:
        raise ConfigError(
            "expected a recipe, such as: medzoo train table --data n.csv --to runs/a. See medzoo recipes."
        )
    resolved = resolve(recipe, options)
    if dry_run:
        from medzoo.training.check import dry_run as try_out

        with messages("train"):
            console().print(try_out(resolved, needed(data), root=root))
        return
    if inexact:
        raise ConfigError("--inexact is for --resume: a new run has nothing to compare with. Leave it out.")
    if to is None:
        raise ConfigError("expected the folder of the run. Give --to FOLDER, such as --to runs/a.")
    with messages("train"):
        from medzoo.training.loggers import run_logger
        from medzoo.training.run import train as run

        _print_run(run(resolved, needed(data), to=to, root=root, logger=run_logger(logger, to)))


def _print_run(run: Any) -> None:
    click.echo(f"{run.folder}: the model is in {run.folder / 'model'}, its report in {run.folder / 'report.html'}.")
    click.echo(next_steps(run.folder, run.model.preprocessing))
