"""The names that the pickle of a checkpoint may hold, as ``module name``. They are compared and never looked up."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

__all__ = ["DENSENET", "DTYPES", "OPAQUE", "SHELLS", "STORAGES", "TENSORS"]

DENSENET = "torchxrayvision.models DenseNet"
SHELLS = frozenset(
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
        "torch.storage UntypedStorage": torch.uint8,  # of the kinds of number that have no storage of their own
    }
)
# Every kind of number, which a trainer may keep among its settings; a tensor is made of the plain ones alone.
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {f"torch {name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
)
TENSORS = frozenset({"torch Tensor", "torch.nn.parameter Parameter"})
# Data that nobody reads: settings, metrics, and the bytes of NumPy's scalars.
OPAQUE = frozenset(
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
    # Protocol 2 gives the built-in types the name of their module in Python 2.
    | {f"{module} {name}" for module in ("__builtin__", "builtins") for name in ("bytearray", "complex", "frozenset")}
)
