"""``medzoo.transform``: from an image to the tensor a model takes, as its preprocessing defines, with a list of steps.

Axes: c channels, h w height width, d h w depth height width, s spatial axes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
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
from medzoo.transforms.geometry import Geometry
from medzoo.transforms.resample import crop_patch, join_values, resample_image, resample_volume
from medzoo.warn import deprecated_alias, warn

if TYPE_CHECKING:
    from medzoo.features import CheckedModel

__all__ = ["ExcludedView", "ImageSource", "Prepared", "Transform", "as_array", "not_an_image", "transform"]

ImageSource = str | os.PathLike[str] | Image | NDArray[Any] | Tensor

# The view positions that DICOM PS3.3 C.8.7.1.1.1 and C.8.3.1 define, and common longer forms.
VIEWS = frozenset({"AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LAT", "LATERAL", "LPO", "RPO", "LAO", "RAO"})

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
        warning: why the values are implausible for the model; empty when they are plausible.
    """

    tensor: Tensor
    steps: tuple[str, ...]
    geometry: Geometry
    image: Image
    warning: str = ""

    doubt = deprecated_alias("doubt", "warning", removed_in="0.2.0")


class ExcludedView(DataError):
    """A view that the weights were not trained on; in a folder it is skipped."""


def transform(model: CheckedModel, train: bool = False) -> Transform:
    """Return the preprocessing of ``model``: a path, an image or an array ``(c, …)`` to a tensor.

    Raises:
        ConfigError: ``train=True``, which is reserved for augmentation; or the model has no preprocessing.
    """
    if train:
        raise ConfigError(
            f"{model.name}: transform(train=True) is reserved for augmentation, which is not implemented yet. "
            "Use train=False, and augment the tensors."
        )
    if model.preprocessing is None:
        raise ConfigError(
            f"{model.name}: expected a model with preprocessing, got none. "
            "Make it with medzoo.create, or set model.preprocessing = medzoo.Preprocessing(...)."
        )
    return Transform(model.preprocessing, channels=model.input_spec.channels, who=model.name)


