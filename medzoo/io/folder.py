"""What a folder tree holds: single images, DICOM slices grouped into volumes, and files skipped with a reason."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from medzoo.errors import DataError
from medzoo.io.classify import Found, classify
from medzoo.io.dicom.grouping import Volume, volumes_of
from medzoo.io.dicom.slices import Slice
from medzoo.io.dicom.stacks import describe
from medzoo.io.files import existing, identify, unknown_format
from medzoo.io.lost import assign_lost, is_temporary_copy, slices_without_series
from medzoo.io.options import ReadOptions

__all__ = ["ScanItem", "group", "scan", "scan_together", "single_series"]


@dataclass(frozen=True)
class ScanItem:
    """One image, volume or skipped file that a scan found.

    Attributes:
        paths: the file, or the files of a volume.
        kind: ``"image"`` for one file, ``"series"`` for the slices of a volume, ``"lost"`` for a file that cannot be
            read and is probably a slice of a volume beside it, ``"skip"`` for what is not an image.
        reason: why it is skipped or lost; empty otherwise.
        label: its name: the path relative to the scanned folder, and how many files.
        warning: what is known against it from the files around it, such as slices that cannot be read.
        stack: the index of a stack in a multi-frame file of several; ``None`` for other items.
        name: what distinguishes it from the other volumes of its series or file; empty for the only one.
        headers: of its DICOM files, for :func:`~medzoo.io.read.read_scanned`.
    """

    paths: tuple[Path, ...]
    kind: Literal["image", "series", "lost", "skip"]
    reason: str
    label: str
    warning: str = ""
    stack: int | None = None
    name: str = ""
    headers: tuple[Slice, ...] = field(default=(), compare=False, repr=False)


def scan(path: str | os.PathLike[str], options: ReadOptions | None = None) -> list[ScanItem]:
    """List the contents of a file or folder tree, sorted by path.

    DICOM slices are grouped into volumes in whichever folder they are: by patient, study, series, frame of reference,
    size, direction and pixel spacing, and by what distinguishes stacks, such as echoes and phases. Projection X-rays
    and multi-frame files are single images. A damaged image is listed as an image, so that reading it reports what is
    wrong, unless it is probably a slice of a volume beside it, which then has a warning.

    Args:
        path: the file or folder.
        options: where these read several stacks as channels, the stacks are one item.

    Raises:
        DataError: the path cannot be opened.
    """
    root = existing(path)
    if not root.is_dir():
        return group([root], root.parent, options)
    (found,) = scan_together([root], options)
    return found


def scan_together(
    sources: Sequence[Path | Sequence[Path]],
    options: ReadOptions | None = None,
    known: Mapping[Path, Found] | None = None,
) -> list[list[ScanItem]]:
    """Return what :func:`scan` returns for each source, with the slices of all grouped into volumes together.

    A volume is listed with the source of its first slice. A folder that is a copy of another is grouped by itself.

    Args:
        sources: folders, and lists of files; those of a list stay in its order.
        options: as for :func:`scan`.
        known: files that were classified already.

    Raises:
        DataError: a folder cannot be opened.
    """
    files: list[Path] = []
    source_of: list[int] = []
    found: list[list[tuple[Path, ScanItem]]] = [[] for _ in sources]
    hidden: list[Path] = []
    folders: dict[Path, int] = {}
    walked: dict[frozenset[tuple[Path, int]], Path] = {}
    for i, source in enumerate(sources):
        if not isinstance(source, Path):
            own = list(source)
        elif folders.setdefault(existing(source).resolve(), i) != i:
            continue
        else:
            own, skipped = _walk(source)
            found[i] += [(item.paths[0], item) for item in skipped]
            if _is_copy(source, own, walked):
                found[i] += [(path, item) for _, path, item in _group(own, source, options, [])]
                continue
            hidden += [item.paths[0] for item in skipped]
        files += own
        source_of += [i] * len(own)
    root = sources[0] if len(sources) == 1 and isinstance(sources[0], Path) else Path()
    for at, path, item in _group(files, root, options, hidden, dict(known or {})):
        found[source_of[at]].append((path, item))
    for i, source in enumerate(sources):
        if isinstance(source, Path):  # one that is given again has the same
            found[i] = sorted(found[folders[source.resolve()]], key=lambda pair: pair[0])
    return [[item for _, item in own] for own in found]


def _is_copy(folder: Path, files: Sequence[Path], walked: dict[frozenset[tuple[Path, int]], Path]) -> bool:
    """Return whether a folder has the same files as one of those before it, to which it is added otherwise."""
    try:
        listing = frozenset((path.relative_to(folder), path.stat().st_size) for path in files)
        first = walked.setdefault(listing, folder)
        return bool(listing) and first != folder and all(filecmp.cmp(first / n, folder / n, False) for n, _ in listing)
    except OSError:  # reading the file reports it
        return False


def group(files: Sequence[Path], root: Path, options: ReadOptions | None = None) -> list[ScanItem]:
    """Classify files, with the slices of a volume as one item; labels are relative to ``root``."""
    return [item for _, _, item in _group(files, root, options)]


def single_series(folder: Path, options: ReadOptions) -> ScanItem:
    """Return the one DICOM image directly in a folder, or the one that ``options.stack`` chooses.

    Slices of it that are in folders below are part of it.

    Raises:
        DataError: there is none, or there are several and none is chosen.
    """
    known: dict[Path, Found] = {}
    entries = sorted(folder.iterdir())
    hidden = [p for p in entries if p.name.startswith(".")]
    files = [p for p in entries if not p.is_dir() and p not in hidden]
    found = _dicom_items(item for _, _, item in _group(files, folder, options, hidden, known))
    if found and any(p.is_dir() and p not in hidden for p in entries):
        (below,) = scan_together([folder], options, known)
        found = _dicom_items(item for item in below if any(path.parent == folder for path in item.paths))
    if len(found) == 1 and found[0].kind == "series":
        return replace(found[0], stack=options.stack)  # reading it counts its stacks
    if len(found) == 1 and options.stack in (None, 0):
        return found[0]
    if len(found) > 1 and options.stack is not None and options.stack < len(found):
        return found[options.stack]
    if not found or options.stack is None:
        listed = describe([", ".join(filter(None, (item.label, item.name))) for item in found])
        count = f"{len(found)} of them: {listed}" if found else f"none among {len(files)} other file(s)"
        choose = f"Choose one with stack=0 to {len(found) - 1}, or give" if found else "Give"
        raise DataError(
            f"{folder}: expected exactly one DICOM series, found {count}. "
            f"{choose} a file, a folder with one series, or use medzoo.predict for a folder tree."
            f"{'' if found else _cause(files)}"
        )
    raise DataError(f"{folder}: expected stack below {len(found)}, got stack={options.stack}. Count from 0.")


def _cause(files: Sequence[Path]) -> str:
    """Return why files that may be DICOM are not read; ``""`` if there are none."""
    for one in (classify(file, ReadOptions()) for file in files):
        if one.kind == "image" and not one.readable:
            try:
                return f" {unknown_format(one.path)}" if not identify(existing(one.path)) else ""
            except DataError as error:
                return f" {error}"
    return ""


def _dicom_items(items: Iterable[ScanItem]) -> list[ScanItem]:
    return [item for item in items if item.kind in ("image", "series") and _is_dicom(item)]


def _is_dicom(item: ScanItem) -> bool:
    try:
        return len(item.paths) > 1 or identify(item.paths[0]) == "dicom"
    except DataError:  # a file that cannot be opened
        return False


def _group(
    files: Sequence[Path],
    root: Path,
    options: ReadOptions | None,
    hidden: Sequence[Path] = (),
    known: dict[Path, Found] | None = None,
) -> list[tuple[int, Path, ScanItem]]:
    """Return the items, each with the index of its first file and the path to sort it by.

    The volumes of a series stay in the order of their values.

    Args:
        files: the files.
        root: the folder that labels are relative to.
        options: whether stacks are read as channels.
        hidden: hidden files, which may be unfinished copies of slices.
        known: what files are, with which those that are not in it are added to it.
    """
    classified = {} if known is None else known
    for file in files:
        if file not in classified:
            classified[file] = classify(file, options or ReadOptions())
    found = _without_captures([classified[file] for file in files])
    slices = list({one.path: one.header for one in found if one.header is not None and one.is_slice}.values())
    others = [one.header for one in found if one.header is not None and not one.is_slice and one.readable]
    volumes = volumes_of(slices, others, options or ReadOptions())
    unfinished = [Found(path, "skip", "hidden", readable=False) for path in hidden if is_temporary_copy(path)]
    lost, warnings = assign_lost([*(one for one in found if not one.readable), *unfinished], volumes)
    for path_warnings in (slices_without_series(found, volumes), warnings):
        volumes = [volume.with_warning(path_warnings.get(i, "")) for i, volume in enumerate(volumes)]
    headers = {one.path: one for one in slices}
    by_series: dict[str, list[Volume]] = {}
    for volume in volumes:
        by_series.setdefault(volume.series, []).append(volume)
    items: list[tuple[int, Path, ScanItem]] = []
    for at, one in enumerate(found):
        if not one.is_slice or one.header is None:
            items += [(at, one.path, item) for item in _single_items(one, lost.get(one.path, ""), root)]
            continue
        own = by_series.pop(one.header.of("series"), [])
        first = min((volume.paths[0] for volume in own), default=one.path)
        items += [(at, first, _volume_item(volume, root, headers)) for volume in own]
    return items


def _without_captures(found: Sequence[Found]) -> list[Found]:
    """Return what was found; the secondary captures of a series that has slices with positions are no part of it."""
    placed = {one.header.of("series") for one in found if one.is_slice and one.header and one.header.positioned}
    return [
        replace(one, kind="skip", reason="a secondary capture", is_slice=False, stacks=())
        if one.capture and one.header is not None and one.header.of("series") in placed
        else one
        for one in found
    ]


def _volume_item(volume: Volume, root: Path, headers: Mapping[Path, Slice]) -> ScanItem:
    more = f" and {len(volume.paths) - 1} more" if len(volume.paths) > 1 else ""
    label = _label(volume.paths[0], root) + more
    kind: Literal["series", "image"] = "series" if more else "image"
    own = tuple(headers[path] for path in volume.paths)
    return ScanItem(volume.paths, kind, "", label, volume.warning, name=volume.name, headers=own)


def _single_items(one: Found, lost: str, root: Path) -> list[ScanItem]:
    kind: Literal["image", "lost", "skip"] = "lost" if lost else one.kind
    headers = (one.header,) if one.header else ()
    item = ScanItem((one.path,), kind, lost or one.reason, _label(one.path, root), headers=headers)
    if len(one.stacks) < 2:
        return [item]
    return [replace(item, stack=i, name=name) for i, name in enumerate(one.stacks)]


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
