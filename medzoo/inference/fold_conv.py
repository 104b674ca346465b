"""The convolution stage made fast for inference: fewer passes over memory, each while the cache still holds the map.

What is done, all of it exact but for rounding:

- BatchNorm before the pooling goes into the kernel. Its scale may be negative, which turns a maximum into a minimum;
  but with ``c' = s c + t``, ``max(s relu(c) + t)`` is ``max(c')``, kept above ``t`` where ``s > 0`` and below ``t``
  where ``s < 0``. So the pooling runs first, on the convolution's own result, and all that follows on the small map.
- The maximum is taken along one axis after the other, channels last, without the indices that ``max_pool3d`` keeps.
- 3 × 3 × 3 convolutions of many channels run by pairs of planes, see :mod:`medzoo.kernels.cpu.paired_conv`.
- The first spatial axis is cut into slabs that stay in the cache. Rows that the pooling drops are not computed.

On a GPU the library convolves, without the bias, and one kernel pools, adds the bias and does what follows in a single
pass; with one input channel the convolution is part of that kernel, see :mod:`medzoo.kernels.cuda.conv_pool`. Without
Triton the same is done by public operators.

Axes: b batch, c channels, s any number of spatial axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medzoo.kernels.cpu.paired_conv import PairedConv
from medzoo.kernels.cpu.slabs import keep_freed_memory
from medzoo.kernels.dispatch import kernel_serves
from medzoo.nn.conv import ConvEncoder, ConvStage
from medzoo.nn.encoder import Encoder
from medzoo.nn.fast_norm import affine, foldable
from medzoo.nn.fast_ops import CHANNELS_LAST, Shape, Watch, channels_last, conv, on_cpu, pack_conv, private
from medzoo.nn.fast_path import hooked

__all__ = ["FastConvEncoder", "FoldedStage"]

# Bytes of a slab's convolution: a few of these fit the last-level cache.
SLAB = 8 * 2**20

_ORDERS = (("relu", "pool"), ("relu", "norm", "pool"), ("relu", "pool", "norm"))


class FoldedStage:
    """What a :class:`~medzoo.nn.conv.ConvStage` in eval mode computes, in other steps, ``b c *s -> b c' *s'``.

    Args:
        stage: one that :meth:`can_fold`; its tensors are read now, and not followed.
    """

    def __init__(self, stage: nn.Module) -> None:
        convolution: Any = stage.conv
        pool: Any = stage.pool
        self.kernel, self.padding, self.pool = convolution.kernel_size[0], convolution.padding[0], pool.kernel_size
        self.dims = convolution.weight.ndim - 2
        like = convolution.weight
        weight = like.detach().double()
        bias = weight.new_zeros(len(weight)) if convolution.bias is None else convolution.bias.detach().double()
        low: Tensor | None = None
        high: Tensor | None = None
        scale: Tensor | None = None
        shift: Tensor | None = None
        order = [name for name, _ in stage.named_children()]
        if "norm" in order:
            scale, shift = affine(stage.norm)
            if order.index("norm") < order.index("pool"):
                weight = weight * scale.reshape(-1, *[1] * (self.dims + 1))
                bias = bias * scale + shift
                low = torch.where(scale >= 0, shift, -torch.inf)
                if bool((scale < 0).any()):
                    high = torch.where(scale < 0, shift, torch.inf)
                scale = shift = None
        self.bias = bias.to(like.dtype)
        self.low, self.high, self.scale, self.shift = (
            None if t is None else t.to(like.dtype) for t in (low, high, scale, shift)
        )
        # The arguments of an Epilogue, a class that cannot be imported without Triton.
        self.after: Any = [None if t is None else t.float() for t in (bias, low, high, scale, shift)]
        # The slabs bring their own padding along the axis that is cut.
        one, rest = (1,) * self.dims, (self.padding,) * (self.dims - 1)
        self.slab, self.whole = Shape(one, (0, *rest), one, 1), Shape(one, (self.padding, *rest), one, 1)
        weight = weight.to(like.dtype)
        self.weight = pack_conv(weight, self.slab)
        self.paired = PairedConv(weight, self.bias, self.padding) if _pairs(weight, self.pool) else None
        self.windows = self._windows(weight)

    @staticmethod
    def can_fold(stage: nn.Module) -> bool:
        """Whether the stage is one of the orders above, made of plain modules that no one listens to."""
        parts: dict[str, Any] = dict(stage.named_children())
        order = tuple(parts)[1:]
        if type(stage) is not ConvStage or order not in _ORDERS or stage.training or hooked(stage, *parts.values()):
            return False
        convolution, pool, norm = parts["conv"], parts["pool"], parts.get("norm")
        dims = convolution.weight.ndim - 2
        one, kernel, padding = (1,) * dims, convolution.kernel_size, convolution.padding
        return (
            type(convolution) in (nn.Conv2d, nn.Conv3d)
            and type(parts["relu"]) is nn.ReLU
            and type(pool) in (nn.MaxPool2d, nn.MaxPool3d)
            and (norm is None or (type(norm) in (nn.BatchNorm2d, nn.BatchNorm3d) and foldable(norm)))
            and (convolution.stride, convolution.dilation, convolution.groups) == (one, one, 1)
            and convolution.padding_mode == "zeros"
            and isinstance(padding, tuple)
            and len({*kernel}) == len({*padding}) == 1
            and isinstance(pool.kernel_size, int)
            and (pool.stride, pool.padding, pool.dilation) == (pool.kernel_size, 0, 1)
            and not (pool.ceil_mode or pool.return_indices)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return the stage's map; its channels lie last in memory."""
        if not on_cpu(x):
            return self._whole(x)
        keep_freed_memory()
        full = [n + 2 * self.padding - self.kernel + 1 for n in x.shape[2:]]
        pooled = [n // self.pool for n in full]
        out = x.new_empty(len(x), *pooled, len(self.bias))
        row = len(self.bias) * x.element_size() * self.pool
        for n in full[1:]:
            row *= n
        for i in range(len(x)):
            one = x[i : i + 1].contiguous(memory_format=CHANNELS_LAST[self.dims])
            for start, stop in _spans(pooled[0], max(1, SLAB // row)):
                self._fill(out[i, start:stop], one, start, whole=stop - start == pooled[0])
        return out.movedim(-1, 1)

    def _fill(self, out: Tensor, x: Tensor, start: int, whole: bool) -> None:
        """Compute the rows of the pooled map from ``start`` on, ``1 c *s -> *s' c'``, into ``out``."""
        stop, size = start + len(out), tuple(out.shape[:-1])
        if self.paired is not None:
            self._finish(_maximum(self.paired(self._slab(x, start, stop)), size, self.pool, 1), out)
            return
        # A map in one piece is padded by the convolution itself.
        slab, shape = (x, self.whole) if whole else (self._slab(x, start, stop), self.slab)
        convolved = conv(slab, self.weight, self.bias, shape)[0].movedim(0, -1)
        self._finish(_maximum(convolved, size, self.pool, 0, out), out)

    def _slab(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Return what the rows ``start`` to ``stop`` of the pooled map are made of, with the zeros around the map."""
        first = start * self.pool - self.padding
        last = stop * self.pool - self.padding + self.kernel - 1
        before, after = max(0, -first), max(0, last - x.shape[2])
        slab = x[:, :, max(0, first) : last]
        if before or after:
            slab = F.pad(slab, (*[0, 0] * (self.dims - 1), before, after))
        return slab

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
        """Lay out the kernel of a volume of one channel for the kernel that convolves and pools, if that serves it."""
        if self.dims != 3 or weight.shape[1] != 1 or not kernel_serves("conv_pool", weight):
            return None
        from medzoo.kernels.cuda.conv_pool import conv_pool_serves, pack_windows

        serves = conv_pool_serves(len(weight), self.kernel, self.pool)
        return pack_windows(weight, self.pool) if serves else None

    def _whole(self, x: Tensor) -> Tensor:
        """Do the same on the whole map, for a GPU and its libraries."""
        if not kernel_serves("pool_last", x):
            return self._public(x)
        from medzoo.kernels.cuda.conv_pool import Epilogue, conv_pool, pool_last, pool_last_serves

        after = Epilogue(*self.after)
        if self.windows is not None and self.windows.dtype == x.dtype:
            out = conv_pool(x, self.windows, after, kernel=self.kernel, padding=self.padding, pool=self.pool)
            return out.movedim(-1, 1)
        # The library would add the bias in a pass of its own.
        x = conv(channels_last(x), self.weight, None, self.whole).movedim(1, -1).contiguous()
        return (pool_last(x, after, self.pool) if pool_last_serves(x) else self._pooled(x + self.bias)).movedim(-1, 1)

    def _public(self, x: Tensor) -> Tensor:
        """Do the same by public operators."""
        return self._pooled(conv(channels_last(x), self.weight, self.bias, self.whole).movedim(1, -1)).movedim(-1, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        """Pool a convolved map and finish it, ``b *s c -> b *s' c``.

        ``max_pool3d`` would also write indices of eight bytes each.
        """
        size = (len(x), *(n // self.pool for n in x.shape[1:-1]))
        x = _maximum(x, size, self.pool, 1)
        out = torch.empty_like(x)
        self._finish(x, out)
        return out


class FastConvEncoder(ConvEncoder):
    """A :class:`~medzoo.nn.conv.ConvEncoder` whose stages are folded when they first run, ``b c *s -> b c' *s'``.

    A stage that cannot be folded, or that has a hook, runs as it is.

    Args:
        plain: the encoder whose stages are run.
    """

    plain: ConvEncoder

    def __init__(self, plain: ConvEncoder) -> None:
        Encoder.__init__(self)  # ConvEncoder's would make new weights
        object.__setattr__(self, "plain", plain)  # not a second home of its parameters
        self.stages = plain.stages
        self.feature_info = plain.feature_info
        self._folded: dict[int, tuple[Watch, FoldedStage | None]] = {}

    def stage(self, i: int, x: Tensor) -> Tensor:
        """Run one stage, folded where that is safe."""
        folded = self.folded(i)
        return self.stages[i](x) if folded is None else folded(x)

    def folded(self, i: int) -> FoldedStage | None:
        """Return stage ``i`` folded, or ``None`` if it has to run as it is."""
        stage, found = self.stages[i], self._folded.get(i)
        if found is None or not found[0].holds():
            with torch.inference_mode(False), torch.no_grad():
                folded = FoldedStage(stage) if FoldedStage.can_fold(stage) else None
            found = self._folded[i] = (Watch(stage, exact=True), folded)
        return found[1]

    def told(self) -> list[str]:
        """Say what is done to the stages."""
        plain = [f"stages.{i}" for i in range(len(self.stages)) if self.folded(i) is None]
        done = len(self.stages) - len(plain)
        like = next(self.stages.parameters())
        by_triton = ", pooled by Triton" if kernel_serves("pool_last", like) else ""
        where = "in slabs" if on_cpu(like) else "channels last" + by_triton
        how = "BatchNorm folded, pooled before ReLU, " + where
        how += ", by oneDNN" if private(like) else ""
        lines = [f"{done} of {len(self.stages)} stages: {how}"] if done else []
        return lines + [f"left as they are: {', '.join(plain)}"] * bool(plain)


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
