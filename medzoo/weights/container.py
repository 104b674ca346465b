"""Open the two containers that torch.save writes: a zip archive, and before torch 1.6 a stream of pickles.

The pickle is read into inert values (:mod:`medzoo.weights.pickle_reader`); the numbers stay in the bytes of the file until they
are asked for.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from medzoo.errors import WeightsCorrupt
from medzoo.weights.pickle_reader import PickleReader, Storage, corrupt, unsafe

__all__ = ["open_checkpoint"]

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older format
VERSION = 1001
COUNT = struct.Struct("<q")  # before the numbers of each storage in the older format
LOCAL = struct.Struct("<4s22xHH")  # before each entry of a zip archive: how long its name and its extra field are
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, KeyError, struct.error)

# Where to get the bytes of a storage, without a copy.
Numbers = Callable[[Storage], memoryview]


def open_checkpoint(data: bytes, reader: PickleReader) -> tuple[Any, Numbers]:
    """Return the root of a checkpoint's pickle, and where to get the numbers of a storage.

    Raises:
        UnsafeWeights: it asks for more than tensors and plain containers.
        WeightsCorrupt: not the bytes of a checkpoint.
    """
    if data[257:262] == b"ustar":
        raise unsafe(reader.source, "a tar archive, PyTorch's format of before 0.2")
    if data.startswith(b"PK\x03\x04"):
        return _from_zip(_Archive(data, reader.source), reader)
    if not data.startswith(b"\x80"):
        raise corrupt(reader.source, "neither a zip archive nor a pickle")
    return _from_stream(data, reader)


class _Archive:
    """A checkpoint as a zip archive, as torch.save writes it: nothing is compressed, and nothing is a program."""

    def __init__(self, data: bytes, source: str) -> None:
        self._source = source
        self._data = memoryview(data)
        try:
            entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
        except _ZIP_ERRORS as error:
            raise self._corrupt(f"{type(error).__name__}: {str(error)[:100]}") from error
        self._entries = {entry.filename: entry for entry in entries}
        pickles = [name for name in self._entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in self._entries):
            raise unsafe(source, "a TorchScript archive, which holds a program")
        if len(pickles) != 1 or len(self._entries) != len(entries):
            raise self._corrupt("entries given twice, or not one data.pkl")
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > len(data):
            raise self._corrupt("compressed or overlapping entries, which torch.save does not write")
        self._root = pickles[0].removesuffix("data.pkl")
        # Torch can be told to write none, and then writes 0 everywhere.
        self._has_checksums = any(entry.CRC for entry in entries)

    def read(self, name: str) -> memoryview:
        """Return the bytes of an entry, held to its checksum; they are not copied."""
        entry = self._entries.get(self._root + name)
        if entry is None:
            raise self._corrupt(f"no entry {name[:40]!a}")
        try:
            magic, *lengths = LOCAL.unpack_from(self._data, entry.header_offset)
        except struct.error:
            magic, lengths = b"", []
        start = entry.header_offset + LOCAL.size + sum(lengths)
        content = self._data[start : start + entry.file_size]
        if magic != b"PK\x03\x04" or len(content) != entry.file_size:
            raise self._corrupt(f"{name[:40]!a} lies outside of the file")
        if self._has_checksums and zlib.crc32(content) != entry.CRC:
            raise self._corrupt(f"Bad CRC-32 of {name[:40]!a}")
        return content

    def is_little_endian(self) -> bool:
        """Whether the numbers are stored as on nearly every machine; older files do not say, and are."""
        return self._root + "byteorder" not in self._entries or bytes(self.read("byteorder")) == b"little"

    def _corrupt(self, reason: str) -> WeightsCorrupt:
        return corrupt(self._source, f"no sound zip archive ({reason})")


def _from_zip(archive: _Archive, reader: PickleReader) -> tuple[Any, Numbers]:
    root = reader.load(io.BytesIO(archive.read("data.pkl")))
    if not archive.is_little_endian():
        raise corrupt(reader.source, "numbers of another byte order")

    def numbers(storage: Storage) -> memoryview:
        data = archive.read(f"data/{storage.key}")
        if len(data) != storage.size:
            raise corrupt(reader.source, f"{len(data)} bytes for {storage.numel} numbers of {storage.dtype}")
        return data

    return root, numbers


def _from_stream(data: bytes, reader: PickleReader) -> tuple[Any, Numbers]:
    """Return the root of the fourth pickle, and where to get the numbers of a storage, which follow the fifth."""
    stream = io.BytesIO(data)
    if reader.load(stream) != MAGIC or reader.load(stream) != VERSION:
        raise corrupt(reader.source, "another format")
    machine = reader.load(stream)
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise corrupt(reader.source, "numbers of another byte order")
    root, keys = reader.load(stream), reader.load(stream)
    named = type(keys) is list and all(type(key) is str for key in keys)
    if not named or sorted(keys) != sorted(reader.storages):
        raise corrupt(reader.source, "other storages than its tensors need")
    places: dict[str, slice] = {}
    position = stream.tell()
    for key in keys:
        storage = reader.storages[key]
        start = position + COUNT.size
        if data[position:start] != COUNT.pack(storage.numel):
            raise corrupt(reader.source, f"a storage whose size is not {storage.numel}")
        position = start + storage.size
        places[key] = slice(start, position)
    if position != len(data):
        raise corrupt(reader.source, f"{len(data)} bytes where {position} are needed")
    return root, lambda storage: memoryview(data)[places[storage.key]]
