"""Read the tensors of a PyTorch checkpoint without running anything in it.

The file is read by :mod:`medzoo.weights.pickle_reader` alone: ``torch.load(weights_only=True)`` calls whatever any
library has added to its process-wide list. No file can be marked as trusted. Of pickled modules, only TorchXRayVision's
DenseNet is read; the author of any other can save its ``state_dict()``.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medzoo.errors import WeightsCorrupt, WeightsMismatch
from medzoo.weights.cache import digest_of
from medzoo.weights.pickle_reader import DENSENET, NameSet, PickleReader, Storage, StoredModule, StoredTensor
from medzoo.weights.safetensors import read_bytes, read_tensors

__all__ = ["parse_checkpoint", "read_checkpoint"]

# Where trainers keep the weights among their own state.
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net")
MAX_TENSORS = 100_000  # each takes a kilobyte, however small
# Tensors may share values, and an expanded one repeats them; each is copied into memory of its own.
MAX_EXPANSION = 4
MODULE_NAME = re.compile(r"[A-Za-z0-9_]{1,100}")
MAX_DEPTH = 32
MAX_NON_PERSISTENT = 100  # buffers of one module that a state dict leaves out; TorchXRayVision has none

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the legacy format
LEGACY_VERSION = 1001
LEGACY_COUNT = struct.Struct("<q")  # before the values of each storage in the legacy format
ZIP_ENTRY = struct.Struct("<4s22xHH")  # before each entry of a zip archive: lengths of its name and its extra field
ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, KeyError, struct.error)

# Returns the bytes of a storage, without a copy.
StorageReader = Callable[[Storage], memoryview]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a safetensors file or a PyTorch checkpoint by name, and the digest of the file.

    The dict under ``state_dict``, ``model_state_dict``, ``model`` or ``net`` is used if there is one; epochs, metrics
    and the optimizer's state are dropped.

    Raises:
        WeightsUnavailable: no such file.
        WeightsCorrupt: not a valid checkpoint.
        UnsafeWeights: the file contains more than tensors and plain containers.
        WeightsMismatch: it contains no dict of tensors.
    """
    if path.suffix.lower() == ".safetensors":
        return read_tensors(path)
    data = read_bytes(path)
    return parse_checkpoint(data, str(path)), digest_of(data)


