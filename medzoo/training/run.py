"""``medzoo.train`` and ``medzoo.resume``: from a recipe and a table to a trained model in a folder."""

from __future__ import annotations

import logging
import math
import os
import platform
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from medzoo.extra import require_train_extra

require_train_extra()  # before the imports that would fail with the name of one package

import lightning.pytorch as pl
import torch

from medzoo.classifier import Classifier
from medzoo.data.table import Table
from medzoo.errors import ConfigError, TrainError
from medzoo.evaluation.calibration import undo_calibration
from medzoo.evaluation.run_record import PART
from medzoo.evaluation.scores import Scores
from medzoo.factory import create
from medzoo.inference.engine import EngineModel, refuse_engine
from medzoo.training.decide import decide, validation_report
from medzoo.training.environment import numeric_environment, resolve_environment
from medzoo.training.epoch_log import EpochLog
from medzoo.training.facts import check_environment, data_fingerprint
from medzoo.training.fit import fit
from medzoo.training.folder import check_folder, is_finished, mark_finished
from medzoo.training.frozen import fit_phases
from medzoo.training.lock import lock_state
from medzoo.training.progress import TrainingProgress
from medzoo.training.recipe import Recipe
from medzoo.training.run_folder import RunFolder
from medzoo.training.setup import Setup, set_up
from medzoo.training.source import load_table
from medzoo.training.validation import ValidationPredictions, merge_shards
from medzoo.training.wait import Speed
from medzoo.version import __version__

__all__ = ["Run", "resume", "train", "train_setup", "with_absolute_model"]

INITIAL = "initial"
log = logging.getLogger("medzoo")


@dataclass(frozen=True, eq=False)
class Run:
    """A finished training.

    Attributes:
        model: the trained model, in eval mode.
        log: one row for each epoch, as in ``log.csv``.
        folder: everything that was written.
        predictions: of the validation part by the trained model: rows of the table, logits ``n l`` and targets ``n l``;
            ``None`` for a run that had ended before, whose predictions are in ``predictions/valid.csv``.
    """

    model: Classifier
    log: tuple[dict[str, float], ...]
    folder: Path
    predictions: ValidationPredictions | None = None


def train(
    recipe: str | os.PathLike[str] | Recipe | Classifier,
    data: Table | str | os.PathLike[str],
    *,
    to: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    callbacks: Sequence[pl.Callback] = (),
    logger: Any = False,
    **overrides: Any,
) -> Run:
    """Train a model on a table, and write everything to a folder; stopped at any moment, :func:`resume` continues.

    On a CPU a resumed run ends with the same weights, bit for bit, as one that was not stopped. The weights are those
    after the last epoch, or their average with ``train.ema``: never those of the best validation, which is noise in a
    small set.

    Args:
        recipe: the name of a recipe of the package (``medzoo recipes``), a YAML file, a :class:`Recipe`, or a model,
            which is trained by the recipe ``"table"`` and not changed itself.
        data: a :class:`~medzoo.Table`, or what it is made from by the recipe: a CSV or npz file, or a folder.
        to: the folder of the run, which must be empty or not exist.
        root: folder of the images that a CSV file names; ``None`` is that of the file.
        callbacks: of Lightning, such as one's own logging.
        logger: of Lightning, such as ``TensorBoardLogger(...)``; ``False`` for none. ``log.csv`` is always written.
        **overrides: fields of the recipe: by their last name where that is unique (``epochs=20``, ``lr=1e-4``), else
            with their section, ``**{"split.seed": 1}``.

    Raises:
        ConfigError: the recipe, an override, the folder or the device cannot be.
        DataError: the table or its images cannot be used, or a patient is in two parts.
        TrainError: training cannot continue, such as for a loss that is not finite, or was stopped by a signal.
    """
    run = RunFolder(Path(to))
    check_folder(run.path)
    locked = False
    try:
        with lock_state(run.state):
            locked = True
            setup, threads = _start(run, recipe, overrides, data, root)
    except BaseException:
        # Without the lock, what is there belongs to the process that has it.
        if locked and not (run.path / "run.json").exists():
            run.remove_empty()
        raise
    return _train(run, setup, callbacks, logger, threads=threads)


