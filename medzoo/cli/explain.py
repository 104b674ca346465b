"""``medzoo explain``, and what ``medzoo predict --explain`` shares with it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from medzoo.cli.map_files import FORMATS, MapFiles, SavedMaps, with_map_warnings
from medzoo.cli.model_argument import create_model
from medzoo.cli.problems import print_problems
from medzoo.cli.tables import is_onnx
from medzoo.errors import ConfigError, DataError
from medzoo.progress import progress_bar

if TYPE_CHECKING:
    from medzoo.classifier import Classifier
    from medzoo.inference.result import Prediction, Predictions

__all__ = ["explain", "predict_and_explain"]


@click.command()
@click.argument("model")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option("--to", required=True, metavar="FOLDER", help="Where the maps are written, apart from the images.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="LABEL",
    help="An output, such as Effusion; may be given several times. By default the most probable trained output of each "
    "image.",
)
@click.option(
    "--method",
    type=click.Choice(["gradcam", "gradcam++", "occlusion"]),
    default="gradcam",
    help="gradcam needs one pass; occlusion hides one region after the other, in hundreds of passes.",
)
@click.option("--layer", metavar="NAME", help="Dotted name of another layer than the model's own, for gradcam.")
@click.option("--mask-size", type=click.IntRange(1), help="Side of the hidden box in voxels of the input.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(FORMATS),
    default=["png"],
    help="Of the files; may be given several times. png and jpg are pictures of all targets, nii.gz has the "
    "voxels and the affine of the file, npy is the array on the axes of medzoo.read.",
)
@click.option("--points", type=click.Path(), help="For a patch model: CSV file of points, as for medzoo predict.")
@click.option("--points-frame", type=click.Choice(["LPS", "RAS"]), default="LPS", help="Axes of the points.")
@click.option("--batch-size", type=click.IntRange(1), default=1, help="Images per pass; for occlusion, copies of one.")
@click.option("--device", help="Where to run, such as cpu or cuda:0.")
@click.option("--allow-untrained", is_flag=True, help="Explain outputs that were not trained too; they are marked.")
@click.option("--allow-mismatch", is_flag=True, help="Run on images of another kind too; the results are marked.")
@click.option("--strict", is_flag=True, help="Treat every warning of a prediction as an error.")
def explain(
    model: str, paths: tuple[str, ...], to: str, targets: tuple[str, ...], formats: tuple[str, ...], **options: Any
) -> None:
    """Show where in images an output of MODEL was influenced.

    For each image a picture is written: the image, and over it the regions that raised the output, with its
    probability. It is a map of influence, not a localisation of a finding.

    MODEL is NAME (untrained), NAME:TAG, local-dir:FOLDER or hf-hub:OWNER/REPO. PATHS are files, DICOM series and
    folders, as for medzoo predict.

    \b
    medzoo explain densenet121_xray:xrv_all chest.dcm --to maps
    medzoo explain densenet121_xray:xrv_all images/ --target Effusion --target Mass --to maps
    medzoo explain local-dir:runs/a/model ct.nii.gz --format nii.gz --to maps
    medzoo explain local-dir:nodules scan/ --points points.csv --method occlusion --to maps

    A file is called as its image; files of that name in FOLDER are replaced. nii, nii.gz and npy have a file for each
    target. The exit code is 5 if any image failed or if there was nothing to explain.
    """  # noqa: D301  # click reads the \b
    from rich.progress import MofNCompleteColumn

    built = _open(model)
    files = MapFiles(to, paths, formats)
    # Warnings are printed below, one line each.
    with warnings.catch_warnings(action="ignore", category=UserWarning), progress_bar(MofNCompleteColumn()) as bar:
        task = bar.add_task(built.name, total=None)
        options["progress"] = lambda done, total: bar.update(task, completed=done, total=total)
        results, maps = _explain_to(files, built, paths, target=list(targets) or None, **options)
    for result, own in zip(results, maps, strict=True):
        if own is not None:
            click.echo(_line(result, own))
    noted = with_map_warnings(results, maps)
    print_problems(noted, "explain")
    if results.failed or not results:
        sys.exit(DataError.exit_code)


def predict_and_explain(
    model: Classifier, paths: Sequence[str], folder: str, *, num_workers: int = 0, **options: Any
) -> tuple[Predictions, list[SavedMaps | None]]:
    """Return predictions, and the pictures of the most probable trained output of each that did not fail."""
    if num_workers:
        raise ConfigError(
            f"expected --workers 0 with --explain, which reads images one after the other, got {num_workers}. Leave "
            "one of them out."
        )
    return _explain_to(MapFiles(folder, paths), model, paths, **options)


def _explain_to(
    files: MapFiles, model: Classifier, paths: Sequence[str], **options: Any
) -> tuple[Predictions, list[SavedMaps | None]]:
    """Explain images one at a time, write each map, and return the predictions with the files of each."""
    from medzoo.inference.result import Prediction, Predictions
    from medzoo.interpretation.explain import explain_each

    run = explain_each(model, list(paths), **options)
    predictions: list[Prediction] = []
    maps: list[SavedMaps | None] = []
    for found in run:
        if isinstance(found, Prediction):
            predictions.append(found)
            maps.append(None)
            continue
        try:
            maps.append(files.save(found))
            predictions.append(found.prediction)
        except ConfigError as error:
            if isinstance(error.__cause__, OSError):  # the folder, and so all images
                raise
            maps.append(None)
            predictions.append(replace(Prediction(found.prediction.source), error=str(error), reason="no position"))
    return Predictions(predictions, run.skipped, run.categories), maps


def _line(result: Prediction, maps: SavedMaps) -> str:
    """Return what is known of one image in a line."""
    targets = []
    for label in maps.targets:
        called = {True: " positive", False: " negative", None: ""}[result.positive[label]]
        called = " (untrained)" if label in result.untrained else called
        targets.append(f"{label} {result.probabilities[label]:.3f}{called}")
    mark = " · see the warning" if result.warning or maps.warning else ""
    return f"{result.name} → {', '.join(map(str, maps.files))} · {', '.join(targets)}{mark}"


def _open(model: str) -> Classifier:
    """Return the model of a name, or raise ConfigError for an exported file, which has no layers."""
    if is_onnx(model):
        raise ConfigError(
            f"{model}: expected a model of PyTorch, which has layers and gradients, got an exported file. Use the "
            "model it was exported from."
        )
    return create_model(model)
