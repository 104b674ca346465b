"""What one file of a scan is: a slice, another image, an object that is not an image, or a file that cannot be read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medzoo.errors import DataError
from medzoo.io.dicom import header
from medzoo.io.dicom.frames import stack_names
from medzoo.io.dicom.scanned import ScannedHeader, read_header
from medzoo.io.dicom.slices import Slice, slice_of
from medzoo.io.files import MAX_VOXELS, existing, has_image_suffix, identify
from medzoo.io.options import ReadOptions

__all__ = ["Found", "classify", "file_suffix", "first_bytes", "partial_header", "starts_like_dicom"]

_VOLUME_MODALITIES = ("CT", "MR", "PT")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_CAPTURES = ("SCREEN SAVE", "DOSE")  # image types of a report or screenshot that is stored as the images beside it
_HEAD = 512


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
        capture: it is a secondary capture without a position, such as a dose report or a screenshot.
    """

    path: Path
    kind: Literal["image", "skip"]
    reason: str = ""
    header: Slice | None = None
    is_slice: bool = False
    readable: bool = True
    stacks: tuple[str, ...] = ()
    capture: bool = False


def classify(file: Path, options: ReadOptions) -> Found:
    """Return what a file is, from its first bytes and its DICOM header, which is read once."""
    try:
        found = identify(existing(file)) if file.is_file() or file.is_symlink() else "closed"
    except (DataError, OSError):  # an unreadable file may be an image, so reading it must report it; an empty one not
        empty = os.access(file, os.R_OK) and not has_image_suffix(file)
        return Found(file, "skip" if empty else "image", "an empty file" if empty else "", readable=False)
    if found == "":
        known = has_image_suffix(file) or _is_bare_dicom(file) or _is_compressed_dicom(file)
        return Found(file, "image" if known else "skip", "" if known else "not an image file", readable=False)
    if found != "dicom":
        return Found(file, "image")
    try:
        found_header = read_header(file, MAX_VOXELS)
        with header.wrap_dicom_errors(file, "a DICOM header"):
            return _classify_dicom(file, found_header, options)
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
            skipped = _has_known_class(ds) and header.non_image_kind(ds) is not None
            return str(ds.get("SeriesInstanceUID") or "").strip(), not skipped
    except DataError:
        return "", True


def _classify_dicom(file: Path, found: ScannedHeader, options: ReadOptions) -> Found:
    ds, complete, record = found
    own = slice_of(ds, file, record)
    if not complete and not _has_known_class(ds) and header.modality_of(ds) == "":
        return Found(file, "image", "", own, readable=False)
    if reason := _reason_to_skip(ds):
        return Found(file, "skip", reason, own)
    if not complete:
        return Found(file, "image", "", own, readable=False)
    capture = not own.positioned and _is_capture(ds)
    if header.frame_count(ds) > 1:
        return Found(file, "image", "", own, stacks=stack_names(ds, file, options), capture=capture)
    return Found(file, "image", "", own, _is_slice(own), capture=capture)


def _is_capture(ds: Any) -> bool:
    kinds = [str(v).upper() for v in (ds.get("ImageType") or ())]
    sop_class = str(ds.get("SOPClassUID") or "")
    return f"{sop_class}.".startswith(f"{_SECONDARY_CAPTURE}.") or any(k.startswith(_CAPTURES) for k in kinds)


def starts_like_dicom(head: bytes) -> bool:
    """Return whether bytes start with an element of group 2 or 8, as DICOM without its preamble does."""
    if len(head) < 8 or head[:2] not in (b"\x08\x00", b"\x02\x00", b"\x00\x08", b"\x00\x02"):
        return False
    length = min(int.from_bytes(head[4:8], "little"), int.from_bytes(head[4:8], "big"))
    return (head[4:6].isalpha() and head[4:6].isupper()) or length < 2**16


def _is_bare_dicom(file: Path) -> bool:
    """Return whether a file without a suffix may be a DICOM image without its preamble."""
    head = first_bytes(file)
    element = int.from_bytes(head[2:4], "big" if head[:1] == b"\0" else "little")
    return not file_suffix(file) and starts_like_dicom(head) and element < 0x100 and partial_header(file)[1]


def _is_compressed_dicom(file: Path) -> bool:
    """Return whether a file is named as a compressed DICOM file that is not there itself."""
    name = file.name.lower()
    return name.endswith((".dcm.gz", ".dicom.gz", ".ima.gz")) and not file.with_name(file.name[:-3]).exists()


def file_suffix(path: Path) -> str:
    """Return the suffix in lower case; a number, such as the last of a UID, is none."""
    suffix = path.suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def first_bytes(path: Path) -> bytes:
    """Return the first bytes of a file, none of one that cannot be opened."""
    try:
        if not path.is_file() or not os.access(path, os.R_OK):
            return b""
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def _has_known_class(ds: Any) -> bool:
    """Return whether the SOP class is one of the standard's: a UID that is cut is not."""
    from pydicom.uid import UID

    named = str(ds.get("SOPClassUID") or ds.file_meta.get("MediaStorageSOPClassUID") or "")
    return UID(named).name.endswith("Storage")


def _reason_to_skip(ds: Any) -> str:
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
