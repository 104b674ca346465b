"""When inference may leave the plain modules, and oneDNN's convolution where PyTorch hides it.

PyTorch sends a convolution to oneDNN only if the batch is larger than one or the input is large enough; a single volume
of one channel is neither. The operators used here are private to PyTorch, so each has a trial and a public stand-in.

Axes: b batch, c channels, s any number of spatial axes.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medzoo.nn.fast_path import hooked, inner, watched

__all__ = [
    "CHANNELS_LAST",
    "Shape",
    "Watch",
    "channels_last",
    "conv",
    "eager",
    "on_cpu",
    "pack_conv",
    "private",
    "served",
    "wants_gradients",
]

CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
# Attributes of a module that hold its parts and those who listen to it.
_CONTENTS = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_CONV: dict[int, Any] = {2: F.conv2d, 3: F.conv3d}

_version = operator.attrgetter("_version")


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


def wants_gradients(module: nn.Module) -> bool:
    """Whether a parameter of a module, or of one inside it, waits for a gradient."""
    for part in inner(module):
        for p in part._parameters.values():
            if p is not None and p.requires_grad:
                return True
    return False


class Watch:
    """Remembers the modules, tensors and modes of some modules, to tell whether what was derived from them still holds.

    This is asked in every forward pass and there may be hundreds of modules, so that everything is compared by few
    calls that loop in C.

    Args:
        modules: what to watch, with all that is inside.
        exact: keep copies of the tensors and compare them too, because writing through ``.data`` leaves no other trace.
            Not on a GPU: each comparison would wait for it, and a CUDA graph could not be captured. There, only what
            PyTorch counts is seen, as without ``exact``.
    """

    def __init__(self, *modules: nn.Module, exact: bool) -> None:
        self.modules = inner(*modules)
        self.hooked, self.training = hooked(*self.modules), any(m.training for m in self.modules)
        self._kinds = [type(m) for m in self.modules]
        # Modes, settings such as the eps of a norm, and a forward put in by hand.
        self._attributes = [m.__dict__ for m in self.modules]
        self._before = [dict(attributes) for attributes in self._attributes]
        contents = [attributes[name] for attributes in self._attributes for name in _CONTENTS]
        self._empty = [some for some in contents if not some]
        self._filled = [some.values() for some in contents if some]
        # The objects are held, so that their identity means something.
        self._members = list(itertools.chain.from_iterable(self._filled))
        tensors = [t for t in self._members if isinstance(t, Tensor)]
        self._tensors = tensors
        # Moving or casting a module puts other data behind the same tensors. An alias keeps the memory, so that no
        # other data gets its address.
        self._aliases = [t.detach() for t in tensors]
        self._addresses = list(map(Tensor.data_ptr, tensors))
        self._counted = [t for t in tensors if not t.is_inference()]
        self._versions = list(map(_version, self._counted))
        self._copies = [(t, t.detach().clone()) for t in tensors if exact and not t.is_cuda]

    def holds(self) -> bool:
        """Whether nothing was replaced, written to, moved, hooked, set otherwise or switched to training since."""
        try:
            same = self._same_modules() and self._same_tensors()
        except (RuntimeError, TypeError, ValueError):
            return False  # what was put in cannot be compared
        return same and all(torch.equal(t, copy) for t, copy in self._copies)

    def _same_modules(self) -> bool:
        if any(self._empty) or self._attributes != self._before or list(map(type, self.modules)) != self._kinds:
            return False
        members = list(itertools.chain.from_iterable(self._filled))
        return len(members) == len(self._members) and all(map(operator.is_, members, self._members))

    def _same_tensors(self) -> bool:
        same = list(map(Tensor.data_ptr, self._tensors)) == self._addresses
        return same and list(map(_version, self._counted)) == self._versions


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


def channels_last(x: Tensor) -> Tensor:
    """Return a map or a kernel with its channels last in memory, ``b c *s``, and with strides that say so.

    With one channel both layouts are the same memory, and ``contiguous`` leaves the strides of the other one. cuDNN
    would then return its map channels first.
    """
    if x.shape[1] == 1:
        return x[:, 0].contiguous().unsqueeze(-1).movedim(-1, 1)
    return x.contiguous(memory_format=CHANNELS_LAST[x.ndim - 2])


def pack_conv(weight: Tensor, shape: Shape, size: Sequence[int] | None = None) -> Tensor:
    """Lay out a kernel once as :func:`conv` reads it fastest.

    Args:
        weight: the kernel, perhaps laid out already.
        shape: of the convolution.
        size: of the input, ``b c *s``. Without it the layout is a guess, and oneDNN may have to mend it in every call.
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
