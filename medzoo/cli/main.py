"""The command line: one thin command per verb.

Heavy libraries are imported inside the commands, so that ``--version`` and ``--help`` answer at once.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

import click

import medzoo
from medzoo.cli.console import console
from medzoo.cli.weights import cache, convert, fetch, verify, weights_table
from medzoo.errors import DataError, MedzooError, did_you_mean
from medzoo.version import __version__

if TYPE_CHECKING:
    from medzoo.inference.result import Prediction

__all__ = ["main"]


class Commands(click.Group):
    """Turns medzoo's errors into one line and an exit code, and suggests the command that was meant."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; no traceback without ``--debug``."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except MedzooError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"{type(error).__name__}: {error}", err=True)
            sys.exit(error.exit_code)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or the nearest one's name."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}.{did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="medzoo")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Models for medical image classification, 2D and 3D."""


@main.command("list")
@click.argument("pattern", default="*")
@click.option("--dims", type=click.Choice(["2", "3"]), help="Only models of images, or of volumes.")
@click.option("--task", type=click.Choice(["binary", "multilabel", "multiclass"]))
@click.option("--pretrained", is_flag=True, help="List weights: what they fill, licence, size, digest.")
@click.option("--license", "license_", help="Only weights under this licence, such as 'apache-*'.")
@click.option("--trained", is_flag=True, help="Only weights with trained outputs.")
def list_command(
    pattern: str, dims: str | None, task: Any, pretrained: bool, license_: str | None, trained: bool
) -> None:
    """List the models whose name matches PATTERN."""
    from rich.table import Table

    pretrained = pretrained or bool(license_) or trained
    names = medzoo.list_models(
        pattern,
        dims=int(dims) if dims else None,
        task=task,
        pretrained=pretrained,
        license=license_,
        trained=trained,
    )
    if pretrained:
        console().print(weights_table(names, license_, trained))
        return
    table = Table("model", "input", "outputs", "parameters", "weights", "what")
    for name in names:
        spec = medzoo.describe(name)
        outputs = f"{len(spec.outputs.labels)} {spec.outputs.task}"
        tags = ", ".join(spec.weights) or "–"
        table.add_row(name, _shape(spec.input_spec), outputs, f"{spec.parameters:,}", tags, spec.summary)
    console().print(table)


@main.command()
@click.argument("name")
def info(name: str) -> None:
    """Tell all that is known of the model NAME."""
    from rich.table import Table

    spec = medzoo.describe(name)
    how = spec.preprocessing
    rows = {
        "what": spec.summary,
        "input": f"{spec.input_spec}; default {_shape(spec.input_spec)}",
        "outputs": f"{spec.outputs.task}: {', '.join(spec.outputs.labels)}",
        "preparation": f"{how.fit} to {' × '.join(map(str, how.size))}, {how.intensity}"
        + (f", orientation {how.orientation}" if how.orientation else ""),
        "parameters": f"{spec.parameters:,}",
        "options": ", ".join(f"{key}={value!r}" for key, value in spec.options.items()),
        "weights": ", ".join(spec.weights) or "none yet",
        "activation maps": spec.cam_layer,
        "source": spec.source,
        "citation": spec.citation,
    }
    table = Table(title=name, show_header=False, title_justify="left")
    for key, value in rows.items():
        table.add_row(key, value)
    console().print(table)
    if spec.weights:
        console().print(weights_table([name]))


