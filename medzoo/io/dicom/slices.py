"""The header of one slice of a series: whose it is, where it lies, and what distinguishes it from others."""

from __future__ import annotations

import filecmp
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medzoo.errors import DataError
from medzoo.io.dicom import header
from medzoo.io.dicom.elements import number_texts
from medzoo.io.dicom.header import Plane
from medzoo.io.dicom.read import read_dicom
from medzoo.io.dicom.record import HeaderRecord, one_object
from medzoo.io.dicom.rescale import rescale_of
from medzoo.io.dicom.stacks import Frame
from medzoo.io.dicom.tags import distinctions_of
from medzoo.io.hashing import hash_text
from medzoo.io.options import ReadOptions

__all__ = [
    "IDENTITY", "SLICE_KEYWORDS", "Slice", "describe_difference", "frames_with_planes", "slice_of", "without_copies",
]  # fmt: skip

IDENTITY = (
    "patient", "patient name", "birth date", "study", "series", "frame of reference", "modality", "size",
)  # fmt: skip
"""What all slices of a volume have in common. One UID is not enough: anonymisers give the same to several series."""

_KEYWORDS = (
    "PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
)  # fmt: skip
_COUNTS = ("ImagesInAcquisition", "NumberOfSlices", "NumberOfTemporalPositions", "NumberOfSeriesRelatedInstances")
_SPACINGS = ("SliceThickness", "SpacingBetweenSlices")
_TEXTS = (*_KEYWORDS, "SOPInstanceUID", "InstanceNumber", "AcquisitionNumber")
_PLANE = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
)  # fmt: skip
SLICE_KEYWORDS = (
    *_TEXTS, *_PLANE, *_COUNTS, *_SPACINGS, "SOPClassUID", "Modality", "Rows", "Columns", "RescaleSlope",
    "RescaleIntercept",
)  # fmt: skip
"""The elements that :func:`slice_of` reads, besides the distinctions."""

_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """What a scan keeps of a slice.

    Attributes:
        path: the file.
        identity: the values of :data:`IDENTITY`, ``""`` where the header has none. Those of the patient are hashed.
        plane: its position; ``None`` where the header gives none that is valid.
        positioned: the header gives a position, valid or not.
        values: the value of each of :data:`~medzoo.io.dicom.tags.DISTINCTIONS`.
        sop: SOPInstanceUID.
        number: InstanceNumber.
        acquisition: AcquisitionNumber.
        counts: how many images the header declares: in the acquisition, in the volume, of temporal positions, and in
            the series.
        spacings: SliceThickness and SpacingBetweenSlices in mm, 0 where the header does not give them.
        rescale: RescaleSlope and RescaleIntercept.
        record: for reading the file without parsing its header again.
    """

    path: Path
    identity: tuple[str, ...]
    plane: Plane | None
    positioned: bool
    values: tuple[str, ...]
    sop: str
    number: int | None
    acquisition: str
    counts: tuple[int, ...]
    spacings: tuple[float, ...]
    rescale: tuple[str, str]
    record: HeaderRecord | None = None

    def of(self, name: str) -> str:
        """Return one of :data:`IDENTITY`."""
        return self.identity[IDENTITY.index(name)]


def slice_of(ds: Any, path: Path, record: HeaderRecord | None = None) -> Slice:
    """Return the slice that a header describes; a position that is not valid counts as none."""
    plane = _plane(ds, path)
    present = {int(tag) for tag in ds.keys()}  # noqa: SIM118
    texts = {keyword: _text(ds, tag) if (tag := _tag(keyword)) in present else "" for keyword in _TEXTS}
    identity = [texts[keyword] for keyword in _KEYWORDS]
    identity[:3] = [hash_text(value) if value else "" for value in identity[:3]]
    size = f"{_int(ds.get('Rows'))} × {_int(ds.get('Columns'))}"
    return Slice(
        path,
        one_object(tuple(sys.intern(value) for value in (*identity, header.modality_of(ds), size))),
        plane,
        plane is not None or _tag("ImagePositionPatient") in present,
        one_object(tuple(sys.intern(value) for value in distinctions_of(ds))),
        texts["SOPInstanceUID"],
        _int(texts["InstanceNumber"]),
        texts["AcquisitionNumber"],
        one_object(tuple(_count(ds, keyword) if _tag(keyword) in present else 0 for keyword in _COUNTS)),
        one_object(tuple(_length(ds, keyword) if _tag(keyword) in present else 0.0 for keyword in _SPACINGS)),
        one_object(rescale_of(ds)),
        record,
    )