def parse_checkpoint(data: bytes, source: str) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch checkpoint by name: a state dict, or TorchXRayVision's pickled DenseNet.

    Either may be a zip archive or, from before torch 1.6, a stream of pickles. Each tensor is contiguous and has memory
    of its own.

    Args:
        data: the content of the file.
        source: the file, for messages.

    Raises:
        WeightsCorrupt: not a valid checkpoint.
        UnsafeWeights: the file contains more than tensors and plain containers.
        WeightsMismatch: it contains no dict of tensors.
    """
    reader = PickleReader(source, len(data))
    root, read_storage = _open(data, reader)
    if type(root) is StoredModule and root.path == DENSENET:
        stored: dict[str, StoredTensor] = {}
        _collect(root, (), stored, set(), reader)
    elif reader.modules:
        path = min(reader.modules).replace(" ", ".")
        raise reader.unsafe(f"a pickled {path!r} that is not a complete DenseNet of TorchXRayVision")
    else:
        stored = _state_dict(root, source)
    total = sum(tensor.size for tensor in stored.values())
    if total > MAX_EXPANSION * len(data) or len(stored) > MAX_TENSORS:
        raise reader.corrupt(
            f"{total} bytes of {len(stored)} tensors in a file of {len(data)}, as from expanded tensors",
            "Save them contiguous.",
        )
    return _materialise(stored, read_storage)


def _state_dict(content: Any, source: str) -> dict[str, StoredTensor]:
    """Return the dict of tensors in the root of a pickle."""
    for key in STATE_DICT_KEYS:
        if type(content) is dict and type(content.get(key)) is dict:
            content = content[key]
    stored: dict[str, StoredTensor] = {}
    if type(content) is dict:
        stored = {name: value for name, value in content.items() if type(value) is StoredTensor}
    if not stored:
        raise WeightsMismatch(
            f"{source}: expected a dict of tensors, or one under {', '.join(STATE_DICT_KEYS)}, got "
            f"{type(content).__name__}. Save model.state_dict()."
        )
    return stored


def _collect(
    module: StoredModule, path: tuple[str, ...], stored: dict[str, StoredTensor], seen: set[int], reader: PickleReader
) -> None:
    """Add the tensors of a pickled module to ``stored``, by the names and in the order of its ``state_dict()``."""
    if id(module) in seen or len(path) > MAX_DEPTH:
        raise reader.corrupt(f"a module that is in two places, or nested deeper than {MAX_DEPTH}")
    seen.add(id(module))
    state = module.state or {}
    parts: list[Any] = [state.get(part) for part in ("_parameters", "_buffers", "_modules")]
    dropped = state.get("_non_persistent_buffers_set", NameSet([]))  # absent before torch 1.6
    complete = all(type(part) is dict for part in parts) and type(dropped) is NameSet
    if not complete or len(dropped.names) > MAX_NON_PERSISTENT:
        raise reader.corrupt(f"a module without parameters, buffers or modules ({'.'.join(path) or 'the root'})")
    parameters, buffers, modules = parts
    persistent = {name: value for name, value in buffers.items() if name not in dropped.names}
    for kind, entries in ((StoredTensor, parameters), (StoredTensor, persistent), (StoredModule, modules)):
        for name, value in entries.items():
            inner = (*path, name)
            if not MODULE_NAME.fullmatch(name) or ".".join(inner) in stored:
                raise reader.corrupt(f"a duplicate or invalid name: {name[:40]!a}")
            if value is None:
                continue
            if type(value) is not kind:
                raise reader.corrupt(f"a {type(value).__name__} at {'.'.join(inner)}")
            if isinstance(value, StoredModule):
                _collect(value, inner, stored, seen, reader)
            else:
                stored[".".join(inner)] = value


def _materialise(stored: dict[str, StoredTensor], read_storage: StorageReader) -> dict[str, Tensor]:
    """Copy each storage once, and a part of one once more, so that no tensor keeps more memory than its own."""
    uses = Counter(tensor.storage.key for tensor in stored.values())

    @cache
    def flat(storage: Storage) -> Tensor:
        return torch.frombuffer(bytearray(read_storage(storage)), dtype=torch.uint8)

    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if 0 in tensor.shape:
            tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            continue
        itemsize = tensor.dtype.itemsize
        values = flat(tensor.storage)[: tensor.storage.size // itemsize * itemsize].view(tensor.dtype)
        view = values.as_strided(tensor.shape, tensor.stride, tensor.offset)
        alone = uses[tensor.storage.key] == 1 and tensor.size == tensor.storage.size and view.is_contiguous()
        # Viewed from one axis, so that the strides are those of a new tensor: convolutions select an algorithm by them.
        tensors[name] = values.view(tensor.shape) if alone else view.clone(memory_format=torch.contiguous_format)
    return tensors


def _open(data: bytes, reader: PickleReader) -> tuple[Any, StorageReader]:
    """Return the root of a checkpoint's pickle, and a function that returns the bytes of a storage."""
    if data[257:262] == b"ustar":
        raise reader.unsafe("a tar archive, the format of PyTorch before 0.2")
    if data.startswith(b"PK\x03\x04"):
        return _open_zip(_Archive(data, reader), reader)
    if not data.startswith(b"\x80"):
        raise reader.corrupt("neither a zip archive nor a pickle")
    return _open_legacy(data, reader)