@main.command()
@click.argument("model")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option("--points", type=click.Path(), help="CSV of patch centres in mm, for a patch model.")
@click.option("--points-frame", type=click.Choice(["LPS", "RAS"]), default="LPS", show_default=True)
@click.option("--output", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True)
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that read ahead.")
@click.option("--device", help="Such as cpu or cuda:0.")
@click.option("--allow-untrained", is_flag=True, help="Run although no output was trained; the result says so.")
@click.option("--strict", is_flag=True, help="Treat implausible values as a failure.")
@click.pass_context
def predict(
    ctx: click.Context,
    model: str,
    paths: tuple[str, ...],
    points: str | None,
    points_frame: Any,
    output: str,
    batch_size: int,
    workers: int,
    device: str | None,
    allow_untrained: bool,
    strict: bool,
) -> None:
    """Predict with MODEL for files, DICOM series and folder trees.

    MODEL is a NAME (without weights), NAME:TAG, or local-dir:FOLDER of a saved model.

    Exits with 5 if any source failed, or if there was nothing to predict.
    """
    from rich.progress import MofNCompleteColumn, Progress

    # The two schemes belong to the name; elsewhere a colon stands before a tag.
    name, tag = (model, "") if model.startswith(("hf-hub:", "local-dir:")) else model.partition(":")[::2]
    built = medzoo.create(name, pretrained=tag or False)
    bars = Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console(stderr=True))
    # Doubts are told below, a line each.
    with warnings.catch_warnings(action="ignore", category=UserWarning), bars as bar:
        task = bar.add_task(name, total=None)
        results = medzoo.predict(
            built,
            list(paths),
            batch_size=batch_size,
            device=device,
            num_workers=workers,
            points=points,
            points_frame=points_frame,
            allow_untrained=allow_untrained,
            strict=strict,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if output == "json":
        click.echo(results.to_json(), nl=False)
    elif output == "csv":
        click.echo(results.to_csv(), nl=False)
    else:
        for result in results:
            if not result.error:
                _show_prediction(result)
    for result in results:
        if result.doubt:
            click.echo(f"warning: {result.doubt}", err=True)
    for source, reason in results.skipped.items():
        click.echo(f"skipped {source}: {reason}", err=True)
    for result in results.failed:
        click.echo(f"DataError: {result.error}", err=True)
    if not results:
        passed = f"{len(results.skipped)} things were passed over" if results.skipped else "no image was found"
        click.echo(f"nothing to predict: {passed}", err=True)
    ctx.exit(DataError.exit_code if results.failed or not results else 0)


@main.command()
@click.argument("path", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="The picture to write, such as scan.png.")
@click.option("--frame", type=click.IntRange(0), help="Which frame, page or volume of several.")
def show(path: str, out: str, frame: int | None) -> None:
    """Draw PATH as it was read, to check that it is the right way up.

    The X-ray, or three planes of a volume, with orientation, spacing and range.
    """
    medzoo.show(path, out=out, frame=frame)
    click.echo(out)


@main.command()
@click.argument("file", required=False, type=click.Path())
@click.option("--to", default="medzoo-quickstart", show_default=True, help="Folder for the images it draws.")
def quickstart(file: str | None, to: str) -> None:
    """Take every model through the main job.

    Reading, preparing, a checked forward pass and named outputs, on FILE or on drawings.
    """
    from pathlib import Path

    from medzoo.cli.quickstart import run

    run(Path(file) if file else None, Path(to))


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[MODEL]... [OPTIONS]")
@click.pass_context
def bench(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Time models beside their peers; --help tells the options."""
    # It has a parser of its own, because it also runs where click is not installed.
    from medzoo.bench.__main__ import main as run

    ctx.exit(run(arguments))


def _show_prediction(result: Prediction) -> None:
    """Print one prediction: most probable first, and what is untrained marked."""
    from rich.markup import escape
    from rich.table import Table

    where = f" · point {result.point}" if result.point else ""
    click.echo(f"{result.source}{where} · {result.provenance['model']} · weights {result.provenance['weights']}")
    if not result.trained:
        click.secho("untrained outputs: these numbers mean nothing", fg="red", bold=True)
    table = Table("output", "probability", "positive")
    for label in sorted(result.probabilities, key=result.probabilities.__getitem__, reverse=True):
        mark = " (untrained)" if label in result.untrained else ""
        probability = f"{result.probabilities[label]:.3f}"
        table.add_row(escape(label) + mark, probability, "yes" if result.positive[label] else "no")
    console().print(table)
    click.echo(" → ".join(result.steps) + "\n")


def _shape(spec: medzoo.InputSpec) -> str:
    return " × ".join(map(str, (spec.channels, *spec.size)))


for command in (cache, convert, fetch, verify):
    main.add_command(command)

if __name__ == "__main__":
    main()
