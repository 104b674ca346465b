"""What a DICOM header says, checked: kind of image, identity without names, and the plane of a slice.

Axes: h w rows and columns; the world is RAS+ (DICOM's own is LPS+).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError

__all__ = ["PICTURES", "Plane", "frame_item", "identity", "modality", "not_an_image", "numbers", "plane", "spacing_2d"]

PICTURES = frozenset({"CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA"})
"""Projection X-ray: each file is a picture of its own, never a slice of a volume."""

_SOP_MODALITY = {
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.2": "MG",
    "1.2.840.10008.5.1.4.1.1.1.2.1": "MG",
    "1.2.840.10008.5.1.4.1.1.12.1": "XA",
    "1.2.840.10008.5.1.4.1.1.12.2": "RF",
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
    "1.2.840.10008.5.1.4.1.1.20": "NM",
}

_NO_IMAGE = {
    "SR": "a structured report (SR)",
    "PR": "a presentation state (PR)",
    "KO": "a key object selection (KO)",
    "SEG": "a segmentation (SEG)",
    "RTSTRUCT": "a structure set (RTSTRUCT)",
    "RTPLAN": "a treatment plan (RTPLAN)",
    "RTDOSE": "a dose map (RTDOSE)",
    "REG": "a registration (REG)",
    "DOC": "a document (DOC)",
    "ECG": "a waveform (ECG)",
}

_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def modality(ds: Any) -> str:
    """Return the modality, from the SOP class where the tag is missing; ``""`` where neither says."""
    return str(ds.get("Modality") or "").strip() or _SOP_MODALITY.get(str(ds.get("SOPClassUID") or ""), "")


def not_an_image(ds: Any) -> str | None:
    """Say what a DICOM object is when it is no image a model could take, else return ``None``."""
    from pydicom.uid import UID

    named = _NO_IMAGE.get(modality(ds))
    if named or ("Rows" in ds and "Columns" in ds):
        return named
    sop_class = str(ds.get("SOPClassUID") or "")
    broken = (
        not sop_class or "Image Storage" in UID(sop_class).name
    )  # meant to be an image: reading it says what is wrong
    return None if broken else "a DICOM object without pixels"


def identity(ds: Any, path: Path) -> dict[str, str]:
    """Return file, UIDs, view and the patient as a hash: no name, no date, no id in the clear.

    The hash tells two patients apart and says when two files are of one; it is no protection for someone who can
    guess the id, so treat it as you would the id.
    """
    found = {"file": str(path)}
    for key, keyword in (
        ("study", "StudyInstanceUID"),
        ("series", "SeriesInstanceUID"),
        ("sop", "SOPInstanceUID"),
        ("view", "ViewPosition"),
    ):
        if value := str(ds.get(keyword) or "").strip():
            found[key] = value
    if patient := str(ds.get("PatientID") or "").strip():
        found["patient"] = hashlib.sha256(patient.encode(errors="backslashreplace")).hexdigest()[:12]
    return found


def numbers(ds: Any, keyword: str, count: int, path: Path) -> tuple[float, ...] | None:
    """Return ``count`` finite numbers of an element, or ``None`` where it is absent or empty.

    Raises:
        DataError: another count, or NaN or infinity.
    """
    value = ds.get(keyword)
    if value is None or value == "":
        return None
    values = tuple(float(v) for v in (value if hasattr(value, "__len__") and not isinstance(value, str) else [value]))
    if not values:
        return None
    if len(values) != count or not all(math.isfinite(v) for v in values):
        raise DataError(
            f"{path}: expected {count} finite number{'s' * (count > 1)} in {keyword}, "
            f"found {', '.join(f'{v:g}' for v in values)}. Export the image anew."
        )
    return values


def frame_item(ds: Any, sequence: str, frame: int) -> Any:
    """Return the item of a functional group that holds for a frame, or the data set itself.

    An enhanced image keeps what differs between frames in one sequence, and what they share in another.
    """
    for groups, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = ds.get(groups) or ()
        if index < len(items) and items[index].get(sequence):
            return items[index].get(sequence)[0]
    return ds


@dataclass(frozen=True, eq=False)
class Plane:
    """Where a slice lies, in RAS mm.

    Attributes:
        origin: centre of the first pixel.
        down: from one row to the next, length in mm.
        right: from one column to the next, length in mm.
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


def plane(ds: Any, path: Path, frame: int = 0) -> Plane | None:
    """Return the plane of a frame, or ``None`` where the header does not give all of it.

    Raises:
        DataError: NaN or infinity, a wrong count, or directions that are not perpendicular unit vectors.
    """
    position = numbers(frame_item(ds, "PlanePositionSequence", frame), "ImagePositionPatient", 3, path)
    cosines = numbers(frame_item(ds, "PlaneOrientationSequence", frame), "ImageOrientationPatient", 6, path)
    spacing = spacing_2d(ds, path, frame)
    if position is None or cosines is None or spacing is None:
        return None
    right, down = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = np.array([np.linalg.norm(right), np.linalg.norm(down)])
    if np.abs(lengths - 1).max() > 0.01 or abs(right @ down) > 0.01:  # rounding in headers is below 0.001
        raise DataError(
            f"{path}: expected two perpendicular unit vectors in ImageOrientationPatient, "
            f"found {', '.join(f'{v:g}' for v in cosines)}. Export the image anew."
        )
    return Plane(
        _TO_RAS @ np.array(position),
        _TO_RAS @ down / lengths[1] * spacing[0],
        _TO_RAS @ right / lengths[0] * spacing[1],
    )


def spacing_2d(ds: Any, path: Path, frame: int = 0) -> tuple[float, float] | None:
    """Return mm between rows and between columns; ``None`` where it is absent or not positive."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        source = frame_item(ds, "PixelMeasuresSequence", frame) if keyword == "PixelSpacing" else ds
        found = numbers(source, keyword, 2, path)
        if found is not None and min(found) > 0:
            return found[0], found[1]
    return None
