"""The convolution stage that ``cnn3d_small``, ``cnn3d_base`` and ``xray_cnn`` are tables of.

Axes: b batch, c channels, s any number of spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medzoo.kernels import dispatch
from medzoo.nn.encoder import Encoder
from medzoo.nn.guards import fast_path_for, needs_gradient

__all__ = ["ConvEncoder", "ConvStage", "StageTable", "is_standard"]

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


# A stage whose parts are all of these classes, in one of these orders, may be computed without calling them.
PARTS = (*_CONV.values(), nn.ReLU, *_NORM.values(), *_POOL.values())
ORDERS = (("relu", "pool"), ("relu", "norm", "pool"), ("relu", "pool", "norm"))


class ConvStage(nn.Sequential):
    """A convolution of stride 1 and what follows it, ``b c *s -> b c' *s'``.

    The children are named ``conv``, ``relu``, ``norm`` and ``pool`` and run in the table's order. On a CPU a stage may
    be computed in another way while it is trained, see :mod:`medzoo.kernels.cpu.conv_training`.
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

    def forward(self, x: Tensor) -> Tensor:
        """Run the parts."""
        if fast_path_for(self, x, PARTS) and needs_gradient(self, x) and is_standard(self):
            y = self._run_at_once(x)
            if y is not None:
                return y
            # With channels last, as the stage before may return them, PyTorch's BatchNorm sums up in float32 and loses
            # four digits.
            x = x.contiguous() if x.is_cpu and x.dtype == torch.float32 and "norm" in self._modules else x
        return super().forward(x)  # type: ignore[no-untyped-call]  # torch's

    def _run_at_once(self, x: Tensor) -> Tensor | None:
        """Run convolution, ReLU and pooling as one operation, if that is to be done."""
        parts: Any = self._modules
        convolution, pool, norm = parts["conv"], parts["pool"], parts.get("norm")
        norm_first = norm is not None and list(parts).index("norm") < list(parts).index("pool")
        by_batch = norm is not None and (norm.training or norm.running_mean is None)
        place: dispatch.NormPlace = ("before pooling" if norm_first else "after pooling") if by_batch else ""
        scale, shift = (None, None) if norm is None else (norm.weight, norm.bias)
        signs = scale.detach().sign() if norm_first and scale is not None else None
        found = dispatch.pooled_conv(
            dispatch.PooledConvInputs(
                x,
                convolution.weight,
                convolution.bias,
                scale if by_batch else None,
                shift if by_batch else None,
                # Usually all are positive.
                None if signs is None or bool((signs > 0).all()) else signs,
                convolution.padding[0],
                pool.kernel_size,
                place,
                norm.eps if by_batch else 0.0,
            )
        )
        if found is None:
            return None
        y, mean, variance = found
        if mean is not None and variance is not None:
            grown = 2 * convolution.padding[0] - convolution.kernel_size[0] + 1
            size = [n + grown for n in x.shape[2:]] if norm_first else y.shape[2:]
            _record(norm, mean, variance, len(x) * math.prod(size))
            return y
        # By the statistics of training, a norm before the pooling may as well follow it.
        return y if norm is None else norm(y)


def is_standard(stage: ConvStage) -> bool:
    """Whether the parts of a stage are of the classes, in one of the orders and with the settings above."""
    parts: dict[str, Any] = stage._modules
    first, *order = parts
    if first != "conv" or tuple(order) not in ORDERS:
        return False
    convolution, pool, norm = parts["conv"], parts["pool"], parts.get("norm")
    dims = convolution.weight.ndim - 2
    one, kernel, padding = (1,) * dims, convolution.kernel_size, convolution.padding
    return (
        type(convolution) is _CONV[dims]
        and type(parts["relu"]) is nn.ReLU
        and type(pool) is _POOL[dims]
        and (norm is None or (type(norm) is _NORM[dims] and norm.num_features == convolution.out_channels))
        and (convolution.stride, convolution.dilation, convolution.groups) == (one, one, 1)
        and convolution.padding_mode == "zeros"
        and isinstance(padding, tuple)
        and len({*kernel}) == len({*padding}) == 1
        and isinstance(pool.kernel_size, int)
        and (pool.stride, pool.padding, pool.dilation) == (pool.kernel_size, 0, 1)
        and not (pool.ceil_mode or pool.return_indices)
    )


@torch.no_grad()
def _record(norm: Any, mean: Tensor, variance: Tensor, voxels: int) -> None:
    """Move the running statistics of a BatchNorm, as its own forward pass does.

    Args:
        norm: the BatchNorm.
        mean: of each channel, ``c``.
        variance: the biased one of each channel, ``c``.
        voxels: how many values they are of.
    """
    if not (norm.training and norm.track_running_stats):
        return
    momentum = norm.momentum or 0.0
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    if norm.running_mean is not None:
        # PyTorch does not count these writes either: it saves both for a backward pass that does not read them.
        norm.running_mean.data.mul_(1 - momentum).add_(mean, alpha=momentum)
        norm.running_var.data.mul_(1 - momentum).add_(variance, alpha=momentum * voxels / max(1, voxels - 1))


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
