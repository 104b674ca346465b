"""Checked values of a DICOM header: modality, identity without names, and the plane of a slice.

Axes: h w rows and columns; the world is RAS+ (DICOM's own is LPS+).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom.elements import ElementError, integer_or_none, items, numbers, text
from medzoo.io.dicom.kinds import non_image_advice, non_image_kind
from medzoo.io.files import wrap_read_errors
from medzoo.io.hashing import hash_text
from medzoo.io.views import view_words

__all__ = [
    "PROJECTION_MODALITIES", "SLICE_MODALITIES", "Plane", "age_of", "body_part_of", "finite_values", "frame_count",
    "functional_group", "identity_of", "ignored_geometry", "modality_of", "non_image_advice", "non_image_kind",
    "pixel_spacing", "plane_of", "sample_count", "stated_age", "wrap_dicom_errors",
]  # fmt: skip

PROJECTION_MODALITIES = frozenset({"CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA"})
"""Projection X-ray: each file is an image of its own, never a slice of a volume."""

_MODALITY_OF_CLASS = {
    f"1.2.840.10008.5.1.4.1.1.{suffix}": modality for suffix, modality in {
        "1": "CR", "1.1": "DX", "1.1.1": "DX", "1.2": "MG", "1.2.1": "MG", "12.1": "XA", "12.2": "RF", "2": "CT",
        "2.1": "CT", "2.2": "CT", "4": "MR", "4.1": "MR", "4.4": "MR", "128": "PT", "20": "NM",
    }.items()
}  # fmt: skip
_UIDS = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "sop": "SOPInstanceUID"}
_UID = re.compile(r"[0-9.]{1,64}")

_DAYS = {"D": 1, "W": 7, "M": 30.4375, "Y": 365.25}
"""Days in a unit of an age string (PS3.5 6.2)."""

_AGE = re.compile(r"([0-9]{1,9})\s*([DWMY]?)")
_OLDEST = 130
_AGE_TOLERANCE = 2  # years; an age may be that at another date than the study's

SLICE_MODALITIES = frozenset({"CT", "MR", "PT", "NM"})
"""Their pixels are slices, whose position and spacing a volume needs."""

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@contextmanager
def wrap_dicom_errors(path: Path, what: str) -> Iterator[None]:
    """Raise DataError as :func:`~medzoo.io.files.wrap_read_errors` does; a faulty element is named with its tag."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    with wrap_read_errors(path, what, BytesLengthException, InvalidDicomError):
        try:
            yield
        except ElementError as error:
            raise DataError(
                f"{path}: expected {what}, but {error}. Correct that element, or export it again."
            ) from None


def modality_of(ds: Any) -> str:
    """Return the modality, from the SOP class where the tag is missing; ``""`` where neither gives it."""
    return text(ds, "Modality") or _MODALITY_OF_CLASS.get(text(ds, "SOPClassUID"), "")


def body_part_of(ds: Any) -> str:
    """Return the body part in capitals, from the anatomic region where its tag is missing; ``""`` without either."""
    if part := text(ds, "BodyPartExamined"):
        return part.upper()
    regions = items(ds, "AnatomicRegionSequence")
    return text(regions[0], "CodeMeaning").upper() if regions else ""


def age_of(ds: Any) -> float | None:
    """Return the age of the patient in years; ``None`` where the header gives none that can be relied on.

    The age is PatientAge, in years where its unit is missing. Where it is absent, not readable, over 130 years, or 0
    beside another date of birth, it is the time from birth to the study. Two ages that differ by more than 2 years are
    ``None``: either may be a dummy that replaced the true one.
    """
    stated, counted = stated_age(text(ds, "PatientAge")), _counted_age(ds)
    if stated is None or counted is None:
        return counted if stated is None else stated
    if abs(stated - counted) <= _AGE_TOLERANCE:
        return stated
    return counted if stated == 0 else None


