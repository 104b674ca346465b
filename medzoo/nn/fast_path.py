"""When inference may leave the plain modules, and oneDNN's convolution and linear layer where PyTorch hides them.

PyTorch sends a convolution to oneDNN only if the batch is larger than one or the input is large enough; a single volume
of one channel is neither. The operators used here are private to PyTorch, so each has a trial and a public stand-in.

Axes: b batch, c channels, s any number of spatial axes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CHANNELS_LAST", "conv", "eager", "hooked", "linear", "on_cpu", "pack_conv", "pack_linear"]

CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
_CONV: dict[int, Any] = {2: F.conv2d, 3: F.conv3d}


def eager(x: Tensor) -> bool:
    """Whether ``x`` is an ordinary tensor in ordinary inference: nothing is traced, differentiated or cast around it."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[no-untyped-call]  # torch's
        or type(x) is not Tensor
        or (x.requires_grad and torch.is_grad_enabled())
        or torch.is_autocast_enabled(x.device.type)
        or x.shape[0] == 0
    )


def on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is what the CPU's fast path is written for."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def hooked(*modules: nn.Module) -> bool:
    """Whether someone listens to one of the modules, so that it must run by itself."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules)


@functools.cache
def private_ops() -> bool:
    """Whether this PyTorch has the private operators, and they compute what the public ones do."""
    if not torch.backends.mkldnn.is_available():
        return False
    ramp = torch.arange(64, dtype=torch.float32)
    x, weight, bias = ramp.reshape(1, 1, 4, 4, 4), ramp[:54].reshape(2, 1, 3, 3, 3), ramp[:2]
    try:
        with torch.inference_mode():
            convolved = _private_conv(x, _private_conv_pack(weight, (0, 1, 1)), bias, (0, 1, 1))
            rows = _private_linear(ramp.reshape(8, 8), _private_linear_pack(ramp.reshape(8, 8)), ramp[:8])
            return torch.allclose(convolved, F.conv3d(x, weight, bias, padding=(0, 1, 1))) and torch.allclose(
                rows, F.linear(ramp.reshape(8, 8), ramp.reshape(8, 8), ramp[:8])
            )
    except (AttributeError, RuntimeError, TypeError):
        return False


def _private(tensor: Tensor) -> bool:
    """Whether the private operators are to be used on ``tensor``."""
    return on_cpu(tensor) and torch.backends.mkldnn.enabled and private_ops()


def pack_conv(weight: Tensor, padding: Sequence[int]) -> Tensor:
    """Lay out a kernel once as :func:`conv` reads it fastest."""
    weight = weight.contiguous(memory_format=CHANNELS_LAST[weight.ndim - 2])
    return _private_conv_pack(weight, padding) if _private(weight) else weight


def conv(x: Tensor, weight: Tensor, bias: Tensor, padding: Sequence[int]) -> Tensor:
    """Convolve with stride 1 and a kernel from :func:`pack_conv`, ``b c *s -> b c' *s'``."""
    if weight.is_mkldnn:
        return _private_conv(x, weight, bias, padding)
    return _CONV[x.ndim - 2](x, weight, bias, padding=tuple(padding))


def pack_linear(weight: Tensor) -> Tensor:
    """Lay out a matrix once as :func:`linear` reads it fastest."""
    return _private_linear_pack(weight) if _private(weight) else weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply by a matrix from :func:`pack_linear`, or by a plain one, ``b c -> b c'``."""
    return _private_linear(x, weight, bias) if _private(x) else F.linear(x, weight, bias)


def _private_conv_pack(weight: Tensor, padding: Sequence[int]) -> Tensor:
    ones = [1] * len(padding)
    return torch.ops.mkldnn._reorder_convolution_weight(weight, list(padding), ones, ones, 1, None)


def _private_conv(x: Tensor, weight: Tensor, bias: Tensor, padding: Sequence[int]) -> Tensor:
    ones = [1] * len(padding)
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, list(padding), ones, ones, 1, "none", [], "")


def _private_linear_pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def _private_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
