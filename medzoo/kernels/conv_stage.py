"""A convolution stage in inference: fewer passes over memory, each while the cache still holds the map.

What is done, all of it exact but for rounding:

- BatchNorm before the pooling is folded into the kernel. Its scale may be negative, which turns a maximum into a
  minimum; but with ``c' = s c + t``, ``max(s relu(c) + t)`` is ``max(c')``, kept above ``t`` where ``s > 0`` and below
  ``t`` where ``s < 0``. So the pooling runs first, on the convolution's own result, and all that follows on the small
  map.
- The maximum is taken along one axis after the other, channels last, without the indices that ``max_pool3d`` keeps.
- 3 × 3 × 3 convolutions of many channels run by pairs of planes, see :class:`medzoo.kernels.cpu.conv.PairedConv`.
- The first spatial axis of a large map is cut into slabs that stay in the cache. Each is computed by one thread, so
  that threads meet once in a stage: beside other processes, each of them may have to wait for a core. Rows that the
  pooling drops are not computed.

On a GPU the library convolves, without the bias, and one kernel pools, adds the bias and does what follows in a single
pass; with one input channel the convolution is part of that kernel, see :mod:`medzoo.kernels.cuda.conv_pool`. Without
Triton the same is done by public operators.

Axes: b batch, c channels, s any number of spatial axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from medzoo.kernels.cpu.conv import (
    CHANNELS_LAST,
    PairedConv,
    Shape,
    channels_last,
    conv,
    on_cpu,
    pack_conv,
    padded_rows,
)
from medzoo.kernels.cpu.slabs import keep_freed_memory
from medzoo.kernels.cpu.threads import in_threads
from medzoo.kernels.dispatch import kernel_serves

__all__ = ["FoldedStage"]

# Bytes of a convolved map that is computed in one piece, and of a slab of a larger one: a few fit the cache of a core.
MAP_BYTES, SLAB_BYTES = 8 * 2**20, 2 * 2**20


class FoldedStage:
    """Convolution, ReLU, max pooling and BatchNorm in eval mode, ``b c *s -> b c' *s'``.

    Args:
        weight: of the convolution, ``c' c *k``, of stride 1.
        bias: ``c'``, in float64.
        norm: scale and shift of the BatchNorm, ``c'`` each, in float64, or ``None`` without one.
        norm_first: whether the BatchNorm is before the pooling.
        padding: zeros at each border.
        pool: side and stride of the pooling window.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        norm: tuple[Tensor, Tensor] | None,
        *,
        norm_first: bool,
        padding: int,
        pool: int,
    ) -> None:
        self.kernel, self.padding, self.pool, self.dims = weight.shape[2], padding, pool, weight.ndim - 2
        dtype = weight.dtype
        kernel = weight.double()
        low: Tensor | None = None
        high: Tensor | None = None
        scale, shift = norm or (None, None)
        if norm_first and scale is not None and shift is not None:
            kernel = kernel * scale.reshape(-1, *[1] * (self.dims + 1))
            bias = bias * scale + shift
            low = torch.where(scale >= 0, shift, -torch.inf)
            if bool((scale < 0).any()):
                high = torch.where(scale < 0, shift, torch.inf)
            scale = shift = None
        self.bias = bias.to(dtype)
        self.low, self.high, self.scale, self.shift = (
            None if t is None else t.to(dtype) for t in (low, high, scale, shift)
        )
        # The arguments of an Epilogue, a class that cannot be imported without Triton.
        self.after: Any = [None if t is None else t.float() for t in (bias, low, high, scale, shift)]
        # The slabs bring their own padding along the axis that is cut.
        one, rest = (1,) * self.dims, (padding,) * (self.dims - 1)
        self.slab_shape, self.full_shape = Shape(one, (0, *rest), one, 1), Shape(one, (padding, *rest), one, 1)
        kernel = kernel.to(dtype)
        self.weight = pack_conv(kernel, self.slab_shape)
        self.paired = PairedConv(kernel, self.bias, padding) if _pairs(kernel, pool) else None
        self.windows = self._windows(kernel)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the stage's map, with channels last in memory."""
        if not on_cpu(x):
            return self._run_on_gpu(x)
        keep_freed_memory()
        full = [n + 2 * self.padding - self.kernel + 1 for n in x.shape[2:]]
        pooled = [n // self.pool for n in full]
        out = x.new_empty(len(x), *pooled, len(self.bias))
        row = len(self.bias) * x.element_size() * self.pool
        for n in full[1:]:
            row *= n
        whole = pooled[0] * row <= MAP_BYTES
        spans = list(_spans(pooled[0], pooled[0] if whole else max(1, SLAB_BYTES // row)))
        samples = [x[i : i + 1].contiguous(memory_format=CHANNELS_LAST[self.dims]) for i in range(len(x))]

        def fill(slab: tuple[int, tuple[int, int]]) -> None:
            i, (start, stop) = slab
            self._fill(out[i, start:stop], samples[i], start, in_one_piece=stop - start == pooled[0])

        slabs = list(itertools.product(range(len(x)), spans))
        if whole:
            for slab in slabs:
                fill(slab)
        else:
            in_threads(fill, slabs)
        return out.movedim(-1, 1)

    def _fill(self, out: Tensor, x: Tensor, start: int, in_one_piece: bool) -> None:
        """Compute the rows of the pooled map from ``start`` on, ``1 c *s -> *s' c'``, into ``out``."""
        stop, size = start + len(out), tuple(out.shape[:-1])
        if self.paired is not None:
            self._finish(_maximum(self.paired(self._slab(x, start, stop)), size, self.pool, 1), out)
            return
        # A map in one piece is padded by the convolution itself.
        slab, shape = (x, self.full_shape) if in_one_piece else (self._slab(x, start, stop), self.slab_shape)
        convolved = conv(slab, self.weight, self.bias, shape)[0].movedim(0, -1)
        self._finish(_maximum(convolved, size, self.pool, 0, out), out)

    def _slab(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Return what the rows ``start`` to ``stop`` of the pooled map are made of, with the zeros around the map."""
        last = stop * self.pool - self.padding + self.kernel - 1
        return padded_rows(x, start * self.pool - self.padding, last)

    def _finish(self, x: Tensor, out: Tensor) -> None:
        """Do what remains after the pooling, ``*s c -> *s c``, into ``out``, which may be ``x``."""
        if self.low is not None:
            torch.maximum(x, self.low, out=out)
            if self.high is not None:
                torch.minimum(out, self.high, out=out)
        elif self.scale is not None and self.shift is not None:
            torch.addcmul(self.shift, x.relu_(), self.scale, out=out)
        else:
            torch.clamp_min(x, 0.0, out=out)

    def _windows(self, weight: Tensor) -> Tensor | None:
        """Pack the weights of a volume of one channel for the kernel that convolves and pools, if it supports them."""
        if self.dims != 3 or weight.shape[1] != 1 or not kernel_serves("conv_pool", weight):
            return None
        from medzoo.kernels.cuda.conv_pool import conv_pool_serves, pack_windows

        serves = conv_pool_serves(len(weight), self.kernel, self.pool)
        return pack_windows(weight, self.pool) if serves else None

    def _run_on_gpu(self, x: Tensor) -> Tensor:
        """Do the same on the complete map, by the GPU's kernels and libraries."""
        if not kernel_serves("pool_last", x):
            return self._public(x)
        from medzoo.kernels.cuda.conv_pool import Epilogue, conv_pool, pool_last, pool_last_serves

        after = Epilogue(*self.after)
        if self.windows is not None and self.windows.dtype == x.dtype:
            out = conv_pool(x, self.windows, after, kernel=self.kernel, padding=self.padding, pool=self.pool)
            return out.movedim(-1, 1)
        # The library would add the bias in a pass of its own.
        x = conv(channels_last(x), self.weight, None, self.full_shape).movedim(1, -1).contiguous()
        return (pool_last(x, after, self.pool) if pool_last_serves(x) else self._pooled(x + self.bias)).movedim(-1, 1)

    def _public(self, x: Tensor) -> Tensor:
        """Do the same by public operators."""
        x = conv(channels_last(x), self.weight, self.bias, self.full_shape)
        return self._pooled(x.movedim(1, -1)).movedim(-1, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        """Pool a convolved map and finish it, ``b *s c -> b *s' c``.

        ``max_pool3d`` would also write indices of eight bytes each.
        """
        size = (len(x), *(n // self.pool for n in x.shape[1:-1]))
        x = _maximum(x, size, self.pool, 1)
        out = torch.empty_like(x)
        self._finish(x, out)
        return out


def _spans(length: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut ``range(length)`` into spans of at most ``step``."""
    for start in range(0, length, step):
        yield start, min(start + step, length)


def _pairs(weight: Tensor, pool: int) -> bool:
    """Whether a convolution goes faster by pairs of planes: with few channels, adding them up outweighs it.

    In bfloat16 the sums of kernels and planes would lose too many digits.
    """
    exact = on_cpu(weight) and weight.dtype == torch.float32
    return exact and weight.shape[2:] == (3, 3, 3) and pool == 2 and weight.shape[1] >= 16


def _maximum(x: Tensor, size: tuple[int, ...], pool: int, done: int, out: Tensor | None = None) -> Tensor:
    """Pool one axis after the other, ``*s c -> *size c``, but for the first ``done``; what is left over is dropped.

    The result is in ``out`` if that is given, unless there is nothing to pool.
    """
    last = len(size) - 1
    for axis, n in list(enumerate(size))[done:]:
        parts = x.narrow(axis, 0, n * pool).reshape(*size[:axis], n, pool, *x.shape[axis + 1 :]).unbind(axis + 1)
        x = parts[0]
        for j, part in enumerate(parts[1:]):
            x = torch.maximum(x, part, out=x if j else out if axis == last else None)
    return x
