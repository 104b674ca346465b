"""Read the bytes of an ONNX file, and refuse one that names other files.

A tensor of an ONNX file may be in another file, which the digest of the first does not cover and which onnxruntime
opens by itself. Where tensors can be follows from ``onnx.proto`` of ONNX 1.23, IR version 14; the encoding is that of
https://protobuf.dev/programming-guides/encoding/. Only lengths are read: no tensor is decoded.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path

from medzoo.errors import UnsafeWeights, WeightsCorrupt, WeightsUnavailable
from medzoo.weights.safetensors import parse_json

__all__ = ["read_onnx"]

# Protobuf has no longer messages.
MAX_BYTES = 2**31
# For each message its fields that are messages with a tensor somewhere inside.
MESSAGES: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of TensorProto
# Graphs in attributes of nodes of graphs: no model needs as many.
MAX_DEPTH = 50
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def read_onnx(path: Path) -> tuple[bytes, str]:
    """Return the bytes of an ONNX file with all its weights in it, and their ``"sha256:…"``.

    If the report of its export is beside it, ``NAME.onnx.json``, the digest must be the one in the report.

    Raises:
        WeightsUnavailable: no such file, or it cannot be read.
        WeightsCorrupt: not a complete ONNX file, or not the one that was exported.
        UnsafeWeights: it names another file.
    """
    data = _read(path)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    _check_report(path, digest)
    try:
        external = _has_external(memoryview(data), "ModelProto", 0)
    except ValueError as error:
        raise WeightsCorrupt(
            f"{path}: expected a complete ONNX file, got other or truncated data ({error}). Copy it or export it again."
        ) from error
    if external:
        raise UnsafeWeights(
            f"{path}: expected one file with all its weights, got one that reads weights from another file, which no "
            "digest covers. Export the model again with medzoo.export, which writes one file."
        )
    return data, digest


def _read(path: Path) -> bytes:
    """Return the bytes of a regular file."""
    try:
        kind = path.stat()
        if not stat.S_ISREG(kind.st_mode):
            raise WeightsUnavailable(f"{path}: expected an ONNX file, got a folder or a device. Give the file.")
        if not 0 < kind.st_size < MAX_BYTES:
            raise WeightsCorrupt(
                f"{path}: expected an ONNX file of 1 byte to 2 GiB, got {kind.st_size:,} bytes. Copy it or export it "
                "again."
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, (WeightsUnavailable, WeightsCorrupt)):
            raise
        reason = getattr(error, "strerror", None) or error
        raise WeightsUnavailable(
            f"{path}: the ONNX file cannot be read ({reason}). Give a file that medzoo.export wrote."
        ) from error


def _check_report(path: Path, digest: str) -> None:
    """Raise WeightsCorrupt if the report beside the file is of other bytes."""
    report = path.with_name(path.name + ".json")
    try:
        stated = parse_json(report.read_bytes())["digest"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsCorrupt(
            f"{report}: expected the report that medzoo.export wrote, got another file ({error}). Export the model "
            "again, or move the report away to run the ONNX file unchecked."
        ) from error
    if stated != digest:
        raise WeightsCorrupt(
            f"{path}: expected the digest {stated!r} of the report beside it, got {digest}: the file was changed or "
            "damaged after its export. Copy or export both again."
        )


def _has_external(data: memoryview, message: str, depth: int) -> bool:
    """Whether a tensor in a message is in another file.

    Raises:
        ValueError: not an encoded message.
    """
    if depth > MAX_DEPTH:
        raise ValueError("too many graphs inside of each other")
    inner = MESSAGES[message]
    for field, wire, value in _fields(data):
        if message == "TensorProto" and (
            (field == EXTERNAL_DATA and wire == LENGTH) or (field == DATA_LOCATION and wire == VARINT and value != 0)
        ):
            return True
        if field in inner and isinstance(value, memoryview) and _has_external(value, inner[field], depth + 1):
            return True
    return False


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield number, wire type and value of each field: an int, or the bytes of what has a length."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        field, wire = tag >> 3, tag & 7
        if not 0 < field < 2**29:
            raise ValueError(f"a field with the number {field}")
        if wire == VARINT:
            value, at = _varint(data, at)
            yield field, wire, value
            continue
        if wire == LENGTH:
            length, at = _varint(data, at)
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"a field of the wire type {wire}")
        if at + length > len(data):
            raise ValueError(f"a field of {length:,} bytes where {len(data) - at:,} are left")
        yield field, wire, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number that starts at ``at``, and where the next value starts."""
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number without an end")
