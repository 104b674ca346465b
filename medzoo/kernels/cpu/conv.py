"""Convolution by oneDNN where PyTorch hides it, and 3 x 3 x 3 convolution by pairs of planes.

PyTorch sends a convolution to oneDNN only if the batch is larger than one or the input is large enough; a single volume
of one channel is neither. The operators used here are private to PyTorch, so each is tested once and has a public
fallback.

Axes: b batch, c channels, s any number of spatial axes, d h w depth height width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "CHANNELS_LAST",
    "PairedConv",
    "Shape",
    "channels_last",
    "conv",
    "on_cpu",
    "pack_conv",
    "padded_rows",
    "private",
]

CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
_CONV: dict[int, Any] = {2: F.conv2d, 3: F.conv3d}


class Shape(NamedTuple):
    """Stride, padding, dilation and groups of a convolution."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is what the CPU's fast path is written for."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


@functools.cache
def private_ops(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the private operators, and they agree with the public ones.

    In bfloat16 they also want a processor with AVX-512 or better.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's
        return False
    ramp = torch.arange(64, dtype=dtype, device="cpu")
    x, weight, bias = ramp.reshape(1, 1, 4, 4, 4), ramp[:54].reshape(2, 1, 3, 3, 3), ramp[:2]
    shape = Shape((1, 1, 1), (0, 1, 1), (1, 1, 1), 1)
    try:
        with torch.inference_mode():
            convolved = _private_conv(x, _private_conv_pack(weight, shape), bias, shape, relu=True)
            expected = F.conv3d(x, weight, bias, padding=shape.padding).relu()
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(convolved, expected, rtol=1e-5 if dtype == torch.float32 else 2e-2)


def private(tensor: Tensor) -> bool:
    """Whether the private operators are to be used on ``tensor``."""
    return on_cpu(tensor) and bool(torch.backends.mkldnn.enabled) and private_ops(tensor.dtype)


def channels_last(x: Tensor) -> Tensor:
    """Return a map or a kernel with its channels last in memory, ``b c *s``, and with the strides of that layout.

    With one channel both layouts are the same memory, and ``contiguous`` leaves the strides of the other one. cuDNN
    would then return its map channels first.
    """
    if x.shape[1] == 1:
        return x[:, 0].contiguous().unsqueeze(-1).movedim(-1, 1)
    return x.contiguous(memory_format=CHANNELS_LAST[x.ndim - 2])


def padded_rows(x: Tensor, first: int, last: int) -> Tensor:
    """Return rows ``first`` to ``last`` of the first spatial axis, with zeros for those outside of the map."""
    # Where the padding is larger than the kernel, all of them may be outside.
    start, stop = (min(max(0, row), x.shape[2]) for row in (first, last))
    before = min(max(0, -first), last - first)
    after = last - first - before - (stop - start)
    rows = x[:, :, start:stop]
    return F.pad(rows, (*[0, 0] * (x.ndim - 3), before, after)) if before or after else rows


def pack_conv(weight: Tensor, shape: Shape, size: Sequence[int] | None = None) -> Tensor:
    """Pack a kernel once in the memory layout that :func:`conv` reads fastest.

    Args:
        weight: the kernel, packed before or not.
        shape: of the convolution.
        size: of the input, ``b c *s``. Without it the layout is a guess, and oneDNN may convert it in every call.
    """
    if weight.is_mkldnn:
        weight = weight.to_dense(weight.dtype)
    weight = channels_last(weight)
    return _private_conv_pack(weight, shape, size) if private(weight) else weight


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape, relu: bool = False) -> Tensor:
    """Convolve with a kernel from :func:`pack_conv`, ``b c *s -> b c' *s'``.

    Raises:
        RuntimeError: ``x`` is of another type than the kernel, as with PyTorch's own convolution.
    """
    if weight.is_mkldnn:
        if x.dtype != weight.dtype:
            raise RuntimeError(f"conv: expected {weight.dtype}, as the kernel is, got {x.dtype}. Use one type for all.")
        return _private_conv(x, weight, bias, shape, relu)
    x = _CONV[x.ndim - 2](x, weight, bias, shape.stride, shape.padding, shape.dilation, shape.groups)
    return x.relu_() if relu else x


def _private_conv_pack(weight: Tensor, shape: Shape, size: Sequence[int] | None = None) -> Tensor:
    return torch.ops.mkldnn._reorder_convolution_weight(
        weight, shape.padding, shape.stride, shape.dilation, shape.groups, size
    )


def _private_conv(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape, relu: bool) -> Tensor:
    y = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, shape.padding, shape.stride, shape.dilation, shape.groups, "none", [], ""
    )
    # The operator's own ReLU would make 0 of NaN, and a broken input or weight a plausible output.
    return y.relu_() if relu else y


class PairedConv:
    """A 3 × 3 × 3 convolution and the maximum of each two planes, ``1 c 2d+2 h w -> d h' w' c'``.

    Winograd's F(2, 3) along depth: 4 plane convolutions for what takes 6. Two output planes read four input planes
    ``a b c d`` through three kernel planes ``p q r``. With

        u = (a - c) * p,  v = (b + c) * (p + q + r)/2,  w = (c - b) * (p - q + r)/2,  z = (b - d) * r

    they are ``u + v + w`` and ``v - w - z``; their maximum is ``v + max(u + w, -w - z)``. Rounding grows by a small
    factor, which a test bounds. Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks,
    https://arxiv.org/abs/1509.09308.

    Args:
        weight: its kernel.
        bias: added to every voxel.
        padding: zeros at the borders of height and width; depth has none.
    """

    def __init__(self, weight: Tensor, bias: Tensor, padding: int) -> None:
        p, q, r = weight.double().unbind(2)
        self.shape = Shape((1, 1), (padding, padding), (1, 1), 1)
        kernels = (p, (p + q + r) / 2, (p - q + r) / 2, r)
        self.kernels = [pack_conv(kernel.to(weight.dtype), self.shape) for kernel in kernels]
        self.bias, self.zero = bias, torch.zeros_like(bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve and pool along depth."""
        planes = x[0].movedim(0, -1)
        a, b, c, d = (planes[i : i + len(planes) - 2 : 2] for i in range(4))
        u, v, w, z = (
            conv(plane.movedim(-1, 1), kernel, self.bias if i == 1 else self.zero, self.shape).movedim(1, -1)
            for i, (plane, kernel) in enumerate(zip((a - c, b + c, c - b, b - d), self.kernels, strict=True))
        )
        return torch.maximum(u.add_(w), w.add_(z).neg_(), out=u).add_(v)
