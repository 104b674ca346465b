"""Frozen features: the encoder runs once per row, and the head is trained on its outputs; then, the whole model.

Axes: n rows, c channels, s the spatial axes of the encoder's last map.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from medzoo.atomic import write_atomically
from medzoo.classifier import Classifier
from medzoo.data.pixels import PixelStore
from medzoo.data.split import Part
from medzoo.errors import ConfigError, TrainError
from medzoo.progress import track
from medzoo.training.datamodule import ImageDataModule
from medzoo.training.environment import resolve_environment
from medzoo.training.recipe import Recipe
from medzoo.training.setup import Setup, make_task

__all__ = ["FeatureStore", "fit_phases", "phase_setup", "phases"]

GIB = 1 << 30


class AsTheyAre:
    """Stands in for a transform: features are not normalised."""

    def normalise(self, x: Tensor) -> Tensor:
        """Return the features."""
        return x


class FeatureStore:
    """The outputs of a frozen encoder for the rows of some parts; it takes the place of a ``PixelStore``.

    ``read`` returns what ``model.forward_head`` takes: the last map, or its mean over the spatial axes where the head
    starts with that mean, in float32. Images are not augmented: a row has one output.

    It is computed when it is made, by the model in eval mode, and does not follow the encoder's weights afterwards. It
    can be pickled to the workers of a loader; a file is then mapped again, not copied.

    Args:
        model: its encoder computes the features, on the device of its parameters.
        pixels: the images.
        parts: the rows, such as ``split.train, split.valid``.
        folder: of the file that holds the features if they are larger than ``memory``; ``None`` is a temporary folder.
        memory: bytes up to which the features stay in memory.
        batch_size: images that go through the encoder at a time.

    Attributes:
        nbytes: size of the features.
        shape: of one row, ``c *s``.

    Raises:
        ConfigError: the model has no head, or there are no rows.
    """

    def __init__(
        self,
        model: Classifier,
        pixels: PixelStore,
        *parts: Part,
        folder: Path | None = None,
        memory: int = GIB,
        batch_size: int = 16,
    ) -> None:
        rows = np.unique(np.concatenate([part.rows for part in parts])) if parts else np.empty(0, np.int64)
        if model.num_classes == 0 or not len(rows):
            raise ConfigError(f"{model.name}: expected a model with a head and rows to compute features of.")
        self.table, self.transform = pixels.table, AsTheyAre()
        self._position = np.full(len(pixels.table), -1)
        self._position[rows] = np.arange(len(rows))
        self._path: Path | None = None
        self._values: NDArray[np.float32] | None = None
        done = 0
        for features in track_batches(features_of(model, pixels, rows, batch_size), math.ceil(len(rows) / batch_size)):
            if self._values is None:
                self.shape = tuple(features.shape[1:])
                self.nbytes = len(rows) * math.prod(self.shape) * 4
                self._values = self._reserve((len(rows), *self.shape), folder, memory)
            self._values[done : done + len(features)] = features.numpy()
            done += len(features)

    def read(self, row: int) -> Tensor:
        """Return the features of a row of the table, ``c *s`` float32.

        Raises:
            ConfigError: the row is in none of the parts.
        """
        position = int(self._position[row])
        if position < 0:
            raise ConfigError(f"FeatureStore: row {row} (from 0) is in none of the parts that it was made from.")
        if self._values is None:
            assert self._path is not None  # noqa: S101  # without values it was unpickled, and has a file
            self._values = np.memmap(self._path, np.float32, "r", shape=(int(self._position.max()) + 1, *self.shape))
        return torch.from_numpy(np.array(self._values[position]))

    def _reserve(self, shape: tuple[int, ...], folder: Path | None, memory: int) -> NDArray[np.float32]:
        if self.nbytes <= memory:
            return np.empty(shape, np.float32)
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="medzoo-features-"))
            # With this store alone: what a worker unpickles has no finalizer.
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "features.f32"
        return np.memmap(self._path, np.float32, "w+", shape=shape)

    def __getstate__(self) -> dict[str, Any]:
        # A mapped array would be pickled as a copy.
        return self.__dict__ if self._path is None else dict(self.__dict__, _values=None)


def features_of(model: Classifier, pixels: PixelStore, rows: NDArray[np.int64], batch_size: int) -> Iterator[Tensor]:
    """Yield what ``model.forward_head`` takes for the rows, in batches ``b c *s`` on the CPU; the mode is restored."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        for start in range(0, len(rows), batch_size):
            images = [pixels.transform.normalise(pixels.read(int(row))) for row in rows[start : start + batch_size]]
            with torch.inference_mode():
                maps = model.forward_features(torch.stack(images).to(device))
                if not model.head.flattens:
                    # The mean of a mean over one position is the mean itself.
                    maps = model.head.pool(maps).reshape(*maps.shape[:2], *[1] * (maps.ndim - 2))
            yield maps.float().cpu()
    finally:
        model.train(training)


