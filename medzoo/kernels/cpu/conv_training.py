"""Convolution, ReLU, max pooling and BatchNorm in training on a CPU, slab by slab.

PyTorch writes and reads the convolved map several times, and keeps two copies for the backward pass. Here a slab of it
is computed, and while the cache holds it, its maxima are taken and its sums for the statistics. Only the pooled map
stays, with the position of each maximum.

In the backward pass of the convolved map, a voxel that is a maximum has the gradient of that. Where the statistics of a
BatchNorm are those of the convolved map, every voxel has in addition one that is linear in its own value. So a slab of
gradients is made of zeros, or of the convolution done again, and the gradients of the maxima are added in place.

With ``y`` what is normalised, of n values with mean m and variance v, ``s = weight / sqrt(v + eps)``, and g the
gradient of the result, BatchNorm's derivative is

    d(y) = s g + a + b y,  where  b = -s sum(g (y - m)) / (v + eps) / n  and  a = -s sum(g) / n - b m

Axes: b batch, c channels, s any number of spatial axes, n voxels of a slab, k numbers of a kernel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from medzoo.kernels.cpu.conv import CHANNELS_LAST, Shape, channels_last, conv, pack_conv
from medzoo.kernels.cpu.conv_slabs import PooledConvInputs, StageSlab, StageSlabs, is_narrow
from medzoo.kernels.cpu.recompute import Sums
from medzoo.kernels.cpu.slabs import keep_freed_memory
from medzoo.kernels.cpu.threads import in_threads

__all__ = ["PooledConv"]

# Values in front of a slab of gradients, as many as a vector has. Gradients of what ReLU made zero go to the first one.
MARGIN = 16
_CONV: dict[int, Any] = {2: F.conv2d, 3: F.conv3d}
_POOL: dict[int, Any] = {2: F.max_pool2d, 3: F.max_pool3d}


class PooledConv(torch.autograd.Function):
    """A convolution, ReLU, max pooling and perhaps a BatchNorm, ``b c *s -> b c' *s'``.

    Its inputs are those of :class:`PooledConvInputs`. It has derivatives of every order. It returns the result, with
    channels last in memory, and mean and biased variance of what was normalised, ``c'`` each, or ``None`` twice. For
    the backward pass it keeps its inputs, the position of each maximum, and with a BatchNorm the pooled map before it.
    """

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Convolve and pool each slab, then normalise."""
        keep_freed_memory()
        inputs = PooledConvInputs(*given)
        slabs = StageSlabs(inputs)
        packed = pack_conv(inputs.weight, slabs.shape)
        out = _empty_map(inputs, slabs)
        pooled = torch.empty_like(out.movedim(1, -1)) if inputs.norm else out.movedim(1, -1)
        positions = torch.empty(pooled.shape, dtype=torch.int32, device="cpu")

        def run(slab: StageSlab) -> tuple[int, Tensor, Tensor] | None:
            y = channels_last(conv(slab.of(inputs), packed, inputs.bias, slabs.shape))
            before = _moments(_by_voxel(y.relu_())) if inputs.norm == "before pooling" else None
            _write_maxima(y, inputs, pooled[slab.pooled], positions[slab.pooled])
            return _moments(pooled[slab.pooled].flatten(0, -2)) if inputs.norm == "after pooling" else before

        moments = [found for found in in_threads(run, list(slabs)) if found is not None]
        mean, variance = _combined(moments, pooled.dtype) if moments else (None, None)
        ctx.save_for_backward(*inputs[:6], positions, pooled if inputs.norm else None, mean, variance)
        # The positions are those in these slabs, and the backward pass may run where there are other threads.
        ctx.numbers, ctx.slabs = inputs[6:], slabs
        if mean is None or variance is None:
            return out, None, None
        ctx.mark_non_differentiable(mean, variance)
        scale = _slope(inputs, variance)
        shift = -mean * scale if inputs.shift is None else inputs.shift - mean * scale
        torch.addcmul(shift, pooled, scale, out=out.movedim(1, -1))
        return out, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Go back through each slab, or, for a derivative of this derivative, through PyTorch's own operators."""
        *tensors, positions, pooled, mean, variance = ctx.saved_tensors
        inputs = PooledConvInputs(*tensors, *ctx.numbers)
        needed = ctx.needs_input_grad[:5]
        # The forward pass ran without: autocast of the caller would compute again in another precision.
        with torch.autocast("cpu", enabled=False):
            if torch.is_grad_enabled() or _is_batched(grad):
                return (*_differentiable(inputs, grad, needed), *[None] * 5)
            found = _Backward(inputs, ctx.slabs, positions, pooled, mean, variance, grad.movedim(1, -1)).run(needed)
        return (*found, *[None] * 5)


