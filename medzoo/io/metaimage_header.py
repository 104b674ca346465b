"""The header of a MetaImage, read as loosely as MetaIO reads it, and the files with its voxels.

Source: MetaIO's metaUtils.cxx (``MET_Read``), metaObject.cxx and metaImage.cxx, as in ITK 5.4.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError

__all__ = ["Header", "read_header"]

_MAX_HEADER = 2**20
_DATA = b"ElementDataFile"
_TYPES = {
    "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4", "ULONG": "u4",
    "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip
_LINE = re.compile(rb"[ \t\r\v\f]*([^=:\r\n]*?)[ \t]*[=:][=: \t]*([^\r\n]*)")
# Where a header has several of a line, MetaIO takes the first of these.
_POSITION = ("Origin", "Offset", "Position")
_DIRECTION = ("TransformMatrix", "Rotation", "Orientation")
_SPACING = ("ElementSpacing", "ElementSize")


@dataclass(frozen=True)
class Header:
    """A header, and where its voxels are.

    Attributes:
        size: voxels along x, y, z...
        channels: values of a voxel.
        dtype: the type of a value, in the byte order of the file.
        binary: whether the voxels are bytes, else numbers as text.
        compressed: whether they are compressed with zlib.
        skip: HeaderSize: the bytes before the voxels in each file; -1: all that are too many.
        files: the files with the voxels, in order.
        start: where the header ends in its own file, if the voxels are there, else ``None``.
        spacing: mm, or ``None`` where the file gives none; negative where an axis runs the other way.
        affine: from index to LPS mm, 4 x 4; a 2D image uses its upper left 2 x 2 part and the last column.
        warnings: what is known against the image.
    """

    size: tuple[int, ...]
    channels: int
    dtype: np.dtype[Any]
    binary: bool
    compressed: bool
    skip: int
    files: tuple[Path, ...]
    start: int | None
    spacing: tuple[float, ...] | None
    affine: NDArray[np.float64]
    warnings: tuple[str, ...]


class _Fields:
    """The fields of a header; of a key that is repeated, the last value counts."""

    def __init__(self, path: Path, fields: dict[str, bytes]) -> None:
        self.path = path
        self.fields = fields

    def wrong(self, what: str) -> DataError:
        return DataError(f"{self.path}: the MetaImage header {what}. Export the image again.")

    def text(self, key: str, default: str = "") -> str:
        value = self.fields.get(key)
        return default if value is None else _text(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean: MetaIO looks at its first letter."""
        return self.text(key, str(default))[:1] in ("T", "t", "1")

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """Return the first ``count`` numbers of a field.

        Raises:
            DataError: absent, not numbers, too few, or not finite.
        """
        if key not in self.fields:
            raise self.wrong(f"lacks {key}")
        words = self.text(key).split()[:count]
        try:
            values = tuple(float(word) for word in words)
        except ValueError:
            raise self.wrong(f"has a {key} that is not a number") from None
        if len(values) < count:
            raise self.wrong(f"has {len(values)} values of {key}, where {count} are expected")
        if not all(math.isfinite(value) for value in values):
            raise self.wrong(f"has a {key} that is not finite")
        return values

    def integers(self, key: str, count: int) -> tuple[int, ...]:
        values = self.numbers(key, count)
        if any(value % 1 for value in values):
            raise self.wrong(f"has a {key} that is not an integer")
        return tuple(int(value) for value in values)

    def integer(self, key: str, default: int) -> int:
        return self.integers(key, 1)[0] if key in self.fields else default

    def first(self, keys: tuple[str, ...]) -> str | None:
        """Return the first of several keys that the header has."""
        return next((key for key in keys if key in self.fields), None)


def read_header(path: Path) -> Header:
    """Read the header of a ``.mhd`` or ``.mha`` file, and find the files with its voxels.

    Raises:
        DataError: a field that is required is absent or contradictory, or voxels are absent or outside the folder.
    """
    fields, start, rest = _read_fields(path)
    dims = fields.integers("NDims", 1)[0]
    if dims not in (2, 3, 4):
        raise fields.wrong(f"declares {dims} axes, where 2, 3 or 4 are expected")
    size = fields.integers("DimSize", dims)
    channels = fields.integer("ElementNumberOfChannels", 1)
    if channels < 1:
        raise fields.wrong(f"declares {channels} channels")
    name = fields.text("ElementType")
    kind = re.fullmatch(r"MET_(\w+?)(_ARRAY|_MATRIX)?", name)
    if kind is None or kind[1] not in _TYPES:
        what = f"has an ElementType of {name[:40]}, which is not read" if name else "lacks ElementType"
        raise fields.wrong(what)
    order_key = fields.first(("BinaryDataByteOrderMSB", "ElementByteOrderMSB"))
    order = ">" if order_key and fields.flag(order_key, False) else "<"
    spacing, affine = _geometry(fields, min(dims, 3), dims)
    local, files = _data_files(fields, size, rest)
    skip = fields.integer("HeaderSize", 0)
    if local and skip not in (0, -1, start):
        raise fields.wrong(f"declares voxels from byte {skip} of its own file, where they begin at byte {start}")
    return Header(
        size, channels, np.dtype(order + _TYPES[kind[1]]), fields.flag("BinaryData", True),
        fields.flag("CompressedData", False), max(skip, -1), files, start if local else None, spacing, affine,
        tuple(_warnings(fields)),
    )  # fmt: skip


