"""The command line: one thin command per verb.

Heavy libraries are imported inside the commands, so that ``--version`` and ``--help`` are quick.
"""

from __future__ import annotations

import errno
import logging
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import medzoo
from medzoo.cli.bench import bench
from medzoo.cli.evaluate import evaluate, recalibrate
from medzoo.cli.explain import explain, predict_and_explain
from medzoo.cli.export import export
from medzoo.cli.froc import froc
from medzoo.cli.map_files import SavedMaps, add_maps_to_csv, add_maps_to_json, with_map_warnings
from medzoo.cli.model_argument import create_model
from medzoo.cli.problems import print_problems
from medzoo.cli.reproduce import reproduce
from medzoo.cli.sweep import sweep
from medzoo.cli.tables import (
    cli_message,
    console,
    info_table,
    is_onnx,
    models_table,
    onnx_table,
    prediction_table,
    weights_table,
)
from medzoo.cli.train import check, recipes, train
from medzoo.cli.weights import cache, convert, fetch, verify
from medzoo.errors import DataError, MedzooError, did_you_mean
from medzoo.progress import progress_bar
from medzoo.version import __version__

if TYPE_CHECKING:
    from medzoo.inference.result import Prediction

__all__ = ["main"]


class LogLines(logging.Handler):
    """Prints what the library logs to stderr, one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, such as ``"warning: …"``."""
        click.echo(f"{record.levelname.lower()}: {cli_message(record.getMessage())}", err=True)


