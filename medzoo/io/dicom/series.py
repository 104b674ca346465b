"""The reader of a DICOM series, one file per slice: a volume ``1 d h w`` sorted by the position of the slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom import header
from medzoo.io.dicom.pixels import load
from medzoo.io.dicom.read import read_dicom
from medzoo.io.files import check_frame, check_size, join_sizes
from medzoo.io.image import Image
from medzoo.io.options import ReadOptions

__all__ = ["read_series"]

_STEP_TOLERANCE = 0.1  # as a share of the step: scanners round positions; a missing slice doubles the step
_PARALLEL_TOLERANCE = 1e-3  # mm


@dataclass(frozen=True, eq=False)
class _Slice:
    path: Path
    plane: header.Plane
    series: str
    modality: str
    size: tuple[int, int]


def read_series(paths: Sequence[Path], options: ReadOptions) -> Image:
    """Read the files of one series, in any order, or a single file.

    Returns:
        ``1 d h w``, slices sorted by position along right × down of the first; the affine is in RAS mm. With
        ``frame``, that slice alone.

    Raises:
        DataError: files of several series; slices that differ in size or direction, share a position, leave a gap, or
            have no position.
    """
    if len(paths) == 1:
        return read_dicom(paths[0], options)
    slices = [_read_header(path, options.max_voxels) for path in paths]
    _check_uniform(slices)
    normal = slices[0].plane.normal
    slices.sort(key=lambda s: float(s.plane.origin @ normal))
    step = _slice_step(slices)
    single = replace(options, frame=None)
    if options.frame is not None:
        check_frame(_folder(slices), options.frame, len(slices))
        return read_dicom(slices[options.frame].path, single)
    size = (len(slices), *slices[0].size)
    check_size(paths[0].parent, math.prod(size), options.max_voxels, join_sizes(size))
    return _stack(slices, step, single)


def _stack(slices: list[_Slice], step: NDArray[np.float64], options: ReadOptions) -> Image:
    """Read the slices one by one into one array."""
    first = read_dicom(slices[0].path, options)
    notes = list(first.notes)
    volume = np.empty((1, len(slices), *slices[0].size), first.array.dtype)
    for i, one in enumerate(slices):
        image = first if i == 0 else read_dicom(one.path, options)
        if image.array.shape != first.array.shape or image.unit != first.unit:
            raise DataError(
                f"{one.path}: expected {first.array.shape} in {first.unit} as in {slices[0].path.name}, "
                f"found {image.array.shape} in {image.unit}. Split the folder."
            )
        if image.array.dtype != volume.dtype:  # a slice with another rescale
            volume = volume.astype(np.float32)
        volume[:, i] = image.array
        notes.extend(note for note in image.notes if note not in notes)
    plane = slices[0].plane
    spacing = tuple(float(np.linalg.norm(v)) for v in (step, plane.down, plane.right))
    identity = {k: v for k, v in first.identity.items() if k != "sop"} | {"file": str(_folder(slices))}
    shear = float(np.linalg.norm(np.cross(step, plane.normal)) / np.linalg.norm(step))
    if shear > 0.01:
        notes.append(f"gantry tilt of {math.degrees(math.asin(min(1.0, shear))):.1f} degrees kept in the affine")
    return replace(
        first,
        array=volume,
        affine=plane.affine(step),
        spacing=spacing,
        value_range=None,
        identity=identity,
        notes=tuple(notes),
    )


def _read_header(path: Path, max_voxels: int) -> _Slice:
    ds = load(path, max_voxels=max_voxels, tags=header.SLICE_TAGS)
    with header.wrap_dicom_errors(path, "a slice of a DICOM series"):
        if header.frame_count(ds) != 1 or header.sample_count(ds) != 1:
            raise DataError(f"{path}: expected a grey single-frame slice, found frames or colour. Read it by itself.")
        modality = header.modality_of(ds)
        if modality in header.PROJECTION_MODALITIES:
            raise DataError(
                f"{path}: expected slices of a volume, found {modality} pictures. Read each file by itself."
            )
        plane = header.plane_of(ds, path)
        if plane is None:
            raise DataError(
                f"{path}: expected ImagePositionPatient, ImageOrientationPatient and PixelSpacing of the slice, "
                "found not all of them. Read the files one by one, or export the series again."
            )
        return _Slice(path, plane, str(ds.get("SeriesInstanceUID") or ""), modality, (int(ds.Rows), int(ds.Columns)))


def _check_uniform(slices: list[_Slice]) -> None:
    """Raise DataError unless all slices share series, modality, size, direction and pixel spacing."""
    first = slices[0]
    for other in slices[1:]:
        for what in ("series", "modality", "size"):
            a, b = getattr(first, what), getattr(other, what)
            if a != b:
                raise DataError(
                    f"{_folder(slices)}: expected slices of one {what}, found {a} in {first.path.name} and {b} in "
                    f"{other.path.name}. Put each series in a folder of its own."
                )
        differences = [first.plane.down - other.plane.down, first.plane.right - other.plane.right]
        if np.abs(np.stack(differences)).max() > _PARALLEL_TOLERANCE:
            raise DataError(
                f"{_folder(slices)}: expected parallel slices of one spacing, {other.path.name} differs from "
                f"{first.path.name}. Put a scout or another series in a folder of its own."
            )


def _slice_step(slices: list[_Slice]) -> NDArray[np.float64]:
    """Return the vector from slice to slice in RAS mm; raise DataError for duplicates, gaps and shifted slices."""
    origins = np.stack([s.plane.origin for s in slices])
    gaps = np.diff(origins @ slices[0].plane.normal)
    usual = float(np.median(gaps))
    for i, gap in enumerate(gaps):
        pair = f"{slices[i].path.name} and {slices[i + 1].path.name}"
        if gap <= max(1e-3, _STEP_TOLERANCE * usual):
            raise DataError(
                f"{_folder(slices)}: expected one slice at each position, found {pair} {gap:.3g} mm apart. "
                "Remove copies; put each phase or echo in a folder of its own."
            )
        if abs(gap - usual) > _STEP_TOLERANCE * usual:
            raise DataError(
                f"{_folder(slices)}: expected slices {usual:.4g} mm apart, found {gap:.4g} mm between {pair}. "
                "A slice is missing, or two series are mixed: export the series again."
            )
    step = np.asarray((origins[-1] - origins[0]) / (len(slices) - 1))
    ideal = origins[0] + np.arange(len(slices))[:, None] * step
    if np.linalg.norm(origins - ideal, axis=1).max() > 0.5 * float(np.linalg.norm(step)):
        raise DataError(f"{_folder(slices)}: expected slices along one line, found them shifted. Export it again.")
    return step


def _folder(slices: list[_Slice]) -> Path:
    return slices[0].path.parent
