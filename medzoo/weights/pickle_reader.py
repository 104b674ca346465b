"""Read a pickle into plain data: no name in the file is ever looked up, and nothing in it is ever called.

Only the opcodes of protocol 2 that ``torch.save`` writes are read, and only the names in the tables below, which are
written ``module name`` as in the pickle; any other is an error. A call of a name becomes a plain record of this module,
so a file can neither import nor run nor change anything.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any

import torch

from medzoo.errors import UnsafeWeights, WeightsCorrupt

__all__ = ["DENSENET", "NameSet", "PickleReader", "Storage", "StoredModule", "StoredTensor"]

# A DenseNet-121 has 60,000. An opcode of one byte can take a hundred bytes of memory, so more are allowed only if the
# file has many bytes for each.
MAX_OPCODES = 1_000_000
BYTES_PER_OPCODE = 32
MAX_NAME = 256
OPCODES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}
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


class Ignored:
    """The result of a call that is never read."""

    __slots__ = ()


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
    {"torch._utils _rebuild_tensor_v2": _tensor, "torch._utils _rebuild_tensor_v3": _untyped_tensor}
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


class PickleReader:
    """A reader of the pickles of one file.

    Args:
        source: the file, for messages.
        size: its bytes, which limit the number of opcodes.

    Attributes:
        storages: every storage read so far, by key.
        modules: the classes of the modules read so far.
    """

    def __init__(self, source: str, size: int) -> None:
        self.source = source
        self.storages: dict[str, Storage] = {}
        self.modules: set[str] = set()
        self._max_opcodes = MAX_OPCODES + size // BYTES_PER_OPCODE

    def load(self, stream: IO[bytes]) -> Any:
        """Read one pickle from the current position of the stream, and leave the stream after it.

        Raises:
            UnsafeWeights: a name outside the tables, or an opcode that torch.save does not write.
            WeightsCorrupt: not a pickle, or not one that torch.save writes.
        """
        self._stream = stream
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        try:
            for _ in range(self._max_opcodes):
                code = self._bytes(1)
                if code == pickle.STOP:
                    (result,) = self._stack
                    return result
                if code not in STEPS:
                    opcode = OPCODES.get(code, repr(code))
                    raise self.unsafe(f"the pickle opcode {opcode}, which torch.save does not write")
                STEPS[code](self)
            raise MalformedPickle(f"more than {self._max_opcodes} opcodes")
        except UnsafeWeights:
            raise
        # IndexError, KeyError: an empty stack, an unknown memo. ValueError: invalid UTF-8, more than one result.
        except (MalformedPickle, IndexError, KeyError, ValueError) as error:
            raise self.corrupt(f"a pickle that cannot be read ({str(error)[:200]})") from error

    def unsafe(self, reason: str) -> UnsafeWeights:
        """Return the error for a file that contains more than tensors."""
        return UnsafeWeights(
            f"{self.source}: it contains more than tensors, which could run code ({reason}). Save its state dict: "
            "torch.save(model.state_dict(), ...), or with safetensors."
        )

    def corrupt(self, reason: str, advice: str = "Download or save it again.") -> WeightsCorrupt:
        """Return the error for a file that torch.save does not write, or that medzoo does not read."""
        expected = "a PyTorch checkpoint as torch.save writes it"
        return WeightsCorrupt(f"{self.source}: expected {expected}, got {reason}. {advice}")

    def _bytes(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) < count:
            raise MalformedPickle("it ends early")
        return data

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._bytes(struct.calcsize(layout)))[0]

    def _line(self) -> str:
        line = self._stream.readline(MAX_NAME)
        if not line.endswith(b"\n"):
            raise MalformedPickle("a name without an end")
        return line[:-1].decode()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _global(self) -> None:
        module, name = self._line(), self._line()
        path = f"{module} {name}"
        if path not in NAMES:
            raise self.unsafe(f"the name {f'{module}.{name}'!a}")
        self._stack.append(Name(path))

    def _new(self) -> None:
        arguments, made = self._stack.pop(), self._stack.pop()
        if type(made) is not Name or made.path not in MODULE_CLASSES or type(arguments) is not tuple or arguments:
            raise self.unsafe(f"an object made from {_called(made)}")
        self.modules.add(made.path)
        self._stack.append(StoredModule(made.path))

    def _reduce(self) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        path = called.path if type(called) is Name else ""
        if type(arguments) is not tuple or (path not in CALLS and path not in IGNORED_CALLS):
            raise self.unsafe(f"a call of {_called(called)}")
        self._stack.append(CALLS[path](arguments) if path in CALLS else Ignored())

    def _build(self) -> None:
        state, built = self._stack.pop(), self._stack[-1]
        if type(built) is StoredModule and built.state is None and type(state) is dict:
            built.state = state
        elif type(built) is dict and type(state) is dict and state.keys() <= {"_metadata"}:
            pass  # module versions, an attribute of a state dict
        elif type(built) is not Ignored:
            raise self.unsafe(f"a state of type {type(state).__name__} for {_called(built)}")

    def _persistent(self) -> None:
        """Push a storage, or a class whose source code, in the older format, is dropped."""
        match self._stack.pop():
            case ("module", Name() as name, _, _):
                self._stack.append(name)
            case ("storage", Name(path), str(key), str(), int(numel), *view) if (
                path in STORAGES and 0 <= numel <= MAX_VALUES and view in ([], [None])
            ):
                storage = Storage(key, STORAGES[path], numel)
                if self.storages.setdefault(key, storage) != storage:
                    raise MalformedPickle(f"storage {key[:20]!a} in two sizes or types")
                self._stack.append(storage)
            case _:
                raise MalformedPickle("a reference to something other than a storage")

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _last(self, count: int) -> None:
        if len(self._stack) < count:
            raise MalformedPickle("an empty stack")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise MalformedPickle(f"items for a {type(target).__name__}")
        target.extend(items)

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise MalformedPickle(f"a key without a value, or entries for a {type(target).__name__}")
        # Only strings are kept as keys. Hashing a tuple nested a million deep would crash the process, and ints can be
        # chosen so that their hashes collide; those of an optimizer's state are not needed.
        target.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if type(key) is str)

    def _remember(self, layout: str) -> None:
        self._memo[self._number(layout)] = self._stack[-1]

    def _recall(self, layout: str) -> None:
        self._push(self._memo[self._number(layout)])


def _called(value: Any) -> str:
    return repr(value.path.replace(" ", ".")) if isinstance(value, Name | StoredModule) else f"a {type(value).__name__}"


def _protocol(number: int) -> None:
    if number != 2:
        raise MalformedPickle(f"protocol {number}, expected 2, the default of torch.save")


STEPS: Mapping[bytes, Callable[[PickleReader], None]] = MappingProxyType(
    {
        pickle.PROTO: lambda r: _protocol(r._number("B")),
        pickle.NONE: lambda r: r._push(None),
        pickle.NEWTRUE: lambda r: r._push(True),
        pickle.NEWFALSE: lambda r: r._push(False),
        pickle.BININT: lambda r: r._push(r._number("<i")),
        pickle.BININT1: lambda r: r._push(r._number("<B")),
        pickle.BININT2: lambda r: r._push(r._number("<H")),
        pickle.LONG1: lambda r: r._push(int.from_bytes(r._bytes(r._number("B")), "little", signed=True)),
        pickle.BINFLOAT: lambda r: r._push(r._number(">d")),
        pickle.BINUNICODE: lambda r: r._push(r._bytes(r._number("<I")).decode()),
        pickle.SHORT_BINSTRING: lambda r: r._push(r._bytes(r._number("B")).decode()),  # a string of Python 2
        pickle.EMPTY_TUPLE: lambda r: r._push(()),
        pickle.EMPTY_LIST: lambda r: r._push([]),
        pickle.EMPTY_DICT: lambda r: r._push({}),
        pickle.MARK: PickleReader._mark,
        pickle.TUPLE: lambda r: r._push(tuple(r._to_mark())),
        pickle.TUPLE1: lambda r: r._last(1),
        pickle.TUPLE2: lambda r: r._last(2),
        pickle.TUPLE3: lambda r: r._last(3),
        pickle.APPEND: lambda r: r._extend([r._stack.pop()]),
        pickle.APPENDS: lambda r: r._extend(r._to_mark()),
        pickle.SETITEM: lambda r: r._update([r._stack.pop(-2), r._stack.pop()]),
        pickle.SETITEMS: lambda r: r._update(r._to_mark()),
        pickle.BINPUT: lambda r: r._remember("B"),
        pickle.LONG_BINPUT: lambda r: r._remember("<I"),
        pickle.BINGET: lambda r: r._recall("B"),
        pickle.LONG_BINGET: lambda r: r._recall("<I"),
        pickle.GLOBAL: PickleReader._global,
        pickle.NEWOBJ: PickleReader._new,
        pickle.REDUCE: PickleReader._reduce,
        pickle.BUILD: PickleReader._build,
        pickle.BINPERSID: PickleReader._persistent,
    }
)
