"""``set_up``: from a recipe and a table to everything a training needs, once, for ``train``, ``check`` and ``resume``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from medzoo.classifier import Classifier
from medzoo.data.pixels import PixelStore
from medzoo.data.split import Split, choose_split, split_from_column
from medzoo.data.table import Table
from medzoo.factory import create
from medzoo.registry import describe
from medzoo.training.datamodule import ImageDataModule
from medzoo.training.recipe import Recipe
from medzoo.training.task import ClassificationTask
from medzoo.transforms.augment import Augmentation, Augmenter
from medzoo.transforms.transform import transform

__all__ = ["Setup", "set_up"]


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
    """

    recipe: Recipe
    table: Table
    model: Classifier
    pixels: PixelStore
    split: Split
    data: ImageDataModule
    task: ClassificationTask


def set_up(recipe: Recipe, table: Table) -> Setup:
    """Build the model, read the pixels, choose the split, and make loaders and task."""
    model = build_model(recipe, table)
    pixels = PixelStore(table, transform(model), cache=recipe.data.cache)
    split = make_split(recipe, table)
    assert model.preprocessing is not None  # noqa: S101  # create gives one
    augmenter = Augmenter(Augmentation(flip=tuple(recipe.augment.flip)), model.preprocessing)
    how = recipe.train
    data = ImageDataModule(split, pixels, batch_size=how.batch, augmenter=augmenter, seed=how.seed, workers=how.workers)
    task = ClassificationTask(model.train(), optimizer=recipe.optimizer, schedule=recipe.schedule, freeze=how.freeze)
    return Setup(recipe, table, model, pixels, split, data, task)


def build_model(recipe: Recipe, table: Table) -> Classifier:
    """Return the model with one output for each label of the table."""
    options: dict[str, Any] = dict(recipe.model.options)
    # A network of one size is built for it.
    if recipe.data.size is not None and "size" in _builder_options(recipe.model.name):
        options.setdefault("size", recipe.data.size)
    model = create(
        recipe.model.name,
        pretrained=recipe.model.pretrained,
        in_chans=recipe.model.in_chans,
        labels=table.labels,
        task=table.task,
        **options,
    )
    how = recipe.data
    if how.size is not None and model.preprocessing is not None:
        size = (how.size,) * model.input_spec.dims if isinstance(how.size, int) else tuple(how.size)
        model.preprocessing = replace(model.preprocessing, size=size)
    return model


def _builder_options(name: str) -> Mapping[str, Any]:
    """Return the options of a registered model; none for a folder or a repository, whose options are saved."""
    return {} if name.startswith(("local-dir:", "hf-hub:")) else describe(name).options


def make_split(recipe: Recipe, table: Table) -> Split:
    """Return the split that the recipe asks for."""
    how = recipe.split
    if how.column is not None:
        return split_from_column(table, how.column, on_leak=how.on_leak)
    return choose_split(table, shares=how.shares, seed=how.seed, on_leak=how.on_leak)
