"""``medzoo evaluate`` and ``medzoo recalibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medzoo.cli.recipe_options import messages, recipe_options, resolve
from medzoo.cli.tables import cli_message
from medzoo.errors import ConfigError
from medzoo.extra import require_train_extra

__all__ = ["evaluate", "recalibrate"]

TABLES = (".csv", ".tsv")
DATA = (
    "--image-col", "--label-col", "--labels", "--task", "--patient-col", "--key", "--no-patient-groups", "--uncertain",
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
@click.option("--images", is_flag=True, help="Draw examples in the report, which is then not for sharing.")
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
    medzoo evaluate densenet121_xray:all --data t.csv --label-col Effusion --patient-col pid
    medzoo evaluate scores.csv --threshold 0.5
    """  # noqa: D301  # click reads the \b
    require_train_extra()
    with messages("evaluate"):
        _evaluate(models, data, root, to, **options)


@click.command()
@click.argument("model")
@recipe_options(DATA)
@click.option("--rule", help="How thresholds are chosen, such as sensitivity>=0.95; else as before.")
@click.option("--prevalence", type=float, help="Without --data: shift the probabilities to this share of positives.")
@click.option("--site", default="", help="What the data is called in the model's card.")
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
        from medzoo.evaluation.evaluate import load_model
        from medzoo.evaluation.recalibrate import recalibrate as run

        own = {"rule": options.pop("rule"), "split": options.pop("site"), "prevalence": options.pop("prevalence")}
        scoring = {name: options.pop(name) for name in ("device", "allow_mismatch")}
        table = _table(model, data, root, options)
        if table is None:
            own, scoring = {"prevalence": own["prevalence"]}, {}
        new = run(load_model(model), table, to=to, **own, **scoring)
        click.echo(_describe(new.outputs))
    click.echo(f"{to}: the model is there. Next: medzoo evaluate local-dir:{to} --data TABLE")


def _evaluate(models: tuple[str, ...], data: str | None, root: str | None, to: str | None, **options: Any) -> None:
    """Evaluate, write the report, and print its summary."""
    from medzoo.evaluation.card import card_metrics
    from medzoo.evaluation.evaluate import evaluate as run
    from medzoo.evaluation.run_record import RunRecord, is_run
    from medzoo.weights.save import add_metrics

    names = (
        "part",
        "out_of_fold",
        "prevalence",
        "case_sampled",
        "seen",
        "images",
        "project",
        "resamples",
        "device",
        "allow_mismatch",
    )
    own = {name: options.pop(name) for name in names}
    own["by"] = [column.strip() for text in options.pop("by") for column in text.split(",")]
    reading = {"score": options.pop("score_col"), "scale": options.pop("scale"), "thresholds": options.pop("threshold")}
    against = options.pop("against")
    files = [_is_table(name) for name in models]
    if any(files) or (against is not None and _is_table(against)):
        reading |= _columns(options, joined=data is not None)
    elif reading["score"] or reading["thresholds"] is not None or reading["scale"] != "auto":
        raise ConfigError("--score-col, --scale and --threshold are for a file of scores. Leave them out.")
    table = None if all(files) and data is None else _table(models[0], data, root, options)
    given = [_read(name, table, reading) for name in models]
    report = run(
        given, None if all(files) else table, against=against and _read(against, table, reading), **own
    )  # fmt: skip
    click.echo(cli_message(report.summary(), "evaluate"))
    record = RunRecord(Path(models[0])) if is_run(models[0]) else None
    if to is None and record is not None:
        to = str(record.path / "evaluation" / (Path(data).stem if data else report.facts.get("part", "test")))
    if to is None:
        click.echo("--to FOLDER writes the report, its figures as JSON, and the scores.")
        return
    if record is not None and data is None and report.facts["part"] == "test":
        add_metrics(record.model, card_metrics(report.metrics, "test"))
    page = report.save(Path(to) / "report.html")
    report.scores.to_csv(Path(to) / "scores.csv")
    click.echo(f"{page}: the report. Figures are in report.json, scores in scores.csv beside it.")
    click.echo("scores.csv has the ids of the rows: share the report, not the scores.")


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
    return Path(name).suffix.lower() in TABLES


def _read(name: str, table: Any, reading: dict[str, Any]) -> Any:
    """Return the scores of a file, or the name of a model as it is."""
    from medzoo.evaluation.scores import Scores

    return Scores.from_csv(name, table=table, **reading) if _is_table(name) else name


def _columns(options: dict[str, Any], *, joined: bool) -> dict[str, Any]:
    """Return the columns of a file of scores; with a table they are of the table."""
    if joined:
        return {}
    label, labels = options["data__label"], options["data__labels"]
    return {
        "target": (label[0] if len(label) == 1 else list(label)) if label else None,
        "patient": options["data__patient"],
        "labels": [name.strip() for name in labels.split(",")] if labels else None,
        "task": options["data__task"],
    }


def _table(model: str, data: str | None, root: str | None, options: dict[str, Any]) -> Any:
    """Return the table of ``--data``, read by the recipe of the run where the model is one."""
    from medzoo.evaluation.run_record import is_run
    from medzoo.training.recipe import Recipe
    from medzoo.training.source import load_table

    if data is None:
        given = [name for name, value in (("--root", root), *options.items()) if value not in (None, ())]
        if given:
            flag = given[0].replace("data__", "--").replace("label", "label-col") if "__" in given[0] else given[0]
            raise ConfigError(f"{flag} is for --data. Give the data, or leave it out.")
        return None
    path = Path(model)
    recipe = Recipe.load(path / "recipe.yaml") if is_run(path) else Recipe.load("table")
    return load_table(resolve(recipe, options), data, root)
