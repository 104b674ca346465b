"""``medzoo.reproduce``: the figures of a source, measured its way and honestly, on the same data and model.

A way of measuring is a training in a folder of its own, and the rows that its model is measured on. All trainings have
the same recipe, so the same model, augmentation, epochs and seeds; they differ in the split and in the labels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medzoo.extra import require_train_extra

require_train_extra()  # before the imports that would fail with the name of one package

from medzoo.data.permute import permute_labels
from medzoo.data.pixels import PixelStore
from medzoo.data.split import PartName, Split, leaking_split
from medzoo.data.table import Table
from medzoo.errors import ConfigError
from medzoo.evaluation.openings import fingerprint_of, record_opening
from medzoo.evaluation.run_record import PART
from medzoo.evaluation.score_table import score_table
from medzoo.evaluation.scores import Scores
from medzoo.factory import create
from medzoo.training.environment import resolve_environment
from medzoo.training.facts import differences, flat
from medzoo.training.folder import is_finished
from medzoo.training.looks import Looks, read_looks
from medzoo.training.recipe import ProtocolSection, Recipe
from medzoo.training.reproduce_figures import best_look, figure_rows
from medzoo.training.reproduce_ways import WAYS, Measured
from medzoo.training.reproduction import Reproduction
from medzoo.training.run import train_setup, with_absolute_model
from medzoo.training.run_folder import RunFolder
from medzoo.training.setup import LEAKS, Setup, set_up
from medzoo.training.source import load_table

__all__ = ["reproduce"]

log = logging.getLogger("medzoo")

# What would make one way of measuring differ from another by more than its split and labels, choose something on the
# rows that are measured, or move what a probability of 0.5 is.
SAME = {
    "stop_after": None, "decide.calibrate": "none", "decide.baseline": False, "decide.threshold": "fixed 0.5",
    "decide.prevalence": "sample",
}  # fmt: skip
PERMUTED = "Its labels are permuted, for medzoo.reproduce: there was nothing to learn, and its outputs mean nothing."
RunName = Literal["honest", "as_published", "permuted_as_published", "permuted_honest"]


def reproduce(
    recipe: str | os.PathLike[str] | Recipe,
    data: Table | str | os.PathLike[str],
    *,
    to: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> Reproduction:
    """Measure a recipe as its source did and honestly, on the same data, and with labels that are dealt by chance.

    ``source.protocol`` of the recipe states how the source measured: on its training rows, on a split that shares
    patients, at the best of many epochs. The honest figure is that of the last epoch on the test part of the recipe's
    own split by patient, or on its validation part where it has no test part: with neither early stopping nor a
    calibration or threshold nothing is chosen on those rows. Yes/no figures are at a probability of 0.5, as sources
    have them; of a table that was sampled by class that is a probability in the sample, not in the population. The
    same is repeated with permuted labels (:func:`medzoo.data.permute.permute_labels`): what the way of the source shows
    then, it shows of anything.

    Each way is a run in a folder of its own: ``honest``, ``as_published``, ``permuted_as_published`` and
    ``permuted_honest``; where the source split by patient as the recipe does, its figures are those of the honest runs.
    Call it again after a stop, and it continues. Runs that are not honest are refused by :func:`medzoo.evaluate`.

    Args:
        recipe: the name of a recipe of the package, a YAML file, or a :class:`Recipe`, with ``source.protocol``.
        data: a table, or what it is made from by the recipe, as in :func:`medzoo.train`.
        to: the folder: new, empty, or of the same reproduction. It gets the runs and ``reproduction.csv``,
            ``reproduction.json``, ``reproduction.html`` and ``reproduction.png``.
        root: folder of the images that a CSV file names; ``None`` is that of the file.
        **overrides: fields of the recipe, as in :func:`medzoo.train`; they hold for every run.

    Raises:
        ConfigError: a recipe that does not state how its source measured, or that cannot be, or another folder.
        DataError: the table or its images cannot be used, or the recipe's own split leaks.
        TrainError: a training cannot continue, or was stopped by a signal.
    """
    resolved, protocol = _comparable(recipe, overrides)
    folder = _checked(Path(to))
    _check_same(folder, resolved)
    table = data if isinstance(data, Table) else load_table(resolved, data, root)
    honest = set_up(resolved, table)
    published = honest if _splits_alike(resolved, protocol) else _as_published(resolved, protocol, honest)
    distinct = published is not honest
    permuted = permute_labels(table, seed=resolved.train.seed)
    names: tuple[RunName, ...] = ("honest", "as_published", "permuted_as_published", "permuted_honest")
    runs = {name: name if distinct else name.replace("as_published", "honest") for name in names}
    part: PartName = "test" if len(honest.split.test) else "valid"
    found: dict[str, Measured] = {}
    known: set[str] = set()
    steps: list[tuple[str, Callable[[], Setup]]] = [
        ("honest", lambda: honest),
        ("as_published", lambda: published),
        ("permuted_as_published", partial(_with_permuted_labels, published, permuted)),
        ("permuted_honest", partial(_with_permuted_labels, honest, permuted)),
    ]
    steps = [step for step in steps if distinct or "as_published" not in step[0]]
    for number, (name, make) in enumerate(steps, 1):
        run, setup = RunFolder(folder / name), make()
        verb = "measuring" if is_finished(run.path) else "training"
        log.info("%s %d of %d: %s", verb, number, len(steps), WAYS[name])
        train_setup(run, setup, callbacks=[Looks()], known=known)
        known |= set(setup.notes)
        for way in (way for way in names if runs[way] == name):
            honestly = way.endswith("honest")
            where = ("last", part) if honestly else (protocol.epoch, protocol.measured_on)
            found[way] = _measure(way, run, setup, *where, protocol.figures[0])
    notes = [*_notes(table, permuted, part, resolved), *_opened(found["honest"], honest)]
    return Reproduction(
        recipe=resolved,
        ways=tuple(found[name] for name in WAYS),
        figures=figure_rows(found, protocol, resolved.source.claim, sampled=table.prevalence is not None),
        notes=tuple(notes),
        folder=folder,
    ).write()


def _comparable(recipe: str | os.PathLike[str] | Recipe, overrides: dict[str, Any]) -> tuple[Recipe, ProtocolSection]:
    """Return the recipe of every run, and how its source measured."""
    given = (recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)).with_(**overrides)
    if given.source.protocol is None:
        raise ConfigError(
            f"recipe {given.name}: expected source.protocol, how its source measured, got none, so that there is "
            "nothing to reproduce. State it, such as protocol: {split: row, measured_on: valid, figures: [auroc]}."
        )
    return with_absolute_model(given.with_(**SAME)), given.source.protocol


def _checked(folder: Path) -> Path:
    """Return the folder, if it is new, empty, or of a reproduction."""
    if folder.is_dir():
        held = {path.name for path in folder.iterdir()}
        if not held or "honest" in held:
            return folder
        raise ConfigError(f"reproduce: {folder} holds something else. Choose a new or an empty folder.")
    if folder.exists():
        raise ConfigError(f"reproduce: expected a new or an empty folder, got the file {folder}.")
    return folder


def _check_same(folder: Path, recipe: Recipe) -> None:
    """Raise ConfigError where a reproduction by another recipe was begun in the folder, before anything is read."""
    begun = RunFolder(folder / "honest")
    if not (begun.path / "run.json").exists() or begun.facts().get("recipe") == recipe.digest():
        return
    found: list[str] = []
    if (written := begun.path / "recipe.yaml").is_file():
        found = differences(flat(Recipe.load(written).effective()), flat(recipe.effective()))
    raise ConfigError(
        f"reproduce: {folder} holds another reproduction than this one: {'; '.join(found) or 'its recipe is another'}. "
        "Give what was given before, or choose another folder."
    )


def _splits_alike(recipe: Recipe, protocol: ProtocolSection) -> bool:
    """Whether the source split as the recipe does, so that its runs are the honest ones."""
    return protocol.split == "patient" and protocol.shares in (None, recipe.split.shares)


def _as_published(recipe: Recipe, protocol: ProtocolSection, honest: Setup) -> Setup:
    """Return the setup of the source's split."""
    shares = protocol.shares or recipe.split.shares
    if protocol.split == "patient":
        own = {"split.shares": shares, "split.column": None, "split.folds": None, "split.leave_out": None}
        return set_up(recipe.with_(**own), honest.table, pixels=honest.pixels)

    def split(pixels: PixelStore) -> Split:
        return leaking_split(
            honest.table, column=protocol.column, shares=shares, seed=recipe.split.seed, pixels=pixels
        )  # fmt: skip

    return set_up(recipe, honest.table, pixels=honest.pixels, split=split)


