"""What a scan keeps of the header of a grey single-frame file, so that reading the file does not parse it again.

The elements that :func:`~medzoo.io.dicom.read.read_dicom` looks at are kept as bytes, once for all files that have the
same, as the slices of a series do; those of the patient as what is made of them. A file with elements that are not
kept, such as a lookup table, has no record.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from medzoo.io.dicom.elements import ElementError, text
from medzoo.io.dicom.header import age_of, sample_count
from medzoo.io.dicom.layout import NATIVE, UNDEFINED, Element, HeaderLayout, dataset_of, items_end
from medzoo.io.hashing import hash_text

__all__ = ["EXCLUDING_KEYWORDS", "READ_KEYWORDS", "HeaderRecord", "one_object", "record_of", "state_of"]

_T = TypeVar("_T", bound=Hashable)

State = tuple[int, int, int, int]
"""Size, time of modification and of change in ns, and inode of a file."""

_Shared = tuple[str, str | None, tuple[Element, ...]]

_OWN = ("SOPInstanceUID", "ImagePositionPatient")
_PATIENT = ("PatientID", "PatientAge", "PatientBirthDate", "StudyDate")
READ_KEYWORDS = (
    *_OWN, "SpecificCharacterSet", "SOPClassUID", "Modality", "StudyInstanceUID", "SeriesInstanceUID", "Rows",
    "Columns", "SamplesPerPixel", "NumberOfFrames", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing", "RescaleSlope", "RescaleIntercept", "RescaleType", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "PresentationIntentType", "PresentationLUTShape", "ViewPosition", "BodyPartExamined",
    "InConcatenationNumber", "InConcatenationTotalNumber", *_PATIENT,
)  # fmt: skip
"""The elements that reading a grey single-frame file looks at."""

EXCLUDING_KEYWORDS = (
    "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "ModalityLUTSequence", "VOILUTSequence",
    "DirectoryRecordSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    "RedPaletteColorLookupTableDescriptor", "AnatomicRegionSequence",
)  # fmt: skip
"""Elements that reading looks at too, and that are not kept; the last only where BodyPartExamined is empty."""

_FORM = ("SamplesPerPixel", "PhotometricInterpretation")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_LARGEST = 4096  # bytes of the elements that are kept
_PIXEL_DATA = 0x7FE00010


@dataclass(frozen=True, slots=True, eq=False)
class HeaderRecord:
    """What reading a file needs of its header.

    Attributes:
        state: of the file when its header was parsed.
        shared: transfer syntax, VR of the pixels, and the elements that slices of a series have in common.
        own: the elements that differ from slice to slice.
        patient: the hash of the patient's id; ``""`` without one.
        age: of the patient in years; ``None`` where it is not known.
        offset: of the pixels in the file.
        length: of the pixels, or :data:`~medzoo.io.dicom.layout.UNDEFINED` of compressed ones.
    """

    state: State
    shared: _Shared
    own: tuple[Element, ...]
    patient: str
    age: float | None
    offset: int
    length: int

    def is_current(self, path: Path) -> bool:
        """Return whether the file is as it was when its header was parsed."""
        try:
            return state_of(path.stat()) == self.state
        except OSError:  # reading it reports it
            return False

    def load(self, path: Path) -> Any:
        """Return the data set with its pixels; ``None`` where the file was changed, or has to be parsed.

        Raises:
            OSError: the file cannot be read.
        """
        with path.open("rb") as file:
            if state_of(os.fstat(file.fileno())) != self.state:
                return None
            file.seek(self.offset)
            pixels = file.read(self.state[0])
        if self.length != UNDEFINED and len(pixels) != self.length:
            return None
        if self.length == UNDEFINED and items_end(pixels) != len(pixels):
            return None
        return self.dataset(pixels if self.length != UNDEFINED else pixels[:-8])

    def dataset(self, pixels: bytes) -> Any:
        """Return the data set with these pixels."""
        from pydicom.dataelem import RawDataElement
        from pydicom.tag import BaseTag

        syntax, vr, elements = self.shared
        tag = BaseTag(_PIXEL_DATA)
        data = RawDataElement(tag, vr, self.length, pixels, self.offset, vr is None, True)
        return dataset_of(syntax, (*self.own, *elements), {tag: data})


def state_of(found: os.stat_result) -> State:
    """Return what shows that a file was changed, unless it is rewritten in one tick of its clock, a few ms."""
    # A tool that edits a file in place may set the time of modification back; that of change it cannot.
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def record_of(layout: HeaderLayout, state: State) -> HeaderRecord | None:
    """Return the record of a grey single-frame file; ``None`` where reading it needs what is not kept.

    Pixels that do not end the file are no record's: what follows them, or lacks, is for pydicom to find.

    Args:
        layout: of the file.
        state: of the file before its layout was read.
    """
    kept, own, checked, region, part = _tags()
    found = layout.elements
    if layout.tag != _PIXEL_DATA or layout.overlays or layout.noticed - {region}:
        return None
    if region in layout.noticed and not (part in found and found[part][2].strip(b" \0")):
        return None
    if layout.length == UNDEFINED:
        usual = layout.syntax not in NATIVE
    else:
        usual = layout.syntax in NATIVE and layout.offset + layout.length == state[0]
    elements, mine = (tuple(found[tag] for tag in tags if tag in found) for tags in (kept, own))
    if not usual or sum(len(value) for _, _, value in elements + mine) > _LARGEST:
        return None
    ds = dataset_of(layout.syntax, (found[tag] for tag in checked if tag in found))
    try:
        patient, age = text(ds, "PatientID"), age_of(ds)
        grey = sample_count(ds) == 1 and text(ds, "PhotometricInterpretation").upper() in _GREY
    except ElementError:  # reading it names the element
        return None
    if not grey:  # of colour, the number of samples may be missing
        return None
    shared = one_object((layout.syntax, layout.vr, elements))
    return HeaderRecord(state, shared, mine, hash_text(patient) if patient else "", age, layout.offset, layout.length)


@lru_cache(256)
def _one_object(value: Hashable) -> Hashable:
    return value


def one_object(value: _T) -> _T:
    """Return one object for the equal values of the slices of a series; several series may alternate in a folder."""
    return cast(_T, _one_object(value))


@cache
def _tags() -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int, int]:
    """Return the tags of the shared elements, of those of a slice, of those read now, of the region and the part."""
    from pydicom.datadict import tag_for_keyword

    def tags(*keywords: str) -> tuple[int, ...]:
        return tuple(int(tag_for_keyword(keyword) or 0) for keyword in keywords)

    shared = sorted(set(tags(*READ_KEYWORDS)) - set(tags(*_OWN, *_PATIENT)))
    region, part = tags("AnatomicRegionSequence", "BodyPartExamined")
    return tuple(shared), tags(*_OWN), tags("SpecificCharacterSet", *_FORM, *_PATIENT), region, part
