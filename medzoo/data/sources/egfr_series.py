"""The series of NSCLC Radiogenomics: which CT of a case is taken, and which segmentation belongs to it.

TCIA stores each series in a folder of its own, so that one header of each folder is enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medzoo.data.faults import quote
from medzoo.data.roi import Region, region_of_segmentation
from medzoo.data.sources.tree import walk_tree
from medzoo.errors import DataError
from medzoo.io.dicom.elements import text
from medzoo.io.dicom.header import frame_count, modality_of, wrap_dicom_errors
from medzoo.io.dicom.pixels import load
from medzoo.io.dicom.segmentation import Segmentation, read_segmentation
from medzoo.io.files import MAX_VOXELS, identify

__all__ = ["Choice", "Series", "choose_ct", "read_case"]

_TAGS = (
    "SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesNumber", "PatientID",
    "NumberOfFrames", "Manufacturer", "SpecificCharacterSet",
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A folder with a series.

    Attributes:
        files: its files.
        modality: ``"CT"``, ``"PT"``, ``"SEG"`` or another.
        uid: its SeriesInstanceUID.
        frame: its FrameOfReferenceUID.
        number: its SeriesNumber, for the order.
        slices: how many it has.
        patient: the PatientID of its header.
        manufacturer: of the scanner.
        is_localizer: whether it is an overview from which a scan was planned.
    """

    files: tuple[Path, ...]
    modality: str
    uid: str
    frame: str
    number: str
    slices: int
    patient: str
    manufacturer: str
    is_localizer: bool


@dataclass(frozen=True)
class Choice:
    """The CT of a case, and its tumour.

    Attributes:
        ct: the series.
        of: how many CT series the case has.
        equal: whether others have as many slices, so that the first by number was taken.
        tumour: the region; ``None`` where no segmentation belongs to a CT, or none was asked for.
        segmentations: how many segmentations belong to it.
        by_frame: whether that of the tumour names series of which no CT is there, so that it is of this one by its
            frame of reference alone.
    """

    ct: Series
    of: int
    equal: bool
    tumour: Region | None = None
    segmentations: int = 0
    by_frame: bool = False


def read_case(folders: Sequence[Path]) -> tuple[list[Series], list[str]]:
    """Return the series of a case, each once, and what is wrong with others, without the path and the case in it."""
    found: dict[str, Series] = {}
    faults: list[str] = []
    for folder in folders:
        for here, names in walk_tree(folder):
            try:
                series = _read_series([here / name for name in names])
            except DataError as error:
                faults.append(f"{quote(here.name)}: {_reason(error, here)}")
                continue
            if series is not None:
                earlier = found.setdefault(series.uid or str(here), series)
                if earlier.slices < series.slices:  # downloaded twice, once in part
                    found[series.uid] = series
    return list(found.values()), faults


def _read_series(files: Sequence[Path]) -> Series | None:
    """Return the series of a folder; ``None`` where it has no DICOM file.

    Raises:
        DataError: the header cannot be read, or does not tell the modality and the series, so that it may be the CT of
            the case.
    """
    own = tuple(_dicom_files(files))
    if not own:
        return None
    ds = load(own[0], max_voxels=MAX_VOXELS, tags=list(_TAGS))
    with wrap_dicom_errors(own[0], "a DICOM header"):
        if not modality_of(ds) or not text(ds, "SeriesInstanceUID"):
            raise DataError(
                f"{own[0]}: expected a Modality and a SeriesInstanceUID, found a header without. Replace it."
            )
        kinds = {str(kind).upper() for kind in ds.get("ImageType") or ()}
        return Series(
            own, modality_of(ds).upper(), text(ds, "SeriesInstanceUID"), text(ds, "FrameOfReferenceUID"),
            text(ds, "SeriesNumber").rjust(12), max(len(own), frame_count(ds)), text(ds, "PatientID"),
            text(ds, "Manufacturer"), "LOCALIZER" in kinds,
        )  # fmt: skip


def _reason(error: DataError, folder: Path) -> str:
    """Return what is wrong with a file of a folder, with its name alone."""
    return str(error).partition(". ")[0].rstrip(".").replace(f"{folder}/", "")


def _dicom_files(files: Sequence[Path]) -> Iterator[Path]:
    """Yield the files that are DICOM by their suffix or, without one that is known, by their content."""
    for file in files:
        suffix = file.suffix.lower()
        if suffix == ".dcm" or (suffix not in (".csv", ".txt", ".json", ".xml") and identify(file) == "dicom"):
            yield file


def choose_ct(series: Sequence[Series], *, with_tumour: bool) -> Choice | None:
    """Return the CT with the most slices; ``None`` for a case without one.

    With a tumour, it is the one with the most slices among those that a segmentation refers to, or shares its frame of
    reference with; of several segmentations the one that marks the most.

    Raises:
        DataError: a segmentation that cannot be read; the message has neither path nor case.
    """
    scans = [one for one in series if one.modality == "CT" and not one.is_localizer]
    if not scans:
        return None
    if not with_tumour:
        return _longest(scans)
    marks = [_mark(file) for one in series if one.modality == "SEG" for file in one.files]
    owned = [(ct, own) for ct in scans if (own := [mark for mark in marks if _belongs(mark, ct, scans)])]
    if not owned:
        return _longest(scans)
    chosen = _longest([ct for ct, _ in owned], len(scans))
    own = next(own for ct, own in owned if ct is chosen.ct)
    largest = max(own, key=lambda mark: mark.pixels)
    by_frame = bool(largest.series) and chosen.ct.uid not in largest.series
    return Choice(chosen.ct, chosen.of, chosen.equal, region_of_segmentation(largest), len(own), by_frame)


def _mark(file: Path) -> Segmentation:
    """Return a segmentation; an error names its folder and file, without those of the case."""
    try:
        return read_segmentation(file)
    except DataError as error:
        raise DataError(f"{quote(file.parent.name)}: {_reason(error, file.parent)}") from error


def _longest(scans: Sequence[Series], of: int | None = None) -> Choice:
    most = max(one.slices for one in scans)
    best = sorted((one for one in scans if one.slices == most), key=lambda one: (one.number, one.uid))
    return Choice(best[0], of or len(scans), len(best) > 1)


def _belongs(mark: Segmentation, ct: Series, scans: Sequence[Series]) -> bool:
    """Return whether a segmentation is of a CT: of the series it names, else of the same frame of reference."""
    if named := {one.uid for one in scans} & set(mark.series):
        return ct.uid in named
    return bool(mark.frame_of_reference) and mark.frame_of_reference == ct.frame
