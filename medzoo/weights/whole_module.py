"""Take the tensors out of TorchXRayVision's checkpoints, which are pickles of a whole module.

The pickle is read into inert values (:mod:`medzoo.weights.inert`), and the numbers straight from the bytes of the file:
a zip archive, or before torch 1.6 a stream of pickles with the numbers behind them.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medzoo.errors import WeightsCorrupt
from medzoo.weights.inert import DENSENET, PickleReader, Shell, Storage, StoredTensor, unsafe

__all__ = ["Archive", "holds_module", "is_zip", "module_tensors"]

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
VERSION = 1001
COUNT = struct.Struct("<q")  # before the numbers of each storage in the older format
PLAIN = re.compile(r"[A-Za-z0-9_]{1,100}")
MOST_DEPTH = 32
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, KeyError, struct.error)


class Archive:
    """A checkpoint as a zip archive, as torch.save writes it: nothing is compressed, and nothing is a program.

    Args:
        data: the file.
        source: the file, for messages.
    """

    def __init__(self, data: bytes, source: str) -> None:
        self.source = source
        self._data = data
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except _ZIP_ERRORS as error:
            raise self._corrupt(f"{type(error).__name__}: {str(error)[:100]}") from error
        entries = self._zip.infolist()
        names = {entry.filename for entry in entries}
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            raise unsafe(source, "a TorchScript archive, which holds a program")
        if len(pickles) != 1 or len(names) != len(entries):
            raise self._corrupt("entries given twice, or not one data.pkl")
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > len(data):
            raise self._corrupt("compressed or overlapping entries, which torch.save does not write")
        self._root = pickles[0].removesuffix("data.pkl")

    def read(self, name: str) -> bytes:
        """Return the bytes of an entry, held to its checksum."""
        try:
            return self._zip.read(self._root + name)
        except _ZIP_ERRORS as error:
            raise self._corrupt(f"{name[:40]!a}: {type(error).__name__}: {str(error)[:100]}") from error

    def first_bytes(self) -> bytes:
        """Return how the pickle begins; the checksum, which torch can be told not to write, is that of the whole."""
        entry = self._zip.getinfo(self._root + "data.pkl")
        try:
            name, extra = struct.unpack_from("<HH", self._data, entry.header_offset + 26)
        except struct.error as error:
            raise self._corrupt("data.pkl lies outside of the file") from error
        start = entry.header_offset + 30 + name + extra
        return self._data[start : start + 64]

    def is_little_endian(self) -> bool:
        """Whether the numbers are stored as on nearly every machine; older files do not say, and are."""
        return self._root + "byteorder" not in self._zip.namelist() or self.read("byteorder") == b"little"

    def _corrupt(self, reason: str) -> WeightsCorrupt:
        return WeightsCorrupt(
            f"{self.source}: expected a PyTorch checkpoint, a sound zip archive ({reason}). Get it again."
        )


def is_zip(data: bytes) -> bool:
    """Whether these bytes begin as a zip archive does."""
    return data.startswith(b"PK\x03\x04")


def holds_module(begins: bytes) -> bool:
    """Whether a checkpoint of the older format, or the pickle of a zip archive, begins with upstream's DenseNet.

    A whole module is the first thing in its pickle, and its class the first name. This only chooses the reader: both
    are closed.
    """
    module, name = DENSENET.split(" ")
    return f"c{module}\n{name}\n".encode() in begins[:512]


def module_tensors(data: bytes, source: str) -> dict[str, Tensor]:
    """Return the tensors of a pickled DenseNet by name, as its ``state_dict()`` would; each owns its memory.

    Args:
        data: the file.
        source: the file, for messages.

    Raises:
        UnsafeWeights: it asks for more than a DenseNet is made of.
        WeightsCorrupt: not the bytes of such a checkpoint.
    """
    reader = PickleReader(source)
    root, numbers = _from_zip(Archive(data, source), reader) if is_zip(data) else _from_stream(data, reader)
    if type(root) is not Shell or root.path != DENSENET:
        raise unsafe(source, "a pickled object that is not TorchXRayVision's DenseNet")
    stored: dict[str, StoredTensor] = {}
    _walk(root, (), stored, set(), source)
    total = sum(tensor.storage.dtype.itemsize * math.prod(tensor.shape) for tensor in stored.values())
    if total > len(data):
        raise _corrupt(source, f"{total} bytes of tensors in a file of {len(data)}")
    return {name: _materialise(tensor, numbers(tensor.storage)) for name, tensor in stored.items()}


def _corrupt(source: str, reason: str) -> WeightsCorrupt:
    return WeightsCorrupt(f"{source}: expected a whole DenseNet as torch.save writes it, got {reason}. Get it again.")


def _from_zip(archive: Archive, reader: PickleReader) -> tuple[Any, Callable[[Storage], bytes]]:
    """Return the root of the pickle, and where to get the numbers of a storage."""
    root = reader.load(io.BytesIO(archive.read("data.pkl")))
    if not archive.is_little_endian():
        raise _corrupt(reader.source, "numbers of another byte order")

    def numbers(storage: Storage) -> bytes:
        data = archive.read(f"data/{storage.key}")
        if len(data) != storage.numel * storage.dtype.itemsize:
            raise _corrupt(reader.source, f"{len(data)} bytes for {storage.numel} numbers of {storage.dtype}")
        return data

    return root, numbers


def _from_stream(data: bytes, reader: PickleReader) -> tuple[Any, Callable[[Storage], bytes]]:
    """Return the root of the fourth pickle, and where to get the numbers of a storage, which follow the fifth."""
    stream = io.BytesIO(data)
    magic, version, machine = (reader.load(stream) for _ in range(3))
    if magic != MAGIC or version != VERSION:
        raise _corrupt(reader.source, "another format")
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise _corrupt(reader.source, "numbers of another byte order")
    root, keys = reader.load(stream), reader.load(stream)
    if type(keys) is not list or {type(key) for key in keys} > {str} or sorted(keys) != sorted(reader.storages):
        raise _corrupt(reader.source, "other storages than its tensors need")
    places: dict[str, slice] = {}
    position = stream.tell()
    for key in keys:
        storage = reader.storages[key]
        start = position + COUNT.size
        if data[position:start] != COUNT.pack(storage.numel):
            raise _corrupt(reader.source, f"a storage whose size is not {storage.numel}")
        position = start + storage.numel * storage.dtype.itemsize
        places[key] = slice(start, position)
    if position != len(data):
        raise _corrupt(reader.source, f"{len(data)} bytes where {position} are needed")
    return root, lambda storage: data[places[storage.key]]


def _walk(shell: Shell, path: tuple[str, ...], stored: dict[str, StoredTensor], seen: set[int], source: str) -> None:
    """Collect the tensors of a module and of those inside of it, in the order of ``state_dict()``."""
    if id(shell) in seen or len(path) > MOST_DEPTH:
        raise _corrupt(source, f"a module that is in two places, or nested deeper than {MOST_DEPTH}")
    seen.add(id(shell))
    state = shell.state or {}
    parts: list[Any] = [state.get(part) for part in ("_parameters", "_buffers", "_modules")]
    passing = state.get("_non_persistent_buffers_set", frozenset())  # not there before torch 1.6
    if any(type(part) is not dict for part in parts) or type(passing) is not frozenset:
        raise _corrupt(source, f"a module without parameters, buffers or modules ({'.'.join(path) or 'the root'})")
    parameters, buffers, modules = parts
    kept = {name: value for name, value in buffers.items() if name not in passing}
    for kind, entries in ((StoredTensor, parameters), (StoredTensor, kept), (Shell, modules)):
        for name, value in entries.items():
            inner = (*path, name)
            if not PLAIN.fullmatch(name) or ".".join(inner) in stored:
                raise _corrupt(source, f"a name given twice, or one that is no name: {name[:40]!a}")
            if value is None:
                continue
            if type(value) is not kind:
                raise _corrupt(source, f"a {type(value).__name__} at {'.'.join(inner)}")
            if isinstance(value, Shell):
                _walk(value, inner, stored, seen, source)
            else:
                stored[".".join(inner)] = value


def _materialise(tensor: StoredTensor, numbers: bytes) -> Tensor:
    own = torch.frombuffer(bytearray(numbers), dtype=tensor.storage.dtype)
    return own.as_strided(tensor.shape, tensor.stride, tensor.offset).contiguous()
