"""The reader of NIfTI-1 and NIfTI-2, through nibabel, in the closest canonical orientation.

The header is checked against the size of the file before memory is allocated.

Axes: x y z grow to the patient's right, front and head.
"""

from __future__ import annotations

import gzip
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.channels import channels_first, volumes_to_channels
from medzoo.io.files import DEFLATE_LIMIT, check_frame, check_size, join_sizes, wrap_read_errors
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
from medzoo.io.options import ReadOptions

__all__ = ["read_nifti"]

_CHUNK = 2**22
_NIFTI_1 = 348  # bytes of its header
_XFORM_CODES = range(1, 6)
_CIFTI = range(3000, 3100)  # intent codes
_ROUNDING = 1e-2  # of a quaternion that is stored with few digits
_COLOURS = (("R", "G", "B"), ("R", "G", "B", "A"))
_TIME_UNITS, _OF_TIME = 0x38, (8, 16, 24)  # bits of xyzt_units; seconds, milliseconds and microseconds
_TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by the spatial bits of xyzt_units; 0 is unknown, in practice mm


def read_nifti(path: Path, kind: str, options: ReadOptions) -> Image:
    """Read a volume ``c x y z``; ``kind`` is ``"nifti"`` or ``"nifti.gz"``.

    The volumes of a fourth or fifth axis are chosen from by ``frame``, or read as channels: see
    :func:`~medzoo.io.channels.volumes_to_channels`. RGB voxels are three channels. A gzip file is read to its last byte
    so that its checksum is verified.

    Raises:
        DataError: damaged, cut short, sizes the file cannot hold, several volumes and no ``frame``, NaN, no usable
            affine, or voxels that are neither real numbers nor RGB.
    """
    from nibabel.spatialimages import HeaderDataError, HeaderTypeError, ImageDataError
    from nibabel.volumeutils import apply_read_scaling
    from nibabel.wrapstruct import WrapStructError

    options.refuse(path, "a NIfTI file", "stack")
    notes: list[str] = []
    warnings: list[str] = []
    with wrap_read_errors(path, "a NIfTI volume", HeaderDataError, HeaderTypeError, ImageDataError, WrapStructError):
        path, data, packed = _pair(path, kind)
        with gzip.open(path) if kind == "nifti.gz" else path.open("rb") as file:
            header = _read_header(path, file)
            if data == path:
                size = _check_sizes(path, path, packed, header, options.max_voxels)
                stored = _read_voxels(path, file, header, size, warnings)
        if data != path:
            size = _check_sizes(path, data, packed, header, options.max_voxels)
            with gzip.open(data) if packed else data.open("rb") as file:
                stored = _read_voxels(data, file, header, size, warnings)
        stored, bits = _without_colour_fields(path, stored, options.frame, notes)
        values = stored if bits else _volumes(path, header, stored, options, notes)
        values = values if bits else apply_read_scaling(values, *_scaling(path, header, warnings))
        affine, spacing = _geometry(path, header, notes, warnings)
    order = ""
    if affine is not None:
        order = axis_directions(affine)
        values, affine = to_closest_ras(values, affine, notes)
        spacing = voxel_sizes(affine)
    values = handle_nan(as_native(channels_first(values)), path, options.nan, notes)
    values = merge_equal_channels(values, notes) if bits else values
    unit, value_range = integer_range(values.dtype, bits) if bits else ("raw", None)
    return Image(
        values, affine, spacing, unit=unit, value_range=value_range, identity={"file": str(path)}, notes=tuple(notes),
        warning=" ".join(warnings), stored=order,
    )  # fmt: skip


def _pair(path: Path, kind: str) -> tuple[Path, Path, bool]:
    """Return the file with the header, the file with the voxels, and whether the latter is a gzip file."""
    with gzip.open(path) if kind == "nifti.gz" else path.open("rb") as file:
        head = file.read(_NIFTI_1)
    if head[344:347] != b"ni1" and head[4:7] != b"ni2":
        return path, path, kind == "nifti.gz"
    stem = path.name.removesuffix(".gz")
    stem, upper = stem[: -len(".hdr")] if stem.lower().endswith(".hdr") else stem, stem.endswith(".HDR")
    name = stem + (".IMG" if upper else ".img")
    for data in (path.parent / name, path.parent / f"{name}.gz"):
        if data.is_file():
            with data.open("rb") as file:
                return path, data, file.read(2) == b"\x1f\x8b"
    raise DataError(
        f"{path}: expected its voxels in {name}, as its header is of a .hdr/.img pair, found no such file. Copy both "
        "files together."
    )


