"""The names that the pickle of a checkpoint may contain, and the plain record that each call of one becomes.

A name is written ``module name``, as in the pickle. Names are compared with these tables and never looked up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

__all__ = [
    "CALLS",
    "DENSENET",
    "IGNORED_CALLS",
    "MAX_VALUES",
    "MODULE_CLASSES",
    "NAMES",
    "STORAGES",
    "MalformedPickle",
    "Name",
    "NameSet",
    "Storage",
    "StoredModule",
    "StoredTensor",
]

MAX_AXES = 8
MAX_VALUES = 2**62  # in a tensor or a storage; torch counts in 64 bits

DENSENET = "torchxrayvision.models DenseNet"
MODULE_CLASSES = frozenset(
    {
        DENSENET,
        "torchxrayvision.models _DenseBlock",
        "torchxrayvision.models _DenseLayer",
        "torchxrayvision.models _Transition",
        "torch.nn.modules.activation ReLU",
        "torch.nn.modules.batchnorm BatchNorm2d",
        "torch.nn.modules.container ModuleDict",
        "torch.nn.modules.container ModuleList",
        "torch.nn.modules.container Sequential",
        "torch.nn.modules.conv Conv2d",
        "torch.nn.modules.linear Linear",
        "torch.nn.modules.pooling AdaptiveAvgPool2d",
        "torch.nn.modules.pooling AvgPool2d",
        "torch.nn.modules.pooling MaxPool2d",
    }
)
STORAGES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "torch FloatStorage": torch.float32,
        "torch DoubleStorage": torch.float64,
        "torch HalfStorage": torch.float16,
        "torch BFloat16Storage": torch.bfloat16,
        "torch ComplexFloatStorage": torch.complex64,
        "torch ComplexDoubleStorage": torch.complex128,
        "torch LongStorage": torch.int64,
        "torch IntStorage": torch.int32,
        "torch ShortStorage": torch.int16,
        "torch CharStorage": torch.int8,
        "torch ByteStorage": torch.uint8,
        "torch BoolStorage": torch.bool,
        "torch.storage UntypedStorage": torch.uint8,  # of the dtypes without a storage class
    }
)
# Every dtype, which a trainer may keep among its settings; tensors are built of the plain ones alone.
TORCH_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {f"torch {name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
)
# torch cannot create a tensor of these without a quantizer, or cannot compare their values.
PACKED_DTYPES = re.compile(r"torch\.(q.*|bits.*|bcomplex.*|u?int[1-7]|float4.*)")
TENSOR_CLASSES = frozenset({"torch Tensor", "torch.nn.parameter Parameter"})
# Calls whose result is never read: settings, metrics, and the bytes of NumPy's scalars.
IGNORED_CALLS = frozenset(
    {
        "_codecs encode",
        "collections Counter",
        "numpy dtype",
        "numpy.core.multiarray scalar",  # before NumPy 2
        "numpy._core.multiarray scalar",
        "torch Size",
        "torch device",
        "torch.serialization _get_layout",
    }
    # Protocol 2 gives built-in types the name of their module in Python 2.
    | {f"{module} {name}" for module in ("__builtin__", "builtins") for name in ("bytearray", "complex", "frozenset")}
)


class MalformedPickle(Exception):
    """A pickle that torch.save does not write, or that medzoo does not read."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name in the file, which is in one of the tables; it is not looked up."""

    path: str


@dataclass(slots=True)
class StoredModule:
    """A pickled module: its class and its ``__dict__``, as plain data."""

    path: str
    state: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Storage:
    """Values that are elsewhere in the file, under a key."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A view of a storage, verified to be inside it; several elements may share one value."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes once it is contiguous."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class NameSet:
    """A set of names, kept as the list it is built from: a file could fill memory by having one list copied often."""

    names: list[Any]


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """Build a view of a storage that has a dtype."""
    match arguments:
        case (Storage() as storage, offset, shape, stride, bool(), _, *metadata) if not any(metadata):
            return _view(storage, storage.dtype, offset, shape, stride)
    raise MalformedPickle("a tensor that has no storage or is conjugated")


def _untyped_tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """Build a view of a storage of bytes, whose dtype is an argument."""
    match arguments:
        case (Storage() as storage, offset, shape, stride, bool(), _, Name(path), *metadata) if not any(metadata):
            dtype = TORCH_DTYPES.get(path)
            if dtype is None or PACKED_DTYPES.fullmatch(str(dtype)):
                raise MalformedPickle(f"a tensor of {path.replace(' ', '.')}, which medzoo does not read")
            return _view(storage, dtype, offset, shape, stride)
    raise MalformedPickle("a tensor that has no storage or is conjugated")


def _view(storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    """Check that a view is inside its storage."""
    paired = type(shape) is tuple and type(stride) is tuple and len(shape) == len(stride) <= MAX_AXES
    if paired and all(type(number) is int and number >= 0 for number in (*shape, *stride, offset)):
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        # The stride of an axis of size 1 is never used, and can be too large for torch.
        steps = tuple(step if size > 1 else 1 for size, step in zip(shape, stride, strict=True))
        inside = 0 in shape or (last + 1) * dtype.itemsize <= storage.size
        # torch multiplies the other axes of an empty tensor, too.
        if inside and math.prod(size for size in shape if size) <= MAX_VALUES:
            return StoredTensor(storage, dtype, offset, shape, steps)
    raise MalformedPickle("a tensor whose shape does not fit its storage")


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    match arguments:
        case (StoredTensor() as tensor, bool(), _) | (StoredTensor() as tensor, bool(), _, _):
            return tensor
    raise MalformedPickle("a parameter without a tensor")


def _tensor_with_state(arguments: tuple[Any, ...]) -> StoredTensor:
    """Build a tensor that has attributes of its own, without these."""
    match arguments:
        case (Name(path), Name(kind), tuple(inner), _) if path in REBUILDS and kind in TENSOR_CLASSES:
            return REBUILDS[path](inner)
    raise MalformedPickle("a tensor of a subclass")


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise MalformedPickle("an OrderedDict with arguments")
    return {}


def _set(arguments: tuple[Any, ...]) -> NameSet:
    match arguments:
        case (list(names),):
            return NameSet(names)
    raise MalformedPickle("a set that is not built from a list")


REBUILDS: Mapping[str, Callable[[tuple[Any, ...]], StoredTensor]] = MappingProxyType(
    {
        "torch._utils _rebuild_tensor_v2": _tensor,
        "torch._utils _rebuild_tensor_v3": _untyped_tensor,
    }
)
CALLS: Mapping[str, Callable[[tuple[Any, ...]], Any]] = MappingProxyType(
    {
        **REBUILDS,
        "torch._utils _rebuild_parameter": _parameter,
        "torch._utils _rebuild_parameter_with_state": _parameter,
        "torch._tensor _rebuild_from_type_v2": _tensor_with_state,
        "collections OrderedDict": _ordered_dict,
        "builtins set": _set,
        "__builtin__ set": _set,  # in protocol 2
    }
)
NAMES = frozenset({*CALLS, *STORAGES, *MODULE_CLASSES, *IGNORED_CALLS, *TORCH_DTYPES, *TENSOR_CLASSES})
