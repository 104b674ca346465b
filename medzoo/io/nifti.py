"""The reader of NIfTI-1 and NIfTI-2, through nibabel, in the closest canonical orientation.

The header is checked against the size of the file before memory is allocated.

Axes: x y z grow to the patient's right, front and head.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.files import DEFLATE_LIMIT, check_frame, check_size, join_sizes, wrap_read_errors
from medzoo.io.image import Image, as_native, handle_nan, has_independent_axes, to_closest_ras, voxel_sizes
from medzoo.io.options import ReadOptions

__all__ = ["read_nifti"]

_CHUNK = 2**22
_TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by the spatial bits of xyzt_units; 0 is unknown, in practice mm


def read_nifti(path: Path, kind: str, options: ReadOptions) -> Image:
    """Read a volume ``1 x y z``; ``kind`` is ``"nifti"`` or ``"nifti.gz"``.

    A gzip file is read to its last byte so that its checksum is verified.

    Raises:
        DataError: damaged, cut short, sizes the file cannot hold, several volumes and no ``frame``, NaN, no usable
            affine, or voxels that are not real numbers.
    """
    from nibabel.spatialimages import HeaderDataError, HeaderTypeError, ImageDataError
    from nibabel.volumeutils import apply_read_scaling
    from nibabel.wrapstruct import WrapStructError

    options.refuse(path, "a NIfTI file", "stack")
    notes: list[str] = []
    with wrap_read_errors(path, "a NIfTI volume", HeaderDataError, HeaderTypeError, ImageDataError, WrapStructError):
        with gzip.open(path) if kind == "nifti.gz" else path.open("rb") as file:
            header = _read_header(path, file)
            size = _check_sizes(path, kind, header, options.max_voxels)
            stored = _read_voxels(path, file, header, size)
        volume = _select_volume(path, stored, options.frame, notes)
        values = as_native(apply_read_scaling(volume, *_scaling(path, header)))
        affine, spacing = _geometry(path, header, notes)
    if affine is not None:
        values, affine = to_closest_ras(values, affine, notes)
        spacing = voxel_sizes(affine)
    values = handle_nan(values[None], path, options.nan, notes)
    return Image(values, affine, spacing, identity={"file": str(path)}, notes=tuple(notes))


def _read_header(path: Path, file: BinaryIO | gzip.GzipFile) -> Any:
    """Read the header unchanged: nibabel's own checks correct some faults silently and log others to stderr."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    first = file.read(4)
    file.seek(0)
    is_nifti2 = 540 in (int.from_bytes(first, "little"), int.from_bytes(first, "big"))
    header = (Nifti2Header if is_nifti2 else Nifti1Header).from_fileobj(file, check=False)
    if bytes(header["magic"])[:2] == b"ni":
        raise DataError(f"{path}: expected one .nii file, found the header of a .hdr/.img pair. Convert it to .nii.")
    if header.get_data_dtype().kind not in "uif":
        raise DataError(f"{path}: expected real voxels, found {header.get_data_dtype()}. Convert it to a real type.")
    return header


def _check_sizes(path: Path, kind: str, header: Any, max_voxels: int) -> int:
    """Check the header's sizes against the file, and return the number of bytes up to the last voxel."""
    shape = tuple(int(n) for n in header.get_data_shape())
    sizes = join_sizes(shape)
    if len(shape) < 3 or any(n < 1 for n in shape):
        raise DataError(
            f"{path}: expected a volume x × y × z, the header declares {sizes or 'nothing'}. Export it again."
        )
    check_size(path, math.prod(shape), max_voxels, sizes)
    offset = float(header["vox_offset"])
    if not header.single_vox_offset <= offset < 2**40 or offset % 1:
        raise DataError(f"{path}: expected voxels to start at byte 352 or later, the header declares {offset:g}.")
    size = int(offset) + math.prod(shape) * int(header.get_data_dtype().itemsize)
    stored = path.stat().st_size
    if size > stored * (DEFLATE_LIMIT if kind == "nifti.gz" else 1):
        raise DataError(
            f"{path}: the header declares {sizes} voxels, {size} bytes; the file of {stored} bytes cannot hold them. "
            "It is cut short, or the header is wrong: copy it again from its source."
        )
    return size


def _read_voxels(path: Path, file: BinaryIO | gzip.GzipFile, header: Any, size: int) -> NDArray[Any]:
    """Return the stored voxels, and read on to the end of the stream, where gzip verifies its checksum."""
    file.seek(0)
    data = bytearray()
    while len(data) < size and (chunk := file.read(min(_CHUNK, size - len(data)))):
        data += chunk
    if len(data) < size:
        raise DataError(f"{path}: expected {size} bytes, found {len(data)}. It is cut short: copy it again.")
    after = 0
    while isinstance(file, gzip.GzipFile) and (chunk := file.read(_CHUNK)):
        after += len(chunk)
        if after > size + _CHUNK:
            raise DataError(f"{path}: expected {size} bytes, found more than twice that. The header is wrong.")
    shape, offset = header.get_data_shape(), int(header["vox_offset"])
    return np.frombuffer(data, header.get_data_dtype(), math.prod(shape), offset).reshape(shape, order="F")


def _scaling(path: Path, header: Any) -> tuple[float, float]:
    """Return slope and intercept; slope 0 means no scaling in NIfTI, and nibabel writes NaN for it."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise DataError(
            f"{path}: expected a finite scaling, found slope {slope} and intercept {inter}. Export it again."
        )
    return slope, inter


def _select_volume(path: Path, stored: NDArray[Any], frame: int | None, notes: list[str]) -> NDArray[Any]:
    """Return one volume ``x y z`` of an array with more axes."""
    shape = stored.shape
    volumes = math.prod(shape[3:])
    if sum(n > 1 for n in shape[3:]) > 1 or (volumes > 1 and frame is None):
        raise DataError(
            f"{path}: expected one volume, found {volumes} ({join_sizes(shape)}). "
            "Choose one with frame=0, or split the file."
        )
    check_frame(path, frame, volumes)
    if volumes > 1:
        notes.append(f"volume {frame} of {volumes}")
    return stored.reshape(*shape[:3], volumes, order="F")[..., frame or 0]


def _geometry(path: Path, header: Any, notes: list[str]) -> tuple[NDArray[np.float64] | None, tuple[float, ...] | None]:
    """Return the affine in mm, or the spacing alone where the file gives no orientation."""
    code = int(header["xyzt_units"]) & 7
    unit = _TO_MM.get(code)
    if unit is None:
        raise DataError(f"{path}: expected m, mm or µm, found unit code {code}. Set it to mm.")
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        spacing = tuple(float(abs(s)) * unit for s in header["pixdim"][1:4])
        notes.append("the file gives no orientation: axes left as stored")
        usable = all(math.isfinite(s) and s > 0 for s in spacing)
        return None, spacing if usable else None
    affine = np.diag([unit, unit, unit, 1.0]) @ np.asarray(header.get_best_affine(), dtype=np.float64)
    if not has_independent_axes(affine):
        raise DataError(
            f"{path}: expected an affine with three independent axes, found a singular one or NaN. "
            "Set its sform from the scan it came from."
        )
    return affine, None
