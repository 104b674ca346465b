"""Options of the command line that are fields of a recipe: those of ``check`` and ``train``, and of data elsewhere."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from medzoo.cli.tables import cli_message
from medzoo.errors import ConfigError

__all__ = ["RecipeCommand", "chosen_fields", "flag_of", "messages", "needed", "parse_size", "recipe_options", "resolve"]

SOURCE_NAMES = ["table", "chestxray14", "egfr", "kermany", "luna16", "medmnist", "mgmt", "rsna"]
SET_FIELDS = ("source", "missing", "findings", "mapping", "negatives", "roi")

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
    (
        ("--source",),
        "data.source",
        {
            "type": click.Choice(SOURCE_NAMES),
            "help": "Published set whose layout --data has, if not that of the recipe; see medzoo fetch data:NAME.",
        },
    ),
    (
        ("--missing",),
        "data.missing",
        {"type": click.Choice(["refuse", "drop"]), "help": "Rows whose image is not there."},
    ),
    (("--findings",), "data.findings", {"metavar": "A,B,…", "help": "Findings that become labels; all by default."}),
    (("--mapping",), "data.mapping", {"metavar": "FILE", "help": "File by which images are of patients, for rsna."}),
    (("--negatives",), "data.negatives", {"type": float, "help": "Negatives that are drawn for each positive."}),
    (
        ("--roi",),
        "data.roi",
        {
            "metavar": "WHERE",
            "help": "seg for the segmentations of egfr, or the column of a table with a mask file or a box.",
        },
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
    (
        ("--freeze",),
        "train.freeze",
        {
            "type": click.Choice(["none", "encoder", "features"]),
            "help": "What is not trained; features also computes the encoder's outputs once.",
        },
    ),
    (
        ("--then",),
        "train.then",
        {"type": click.Choice(["none", "finetune"]), "help": "Train all weights after a frozen encoder."},
    ),
    (
        ("--no-augment",),
        "augment",
        {"flag_value": True, "type": bool, "help": "Leave out the augmentation of the recipe."},
    ),
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


Command = Callable[..., Any]


class RecipeCommand(click.Command):
    """Lists the options that are fields of a recipe under headings, and those of the command itself last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by what they are about."""
        headings = {field.replace(".", "__"): _heading(field) for _, field, _ in OPTIONS}
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in (*HEADINGS, "Options")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                name = parameter.name or ""
                about = "Images and labels" if name in ("data", "root") else headings.get(name, "Options")
                sections[about].append(record)
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


HEADINGS = ("Images and labels", "A published data set", "Split", "Training")


def _heading(field: str) -> str:
    section, _, name = field.partition(".")
    if section == "data" and name in SET_FIELDS:
        return "A published data set"
    return {"data": "Images and labels", "split": "Split"}.get(section, "Training")


def recipe_options(only: Sequence[str] = ()) -> Callable[[Command], Command]:
    """Return a decorator that adds the options which become fields of the recipe.

    Args:
        only: flags of those that are added; empty for all.
    """

    def add(command: Command) -> Command:
        example = "data.uncertain=mask" if only else "train.ema=0.99"
        command = click.option(
            "--set", "settings", multiple=True, metavar="FIELD=VALUE", help=f"Any field, as {example}."
        )(command)
        for flags, field, arguments in reversed(OPTIONS):
            if not only or flags[0] in only:
                command = click.option(*flags, field.replace(".", "__"), default=None, **arguments)(command)
        root = click.option("--root", metavar="FOLDER", help="Folder of the images of a table; else that of the file.")
        data = click.option(
            "--data", metavar="PATH", help="Table (.csv, .tsv), .npz file, a folder for each class, or a published set."
        )
        return data(root(command))

    return add


def flag_of(field: str) -> str:
    """Return the option of a field, by its name as an argument: ``data__label`` is ``--label-col``."""
    return {each.replace(".", "__"): flags[0] for flags, each, _ in OPTIONS}.get(field, "--set")


def resolve(recipe: Any, options: dict[str, Any]) -> Any:
    """Return a recipe, or that of a name or file, with the options and settings of the command line."""
    from medzoo.training.overrides import override
    from medzoo.training.recipe import Recipe

    values = chosen_fields(options)
    return override(recipe if isinstance(recipe, Recipe) else Recipe.load(recipe), values)


def chosen_fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that the options and settings of the command line set."""
    from medzoo.training.overrides import parse_settings

    values: dict[str, Any] = {}
    for _, field, _ in OPTIONS:
        given = options.get(field.replace(".", "__"))
        if given is not None and given != ():
            values[field] = _value(field, given)
    settings = parse_settings(options["settings"])
    flags_of = {field: flags[0] for flags, field, _ in OPTIONS}
    for field in settings.keys() & values.keys():
        raise ConfigError(f"{field} is given twice, by {flags_of[field]} and --set. Leave one out.")
    return {**values, **settings}


def _value(field: str, given: Any) -> Any:
    """Return the value of an option as the recipe has it."""
    if field == "data.label":
        return given[0] if len(given) == 1 else list(given)
    if field == "augment" or (field, given) == ("train.then", "none"):
        return None
    if field == "data.roi" and given.lower() in ("none", "null"):
        raise ConfigError("--roi: give complete scans as --set data.roi=null --set data.patch=null.")
    if field in ("data.labels", "data.findings"):
        return [name.strip() for name in given.split(",")]
    if field == "data.size":
        return parse_size(given)
    if field == "split.leave_out":
        columns: dict[str, list[str]] = {}
        for text in given:
            column, sign, value = text.partition("=")
            if not sign or not column:
                raise ConfigError(f"--leave-out: expected COLUMN=VALUE, such as site=B, got {text!r}.")
            columns.setdefault(column, []).append(value)
        return columns
    return given


def parse_size(text: str) -> int | list[int]:
    """Return a size such as ``"64"`` or ``"64,64,64"``."""
    try:
        sizes = [int(size) for size in text.replace("x", ",").split(",")]
    except ValueError:
        raise ConfigError(f"--size: expected a number such as 64, or 64,64,64, got {text!r}.") from None
    return sizes[0] if len(sizes) == 1 else sizes


def needed(data: str | None) -> str:
    """Return the path of the data, or raise a ConfigError that it is absent."""
    if data is None:
        raise ConfigError("expected the data. Give --data with a .csv, .tsv or .npz file, or a folder.")
    return data


@contextmanager
def messages(command: str) -> Iterator[None]:
    """Print warnings and what the library logs as plain lines to stderr, in the terms of a command."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.INFO:  # warnings are printed by the main command
                click.echo(cli_message(record.getMessage(), command), err=True)

    seen: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = cli_message(message, command)
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