def _read_header(path: Path, file: BinaryIO | gzip.GzipFile) -> Any:
    """Read the header unchanged: nibabel's own checks correct some faults silently and log others to stderr."""
    from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
    from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader

    first = file.read(4)
    file.seek(0)
    is_nifti2 = 540 in (int.from_bytes(first, "little"), int.from_bytes(first, "big"))
    header = (Nifti2Header if is_nifti2 else Nifti1Header).from_fileobj(file, check=False)
    if bytes(header["magic"])[:2] == b"ni":
        header = (Nifti2PairHeader if is_nifti2 else Nifti1PairHeader)(header.binaryblock, header.endianness, False)
    if int(header["intent_code"]) in _CIFTI:
        raise DataError(f"{path}: expected a volume, found CIFTI: values of a surface and of voxels that it lists.")
    dtype = header.get_data_dtype()
    if dtype.kind not in "uif" and dtype.names not in _COLOURS:
        raise DataError(f"{path}: expected real or RGB voxels, found {dtype}. Convert it to a real type.")
    return header


def _check_sizes(path: Path, data: Path, packed: bool, header: Any, max_voxels: int) -> int:
    """Check the header's sizes against the file, and return the number of bytes up to the last voxel."""
    shape = _shape(header)
    sizes = join_sizes(shape)
    if len(shape) < 3 or any(n < 1 for n in shape):
        raise DataError(
            f"{path}: expected a volume x × y × z, the header declares {sizes or 'nothing'}. Export it again."
        )
    check_size(path, math.prod(shape) * len(header.get_data_dtype().names or "1"), max_voxels, sizes)
    offset = float(header["vox_offset"])
    least = 0 if data != path else header.single_vox_offset
    if not least <= offset < 2**40 or offset % 1:
        raise DataError(f"{path}: expected voxels to start at byte {least} or later, the header declares {offset:g}.")
    size = int(offset) + math.prod(shape) * int(header.get_data_dtype().itemsize)
    stored = data.stat().st_size
    if size > stored * (DEFLATE_LIMIT if packed else 1):
        raise DataError(
            f"{path}: the header declares {sizes} voxels, {size} bytes; the file of {stored} bytes cannot hold them. "
            "It is cut short, or the header is wrong: copy it again from its source."
        )
    return size


def _shape(header: Any) -> tuple[int, ...]:
    """Return the axes; a picture x × y is a volume of one slice."""
    shape = tuple(int(n) for n in header.get_data_shape())
    return (*shape, 1) if len(shape) == 2 else shape


def _read_voxels(
    path: Path, file: BinaryIO | gzip.GzipFile, header: Any, size: int, warnings: list[str]
) -> NDArray[Any]:
    """Return the stored voxels, and read on to the end of the stream, where gzip verifies its checksum."""
    file.seek(0)
    data = bytearray()
    while len(data) < size and (chunk := file.read(min(_CHUNK, size - len(data)))):
        data += chunk
    if len(data) < size:
        raise DataError(f"{path}: expected {size} bytes, found {len(data)}. It is cut short: copy it again.")
    after = 0
    try:
        while chunk := file.read(_CHUNK):
            after += len(chunk)
            if after > size + _CHUNK:
                raise DataError(f"{path}: expected {size} bytes, found more than twice that. The header is wrong.")
    except gzip.BadGzipFile as error:
        if not str(error).startswith("Not a gzipped file"):  # else the stream and its checksum are sound
            raise
        after += 1
    if after:
        warnings.append("The file goes on after the voxels that its header declares: its sizes or type may be wrong.")
    shape, offset = _shape(header), int(header["vox_offset"])
    return np.frombuffer(data, header.get_data_dtype(), math.prod(shape), offset).reshape(shape, order="F")