def resume(
    folder: str | os.PathLike[str],
    *,
    data: Table | None = None,
    callbacks: Sequence[pl.Callback] = (),
    logger: Any = False,
    inexact: bool = False,
) -> Run:
    """Continue a run that was stopped, from its newest checkpoint; a finished run is returned as it is.

    Args:
        folder: of the run.
        data: the table again, for a run of images in memory; those of files are read again from where they are.
        callbacks: as in :func:`train`.
        logger: likewise.
        inexact: continue even if the precision, the threads or the device are others than before, so that the result
            is not that of a run that was never stopped.

    Raises:
        ConfigError: not the folder of a run, or the run does not match: other data, other numeric choices.
        DataError: images that cannot be read any more.
        TrainError: no checkpoint can be read, or another process trains this run.
    """
    run = RunFolder(Path(folder))
    facts = run.facts()
    if facts.get("caution"):
        raise ConfigError(
            f"{run.path}: {facts['caution']} Continue it as a part of its reproduction: medzoo.reproduce with the same "
            "recipe, data and folder."
        )
    if is_finished(run.path):
        return Run(create(f"local-dir:{run.model}").eval(), run.read_log(), run.path)
    recipe = Recipe.load(run.path / "recipe.yaml")
    if recipe.digest() != facts.get("recipe"):
        raise ConfigError(f"{run.path}: recipe.yaml was changed since the run began. Restore it, or start a new run.")
    recipe = _relocated(recipe, run)
    if data is None:
        setup = set_up(recipe, run.read_table(), column=PART, how_split=facts.get("split"))
    else:
        setup = set_up(recipe, data)
    threads = _check_same(run, setup, inexact=inexact)
    return _train(run, setup, callbacks, logger, inexact=inexact, threads=threads)


def train_setup(
    run: RunFolder, setup: Setup, *, callbacks: Sequence[pl.Callback] = (), inexact: bool = False,
    known: Collection[str] = (),
) -> Run:  # fmt: skip
    """Train what is set up, in a new folder; continue one that was stopped; return one that had ended as it is.

    Args:
        run: the folder.
        setup: what is trained.
        callbacks: of Lightning.
        inexact: as in :func:`resume`.
        known: notes that are not logged again.

    Raises:
        ConfigError: the folder holds something else, or a training of another recipe or of other data.
        TrainError: as in :func:`train`.
    """
    threads = None
    if not (run.path / "run.json").exists():
        check_folder(run.path)
        with lock_state(run.state):
            run.discard()
            threads = _begin(run, setup, known)
    elif run.facts().get("recipe") != setup.recipe.digest():
        raise ConfigError(f"{run.path}: it holds a training by another recipe. Restore that, or choose another folder.")
    elif is_finished(run.path):
        _check_data(run, setup)
        return Run(create(f"local-dir:{run.model}").eval(), run.read_log(), run.path)
    else:
        threads = _check_same(run, setup, inexact=inexact)
    return _train(run, setup, callbacks, False, inexact=inexact, threads=threads)


def _check_same(run: RunFolder, setup: Setup, *, inexact: bool) -> int:
    """Check that a run is of this data and is continued as it began; return its number of threads."""
    _check_data(run, setup)
    return check_environment(run.facts().get("environment") or {}, setup, run.path, inexact=inexact)


def _check_data(run: RunFolder, setup: Setup) -> None:
    there, now = run.facts().get("data"), data_fingerprint(setup)
    if there != now:
        raise ConfigError(
            f"{run.path}: the rows, labels, parts or pixels are others than when the run began (digest "
            f"{str(there)[:12]}, now {now[:12]}). Restore the data, or start a new run."
        )


def _start(
    run: RunFolder,
    recipe: str | os.PathLike[str] | Recipe | Classifier,
    overrides: dict[str, Any],
    data: Table | str | os.PathLike[str],
    root: str | os.PathLike[str] | None,
) -> tuple[Setup, int]:
    """Set up and write what a resume needs, in a folder that is locked; return the number of threads too."""
    check_folder(run.path)  # another process may have begun while this one waited for the lock
    run.discard()
    try:
        resolved = _resolve(recipe, overrides, run)
        table = data if isinstance(data, Table) else load_table(resolved, data, root)
        setup = set_up(resolved, table)
        return setup, _begin(run, setup)
    except BaseException:
        run.discard()
        raise


def _resolve(recipe: str | os.PathLike[str] | Recipe | Classifier, overrides: dict[str, Any], run: RunFolder) -> Recipe:
    """Return the recipe with its overrides; a model that is given is saved to the folder, where a resume finds it."""
    if isinstance(recipe, Classifier):
        initial = recipe.save_pretrained(run.path / INITIAL)
        return Recipe.load("table").with_(
            **{"model.name": f"local-dir:{initial.absolute()}", "model.pretrained": False, **overrides}
        )
    if isinstance(recipe, EngineModel):
        raise refuse_engine(recipe, "train")
    return with_absolute_model((recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)).with_(**overrides))


def with_absolute_model(recipe: Recipe) -> Recipe:
    """Return the recipe with the complete path of a model in a folder: a resume may be started in another folder."""
    kind, _, folder = recipe.model.name.partition(":")
    return recipe.with_(**{"model.name": f"{kind}:{Path(folder).absolute()}"}) if kind == "local-dir" else recipe


def _relocated(recipe: Recipe, run: RunFolder) -> Recipe:
    """Return the recipe with the model that was given as an object where the run's folder is now."""
    name, _, folder = recipe.model.name.partition(":")
    if name == "local-dir" and Path(folder).name == INITIAL and (run.path / INITIAL).is_dir():
        return recipe.with_(**{"model.name": f"local-dir:{(run.path / INITIAL).absolute()}"})
    return recipe


