"""From an image to the tensor a model was made for, by the contract of its weights, with every step told.

Axes: c channels, h w height width, d h w depth height width, s spatial axes.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medzoo.contract import Preprocessing
from medzoo.data.geometry import Geometry, scaling
from medzoo.data.image import Image
from medzoo.data.read import read
from medzoo.errors import ConfigError, DataError, InputError

if TYPE_CHECKING:
    from medzoo.classifier import CheckedModel

__all__ = ["Prepared", "Transform", "transform"]

Source = str | os.PathLike[str] | Image | NDArray[Any] | Tensor


@dataclass(frozen=True, eq=False)
class Prepared:
    """A tensor ready for a model, and how it came about.

    Attributes:
        tensor: ``c *s``, float32, without a batch axis.
        steps: what was done, in order, in words.
        geometry: the way back to the original grid.
        image: what was read.
    """

    tensor: Tensor
    steps: tuple[str, ...]
    geometry: Geometry
    image: Image


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

    def prepare(self, source: Source, *, strict: bool = False) -> Prepared:
        """Return the tensor, the steps taken and the way back.

        Args:
            source: a path, an :class:`~medzoo.data.image.Image`, or an array or tensor ``(c, …)``. An array has no
                geometry: orientation and spacing are skipped. Its range is its integer type's; of floats, [0, 1].
            strict: raise instead of warn when the values cannot be what the model expects.

        Raises:
            DataError: a file that cannot be read, NaN, infinity, the wrong number of axes or channels, or, with
                ``strict``, implausible values.
            InputError: neither path, image nor array.
        """
        image = _as_image(source, self.who)
        label = image.identity.get("file", "the array")
        dims = len(self.preprocessing.size)
        if image.dims != dims:
            raise DataError(f"{label}: {self.who} takes {_KIND[dims]}, got {_KIND[image.dims]}. {_MEND[dims]}")
        x = torch.from_numpy(np.ascontiguousarray(image.array, dtype=np.float32))
        if not torch.isfinite(x).all():
            raise DataError(f"{label}: expected finite values, got {int((~torch.isfinite(x)).sum())} NaN or infinite.")
        fault = _implausible(x, image, self.preprocessing)
        if fault:
            if strict:
                raise DataError(f"{label}: {fault}")
            warnings.warn(f"{label}: {fault}", stacklevel=2)
        steps = list(image.notes)
        arrange = _arrange_volume if dims == 3 else _arrange_image
        x, to_source = arrange(x, image, self.preprocessing, steps)
        x = self._normalise(self._set_channels(x, label, steps), steps)
        geometry = Geometry(tuple(image.array.shape[1:]), tuple(x.shape[1:]), to_source)
        return Prepared(x, tuple(steps), geometry, image)

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
        steps.append(f"normalised with mean {_numbers(mean)} and std {_numbers(std)}")
        shape = (-1, *[1] * (x.ndim - 1))
        return (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


_KIND = {2: "a 2D image", 3: "a 3D volume"}
_MEND = {
    2: "Choose a slice or frame, for example medzoo.read(path, frame=0), or use a model with dims=3.",
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
    if wanted.intensity == "window" and wanted.window and image.unit != "HU":
        if low >= 0 and high <= 255 and (wanted.window[0] < 0 or wanted.window[1] > 255):
            return f"expected values around {_numbers(wanted.window)} (HU for CT), {got}: already scaled?"
    elif wanted.intensity == "unit" and image.value_range is None and (low < -0.01 or high > 1.01):
        return f"expected values in [0, 1] where the range of the storage is not known, {got}. Divide by the range."
    return None


def _scale(x: Tensor, image: Image, wanted: Preprocessing, steps: list[str]) -> Tensor:
    """Map stored values to what the model expects, before anything is cut or resized."""
    if wanted.intensity == "zscore":
        mean, std = x.mean(), x.std(correction=0)
        steps.append(f"z-score: mean {mean:.4g}, standard deviation {std:.4g}")
        return (x - mean) / (std if std > 0 else 1.0)
    if wanted.intensity == "window" and wanted.window:
        low, high = wanted.window
        steps.append(f"window {low:g} to {high:g} mapped to 0 to 1 and clipped")
        return ((x - low) / (high - low)).clamp(0, 1)
    if image.value_range is None:
        steps.append("values taken as 0 to 1")
        return x
    low, high = image.value_range
    steps.append(f"range {low:g} to {high:g} mapped to 0 to 1")
    return (x - low) / (high - low)


def _arrange_image(
    x: Tensor, image: Image, wanted: Preprocessing, steps: list[str]
) -> tuple[Tensor, NDArray[np.float64]]:
    """Scale and resize an image, ``c h w -> c h' w'``, and return the matrix back to its grid."""
    from torchvision.transforms.v2.functional import center_crop, resize

    x = _scale(x, image, wanted, steps)
    before = tuple(x.shape[1:])
    if wanted.fit == "crop":
        steps.append(f"cut or padded around the centre from {_sides(before)} to {_sides(wanted.size)}")
        to_source = np.eye(4)
        # torchvision pads the far side more, and rounds the corner of a crop to even.
        pad = [max(0, new - old) // 2 for old, new in zip(before, wanted.size, strict=True)]
        cut = [round(max(0, old - new) / 2) for old, new in zip(before, wanted.size, strict=True)]
        to_source[:2, 3] = np.subtract(cut, pad)
        return center_crop(x, list(wanted.size)), to_source
    if before != wanted.size:
        steps.append(f"resized from {_sides(before)} to {_sides(wanted.size)}")
        x = resize(x, list(wanted.size), antialias=True)
    return x, scaling(before, wanted.size)


def _arrange_volume(
    x: Tensor, image: Image, wanted: Preprocessing, steps: list[str]
) -> tuple[Tensor, NDArray[np.float64]]:
    """Orient, scale, cut and resize a volume, ``c d h w -> c d' h' w'``, and return the matrix back to its grid."""
    from monai.data import MetaTensor
    from monai.transforms import CropForeground, Orientation, Resize, ResizeWithPadOrCrop, Spacing

    source = np.eye(4) if image.affine is None else image.affine
    volume = MetaTensor(x, affine=torch.from_numpy(source))
    if image.affine is None:
        if wanted.orientation or wanted.spacing:
            steps.append("no geometry: orientation and spacing skipped")
    else:
        if wanted.orientation and wanted.orientation != image.orientation:
            steps.append(f"oriented from {image.orientation} to {wanted.orientation}")
            volume = Orientation(axcodes=wanted.orientation, labels=None)(volume)
        if wanted.spacing:
            steps.append(f"resampled to {_numbers(wanted.spacing)} mm")
            volume = Spacing(pixdim=wanted.spacing, mode="bilinear")(volume)
    volume = _scale(volume, image, wanted, steps)
    if wanted.foreground:
        before = tuple(volume.shape[1:])
        volume = CropForeground(allow_smaller=True)(volume)
        steps.append(f"cropped to the foreground, {_sides(before)} to {_sides(volume.shape[1:])}")
    before = tuple(volume.shape[1:])
    if before != wanted.size:
        if wanted.fit == "crop":
            steps.append(f"cut or padded around the centre from {_sides(before)} to {_sides(wanted.size)}")
            volume = ResizeWithPadOrCrop(wanted.size)(volume)
        else:
            steps.append(f"resized from {_sides(before)} to {_sides(wanted.size)}")
            volume = Resize(wanted.size, mode="trilinear", anti_aliasing=True)(volume)
    to_source = np.linalg.inv(source) @ np.asarray(volume.affine)
    return volume.as_tensor().float(), to_source


def _sides(size: Any) -> str:
    return " × ".join(str(int(s)) for s in size)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{v:g}" for v in values)
