"""A DICOM series, one file a slice, to a volume ``1 d h w`` sorted by where each slice lies in the patient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom.header import PICTURES, Plane, modality, plane
from medzoo.io.dicom.pixels import frames_of, load
from medzoo.io.dicom.read import read_dicom
from medzoo.io.files import MAX_VOXELS, check_size, refusing
from medzoo.io.image import Image

__all__ = ["read_series"]

_TAGS = [
    "SOPClassUID", "Modality", "SeriesInstanceUID", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
]  # fmt: skip

_EVEN = 0.1  # of the step: scanners round positions; a missing slice doubles the step
_PARALLEL = 1e-3


@dataclass(frozen=True, eq=False)
class _Slice:
    path: Path
    plane: Plane
    series: str
    modality: str
    size: tuple[int, int]


def read_series(
    paths: Sequence[Path], *, frame: int | None = None, nan: str = "raise", max_voxels: int = MAX_VOXELS
) -> Image:
    """Read the files of one series.

    Args:
        paths: the files, in any order. A single file is read as itself.
        frame: take one slice only, counted from 0 along the normal of the slices.
        nan: ``"raise"`` or ``"zero"``.
        max_voxels: the most values of the whole volume.

    Returns:
        ``1 d h w``, slices in the order of their position along right × down of the first; the affine is in RAS mm.

    Raises:
        DataError: files of several series, slices that differ in size or direction, lie twice in one place, leave a
            gap, or have no place.
    """
    if len(paths) == 1:
        return read_dicom(paths[0], frame=frame, nan=nan, max_voxels=max_voxels)
    slices = [_header(path, max_voxels) for path in paths]
    _check_alike(slices)
    normal = slices[0].plane.normal
    slices.sort(key=lambda s: float(s.plane.origin @ normal))
    step = _check_even(slices)
    if frame is not None:
        if frame >= len(slices):
            raise DataError(f"{_folder(slices)}: expected frame below {len(slices)}, got frame={frame}.")
        return read_dicom(slices[frame].path, frame=None, nan=nan, max_voxels=max_voxels)
    rows, columns = slices[0].size
    check_size(paths[0].parent, len(slices) * rows * columns, max_voxels, f"{len(slices)} × {rows} × {columns}")
    return _stack(slices, step, nan, max_voxels)


def _stack(slices: list[_Slice], step: NDArray[np.float64], nan: str, max_voxels: int) -> Image:
    """Read the slices one by one into one array."""
    first = read_dicom(slices[0].path, frame=None, nan=nan, max_voxels=max_voxels)
    notes = list(first.notes)
    volume = np.empty((1, len(slices), *slices[0].size), first.array.dtype)
    for i, one in enumerate(slices):
        image = first if i == 0 else read_dicom(one.path, frame=None, nan=nan, max_voxels=max_voxels)
        if image.array.shape != first.array.shape or image.unit != first.unit:
            raise DataError(
                f"{one.path}: expected {first.array.shape} in {first.unit} as in {slices[0].path.name}, "
                f"found {image.array.shape} in {image.unit}. Split the folder."
            )
        if image.array.dtype != volume.dtype:  # a slice with a rescale of its own kind
            volume = volume.astype(np.float32)
        volume[:, i] = image.array
        notes.extend(note for note in image.notes if note not in notes)
    here = slices[0].plane
    spacing = tuple(float(np.linalg.norm(v)) for v in (step, here.down, here.right))
    whose = {k: v for k, v in first.identity.items() if k != "sop"} | {"file": str(_folder(slices))}
    lean = float(np.linalg.norm(np.cross(step, here.normal)) / np.linalg.norm(step))
    if lean > 0.01:
        notes.append(f"slices lean by {math.degrees(math.asin(min(1.0, lean))):.1f} degrees (gantry tilt)")
    return Image(volume, here.affine(step), spacing, first.modality, first.unit, None, whose, tuple(notes))


def _header(path: Path, max_voxels: int) -> _Slice:
    from pydicom.errors import BytesLengthException, InvalidDicomError

    ds = load(path, max_voxels=max_voxels, tags=_TAGS)
    with refusing(path, "a slice of a DICOM series", InvalidDicomError, BytesLengthException):
        if frames_of(ds) != 1 or int(ds.get("SamplesPerPixel") or 1) != 1:
            raise DataError(f"{path}: expected a grey single-frame slice, found frames or colour. Read it alone.")
        kind = modality(ds)
        if kind in PICTURES:
            raise DataError(f"{path}: expected slices of a volume, found {kind} pictures. Read each file by itself.")
        here = plane(ds, path)
        if here is None:
            raise DataError(
                f"{path}: expected ImagePositionPatient, ImageOrientationPatient and PixelSpacing to place the slice, "
                "found not all of them. Read the files one by one, or export the series anew."
            )
        return _Slice(path, here, str(ds.get("SeriesInstanceUID") or ""), kind, (int(ds.Rows), int(ds.Columns)))


def _check_alike(slices: list[_Slice]) -> None:
    first = slices[0]
    for other in slices[1:]:
        for what, a, b in (
            ("series", first.series, other.series),
            ("modality", first.modality, other.modality),
            ("size", first.size, other.size),
        ):
            if a != b:
                raise DataError(
                    f"{_folder(slices)}: expected slices of one {what}, found {a} in {first.path.name} and {b} in "
                    f"{other.path.name}. Put each series in a folder of its own."
                )
        turned = np.abs(np.stack([first.plane.down - other.plane.down, first.plane.right - other.plane.right])).max()
        if turned > _PARALLEL:
            raise DataError(
                f"{_folder(slices)}: expected parallel slices of one spacing, {other.path.name} differs from "
                f"{first.path.name}. Put a scout or another series in a folder of its own."
            )


def _check_even(slices: list[_Slice]) -> NDArray[np.float64]:
    """Return the step from slice to slice; refuse doubles, gaps and slices beside the line."""
    origins = np.stack([s.plane.origin for s in slices])
    normal = slices[0].plane.normal
    along = np.diff(origins @ normal)
    usual = float(np.median(along))
    for i, gap in enumerate(along):
        pair = f"{slices[i].path.name} and {slices[i + 1].path.name}"
        if gap <= max(1e-3, _EVEN * usual):
            raise DataError(
                f"{_folder(slices)}: expected one slice at each place, found {pair} {gap:.3g} mm apart. "
                "Remove copies; put each phase or echo in a folder of its own."
            )
        if abs(gap - usual) > _EVEN * usual:
            raise DataError(
                f"{_folder(slices)}: expected slices {usual:.4g} mm apart, found {gap:.4g} mm between {pair}. "
                "A slice is missing, or two series are mixed: export the series anew."
            )
    step = np.asarray((origins[-1] - origins[0]) / (len(slices) - 1))
    ideal = origins[0] + np.arange(len(slices))[:, None] * step
    if np.linalg.norm(origins - ideal, axis=1).max() > 0.5 * float(np.linalg.norm(step)):
        raise DataError(f"{_folder(slices)}: expected slices along one line, found them shifted. Export it anew.")
    return step


def _folder(slices: list[_Slice]) -> Path:
    return slices[0].path.parent
