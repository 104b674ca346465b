"""The convolution stage that ``cnn3d_small``, ``cnn3d_base`` and ``xray_cnn`` are tables of.

Axes: b batch, c channels, s any number of spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medzoo.nn.encoder import Encoder

__all__ = ["ConvEncoder", "ConvStage", "StageTable"]

_CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL: dict[int, type[nn.MaxPool2d] | type[nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


@dataclass(frozen=True)
class StageTable:
    """The numbers every stage of an encoder shares.

    Attributes:
        stages: how many there are.
        kernel: side of the convolution kernel; the stride is 1.
        padding: zeros added at each border.
        order: what follows the convolution, in this order; ``"norm"`` is BatchNorm, ``"pool"`` a maximum.
        pool: side and stride of the pooling window.
    """

    stages: int
    kernel: int
    padding: int
    order: tuple[Literal["relu", "norm", "pool"], ...]
    pool: int

    def map_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial size of the last map for an input of ``size``.

        >>> StageTable(stages=3, kernel=2, padding=1, order=("relu", "norm", "pool"), pool=3).map_size((64, 64, 64))
        (2, 2, 2)
        """
        out = tuple(size)
        for _ in range(self.stages):
            out = tuple((s + 2 * self.padding - self.kernel + 1) // self.pool for s in out)
        return out


class ConvStage(nn.Sequential):
    """A convolution of stride 1 and what follows it, ``b c *s -> b c' *s'``.

    The children are named ``conv``, ``relu``, ``norm`` and ``pool`` and run in the table's order.
    """

    def __init__(self, in_chans: int, channels: int, table: StageTable, dims: int) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {
            "relu": nn.ReLU(),
            "norm": _NORM[dims](channels) if "norm" in table.order else nn.Identity(),
            "pool": _POOL[dims](table.pool),
        }
        self.add_module("conv", _CONV[dims](in_chans, channels, table.kernel, padding=table.padding))
        for part in table.order:
            self.add_module(part, parts[part])


class ConvEncoder(Encoder):
    """A chain of :class:`ConvStage`, ``b c *s -> b widths[-1] *s'``.

    Args:
        in_chans: channels of the input.
        widths: channels after each stage, as many as the table has stages.
        table: the numbers the stages share.
        dims: number of spatial axes, 2 or 3.
    """

    def __init__(self, in_chans: int, widths: Sequence[int], table: StageTable, dims: int) -> None:
        super().__init__()
        before = (in_chans, *widths[:-1])
        self.stages = nn.ModuleList(ConvStage(i, o, table, dims) for i, o in zip(before, widths, strict=True))
        for i, width in enumerate(widths):
            self.feature_info.append(
                {"num_chs": width, "reduction": table.pool ** (i + 1), "module": f"stages.{i}"},
            )

    def stage(self, i: int, x: Tensor) -> Tensor:
        """Run one convolution stage."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(self.stages[i], x, use_reentrant=False)
        return self.stages[i](x)
