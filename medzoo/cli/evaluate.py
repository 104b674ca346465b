"""``medzoo evaluate`` and ``medzoo recalibrate``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from medzoo.cli.recipe_options import flag_of, messages, recipe_options, resolve
from medzoo.cli.tables import cli_message
from medzoo.errors import ConfigError
from medzoo.extra import require_train_extra

__all__ = ["check_folder", "evaluate", "recalibrate"]

DATA = (
    "--image-col", "--label-col", "--labels", "--task", "--patient-col", "--key", "--no-patient-groups", "--uncertain",
    "--source", "--missing", "--mapping", "--roi",
)  # fmt: skip


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@recipe_options(DATA)
@click.option("--part", type=click.Choice(["test", "valid"]), help="Part of the run's own table.")
@click.option("--out-of-fold", is_flag=True, help="Pool the validation parts of runs, one for each fold.")
@click.option("--by", multiple=True, metavar="COLUMN,…", help="Columns by whose values figures are given too.")
@click.option("--against", metavar="MODEL", help="Another model, run or file of scores, compared on the same rows.")
@click.option("--prevalence", type=float, help="Share of positives for which predictive values are stated.")
@click.option("--case-sampled", is_flag=True, default=None, help="The rows were sampled by class.")
@click.option("--threshold", type=float, help="Threshold of scores in a file; without it nothing is called positive.")
@click.option("--score-col", metavar="COLUMN", help="Column of the score in a file of scores.")
@click.option("--scale", type=click.Choice(["auto", "probability", "logit"]), default="auto", help="What scores are.")
@click.option("--seen", type=click.Choice(["refuse", "drop", "allow"]), default="refuse", help="Rows of the training.")
@click.option("--unreadable", type=click.Choice(["refuse", "drop"]), help="Images that cannot be read.")
@click.option("--images", is_flag=True, help="Draw examples in the report, which is then not for sharing.")
@click.option("--maps/--no-maps", default=None, help="Activation maps over the images; with --images by default.")
@click.option("--project", default="default", help="Its key makes the pseudonyms of the report.")
@click.option("--resamples", type=click.IntRange(100), default=2000, help="Resamples of the bootstrap.")
@click.option("--device", help="Where to run, such as cpu or cuda:0.")
@click.option("--allow-mismatch", is_flag=True, help="Evaluate images of another kind too.")
@click.option("--to", metavar="FOLDER", help="Folder of the report; RUN/evaluation for a run.")
def evaluate(models: tuple[str, ...], data: str | None, root: str | None, to: str | None, **options: Any) -> None:
    """Evaluate MODEL, with an interval for every figure.

    MODEL is the folder of a run, NAME:TAG, local-dir:FOLDER, hf-hub:OWNER/REPO, or a CSV file of the scores of any
    model. Several are trainings that differ in their seed.

    \b
    medzoo evaluate runs/a                                      the test part of its own data, opened once more
    medzoo evaluate runs/a --data other_site.csv --by site,sex
    medzoo evaluate densenet121_xray:xrv_all --data t.csv --label-col Effusion --patient-col pid
    medzoo evaluate scores.csv --threshold 0.5
    """  # noqa: D301  # click reads the \b
    require_train_extra()
    with messages("evaluate"):
        _evaluate(models, data, root, to, **options)


@click.command()
@click.argument("model")
@recipe_options(DATA)
@click.option("--rule", help="How thresholds are chosen, such as sensitivity>=0.95; else as before.")
@click.option(
    "--prevalence",
    type=float,
    help="Share of positives at the site; without --data, a shift to it.",
)
@click.option("--site", default="", help="What the data is called in the model's card.")
@click.option("--seen", type=click.Choice(["refuse", "drop", "allow"]), help="Rows of the training.")
@click.option("--device", help="Where to run, such as cpu or cuda:0.")
@click.option("--allow-mismatch", is_flag=True, help="Use images of another kind too.")
@click.option("--to", metavar="FOLDER", required=True, help="Folder of the new model.")
def recalibrate(model: str, data: str | None, root: str | None, to: str, **options: Any) -> None:
    """Fit the probabilities and thresholds of MODEL to a new site, and save it as a new model.

    \b
    medzoo recalibrate runs/a --data site.csv --rule "sensitivity>=0.95" --to models/site
    medzoo recalibrate runs/a --prevalence 0.02 --to models/screening
    """  # noqa: D301  # click reads the \b
    require_train_extra()
    with messages("recalibrate"):
        from medzoo.evaluation.recalibrate import recalibrate as run
        from medzoo.evaluation.subjects import check_name

        check_name(model)
        table = _table(model, data, root, {n: v for n, v in options.items() if n == "settings" or "__" in n})
        names = {
            "rule": "rule",
            "site": "split",
            "device": "device",
            "allow_mismatch": "allow_mismatch",
            "seen": "seen",
        }
        own = {python: options[cli] for cli, python in names.items() if options[cli]}
        if table is None and own:
            flag = next(cli for cli, python in names.items() if python in own).replace("_", "-")
            raise ConfigError(f"--{flag} is for --data. Give the data, or leave it out.")
        new = run(model, table, to=to, prevalence=options["prevalence"], **own)
        click.echo(_describe(new.outputs))
    click.echo(f"{to}: the model is there. Next: medzoo evaluate {shlex.quote(f'local-dir:{to}')} --data TABLE")


def _evaluate(models: tuple[str, ...], data: str | None, root: str | None, to: str | None, **options: Any) -> None:
    """Evaluate, write the report, and print its summary."""
    from medzoo.evaluation.card import card_metrics
    from medzoo.evaluation.evaluate import evaluate as run
    from medzoo.evaluation.run_record import RunRecord, is_run
    from medzoo.evaluation.subjects import check_name
    from medzoo.weights.save import add_metrics

    against, files = options.pop("against"), [_is_table(name) for name in models]
    for name in (*models, *([against] if against else [])):
        if not _is_table(name):
            check_name(name)
    if to is not None:
        check_folder(to)
    fields = {name: options.pop(name) for name in list(options) if name == "settings" or "__" in name}
    reading = _reading(fields, options, joined=data is not None, all_files=all(files))
    table = None if all(files) and data is None else _table(models[0], data, root, fields, images=not all(files))
    own = {name: value for name, value in options.items() if value is not None}
    own["by"] = [column.strip() for text in options["by"] for column in text.split(",")]
    given = [_read(name, table, reading) for name in models]
    rival = None if against is None else _read(against, table, reading)
    report = run(given, None if all(files) else table, against=rival, **own)
    click.echo(cli_message(report.summary(), "evaluate"))
    record = RunRecord(Path(models[0])) if is_run(models[0]) else None
    if to is None and record is None:
        click.echo("--to FOLDER writes the report, its figures as JSON, and the scores.")
        return
    if record is not None and data is None and report.facts.get("part") == "test":
        add_metrics(record.model, card_metrics(report.metrics, "test"))
    folder = Path(to) if to is not None else _own_folder(record, data, report)
    page = report.save(folder / "report.html")
    report.scores.to_csv(folder / "scores.csv")
    click.echo(f"{page}: the report. Figures are in report.json, scores in scores.csv beside it.")
    click.echo("scores.csv has the ids of the rows: share the report, not the scores.")


def _own_folder(record: Any, data: str | None, report: Any) -> Path:
    """Return where a run keeps a report: by the part of its own data, or by what other data is."""
    from medzoo.evaluation.openings import fingerprint_of

    part = report.facts.get("part")
    of_other = f"{Path(data or report.title).stem}-{fingerprint_of(report.scores)[:8]}"
    return record.path / "evaluation" / (part or of_other)


def check_folder(to: str) -> None:
    """Check that a report can be written, before anything is read or computed.

    Raises:
        ConfigError: it cannot.
    """
    from medzoo.training.folder import open_folder

    folder = Path(to)
    try:
        open_folder(folder)
    except OSError as error:
        raise ConfigError(f"--to {folder}: cannot be written ({error.strerror}). Choose another folder.") from error


def _describe(outputs: Any) -> str:
    """Return the calibration and the thresholds of a model in lines."""
    found, limits = outputs.calibration, outputs.thresholds or (None,) * len(outputs.labels)
    lines = [f"calibration: {found.method}" if found else "calibration: none"]
    for i, label in enumerate(outputs.labels):
        change = f"logit x {found.slope[i]:.3g} + {found.intercept[i]:.3g}, " if found else ""
        limit = "no threshold" if limits[i] is None else f"threshold {limits[i]:.3g}"
        lines.append(f"  {label}: {change}{limit}")
    return "\n".join(lines)


def _is_table(name: str) -> bool:
    from medzoo.evaluation.subjects import is_scores_file  # loads torch, which --help does without

    return is_scores_file(name)


def _read(name: str, table: Any, reading: dict[str, Any]) -> Any:
    """Return the scores of a file, or the name of a model as it is."""
    from medzoo.evaluation.scores import Scores

    return Scores.from_csv(name, table=table, **reading) if _is_table(name) else name


def _reading(
    fields: dict[str, Any], options: dict[str, Any], *, joined: bool, all_files: bool
) -> dict[str, Any]:  # fmt: skip
    """Take the options of a file of scores out of the others, and return them as :meth:`Scores.from_csv` has them.

    Args:
        fields: options of the data, which are columns of the file where there is no table.
        options: the others.
        joined: whether there is a table.
        all_files: whether only files of scores are evaluated.

    Raises:
        ConfigError: an option that would have no effect.
    """
    reading = {"score": options.pop("score_col"), "scale": options.pop("scale"), "thresholds": options.pop("threshold")}
    given = {"--score-col": reading["score"], "--threshold": reading["thresholds"]}
    given["--scale"] = None if reading["scale"] == "auto" else reading["scale"]
    if not all_files:
        for flag in (flag for flag, value in given.items() if value is not None):
            raise ConfigError(f"{flag} is for files of scores. Leave it out.")
        return reading
    unused = {name: options.pop(name) for name in ("device", "allow_mismatch", "images", "maps", "unreadable")}
    unused["seen"] = None if options["seen"] == "refuse" else options["seen"]
    for name in (name for name, value in unused.items() if value):
        raise ConfigError(f"--{name.replace('_', '-')} has no effect on files of scores. Leave it out.")
    if joined:
        return reading
    label, labels = fields.pop("data__label"), fields.pop("data__labels")
    reading |= {name: fields.pop(f"data__{name}") for name in ("image", "patient", "task")}
    for name in (name for name, value in fields.items() if value not in (None, ())):
        raise ConfigError(f"{flag_of(name)} has no effect on a file of scores without --data. Leave it out.")
    reading["target"] = (label[0] if len(label) == 1 else list(label)) if label else None
    reading["labels"] = [name.strip() for name in labels.split(",")] if labels else None
    return reading


def _table(model: str, data: str | None, root: str | None, fields: dict[str, Any], *, images: bool = True) -> Any:
    """Return the table of ``--data``, read by the recipe of the run where the model is one."""
    from medzoo.evaluation.subjects import record_of
    from medzoo.training.recipe import Recipe
    from medzoo.training.source import load_table

    if data is None:
        given = [flag_of(name) for name, value in fields.items() if value not in (None, ())]
        if root is not None or given:
            raise ConfigError(
                f"{'--root' if root is not None else given[0]} is for --data. Give it, or leave this out."
            )
        return None
    record = None if _is_table(model) else record_of(model)
    recipe = Recipe.load("table") if record is None else Recipe.load(record.path / "recipe.yaml")
    return load_table(resolve(recipe, fields), data, root, images=images)
