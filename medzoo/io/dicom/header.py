"""Checked values of a DICOM header: modality, identity without names, and the plane of a slice.

Axes: h w rows and columns; the world is RAS+ (DICOM's own is LPS+).
"""

from __future__ import annotations

import hashlib
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from warnings import WarningMessage

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.files import wrap_read_errors

__all__ = [
    "PROJECTION_MODALITIES", "Plane", "age_of", "body_part_of", "finite_values", "float_values",
    "frame_count", "functional_group", "identity_of", "modality_of", "non_image_kind", "pixel_spacing", "plane_of",
    "sample_count", "wrap_dicom_errors",
]  # fmt: skip

PROJECTION_MODALITIES = frozenset({"CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA"})
"""Projection X-ray: each file is an image of its own, never a slice of a volume."""

_MODALITY_OF_CLASS = {
    f"1.2.840.10008.5.1.4.1.1.{suffix}": modality for suffix, modality in {
        "1": "CR", "1.1": "DX", "1.1.1": "DX", "1.2": "MG", "1.2.1": "MG", "12.1": "XA", "12.2": "RF", "2": "CT",
        "2.1": "CT", "2.2": "CT", "4": "MR", "4.1": "MR", "4.4": "MR", "128": "PT", "20": "NM",
    }.items()
}  # fmt: skip
_NON_IMAGE_MODALITIES = {
    "SR": "a structured report", "PR": "a presentation state", "KO": "a key object selection", "SEG": "a segmentation",
    "RTSTRUCT": "a structure set", "RTPLAN": "a treatment plan", "RTDOSE": "a dose map", "REG": "a registration",
    "DOC": "a document", "ECG": "a waveform",
}  # fmt: skip
_IDENTITY = {
    "study": "StudyInstanceUID", "series": "SeriesInstanceUID", "sop": "SOPInstanceUID", "view": "ViewPosition",
}  # fmt: skip

_DAYS = {"D": 1, "W": 7, "M": 30.4375, "Y": 365.25}
"""Days in a unit of an age string (PS3.5 6.2)."""

