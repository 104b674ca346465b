"""The reader of MHD and MHA, in the closest canonical orientation.

It is not ITK's, which returns uninitialised memory for a file that is cut short, and reports that on stderr only.

Axes: x y z grow to the patient's right, front and head; a 2D image is h w; c channels.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.channels import channels_first, volumes_to_channels
from medzoo.io.files import DEFLATE_LIMIT, check_size, join_sizes, wrap_read_errors
from medzoo.io.image import (
    Image,
    as_native,
    axis_directions,
    handle_nan,
    has_independent_axes,
    integer_range,
    merge_equal_channels,
    to_closest_ras,
    voxel_sizes,
)
from medzoo.io.metaimage_header import Header, read_header
from medzoo.io.options import ReadOptions

__all__ = ["read_metaimage"]

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS
_LONGEST_NUMBER = 64  # characters of a voxel that is stored as text


def read_metaimage(path: Path, options: ReadOptions) -> Image:
    """Read a volume ``c x y z``, or a 2D image ``c h w``.

    Three channels of 8 bits are RGB. Other channels, and the volumes of a fourth axis, are chosen from by ``frame``
    or read as channels: see :func:`~medzoo.io.channels.volumes_to_channels`.

    Raises:
        DataError: the voxels are missing, cut short or outside the folder; the header is contradictory.
    """
    options.refuse(path, "a MetaImage", "stack")
    notes: list[str] = []
    spacing: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None
    with wrap_read_errors(path, "a MetaImage"):
        header = read_header(path)
        shape = header.size if header.channels == 1 else (*header.size, header.channels)
        check_size(path, math.prod(shape) if min(shape) > 0 else 0, options.max_voxels, join_sizes(shape))
        space = min(len(header.size), 3)
        if math.prod(header.size[space:]) > 1 and header.channels > 1:
            raise DataError(f"{path}: expected volumes or channels, found both ({join_sizes(shape)}). Split the file.")
        is_rgb = header.channels == 3 and header.dtype == np.uint8 and options.channel_axis is options.frame is None
        order = ""
        stored, warnings = _read_voxels(path, header)
        values = stored if is_rgb else volumes_to_channels(path, stored, shape, options, notes)
        if not has_independent_axes(header.affine):
            raise DataError(
                f"{path}: expected {space} independent axes, found a singular TransformMatrix. Export the image again."
            )
        if header.spacing is None:  # ITK assumes 1 mm
            notes.append("the file gives no spacing: axes left as stored")
        elif space == 2:  # without a third axis there is no position in the patient
            spacing = voxel_sizes(header.affine)[:2][::-1]
        else:
            order = axis_directions(_TO_RAS @ header.affine)
            values, affine = to_closest_ras(values, _TO_RAS @ header.affine, notes)
            spacing = voxel_sizes(affine)
    values = as_native(channels_first(values.swapaxes(0, 1) if space == 2 else values))
    values = merge_equal_channels(values, notes) if is_rgb else handle_nan(values, path, options.nan, notes)
    unit, value_range = integer_range(values.dtype, 8) if is_rgb else ("raw", None)
    return Image(
        values, affine, spacing, unit=unit, value_range=value_range, identity={"file": str(path)}, notes=tuple(notes),
        warning=" ".join((*header.warnings, *warnings)), stored=order,
    )  # fmt: skip


def _read_voxels(path: Path, header: Header) -> tuple[NDArray[Any], list[str]]:
    """Return the stored values, axes of space and then volumes or channels, and what is known against them."""
    count = math.prod(header.size) * header.channels
    warnings: list[str] = []
    if not header.binary:
        flat = _read_text(path, header, count)
    elif header.compressed:
        flat = np.frombuffer(_inflate(path, header, count * header.dtype.itemsize), header.dtype)
    else:
        each = count * header.dtype.itemsize // len(header.files)
        parts = [_read_bytes(path, header, file, each, warnings) for file in header.files]
        flat = np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), header.dtype)
    space = min(len(header.size), 3)
    # The channels of a voxel are stored together, then x, y and z follow.
    values = flat.reshape(header.channels, *header.size[:space], -1, order="F")
    return (values[0] if header.channels == 1 else np.moveaxis(values[..., 0], 0, -1)), warnings


def _read_bytes(path: Path, header: Header, data: Path, size: int, warnings: list[str]) -> bytes:
    """Return ``size`` bytes of voxels of one file, which may have more: ITK reads such a file, and it may be wrong."""
    start = header.skip if header.start is None else header.start
    end = data.stat().st_size
    if header.skip == -1:  # the voxels are at the end
        start = max(end - size, start)
    if end - start < size:
        raise DataError(
            f"{path}: expected {size} bytes of voxels in {data.name}, found {max(end - start, 0)}. "
            "It is cut short or belongs to another header: copy both files again."
        )
    if extra := end - start - size:
        warnings.append(f"{data.name} has {extra} bytes more than the header declares: its sizes or type may be wrong.")
    with data.open("rb") as file:
        file.seek(start)
        return file.read(size)


def _inflate(path: Path, header: Header, size: int) -> bytes:
    """Return the bytes of compressed voxels, whose checksum is verified."""
    if len(header.files) > 1 or (header.start is None and header.skip == -1):
        raise DataError(
            f"{path}: expected compressed voxels in one file from a known byte, found a list of files or HeaderSize "
            "-1. Write the volume as one .mha."
        )
    data, start = header.files[0], header.skip if header.start is None else header.start
    inflate, out, pending = zlib.decompressobj(_ZLIB_OR_GZIP), bytearray(), b""
    if size <= (data.stat().st_size - start) * DEFLATE_LIMIT:
        with data.open("rb") as file:
            file.seek(start)
            while len(out) <= size and not inflate.eof and (pending or (pending := file.read(2**16))):
                out += inflate.decompress(pending, 2**20)
                pending = inflate.unconsumed_tail
    if len(out) != size or not inflate.eof:
        raise DataError(
            f"{path}: expected {size} bytes after inflating, found {min(len(out), size + 1)}. "
            "It is cut short, or the header is wrong: copy it again."
        )
    return bytes(out)


def _read_text(path: Path, header: Header, count: int) -> NDArray[Any]:
    """Return voxels that are stored as numbers in text, separated by white space."""
    data = header.files[0]
    if len(header.files) > 1 or header.compressed or header.skip > 0:
        raise DataError(f"{path}: expected voxels as text in one plain file, found another kind. Write it as binary.")
    with data.open("rb") as file:
        file.seek(header.start or 0)
        words = file.read(count * _LONGEST_NUMBER).split()
    if len(words) < count:
        raise DataError(f"{path}: expected {count} voxels as text in {data.name}, found {len(words)}. Copy it again.")
    values = np.array(words[:count], dtype=header.dtype.type if header.dtype.kind == "f" else np.float64)
    return values.astype(header.dtype.newbyteorder("="))
