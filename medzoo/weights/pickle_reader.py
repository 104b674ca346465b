"""Read a pickle into inert values: no name of the file is ever looked up, and nothing of it is ever called.

The opcodes are those that ``torch.save`` writes, of protocol 2; any other ends the reading. A name becomes a
:class:`Name` if it stands in a table of :mod:`medzoo.weights.pickle_names`, and ends the reading if not. What a pickle would
build by a call becomes a plain record of ours, so that a file can neither import nor run nor change anything.
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
from medzoo.weights.pickle_names import DTYPES, OPAQUE, SHELLS, STORAGES, TENSORS

__all__ = ["Name", "NameSet", "PickleReader", "Shell", "Storage", "StoredTensor", "corrupt", "unsafe"]

# A DenseNet-121 has 60,000. An opcode of one byte can cost a hundred in memory, so that more are allowed only where the
# file has many bytes for each.
MOST_OPCODES = 1_000_000
BYTES_AN_OPCODE = 32
MOST_AXES = 8
MOST_NUMBERS = 2**62  # in a tensor or a storage; torch counts in 64 bits
LONGEST_NAME = 256
# What torch makes no tensor of without a quantiser, or cannot compare.
_PACKED = re.compile(r"torch\.(q.*|bits.*|bcomplex.*|u?int[1-7]|float4.*)")


class _Malformed(Exception):
    """A pickle that torch.save cannot have written."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name that the file asks for; it stands in one of the tables, and is not looked up."""

    path: str


@dataclass(slots=True)
class Shell:
    """What a module of that class held. ``state`` is its ``__dict__``, as plain data."""

    path: str
    state: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers that lie elsewhere in the file, under a key."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A view of a storage, checked to lie inside of it; the same number may be in many places."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes, once every number has a place of its own."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class NameSet:
    """A set of names, as the list it is made from: to copy a list as often as a file names it could fill memory."""

    names: list[Any]


class _Opaque:
    """Data that nobody reads."""

    __slots__ = ()


def unsafe(source: str, reason: str) -> UnsafeWeights:
    """Return the error for a file that asks for more than tensors."""
    return UnsafeWeights(
        f"{source}: it asks for more than tensors, which could run code ({reason}). Save its state dict: "
        "torch.save(model.state_dict(), ...), or with safetensors."
    )


def corrupt(source: str, reason: str) -> WeightsCorrupt:
    """Return the error for a file that torch.save cannot have written."""
    return WeightsCorrupt(
        f"{source}: expected a PyTorch checkpoint as torch.save writes it, got {reason}. Get it again."
    )


class PickleReader:
    """Reads the pickles of one file.

    Args:
        source: the file, for messages.
        size: its bytes, to which the work is held.

    Attributes:
        storages: every storage asked for so far, by key.
        shells: the classes of the modules made so far.
    """

    def __init__(self, source: str, size: int) -> None:
        self.source = source
        self.storages: dict[str, Storage] = {}
        self.shells: set[str] = set()
        self._most = MOST_OPCODES + size // BYTES_AN_OPCODE

    def load(self, stream: IO[bytes]) -> Any:
        """Read one pickle from where the stream stands, and leave the stream behind it.

        Raises:
            UnsafeWeights: a name outside of the tables, or an opcode that torch.save does not write.
            WeightsCorrupt: not a pickle, or not one that torch.save can have written.
        """
        self._stream = stream
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        try:
            for _ in range(self._most):
                code = self._bytes(1)
                if code == pickle.STOP:
                    (result,) = self._stack
                    return result
                if code not in STEPS:
                    raise unsafe(self.source, f"the pickle opcode {_opcode(code)}, which torch.save does not write")
                STEPS[code](self)
            raise _Malformed(f"more than {self._most} opcodes")
        except UnsafeWeights:
            raise
        # IndexError, KeyError: an empty stack, an unknown memo. ValueError: text that is none, more than one result.
        except (_Malformed, IndexError, KeyError, ValueError) as error:
            raise corrupt(self.source, f"a pickle that cannot be read as one ({str(error)[:200]})") from error

    def _bytes(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) < count:
            raise _Malformed("it ends early")
        return data

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._bytes(struct.calcsize(layout)))[0]

    def _line(self) -> str:
        line = self._stream.readline(LONGEST_NAME)
        if not line.endswith(b"\n"):
            raise _Malformed("a name without an end")
        return line[:-1].decode()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _global(self) -> None:
        module, name = self._line(), self._line()
        path = f"{module} {name}"
        if not any(path in known for known in (CALLS, STORAGES, SHELLS, OPAQUE, DTYPES, TENSORS)):
            raise unsafe(self.source, f"the name {f'{module}.{name}'!a}")
        self._stack.append(Name(path))

    def _new(self) -> None:
        arguments, made = self._stack.pop(), self._stack.pop()
        if type(made) is not Name or made.path not in SHELLS or type(arguments) is not tuple or arguments:
            raise unsafe(self.source, f"an object made from {_called(made)}")
        self.shells.add(made.path)
        self._stack.append(Shell(made.path))

    def _reduce(self) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        path = called.path if type(called) is Name else ""
        if type(arguments) is not tuple or (path not in CALLS and path not in OPAQUE):
            raise unsafe(self.source, f"a call of {_called(called)}")
        self._stack.append(CALLS[path](arguments) if path in CALLS else _Opaque())

    def _build(self) -> None:
        state, built = self._stack.pop(), self._stack[-1]
        if type(built) is Shell and built.state is None and type(state) is dict:
            built.state = state
        elif type(built) is dict and type(state) is dict and state.keys() <= {"_metadata"}:
            pass  # the versions of the modules, which a state dict has as an attribute
        elif type(built) is not _Opaque:
            raise unsafe(self.source, f"a state of type {type(state).__name__} for {_called(built)}")

    def _persistent(self) -> None:
        """Take a storage, or a class with its source code, which the older format keeps and nobody reads."""
        match self._stack.pop():
            case ("module", Name() as name, _, _):
                self._stack.append(name)
            case ("storage", Name(path), str(key), str(), int(numel)) | (
                "storage",
                Name(path),
                str(key),
                str(),
                int(numel),
                None,
            ) if path in STORAGES and 0 <= numel <= MOST_NUMBERS:
                storage = Storage(key, STORAGES[path], numel)
                if self.storages.setdefault(key, storage) != storage:
                    raise _Malformed(f"storage {key[:20]!a} in two sizes or types")
                self._stack.append(storage)
            case _:
                raise _Malformed("a reference to something other than a storage")

    def _mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _tuple(self) -> None:
        items = self._to_mark()
        self._push(tuple(items))

    def _last(self, count: int) -> None:
        if len(self._stack) < count:
            raise _Malformed("an empty stack")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise _Malformed(f"items for a {type(target).__name__}")
        target.extend(items)

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise _Malformed(f"a key without a value, or entries for a {type(target).__name__}")
        # An optimiser's state is by number, and nobody reads it. To hash a tuple nested a million deep would end the
        # process, and numbers can be chosen so that their hashes collide.
        target.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if type(key) is str)

    def _remember(self, layout: str) -> None:
        self._memo[self._number(layout)] = self._stack[-1]

    def _recall(self, layout: str) -> None:
        self._push(self._memo[self._number(layout)])


