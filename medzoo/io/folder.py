"""What a folder tree holds: single images, DICOM slices grouped into series, and files skipped with a reason."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medzoo.errors import DataError
from medzoo.io.dicom.header import PROJECTION_MODALITIES, frame_count, modality_of, non_image_kind
from medzoo.io.dicom.pixels import load
from medzoo.io.files import MAX_VOXELS, existing, has_image_suffix, identify, wrap_read_errors

__all__ = ["ScanItem", "group", "scan", "single_series"]

_TAGS = [
    "SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "Rows", "Columns", "NumberOfFrames",
    "ImagePositionPatient",
]  # fmt: skip
_VOLUME_MODALITIES = ("CT", "MR", "PT")
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_Kind = Literal["image", "series", "skip"]


@dataclass(frozen=True)
class ScanItem:
    """One image, series or skipped file that a scan found.

    Attributes:
        paths: the file, or the files of a series.
        kind: ``"image"`` for one file, ``"series"`` for the slices of a volume, ``"skip"`` for what is not an image.
        reason: why it is skipped; empty otherwise.
        label: its name: the path relative to the scanned folder, and how many files.
    """

    paths: tuple[Path, ...]
    kind: _Kind
    reason: str
    label: str


def scan(path: str | os.PathLike[str]) -> list[ScanItem]:
    """List the contents of a file or folder tree, sorted by path.

    DICOM slices are grouped by SeriesInstanceUID in whichever folder they are; projection X-rays and multi-frame files
    are single images. A damaged image is listed as an image, so that reading it reports what is wrong.

    Raises:
        DataError: the path cannot be opened.
    """
    root = existing(path)
    if not root.is_dir():
        return [_classify(root, root.parent)[0]]
    files, skipped = _walk(root)
    return sorted(group(files, root) + skipped, key=lambda item: item.paths)


def group(files: Sequence[Path], root: Path) -> list[ScanItem]:
    """Classify files, with the slices of a DICOM series as one item; labels are relative to ``root``."""
    found: list[ScanItem] = []
    series: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        item, uid = _classify(file, root)
        if uid:
            series[uid].append(file)
        else:
            found.append(item)
    for slices in series.values():
        label = _label(slices[0], root)
        if len(slices) == 1:
            found.append(ScanItem(tuple(slices), "image", "", label))
        else:
            found.append(ScanItem(tuple(slices), "series", "", f"{label} and {len(slices) - 1} more"))
    position = {file: i for i, file in enumerate(files)}
    return sorted(found, key=lambda item: position[item.paths[0]])


def single_series(folder: Path) -> tuple[Path, ...]:
    """Return the files of the one DICOM series directly in a folder.

    Raises:
        DataError: there is none, or there are several.
    """
    series: dict[str, list[Path]] = defaultdict(list)
    others = 0
    for file in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        if file.stat().st_size == 0 or identify(file) != "dicom":
            others += 1
            continue
        item, uid = _classify(file, folder)
        if item.kind != "skip":
            series[uid or file.name].append(file)
    if len(series) != 1:
        found = f"{len(series)} of them" if series else f"none among {others} other file(s)"
        raise DataError(
            f"{folder}: expected exactly one DICOM series, found {found}. "
            "Give a file, a folder with one series, or use medzoo.predict for a folder tree."
        )
    return tuple(next(iter(series.values())))


def _walk(root: Path) -> tuple[list[Path], list[ScanItem]]:
    """Return every file below a folder and each folder that cannot be listed; and what is skipped unopened."""
    found: list[Path] = []
    skipped: list[ScanItem] = []

    def unreadable(error: OSError) -> None:
        found.append(Path(error.filename))

    for folder, folders, names in os.walk(root, onerror=unreadable):
        here = Path(folder)
        for name in sorted((*folders, *names)):
            reason = ""
            if name.startswith("."):
                reason = "hidden"
            elif name in folders and (here / name).is_symlink():
                reason = "a link to a folder, which is not followed"
            if reason:
                skipped.append(ScanItem((here / name,), "skip", reason, _label(here / name, root)))
        folders[:] = sorted(n for n in folders if not n.startswith(".") and not (here / n).is_symlink())
        found.extend(here / name for name in sorted(names) if not name.startswith("."))
    return found, skipped


def _label(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _classify(file: Path, root: Path) -> tuple[ScanItem, str]:
    """Return the item of one file, and the UID of the series that it is a slice of, or an empty string."""

    def item(kind: _Kind, reason: str = "") -> ScanItem:
        return ScanItem((file,), kind, reason, _label(file, root))

    try:
        kind = identify(existing(file)) if file.is_file() else "closed"
    except (DataError, OSError):  # an unreadable file may be an image, so reading it must report it; an empty one not
        empty = os.access(file, os.R_OK) and not has_image_suffix(file)
        return item("skip", "an empty file") if empty else item("image"), ""
    if kind == "":
        return item("image") if has_image_suffix(file) else item("skip", "not an image file"), ""
    if kind != "dicom":
        return item("image"), ""
    try:
        ds = load(file, max_voxels=MAX_VOXELS, tags=_TAGS)
        with wrap_read_errors(file, "a DICOM header"):
            return _classify_dicom(ds, item)
    except DataError:
        return item("image"), ""


def _classify_dicom(ds: Any, item: Callable[..., ScanItem]) -> tuple[ScanItem, str]:
    if str(ds.file_meta.get("MediaStorageSOPClassUID") or "") == _MEDIA_DIRECTORY:
        return item("skip", "a DICOMDIR"), ""
    kind = non_image_kind(ds)
    if kind:
        return item("skip", kind), ""
    if "LOCALIZER" in [str(v).upper() for v in (ds.get("ImageType") or ())]:
        return item("skip", "a scout (LOCALIZER)"), ""
    return item("image"), str(ds.get("SeriesInstanceUID") or "") if _is_slice(ds) else ""


def _is_slice(ds: Any) -> bool:
    """Return whether a file is one slice of a volume.

    CT, MR and PT without a position count, so that reading the series reports what is missing.
    """
    if modality_of(ds) in PROJECTION_MODALITIES or frame_count(ds) > 1:
        return False
    return modality_of(ds) in _VOLUME_MODALITIES or ds.get("ImagePositionPatient") is not None