def _without_colour_fields(
    path: Path, stored: NDArray[Any], frame: int | None, notes: list[str]
) -> tuple[NDArray[Any], int]:
    """Return RGB or RGBA voxels with their three colours along a last axis, and 8 bits; others unchanged, and 0."""
    if stored.dtype.names is None:
        return stored, 0
    check_frame(path, frame, 1)
    if math.prod(stored.shape[3:]) > 1:
        raise DataError(f"{path}: expected one volume of colours, found {join_sizes(stored.shape)}. Split the file.")
    if "A" in stored.dtype.names:
        if not (stored["A"] == 255).all():
            raise DataError(
                f"{path}: expected an opaque image, found transparency that leaves voxels undefined. Export it without "
                "alpha."
            )
        notes.append("opaque alpha dropped")
    return np.stack([stored[name].reshape(stored.shape[:3]) for name in "RGB"], axis=-1), 8


def _volumes(path: Path, header: Any, stored: NDArray[Any], options: ReadOptions, notes: list[str]) -> NDArray[Any]:
    """Return the volumes that are asked for, ``x y z c``."""
    shape = stored.shape
    if sum(n > 1 for n in shape[3:]) > 1:
        raise DataError(
            f"{path}: expected volumes along one axis, found {join_sizes(shape)}. Split the file into files of one "
            "volume, or of four axes."
        )
    # Steps in a unit of time are a series, not channels; a step of 0 or 1 may be the default of a writer.
    if int(header["xyzt_units"]) & _TIME_UNITS in _OF_TIME and float(header["pixdim"][4]) not in (0, 1):
        options = replace(options, channels=1)
    return volumes_to_channels(path, stored.reshape(*shape[:3], -1, order="F"), shape, options, notes)


def _scaling(path: Path, header: Any, warnings: list[str]) -> tuple[float, float]:
    """Return slope and intercept; slope 0 means no scaling in NIfTI, and nibabel writes NaN for it."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isinf(slope):
        warnings.append("The scaling of the file is infinite: its values are not scaled, as nibabel reads it.")
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(inter):
        raise DataError(
            f"{path}: expected a finite scaling, found slope {slope} and intercept {inter}. Export it again."
        )
    return slope, inter


def _geometry(
    path: Path, header: Any, notes: list[str], warnings: list[str]
) -> tuple[NDArray[np.float64] | None, tuple[float, ...] | None]:
    """Return the affine in mm, or the spacing alone where the file gives no orientation."""
    code = int(header["xyzt_units"]) & 7
    unit = _TO_MM.get(code)
    if unit is None:
        raise DataError(f"{path}: expected m, mm or µm, found unit code {code}. Set it to mm.")
    if int(header["sform_code"]) in _XFORM_CODES:
        stored = header.get_sform()
    elif int(header["qform_code"]) in _XFORM_CODES:
        stored = _qform(path, header, warnings)
    else:
        spacing = tuple(float(abs(s)) * unit for s in header["pixdim"][1:4])
        notes.append("the file gives no orientation: axes left as stored")
        usable = all(math.isfinite(s) and s > 0 for s in spacing)
        return None, spacing if usable else None
    affine = np.diag([unit, unit, unit, 1.0]) @ np.asarray(stored, dtype=np.float64)
    if not has_independent_axes(affine):
        raise DataError(
            f"{path}: expected an affine with three independent axes, found a singular one or NaN. "
            "Set its sform from the scan it came from."
        )
    return affine, None


def _qform(path: Path, header: Any, warnings: list[str]) -> NDArray[np.float64]:
    """Return the affine of the quaternion, with the corrections that nibabel makes when it loads a file.

    A size below 0 loses its sign, one of 0 becomes 1, and pixdim[0] other than -1 is 1. A quaternion that is longer
    than 1 by rounding is normalized, as in nifti1_io.c.
    """
    header = header.copy()
    sizes = np.abs(header["pixdim"][1:4])
    thick = np.array(_shape(header)[:3]) > 1
    if (sizes[thick] == 0).any():
        warnings.append("A voxel size of the file is 0; it is read as 1 mm, as nibabel reads it.")
    header["pixdim"][1:4] = np.where(sizes == 0, 1, sizes)
    header["pixdim"][0] = -1 if header["pixdim"][0] == -1 else 1
    names = ("quatern_b", "quatern_c", "quatern_d")
    quaternion = np.array([float(header[name]) for name in names])
    length = float(np.linalg.norm(quaternion))
    if not length <= 1 + _ROUNDING:
        raise DataError(f"{path}: expected a unit quaternion, found one of length {length:g}. Set its sform.")
    if length > 1:
        for name, value in zip(names, quaternion / length, strict=True):
            header[name] = value * (1 - np.finfo(np.float32).eps)
    return np.asarray(header.get_qform(), dtype=np.float64)