def _called(value: Any) -> str:
    return repr(value.path.replace(" ", ".")) if isinstance(value, Name | Shell) else f"a {type(value).__name__}"


def _opcode(code: bytes) -> str:
    known = {op.code: op.name for op in pickletools.opcodes}.get(code.decode("latin-1"))
    return known or repr(code)


def _protocol(number: int) -> None:
    if number != 2:
        raise _Malformed(f"protocol {number}, expected 2, which torch.save writes unless it is told another")


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """Take a view of a storage that knows its kind of number."""
    match arguments:
        case (Storage() as storage, offset, shape, stride, bool(), _, *metadata) if not any(metadata):
            return _view(storage, storage.dtype, offset, shape, stride)
    raise _Malformed("a tensor that does not lie inside of its storage, or is conjugated")


def _tensor_of(arguments: tuple[Any, ...]) -> StoredTensor:
    """Take a view of a storage of bytes, whose kind of number stands beside it."""
    match arguments:
        case (Storage() as storage, offset, shape, stride, bool(), _, Name(path), *metadata) if not any(metadata):
            dtype = DTYPES.get(path)
            if dtype is None or _PACKED.fullmatch(str(dtype)):
                raise _Malformed(f"a tensor of {path}, expected plain numbers")
            return _view(storage, dtype, offset, shape, stride)
    raise _Malformed("a tensor that does not lie inside of its storage")


def _view(storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    """Check a view of a storage, which must lie inside of it."""
    paired = type(shape) is tuple and type(stride) is tuple and len(shape) == len(stride) <= MOST_AXES
    if paired and all(type(number) is int and number >= 0 for number in (*shape, *stride, offset)):
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        # The step along an axis of one is never taken, and can be too large a number for torch.
        steps = tuple(step if size > 1 else 1 for size, step in zip(shape, stride, strict=True))
        inside = 0 in shape or (last + 1) * dtype.itemsize <= storage.size
        # Torch multiplies the other axes of a tensor without numbers, too.
        if inside and math.prod(size for size in shape if size) <= MOST_NUMBERS:
            return StoredTensor(storage, dtype, offset, shape, steps)
    raise _Malformed("a tensor that does not lie inside of its storage")


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    match arguments:
        case (StoredTensor() as tensor, bool(), _) | (StoredTensor() as tensor, bool(), _, _):
            return tensor
    raise _Malformed("a parameter without a tensor")


def _tensor_with_state(arguments: tuple[Any, ...]) -> StoredTensor:
    """Take a tensor that has attributes of its own, and leave these behind."""
    match arguments:
        case (Name(path), Name(kind), tuple(inner), _) if path in REBUILDS and kind in TENSORS:
            return REBUILDS[path](inner)
    raise _Malformed("a tensor of a class of its own")


def _ordered(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise _Malformed("an OrderedDict with arguments")
    return {}


def _set(arguments: tuple[Any, ...]) -> NameSet:
    match arguments:
        case (list(names),):
            return NameSet(names)
    raise _Malformed("a set of no list")


REBUILDS: Mapping[str, Callable[[tuple[Any, ...]], StoredTensor]] = MappingProxyType(
    {
        "torch._utils _rebuild_tensor_v2": _tensor,
        "torch._utils _rebuild_tensor_v3": _tensor_of,
    }
)
CALLS: Mapping[str, Callable[[tuple[Any, ...]], Any]] = MappingProxyType(
    {
        **REBUILDS,
        "torch._utils _rebuild_parameter": _parameter,
        "torch._utils _rebuild_parameter_with_state": _parameter,
        "torch._tensor _rebuild_from_type_v2": _tensor_with_state,
        "collections OrderedDict": _ordered,
        "builtins set": _set,
        "__builtin__ set": _set,  # as protocol 2 names it
    }
)
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
        pickle.SHORT_BINSTRING: lambda r: r._push(r._bytes(r._number("B")).decode()),  # a text of Python 2
        pickle.EMPTY_TUPLE: lambda r: r._push(()),
        pickle.EMPTY_LIST: lambda r: r._push([]),
        pickle.EMPTY_DICT: lambda r: r._push({}),
        pickle.MARK: PickleReader._mark,
        pickle.TUPLE: PickleReader._tuple,
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
