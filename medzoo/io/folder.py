"""What lies in a folder tree: pictures one by one, DICOM slices as series, and what is no image, with the reason."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medzoo.errors import DataError
from medzoo.io.dicom.header import PICTURES, modality, not_an_image
from medzoo.io.dicom.pixels import frames_of, load
from medzoo.io.files import MAX_VOXELS, existing, identify, looks_like_image, refusing

__all__ = ["Source", "group", "scan", "series_of"]

_TAGS = [
    "SOPClassUID",
    "Modality",
    "ImageType",
    "SeriesInstanceUID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
]
_VOLUMES = ("CT", "MR", "PT")
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class Source:
    """One thing to read, or to pass over.

    Attributes:
        paths: the file, or the files of a series.
        kind: ``"image"`` for one file, ``"series"`` for the slices of a volume, ``"skip"`` for what is no image.
        reason: why it is passed over; empty otherwise.
        label: what to call it: the path from the folder that was scanned, and how many files.
    """

    paths: tuple[Path, ...]
    kind: Literal["image", "series", "skip"]
    reason: str
    label: str


def scan(path: str | os.PathLike[str]) -> list[Source]:
    """List what a file or folder tree holds, in the order of the paths.

    DICOM slices are grouped by SeriesInstanceUID wherever they lie; projection X-rays and multi-frame files stand
    alone. A broken image is listed as an image, so that reading it says what is wrong.

    Raises:
        DataError: the path cannot be opened.
    """
    root = existing(path)
    if not root.is_dir():
        return [_look(root, root.parent)[0]]
    files, passed = _files(root)
    return sorted(group(files, root) + passed, key=lambda source: source.paths)


def group(files: Sequence[Path], root: Path) -> list[Source]:
    """Say what each of some files is, with the slices of a DICOM series together."""
    found: list[Source] = []
    series: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        source, uid = _look(file, root)
        if uid:
            series[uid].append(file)
        else:
            found.append(source)
    for slices in series.values():
        label = _label(slices[0], root)
        if len(slices) == 1:
            found.append(Source(tuple(slices), "image", "", label))
        else:
            found.append(Source(tuple(slices), "series", "", f"{label} and {len(slices) - 1} more"))
    order = {file: place for place, file in enumerate(files)}
    return sorted(found, key=lambda source: order[source.paths[0]])


def series_of(folder: Path) -> tuple[Path, ...]:
    """Return the files of the one DICOM series that lies directly in a folder.

    Raises:
        DataError: none, or several.
    """
    series: dict[str, list[Path]] = defaultdict(list)
    others: list[str] = []
    for file in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        if file.stat().st_size == 0 or identify(file) != "dicom":
            others.append(file.name)
            continue
        source, uid = _look(file, folder)
        if source.kind != "skip":
            series[uid or file.name].append(file)
    if len(series) != 1:
        found = f"{len(series)} of them" if series else f"none among {len(others)} other file(s)"
        raise DataError(
            f"{folder}: expected exactly one DICOM series, found {found}. "
            "Give a file, a folder with one series, or use medzoo.predict for a whole tree."
        )
    return tuple(next(iter(series.values())))


def _files(root: Path) -> tuple[list[Path], list[Source]]:
    """Return every file below a folder, each folder that cannot be listed, and what is passed over unseen."""
    found: list[Path] = []
    passed: list[Source] = []

    def closed(error: OSError) -> None:
        found.append(Path(error.filename))

    def skip(path: Path, reason: str) -> None:
        passed.append(Source((path,), "skip", reason, _label(path, root)))

    for place, folders, names in os.walk(root, onerror=closed):
        here = Path(place)
        for name in sorted((*folders, *names)):
            if name.startswith("."):
                skip(here / name, "hidden")
            elif name in folders and (here / name).is_symlink():
                skip(here / name, "a link to a folder, which is not followed")
        folders[:] = sorted(n for n in folders if not n.startswith(".") and not (here / n).is_symlink())
        found.extend(here / name for name in sorted(names) if not name.startswith("."))
    return found, passed


def _label(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _look(file: Path, root: Path) -> tuple[Source, str]:
    """Return a file as a source by itself, and the series it is a slice of, if it is one."""
    label = _label(file, root)

    def source(kind: Literal["image", "skip"], reason: str = "") -> Source:
        return Source((file,), kind, reason, label)

    try:
        kind = identify(existing(file)) if file.is_file() else "closed"
    except (DataError, OSError):  # no access may hide an image, so reading it is to say so; an empty file hides nothing
        empty = os.access(file, os.R_OK) and not looks_like_image(file)
        return source("skip", "an empty file") if empty else source("image"), ""
    if kind == "":
        return source("image") if looks_like_image(file) else source("skip", "not an image file"), ""
    if kind != "dicom":
        return source("image"), ""
    try:
        ds = load(file, max_voxels=MAX_VOXELS, tags=_TAGS)
        with refusing(file, "a DICOM header"):
            return _look_at_dicom(ds, source)
    except DataError:
        return source("image"), ""


def _look_at_dicom(ds: Any, source: Any) -> tuple[Source, str]:
    if str(ds.file_meta.get("MediaStorageSOPClassUID") or "") == _MEDIA_DIRECTORY:
        return source("skip", "a DICOMDIR"), ""
    what = not_an_image(ds)
    if what:
        return source("skip", what), ""
    if "LOCALIZER" in [str(v).upper() for v in (ds.get("ImageType") or ())]:
        return source("skip", "a scout (LOCALIZER)"), ""
    return source("image"), str(ds.get("SeriesInstanceUID") or "") if _is_slice(ds) else ""


def _is_slice(ds: Any) -> bool:
    """Say whether a file is one slice of a volume; CT without its place counts, so that reading it says what lacks."""
    if modality(ds) in PICTURES or frames_of(ds) > 1:
        return False
    return modality(ds) in _VOLUMES or ds.get("ImagePositionPatient") is not None