def _is_batched(grad: Tensor) -> bool:
    """Whether ``vmap``, or ``is_grads_batched``, asks for the gradients of many results at once."""
    functorch = getattr(torch._C, "_functorch", None)
    checks = (getattr(functorch, name, None) for name in ("is_batchedtensor", "is_legacy_batchedtensor"))
    return any(check is not None and check(grad) for check in checks)


def _empty_map(inputs: PooledConvInputs, slabs: StageSlabs) -> Tensor:
    """Return memory for the result. It is no view: what a function returns as a view cannot be written over."""
    size = (len(inputs.x), len(inputs.weight), *slabs.pooled)
    return torch.empty(size, dtype=inputs.x.dtype, device="cpu", memory_format=CHANNELS_LAST[len(slabs.pooled)])


def _differentiable(inputs: PooledConvInputs, grad: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
    """Compute all again by PyTorch's operators, and return gradients that have gradients or are batched by vmap."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        out = _plain(inputs)
    wanted = [t for t, need in zip(inputs[:5], needed, strict=True) if need and isinstance(t, Tensor)]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=graph))
    return [next(found) if need else None for need in needed]


def _plain(inputs: PooledConvInputs) -> Tensor:
    """Compute the same by PyTorch's operators."""

    def normalise(y: Tensor) -> Tensor:
        return F.batch_norm(y, None, None, inputs.scale, inputs.shift, training=True, eps=inputs.eps)

    y = _CONV[inputs.x.ndim - 2](inputs.x, inputs.weight, inputs.bias, padding=inputs.padding).relu()
    if not inputs.norm:
        return _maxima(y, inputs.sign, inputs.pool)[0]
    y = _POOL[y.ndim - 2](normalise(y) if inputs.norm == "before pooling" else y, inputs.pool)
    return normalise(y) if inputs.norm == "after pooling" else y


def _by_voxel(y: Tensor) -> Tensor:
    """View a map with channels last as ``n c``."""
    return y.movedim(1, -1).reshape(-1, y.shape[1])


def _moments(values: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return count, mean and sum of squared deviations of ``n c``."""
    mean = values.sum(0).div_(len(values))
    return len(values), mean.double(), (values - mean).square_().sum(0).double()


def _combined(moments: Sequence[tuple[int, Tensor, Tensor]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Combine the moments of all slabs to mean and biased variance, which cannot be negative."""
    counts = torch.tensor([count for count, _, _ in moments], dtype=torch.float64, device="cpu")[:, None]
    means, squares = (torch.stack(column) for column in list(zip(*moments, strict=True))[1:])
    mean = (counts * means).sum(0) / counts.sum()
    variance = (squares + counts * (means - mean).square()).sum(0) / counts.sum()
    return mean.to(dtype), variance.to(dtype)


def _slope(inputs: PooledConvInputs, variance: Tensor) -> Tensor:
    """Return what a BatchNorm multiplies with."""
    factor = (variance + inputs.eps).rsqrt()
    return factor if inputs.scale is None else factor * inputs.scale


def _maxima(y: Tensor, sign: Tensor | None, pool: int) -> tuple[Tensor, Tensor]:
    """Return the chosen value of each window of ``b c *s``, and its place among the voxels of its sample."""
    maximum = _POOL[y.ndim - 2]
    if sign is None:
        return maximum(y, pool, return_indices=True)
    # After ReLU: a scale of 0 makes NaN of infinity, but not of what is 0 by then. Of a window of
    # -inf alone, PyTorch may return any place.
    signed = (y.relu() * sign.reshape(-1, *[1] * (y.ndim - 2))).clamp_min_(torch.finfo(y.dtype).min)
    places = maximum(signed, pool, return_indices=True)[1]
    by_sample = places.movedim(1, -1)
    values = y.movedim(1, -1).flatten(1, -2).gather(1, by_sample.flatten(1, -2)).view(by_sample.shape)
    return values.movedim(-1, 1), places


def _write_maxima(y: Tensor, inputs: PooledConvInputs, pooled: Tensor, positions: Tensor) -> None:
    """Pool a slab, ``b c *s -> b *s' c``, and write where each maximum is in a slab of gradients, see ``MARGIN``."""
    found, places = (t.movedim(1, -1) for t in _maxima(y, inputs.sign, inputs.pool))
    torch.clamp_min(found, 0.0, out=pooled)
    channels, sample = y.shape[1], y[0].numel()
    torch.add(torch.arange(MARGIN, MARGIN + channels, device="cpu"), places, alpha=channels, out=positions)
    for i in range(1, len(y)):
        positions[i] += i * sample
    if inputs.norm != "before pooling":  # there, the complete slab passes through ReLU's derivative
        positions.masked_fill_(found <= 0, 0)


class _Piece(NamedTuple):
    """What a slab adds to the gradients of weight and bias, and to the rows of the input's below its own."""

    to_weight: Tensor | None
    to_bias: Tensor | None
    below: Tensor | None


class _Backward:
    """The backward pass through the slabs.

    Args:
        inputs: of the forward pass.
        slabs: of the forward pass.
        positions: of each maximum, see :func:`_write_maxima`.
        pooled: the map before a BatchNorm, ``b *s' c``.
        mean: what the BatchNorm took off, ``c``.
        variance: what it divided by, ``c``.
        grad: of the result, ``b *s' c``.
    """

    def __init__(
        self,
        inputs: PooledConvInputs,
        slabs: StageSlabs,
        positions: Tensor,
        pooled: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        grad: Tensor,
    ) -> None:
        self.inputs, self.slabs = inputs, slabs
        self.positions, self.pooled, self.grad = positions, pooled, grad
        self.to_norm: tuple[Tensor | None, Tensor | None] = (None, None)
        if pooled is not None and mean is not None and variance is not None:
            self._differentiate_norm(pooled, mean, variance)

    def _differentiate_norm(self, pooled: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Compute slope, constant and linear term of the BatchNorm's derivative, as in the head of this file."""

        def run(slab: StageSlab) -> tuple[Tensor, Tensor]:
            grad = self.grad[slab.pooled].reshape(-1, len(mean))
            return grad.sum(0), (pooled[slab.pooled].flatten(0, -2) - mean).mul_(grad).sum(0)

        sums = zip(*in_threads(run, list(self.slabs)), strict=True)
        total, product = (torch.stack(parts).sum(0, dtype=torch.float64) for parts in sums)
        size = self.slabs.full if self.inputs.norm == "before pooling" else self.slabs.pooled
        voxels = len(pooled) * math.prod(size)
        spread = variance.double() + self.inputs.eps
        self.slope = _slope(self.inputs, variance)
        linear = -self.slope * product / spread / voxels
        constant = -self.slope * total / voxels - linear * mean
        self.constant, self.linear = constant.to(mean.dtype), linear.to(mean.dtype)
        self.to_norm = (product * spread.rsqrt()).to(mean.dtype), total.to(mean.dtype)

    def run(self, needed: Sequence[bool]) -> list[Tensor | None]:
        """Return the gradients of input, weight, bias, scale and shift."""
        to_norm = [t if need else None for t, need in zip(self.to_norm, needed[3:], strict=True)]
        if not any(needed[:3]):
            return [None, None, None, *to_norm]
        x, weight = self.inputs[:2]
        to_x = torch.zeros_like(channels_last(x)) if needed[0] else None
        # Of a first stage, with few numbers in a kernel, convolution and gradient are a matrix product each.
        if to_x is None and is_narrow(weight):
            one: Callable[[StageSlab], _Piece] = self._by_taps
        else:
            one = functools.partial(self._by_convolution, pack_conv(weight, self.slabs.shape), to_x, needed)
        sums, slabs, pieces = Sums(2), list(self.slabs), []
        for piece in in_threads(one, slabs):
            sums.add(piece[:2])
            pieces.append(piece.below)
        for slab, below in zip(slabs, pieces, strict=True):  # now that all have written their own rows
            if to_x is not None and below is not None:
                first = slab.last - self.inputs.padding
                shared = to_x[slab.pooled[0], :, max(0, first) : max(0, first + below.shape[2])]
                shared += below[:, :, max(0, -first) :][:, :, : shared.shape[2]]
        return [to_x, *(t if need else None for t, need in zip(sums.values, needed[1:3], strict=True)), *to_norm]

    def _by_taps(self, slab: StageSlab) -> _Piece:
        weight, bias = self.inputs[1:3]
        rows = slab.of(self.inputs)
        taps = _by_tap(rows, weight, self.slabs.shape)
        y = taps.t() @ _as_matrix(weight, bias) if self.inputs.norm == "before pooling" else None
        product = taps @ self._slab(slab, len(rows), y)
        return _Piece(product[1:].t().reshape(weight.shape), product[0], None)

    def _by_convolution(self, packed: Tensor, to_x: Tensor | None, needed: Sequence[bool], slab: StageSlab) -> _Piece:
        weight, bias = self.inputs[1:3]
        rows, y = slab.of(self.inputs), None
        if self.inputs.norm == "before pooling":
            y = _by_voxel(channels_last(conv(rows, packed, bias, self.slabs.shape)))
        grad = self._slab(slab, len(rows), y).view(len(rows), -1, *self.slabs.full[1:], len(weight)).movedim(-1, 1)
        to_rows, to_weight, to_bias = _through_conv(grad, rows, weight, self.slabs.shape, needed)
        if to_x is None or to_rows is None:
            return _Piece(to_weight, to_bias, None)
        # As many rows as the slab has are written by it alone, those below them by the next ones too.
        first, last = (row - self.inputs.padding for row in (slab.first, slab.last))
        own = to_x[slab.pooled[0], :, max(0, first) : max(0, last)]
        own.copy_(to_rows[:, :, max(0, -first) :][:, :, : own.shape[2]])
        return _Piece(to_weight, to_bias, to_rows[:, :, last - first :].clone())

    def _slab(self, slab: StageSlab, samples: int, y: Tensor | None) -> Tensor:
        """Return a slab of the gradients of the convolution, ``n c``, given its result ``y`` if the norm follows it."""
        grad = self.grad[slab.pooled]
        if self.inputs.norm:
            grad = grad * self.slope
        if self.inputs.norm == "after pooling" and self.pooled is not None:
            grad.addcmul_(self.pooled[slab.pooled], self.linear).add_(self.constant)
        channels = grad.shape[-1]
        memory = grad.new_empty(MARGIN + samples * (slab.last - slab.first) * math.prod(self.slabs.full[1:]) * channels)
        found = memory[MARGIN:].view(-1, channels)
        if y is None:
            memory.zero_()
        else:
            torch.addcmul(self.constant, y, self.linear, out=found)
        memory.scatter_add_(0, self.positions[slab.pooled].reshape(-1).long(), grad.reshape(-1))
        if y is not None:
            torch.ops.aten.threshold_backward.grad_input(found, y, 0, grad_input=found)
        return found


def _through_conv(grad: Tensor, x: Tensor, weight: Tensor, shape: Shape, needed: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of a convolution's input, weight and bias, given that of its result."""
    return list(
        torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            [len(weight)],
            shape.stride,
            shape.padding,
            shape.dilation,
            False,
            [0] * len(shape.stride),
            shape.groups,
            needed[:3],
        )
    )


def _by_tap(x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """Return a row of ones, and one for each number of a kernel with all that it is multiplied with: ``k+1 n``."""
    x = F.pad(x, [p for padding in reversed(shape.padding) for p in (padding, padding)])
    kernel = weight.shape[2:]
    size = [n - k + 1 for n, k in zip(x.shape[2:], kernel, strict=True)]
    sample, channel, *steps = x.stride()
    taps = x.new_empty(1 + weight[0].numel(), len(x) * math.prod(size))
    taps[0] = 1
    view = (x.shape[1], *kernel, len(x), *size)
    taps[1:].view(view).copy_(x.as_strided(view, (channel, *steps, sample, *steps)))
    return taps


def _as_matrix(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return bias and kernel as ``k+1 c``."""
    rows = weight.flatten(1).t()
    return torch.cat([rows.new_zeros(1, len(weight)) if bias is None else bias[None], rows])
