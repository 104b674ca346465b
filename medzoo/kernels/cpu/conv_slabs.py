"""A convolution stage in training on a CPU as numbers: the slabs that it is cut into, and where that pays.

Axes: b batch, c channels, s any number of spatial axes, k numbers of a kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from medzoo.kernels.cpu.conv import Shape, channels_last, padded_rows

__all__ = ["NormPlace", "PooledConvInputs", "StageSlab", "StageSlabs", "by_slabs_pays", "is_narrow"]

# Bytes of a slab's convolution, of which each thread uses two at a time: of one, of those of all threads together, and
# the least, below which calling the operators takes as long as they run.
SLAB_BYTES, ALL_SLABS, LEAST_SLAB = 4 * 2**20, 16 * 2**20, 2**18
# Bytes of a map from which on slabs are used: with at most ``FEW`` numbers in a kernel, and with more.
SMALL_MAP, FEW, LARGE_MAP = 4 * 2**20, 160, 32 * 2**20
# Up to so many values in the channels and the first two axes of a sample, PyTorch convolves it alone without oneDNN.
ONEDNN = 20480

# Where a BatchNorm is, if there is one that takes its statistics from the batch.
NormPlace = Literal["before pooling", "after pooling", ""]


class PooledConvInputs(NamedTuple):
    """A convolution of stride 1, ReLU, max pooling and perhaps a BatchNorm in training, as tensors and numbers.

    Attributes:
        x: the map, ``b c *s``.
        weight: of the convolution, ``c' c *k``.
        bias: of the convolution, ``c'``, or ``None``.
        scale: weight of the BatchNorm, ``c'``, or ``None``.
        shift: bias of the BatchNorm, ``c'``, or ``None``.
        sign: 1, -1 or 0 for each channel, ``c'``: the largest value of each window is taken, the smallest, or the
            first. ``None`` is 1 everywhere. Among equal values it is the first one.
        padding: zeros at each border of the map.
        pool: side and stride of the pooling window.
        norm: where the BatchNorm is, or an empty string without one.
        eps: of the BatchNorm.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    sign: Tensor | None
    padding: int
    pool: int
    norm: NormPlace
    eps: float


def full_size(inputs: PooledConvInputs) -> list[int]:
    """Return the spatial size of the convolved map."""
    return [n + 2 * inputs.padding - inputs.weight.shape[2] + 1 for n in inputs.x.shape[2:]]


def is_narrow(weight: Tensor) -> bool:
    """Whether all that a kernel multiplies with is no more than the map that it makes, as in a first stage."""
    return weight[0].numel() <= len(weight)


def by_slabs_pays(inputs: PooledConvInputs) -> bool:
    """Whether a stage is to be computed slab by slab, by the size of its map and the arithmetic for each value of it.

    Measured on the stages of all models. With little arithmetic, passes over the map and PyTorch's own convolution take
    most of the time, and slabs win from a few megabytes on. With more, they win where the map is larger than what
    ``malloc`` keeps, and leave the time as it is where arithmetic takes it all, with less memory.
    """
    x, weight = inputs.x, inputs.weight
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    if x.ndim != weight.ndim or x.shape[1] != weight.shape[1] or min(full_size(inputs)) < inputs.pool:
        return False
    if len(x) * math.prod(n // inputs.pool for n in full_size(inputs)) < 2:  # which BatchNorm refuses
        return False
    sample = math.prod(full_size(inputs)) * len(weight) * x.element_size()
    return sample < 2**31 and len(x) * sample >= (SMALL_MAP if weight[0].numel() <= FEW else LARGE_MAP)


class StageSlab(NamedTuple):
    """Some rows of some samples: of the pooled map, and the first and last one of the convolved map."""

    pooled: tuple[slice, slice]
    first: int
    last: int

    def of(self, inputs: PooledConvInputs) -> Tensor:
        """Return what is convolved, with the zeros around the map along the axis that is cut."""
        first, padding = self.first - inputs.padding, inputs.padding
        rows = padded_rows(inputs.x[self.pooled[0]], first, self.last - padding + inputs.weight.shape[2] - 1)
        return channels_last(rows)


class StageSlabs:
    """The sizes of a stage's maps and the slabs that they are cut into: all rows of some samples, or some of one."""

    def __init__(self, inputs: PooledConvInputs) -> None:
        x, weight = inputs.x, inputs.weight
        threads, self.full = torch.get_num_threads(), full_size(inputs)
        self.pooled = [n // inputs.pool for n in self.full]
        self.pool, self.complete = inputs.pool, inputs.norm == "before pooling"
        row = inputs.pool * math.prod(self.full[1:]) * len(weight) * x.element_size()
        # Two for each thread, if there is so much.
        share = len(x) * self.pooled[0] * row // (2 * threads)
        size = max(LEAST_SLAB, min(SLAB_BYTES, ALL_SLABS // threads, share))
        samples, rows = size // (row * self.pooled[0]), size // row
        if is_narrow(weight):
            pass  # PyTorch's convolution is not used
        elif x.shape[1] * x.shape[2] * x.shape[3] <= ONEDNN:
            samples = max(2, samples)
        else:
            rows = max(rows, ONEDNN // (x.shape[1] * x.shape[3] * inputs.pool) + 1)
        self.samples = _cut(len(x), samples)
        self.rows = _cut(self.pooled[0], self.pooled[0] if samples > 1 else rows)
        # Along the axis that is cut, slabs bring their own padding.
        one = (1,) * (x.ndim - 2)
        self.shape = Shape(one, (0, *[inputs.padding] * (x.ndim - 3)), one, 1)

    def __iter__(self) -> Iterator[StageSlab]:
        for samples in self.samples:
            for rows in self.rows:
                # What the pooling drops has a part in the statistics.
                last = self.full[0] if self.complete and rows.stop == self.pooled[0] else rows.stop * self.pool
                yield StageSlab((samples, rows), rows.start * self.pool, last)


def _cut(length: int, least: int) -> list[slice]:
    """Cut ``range(length)`` evenly into parts of at least ``least`` each, if it is that long.

    >>> _cut(11, 3)
    [slice(0, 3, None), slice(3, 7, None), slice(7, 11, None)]
    """
    count = max(1, length // max(1, least))
    bounds = [length * i // count for i in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]
