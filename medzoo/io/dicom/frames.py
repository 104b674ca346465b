"""The frames of one DICOM file: which to read, in which order, and the geometry of the volume that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom import header
from medzoo.io.dicom.completeness import merge_warnings, shorter_than_others
from medzoo.io.dicom.elements import numbers
from medzoo.io.dicom.header import Plane
from medzoo.io.dicom.stacks import (
    Frame,
    Stack,
    are_channels,
    choose_stack,
    list_stacks,
    split,
)  # fmt: skip
from medzoo.io.dicom.step import slice_step
from medzoo.io.dicom.suspicions import suspicions, thinned
from medzoo.io.dicom.tags import DISTINCTIONS, distinctions_of
from medzoo.io.files import check_frame
from medzoo.io.options import ReadOptions

__all__ = ["FRAME_TAGS", "Selection", "frames_of", "select_frames", "stack_names"]

_VECTORS = {
    "energy window": "EnergyWindowVector", "detector": "DetectorVector", "phase": "PhaseVector",
    "rotation": "RotationVector", "R-R interval": "RRIntervalVector", "time slot": "TimeSlotVector",
    "time slice": "TimeSliceVector", "angular view": "AngularViewVector",
}  # fmt: skip
"""Of nuclear medicine and PET: a value for each frame, and each combination a volume of its own."""

FRAME_TAGS = [
    "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "SliceVector", "SpacingBetweenSlices",
    "DetectorInformationSequence", "GridFrameOffsetVector", "DimensionIndexSequence", *_VECTORS.values(),
]  # fmt: skip
"""The elements that :func:`frames_of` reads, besides those of a slice."""

_DIMENSION = next(i for i, one in enumerate(DISTINCTIONS) if one.name == "dimension")
_STACK = next(i for i, one in enumerate(DISTINCTIONS) if one.name == "stack")
_POSITION_POINTERS = (0x00200032, 0x00209057, 0x00209113)  # position, index in the stack, sequence of the position
_ORDER_UNKNOWN = "The frames have no position: their order and distance are not known."


@dataclass(frozen=True, eq=False)
class Selection:
    """Which frames of a file to read.

    Attributes:
        frames: their indices, in the order of the result; those of one channel after the other.
        channels: how many stacks are read as channels.
        affine: of the result; ``None`` without a position.
        spacing: mm; ``None`` where it is not known.
        stack: what distinguishes the stack from the others of the file.
        notes: what was done.
        warning: why this may not be the volume that was meant.
    """

    frames: Sequence[int]
    affine: NDArray[np.float64] | None = None
    spacing: tuple[float, ...] | None = None
    channels: int = 1
    stack: str = ""
    notes: tuple[str, ...] = ()
    warning: str = ""


def select_frames(ds: Any, path: Path, options: ReadOptions) -> Selection:
    """Return the frame that is asked for, by its number in the file, or the frames of one stack sorted by position.

    Raises:
        DataError: no such frame or stack; several stacks and none is asked for; frames that share a position, leave a
            gap, or are not along one line.
    """
    found = _select(ds, path, options)
    described = len(ds.get("PerFrameFunctionalGroupsSequence") or ())
    if options.frame is None and described > (count := header.frame_count(ds)):
        lost = f"The header describes {described} frames, the file has {count}: some are missing."
        found = replace(found, warning=" ".join(filter(None, (found.warning, lost))))
    part, parts = ds.get("InConcatenationNumber"), ds.get("InConcatenationTotalNumber")
    if options.frame is None and parts and int(parts) > 1:
        incomplete = f"The file is part {part or '?'} of {parts} of an image that was stored in parts."
        return replace(found, warning=" ".join(filter(None, (found.warning, incomplete))))
    return found


def _select(ds: Any, path: Path, options: ReadOptions) -> Selection:
    count = header.frame_count(ds)
    check_frame(path, options.frame, count)
    if options.frame is not None and options.stack is not None:
        raise DataError(f"{path}: expected frame or stack, got both. A frame is counted in the file: give one.")
    if count <= 1 or options.frame is not None:
        options.refuse(path, "a DICOM file of one frame", "channel_axis")
        if options.stack:
            choose_stack([Stack((0,))], options.stack, str(path))
        frame = options.frame or 0
        return _single(ds, path, frame, [f"frame {frame} of {count}"] if count > 1 else [])
    frames = frames_of(ds, path)
    if frames is None:
        if options.stack:
            raise DataError(f"{path}: expected one stack, got stack={options.stack}. {_ORDER_UNKNOWN}")
        notes = ("frames without a position in the patient",)
        # A clip of ultrasound or angiography is no volume; where it is given to a model of volumes, that is a warning.
        expected = header.modality_of(ds) in header.SLICE_MODALITIES
        return Selection(range(count), notes=notes, warning=_ORDER_UNKNOWN if expected else "")
    stacks = split(frames)
    short = shorter_than_others(frames, stacks, _declared(ds, frames))
    if are_channels(frames, stacks, options):
        chosen = [
            _warned(ds, _volume(ds, frames, stack, path), stack, s) for stack, s in zip(stacks, short, strict=True)
        ]
        indices = tuple(i for one in chosen for i in one.frames)
        note = f"{len(stacks)} stacks read as channels: {list_stacks(stacks)}"
        warning = merge_warnings([(stack.name, one.warning) for stack, one in zip(stacks, chosen, strict=True)])
        return Selection(indices, chosen[0].affine, chosen[0].spacing, len(stacks), notes=(note,), warning=warning)
    if options.channel_axis is not None:
        raise DataError(
            f"{path}: expected stacks of the same geometry for channel_axis={options.channel_axis}, found "
            f"{len(stacks)}: {list_stacks(stacks)}. Leave channel_axis out."
        )
    chosen_stack = choose_stack(stacks, options.stack, str(path))
    volume = _volume(ds, frames, chosen_stack, path)
    return _warned(ds, volume, chosen_stack, short[stacks.index(chosen_stack)])


def _warned(ds: Any, volume: Selection, stack: Stack, short: str) -> Selection:
    warnings = (volume.warning, stack.warning, short, _holes(ds, stack))
    return replace(volume, warning=" ".join(filter(None, warnings)))


def _declared(ds: Any, frames: Sequence[Frame]) -> list[int]:
    """Return for each frame how many slices the header declares in its volume; 0 where it does not."""
    declared = numbers(ds, "NumberOfSlices")
    return [int(declared[0]) if declared else 0] * len(frames)


def _holes(ds: Any, stack: Stack) -> str:
    """Return a warning if the numbers of the frames in their stack do not run from 1 without holes."""
    items = ds.get("PerFrameFunctionalGroupsSequence") or ()
    contents = [items[i].get("FrameContentSequence") for i in stack.members] if items else []
    found = {int(one[0].get("InStackPositionNumber") or 0) for one in contents if one}
    if len(found) < len(stack.members) or 0 in found or max(found) == len(found):
        return ""
    return f"{max(found) - len(found)} of the numbers of the frames in their stack are missing."


def stack_names(ds: Any, path: Path, options: ReadOptions) -> tuple[str, ...]:
    """Return what distinguishes the stacks of a multi-frame file; ``()`` where it is read as one image, or refused."""
    try:
        frames = frames_of(ds, path)
    except DataError:
        return ()
    stacks = split(frames) if frames else []
    return () if len(stacks) < 2 or are_channels(frames or [], stacks, options) else tuple(s.name for s in stacks)


def frames_of(ds: Any, path: Path) -> list[Frame] | None:
    """Return the frames of a multi-frame file with their positions, or ``None`` if a frame has none of its own.

    Raises:
        DataError: a position or direction that is not finite or not perpendicular.
    """
    count = header.frame_count(ds)
    planes = _enhanced(ds, path, count) or _stepped(ds, path, count)
    if planes is None:
        return None
    vectors = [(name, v) for name, k in _VECTORS.items() if len(v := numbers(ds, k)) == count]
    dimensions = [
        j for j, one in enumerate(ds.get("DimensionIndexSequence") or ())
        if int(one.get("DimensionIndexPointer") or 0) not in _POSITION_POINTERS
    ]  # fmt: skip
    frames = []
    for i, plane in enumerate(planes):
        extra = "".join(f"{name} {vector[i]:g} " for name, vector in vectors if len(set(vector)) > 1)
        values = _without_position(distinctions_of(ds, i), dimensions)
        if extra:  # as a stack: each combination is a volume
            values = (*values[:_STACK], f"{values[_STACK]} {extra}".strip(), *values[_STACK + 1 :])
        frames.append(Frame(f"frame {i}", plane, values))
    return frames


def _without_position(values: tuple[str, ...], dimensions: list[int]) -> tuple[str, ...]:
    """Keep those dimension indices of a frame that do not count its position."""
    at = _DIMENSION
    parts = values[at].split("\\") if values[at] else []
    return (*values[:at], "\\".join(parts[j] for j in dimensions if j < len(parts)), *values[at + 1 :])


def _enhanced(ds: Any, path: Path, count: int) -> list[Plane] | None:
    """Return the planes that the per-frame functional groups give; a position that frames share is none of theirs."""
    items = ds.get("PerFrameFunctionalGroupsSequence") or ()
    if len(items) < count or not all(item.get("PlanePositionSequence") for item in items[:count]):
        return None
    planes = [plane for i in range(count) if (plane := header.plane_of(ds, path, i)) is not None]
    return planes if len(planes) == count else None


def _stepped(ds: Any, path: Path, count: int) -> list[Plane] | None:
    """Return the planes of frames at steps from the first: by a slice number, or by an offset, for each."""
    indices, offsets = numbers(ds, "SliceVector"), numbers(ds, "GridFrameOffsetVector")
    step = numbers(ds, "SpacingBetweenSlices")
    if len(offsets) == count:
        away = [offset - offsets[0] for offset in offsets]  # the first is 0, or the z of the position
    elif len(indices) == count and step and step[0]:
        away = [(index - 1) * step[0] for index in indices]  # its sign is the direction (PS3.3 C.8.4.15)
    else:
        return None
    source = next(iter(ds.get("DetectorInformationSequence") or ()), ds)
    first = header.plane_of(source if source.get("ImagePositionPatient") else ds, path, whole=ds)
    if first is None:
        return None
    return [Plane(first.origin + first.normal * distance, first.down, first.right) for distance in away]


def _single(ds: Any, path: Path, frame: int, notes: list[str]) -> Selection:
    plane = header.plane_of(ds, path, frame)
    spacing = header.pixel_spacing(ds, path, frame)
    if spacing is None:
        notes.append("no pixel spacing")
    return Selection((frame,), plane.affine() if plane else None, spacing, notes=tuple(notes))


def _volume(ds: Any, frames: list[Frame], stack: Stack, path: Path) -> Selection:
    own = [frames[i] for i in stack.members]
    first = own[0].plane
    down, right = float(np.linalg.norm(first.down)), float(np.linalg.norm(first.right))
    if len(own) == 1:
        return Selection(stack.members, first.affine(), (down, right), stack=stack.name)
    step = slice_step(own, str(path))
    notes = ("frames sorted by position",) if list(stack.members) != sorted(stack.members) else ()
    spacing = (float(np.linalg.norm(step)), down, right)
    measures = header.functional_group(ds, "PixelMeasuresSequence", stack.members[0])
    declared = [next(iter(numbers(measures, k)), 0.0) for k in ("SliceThickness", "SpacingBetweenSlices")]
    warnings = (suspicions(own, header.modality_of(ds)), thinned(float(step @ first.normal), *declared))
    warning = " ".join(filter(None, warnings))
    return Selection(stack.members, first.affine(step), spacing, stack=stack.name, notes=notes, warning=warning)