def _with_permuted_labels(of: Setup, permuted: Table) -> Setup:
    """Return the setup with the same rows in the same parts, and permuted labels."""
    table = replace(permuted, groups={**permuted.groups, PART: of.split.part_of_rows()})
    if of.split.leaks:
        split = partial(_same_parts, table)
        made = set_up(of.recipe, table, how_split=of.how, pixels=of.pixels, split=split)
    else:
        made = set_up(of.recipe, table, column=PART, how_split=of.how, pixels=of.pixels)
    return replace(made, caution=" ".join(filter(None, [PERMUTED, LEAKS * of.split.leaks])))


def _same_parts(table: Table, pixels: PixelStore) -> Split:
    return leaking_split(table, column=PART, pixels=pixels)


def _measure(name: str, run: RunFolder, setup: Setup, epoch: str, part: PartName, first: str) -> Measured:
    """Return the scores of one way: those of the saved model, or of the best epoch by the first figure."""
    table, rows, looks, at, digest = setup.table, setup.split.part(part).rows, None, len(run.read_log()), ""
    if epoch == "best":
        every = read_looks(run.path, table)
        at, looks = best_look([_at_half(scores) for scores in every], first), len(every)
        scores = every[at - 1]
    else:
        model = create(f"local-dir:{run.model}").eval()
        digest = "" if model.load_report is None else model.load_report.digest
        device = resolve_environment(setup.recipe.train, model.input_spec.dims).device
        title = f"measuring {WAYS[name]}"
        scores = score_table(model, table, pixels=setup.pixels, rows=rows, device=device, title=title)
    return Measured(
        name=name,
        # Whoever ignores patients in the split ignores them in the interval.
        scores=replace(_at_half(scores), patients=None if setup.split.leaks else scores.patients),
        patients=None if table.patients is None else len(np.unique(table.patients[rows])),
        run=run.path.name,
        split=setup.how,
        part=part,
        leaks=setup.split.leaks,
        shared=_shared_patients(setup, part),
        trained=len(setup.split.train),
        epoch=at,
        looks=looks,
        digest=digest,
    )


