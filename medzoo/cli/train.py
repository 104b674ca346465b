"""``medzoo recipes``, ``medzoo check`` and ``medzoo train``: the options of a person become one recipe."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import click

from medzoo.cli.tables import cli_message, console
from medzoo.errors import ConfigError
from medzoo.training.extra import require_train_extra

__all__ = ["check", "recipes", "train"]

# Options with a field of their own, in the order of the help: (flags, field of the recipe, arguments of click.option).
OPTIONS: tuple[tuple[tuple[str, ...], str, dict[str, Any]], ...] = (
    (("--model",), "model", {"metavar": "NAME[:TAG]", "help": "Model, and the weights it starts from."}),
    (("--image-col",), "data.image", {"metavar": "COLUMN", "help": "Column of the image's path."}),
    (
        ("--label-col",),
        "data.label",
        {"metavar": "COLUMN", "multiple": True, "help": "Column of the label; several for a multilabel task."},
    ),
    (("--labels",), "data.labels", {"metavar": "A,B,…", "help": "Names of the classes, in the order of the outputs."}),
    (
        ("--task",),
        "data.task",
        {"type": click.Choice(["binary", "multilabel", "multiclass"]), "help": "Task, if not the one that is seen."},
    ),
    (("--patient-col",), "data.patient", {"metavar": "COLUMN", "help": "Column of the patient."}),
    (("--key",), "data.key", {"metavar": "ATTRIBUTE", "help": "DICOM attribute that joins labels to studies."}),
    (
        ("--no-patient-groups",),
        "data.patient_groups",
        {"flag_value": False, "type": bool, "help": "Accept a table without patients: each row counts as one."},
    ),
    (
        ("--uncertain",),
        "data.uncertain",
        {"type": click.Choice(["refuse", "mask", "positive", "negative"]), "help": "What a label of -1 counts as."},
    ),
    (("--split-col",), "split.column", {"metavar": "COLUMN", "help": "Column of train, valid and test."}),
    (("--folds",), "split.folds", {"type": click.IntRange(2), "help": "Number of folds."}),
    (("--fold",), "split.fold", {"type": click.IntRange(0), "help": "The fold to validate on."}),
    (
        ("--leave-out",),
        "split.leave_out",
        {"metavar": "COL=VALUE", "multiple": True, "help": "Rows for the test, such as those of a site."},
    ),
    (
        ("--on-leak",),
        "split.on_leak",
        {
            "type": click.Choice(["refuse", "drop-valid", "drop-train"]),
            "help": "If a patient or image is in two parts.",
        },
    ),
    (("--size",), "data.size", {"metavar": "N[,N,N]", "help": "Size of the images."}),
    (("--epochs",), "train.epochs", {"type": int, "help": "Epochs."}),
    (("--batch",), "train.batch", {"type": int, "help": "Images of a batch."}),
    (("--lr",), "optimizer.lr", {"type": float, "help": "Learning rate."}),
    (("--seed",), "train.seed", {"type": int, "help": "Seed of the training; that of the split is split.seed."}),
    (("--workers",), "train.workers", {"type": int, "help": "Processes that prepare batches."}),
    (("--device",), "train.device", {"help": "auto, cpu, cuda or cuda:N."}),
    (
        ("--precision",),
        "train.precision",
        {"type": click.Choice(["auto", "float32", "bf16", "fp16"]), "help": "Precision of the arithmetic."},
    ),
    (
        ("--cache",),
        "data.cache",
        {"type": click.Choice(["off", "memory", "disk"]), "help": "Where read images are kept."},
    ),
)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that become fields of the recipe."""
    last = click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Any field, as train.ema=0.99.")
    command = last(command)
    for flags, field, arguments in reversed(OPTIONS):
        command = click.option(*flags, field.replace(".", "__"), default=None, **arguments)(command)
    root = click.option("--root", metavar="FOLDER", help="Folder of the images of a table; else that of the file.")
    data = click.option("--data", metavar="PATH", help="Table (.csv, .tsv), MedMNIST file (.npz) or folder.")
    return data(root(command))


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List the recipes, show one, or copy one to edit it."""
    require_train_extra()
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from medzoo.training.recipe_files import list_recipes

    table = Table("recipe", "description")
    for name, description in list_recipes().items():
        table.add_row(name, description)
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
def copy_recipe(name: str, file: str) -> None:
    """Write the recipe NAME to a new FILE.yaml, to edit it."""
    from medzoo.training.recipe_files import copy_recipe as write

    click.echo(write(name, file))


@click.command()
@click.argument("recipe")
@recipe_options
@click.option("--out", metavar="FILE", help="Picture of a training batch to write, such as check.png.")
def check(recipe: str, data: str | None, root: str | None, out: str | None, **options: Any) -> None:
    """Check data for RECIPE without training.

    RECIPE is a name of "medzoo recipes" or a .yaml file. It shows the table, the split and whether it leaks, the
    classes, how exact a result can be, and the memory and the time of a training.
    """
    require_train_extra()
    resolved = _resolve(recipe, options)
    from medzoo.training.check import check as run

    with _messages():
        console().print(run(resolved, _needed(data), root=root, out=out))


@click.command()
@click.argument("recipe", required=False)
@recipe_options
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
        with _messages():
            from medzoo.training.loggers import run_logger
            from medzoo.training.run import resume as continue_run

            _print_run(continue_run(resume, inexact=inexact, logger=run_logger(logger, resume)))
        return
    if recipe is None:
        raise ConfigError(
            "expected a recipe, such as: medzoo train table --data n.csv --to runs/a. See medzoo recipes."
        )
    resolved = _resolve(recipe, options)
    if dry_run:
        from medzoo.training.check import dry_run as try_out

        with _messages():
            console().print(try_out(resolved, _needed(data), root=root))
        return
    if inexact:
        raise ConfigError("--inexact is for --resume: a new run has nothing to compare with. Leave it out.")
    if to is None:
        raise ConfigError("expected the folder of the run. Give --to FOLDER, such as --to runs/a.")
    with _messages():
        from medzoo.training.loggers import run_logger
        from medzoo.training.run import train as run

        _print_run(run(resolved, _needed(data), to=to, root=root, logger=run_logger(logger, to)))


def _resolve(recipe: str, options: dict[str, Any]) -> Any:
    """Return the recipe with the options and settings of the command line."""
    from medzoo.training.overrides import override, parse_settings
    from medzoo.training.recipe import Recipe

    values: dict[str, Any] = {}
    for _, field, _ in OPTIONS:
        given = options[field.replace(".", "__")]
        if given is not None and given != ():
            values[field] = _value(field, given)
    settings = parse_settings(options["settings"])
    flags_of = {field: flags[0] for flags, field, _ in OPTIONS}
    for field in settings.keys() & values.keys():
        raise ConfigError(f"{field} is given twice, by {flags_of[field]} and --set. Leave one out.")
    return override(Recipe.load(recipe), {**values, **settings})


def _value(field: str, given: Any) -> Any:
    """Return the value of an option as the recipe has it."""
    if field == "data.label":
        return given[0] if len(given) == 1 else list(given)
    if field == "data.labels":
        return [name.strip() for name in given.split(",")]
    if field == "data.size":
        try:
            sizes = [int(size) for size in given.replace("x", ",").split(",")]
        except ValueError:
            raise ConfigError(f"--size: expected a number such as 64, or 64,64,64, got {given!r}.") from None
        return sizes[0] if len(sizes) == 1 else sizes
    if field == "split.leave_out":
        columns: dict[str, list[str]] = {}
        for text in given:
            column, sign, value = text.partition("=")
            if not sign or not column:
                raise ConfigError(f"--leave-out: expected COLUMN=VALUE, such as site=B, got {text!r}.")
            columns.setdefault(column, []).append(value)
        return columns
    return given


def _needed(data: str | None) -> str:
    if data is None:
        raise ConfigError("expected the data. Give --data with a .csv, .tsv or .npz file, or a folder.")
    return data


def _print_run(run: Any) -> None:
    click.echo(f"{run.folder}: the model is in {run.folder / 'model'}.")
    click.echo(f"Next: medzoo predict local-dir:{run.folder / 'model'} IMAGE")


@contextmanager
def _messages() -> Iterator[None]:
    """Print warnings and what the training logs as plain lines to stderr."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.INFO:  # warnings are printed by the main command
                click.echo(cli_message(record.getMessage(), "train"), err=True)

    seen: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = cli_message(message, "train")
        # What a library will change is for its developers.
        if text not in seen and issubclass(category, UserWarning):
            seen.add(text)
            click.echo(f"warning: {text}", err=True)

    logger, lines = logging.getLogger("medzoo"), Lines(logging.INFO)
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)