_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def wrap_dicom_errors(path: Path, what: str) -> AbstractContextManager[list[WarningMessage]]:
    """Return :func:`~medzoo.io.files.wrap_read_errors` with pydicom's own exceptions."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    return wrap_read_errors(path, what, BytesLengthException, InvalidDicomError)


def modality_of(ds: Any) -> str:
    """Return the modality, from the SOP class where the tag is missing; ``""`` where neither gives it."""
    return str(ds.get("Modality") or "").strip() or _MODALITY_OF_CLASS.get(str(ds.get("SOPClassUID") or ""), "")


def body_part_of(ds: Any) -> str:
    """Return the body part in capitals, from the anatomic region where its tag is missing; ``""`` without either."""
    if part := str(ds.get("BodyPartExamined") or "").strip():
        return part.upper()
    regions = ds.get("AnatomicRegionSequence")
    return str(regions[0].get("CodeMeaning") or "").strip().upper() if regions else ""


def age_of(ds: Any) -> float | None:
    """Return the age of the patient in years, or from birth to the study; ``None`` where the header gives neither."""
    text = str(ds.get("PatientAge") or "").strip().upper()
    if text[:-1].isdigit() and text[-1:] in _DAYS:
        return int(text[:-1]) * _DAYS[text[-1:]] / _DAYS["Y"]
    dates = [str(ds.get(keyword) or "") for keyword in ("PatientBirthDate", "StudyDate")]
    try:
        born, studied = (date(int(text[:4]), int(text[4:6]), int(text[6:8])) for text in dates)
    except ValueError:
        return None
    return (studied - born).days / _DAYS["Y"] if born <= studied else None


def non_image_kind(ds: Any) -> str | None:
    """Return what a DICOM object is if it is not an image that a model could take, else ``None``."""
    from pydicom.uid import UID

    modality = modality_of(ds)
    if modality in _NON_IMAGE_MODALITIES:
        return f"{_NON_IMAGE_MODALITIES[modality]} ({modality})"
    if "Rows" in ds and "Columns" in ds:
        return None
    sop_class = str(ds.get("SOPClassUID") or "")
    if not sop_class or "Image Storage" in UID(sop_class).name:
        return None  # an image that lacks its size: reading it reports what is wrong
    return "a DICOM object without pixels"


def frame_count(ds: Any) -> int:
    """Return the number of frames that the header declares."""
    value = ds.get("NumberOfFrames")
    return int(value) if value not in (None, "") else 1


def sample_count(ds: Any) -> int:
    """Return the number of samples of a pixel: 1 for grey, 3 for colour."""
    return int(ds.get("SamplesPerPixel") or 1)


def identity_of(ds: Any, path: Path) -> dict[str, str]:
    """Return file, UIDs, view and the patient id as a hash; no name, no date, no id in plain text.

    The hash shows whether two files belong to one patient. It does not protect against someone who can guess the id,
    so treat it as you would the id.
    """
    found = {"file": str(path)}
    for key, keyword in _IDENTITY.items():
        if value := str(ds.get(keyword) or "").strip():
            found[key] = value
    if patient := str(ds.get("PatientID") or "").strip():
        found["patient"] = hashlib.sha256(patient.encode(errors="backslashreplace")).hexdigest()[:12]
    return found


def float_values(ds: Any, keyword: str) -> tuple[float, ...]:
    """Return the values of an element with one or several; ``()`` where it is absent or empty."""
    value = ds.get(keyword)
    if value is None or value == "":
        return ()
    return tuple(float(v) for v in (value if hasattr(value, "__len__") and not isinstance(value, str) else [value]))


def finite_values(ds: Any, keyword: str, count: int, path: Path) -> tuple[float, ...] | None:
    """Return ``count`` finite values of an element, or ``None`` where it is absent or empty.

    Raises:
        DataError: another count, or NaN or infinity.
    """
    values = float_values(ds, keyword)
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
        items = ds.get(groups) or ()
        if index < len(items) and items[index].get(sequence):
            return items[index].get(sequence)[0]
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


def plane_of(ds: Any, path: Path, frame: int = 0, spacing: Any = None) -> Plane | None:
    """Return the plane of a frame, or ``None`` where the header does not give all of it.

    Args:
        ds: the data set, or an item of it that holds position and direction.
        path: the file, for messages.
        frame: which frame.
        spacing: the data set that holds the pixel spacing, if that is another one.

    Raises:
        DataError: NaN or infinity, a wrong count, or directions that are not perpendicular unit vectors.
    """
    position = finite_values(functional_group(ds, "PlanePositionSequence", frame), "ImagePositionPatient", 3, path)
    orientation = functional_group(ds, "PlaneOrientationSequence", frame)
    cosines = finite_values(orientation, "ImageOrientationPatient", 6, path)
    between = pixel_spacing(ds if spacing is None else spacing, path, frame)
    if position is None or cosines is None or between is None:
        return None
    right, down = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = np.array([np.linalg.norm(right), np.linalg.norm(down)])
    if np.abs(lengths - 1).max() > 0.01 or abs(right @ down) > 0.01:  # rounding in headers is below 0.001
        raise DataError(
            f"{path}: expected two perpendicular unit vectors in ImageOrientationPatient, "
            f"found {', '.join(f'{v:g}' for v in cosines)}. Export the image again."
        )
    down, right = _TO_RAS @ down / lengths[1] * between[0], _TO_RAS @ right / lengths[0] * between[1]
    return Plane(_TO_RAS @ np.array(position), down, right)


def pixel_spacing(ds: Any, path: Path, frame: int = 0) -> tuple[float, float] | None:
    """Return the mm between rows and between columns; ``None`` where they are absent or not positive."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        source = functional_group(ds, "PixelMeasuresSequence", frame) if keyword == "PixelSpacing" else ds
        found = finite_values(source, keyword, 2, path)
        if found is not None and min(found) > 0:
            return found[0], found[1]
    return None
