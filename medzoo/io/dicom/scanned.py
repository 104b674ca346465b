"""The header of a DICOM file as a scan reads it, and whether the pixels behind it are complete."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from medzoo.io.dicom import header
from medzoo.io.dicom.elements import ElementError, text
from medzoo.io.dicom.frames import FRAME_TAGS
from medzoo.io.dicom.layout import UNDEFINED, dataset_of, read_layout
from medzoo.io.dicom.pixels import load
from medzoo.io.dicom.record import EXCLUDING_KEYWORDS, READ_KEYWORDS, HeaderRecord, record_of, state_of
from medzoo.io.dicom.slices import SLICE_KEYWORDS
from medzoo.io.dicom.tags import distinction_tags

__all__ = ["ScannedHeader", "read_header"]

_KEYWORDS = (
    *SLICE_KEYWORDS, "ImageType", "SamplesPerPixel", "NumberOfFrames", "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
)  # fmt: skip
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_HEAD = 8192
_TAIL = 2**16
_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"  # ends compressed pixels; little more follows them
_PIXELS = (b"\xe0\x7f\x08\x00", b"\xe0\x7f\x09\x00", b"\xe0\x7f\x10\x00")


class ScannedHeader(NamedTuple):
    """What a scan reads of a DICOM file.

    Attributes:
        ds: the elements that it needs.
        complete: the pixels are all there, as far as their length shows it.
        record: for reading the file without parsing its header again; ``None`` where that needs more.
    """

    ds: Any
    complete: bool
    record: HeaderRecord | None


def read_header(path: Path, max_voxels: int) -> ScannedHeader:
    """Return the elements of a DICOM file that a scan needs, and whether its pixels are complete.

    Raises:
        DataError: not DICOM, or a damaged header.
    """
    from pydicom import dcmread

    with header.wrap_dicom_errors(path, "a DICOM header"), path.open("rb") as file:
        if found := _read_usual(file):
            return found
        file.seek(0)
        head = file.read(_HEAD)
        if _DEFLATED in head or int.from_bytes(head[140:144], "little") > _HEAD - 512:
            return ScannedHeader(load(path, max_voxels=max_voxels, tags=list(_tags())), True, None)
        file.seek(0)
        ds = dcmread(file, stop_before_pixels=True, specific_tags=_tags())
        complete = _has_pixels(file)
        if header.frame_count(ds) > 1:
            file.seek(0)
            ds = dcmread(file, stop_before_pixels=True, specific_tags=[*_tags(), *FRAME_TAGS])
    return ScannedHeader(ds, complete, None)


def _read_usual(file: BinaryIO) -> ScannedHeader | None:
    """Read the header of a single frame without pydicom; ``None`` where it is not laid out as usual."""
    state = state_of(os.fstat(file.fileno()))
    layout = read_layout(file, *_layout_tags())
    if layout is None:
        return None
    ds = dataset_of(layout.syntax, layout.elements.values())
    try:  # without a class, that of the file meta information counts
        if not text(ds, "SOPClassUID") or header.frame_count(ds) != 1:
            return None
    except ElementError:
        return None
    complete = _are_complete(file, layout.offset, layout.length)
    return ScannedHeader(ds, complete, record_of(layout, state) if complete else None)


@cache
def _layout_tags() -> tuple[frozenset[int], frozenset[int]]:
    """Return the tags of the elements that a scan or a record needs, and of those whose presence matters."""
    from pydicom.datadict import tag_for_keyword

    wanted, noticed = (
        frozenset(int(tag_for_keyword(k) or 0) for k in keywords) for keywords in (READ_KEYWORDS, EXCLUDING_KEYWORDS)
    )
    return wanted | frozenset(map(int, _tags())), noticed


@cache
def _tags() -> tuple[Any, ...]:
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag

    return tuple(Tag(tag) for tag in {*map(tag_for_keyword, _KEYWORDS), *distinction_tags()} if tag)


def _has_pixels(file: BinaryIO) -> bool:
    """Return whether the pixels at the position of the file are all there, as far as their length shows it."""
    start = file.tell()
    element = file.read(12)
    order = "big" if element[:2] == b"\x7f\xe0" else "little"
    if element[:4] not in _PIXELS and order == "little":
        return False
    explicit = element[4:6].isalpha() and element[4:6].isupper()
    length = int.from_bytes(element[8:12] if explicit else element[4:8], order)  # type: ignore[arg-type]
    return _are_complete(file, start + (12 if explicit else 8), length)


def _are_complete(file: BinaryIO, offset: int, length: int) -> bool:
    """Return whether a file has pixels of a length at an offset, or their end where the length is undefined."""
    left = os.fstat(file.fileno()).st_size - offset
    if length != UNDEFINED:
        return left >= length > 0
    file.seek(-min(max(left, 0), _TAIL), os.SEEK_END)
    return _DELIMITER in file.read()
