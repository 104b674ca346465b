"""Read a pickle into plain data: no name in the file is ever looked up, and nothing in it is ever called.

Only the opcodes of protocol 2 that ``torch.save`` writes are read; any other is an error. A name must be in a table of
:mod:`medzoo.weights.pickle_names`; any other is an error. A call of a name becomes a plain record of that module, so a
file can neither import nor run nor change anything.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import IO, Any

from medzoo.errors import UnsafeWeights, WeightsCorrupt
from medzoo.weights.pickle_names import (
    CALLS,
    IGNORED_CALLS,
    MAX_VALUES,
    MODULE_CLASSES,
    NAMES,
    STORAGES,
    MalformedPickle,
    Name,
    Storage,
    StoredModule,
)

__all__ = ["PickleReader", "corrupt", "unsafe"]

# A DenseNet-121 has 60,000. An opcode of one byte can take a hundred bytes of memory, so more are allowed only if the
# file has many bytes for each.
MAX_OPCODES = 1_000_000
BYTES_PER_OPCODE = 32
MAX_NAME = 256


class Ignored:
    """The result of a call that is never read."""

    __slots__ = ()


def unsafe(source: str, reason: str) -> UnsafeWeights:
    """Return the error for a file that contains more than tensors."""
    return UnsafeWeights(
        f"{source}: it contains more than tensors, which could run code ({reason}). Save its state dict: "
        "torch.save(model.state_dict(), ...), or with safetensors."
    )


def corrupt(source: str, reason: str, advice: str = "Download or save it again.") -> WeightsCorrupt:
    """Return the error for a file that torch.save does not write, or that medzoo does not read."""
    return WeightsCorrupt(f"{source}: expected a PyTorch checkpoint as torch.save writes it, got {reason}. {advice}")


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
                    raise unsafe(self.source, f"the pickle opcode {_opcode(code)}, which torch.save does not write")
                STEPS[code](self)
            raise MalformedPickle(f"more than {self._max_opcodes} opcodes")
        except UnsafeWeights:
            raise
        # IndexError, KeyError: an empty stack, an unknown memo. ValueError: invalid UTF-8, more than one result.
        except (MalformedPickle, IndexError, KeyError, ValueError) as error:
            raise corrupt(self.source, f"a pickle that cannot be read ({str(error)[:200]})") from error

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
            raise unsafe(self.source, f"the name {f'{module}.{name}'!a}")
        self._stack.append(Name(path))

    def _new(self) -> None:
        arguments, made = self._stack.pop(), self._stack.pop()
        if type(made) is not Name or made.path not in MODULE_CLASSES or type(arguments) is not tuple or arguments:
            raise unsafe(self.source, f"an object made from {_called(made)}")
        self.modules.add(made.path)
        self._stack.append(StoredModule(made.path))

    def _reduce(self) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        path = called.path if type(called) is Name else ""
        if type(arguments) is not tuple or (path not in CALLS and path not in IGNORED_CALLS):
            raise unsafe(self.source, f"a call of {_called(called)}")
        self._stack.append(CALLS[path](arguments) if path in CALLS else Ignored())

    def _build(self) -> None:
        state, built = self._stack.pop(), self._stack[-1]
        if type(built) is StoredModule and built.state is None and type(state) is dict:
            built.state = state
        elif type(built) is dict and type(state) is dict and state.keys() <= {"_metadata"}:
            pass  # module versions, an attribute of a state dict
        elif type(built) is not Ignored:
            raise unsafe(self.source, f"a state of type {type(state).__name__} for {_called(built)}")

    def _persistent(self) -> None:
        """Push a storage, or a class whose source code, in the older format, is dropped."""
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
            ) if path in STORAGES and 0 <= numel <= MAX_VALUES:
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

    def _tuple(self) -> None:
        items = self._to_mark()
        self._push(tuple(items))

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


def _opcode(code: bytes) -> str:
    known = {op.code: op.name for op in pickletools.opcodes}.get(code.decode("latin-1"))
    return known or repr(code)


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
