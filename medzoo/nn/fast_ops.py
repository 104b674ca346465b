"""When inference may leave the plain modules, and oneDNN's convolution where PyTorch hides it.

PyTorch sends a convolution to oneDNN only if the batch is larger than one or the input is large enough; a single volume
of one channel is neither. The operators used here are private to PyTorch, so each has a trial and a public stand-in.

Axes: b batch, c channels, s any number of spatial axes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medzoo.nn.fast_path import hooked, watched

__all__ = [
    "CHANNELS_LAST",
    "Shape",
    "Watch",
    "conv",
    "eager",
    "on_cpu",
    "pack_conv",
    "private",
    "served",
    "wants_gradients",
]

CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
# Numbers of a convolution, a pool or a norm that what is derived from it depends on.
SETTINGS = ("eps", "kernel_size", "stride", "padding", "dilation", "groups")
_CONV: dict[int, Any] = {2: F.conv2d, 3: F.conv3d}


class Shape(NamedTuple):
    """Stride, padding, dilation and groups of a convolution."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def eager(x: Tensor) -> bool:
    """Whether ``x`` is an ordinary tensor in ordinary inference: not traced, differentiated or under autocast."""
    return not (
        watched(x)
        or type(x) is not Tensor
        or (x.requires_grad and torch.is_grad_enabled())
        or torch.is_autocast_enabled(x.device.type)
        or x.shape[0] == 0
    )


def on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is what the CPU's fast path is written for."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


def served(x: Tensor) -> bool:
    """Whether there is a fast path for the device and type of ``x``: float32 and bfloat16 on a CPU, all on a GPU."""
    return on_cpu(x) or x.is_cuda


def inner(module: nn.Module) -> list[nn.Module]:
    """List a module and all inside it; ``modules()`` also builds their names, and takes ten times as long."""
    found = [module]
    for parent in found:
        found.extend(child for child in parent._modules.values() if child is not None)
    return found


def wants_gradients(module: nn.Module) -> bool:
    """Whether a parameter of a module, or of one inside it, waits for a gradient."""
    return any(p is not None and p.requires_grad for m in inner(module) for p in m._parameters.values())


class Watch:
    """Remembers the modules, tensors and modes of a module, to tell whether what was derived from them still holds.

    Args:
        module: what to watch.
        exact: keep copies of its tensors and compare them too, because writing through ``.data`` leaves no other trace.
    """

    def __init__(self, module: nn.Module, *, exact: bool) -> None:
        self.module = module
        self.kept, self.state = self._look()
        tensors = [t for t in self.kept if isinstance(t, Tensor)] if exact else []
        self.copies = [(t, t.detach().clone()) for t in tensors]

    def holds(self) -> bool:
        """Whether nothing was replaced, written to, moved, hooked, set otherwise or switched to training since."""
        return self._look()[1] == self.state and all(torch.equal(t, copy) for t, copy in self.copies)

    def _look(self) -> tuple[list[object], list[object]]:
        modules = inner(self.module)
        found = [t for module in modules for t in (*module._parameters.values(), *module._buffers.values())]
        tensors = [t for t in found if t is not None]
        state: list[object] = [*map(id, modules), *map(id, tensors), hooked(*modules)]
        state += [0 if t.is_inference() else t._version for t in tensors]
        # Moving or casting a module puts other data behind the same tensors.
        state += [(t.data_ptr(), t.dtype, t.device) for t in tensors]
        state += [(m.training, *(m.__dict__.get(name) for name in SETTINGS)) for m in modules]
        # The objects are held, so that no other gets their ids.
        return [*modules, *tensors], state


@functools.cache
def private_ops(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the private operators, and they compute what the public ones do.

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


def pack_conv(weight: Tensor, shape: Shape, size: Sequence[int] | None = None) -> Tensor:
    """Lay out a kernel once as :func:`conv` reads it fastest.

    Args:
        weight: the kernel, perhaps laid out already.
        shape: of the convolution.
        size: of the input, ``b c *s``. Without it the layout is a guess, and oneDNN may have to mend it in every call.
    """
    if weight.is_mkldnn:
        weight = weight.to_dense(weight.dtype)
    weight = weight.contiguous(memory_format=CHANNELS_LAST[weight.ndim - 2])
    return _private_conv_pack(weight, shape, size) if private(weight) else weight


def conv(x: Tensor, weight: Tensor, bias: Tensor, shape: Shape, relu: bool = False) -> Tensor:
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


def _private_conv(x: Tensor, weight: Tensor, bias: Tensor, shape: Shape, relu: bool) -> Tensor:
    y = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, shape.padding, shape.stride, shape.dilation, shape.groups, "none", [], ""
    )
    # The operator's own ReLU would make 0 of NaN, and a broken input or weight a plausible output.
    return y.relu_() if relu else y
