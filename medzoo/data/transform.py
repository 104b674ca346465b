"""From an image to the tensor a model was made for, by the contract of its weights, with every step told.

Axes: c channels, h w height width, d h w depth height width, s spatial axes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medzoo.contract import Preprocessing
from medzoo.data.arrange import arrange_image, arrange_volume, cut_patch, numbers
from medzoo.data.geometry import Geometry
from medzoo.data.image import Image
from medzoo.data.read import read
from medzoo.errors import ConfigError, DataError, InputError

if TYPE_CHECKING:
    from medzoo.classifier import CheckedModel

__all__ = ["ExcludedView", "Prepared", "Source", "Transform", "transform"]

Source = str | os.PathLike[str] | Image | NDArray[Any] | Tensor


@dataclass(frozen=True, eq=False)
class Prepared:
    """A tensor ready for a model, and how it came about.

    Attributes:
        tensor: ``c *s``, float32, without a batch axis.
        steps: what was done, in order, in words.
        geometry: the way back to the original grid.
        image: what was read.
        doubt: why the values cannot be what the model expects; empty when they can.
    """

    tensor: Tensor
    steps: tuple[str, ...]
    geometry: Geometry
    image: Image
    doubt: str = ""


class ExcludedView(DataError):
    """A view that the weights were not trained on; in a folder it is passed over."""


def transform(model: CheckedModel, train: bool = False) -> Transform:
    """Return what turns a path, an image or a ``(c, …)`` array into a tensor for ``model``.

    Raises:
        ConfigError: ``train=True``, which is kept for augmentation; or the model does not say how to prepare.
    """
    if train:
        raise ConfigError(
            f"{model.name}: transform(train=True) is kept for augmentation, which is not there yet. "
            "Use train=False, and augment the tensors."
        )
    if model.preprocessing is None:
        raise ConfigError(
            f"{model.name}: expected a model that says how its input is prepared, got none. "
            "Make it with medzoo.create, or set model.preprocessing = medzoo.Preprocessing(...)."
        )
    return Transform(model.preprocessing, channels=model.input_spec.channels, who=model.name)


@dataclass(frozen=True)
class Transform:
    """A picklable, unbatched preparation.

    Attributes:
        preprocessing: the steps.
        channels: channels of the tensor.
        who: the model's name, for messages.
    """

    preprocessing: Preprocessing
    channels: int
    who: str

    def __call__(self, source: Source) -> Tensor:
        """Return the tensor ``c *s`` for a path, an image or an array ``(c, …)``."""
        return self.prepare(source).tensor

    def prepare(self, source: Source, *, point: Sequence[float] | None = None, strict: bool = False) -> Prepared:
        """Return the tensor, the steps taken and the way back.

        Args:
            source: a path, an :class:`~medzoo.data.image.Image`, or an array or tensor ``(c, …)``. An array has no
                geometry: orientation and spacing are skipped. Its range is its integer type's; of floats, [0, 1].
            point: for a patch model, the centre in mm, in RAS.
            strict: raise instead of warn when the values cannot be what the model expects.

        Raises:
            DataError: a file that cannot be read, NaN, infinity, the wrong number of axes or channels, a view the
                weights were not trained on, a point outside, or, with ``strict``, implausible values.
            InputError: neither path, image nor array.
            ConfigError: a patch model without a point, or a point for another.
        """
        prepared = self.examine(source, point)
        if prepared.doubt and strict:
            raise DataError(prepared.doubt)
        if prepared.doubt:
            warnings.warn(prepared.doubt, stacklevel=2)
        return prepared

    def examine(self, source: Source, point: Sequence[float] | None = None) -> Prepared:
        """Prepare without warning: implausible values are told in ``doubt``."""
        wanted = self.preprocessing
        self.check_point(point)
        image = _as_image(source, self.who)
        label = image.identity.get("file", "the array")
        dims = len(wanted.size)
        if image.dims != dims:
            raise DataError(f"{label}: {self.who} takes {_KIND[dims]}, got {_KIND[image.dims]}. {_MEND[dims]}")
        view = image.identity.get("view", "")
        if wanted.views and view and view not in wanted.views:
            raise ExcludedView(
                f"{label}: {self.who} was trained on the views {', '.join(wanted.views)}, got {view}. "
                "Use another model."
            )
        x = torch.from_numpy(np.ascontiguousarray(image.array, dtype=np.float32))
        if not torch.isfinite(x).all():
            raise DataError(f"{label}: expected finite values, got {int((~torch.isfinite(x)).sum())} NaN or infinite.")
        fault = _implausible(x, image, wanted)
        steps = list(image.notes)
        if point is not None:
            x, to_source = cut_patch(x, image, wanted, point, label, steps)
        else:
            arrange = arrange_volume if dims == 3 else arrange_image
            x, to_source = arrange(x, image, wanted, steps)
        x = self._normalise(self._set_channels(x, label, steps), steps)
        geometry = Geometry(tuple(image.array.shape[1:]), tuple(x.shape[1:]), to_source)
        return Prepared(x, tuple(steps), geometry, image, doubt=f"{label}: {fault}" if fault else "")

    def check_point(self, point: Sequence[float] | None) -> None:
        """Raise ConfigError unless a point is given exactly where the model takes one."""
        if self.preprocessing.patch is not None and point is None:
            raise ConfigError(
                f"{self.who}: it was trained on patches of {numbers(self.preprocessing.patch)} mm around a point, and "
                "takes no whole scan. Give points=."
            )
        if self.preprocessing.patch is None and point is not None:
            raise ConfigError(f"{self.who}: it takes whole images, not points. Leave points out.")

    def _set_channels(self, x: Tensor, label: str, steps: list[str]) -> Tensor:
        """Repeat grey, or mix colour to grey; anything else is the user's to decide."""
        have = x.shape[0]
        if have == self.channels:
            return x
        if have == 1:
            steps.append(f"grey repeated to {self.channels} channels")
            return x.expand(self.channels, *x.shape[1:]).contiguous()
        if have == 3 and self.channels == 1:
            steps.append("colour mixed to grey (0.299 red, 0.587 green, 0.114 blue)")
            return torch.einsum("c,c...->...", torch.tensor([0.299, 0.587, 0.114]), x)[None]
        raise DataError(
            f"{label}: {self.who} takes {self.channels} channels, got {have}. "
            f"Give the channels it wants, or create it with in_chans={have}."
        )

    def _normalise(self, x: Tensor, steps: list[str]) -> Tensor:
        mean, std = self.preprocessing.mean, self.preprocessing.std
        if mean == (0.0,) and std == (1.0,):
            return x
        steps.append(f"normalised with mean {numbers(mean)} and std {numbers(std)}")
        shape = (-1, *[1] * (x.ndim - 1))
        return (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


_KIND = {2: "a 2D image", 3: "a 3D volume"}
_MEND = {
    2: "Choose a frame of it, such as medzoo.read(path, frame=0) of a DICOM or TIFF file, or use a model with dims=3.",
    3: "Give the whole series or volume, or use a model with dims=2; see medzoo.list_models(dims=2).",
}


def _as_image(source: Source, who: str) -> Image:
    if isinstance(source, Image):
        return source
    if isinstance(source, Tensor):
        source = source.detach().cpu().numpy()
    if isinstance(source, (str, os.PathLike, np.ndarray)):
        return read(source)
    raise InputError(
        f"{who}: expected a path, a medzoo.Image or an array (c, ...), got {type(source).__name__}. "
        "Use numpy.asarray(...) to make an array."
    )


def _implausible(x: Tensor, image: Image, wanted: Preprocessing) -> str | None:
    """Say why the values cannot be what the model expects, or ``None``."""
    low, high = float(x.min()), float(x.max())
    got = f"got {low:g} to {high:g}"
    if wanted.intensity == "window" and image.modality == "CT" and image.unit != "HU":
        return f"expected Hounsfield units, {got} in an unknown unit: the CT has no rescale. Export it with one."
    if wanted.intensity == "window" and wanted.window and image.unit != "HU":
        if low >= 0 and high <= 255 and (wanted.window[0] < 0 or wanted.window[1] > 255):
            return f"expected values around {numbers(wanted.window)} (HU for CT), {got}: already scaled?"
    elif wanted.intensity == "unit" and image.value_range is None and (low < -0.01 or high > 1.01):
        return f"expected values in [0, 1] where the range of the storage is not known, {got}. Divide by the range."
    return None
