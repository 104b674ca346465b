"""A linear layer whose outputs are scaled and shifted by its own weights, and back.

Axes: n outputs, i inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medzoo.errors import ConfigError

__all__ = ["rescale", "undo_rescale"]

# Weight ``n i``, bias, slope and intercept ``n`` to a new weight and bias, in float64.
Change = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def rescale(layer: nn.Linear, slope: Sequence[float], intercept: Sequence[float], who: str) -> None:
    """Change a layer in place so that each output becomes ``slope * output + intercept``.

    It is computed in float64 and rounded once to the dtype of the layer. A row whose slope is 1 and whose intercept is
    0 keeps its bits.

    Raises:
        ConfigError: the layer has no bias, or the result is beyond the range of its dtype; the layer is unchanged.
    """
    _change(layer, slope, intercept, who, lambda w, b, a, c: (a[:, None] * w, a * b + c))


def undo_rescale(layer: nn.Linear, slope: Sequence[float], intercept: Sequence[float], who: str) -> None:
    """Undo :func:`rescale`, to rounding.

    ``slope * weight`` was rounded to the dtype, which loses up to half a unit in its last place, so that the quotient
    is up to one unit in the last place of the weight away from it. A bias is as exact as the sum that was stored: up
    to one unit in the last place of the larger of the bias and ``intercept / slope``. With a power of 2 as slope and 0
    as intercept every bit comes back.

    Raises:
        ConfigError: as in :func:`rescale`.
    """
    _change(layer, slope, intercept, who, lambda w, b, a, c: (w / a[:, None], (b - c) / a))


def _change(layer: nn.Linear, slope: Sequence[float], intercept: Sequence[float], who: str, how: Change) -> None:
    weight, bias = layer.weight, layer.bias
    if bias is None:
        raise ConfigError(f"{who}: expected head.classifier to have a bias, got a layer without. Add one of zeros.")
    a, c = (torch.tensor(v, dtype=torch.float64, device=weight.device) for v in (slope, intercept))
    changed = (a != 1) | (c != 0)
    # Parameters that were made in inference mode can only be written to in it.
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        new = how(weight.double(), bias.double(), a, c)
        ready = (
            torch.where(changed[:, None], new[0].to(weight.dtype), weight),
            torch.where(changed, new[1].to(bias.dtype), bias),
        )
        if not all(bool(torch.isfinite(tensor).all()) for tensor in ready):
            raise ConfigError(
                f"{who}: the weights would be beyond the range of {weight.dtype}. Use float32, or smaller slopes."
            )
        weight.copy_(ready[0])
        bias.copy_(ready[1])
