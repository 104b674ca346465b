"""Read a safetensors file in one pass: every byte is read once, hashed, and placed directly into its tensor.

The safetensors library's own reader copies each tensor once more, which takes as long as reading it. Its writer is used
for writing, and the tests compare its reader with this one.

The format: 8 bytes with the length of the header, the header in JSON, then the tensors' bytes end to end.
Source: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medzoo.errors import MedzooError, UnsafeWeights, WeightsCorrupt, WeightsUnavailable

__all__ = ["FOREIGN_SUFFIXES", "parse_json", "read_bytes", "read_safetensors", "read_tensors", "refuse_substitutes"]

# Formats that contain pickles, programs, or anything but a flat dict of tensors.
FOREIGN_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pt2", ".ts", ".npz"})
# 10,000 tensors need a tenth of this; the format itself allows 100 MB, which takes seconds to read.
MAX_HEADER = 10_000_000
# No tensor has a longer side. One with a side of 0 has no bytes, so that nothing else bounds the others.
MAX_SIDE = 2**31
# Bytes that are hashed while the next ones are read.
PIECE = 1 << 24
# A tensor as the header describes it: name, dtype, shape, and where its bytes start and end.
TensorEntry = tuple[str, torch.dtype, tuple[int, ...], int, int]
SAFETENSORS_DTYPES = {
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


def read_tensors(path: Path, algorithm: str = "sha256") -> tuple[dict[str, Tensor], str]:
    """Read a safetensors file once, and return its tensors and ``"algorithm:hex"`` of the same bytes.

    Raises:
        UnsafeWeights: another format, which could run code.
        WeightsUnavailable: no such file, or it cannot be read.
        WeightsCorrupt: not a valid safetensors file.
    """
    if path.suffix.lower() in FOREIGN_SUFFIXES:
        raise UnsafeWeights(
            f"{path}: expected a .safetensors file, got {path.suffix}, a format that can run code when it is read. "
            "Convert your own checkpoint into a folder with medzoo convert, which reads only its tensors."
        )
    try:
        with path.open("rb") as file:
            tensors, _, digest = read_safetensors(file, path.stat().st_size, str(path), algorithm)
    except MedzooError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    return tensors, digest


def read_bytes(path: Path) -> bytes:
    """Read a weight file once, and refuse what a failed download leaves in its place.

    Raises:
        WeightsUnavailable: no such file, or it cannot be read.
        WeightsCorrupt: a Git LFS pointer or a web page.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    refuse_substitutes(data[:256], str(path))
    return data


def _unreadable(path: Path, error: OSError) -> WeightsUnavailable:
    return WeightsUnavailable(
        f"{path}: the weight file cannot be read ({error.strerror or error}). Check the path and its permissions."
    )


def refuse_substitutes(start: bytes, where: str) -> None:
    """Raise WeightsCorrupt if a file starts like a Git LFS pointer or a web page."""
    if start.startswith(b"version https://git-lfs"):
        raise WeightsCorrupt(f"{where}: this is a Git LFS pointer, not the weights. Run git lfs pull.")
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise WeightsCorrupt(
            f"{where}: this is a web page, not the weights: the server returned one. Download it again."
        )


