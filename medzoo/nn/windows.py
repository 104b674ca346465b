"""Where the windows of a 3D Swin block lie: pure arithmetic on sizes, no weights.

A window covers ``window`` tokens along each axis. In every second block the windows are shifted by half of that, with
the map rolled so that they stay whole; tokens that only the roll made neighbours must not see each other.

Axes: d h w depth height width, t tokens of a window, g windows of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

__all__ = ["WindowGrid", "relative_position_index"]

# What MONAI adds to a logit between tokens of different regions; exp(-100) is 4e-44, nothing beside any other weight.
SEPARATED = -100.0


@dataclass(frozen=True)
class WindowGrid:
    """The windows of one block on one map.

    Attributes:
        size: spatial size of the map.
        window: sides of a window, no larger than the map's.
        shift: how far the windows are shifted along each axis.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    shift: tuple[int, ...]

    @classmethod
    def of(cls, size: Sequence[int], window: Sequence[int], shifted: bool) -> WindowGrid:
        """Clip the windows to the map: an axis that fits into one window is not shifted.

        >>> WindowGrid.of((16, 16, 4), window=(7, 7, 7), shifted=True)
        WindowGrid(size=(16, 16, 4), window=(7, 7, 4), shift=(3, 3, 0))
        """
        clipped = tuple(min(s, w) for s, w in zip(size, window, strict=True))
        shift = tuple(w // 2 if shifted and s > w else 0 for s, w in zip(size, window, strict=True))
        return cls(tuple(size), clipped, shift)

    @property
    def padded(self) -> tuple[int, ...]:
        """The map's size rounded up to whole windows."""
        return tuple(-(-s // w) * w for s, w in zip(self.size, self.window, strict=True))

    def split(self, x: Tensor) -> Tensor:
        """Cut a map into windows, ``b d h w c -> (b g) t c``, padding with zeros at the far ends."""
        (d, h, w), (dp, hp, wp) = self.size, self.padded
        x = F.pad(x, (0, 0, 0, wp - w, 0, hp - h, 0, dp - d))
        if any(self.shift):
            x = torch.roll(x, tuple(-s for s in self.shift), dims=(1, 2, 3))
        i, j, k = self.window
        return rearrange(x, "b (d i) (h j) (w k) c -> (b d h w) (i j k) c", i=i, j=j, k=k)

    def join(self, windows: Tensor) -> Tensor:
        """Undo :meth:`split`, ``(b g) t c -> b d h w c``, dropping the padding."""
        (i, j, k), (dp, hp, wp) = self.window, self.padded
        x = rearrange(
            windows,
            "(b d h w) (i j k) c -> b (d i) (h j) (w k) c",
            i=i, j=j, k=k, d=dp // i, h=hp // j, w=wp // k,
        )  # fmt: skip
        if any(self.shift):
            x = torch.roll(x, self.shift, dims=(1, 2, 3))
        d, h, w = self.size
        return x[:, :d, :h, :w]

    def mask(self, device: torch.device) -> Tensor | None:
        """Return what to add to the attention logits of each window, ``g t t``, or ``None`` where nothing is shifted.

        The roll puts the first ``shift`` tokens of an axis behind the last ones. Those that it moved, and those that
        share a window with them, are regions of their own.
        """
        if not any(self.shift):
            return None
        region = torch.zeros(1, 1, 1, 1, 1, device=device)
        for axis, (length, window, shift) in enumerate(zip(self.padded, self.window, self.shift, strict=True)):
            if shift:
                place = torch.arange(length, device=device)
                number = (place >= length - window).float() + (place >= length - shift).float()
                region = region * 3 + number.view([1, *(length if a == axis else 1 for a in range(3)), 1])
        region = region.expand(1, *self.padded, 1)
        i, j, k = self.window
        tokens = rearrange(region, "1 (d i) (h j) (w k) 1 -> (d h w) (i j k)", i=i, j=j, k=k)
        apart = tokens[:, :, None] != tokens[:, None, :]
        return torch.zeros(apart.shape, device=device).masked_fill(apart, SEPARATED)


def relative_position_index(window: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Return the row of the bias table for each pair of tokens, ``t t``.

    Row numbers count the offsets ``-(w-1) ... w-1`` along d, h, w in C order.

    >>> relative_position_index((1, 1, 2))
    tensor([[1, 0],
            [2, 1]])
    """
    axes = [torch.arange(side, device=device) for side in window]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    index = torch.zeros(1, 1, dtype=torch.long, device=device)
    for offset, side in zip(place[:, :, None] - place[:, None, :], window, strict=True):
        index = index * (2 * side - 1) + offset + side - 1
    return index