def track_batches(batches: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    """Yield the batches, with a progress bar."""
    for _ in track(range(count), "computing features"):
        yield next(batches)
    batches.close()  # type: ignore[attr-defined]  # a generator, which restores the mode


def phases(recipe: Recipe) -> tuple[Recipe, ...]:
    """Return the recipe of each phase: one, or with ``train.then`` the frozen training and that of all weights.

    The second has ``then_epochs`` epochs, by default as many as the first, and the learning rate ``then_lr``, by
    default a tenth of the first. Features are those of images without augmentation, which applies to the second alone.
    """
    how = recipe.train
    if how.then is None:
        return (recipe,)
    alone = {"then": None, "then_epochs": None, "then_lr": None}
    lr = how.then_lr if how.then_lr is not None else recipe.optimizer.lr / 10
    first = recipe.model_copy(update={"train": how.model_copy(update=alone)})
    if how.freeze == "features":
        first = first.model_copy(update={"augment": type(recipe.augment)()})
    second = recipe.model_copy(
        update={
            "train": how.model_copy(update={**alone, "freeze": "none", "epochs": how.then_epochs or how.epochs}),
            "optimizer": recipe.optimizer.model_copy(update={"lr": lr}),
        }
    )
    return first, second


def phase_setup(setup: Setup, recipe: Recipe, *, folder: Path | None = None) -> Setup:
    """Return the setup of one phase: the model, table and split of ``setup``, and loaders and a task of their own.

    Args:
        setup: its loaders are those of images, with the recipe's augmentation.
        recipe: one of :func:`phases`.
        folder: where features that do not fit into memory are kept.
    """
    how, model = recipe.train, setup.model
    model.freeze_encoder(how.freeze != "none")
    data = setup.data
    if how.freeze == "features":
        model.to(resolve_environment(how, model.input_spec.dims).device)
        store = FeatureStore(model, setup.pixels, setup.split.train, setup.split.valid, folder=folder)
        pixels = cast(PixelStore, store)
        data = ImageDataModule(setup.split, pixels, batch_size=how.batch, seed=how.seed, workers=how.workers)
    return replace(setup, recipe=recipe, data=data, task=make_task(recipe, model, setup.split))


def fit_phases(setup: Setup, folder: Path, fit: Callable[[Setup, Path], object]) -> None:
    """Run every phase of a recipe; call it again to resume.

    The only phase, or the last one, writes to ``folder`` itself, and the one before to ``folder/frozen``. When that one
    ends, the weights are kept in ``folder/frozen/model.safetensors``, from which a resumed training continues without
    computing features or training the head again.

    Args:
        setup: of the whole recipe.
        folder: of the run.
        fit: trains a setup to its end, or continues from what the folder holds, such as
            :func:`medzoo.training.fit.fit` with callbacks.

    Raises:
        TrainError: the weights of a phase that ended cannot be written, or do not fit the model.
    """
    recipes = phases(setup.recipe)
    for number, recipe in enumerate(recipes):
        last = number == len(recipes) - 1
        here = folder if last else folder / "frozen"
        ended = here / "model.safetensors"
        if not last and ended.exists():
            load_phase(setup.model, ended)
            continue
        phase = phase_setup(setup, recipe, folder=folder / "features")
        fit(phase, here)
        shutil.rmtree(folder / "features", ignore_errors=True)
        if not last:
            try:
                write_atomically(ended, save(dict(setup.model.state_dict())))
            except OSError as error:
                raise TrainError(
                    f"{ended}: the weights of the frozen training cannot be written ({error.strerror or error}). Free "
                    "some space and resume: its checkpoints are there."
                ) from error


def load_phase(model: Classifier, path: Path) -> None:
    """Load the weights that a phase ended with."""
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:
        raise TrainError(
            f"{path}: the weights of the frozen training cannot be loaded ({error}). Delete the file to train that "
            "part again."
        ) from error
