"""The reader of a DICOM series, one file per slice: a volume ``1 d h w`` sorted by the position of the slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom import header
from medzoo.io.dicom.completeness import merge_warnings
from medzoo.io.dicom.direct import fill_alike
from medzoo.io.dicom.read import read_dicom
from medzoo.io.dicom.rescale import rescale_warning
from medzoo.io.dicom.scanned import read_header
from medzoo.io.dicom.slices import (
    IDENTITY,
    Slice,
    describe_difference,
    frames_with_planes,
    slice_of,
    without_copies,
)  # fmt: skip
from medzoo.io.dicom.stacks import are_channels, choose_stack, list_stacks, split
from medzoo.io.dicom.step import slice_step
from medzoo.io.dicom.suspicions import suspicions, thinned
from medzoo.io.files import check_frame, check_size, join_sizes
from medzoo.io.image import Image
from medzoo.io.options import ReadOptions

__all__ = ["read_series"]


def read_series(paths: Sequence[Path], options: ReadOptions, headers: Sequence[Slice] = ()) -> Image:
    """Read the files of one series, in any order, or a single file.

    Args:
        paths: the files.
        options: what to read of them.
        headers: what a scan knows of them; a header that it has not parsed, or of a file that was changed, is parsed.

    Returns:
        ``1 d h w``, slices sorted by position along right × down of the first; the affine is in RAS mm. With
        ``frame``, that slice alone. Several stacks are read as ``c d h w`` where ``options`` asks for channels.

    Raises:
        DataError: files of several patients, studies, series or frames of reference; slices that differ in size, share
            a position, leave a gap, or have no position; several stacks, and none is asked for.
    """
    known = {one.path: one for one in headers}
    if len(paths) == 1:
        return read_dicom(paths[0], options, known[paths[0]].record if paths[0] in known else None)
    folder = paths[0].parent
    slices, copies = without_copies([_read_slice(path, options.max_voxels, known.get(path)) for path in paths])
    _check_uniform(slices, folder)
    notes = (f"{len(copies)} second {'copies' if len(copies) > 1 else 'copy'} of a slice left out",) if copies else ()
    frames = frames_with_planes(slices)
    stacks = split(frames)
    if are_channels(frames, stacks, options):
        single = replace(options, channel_axis=None)
        volumes = [_read_stack([slices[i] for i in stack.members], single, stack.warning) for stack in stacks]
        read_as = f"{len(stacks)} stacks read as channels: {list_stacks(stacks)}"
        warning = merge_warnings([(s.name, volume.warning) for s, volume in zip(stacks, volumes, strict=True)])
        image = replace(volumes[0], array=np.concatenate([volume.array for volume in volumes]), warning=warning)
        return _with_notes(image, (*notes, read_as))
    if options.channel_axis is not None:
        found = list_stacks(stacks) if len(stacks) > 1 else "one stack"
        raise DataError(
            f"{folder}: expected several stacks of the same geometry for channel_axis={options.channel_axis}, found "
            f"{found}. Leave channel_axis out."
        )
    stack = choose_stack(stacks, options.stack, str(folder))
    image = _read_stack([slices[i] for i in stack.members], replace(options, stack=None), stack.warning)
    if stack.name:
        image = replace(image, identity={**image.identity, "stack": stack.name})
    return _with_notes(image, notes)


def _with_notes(image: Image, notes: tuple[str, ...]) -> Image:
    return replace(image, notes=(*image.notes, *notes)) if notes else image


def _read_stack(slices: list[Slice], options: ReadOptions, warning: str) -> Image:
    """Read the sorted slices of one volume, or the slice that ``frame`` asks for; ``warning`` is known already."""
    folder = slices[0].path.parent
    single = replace(options, frame=None)
    if len(slices) == 1:
        check_frame(folder, options.frame, 1)
        return read_dicom(slices[0].path, single, slices[0].record)
    frames = frames_with_planes(slices)
    step = slice_step(frames, str(folder))
    if options.frame is not None:
        check_frame(folder, options.frame, len(slices))
        return read_dicom(slices[options.frame].path, single, slices[options.frame].record)
    first = read_dicom(slices[0].path, single, slices[0].record)
    size = (len(slices), *first.array.shape[1:])
    check_size(folder, math.prod(size), options.max_voxels, join_sizes(size))
    image = _stack(slices, first, step, single)
    modality = slices[0].of("modality")
    rescale = rescale_warning([one.rescale for one in slices], modality)
    thin = thinned(float(step @ frames[0].plane.normal), *slices[0].spacings)
    found = (warning, suspicions(frames, modality), _shared_uid(slices), rescale, thin)
    return image.with_warning(" ".join(filter(None, found)))


def _stack(slices: list[Slice], first: Image, step: NDArray[np.float64], options: ReadOptions) -> Image:
    """Read the slices into one array, those that are not as the first one by one."""
    notes, warnings = list(first.notes), []
    volume = np.empty((1, len(slices), *first.array.shape[1:]), first.array.dtype)
    filled = fill_alike(volume[0], [(one.path, one.record) for one in slices], first)
    for i, one in enumerate(slices):
        image = first if i == 0 or filled[i] else read_dicom(one.path, options, one.record)
        if image.array.shape != first.array.shape or image.unit != first.unit:
            raise DataError(
                f"{one.path}: expected {first.array.shape} in {first.unit} as in {slices[0].path.name}, "
                f"found {image.array.shape} in {image.unit}. Split the folder."
            )
        if image.array.dtype != volume.dtype:  # a slice with another rescale
            volume = volume.astype(np.float32)
        if not filled[i]:
            volume[:, i] = image.array
        notes.extend(note for note in image.notes if note not in notes)
        warnings.append((one.path.name, image.warning))
    plane = slices[0].plane
    if plane is None:  # _read_slice has refused it
        raise DataError(f"{slices[0].path}: expected a position, found none. Export the series again.")
    spacing = tuple(float(np.linalg.norm(v)) for v in (step, plane.down, plane.right))
    identity = {k: v for k, v in first.identity.items() if k != "sop"} | {"file": str(slices[0].path.parent)}
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
        warning=merge_warnings(warnings),
    )


def _read_slice(path: Path, max_voxels: int, known: Slice | None) -> Slice:
    """Return the checked header of a slice: as it is known, or parsed where it is not, or where it is wrong."""
    if known is not None and _is_sound(known):
        return known
    ds, _, record = read_header(path, max_voxels)
    with header.wrap_dicom_errors(path, "a slice of a DICOM series"):
        if header.frame_count(ds) != 1 or header.sample_count(ds) != 1:
            raise DataError(f"{path}: expected a grey single-frame slice, found frames or colour. Read it by itself.")
        modality = header.modality_of(ds)
        if modality in header.PROJECTION_MODALITIES:
            raise DataError(
                f"{path}: expected slices of a volume, found {modality} pictures. Read each file by itself."
            )
        if header.plane_of(ds, path) is None:
            raise DataError(
                f"{path}: expected ImagePositionPatient, ImageOrientationPatient and PixelSpacing of the slice, "
                "found not all of them. Read the files one by one, or export the series again."
            )
        return slice_of(ds, path, record)


def _is_sound(known: Slice) -> bool:
    """Return whether a known header is that of a slice with a position, and its file has not been changed."""
    if known.plane is None or known.record is None:  # one with a record is grey, and of a single frame
        return False
    return known.of("modality") not in header.PROJECTION_MODALITIES and known.record.is_current(known.path)


def _check_uniform(slices: list[Slice], folder: Path) -> None:
    """Raise DataError unless all slices share patient, study, series, frame of reference, modality and size."""
    first = slices[0]
    for other in slices[1:]:
        for name, a, b in zip(IDENTITY, first.identity, other.identity, strict=True):
            if a != b:
                raise DataError(
                    f"{folder}: expected slices of one {name}, found {describe_difference(name, a)} in "
                    f"{first.path.name} and {describe_difference(name, b)} in {other.path.name}. "
                    "Put each image in a folder of its own."
                )


def _shared_uid(slices: list[Slice]) -> str:
    """Return a warning if slices with different content have one SOPInstanceUID."""
    sops = [one.sop for one in slices if one.sop]
    shared = len(sops) - len(set(sops))
    return f"{shared + 1} slices of the volume share a SOPInstanceUID: some may be of another." if shared else ""
