"""What one file of a scan is: a slice, another image, an object that is not an image, or a file that cannot be read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medzoo.errors import DataError
from medzoo.io.dicom import header
from medzoo.io.dicom.frames import stack_names
from medzoo.io.dicom.slices import Slice, read_header, slice_of
from medzoo.io.files import MAX_VOXELS, existing, has_image_suffix, identify
from medzoo.io.options import ReadOptions

__all__ = ["Found", "classify", "partial_header"]

_VOLUME_MODALITIES = ("CT", "MR", "PT")
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(slots=True, eq=False)
class Found:
    """What a scan knows about a file.

    Attributes:
        path: the file.
        kind: how it is listed, unless it is a slice of a volume or lost.
        reason: why it is skipped.
        header: of a DICOM file.
        is_slice: it belongs to a volume.
        readable: it is of a known format, and complete as far as its header shows.
        stacks: what distinguishes the stacks of a multi-frame file that has several.
    """

    path: Path
    kind: Literal["image", "skip"]
    reason: str = ""
    header: Slice | None = None
    is_slice: bool = False
    readable: bool = True
    stacks: tuple[str, ...] = ()


def classify(file: Path, options: ReadOptions) -> Found:
    """Return what a file is, from its first bytes and its DICOM header, which is read once."""
    try:
        found = identify(existing(file)) if file.is_file() or file.is_symlink() else "closed"
    except (DataError, OSError):  # an unreadable file may be an image, so reading it must report it; an empty one not
        empty = os.access(file, os.R_OK) and not has_image_suffix(file)
        return Found(file, "skip" if empty else "image", "an empty file" if empty else "", readable=False)
    if found == "":
        known = has_image_suffix(file)
        return Found(file, "image" if known else "skip", "" if known else "not an image file", readable=False)
    if found != "dicom":
        return Found(file, "image")
    try:
        ds, complete = read_header(file, MAX_VOXELS)
        with header.wrap_dicom_errors(file, "a DICOM header"):
            return _classify_dicom(file, ds, complete, options)
    except DataError:
        return Found(file, "image", readable=False)


def partial_header(file: Path) -> tuple[str, bool]:
    """Return the SeriesInstanceUID of a DICOM file that is damaged or lacks its preamble, and whether it is an image.

    What is known is little: without a UID, ``""`` is returned; without a class, it counts as an image.
    """
    from pydicom import dcmread

    try:
        with header.wrap_dicom_errors(file, "a DICOM header"):
            tags = ["SOPClassUID", "Modality", "SeriesInstanceUID", "Rows", "Columns"]
            ds = dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(tags))
            media = str(ds.file_meta.get("MediaStorageSOPClassUID") or "")
            if media and "SOPClassUID" not in ds:
                ds.SOPClassUID = media
            skipped = media == _MEDIA_DIRECTORY or (_has_known_class(ds) and header.non_image_kind(ds) is not None)
            return str(ds.get("SeriesInstanceUID") or "").strip(), not skipped
    except DataError:
        return "", True


def _classify_dicom(file: Path, ds: Any, complete: bool, options: ReadOptions) -> Found:
    own = slice_of(ds, file)
    if not complete and not _has_known_class(ds) and header.modality_of(ds) == "":
        return Found(file, "image", "", own, readable=False)
    if reason := _reason_to_skip(ds):
        return Found(file, "skip", reason, own)
    if not complete:
        return Found(file, "image", "", own, readable=False)
    if header.frame_count(ds) > 1:
        return Found(file, "image", "", own, stacks=stack_names(ds, file, options))
    return Found(file, "image", "", own, _is_slice(own))


def _has_known_class(ds: Any) -> bool:
    """Return whether the SOP class is one of the standard's: a UID that is cut is not."""
    from pydicom.uid import UID

    return UID(str(ds.get("SOPClassUID") or "")).name.endswith("Storage")


def _reason_to_skip(ds: Any) -> str:
    if str(ds.file_meta.get("MediaStorageSOPClassUID") or "") == _MEDIA_DIRECTORY:
        return "a DICOMDIR"
    if kind := header.non_image_kind(ds):
        return kind
    return "a scout (LOCALIZER)" if "LOCALIZER" in [str(v).upper() for v in (ds.get("ImageType") or ())] else ""


def _is_slice(own: Slice) -> bool:
    """Return whether a file is a slice of a volume, rather than an image of its own.

    CT, MR and PT without a position are slices, so that reading the series reports what is missing.
    """
    modality = own.of("modality")
    if modality in header.PROJECTION_MODALITIES or not own.of("series"):
        return False
    return modality in _VOLUME_MODALITIES or own.positioned