def read_safetensors(
    file: BufferedIOBase, size: int, where: str, algorithm: str = "sha256"
) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Return the tensors by name, the metadata, and the digest ``"algorithm:hex"`` of all bytes, each read once.

    Args:
        file: a binary file at its beginning.
        size: bytes of the file.
        where: the file, for messages.
        algorithm: of the digest, ``"sha256"`` or ``"md5"``.

    Raises:
        WeightsCorrupt: not a valid safetensors file: cut short, overlapping, with gaps or trailing bytes, a duplicate
            name, or a header longer than any model's; or a dtype that is not supported.
    """
    head = file.read(8)
    if len(head) < 8:
        raise WeightsCorrupt(f"{where}: expected a safetensors file, got {len(head)} bytes. Fetch or save it again.")
    length = int.from_bytes(head, "little")
    longest = max(0, min(size - 8, MAX_HEADER))
    if length > longest:
        # Text, read as a length, is far beyond any header's.
        refuse_substitutes(head + file.read(248), where)
        raise WeightsCorrupt(
            f"{where}: expected a safetensors header of at most {longest} bytes, got a length of {length}. "
            "The file is cut short or is of another format."
        )
    header = file.read(length)
    entries, metadata = _parse_header(header, size - 8 - length, where)
    digest = hashlib.new(algorithm, head + header, usedforsecurity=False)
    tensors = {}
    with ThreadPoolExecutor(1) as pool:
        hashed: Future[None] | None = None
        for name, dtype, shape, start, end in entries:
            tensor = torch.empty(shape, dtype=dtype, device="cpu")
            memory = memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data) if end > start else memoryview(b"")
            for begin in range(0, end - start, PIECE):
                piece = memory[begin : begin + PIECE]
                if file.readinto(piece) < len(piece):
                    raise _invalid(where, "it was cut while it was read")
                if hashed is not None:
                    hashed.result()
                hashed = pool.submit(digest.update, piece)
            tensors[name] = tensor
    if file.read(1):
        raise _invalid(where, "it grew while it was read")
    return tensors, metadata, f"{algorithm}:{digest.hexdigest()}"


def _invalid(where: str, reason: object) -> WeightsCorrupt:
    return WeightsCorrupt(f"{where}: not a valid safetensors file ({reason}). Fetch or save it again.")


def _parse_header(header: bytes, size: int, where: str) -> tuple[list[TensorEntry], dict[str, str]]:
    """Return the tensors in the order of their bytes, which must cover all ``size`` bytes once, and the metadata."""
    try:
        stated = parse_json(header)
    except (ValueError, RecursionError) as error:
        raise WeightsCorrupt(f"{where}: the safetensors header is not valid JSON ({error}).") from error
    if not isinstance(stated, dict):
        raise WeightsCorrupt(f"{where}: the safetensors header is not a JSON object. Fetch or save it again.")
    metadata = stated.pop("__metadata__", {})
    try:
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are not strings")
        entries = sorted((_entry(name, entry, where) for name, entry in stated.items()), key=lambda entry: entry[3:])
        position = 0
        for name, _, _, start, end in entries:
            if start != position:
                raise ValueError(f"{name} starts at {start}, not at {position}")
            position = end
        if position != size:
            raise ValueError(f"its tensors end at {position}, its bytes at {size}")
    except (ValueError, TypeError, KeyError) as error:
        raise _invalid(where, error) from error
    return entries, metadata


def _entry(name: str, stated: Mapping[str, Any], where: str) -> TensorEntry:
    """Check the header's entry of one tensor.

    Raises:
        ValueError, TypeError, KeyError: it is not valid.
        WeightsCorrupt: a dtype that is not supported.
    """
    dtype = SAFETENSORS_DTYPES.get(stated["dtype"])
    if dtype is None:
        raise WeightsCorrupt(
            f"{where}: medzoo does not read the dtype {str(stated['dtype'])[:20]!r} of {name}. Save it in one of "
            f"{', '.join(SAFETENSORS_DTYPES)}."
        )
    shape, (start, end) = stated["shape"], stated["data_offsets"]
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in (*shape, start, end)):
        raise ValueError(f"{name} has a shape or offset that is not an int >= 0")
    if any(n >= MAX_SIDE for n in shape):
        raise ValueError(f"{name} has a side of {MAX_SIDE:,} or more")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has shape {shape}, which does not fit {end - start} bytes")
    return name, dtype, tuple(shape), start, end


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: not UTF-8, not JSON, or a duplicate key.
        RecursionError: nested too deeply.

    >>> parse_json(b'{"a": 1}')
    {'a': 1}
    """
    return json.loads(data.decode("utf-8"), object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # The json module would keep the last of duplicates silently.
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)