class _Archive:
    """A checkpoint as a zip archive, as torch.save writes it: without compression and without a program."""

    def __init__(self, data: bytes, reader: PickleReader) -> None:
        self._reader = reader
        self._data = memoryview(data)
        try:
            entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
        except ZIP_ERRORS as error:
            raise self._corrupt(f"{type(error).__name__}: {str(error)[:100]}") from error
        self._entries = {entry.filename: entry for entry in entries}
        pickles = [name for name in self._entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in self._entries):
            raise reader.unsafe("a TorchScript archive, which contains a program")
        if len(pickles) != 1 or len(self._entries) != len(entries):
            raise self._corrupt("duplicate entries, or not one data.pkl")
        uncompressed = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not uncompressed or sum(entry.file_size for entry in entries) > len(data):
            raise self._corrupt("compressed or overlapping entries, which torch.save does not write")
        self._root = pickles[0].removesuffix("data.pkl")
        # torch.serialization.set_crc32_options(False) makes every checksum 0.
        self._has_checksums = any(entry.CRC for entry in entries)

    def read(self, name: str) -> memoryview:
        """Return the bytes of an entry, without a copy, after checking its checksum."""
        entry = self._entries.get(self._root + name)
        if entry is None:
            raise self._corrupt(f"no entry {name[:40]!a}")
        try:
            magic, *lengths = ZIP_ENTRY.unpack_from(self._data, entry.header_offset)
        except struct.error:
            magic, lengths = b"", []
        start = entry.header_offset + ZIP_ENTRY.size + sum(lengths)
        content = self._data[start : start + entry.file_size]
        if magic != b"PK\x03\x04" or len(content) != entry.file_size:
            raise self._corrupt(f"{name[:40]!a} is outside the file")
        if self._has_checksums and zlib.crc32(content) != entry.CRC:
            raise self._corrupt(f"Bad CRC-32 of {name[:40]!a}")
        return content

    def is_little_endian(self) -> bool:
        """Whether the values are little-endian, as in every file that does not state its byte order."""
        return self._root + "byteorder" not in self._entries or bytes(self.read("byteorder")) == b"little"

    def _corrupt(self, reason: str) -> WeightsCorrupt:
        return self._reader.corrupt(f"an invalid zip archive ({reason})")


def _open_zip(archive: _Archive, reader: PickleReader) -> tuple[Any, StorageReader]:
    root = reader.load(io.BytesIO(archive.read("data.pkl")))
    if not archive.is_little_endian():
        raise _big_endian(reader)

    def read_storage(storage: Storage) -> memoryview:
        data = archive.read(f"data/{storage.key}")
        if len(data) != storage.size:
            raise reader.corrupt(f"{len(data)} bytes for {storage.numel} values of {storage.dtype}")
        return data

    return root, read_storage


def _open_legacy(data: bytes, reader: PickleReader) -> tuple[Any, StorageReader]:
    """Return the root, which is the fourth pickle, and a reader of the storages, which follow the fifth."""
    stream = io.BytesIO(data)
    if reader.load(stream) != LEGACY_MAGIC or reader.load(stream) != LEGACY_VERSION:
        raise reader.corrupt("another format")
    machine = reader.load(stream)
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise _big_endian(reader)
    root, keys = reader.load(stream), reader.load(stream)
    named = type(keys) is list and all(type(key) is str for key in keys)
    if not named or sorted(keys) != sorted(reader.storages):
        raise reader.corrupt("other storages than its tensors need")
    slices: dict[str, slice] = {}
    position = stream.tell()
    for key in keys:
        storage = reader.storages[key]
        start = position + LEGACY_COUNT.size
        if data[position:start] != LEGACY_COUNT.pack(storage.numel):
            raise reader.corrupt(f"a storage whose size is not {storage.numel}")
        position = start + storage.size
        slices[key] = slice(start, position)
    if position != len(data):
        raise reader.corrupt(f"{len(data)} bytes where {position} are needed")
    return root, lambda storage: memoryview(data)[slices[storage.key]]


def _big_endian(reader: PickleReader) -> WeightsCorrupt:
    return reader.corrupt("big-endian values, which medzoo does not read", "Save it on a little-endian machine.")