def stated_age(age: str) -> float | None:
    """Return the years of an age string; ``None`` for one that is not readable or over 130 years."""
    found = _AGE.fullmatch(age.upper())
    years = int(found[1]) * _DAYS[found[2] or "Y"] / _DAYS["Y"] if found else math.inf
    return years if years <= _OLDEST else None


def _counted_age(ds: Any) -> float | None:
    """Return the years from birth to the study; ``None`` where a date is missing, or they are not 0 to 130."""
    dates = [text(ds, keyword) for keyword in ("PatientBirthDate", "StudyDate")]
    try:
        born, studied = (date(int(day[:4]), int(day[4:6]), int(day[6:8])) for day in dates)
    except ValueError:
        return None
    years = (studied - born).days / _DAYS["Y"]
    return years if 0 <= years <= _OLDEST else None


def frame_count(ds: Any) -> int:
    """Return the number of frames that the header declares; 0, which some vendors write, is one frame.

    Raises:
        ElementError: not an integer, or negative.
    """
    count = integer_or_none(ds, "NumberOfFrames") or 1
    if count < 1:
        raise ElementError("NumberOfFrames", f"is {count}")
    return count


def sample_count(ds: Any) -> int:
    """Return the number of samples of a pixel: 1 for grey, 3 for colour."""
    return integer_or_none(ds, "SamplesPerPixel") or 1


def identity_of(ds: Any, path: Path) -> dict[str, str]:
    """Return file, UIDs, view and the patient id as a hash; no name, no date, no id and no free text.

    A UID that is not of digits and dots is hashed too, and of the view the known words are kept. The hash of the
    patient shows whether two files belong to one. It does not protect against someone who can guess the id, so treat
    it as you would the id.
    """
    found = {"file": str(path)}
    for key, keyword in _UIDS.items():
        if value := text(ds, keyword):
            found[key] = value if _UID.fullmatch(value) else hash_text(value)
    if view := view_words(text(ds, "ViewPosition")):
        found["view"] = view
    stated, by_class = text(ds, "Modality").upper(), _MODALITY_OF_CLASS.get(text(ds, "SOPClassUID"), "")
    if stated and by_class not in ("", stated) and not {stated, by_class} <= PROJECTION_MODALITIES:
        found["class_modality"] = by_class
    if patient := text(ds, "PatientID"):
        found["patient"] = hash_text(patient)
    return found


def finite_values(ds: Any, keyword: str, count: int, path: Path) -> tuple[float, ...] | None:
    """Return ``count`` finite values of an element, or ``None`` where it is absent or empty.

    Raises:
        DataError: another count, or NaN or infinity.
    """
    values = numbers(ds, keyword)
    if not values:
        return None
    if len(values) != count or not all(math.isfinite(v) for v in values):
        raise DataError(
            f"{path}: expected {count} finite number{'s' * (count > 1)} in {keyword}, "
            f"found {', '.join(f'{v:g}' for v in values)}. Export the image again."
        )
    return values


def functional_group(ds: Any, sequence: str, frame: int) -> Any:
    """Return the functional group item of a frame, or the data set itself where there is none.

    An enhanced image stores what differs between frames in one sequence, and what they share in another.
    """
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        found = items(ds, groups)
        if index < len(found) and (group := items(found[index], sequence)):
            return group[0]
    return ds


