"""``set_up``: from a recipe and a table to everything a training needs, for ``train``, ``check`` and ``resume``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from medzoo.classifier import Classifier
from medzoo.contract import Preprocessing
from medzoo.data.known_data import seen_before
from medzoo.data.leak import check_patients
from medzoo.data.pixels import PixelStore
from medzoo.data.split import Split, choose_split, column_of, folds, leave_out, split_from_column
from medzoo.data.table import Table
from medzoo.errors import ConfigError
from medzoo.evaluation.rules import rules_for
from medzoo.factory import create
from medzoo.registry import describe
from medzoo.training.check_counts import count_part
from medzoo.training.datamodule import ImageDataModule
from medzoo.training.environment import resolve_environment
from medzoo.training.incidence import draw_incidence
from medzoo.training.losses import loss_from_recipe
from medzoo.training.recipe import PREPROCESSING_FIELDS, DataSection, Recipe
from medzoo.training.task import ClassificationTask
from medzoo.transforms.augment import Augmentation, Augmenter, check_augmentation
from medzoo.transforms.transform import transform
from medzoo.visual.show_transforms import draw_batch, draw_changes
from medzoo.warn import warn

__all__ = ["LEAKS", "Setup", "builder_options", "make_task", "preprocessing_changes", "set_up"]

LEAKS = "Its split leaks on purpose, for medzoo.reproduce: no figure of it says anything about new patients."
"""The caution of a run whose split is :func:`~medzoo.data.split.leaking_split`."""


@dataclass(frozen=True, eq=False)
class Setup:
    """Everything a training needs.

    Attributes:
        recipe: the resolved recipe.
        table: the checked table.
        model: the model, with one output for each label.
        pixels: the preprocessed images.
        split: the disjoint parts.
        data: the loaders.
        task: the module that Lightning trains.
        how: how the split was made, in words.
        notes: what a person should know about the data, the split, the augmentation and the weights.
        caution: why figures of the run say nothing about new patients; empty for every run but those of
            :func:`medzoo.reproduce` that are not honest.
    """

    recipe: Recipe
    table: Table
    model: Classifier
    pixels: PixelStore
    split: Split
    data: ImageDataModule
    task: ClassificationTask
    how: str
    notes: tuple[str, ...] = ()
    caution: str = ""

    def prevalence(self) -> tuple[float, ...]:
        """Return the share of positives among the known targets of the training part, one for each label."""
        targets = self.table.targets[self.split.train.rows]
        known = np.maximum(1, (~np.isnan(targets)).sum(0))
        return tuple((np.nansum(targets, 0) / known).tolist())

    def draw(self, out: Path, *, incidence: Path, transforms: Path) -> tuple[Path, ...]:
        """Draw what the network sees first, the labels of each part, and each transform of the augmentation.

        The place of the training loader does not move. Rows have numbers, and no patient.

        Args:
            out: picture of the first batch.
            incidence: picture of the labels.
            transforms: picture of its first image with each transform; not drawn where nothing is augmented.

        Returns:
            The pictures that were written.

        Raises:
            ConfigError: one cannot be written.
        """
        loader = self.data.train_loader
        keys = loader.batches()[0]
        draw_batch(default_collate([loader.rows[key] for key in keys]), self.pixels.transform, self.table.labels, out)
        parts = [count_part(part) for part in (self.split.train, self.split.valid, self.split.test)]
        draw_incidence(parts, self.table.labels, incidence)
        if loader.rows.augmenter is None:
            return out, incidence
        row = int(self.split.train.rows[keys[0][1]])
        draw_changes(self.pixels.read(row), loader.rows.augmenter, f"row {row}, not augmented", transforms)
        return out, incidence, transforms

    def describe_data(self) -> str:
        """Return the training data in a sentence, without a path."""
        counts = self.split.counts()
        patients = f" of {counts['patients'][0]:,} patients" if "patients" in counts else ""
        return f"{counts['rows'][0]:,} images{patients}, by the recipe {self.recipe.name!r}; split {self.how}" + (
            f". {self.caution}" if self.caution else ""
        )


def set_up(
    recipe: Recipe, table: Table, *, column: str | None = None, how_split: str | None = None,
    pixels: PixelStore | None = None, split: Callable[[PixelStore], Split] | None = None,
) -> Setup:  # fmt: skip
    """Build the model, read the pixels, choose the split, and make loaders and task.

    The initial weights of the model, where they are random, follow from ``train.seed``; PyTorch's global random numbers
    are left as they were.

    Args:
        recipe: the recipe.
        table: the table.
        column: one of ``table.groups`` with the part of each row, instead of the split of the recipe; for a resume.
        how_split: how that split was made, in words.
        pixels: the images of these rows, preprocessed for this recipe; ``None`` reads them.
        split: makes the split from the images, instead of the recipe.

    Raises:
        ConfigError: the model, the split or the augmentation cannot be.
        DataError: images that cannot be read, or a patient or an image in two parts.
    """
    how = recipe.train
    rules_for(table.labels, recipe.decide.threshold)  # raises for a label that there is not
    check_patients(table, recipe.data.patient_groups)  # before the images are read, which may take long
    if (given := column or recipe.split.column) is not None:
        column_of(table, given, " Name another one, or set split.column=null to divide the patients at random.")
    for name in recipe.split.leave_out or ():
        column_of(table, name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(how.seed)
        model = build_model(recipe, table)
    resolve_environment(how, model.input_spec.dims)
    augmentation = Augmentation(**recipe.augment.model_dump())
    notes = check_augmentation(augmentation, table.labels)
    assert model.preprocessing is not None  # noqa: S101  # create gives one
    augmenter = None if augmentation == Augmentation() else Augmenter(augmentation, model.preprocessing)
    pixels = pixels or PixelStore(
        table,
        transform(model),
        cache=recipe.data.cache,
        quota_gb=recipe.data.cache_quota_gb,
        unreadable=recipe.data.unreadable,
        allow_mismatch=recipe.data.allow_mismatch,
    )
    parts = make_split(recipe, table, pixels, column) if split is None else split(pixels)
    if how.batch > len(parts.train):
        raise ConfigError(
            f"train.batch: expected at most the {len(parts.train):,} rows of the train part, got {how.batch}. Give "
            f"train.batch={len(parts.train)} or less."
        )
    if column is None and split is None and not (recipe.split.column or recipe.split.leave_out or recipe.split.folds):
        _warn_of_parts(table)
    data = ImageDataModule(parts, pixels, batch_size=how.batch, augmenter=augmenter, seed=how.seed, workers=how.workers)
    task = make_task(recipe, model, parts)
    trained_on = model.load_report.trained_on if model.load_report is not None else ""
    seen = seen_before(trained_on, f"{table.source} {recipe.name} {recipe.source.reference}")
    found = tuple(filter(None, (*table.notes, *pixels.notes, *parts.notes, *notes, seen)))
    return Setup(recipe, table, model, pixels, parts, data, task, how_split or parts.how, found, LEAKS * parts.leaks)


def make_task(recipe: Recipe, model: Classifier, split: Split) -> ClassificationTask:
    """Return the task of a recipe, with the model in training mode and weights of the loss from the training part."""
    return ClassificationTask(
        model.train(),
        loss=loss_from_recipe(recipe.loss, split.table.task, split.train),
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        freeze=recipe.train.freeze,
        batchnorm=recipe.train.batchnorm,
    )


def _warn_of_parts(table: Table) -> None:
    """Warn where data has parts of its own, as a folder of train and test has, and another split is drawn."""
    given = table.groups.get("split")
    if given is not None and {"train", "test"} & {str(value).lower() for value in np.unique(given)}:
        warn(
            f"{table.source}: it has parts of its own, column 'split', which are not used. Set split.column=split to "
            "use them."
        )


def build_model(recipe: Recipe, table: Table) -> Classifier:
    """Return the model with one output for each label of the table, and the preprocessing of the recipe."""
    options: dict[str, Any] = dict(recipe.model.options)
    if recipe.data.size is not None and "size" in builder_options(recipe.model.name):
        options.setdefault("size", recipe.data.size)  # a network of one size is built for it
    common: dict[str, Any] = {
        "pretrained": recipe.model.pretrained, "in_chans": recipe.model.in_chans, **options,
    }  # fmt: skip
    if recipe.model.name.startswith(("local-dir:", "hf-hub:")):
        model = create(recipe.model.name, **common)
        if model.outputs.caution:
            raise ConfigError(
                f"{recipe.model.name}: expected a model that says something about new patients, to start from. "
                f"{model.outputs.caution} Take the honest run of its reproduction."
            )
        if (model.outputs.labels, model.outputs.task) != (table.labels, table.task):
            model.reset_classifier(len(table.labels))
            model.set_outputs(labels=table.labels, task=table.task, trained=False)
    else:
        model = create(recipe.model.name, labels=table.labels, task=table.task, **common)
    assert model.preprocessing is not None  # noqa: S101  # create gives one
    model.preprocessing = _preprocessing(model.preprocessing, recipe.data, model.name)
    if not model.input_spec.fits(model.preprocessing.size):
        raise ConfigError(
            f"data.size: {model.name} takes {model.input_spec}, got {model.preprocessing.size}. A model that is built "
            "for one size takes it as model.options.size."
        )
    return model


def builder_options(name: str) -> Mapping[str, Any]:
    """Return the options of a registered model; none for a folder or a repository, whose options are saved."""
    return {} if name.startswith(("local-dir:", "hf-hub:")) else describe(name).options


def preprocessing_changes(how: DataSection) -> dict[str, Any]:
    """Return what a recipe replaces in the model's preprocessing; ``size`` as it was given, a number or sides."""
    changes = {name: getattr(how, name) for name in PREPROCESSING_FIELDS if getattr(how, name) is not None}
    if changes.get("intensity", "window") != "window":
        changes["window"] = None
    if "patch" in changes:
        changes |= {"spacing": None, "foreground": False}
    return changes if how.size is None else {**changes, "size": how.size}


