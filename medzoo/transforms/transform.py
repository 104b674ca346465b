"""``medzoo.transform``: from an image to the tensor a model takes, as its preprocessing defines, with a list of steps.

Axes: c channels, h w height width, d h w depth height width, s spatial axes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medzoo.contract import Preprocessing
from medzoo.errors import ConfigError, DataError, InputError
from medzoo.io.image import Image
from medzoo.io.options import ReadOptions
from medzoo.io.read import read_image
from medzoo.provenance import UNSTATED, IntendedUse
from medzoo.transforms.augment import Augmentation, Augmenter, check_augmentation
from medzoo.transforms.geometry import Geometry
from medzoo.transforms.pixel_statistics import PixelStatistics, as_float32
from medzoo.transforms.plausibility import implausible_input, implausible_values
from medzoo.transforms.resample import crop_patch, join_values, resample_image, resample_volume
from medzoo.transforms.suitability import check_kind
from medzoo.warn import deprecated_alias, warn

if TYPE_CHECKING:
    from medzoo.features import CheckedModel
    from medzoo.inference.engine import EngineModel

__all__ = [
    "CheckedImage",
    "ImageSource",
    "ImplausibleValues",
    "Prepared",
    "Transform",
    "as_array",
    "not_an_image",
    "transform",
]

ImageSource = str | os.PathLike[str] | Image | NDArray[Any] | Tensor

_KIND = {2: "a 2D image", 3: "a 3D volume"}
_ADVICE = {
    2: "Choose a frame of it, such as medzoo.read(path, frame=0) of a DICOM or TIFF file, or use a model with dims=3.",
    3: "Give the complete series or volume, or use a model with dims=2; see medzoo.list_models(dims=2).",
}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A tensor ready for a model, and how it was made.

    Attributes:
        tensor: ``c *s``, float32, without a batch axis.
        steps: what was done, in order.
        geometry: maps results back to the original grid.
        image: the image that was read.
        warning: why the values are implausible for the model, and what could not be checked; empty if there is nothing.
        mismatch: why the image is not of the kind the model is for, where that was allowed; empty if it is.
    """

    tensor: Tensor
    steps: tuple[str, ...]
    geometry: Geometry
    image: Image
    warning: str = ""
    mismatch: str = ""

    doubt = deprecated_alias("doubt", "warning", removed_in="0.2.0")


@dataclass(frozen=True, eq=False)
class CheckedImage:
    """An image that a transform read and checked as a whole.

    Attributes:
        image: what was read.
        label: its file, for messages.
        values: ``c *s`` float32, its axes in the order in memory that those of the image have.
        statistics: of the values.
        implausible: why its values are implausible for the model; empty if they are not.
        warning: what could not be checked.
        mismatch: why it is not of the kind the model is for, where that was allowed.
    """

    image: Image
    label: str
    values: Tensor
    statistics: PixelStatistics
    implausible: str
    warning: str
    mismatch: str


class WrongAxes(DataError):
    """A 2D image for a model of volumes, or the reverse."""

    reason = "wrong number of axes"


class WrongChannels(DataError):
    """An image with another number of channels than the model takes."""

    reason = "wrong number of channels"


class ImplausibleValues(DataError):
    """Values that cannot be right, or a header that leaves the kind of the image open, under ``strict``."""

    reason = "a warning, under strict"


def transform(model: CheckedModel | EngineModel, train: bool = False, augment: Augmentation | None = None) -> Transform:
    """Return the preprocessing of ``model``: a path, an image or an array ``(c, …)`` to a tensor.

    Args:
        model: from :func:`medzoo.create`, or :func:`medzoo.open_onnx`.
        train: change each image at random, after the intensity is scaled and before ``mean`` and ``std``.
        augment: the changes; ``None`` are those of :meth:`Augmentation.modest`. Only with ``train``.

    Raises:
        ConfigError: the model has no preprocessing; ``augment`` without ``train``, or one that changes what a label of
            the model states.
    """
    if augment is not None and not train:
        raise ConfigError(f"{model.name}: augment is for training. Set train=True, or leave it out.")
    if model.preprocessing is None:
        raise ConfigError(
            f"{model.name}: expected a model with preprocessing, got none. "
            "Make it with medzoo.create, or set model.preprocessing = medzoo.Preprocessing(...)."
        )
    augmenter = None
    if train:
        augment = Augmentation.modest(len(model.preprocessing.size)) if augment is None else augment
        outputs = getattr(model, "outputs", None)  # a feature extractor has none
        check_augmentation(augment, () if outputs is None else outputs.labels)
        augmenter = Augmenter(augment, model.preprocessing)
    return Transform(model.preprocessing, model.input_spec.channels, model.name, model.intended_use, augmenter)


