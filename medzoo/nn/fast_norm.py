"""BatchNorm in eval mode as what it is: a scale and a shift of each channel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["affine", "foldable"]


def foldable(norm: Any) -> bool:
    """Whether a BatchNorm takes its statistics from training and not from the batch."""
    return not norm.training and isinstance(norm.running_mean, Tensor)


def affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a BatchNorm, ``c`` and ``c``, in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()