def _preprocessing(own: Preprocessing, how: DataSection, who: str) -> Preprocessing:
    """Return the model's preprocessing with what the recipe replaces."""
    changes = preprocessing_changes(how)
    if how.size is not None:
        dims = len(own.size)
        size = (how.size,) * dims if isinstance(how.size, int) else tuple(how.size)
        if len(size) != dims:
            raise ConfigError(f"data.size: {who} takes {dims} sides, got {len(size)}: {size}.")
        changes["size"] = size
    return replace(own, **changes)


def make_split(recipe: Recipe, table: Table, pixels: PixelStore, column: str | None = None) -> Split:
    """Return the split that the recipe asks for, or that ``column`` gives."""
    how = recipe.split
    common: dict[str, Any] = {
        "seed": how.seed, "draws": how.draws, "patient_groups": recipe.data.patient_groups, "pixels": pixels,
    }  # fmt: skip
    if column is not None:
        return split_from_column(table, column, patient_groups=recipe.data.patient_groups, pixels=pixels)
    if how.column is not None:
        return split_from_column(table, how.column, on_leak=how.on_leak, valid=how.shares[1], **common)
    if how.leave_out is not None:
        ((name, values),) = how.leave_out.items()
        return leave_out(table, name, values, on_leak=how.on_leak, valid=how.shares[1], **common)
    if how.folds is not None:
        return folds(table, how.folds, on_leak=how.on_leak, **common)[how.fold]
    return choose_split(table, shares=how.shares, **common)
