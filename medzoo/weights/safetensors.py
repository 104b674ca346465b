"""Read a safetensors file in one pass: every byte is read once, hashed, and lies where its tensor needs it.

The library's own reader copies each tensor once more, which costs as much as reading it. Its writer is used to write,
and in the tests its reader must agree with this one.

The format: 8 bytes with the length of the header, the header in JSON, then the tensors' bytes end to end.
Source: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from medzoo.errors import WeightsCorrupt
from medzoo.weights.strict_json import parse

__all__ = ["read_safetensors", "refuse_substitutes"]

# 10,000 tensors need a tenth of this; the format itself allows 100 MB, which takes seconds to read.
LONGEST_HEADER = 10_000_000
# One piece is read while the one before is hashed.
PIECE = 1 << 24
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Entry(NamedTuple):
    """A tensor as the header tells it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def refuse_substitutes(start: bytes, where: str) -> None:
    """Raise WeightsCorrupt where a file starts as a Git LFS pointer or a web page does."""
    if start.startswith(b"version https://git-lfs"):
        raise WeightsCorrupt(f"{where}: this is a Git LFS pointer, not the weights. Run git lfs pull.")
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise WeightsCorrupt(f"{where}: this is a web page, not the weights: the server returned one. Get it again.")


def read_safetensors(file: IO[bytes], size: int, where: str) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Return the tensors by name, the metadata, and the digest ``"sha256:..."`` of all that was read.

    Args:
        file: at its beginning; with ``readinto``.
        size: bytes of the file.
        where: the file, for messages.

    Raises:
        WeightsCorrupt: not a sound safetensors file: cut short, overlapping, with gaps or a tail, a name given twice,
            or a header longer than any model's.
    """
    opening = file.read(256)
    refuse_substitutes(opening, where)
    head = opening[:8]
    if len(head) < 8:
        raise WeightsCorrupt(f"{where}: expected a safetensors file, got {len(head)} bytes. Fetch or save it again.")
    length = int.from_bytes(head, "little")
    longest = max(0, min(size - 8, LONGEST_HEADER))
    if length > longest:
        raise WeightsCorrupt(
            f"{where}: expected a safetensors header of at most {longest} bytes, got a length of {length}. "
            "The file is cut short or is of another format."
        )
    file.seek(8)
    header = file.read(length)
    entries, metadata = _entries(header, size - 8 - length, where)
    digest = hashlib.sha256(head + header)
    tensors = {}
    with ThreadPoolExecutor(1) as pool:
        hashed: Future[None] | None = None
        for name, dtype, shape, start, end in entries:
            tensor = torch.empty(shape, dtype=dtype)
            room = memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data) if end > start else memoryview(b"")
            for begin in range(0, end - start, PIECE):
                piece = room[begin : begin + PIECE]
                _fill(file, piece, where)
                if hashed is not None:
                    hashed.result()
                hashed = pool.submit(digest.update, piece)
            tensors[name] = tensor
    if file.read(1):
        raise WeightsCorrupt(f"{where}: not a sound safetensors file (it grew while it was read). Get it again.")
    return tensors, metadata, f"sha256:{digest.hexdigest()}"


def _fill(file: IO[bytes], room: memoryview, where: str) -> None:
    """Read as many bytes as there is room for."""
    while len(room):
        count: int | None = file.readinto(room)  # type: ignore[attr-defined]
        if not count:
            raise WeightsCorrupt(f"{where}: not a sound safetensors file (it was cut while it was read). Get it again.")
        room = room[count:]


def _entries(header: bytes, size: int, where: str) -> tuple[list[Entry], dict[str, str]]:
    """Return the tensors in the order of their bytes, which must be all ``size`` bytes, each once."""
    try:
        told = parse(header)
    except (ValueError, RecursionError) as error:
        raise WeightsCorrupt(f"{where}: the safetensors header is not sound JSON ({error}).") from error
    if not isinstance(told, dict):
        raise WeightsCorrupt(f"{where}: the safetensors header is no JSON object. Fetch or save it again.")
    metadata = told.pop("__metadata__", {})
    try:
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are not texts")
        entries = sorted((_entry(name, entry) for name, entry in told.items()), key=lambda entry: entry[3:])
        place = 0
        for entry in entries:
            if entry.start != place:
                raise ValueError(f"{entry.name} starts at {entry.start}, not at {place}")
            place = entry.end
        if place != size:
            raise ValueError(f"its tensors end at {place}, its bytes at {size}")
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsCorrupt(f"{where}: not a sound safetensors file ({error}). Fetch or save it again.") from error
    return entries, metadata


def _entry(name: str, told: Mapping[str, Any]) -> Entry:
    """Check one tensor's entry.

    Raises:
        ValueError, TypeError, KeyError: it cannot be.
    """
    if told["dtype"] not in DTYPES:
        raise ValueError(f"{name} is of an unknown type")
    dtype = DTYPES[told["dtype"]]
    shape, (start, end) = told["shape"], told["data_offsets"]
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in (*shape, start, end)):
        raise ValueError(f"{name} has a shape or place that is no number")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} is of shape {shape}, which {end - start} bytes do not hold")
    return Entry(name, dtype, tuple(shape), start, end)
