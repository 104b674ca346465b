"""DICOM objects that are not images, and what to give instead."""

from __future__ import annotations

from typing import Any

from medzoo.io.dicom.elements import text

__all__ = ["non_image_advice", "non_image_kind"]

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"

_REFERS = "Give the images it refers to."
_KINDS = {
    "DICOMDIR": ("a DICOMDIR", "Give the files it lists, or their folder."),
    "SR": ("a structured report", _REFERS), "PR": ("a presentation state", _REFERS),
    "KO": ("a key object selection", _REFERS), "SEG": ("a segmentation", "Give the images that it marks."),
    "RTSTRUCT": ("a structure set", _REFERS), "RTPLAN": ("a treatment plan", _REFERS),
    "RTRECORD": ("a treatment record", _REFERS), "RTDOSE": ("a dose map", "Give the images the dose was planned on."),
    "REG": ("a registration", _REFERS), "FID": ("a set of fiducials", _REFERS),
    "DOC": ("a document", "Give the images of the study."), "PDF": ("a PDF document", "Give the images of the study."),
    "M3D": ("a 3D model", "Give the images it was made from."),
    "ECG": ("a waveform", "Give the images of the study, if there are any."),
    "MRS": ("a spectroscopy", "Give the images of the study."), "RWV": ("a real world value mapping", _REFERS),
    "RAW": ("raw data", "Give the images that were reconstructed from it."),
    "PALETTE": ("a colour palette", "Give the images that use it."),
    "SMR": ("a stereometric relationship", _REFERS), "TRACT": ("a set of fibre tracks", _REFERS),
}  # fmt: skip
"""By modality, or a name of our own: what it is, and what to give instead."""

_CLASSES = {
    "66.4": "SEG", "66.5": "SEG", "66.7": "SEG", "66.1": "REG", "66.3": "REG", "66.2": "FID", "66.6": "TRACT",
    "66": "RAW", "67": "RWV", "88": "SR", "88.59": "KO", "11": "PR", "9": "ECG", "104.1": "PDF", "104.2": "DOC",
    "104.3": "M3D",
    "104.4": "M3D", "104.5": "M3D", "481.2": "RTDOSE", "481.3": "RTSTRUCT", "481.4": "RTRECORD", "481.5": "RTPLAN",
    "481.6": "RTRECORD", "481.7": "RTRECORD", "481.8": "RTPLAN", "481.9": "RTRECORD", "4.2": "MRS", "77.1.5.3": "SMR",
}  # fmt: skip
"""The kinds by SOP class, below the storage classes; a class without an entry has that of the class above it."""


def non_image_kind(ds: Any) -> str | None:
    """Return what a DICOM object is if it is not an image that a model could take, else ``None``."""
    from pydicom.uid import UID

    if kind := _kind(ds):
        shown = kind if kind == text(ds, "Modality").upper() else ""
        return _KINDS[kind][0] + (f" ({shown})" if shown else "")
    if "Rows" in ds and "Columns" in ds:
        return None
    sop_class = text(ds, "SOPClassUID")
    if not sop_class or "Image Storage" in UID(sop_class).name:
        return None  # an image that lacks its size: reading it reports what is wrong
    return "a DICOM object without pixels"


def non_image_advice(ds: Any) -> str:
    """Return what to give instead of an object that is not an image."""
    kind = _kind(ds)
    return _KINDS[kind][1] if kind else _REFERS


def _kind(ds: Any) -> str:
    """Return the key of the kind by SOP class, else by modality; ``""`` for an image."""
    meta = getattr(ds, "file_meta", {})
    sop_class = text(ds, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID")
    if sop_class == _MEDIA_DIRECTORY or "DirectoryRecordSequence" in ds:
        return "DICOMDIR"
    if sop_class.startswith("1.2.840.10008.5.1.4.39."):
        return "PALETTE"
    name = sop_class.removeprefix(_STORAGE) if sop_class.startswith(_STORAGE) else ""
    while name:
        if name in _CLASSES:
            return _CLASSES[name]
        name = name.rpartition(".")[0]
    modality = text(ds, "Modality").upper()
    return modality if modality in _KINDS else ""