def _begin(run: RunFolder, setup: Setup, known: Collection[str] = ()) -> int:
    """Write what a resume needs, ``run.json`` last, as it makes the folder a run; return the number of threads."""
    for note in (note for note in setup.notes if note not in known):
        log.info("note: %s", note)
    run.write("recipe.yaml", setup.recipe.to_yaml())
    digest = run.write_data(setup)
    run.figures.mkdir(exist_ok=True)
    setup.draw(
        run.figures / "train_batch.png", incidence=run.figures / "incidence.png",
        transforms=run.figures / "transforms.png",
    )  # fmt: skip
    environment = resolve_environment(setup.recipe.train, setup.model.input_spec.dims)
    run.update(
        medzoo=__version__,
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "lightning": metadata.version("lightning"),
        },
        command=sys.argv,
        began=_now(),
        recipe=setup.recipe.digest(),
        task=setup.table.task,
        source=setup.table.source,
        archive=setup.table.archive,
        split=setup.how,
        leaks_on_purpose=setup.split.leaks,
        caution=setup.caution,
        notes=list(setup.notes),
        case_sampled=setup.table.prevalence is not None,
        prevalence=dict(zip(setup.table.labels, setup.table.prevalence or (), strict=False)),
        data=digest,
        environment=environment.facts(),
        environment_why=list(environment.why),
    )
    return environment.threads


def _train(
    run: RunFolder,
    setup: Setup,
    callbacks: Sequence[pl.Callback],
    logger: Any,
    *,
    inexact: bool = False,
    threads: int | None = None,
) -> Run:
    """Train, from the last checkpoint if there is one, and write the results."""
    began, speeds = time.perf_counter(), []

    def phase(part: Setup, folder: Path) -> None:
        speed = Speed()
        speeds.append(speed)
        rows = EpochLog(folder, wait=lambda: speed.wait_seconds)
        progress = TrainingProgress(speed, workers=setup.recipe.train.workers, cache=setup.pixels.cache)
        every = [*callbacks, speed, rows, progress]
        fit(
            part, folder, callbacks=every, logger=logger, inexact=inexact, threads=threads, run=run.path
        )  # fmt: skip

    fit_phases(setup, run.path, phase)
    model, table = setup.model.eval(), setup.table
    model.set_outputs(labels=table.labels, task=table.task, prevalence=setup.prevalence())
    decided = decide(
        model, setup.recipe.decide, table, _predict(setup), prevalence=setup.prevalence(),
        loss_weights=setup.task.loss.relative_weights,
    )  # fmt: skip
    model.outputs = replace(model.outputs, caution=setup.caution)  # it stays with the model, wherever that is moved
    model.save_pretrained(run.model, trained_on=setup.describe_data(), metrics=decided.card_metrics(setup.caution))
    predictions = decided.predictions
    run.write_predictions("valid", table, model.outputs, predictions)
    baseline = _baseline(run, setup, inexact=inexact) if setup.recipe.decide.baseline else None
    try:
        validation_report(run, model, decided, baseline).save(run.path / "report.html")
    except OSError as error:
        raise TrainError(
            f"{run.path / 'report.html'}: the report cannot be written ({error.strerror or error}). The model is in "
            f"{run.model}. Check permissions and free space, then resume the run."
        ) from error
    run.update(
        ended=_now(),
        seconds=round(time.perf_counter() - began, 1),
        samples_per_second=_rounded(speeds[-1].samples_per_second) if speeds else None,
        data_wait_share=_rounded(speeds[-1].data_wait_share) if speeds else None,
        decided=list(decided.notes),
    )
    mark_finished(run.path)
    return Run(model, run.read_log(), run.path, predictions)


def _baseline(run: RunFolder, setup: Setup, *, inexact: bool) -> Scores | None:
    """Train the same without the weights of the loss, on the same parts.

    Return its scores of the validation part before a calibration, ``None`` if the loss has no weights. One that was
    stopped continues.
    """
    if not setup.task.loss.relative_weights:
        return None
    own, table = RunFolder(run.path / "baseline"), setup.table
    if not is_finished(own.path):
        plain = setup.recipe.with_(**{"loss.balance": "none", "loss.weights": None, "decide.baseline": False})
        with_parts = replace(table, groups={**table.groups, PART: setup.split.part_of_rows()})
        train_setup(own, set_up(plain, with_parts, column=PART, how_split=setup.how), inexact=inexact)
    scores, calibration = own.predictions("valid"), own.weights().calibration
    return scores if calibration is None else undo_calibration(scores, calibration)


def _predict(setup: Setup) -> ValidationPredictions:
    """Return the predictions of the validation part by the model that is saved, in float32, and leave it on the CPU.

    Those of the last validation are not always there after a resume, and may be of another precision.
    """
    environment = resolve_environment(setup.recipe.train, setup.model.input_spec.dims)
    model, loader = setup.model.to(environment.device), setup.data.val_dataloader()
    with numeric_environment(environment, seed=0), torch.inference_mode():
        shards = [
            ValidationPredictions(batch.row, model(batch.image.to(environment.device)).float().cpu(), batch.target)
            for batch in loader
        ]
    loader.close()
    model.to("cpu")
    return merge_shards(shards)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)