def _read_fields(path: Path) -> tuple[_Fields, int, list[bytes]]:
    """Return the fields up to ElementDataFile, the position of the next byte, and the lines after it.

    A line is ``Key = Value`` or ``Key: Value``; one without a separator is a comment, and unknown keys are skipped.
    """
    fields: dict[str, bytes] = {}
    with path.open("rb") as file:
        while _DATA.decode() not in fields:
            line = file.readline(_MAX_HEADER - file.tell())
            if not line or (not line.endswith(b"\n") and file.tell() >= _MAX_HEADER):
                raise DataError(
                    f"{path}: expected a MetaImage header of lines 'Key = value' with ElementDataFile last, found none "
                    "up to its end. Copy the file again, or export the image again."
                )
            if match := _LINE.match(line):
                fields[_text(match[1]).strip()] = match[2].rstrip()
        start = file.tell()
        is_list = fields[_DATA.decode()].upper().startswith(b"LIST")
        rest = file.read(_MAX_HEADER).splitlines() if is_list else []
    return _Fields(path, fields), start, rest


def _text(value: bytes) -> str:
    """Decode UTF-8, else Latin-1, which every byte has a letter in."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _geometry(fields: _Fields, space: int, dims: int) -> tuple[tuple[float, ...] | None, NDArray[np.float64]]:
    """Return the spacing and the affine of the axes of space. The matrix of a file has an axis in each row."""
    key = fields.first(_SPACING)
    spacing = fields.numbers(key, dims)[:space] if key else None
    if spacing and 0 in spacing:
        raise fields.wrong(f"has an {key} of 0")
    affine = np.eye(4)
    if key := fields.first(_DIRECTION):
        affine[:space, :space] = np.reshape(fields.numbers(key, dims * dims), (dims, dims))[:space, :space].T
    affine[:space, :space] *= spacing or 1.0
    if key := fields.first(_POSITION):
        affine[:space, 3] = fields.numbers(key, dims)[:space]
    return spacing, affine


def _warnings(fields: _Fields) -> list[str]:
    found = []
    unit = fields.text("DistanceUnits").strip().lower()
    if unit not in ("", "mm", "millimeter", "millimeters", "?"):
        found.append(f"The header gives distances in {unit[:20]}; they are read as mm, as ITK reads them.")
    keys = ("ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset")
    rescale = [
        fields.numbers(key, 1)[0] if key in fields.fields else none for key, none in zip(keys, (1, 0), strict=True)
    ]
    if rescale != [1, 0]:
        found.append("The header gives a rescale of the voxels, which is not applied, as in ITK.")
    return found


def _data_files(fields: _Fields, size: tuple[int, ...], rest: list[bytes]) -> tuple[bool, tuple[Path, ...]]:
    """Return whether the voxels follow the header, and the files that hold them."""
    raw = fields.fields[_DATA.decode()]
    name = _text(raw)
    if name.upper() == "LOCAL":
        return True, (fields.path,)
    if match := re.fullmatch(r"LIST(?:\s+(\d)\s*D?)?", name):
        inner = int(match[1] or len(size) - 1)
        count = math.prod(size[inner:]) if 0 < inner < len(size) else 0
        names = [line.strip() for line in rest if line.strip()]
        if not 0 < count <= len(names):
            raise fields.wrong(f"lists {len(names)} files of voxels, where {count} are expected")
        return False, tuple(_data_file(fields, line) for line in names[:count])
    if "%" in name and not (fields.path.parent / name).is_file():
        return False, tuple(_data_file(fields, os.fsencode(each)) for each in _numbered(fields, name, size[-1]))
    return False, (_data_file(fields, raw),)


def _numbered(fields: _Fields, name: str, count: int) -> list[str]:
    """Return the names that a pattern such as ``slice%03d.raw 1 30 1`` stands for: first, last, step."""
    match = re.fullmatch(r"([^%]*)%(0?)(\d?)d([^%]*?)\s+(\d{1,6})\s+(\d{1,6})\s+([1-9]\d{0,5})", name)
    if not match:
        raise fields.wrong("has a pattern of file names that is not 'name%03d.raw first last step'")
    before, zeros, width, after, first, last, step = match.groups()
    numbers = range(int(first), int(last) + 1, int(step))
    if len(numbers) < count:
        raise fields.wrong(f"has a pattern for {len(numbers)} files of voxels, where {count} are expected")
    fill = "0" if zeros else " "
    return [f"{before}{str(number).rjust(int(width or 1), fill)}{after}" for number in numbers[:count]]


def _data_file(fields: _Fields, raw: bytes) -> Path:
    """Return a file with voxels, which must be in the folder of the header or below it.

    Raises:
        DataError: absent, or elsewhere.
    """
    path, name = fields.path, _text(raw)
    if b"\0" in raw or not name:
        raise fields.wrong("has an ElementDataFile without a name")
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in parts:
        raise DataError(f"{path}: expected ElementDataFile inside its folder, found a path that leaves it.")
    # As its bytes, as text, and as Windows writes folders.
    candidates = [path.parent / each for each in (os.fsdecode(raw), name, name.replace("\\", "/"))]
    data = next((each for each in candidates if each.is_file()), None)
    if data is None:
        raise DataError(f"{path}: expected its voxels in {name}, found no such file. Copy both files together.")
    # Links are resolved, so that an archive cannot name a file elsewhere. A content-addressed store that links header
    # and voxels to files of other names in one folder is accepted.
    folders = (path.parent.resolve(), path.resolve().parent)
    if not any(data.resolve().is_relative_to(folder) for folder in folders):
        raise DataError(f"{path}: expected ElementDataFile inside its folder, found a link that leaves it.")
    return data
