"""The shape of a model's input, and the check in front of every forward pass.

Axes: b batch, c channels, d h w depth height width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medzoo.errors import ConfigError, InputError, ShapeError

__all__ = ["InputSpec"]


@dataclass(frozen=True)
class InputSpec:
    """The shape of a model's input in einops notation, and the check that enforces it.

    Attributes:
        axes: ``"b c h w"`` or ``"b c d h w"``.
        channels: the required number of channels.
        size: the size the model was designed for, in pixels or voxels, one int per spatial axis.
        multiple: every spatial size must be a multiple of this.
        minimum: the smallest spatial size, so that the last feature map is not empty.
        exact: only ``size`` is accepted, as with a head that flattens the last feature map.
        lone_minimum: the smallest side in training with a batch of one, because BatchNorm needs at least two values
            per channel. 0 if there is no such limit.
    """

    axes: str
    channels: int
    size: tuple[int, ...]
    multiple: int = 1
    minimum: int = 1
    exact: bool = False
    lone_minimum: int = 0

    @property
    def spatial(self) -> tuple[str, ...]:
        """The letters of the spatial axes, such as ``("d", "h", "w")``."""
        return tuple(self.axes.split()[2:])

    @property
    def dims(self) -> int:
        """Number of spatial axes: 2 or 3."""
        return len(self.spatial)

    def __str__(self) -> str:
        """Return the expected shape as text.

        >>> print(InputSpec("b c d h w", channels=1, size=(96, 96, 96), multiple=32, minimum=32))
        'b 1 d h w' with d, h, w multiples of 32
        """
        shape = " ".join(["b", str(self.channels), *self.spatial])
        letters = ", ".join(self.spatial)
        if self.exact:
            return f"'{shape}' with {letters} = {', '.join(map(str, self.size))}"
        if self.multiple > 1:
            least = f" of at least {self.minimum}" if self.minimum > self.multiple else ""
            return f"'{shape}' with {letters} multiples of {self.multiple}{least}"
        return f"'{shape}' with {letters} of at least {self.minimum}"

    def with_channels(self, channels: int) -> InputSpec:
        """Return this spec with another number of channels."""
        return replace(self, channels=channels)

    def built_for(self, size: int | tuple[int, ...], pool: str, who: str) -> InputSpec:
        """Return this spec for a model built for inputs of ``size``, whose head flattens or averages the last map.

        Args:
            size: one int for all spatial axes, or one per axis.
            pool: ``"flatten"`` accepts exactly ``size``; ``"avg"`` accepts any size >= ``minimum``.
            who: the model's name, for the message.

        Raises:
            ConfigError: an unknown ``pool``, or a ``size`` below ``minimum`` or with the wrong number of axes.
        """
        sizes = (size,) * self.dims if isinstance(size, int) else size
        letters = ", ".join(self.spatial)
        if pool not in ("flatten", "avg"):
            raise ConfigError(f"{who}: expected pool 'flatten' or 'avg', got {pool!r}.")
        known = isinstance(sizes, (tuple, list)) and len(sizes) == self.dims and all(isinstance(s, int) for s in sizes)
        if not known or min(sizes) < self.minimum:
            raise ConfigError(
                f"{who}: expected size to be a number or ({letters}), each at least {self.minimum}, got {size!r}."
            )
        return replace(self, size=tuple(sizes), exact=pool == "flatten")

    def fits(self, size: Sequence[int]) -> bool:
        """Return whether the model accepts the spatial ``size``."""
        if self.exact:
            return tuple(size) == self.size
        # A loop, not all(...): torch.compile traces it without a closure.
        for length in size:  # noqa: SIM110
            if length < self.minimum or length % self.multiple != 0:
                return False
        return True

    def check(self, x: Tensor, *, who: str, like: Tensor | None) -> None:
        """Raise an error unless the model accepts ``x``. Nothing is resized, cast or added.

        NaN and infinity are not checked here, because that would read every voxel; :func:`medzoo.predict` checks them.

        Args:
            x: the input.
            who: the model's name, for the message.
            like: a parameter of the model; ``x`` must have its dtype and device. ``None`` skips both checks, for a
                replica without parameters.

        Raises:
            ShapeError: wrong axes, channels or sizes.
            InputError: not a tensor, not floating point, or another dtype or device.
        """
        if not isinstance(x, Tensor):
            raise InputError(
                f"{who}: expected a torch.Tensor, got {type(x).__name__}. "
                "medzoo.predict(model, ...) takes paths, images and arrays; medzoo.transform(model) makes the tensor."
            )
        if x.ndim != 2 + self.dims or x.shape[1] != self.channels or not self.fits(x.shape[2:]):
            raise ShapeError(f"{who}: expected {self}, got {tuple(x.shape)}: {self._shape_fault(tuple(x.shape))}.")
        if not x.is_floating_point():
            wanted = like.dtype if like is not None else torch.float32
            raise InputError(
                f"{who}: expected {wanted}, got {x.dtype}. Prepare it with medzoo.transform(model), "
                "or with x.float() / 255 if it holds 8-bit grey levels."
            )
        if like is None:
            return
        if x.device != like.device:
            raise InputError(
                f"{who}: expected a tensor on {like.device}, where the model is, got one on {x.device}. "
                f"Move it with x.to({str(like.device)!r}), or the model with model.to({str(x.device)!r})."
            )
        if x.dtype != like.dtype and (x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type)):
            raise InputError(
                f"{who}: expected {like.dtype}, as the model's parameters are, got {x.dtype}. "
                f"Cast it with x.to({like.dtype}), or run under torch.autocast({x.device.type!r})."
            )

    def check_lone(self, x: Tensor, *, who: str) -> None:
        """Raise an error if ``x`` is a batch of one that BatchNorm cannot train on.

        Raises:
            InputError: the last feature map would have a single value per channel.
        """
        if self.lone_minimum and x.shape[0] == 1 and max(x.shape[2:]) < self.lone_minimum:
            raise InputError(
                f"{who}: expected a batch of two or more, or a side of at least {self.lone_minimum}, got "
                f"{tuple(x.shape)} in training: BatchNorm would see one value of each channel. "
                "Use a larger batch or input, or model.eval()."
            )

    def _shape_fault(self, shape: tuple[int, ...]) -> str:
        """Describe which axis of ``shape`` is wrong, and the nearest valid size."""
        if len(shape) != 2 + self.dims:
            return f"that is {len(shape)} axes, not {2 + self.dims}" + self._missing_axes(shape)
        if shape[1] != self.channels and shape[-1] == self.channels:
            return f"c={shape[1]} is not {self.channels}; if the channels are last, move them with x.movedim(-1, 1)"
        if shape[1] != self.channels:
            return f"c={shape[1]} is not {self.channels}; medzoo.create(..., in_chans={shape[1]}) makes such a model"
        faults = []
        for letter, length, built in zip(self.spatial, shape[2:], self.size, strict=True):
            if self.exact and length != built:
                faults.append(f"{letter}={length} is not {built}")
            elif not self.exact and (length < self.minimum or length % self.multiple):
                below, above = self.nearest(length)
                near = f"nearest is {above}" if below == above else f"nearest are {below} and {above}"
                faults.append(f"{letter}={length} is not; the {near}")
        if self.exact:
            return ", ".join(faults) + "; build it with size=..., or for any size with pool='avg'"
        return ", ".join(faults)

    def _missing_axes(self, shape: tuple[int, ...]) -> str:
        """Suggest how to add the axes that are probably missing."""
        if len(shape) == 1 + self.dims and shape[0] == self.channels:
            return "; add the batch axis with x[None]"
        if len(shape) == 1 + self.dims and self.channels == 1:
            return "; add the channel axis with x[:, None]"
        if len(shape) == self.dims:
            return "; add the batch and channel axes with x[None, None]" if self.channels == 1 else ""
        return ""

    def nearest(self, length: int) -> tuple[int, int]:
        """Return the nearest valid sizes at or below and at or above ``length``.

        >>> InputSpec("b c d h w", channels=1, size=(96, 96, 96), multiple=32, minimum=32).nearest(60)
        (32, 64)
        """
        smallest = math.ceil(self.minimum / self.multiple) * self.multiple
        below = max(smallest, length // self.multiple * self.multiple)
        above = max(smallest, math.ceil(length / self.multiple) * self.multiple)
        return below, above
