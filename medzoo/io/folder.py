"""What a folder tree holds: single images, DICOM slices grouped into series, and files skipped with a reason."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medzoo.errors import DataError
from medzoo.io.dicom import header
from medzoo.io.dicom.pixels import load
from medzoo.io.files import MAX_VOXELS, existing, has_image_suffix, identify

__all__ = ["ScanItem", "group", "scan", "single_series"]

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
        warning: what is known against it from the files around it, such as slices that cannot be read.
    """

    paths: tuple[Path, ...]
    kind: _Kind
    reason: str
    label: str
    warning: str = ""


def scan(path: str | os.PathLike[str]) -> list[ScanItem]:
    """List the contents of a file or folder tree, sorted by path.

    DICOM slices are grouped by SeriesInstanceUID in whichever folder they are; projection X-rays and multi-frame files
    are single images. A damaged image is listed as an image, so that reading it reports what is wrong.

    Raises:
        DataError: the path cannot be opened.
    """
    root = existing(path)
    if not root.is_dir():
        return group([root], root.parent)
    files, skipped = _walk(root)
    return sorted(group(files, root) + skipped, key=lambda item: item.paths)


def group(files: Sequence[Path], root: Path) -> list[ScanItem]:
    """Classify files, with the slices of a DICOM series as one item; labels are relative to ``root``."""
    groups: dict[str | int, tuple[_Kind, str, list[Path]]] = {}  # by series UID; a number for each other file
    for file in files:
        kind, reason, uid = _classify(file)
        groups.setdefault(uid or len(groups), (kind, reason, []))[2].append(file)
    items = []
    for kind, reason, paths in groups.values():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        items.append(ScanItem(tuple(paths), "series" if more else kind, reason, _label(paths[0], root) + more))
    return items


def single_series(folder: Path) -> ScanItem:
    """Return the one DICOM series directly in a folder.

    Raises:
        DataError: there is none, or there are several.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    dicom = [file for file in files if file.stat().st_size and identify(file) == "dicom"]
    series = [item for item in group(dicom, folder) if item.kind != "skip"]
    if len(series) != 1:
        found = f"{len(series)} of them" if series else f"none among {len(files) - len(dicom)} other file(s)"
        raise DataError(
            f"{folder}: expected exactly one DICOM series, found {found}. "
            "Give a file, a folder with one series, or use medzoo.predict for a folder tree."
        )
    return series[0]


def _walk(root: Path) -> tuple[list[Path], list[ScanItem]]:
    """Return every file below a folder and each folder that cannot be listed; and what is skipped unopened."""
    found: list[Path] = []
    skipped: list[ScanItem] = []

    for folder, folders, names in os.walk(root, onerror=lambda error: found.append(Path(error.filename))):
        for name in sorted((*folders, *names)):
            path = Path(folder, name)
            linked = name in folders and path.is_symlink()
            if linked or name.startswith("."):
                reason = "hidden" if name.startswith(".") else "a link to a folder, which is not followed"
                skipped.append(ScanItem((path,), "skip", reason, _label(path, root)))
            elif name in names:
                found.append(path)
        folders[:] = sorted(n for n in folders if not n.startswith(".") and not Path(folder, n).is_symlink())
    return found, skipped


def _label(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _classify(file: Path) -> tuple[_Kind, str, str]:
    """Return the kind of a file, the reason to skip it, and the UID of the series that it is a slice of, or ``""``."""
    try:
        found = identify(existing(file)) if file.is_file() else "closed"
    except (DataError, OSError):  # an unreadable file may be an image, so reading it must report it; an empty one not
        empty = os.access(file, os.R_OK) and not has_image_suffix(file)
        return ("skip", "an empty file", "") if empty else ("image", "", "")
    if found == "" and not has_image_suffix(file):
        return "skip", "not an image file", ""
    if found != "dicom":
        return "image", "", ""
    try:
        ds = load(file, max_voxels=MAX_VOXELS, tags=header.SLICE_TAGS)
        with header.wrap_dicom_errors(file, "a DICOM header"):
            reason = _reason_to_skip(ds)
            return "skip" if reason else "image", reason, "" if reason else _series_uid(ds)
    except DataError:
        return "image", "", ""


def _reason_to_skip(ds: Any) -> str:
    if str(ds.file_meta.get("MediaStorageSOPClassUID") or "") == _MEDIA_DIRECTORY:
        return "a DICOMDIR"
    if kind := header.non_image_kind(ds):
        return kind
    return "a scout (LOCALIZER)" if "LOCALIZER" in [str(v).upper() for v in (ds.get("ImageType") or ())] else ""


def _series_uid(ds: Any) -> str:
    """Return the UID of the series that a file is a slice of, or ``""`` for an image of its own.

    CT, MR and PT without a position are slices, so that reading the series reports what is missing.
    """
    modality = header.modality_of(ds)
    if modality in header.PROJECTION_MODALITIES or header.frame_count(ds) > 1:
        return ""
    is_slice = modality in _VOLUME_MODALITIES or ds.get("ImagePositionPatient") is not None
    return str(ds.get("SeriesInstanceUID") or "") if is_slice else ""
