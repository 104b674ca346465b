"""NIfTI-1 and NIfTI-2 through nibabel, in the closest canonical orientation, held to what the file really contains.

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
from medzoo.io.arrays import as_real, settle_nan
from medzoo.io.files import DEFLATE_LIMIT, check_size, refusing
from medzoo.io.image import Image

__all__ = ["canonical", "read_nifti"]

_CHUNK = 2**22
_TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # spatial bits of xyzt_units; 0 is "not said", in practice mm


def read_nifti(path: Path, kind: str, *, frame: int | None, nan: str, max_voxels: int) -> Image:
    """Read a volume ``1 x y z``.

    Args:
        path: the file.
        kind: ``"nifti"``, or ``"nifti.gz"`` which is read to its last byte so that its checksum is checked.
        frame: the volume of a 4D file.
        nan: ``"raise"`` or ``"zero"``.
        max_voxels: the most voxels of the whole file.

    Raises:
        DataError: damaged, cut short, sizes the file cannot hold, several volumes and no ``frame``, NaN, no usable
            affine, or voxels that are not real numbers.
    """
    from nibabel.spatialimages import HeaderDataError, HeaderTypeError, ImageDataError
    from nibabel.volumeutils import apply_read_scaling
    from nibabel.wrapstruct import WrapStructError

    own = (HeaderDataError, HeaderTypeError, ImageDataError, WrapStructError)
    notes: list[str] = []
    with refusing(path, "a NIfTI volume", *own):
        with gzip.open(path) if kind == "nifti.gz" else path.open("rb") as file:
            header = _header(path, file)
            size = _check_claims(path, kind, header, max_voxels)
            data = _read_exactly(path, file, header, size)
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        stored = np.frombuffer(data, dtype, count=math.prod(shape)).reshape(shape, order="F")
        volume = _one_volume(path, stored, frame, notes)
        values = as_real(apply_read_scaling(volume, *_scaling(path, header)))
        affine, spacing = _geometry(path, header, notes)
    if affine is not None:
        values, affine = canonical(values, affine, notes)
        spacing = tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
    values, mended = settle_nan(values[None], path, nan)
    return Image(values, affine, spacing, identity={"file": str(path)}, notes=(*notes, *mended))


def canonical(
    values: NDArray[Any], affine: NDArray[np.float64], notes: list[str]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Permute and flip ``x y z`` until each axis points as nearly as it can right, front and head."""
    from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff, io_orientation

    change = io_orientation(affine)
    if not np.array_equal(change, [[0, 1], [1, 1], [2, 1]]):
        notes.append(f"turned from {''.join(aff2axcodes(affine))} to RAS")
        affine = affine @ inv_ornt_aff(change, values.shape)
        values = apply_orientation(values, change)
    return np.ascontiguousarray(values), np.asarray(affine, dtype=np.float64)


def _header(path: Path, file: BinaryIO | gzip.GzipFile) -> Any:
    """Read the header as it is: nibabel's own checks mend some faults in silence, and log others to stderr."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    first = file.read(4)
    file.seek(0)
    two = 540 in (int.from_bytes(first, "little"), int.from_bytes(first, "big"))
    header = (Nifti2Header if two else Nifti1Header).from_fileobj(file, check=False)
    magic = bytes(header["magic"])
    if magic[:2] == b"ni":
        raise DataError(f"{path}: expected one .nii file, found the header of a .hdr/.img pair. Convert it to .nii.")
    if header.get_data_dtype().kind not in "uif":
        raise DataError(f"{path}: expected real voxels, found {header.get_data_dtype()}. Convert it to a real type.")
    return header


def _check_claims(path: Path, kind: str, header: Any, max_voxels: int) -> int:
    """Hold the header's sizes to the file before memory is set aside; return the bytes up to the last voxel."""
    shape = tuple(int(n) for n in header.get_data_shape())
    claim = " × ".join(map(str, shape))
    if len(shape) < 3 or any(n < 1 for n in shape):
        raise DataError(f"{path}: expected a volume x × y × z, the header says {claim or 'nothing'}. Export it anew.")
    check_size(path, math.prod(shape), max_voxels, claim)
    offset = float(header["vox_offset"])
    if not header.single_vox_offset <= offset < 2**40 or offset % 1:
        raise DataError(f"{path}: expected voxels to start at byte 352 or later, the header says {offset:g}.")
    size = int(offset) + math.prod(shape) * int(header.get_data_dtype().itemsize)
    stored = path.stat().st_size
    if size > stored * (DEFLATE_LIMIT if kind == "nifti.gz" else 1):
        raise DataError(
            f"{path}: the header says {claim} voxels, {size} bytes; the file of {stored} bytes cannot hold them. "
            "It is cut short, or the header is wrong: copy it again from its source."
        )
    return size


def _read_exactly(path: Path, file: BinaryIO | gzip.GzipFile, header: Any, size: int) -> memoryview:
    """Return the bytes of the voxels, and read on to the end of the stream, where gzip checks its sum."""
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
    return memoryview(data)[int(header["vox_offset"]) :]


def _scaling(path: Path, header: Any) -> tuple[float, float]:
    """Return slope and intercept: NIfTI says that slope 0 means none, and nibabel writes NaN for none."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise DataError(f"{path}: expected a finite scaling, found slope {slope} and intercept {inter}. Export anew.")
    return slope, inter


def _one_volume(path: Path, stored: NDArray[Any], frame: int | None, notes: list[str]) -> NDArray[Any]:
    """Return the volume ``x y z`` of a file with more axes."""
    shape = stored.shape
    extra = [axis for axis in range(3, len(shape)) if shape[axis] > 1]
    volumes = math.prod(shape[3:])
    if len(extra) > 1 or (extra and frame is None):
        raise DataError(
            f"{path}: expected one volume, found {volumes} ({' × '.join(map(str, shape))}). "
            "Choose one with frame=0, or split the file."
        )
    if frame is not None and frame >= volumes:
        raise DataError(f"{path}: expected frame below {volumes}, got frame={frame}. Count volumes from 0.")
    if volumes > 1:
        notes.append(f"volume {frame} of {volumes}")
    index = tuple(slice(None) if axis < 3 else (frame if axis in extra else 0) for axis in range(len(shape)))
    return stored[index]


def _geometry(path: Path, header: Any, notes: list[str]) -> tuple[NDArray[np.float64] | None, tuple[float, ...] | None]:
    """Return the affine in mm, or the spacing alone where the file does not say how the patient lies."""
    unit = _TO_MM.get(int(header["xyzt_units"]) & 7)
    if unit is None:
        raise DataError(f"{path}: expected m, mm or µm, found unit code {int(header['xyzt_units']) & 7}. Set it to mm.")
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        spacing = tuple(float(abs(s)) * unit for s in header["pixdim"][1:4])
        notes.append("the file does not say how the patient lies: axes left as stored")
        usable = all(math.isfinite(s) and s > 0 for s in spacing)
        return None, spacing if usable else None
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    affine = np.diag([unit, unit, unit, 1.0]) @ affine
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (lengths > 0).all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise DataError(
            f"{path}: expected an affine with three independent axes, found a singular one or NaN. "
            "Set its sform from the scan it came from."
        )
    return affine, None