@dataclass(frozen=True)
class Transform:
    """The preprocessing of one image; it can be pickled.

    Attributes:
        preprocessing: the steps.
        channels: channels of the tensor.
        who: the model's name, for messages.
        intended_use: what an image must not contradict.
        augmenter: changes the image in a call; the other methods never augment.
    """

    preprocessing: Preprocessing
    channels: int
    who: str
    intended_use: IntendedUse = UNSTATED
    augmenter: Augmenter | None = None

    def __call__(self, source: ImageSource, seed: int | None = None) -> Tensor:
        """Return the tensor ``c *s`` for a path, an image or an array ``(c, …)``.

        Args:
            source: the image.
            seed: of the augmentation; the same seed gives the same tensor. ``None`` draws one from PyTorch's global
                random numbers, which a ``DataLoader`` seeds differently in each worker and epoch.

        Raises:
            ConfigError: a seed for a transform without augmentation.
        """
        if self.augmenter is None:
            if seed is not None:
                raise ConfigError(f"{self.who}: a seed is for a transform with train=True. Leave it out.")
            return self._warn_or_raise(self.examine(source), strict=False).tensor
        found = self._warn_or_raise(self.pixels(source), strict=False)
        drawn = int(torch.randint(2**62, ())) if seed is None else seed
        return self.normalise(self.augmenter(found.tensor, drawn))

    def prepare(
        self,
        source: ImageSource,
        *,
        point: Sequence[float] | None = None,
        strict: bool = False,
        allow_mismatch: bool = False,
    ) -> Prepared:
        """Return the tensor, the steps taken and the geometry.

        Args:
            source: a path, an :class:`~medzoo.Image`, or an array or tensor ``(c, …)``. An array has no geometry:
                orientation and spacing are skipped. Its range is that of its integer type; of floats, [0, 1].
            point: for a patch model, the centre in mm, in RAS.
            strict: raise instead of warn when the values are implausible.
            allow_mismatch: accept an image that contradicts ``intended_use`` or the views; ``mismatch`` states how.

        Raises:
            WrongImage: a DataError; the modality, body part, age or view of the image is not what the model is for.
            DataError: a file that cannot be read, NaN, infinity, the wrong number of axes or channels, a point outside,
                or, with ``strict``, implausible values.
            InputError: neither path, image nor array.
            ConfigError: a patch model without a point, or a point for another.
        """
        return self._warn_or_raise(self.examine(source, point, allow_mismatch), strict)

    def examine(
        self, source: ImageSource, point: Sequence[float] | None = None, allow_mismatch: bool = False
    ) -> Prepared:
        """Return the same as :meth:`prepare`; implausible values only set ``warning``."""
        found = self.pixels(source, point, allow_mismatch)
        steps = list(found.steps)
        return replace(found, tensor=self._normalise(found.tensor, steps), steps=tuple(steps))

    def pixels(
        self, source: ImageSource, point: Sequence[float] | None = None, allow_mismatch: bool = False
    ) -> Prepared:
        """Return the same as :meth:`examine` before :meth:`normalise`: what is cached and augmented in training."""
        self.check_point(point)
        return self.pixels_of(self.check(source, allow_mismatch), point)

    def check(self, source: ImageSource, allow_mismatch: bool = False) -> CheckedImage:
        """Read an image and check it as a whole: once, however many patches :meth:`pixels_of` then cuts from it.

        Raises:
            WrongImage, DataError, InputError: as :meth:`prepare`.
        """
        how = self.preprocessing
        image = _as_image(source, self.who, self.channels)
        label = image.identity.get("file", "the array")
        self._check_dims(image, label)
        kind = check_kind(image, self.intended_use, how.views)
        error = kind.error(label, self.who, image.age)
        if error is not None and not allow_mismatch:
            raise error
        values = as_float32(image.array)
        statistics = PixelStatistics(image.array if image.array.dtype.itemsize <= 2 else values)
        if not math.isfinite(statistics.low) or not math.isfinite(statistics.high):
            raise DataError(
                f"{label}: expected finite values, got {int((~np.isfinite(values)).sum())} NaN or infinite."
            )
        x = torch.from_numpy(values)
        mismatch = f"{label}: {kind.mismatch(self.who)}" if error else ""
        implausible = implausible_values(x, statistics, image, how)
        return CheckedImage(image, label, x, statistics, implausible, kind.warning, mismatch)

    def pixels_of(self, checked: CheckedImage, point: Sequence[float] | None = None) -> Prepared:
        """Return what :meth:`pixels` returns, of an image that :meth:`check` returned.

        Raises:
            DataError: a point outside, or an image that cannot be resampled.
        """
        how, image, label, x = self.preprocessing, checked.image, checked.label, checked.values
        statistics = checked.statistics
        steps = list(image.notes)
        if point is not None:
            x, to_source = crop_patch(x, image, how, point, label, steps)
        elif image.dims == 3:
            x, to_source = resample_volume(x, image, how, label, steps, statistics)
        else:
            x, to_source = resample_image(x, image, how, steps, statistics)
        x = self._set_channels(x, label, steps)
        implausible = checked.implausible or implausible_input(x, how)
        faults = [image.warning, _unplaced(image), f"{self.who} {implausible}" if implausible else "", checked.warning]
        geometry = Geometry(tuple(image.array.shape[1:]), tuple(x.shape[1:]), to_source)
        warning = f"{label}: {' '.join(filter(None, faults))}" if any(faults) else ""
        return Prepared(x, tuple(steps), geometry, image, warning, checked.mismatch)

    def check_point(self, point: Sequence[float] | None) -> None:
        """Raise ConfigError unless a point is given exactly where the model takes one."""
        if self.preprocessing.patch is not None and point is None:
            raise ConfigError(
                f"{self.who}: it was trained on patches of {join_values(self.preprocessing.patch)} mm around a point, "
                "and takes no whole scan. Give points=."
            )
        if self.preprocessing.patch is None and point is not None:
            raise ConfigError(f"{self.who}: it takes whole images, not points. Leave points out.")

    def _check_dims(self, image: Image, label: str) -> None:
        """Raise DataError unless the image has the model's number of axes."""
        dims = len(self.preprocessing.size)
        if image.dims != dims:
            raise WrongAxes(f"{label}: {self.who} takes {_KIND[dims]}, got {_KIND[image.dims]}. {_ADVICE[dims]}")

    def _warn_or_raise(self, prepared: Prepared, strict: bool) -> Prepared:
        """Warn at the line of the caller's caller; with ``strict`` raise instead, but not for an allowed mismatch."""
        if prepared.warning and strict:
            raise ImplausibleValues(prepared.warning)
        for message in filter(None, (prepared.mismatch, prepared.warning)):
            warn(message)
        return prepared

    def _set_channels(self, x: Tensor, label: str, steps: list[str]) -> Tensor:
        """Repeat grey for a 2D model of RGB, or convert colour to grey; any other mismatch is an error."""
        have, is_picture = x.shape[0], x.ndim == 3
        if have == self.channels:
            return x
        if is_picture and (have, self.channels) == (1, 3):
            steps.append(f"grey repeated to {self.channels} channels")
            return x.expand(self.channels, *x.shape[1:]).contiguous()
        if is_picture and (have, self.channels) == (3, 1):
            steps.append("colour converted to grey (0.299 red, 0.587 green, 0.114 blue)")
            return torch.einsum("c,c...->...", torch.tensor([0.299, 0.587, 0.114]), x)[None]
        takes = f"{self.channels} channel{'s' * (self.channels > 1)}"
        if is_picture:
            advice = f"Give an array (c, h, w) with {takes}"
        elif self.channels == 1:
            advice = "The channels of a volume are not averaged: give one of them, such as array[:1]"
        else:
            advice = (
                f"A volume is not repeated to fill them: give a file whose 4th axis holds {takes}, such as "
                f"medzoo.read(path, channel_axis=3), or an array (c, d, h, w) with {takes}"
            )
        raise WrongChannels(
            f"{label}: {self.who} takes {takes}, got {have}. {advice}, or create it with in_chans={have}."
        )

    def normalise(self, x: Tensor) -> Tensor:
        """Return ``c *s`` after the last step, the preprocessing's mean and std."""
        return self._normalise(x, [])

    def _normalise(self, x: Tensor, steps: list[str]) -> Tensor:
        mean, std = self.preprocessing.mean, self.preprocessing.std
        if mean == (0.0,) and std == (1.0,):
            return x
        steps.append(f"normalised with mean {join_values(mean)} and std {join_values(std)}")
        shape = (-1, *[1] * (x.ndim - 1))
        return (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def _unplaced(image: Image) -> str:
    """Return why the frames of a DICOM file may be no volume; empty for a volume with a position, or a warning."""
    if image.dims == 2 or image.affine is not None or "sop" not in image.identity or image.warning:
        return ""
    return "The frames have no position: their order and distance are not known."


def _as_image(source: ImageSource, who: str, channels: int) -> Image:
    if isinstance(source, Image):
        return source
    if isinstance(source, (str, os.PathLike, np.ndarray, Tensor)):
        return read_image(as_array(source) if isinstance(source, Tensor) else source, ReadOptions(channels=channels))
    raise not_an_image(source, who)


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor's values as a NumPy array; NumPy has no bfloat16."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy()


def not_an_image(source: object, who: str) -> InputError:
    """Return the error for what is neither path, image nor array."""
    return InputError(
        f"{who}: expected a path, a medzoo.Image or an array (c, ...), got {type(source).__name__}. "
        "Use numpy.asarray(...) to make an array."
    )
