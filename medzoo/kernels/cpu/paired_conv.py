"""Convolution by pairs of planes: Winograd's F(2, 3) along depth, 4 plane convolutions for what takes 6.

Two output planes read four input planes ``a b c d`` through three kernel planes ``p q r``. With

    u = (a - c) * p,  v = (b + c) * (p + q + r)/2,  w = (c - b) * (p - q + r)/2,  z = (b - d) * r

they are ``u + v + w`` and ``v - w - z``; their maximum is ``v + max(u + w, -w - z)``. Lavin and Gray, Fast Algorithms
for Convolutional Neural Networks, https://arxiv.org/abs/1509.09308. Rounding grows by a small factor; a test holds it.

Axes: b batch, c channels, d h w depth height width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medzoo.nn.fast_ops import Shape, conv, pack_conv

__all__ = ["PairedConv"]


class PairedConv:
    """A 3 × 3 × 3 convolution and the maximum of each two planes, ``1 c 2d+2 h w -> d h' w' c'``.

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
