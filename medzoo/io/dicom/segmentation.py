"""DICOM segmentation objects: where in the patient what they mark is.

Axes: f frames, h w rows and columns; the world is RAS+ mm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom.elements import ElementError, integer_or_none, items, numbers, text
from medzoo.io.dicom.header import Plane, functional_group, plane_of, wrap_dicom_errors
from medzoo.io.dicom.pixels import decode_pixels, load
from medzoo.io.files import MAX_VOXELS

__all__ = ["Segmentation", "is_segmentation", "read_segmentation"]

_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_TUMOUR = re.compile(r"neoplas|tumou?r|nodule|lesion|mass\b|cancer|carcinoma|\bGTV", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What one segment of a segmentation object marks.

    Attributes:
        low: the corner of its bounding box in the direction of ``axes``, in mm along them.
        high: the opposite corner. Both are edges of pixels.
        axes: ``3 3``, the unit vectors of the columns, rows and slices, in RAS.
        pixels: how many pixels are marked.
        frame_of_reference: its FrameOfReferenceUID.
        series: the series that it refers to, their SeriesInstanceUIDs.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    axes: NDArray[np.float64]
    pixels: int
    frame_of_reference: str
    series: tuple[str, ...]


def is_segmentation(ds: Any) -> bool:
    """Return whether a header is that of a segmentation object."""
    return text(ds, "SOPClassUID") in _CLASSES


def read_segmentation(path: Path) -> Segmentation:
    """Read a segmentation object: the only segment with pixels, or of several the only one that is called a tumour.

    A fractional one marks where the fraction is at least one half.

    Raises:
        DataError: another file, no marked pixel, several segments, or frames without a place in the patient.
    """
    ds = load(path, max_voxels=MAX_VOXELS)
    with wrap_dicom_errors(path, "a DICOM segmentation"):
        if not is_segmentation(ds):
            raise DataError(f"{path}: expected a DICOM segmentation, found another object. Give the SEG object.")
        array = decode_pixels(ds, path, None, MAX_VOXELS).array
        marked = _marked(ds, array, path)
        frames = np.flatnonzero(marked.any((1, 2)))
        low, high, axes = _box(ds, marked, frames, path)
        series = tuple(filter(None, (text(one, "SeriesInstanceUID") for one in items(ds, "ReferencedSeriesSequence"))))
        return Segmentation(low, high, axes, int(marked.sum()), text(ds, "FrameOfReferenceUID"), series)


def _marked(ds: Any, array: NDArray[Any], path: Path) -> NDArray[np.bool_]:
    """Return the pixels ``f h w`` of the segment."""
    kind = text(ds, "SegmentationType")
    if kind == "LABELMAP":  # a pixel has the number of its segment
        found = [int(number) for number in np.unique(array) if number]
        wanted = _segment(ds, found, path)
        return np.asarray(array == wanted)
    least = 1.0
    if kind == "FRACTIONAL":
        least = (integer_or_none(ds, "MaximumFractionalValue") or 255) / 2
    marked = array >= least
    of_frame = np.array([_segment_of_frame(ds, frame) for frame in range(len(array))])
    found = sorted({int(number) for number in of_frame[marked.any((1, 2))]})
    return np.asarray(marked & (of_frame == _segment(ds, found, path))[:, None, None])


def _segment_of_frame(ds: Any, frame: int) -> int:
    number = integer_or_none(functional_group(ds, "SegmentIdentificationSequence", frame), "ReferencedSegmentNumber")
    if number is None:
        raise ElementError("ReferencedSegmentNumber", "is missing")
    return number


def _segment(ds: Any, found: list[int], path: Path) -> int:
    """Return the number of the segment to use, of those with pixels."""
    if not found:
        raise DataError(f"{path}: expected a segment with marked pixels, found none. Remove the object, or its row.")
    if len(found) == 1:
        return found[0]
    tumours = []
    for segment in items(ds, "SegmentSequence"):
        kinds = [text(kind, "CodeMeaning") for kind in items(segment, "SegmentedPropertyTypeCodeSequence")]
        if any(map(_TUMOUR.search, [text(segment, "SegmentLabel"), *kinds])):
            tumours.append(integer_or_none(segment, "SegmentNumber"))
    of_both = [number for number in found if number in tumours]
    if len(of_both) != 1:
        raise DataError(
            f"{path}: expected one segment, or one of several that is called a tumour, found {len(found)} segments of "
            f"which {len(of_both)} are. Write the one that matters to an object of its own."
        )
    return of_both[0]


def _box(
    ds: Any, marked: NDArray[np.bool_], frames: NDArray[np.int64], path: Path
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the corners of the bounding box along the axes of the first frame, and these axes."""
    first = _plane(ds, path, int(frames[0]))
    axes = np.stack([_unit(first.right), _unit(first.down), first.normal])
    corners = []
    for frame in frames.tolist():
        plane = _plane(ds, path, frame)
        rows, columns = (np.flatnonzero(marked[frame].any(axis))[[0, -1]] for axis in (1, 0))
        corners += [plane.origin + plane.down * row + plane.right * column for row in rows for column in columns]
    along = np.array(corners) @ axes.T
    half = np.array([np.linalg.norm(first.right), np.linalg.norm(first.down), _thickness(ds, frames)]) / 2
    return along.min(0) - half, along.max(0) + half, axes


def _plane(ds: Any, path: Path, frame: int) -> Plane:
    plane = plane_of(ds, path, frame)
    if plane is None:
        raise DataError(
            f"{path}: expected a position, direction and pixel spacing of each frame, found frame {frame} without. "
            "Export the segmentation again."
        )
    return plane


def _thickness(ds: Any, frames: NDArray[np.int64]) -> float:
    """Return the mm from one slice to the next; 0 where the object does not say."""
    measures = functional_group(ds, "PixelMeasuresSequence", int(frames[0]))
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        if found := numbers(measures, keyword):
            return abs(found[0])
    return 0.0


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector))