def _plane(ds: Any, path: Path) -> Plane | None:
    """Return the plane of a slice. The slices of a volume share their directions, which are parsed once."""
    present = [tag in ds for tag in map(_tag, (*_PLANE, *_GROUPS))]
    try:
        if present[0] and present[1] and not any(present[len(_PLANE) :]):
            raw = [ds.get_item(_tag(k)).value if here else b"" for k, here in zip(_PLANE, present, strict=False)]
            if all(isinstance(value, bytes) for value in raw):
                x, y, z = map(float, number_texts(raw[0]))
                first = _directions(*raw[1:])
                if first is None or not math.isfinite(x + y + z):
                    return None
                return Plane(np.array((0.0 - x, 0.0 - y, 0.0 + z)), first.down, first.right)
        return header.plane_of(ds, path)
    except (DataError, ValueError, OverflowError):  # reading the slice reports it
        return None


@lru_cache(1024)
def _directions(*raw: bytes) -> Plane | None:
    """Return the plane at the origin of an orientation and the spacings, as the bytes of their elements."""
    from pydicom.dataset import Dataset

    ds = Dataset()
    ds.ImagePositionPatient = [0.0, 0.0, 0.0]
    for keyword, value in zip(_PLANE[1:], raw, strict=True):
        if value:
            setattr(ds, keyword, "\\".join(number_texts(value)))
    return header.plane_of(ds, Path())


def describe_difference(name: str, value: str) -> str:
    """Return a value of :data:`IDENTITY` for a message; the values of a patient are hashed already."""
    return f"{name} {value}" if value else f"no {name}"


def frames_with_planes(slices: Sequence[Slice]) -> list[Frame]:
    """Return the slices as frames; all have a plane."""
    return [Frame(one.path.name, one.plane, one.values, one.sop) for one in slices if one.plane is not None]


def without_copies(slices: Sequence[Slice]) -> tuple[list[Slice], list[tuple[Slice, Slice]]]:
    """Return the slices without second copies of a file, and each copy with its original.

    A copy has the same SOPInstanceUID and position, and the same content: the same bytes, or the same pixels.
    """
    kept: list[Slice] = []
    copies: list[tuple[Slice, Slice]] = []
    seen: dict[tuple[str, tuple[float, ...]], list[Slice]] = {}
    for one in slices:
        position = () if one.plane is None else tuple(np.round(one.plane.origin, 3).tolist())
        same = seen.setdefault((one.sop, position), [])
        original = next((other for other in same if _same_content(one, other)), None)
        if original is None:
            kept.append(one)
            same.append(one)
        else:
            copies.append((one, original))
    return kept, copies


def _same_content(one: Slice, other: Slice) -> bool:
    try:
        if filecmp.cmp(one.path, other.path, shallow=False):
            return True
        if not one.sop or (one.values, one.identity) != (other.values, other.identity):
            return False
        first, second = (read_dicom(file.path, ReadOptions(), file.record) for file in (one, other))
    except (DataError, OSError):
        return False
    return first.unit == second.unit and np.array_equal(first.array, second.array)


@cache
def _tag(keyword: str) -> int:
    from pydicom.datadict import tag_for_keyword

    return int(tag_for_keyword(keyword) or 0)


def _text(ds: Any, tag: int) -> str:
    value = ds.get_item(tag).value
    return (value.decode("latin-1") if isinstance(value, bytes) else str(value or "")).strip(" \0")


def _int(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _count(ds: Any, keyword: str) -> int:
    try:
        return int(ds.get(keyword) or 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def _length(ds: Any, keyword: str) -> float:
    try:
        length = float(next(iter(number_texts(_text(ds, _tag(keyword)))), 0))
    except ValueError:
        return 0.0
    return length if math.isfinite(length) else 0.0