def _at_half(scores: Scores) -> Scores:
    """Return the scores with a threshold of 0.5 for each output."""
    return replace(scores, thresholds=() if scores.task == "multiclass" else (0.5,) * len(scores.labels))


def _shared_patients(setup: Setup, part: PartName) -> int | None:
    """Return how many patients of a part have rows in the training part too; ``None`` where they are not known."""
    patients = setup.table.patients
    if patients is None:
        return None
    train, measured = (patients[setup.split.part(name).rows] for name in ("train", part))
    return len(np.intersect1d(train, measured))


def _opened(honest: Measured, setup: Setup) -> list[str]:
    """Count the measurement of a test part among those of the same data on this machine."""
    if honest.part != "test":
        return []
    identities = setup.pixels.identities.pixels[setup.split.test.rows]
    opened = record_opening(fingerprint_of(honest.scores, identities), honest.digest, "test")
    return [] if opened is None else [f"the honest figures open the test part: {opened}"]


def _notes(table: Table, permuted: Table, part: PartName, recipe: Recipe) -> list[str]:
    """Return what a reader of the table should know."""
    found = [
        "all runs have the same model, augmentation, number of epochs and seeds; early stopping, calibration and "
        "chosen thresholds of the recipe are off in all of them",
        permuted.notes[-1],
        "each kind was trained once: how much another train.seed changes a figure is not in its interval",
    ]
    if part == "valid":
        found.append(
            "the recipe has no test part: the honest figures are of the validation part, on which nothing was chosen"
        )
    if table.patients is None:
        found.append("patients are not known: the honest split is by image, and may share patients too")
    if table.prevalence is not None:
        found.append(
            "the rows were sampled by class, and the models are not shifted to the population: a probability of 0.5 is "
            "one in this sample, and all figures at 0.5, as well as accuracy, exact match and precision, are of it"
        )
    if recipe.source.protocol is not None and "precision" in recipe.source.protocol.figures and len(table.labels) > 1:
        found.append("the precision of a label that is never called positive counts as 0, as in scikit-learn")
    return found