@dataclass(frozen=True)
class Transform:
    """The preprocessing of one image; it can be pickled.

    Attributes:
        preprocessing: the steps.
        channels: channels of the tensor.
        who: the model's name, for messages.
    """

    preprocessing: Preprocessing
    channels: int
    who: str

    def __call__(self, source: ImageSource) -> Tensor:
        """Return the tensor ``c *s`` for a path, an image or an array ``(c, …)``."""
        return self._warn_or_raise(self.examine(source), strict=False).tensor

    def prepare(self, source: ImageSource, *, point: Sequence[float] | None = None, strict: bool = False) -> Prepared:
        """Return the tensor, the steps taken and the geometry.

        Args:
            source: a path, an :class:`~medzoo.Image`, or an array or tensor ``(c, …)``. An array has no geometry:
                orientation and spacing are skipped. Its range is that of its integer type; of floats, [0, 1].
            point: for a patch model, the centre in mm, in RAS.
            strict: raise instead of warn when the values are implausible.

        Raises:
            DataError: a file that cannot be read, NaN, infinity, the wrong number of axes or channels, a view the
                weights were not trained on, a point outside, or, with ``strict``, implausible values.
            InputError: neither path, image nor array.
            ConfigError: a patch model without a point, or a point for another.
        """
        return self._warn_or_raise(self.examine(source, point), strict)

    def examine(self, source: ImageSource, point: Sequence[float] | None = None) -> Prepared:
        """Return the same as :meth:`prepare`; implausible values only set ``warning``."""
        how = self.preprocessing
        self.check_point(point)
        image = _as_image(source, self.who, self.channels)
        label = image.identity.get("file", "the array")
        self._check_kind(image, label)
        x = torch.from_numpy(np.require(image.array, np.float32, ["C", "W"]))
        if not torch.isfinite(x).all():
            raise DataError(f"{label}: expected finite values, got {int((~torch.isfinite(x)).sum())} NaN or infinite.")
        faults = [fault for fault in (image.warning, _implausible(x, image, how)) if fault]
        steps = list(image.notes)
        if point is not None:
            x, to_source = crop_patch(x, image, how, point, label, steps)
        elif image.dims == 3:
            x, to_source = resample_volume(x, image, how, label, steps)
        else:
            x, to_source = resample_image(x, image, how, steps)
        x = self._normalise(self._set_channels(x, label, steps), steps)
        geometry = Geometry(tuple(image.array.shape[1:]), tuple(x.shape[1:]), to_source)
        return Prepared(x, tuple(steps), geometry, image, warning=f"{label}: {' '.join(faults)}" if faults else "")

    def check_point(self, point: Sequence[float] | None) -> None:
        """Raise ConfigError unless a point is given exactly where the model takes one."""
        if self.preprocessing.patch is not None and point is None:
            raise ConfigError(
                f"{self.who}: it was trained on patches of {join_values(self.preprocessing.patch)} mm around a point, "
                "and takes no whole scan. Give points=."
            )
        if self.preprocessing.patch is None and point is not None:
            raise ConfigError(f"{self.who}: it takes whole images, not points. Leave points out.")

    def _check_kind(self, image: Image, label: str) -> None:
        """Raise DataError unless the image has the model's number of axes and a view it was trained on."""
        how, dims = self.preprocessing, len(self.preprocessing.size)
        if image.dims != dims:
            raise DataError(f"{label}: {self.who} takes {_KIND[dims]}, got {_KIND[image.dims]}. {_ADVICE[dims]}")
        view = image.identity.get("view", "")
        if how.views and view and view not in how.views:
            code = view if view in VIEWS else "another"  # free text in a file may hold a patient's name
            raise ExcludedView(
                f"{label}: {self.who} was trained on the views {', '.join(how.views)}, got {code}. Use another model."
            )

    def _warn_or_raise(self, prepared: Prepared, strict: bool) -> Prepared:
        """Warn of implausible values at the line of the caller's caller, or raise."""
        if prepared.warning and strict:
            raise DataError(prepared.warning)
        if prepared.warning:
            warn(prepared.warning)
        return prepared

    def _set_channels(self, x: Tensor, label: str, steps: list[str]) -> Tensor:
        """Repeat grey, or convert colour to grey; any other mismatch is an error."""
        have = x.shape[0]
        if have == self.channels:
            return x
        if have == 1:
            steps.append(f"grey repeated to {self.channels} channels")
            return x.expand(self.channels, *x.shape[1:]).contiguous()
        if have == 3 and self.channels == 1:
            steps.append("colour converted to grey (0.299 red, 0.587 green, 0.114 blue)")
            return torch.einsum("c,c...->...", torch.tensor([0.299, 0.587, 0.114]), x)[None]
        raise DataError(
            f"{label}: {self.who} takes {self.channels} channels, got {have}. "
            f"Give the channels it takes, or create it with in_chans={have}."
        )

    def _normalise(self, x: Tensor, steps: list[str]) -> Tensor:
        mean, std = self.preprocessing.mean, self.preprocessing.std
        if mean == (0.0,) and std == (1.0,):
            return x
        steps.append(f"normalised with mean {join_values(mean)} and std {join_values(std)}")
        shape = (-1, *[1] * (x.ndim - 1))
        return (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


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


def _implausible(x: Tensor, image: Image, how: Preprocessing) -> str | None:
    """Return why the values cannot be what the model expects, or ``None``."""
    low, high = float(x.min()), float(x.max())
    got = f"got {low:g} to {high:g}"
    if how.intensity in ("zscore", "zscore_nonzero"):
        return f"expected an image, {got}: every value is the same." if low == high else None
    if how.intensity == "window" and how.window and image.unit != "HU":
        if image.modality == "CT":
            return f"expected Hounsfield units, {got} in an unknown unit: the CT has no rescale. Export it with one."
        bottom, top = how.window
        if bottom < 0 and (low >= 0 or high - low < 0.1 * (top - bottom)):
            return f"expected values around {join_values(how.window)} (HU for CT), {got}: already scaled?"
    if how.intensity != "unit":
        return None
    if image.unit == "HU":
        return f"expected the grey levels of a picture, {got} HU: this model was not made for CT."
    if image.value_range is None:
        if low < -0.01 or high > 1.01:
            return f"expected values in [0, 1] where the range of the storage is not known, {got}. Divide by the range."
        return None
    bottom, top = image.value_range
    if 0 < high - low < 0.02 * (top - bottom) or (bottom < 0 <= low and image.array.dtype.kind == "i"):
        return (
            f"expected values that fill {bottom:g} to {top:g}, as {image.array.dtype} can hold, {got}. Give uint8 or "
            "uint16, or divide by the range."
        )
    return None