@dataclass(frozen=True, eq=False)
class Plane:
    """The position and orientation of a slice, in RAS mm.

    Attributes:
        origin: centre of the first pixel.
        down: from one row to the next.
        right: from one column to the next.
    """

    origin: NDArray[np.float64]
    down: NDArray[np.float64]
    right: NDArray[np.float64]

    @property
    def normal(self) -> NDArray[np.float64]:
        """The unit direction in which slices are counted: right × down."""
        cross = np.cross(self.right, self.down)
        return np.asarray(cross / np.linalg.norm(cross))

    def affine(self, step: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return the 4 x 4 affine of indices ``(h, w, normal)``, or of ``(d, h, w)`` with the step between slices."""
        matrix = np.eye(4)
        columns = (self.down, self.right, self.normal) if step is None else (step, self.down, self.right)
        matrix[:3, :3] = np.stack(columns, axis=1)
        matrix[:3, 3] = self.origin
        return matrix


def plane_of(ds: Any, path: Path, frame: int = 0, whole: Any = None) -> Plane | None:
    """Return the plane of a frame, or ``None`` where the header does not give all of it.

    A picture, such as a projection X-ray, has pixels that mean the same without a plane: an invalid one is ``None``.

    Args:
        ds: the data set, or an item of it that holds position and direction.
        path: the file, for messages.
        frame: which frame.
        whole: the data set, if ``ds`` is an item of it.

    Raises:
        DataError: of a slice, NaN or infinity, a wrong count, a spacing that is not positive, or directions that are
            not perpendicular unit vectors.
    """
    whole = ds if whole is None else whole
    if not _is_slice(whole) and ignored_geometry(whole, path, frame):
        return None
    return _plane(ds, path, frame, whole)


def pixel_spacing(ds: Any, path: Path, frame: int = 0) -> tuple[float, float] | None:
    """Return the mm between rows and between columns; ``None`` where they are absent.

    Raises:
        DataError: of a slice, not two finite positive numbers; a picture then has none.
    """
    for keyword in _SPACINGS:
        source = functional_group(ds, "PixelMeasuresSequence", frame) if keyword == "PixelSpacing" else ds
        try:
            found = _positive_pair(source, keyword, path)
        except (DataError, ElementError):
            if _is_slice(ds):
                raise
            continue
        if found is not None:
            return found
    return None


def ignored_geometry(ds: Any, path: Path, frame: int = 0) -> str:
    """Return which invalid geometry of a picture is ignored; ``""`` where it is valid, absent, or a slice's."""
    if _is_slice(ds):
        return ""
    try:
        source = functional_group(ds, "PixelMeasuresSequence", frame)
        for keyword in _SPACINGS:
            _positive_pair(source if keyword == "PixelSpacing" else ds, keyword, path)
        _plane(ds, path, frame, ds)
    except DataError as error:
        return next(k for k in (*_SPACINGS, "ImagePositionPatient", "ImageOrientationPatient") if k in str(error))
    except ElementError as error:
        return error.keyword
    return ""


def _is_slice(ds: Any) -> bool:
    """Return whether the pixels are a slice, whose position and spacing a volume needs."""
    return modality_of(ds) in SLICE_MODALITIES


def _positive_pair(ds: Any, keyword: str, path: Path) -> tuple[float, float] | None:
    found = finite_values(ds, keyword, 2, path)
    if found is None:
        return None
    if min(found) <= 0:
        raise ElementError(keyword, "is not positive")
    return found[0], found[1]


def _plane(ds: Any, path: Path, frame: int, whole: Any) -> Plane | None:
    position = finite_values(functional_group(ds, "PlanePositionSequence", frame), "ImagePositionPatient", 3, path)
    orientation = functional_group(ds, "PlaneOrientationSequence", frame)
    cosines = finite_values(orientation, "ImageOrientationPatient", 6, path)
    right, down = (np.array(cosines[:3]), np.array(cosines[3:])) if cosines else (np.zeros(3), np.zeros(3))
    lengths = np.array([np.linalg.norm(right), np.linalg.norm(down)])
    if cosines and (np.abs(lengths - 1).max() > 0.01 or abs(right @ down) > 0.01):  # rounding is below 0.001
        raise DataError(
            f"{path}: expected two perpendicular unit vectors in ImageOrientationPatient, "
            f"found {', '.join(f'{v:g}' for v in cosines)}. Export the image again."
        )
    spacing = pixel_spacing(whole, path, frame)
    if position is None or cosines is None or spacing is None:
        return None
    down, right = _TO_RAS @ down / lengths[1] * spacing[0], _TO_RAS @ right / lengths[0] * spacing[1]
    return Plane(_TO_RAS @ np.array(position), down, right)