class Commands(click.Group):
    """Prints medzoo's errors as one line, exits with their code, and suggests the nearest command."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; print no traceback without ``--debug``."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except MedzooError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"{type(error).__name__}: {cli_message(error, ctx.invoked_subcommand)}", err=True)
            sys.exit(error.exit_code)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or ctx.params.get("debug"):
                raise
            click.echo(f"the output cannot be written ({error.strerror}). Free some space.", err=True)
            sys.exit(7)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command, or fail with the nearest name."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}.{did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="medzoo")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def main(context: click.Context, debug: bool) -> None:  # noqa: ARG001  # Commands.invoke reads debug
    """Models for medical image classification, 2D and 3D."""
    logger, lines = logging.getLogger("medzoo"), LogLines(logging.WARNING)
    logger.addHandler(lines)
    context.call_on_close(lambda: logger.removeHandler(lines))


@main.command("list")
@click.argument("pattern", default="*")
@click.option("--dims", type=click.Choice(["2", "3"]), help="Only models of 2D images or of 3D volumes.")
@click.option("--task", type=click.Choice(["binary", "multilabel", "multiclass"]), help="Only models with this task.")
@click.option("--pretrained", is_flag=True, help="List weights: what they fill, licence, size and digest.")
@click.option("--license", "license_", help="Only weights with this licence, such as 'apache-*'.")
@click.option("--trained", is_flag=True, help="Only weights with trained outputs.")
def list_command(
    pattern: str, dims: str | None, task: Any, pretrained: bool, license_: str | None, trained: bool
) -> None:
    """List the models whose name matches PATTERN."""
    pretrained = pretrained or bool(license_) or trained
    names = medzoo.list_models(
        pattern, dims=int(dims) if dims else None, task=task, pretrained=pretrained, license=license_, trained=trained
    )
    console().print(weights_table(names, license_, trained) if pretrained else models_table(names))


@main.command()
@click.argument("name")
def info(name: str) -> None:
    """Show the details of the model NAME, or of an exported file, model.onnx."""
    if is_onnx(name):
        console().print(onnx_table(medzoo.open_onnx(name)))
        return
    console().print(info_table(name))
    if medzoo.describe(name).weights:
        console().print(weights_table([name]))


@main.command()
@click.argument("model")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option(
    "--points",
    type=click.Path(),
    help="For a patch model: CSV file with a row for each patch and its centre in mm in the columns coordX, coordY and "
    "coordZ; for several scans also seriesuid, the UID of the DICOM series or the name of the file without its suffix.",
)
@click.option(
    "--points-frame",
    type=click.Choice(["LPS", "RAS"]),
    default="LPS",
    help="Axes of the points: LPS as DICOM and LUNA16 have them (x to the left, y to the back), RAS as NIfTI has them.",
)
@click.option("--output", type=click.Choice(["table", "json", "csv"]), default="table", help="Format of the results.")
@click.option("--batch-size", type=click.IntRange(1), default=1, help="Images per forward pass.")
@click.option("--workers", "num_workers", type=click.IntRange(0), default=0, help="Processes that read images.")
@click.option("--device", help="Where to run, such as cpu or cuda:0.")
@click.option("--allow-untrained", is_flag=True, help="Run even if no output was trained; the outputs are marked.")
@click.option("--allow-mismatch", is_flag=True, help="Run on images of another kind too; the results are marked.")
@click.option("--strict", is_flag=True, help="Treat every warning, such as of implausible values, as an error.")
@click.option(
    "--explain",
    metavar="FOLDER",
    help="Write a picture of each image there, with a Grad-CAM map of its most probable trained output; medzoo explain "
    "has other outputs, methods and formats.",
)
def predict(model: str, paths: tuple[str, ...], output: str, explain: str | None, **options: Any) -> None:
    """Predict with MODEL on files, DICOM series and folders.

    MODEL is NAME (untrained), NAME:TAG, local-dir:FOLDER, hf-hub:OWNER/REPO, or an exported file, model.onnx.

    The exit code is 5 if any image failed or if there was nothing to predict.
    """
    from rich.progress import MofNCompleteColumn

    if all(Path(path).suffix.lower() == ".npz" for path in paths):
        raise DataError(
            f"{paths[0]}: expected image files, got an .npz file, which is a table of images with labels. Evaluate it: "
            f"medzoo evaluate {shlex.quote(model)} --data {shlex.quote(paths[0])}"
        )
    built: Any = medzoo.open_onnx(model) if is_onnx(model) else create_model(model)
    # Warnings are printed below, one line each.
    with warnings.catch_warnings(action="ignore", category=UserWarning), progress_bar(MofNCompleteColumn()) as bar:
        task = bar.add_task(built.name, total=None)
        # The other options have the names that medzoo.predict gives them.
        options["progress"] = lambda done, total: bar.update(task, completed=done, total=total)
        results, maps = (
            (medzoo.predict(built, list(paths), **options), None)
            if explain is None
            else predict_and_explain(built, paths, explain, **options)
        )
    if output == "json":
        click.echo(results.to_json() if maps is None else add_maps_to_json(results, maps), nl=False)
    elif output == "csv":
        click.echo(results.to_csv() if maps is None else add_maps_to_csv(results, maps), nl=False)
    else:
        for i, result in enumerate(results):
            if not result.error:
                _print_prediction(result, None if maps is None else maps[i])
    print_problems(results if maps is None else with_map_warnings(results, maps))
    if results.failed or not results:
        sys.exit(DataError.exit_code)


@main.command()
@click.argument("path", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="Image file to write, such as scan.png.")
@click.option("--frame", type=click.IntRange(0), help="Index of the frame, page or volume to draw.")
@click.option("--stack", type=click.IntRange(0), help="Index of the stack, of several in a DICOM file or folder.")
def show(path: str, out: str, frame: int | None, stack: int | None) -> None:
    """Draw PATH as it was read, to check its orientation.

    The picture shows the X-ray, or three planes of a volume, with orientation, spacing and value range.
    """
    medzoo.show(path, out=out, frame=frame, stack=stack)
    click.echo(out)


@main.command()
@click.argument("file", required=False, type=click.Path())
@click.option("--to", default="medzoo-quickstart", help="Folder for the synthetic images.")
def quickstart(file: str | None, to: str) -> None:
    """Run every model on FILE, or on synthetic images.

    Each model reads and preprocesses an image, checks the input, and returns named outputs.
    """
    from medzoo.cli.quickstart import run

    run(Path(file) if file else None, Path(to))


def _print_prediction(result: Prediction, maps: SavedMaps | None) -> None:
    """Print one prediction: its source, its outputs, the preprocessing steps and the file of its map."""
    click.echo(f"{result.name} · {result.provenance['model']} · weights {result.provenance['weights']}")
    if not result.trained:
        click.secho("untrained outputs: these numbers mean nothing", fg="red", bold=True)
    if result.mismatch:
        click.secho(f"another kind of image: these numbers mean nothing ({result.mismatch})", fg="red", bold=True)
    console().print(prediction_table(result))
    click.echo(" → ".join(result.steps))
    if maps is not None:
        click.echo(f"map of {', '.join(maps.targets)}: {', '.join(map(str, maps.files))}")
    click.echo()


for command in (
    bench, cache, check, evaluate, explain, recalibrate, convert, export, fetch, froc, recipes, reproduce, sweep, train,
    verify,
):  # fmt: skip
    main.add_command(command)

if __name__ == "__main__":
    main()
