"""BatchNorm in inference: a scale and a shift of each channel.

Axes: c channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["affine", "foldable", "is_batchnorm"]


def foldable(norm: Any) -> bool:
    """Whether a BatchNorm takes its statistics from training and not from the batch."""
    return not norm.training and isinstance(norm.running_mean, Tensor)


def is_batchnorm(norm: nn.Module) -> bool:
    """Whether a module is a foldable BatchNorm2d, perhaps timm's with an activation and nothing in between."""
    normal = type(norm) is nn.BatchNorm2d or (
        type(norm).__qualname__ == "BatchNormAct2d" and type(getattr(norm, "drop", None)) is nn.Identity
    )
    return normal and foldable(norm)


def affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a BatchNorm, ``c`` and ``c``, in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()
