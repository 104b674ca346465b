"""Files that cannot be read and may be slices of a series beside them: empty, cut, without preamble, not readable."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medzoo.io.classify import Found, file_suffix, first_bytes, partial_header, starts_like_dicom
from medzoo.io.dicom.grouping import Volume

__all__ = ["assign_lost", "is_temporary_copy", "slices_without_series"]

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_NEVER = re.compile(
    r"(read[ _-]?me|licen[cs]e|notes?|changelog|authors|copying|version|index|info|manifest|contents|"
    r"dicomdir|thumbs|desktop|autorun|ds_store|md5sums?|sha\d+sums?|lockfile)\b.*",
    re.IGNORECASE,
)
_OTHER_START = (
    b"GIF8", b"BM", b"PK\x03\x04", b"%PDF", b"\x89HDF", b"NRRD", b"\x1f\x8b", b"RIFF", b"\x7fELF", b"MZ", b"SQLite",
    b"\xd0\xcf\x11\xe0", b"#!",
)  # fmt: skip
_COMPRESSED = re.compile(r"(.+)\.(?:gz|bz2|xz|zst|part|partial|crdownload|filepart|tmp)", re.IGNORECASE)
_TEMPORARY = re.compile(r"\.(.+)\.[A-Za-z0-9]{6}")  # of a copy by rsync that has not ended
_LISTED = 3


def assign_lost(unreadable: Sequence[Found], volumes: Sequence[Volume]) -> tuple[dict[Path, str], dict[int, str]]:
    """Return the files that are probably slices of the volumes, each with a reason, and the warning of each volume.

    A damaged file whose header still has a SeriesInstanceUID belongs to that series. Any other belongs to the volumes
    with slices in its folder, to those whose slices are named alike if there are such.
    """
    lost: dict[Path, str] = {}
    by_volume: dict[int, list[Path]] = {}
    neighbours = _Neighbourhood(volumes) if unreadable and volumes else None
    by_series: dict[str, list[int]] = {}
    for i, volume in enumerate(volumes):
        by_series.setdefault(volume.series, []).append(i)
    for one in unreadable if neighbours else ():
        near = neighbours.of(one.path) if neighbours else {}
        series, image = (one.header.of("series"), True) if one.header else ("", True)
        if not series and (near or one.kind == "image"):
            head = first_bytes(one.path)
            if head[128:132] == b"DICM" or starts_like_dicom(head):
                series, image = partial_header(one.path)
        if not image:
            continue
        if series:
            targets = by_series.get(series) or [
                i
                for i in near
                if volumes[i].series.startswith(series)  # the UID itself may be cut
            ]
        else:
            targets = [i for i, names in near.items() if names.matches_name(one.path)]
            targets = targets or [i for i, names in near.items() if names.could_hold(one.path)]
        if targets:
            why = one.reason if one.reason == "an empty file" else "it cannot be read"
            lost[one.path] = f"probably a slice of the series beside it, but {why}"
        for i in targets:
            by_volume.setdefault(i, []).append(one.path)
    return lost, {i: _warning(paths, "cannot be read") for i, paths in by_volume.items()}


def slices_without_series(found: Sequence[Found], volumes: Sequence[Volume]) -> dict[int, str]:
    """Return a warning for each volume beside slices without a SeriesInstanceUID, which are images of their own."""
    nameless = [
        one.path for one in found
        if one.header is not None and one.readable and one.kind == "image" and not one.is_slice
        and not one.header.of("series") and one.header.positioned
    ]  # fmt: skip
    by_volume: dict[int, list[Path]] = {}
    neighbours = _Neighbourhood(volumes) if nameless and volumes else None
    for path in nameless if neighbours else ():
        for i in neighbours.of(path) if neighbours else ():
            by_volume.setdefault(i, []).append(path)
    return {i: _warning(paths, "have no SeriesInstanceUID") for i, paths in by_volume.items()}


def is_temporary_copy(path: Path) -> bool:
    """Return whether a hidden file is a copy that did not end, of a file that is not there."""
    return bool(_TEMPORARY.fullmatch(path.name) and _name_of_copy(path)) and path.is_file()


def _name_of_copy(path: Path) -> str:
    """Return the name of the file that this is a compressed or unfinished copy of; ``""`` if that is there itself."""
    found = _TEMPORARY.fullmatch(path.name) or _COMPRESSED.fullmatch(path.name)
    return found[1] if found and not path.with_name(found[1]).exists() else ""


class _Neighbourhood:
    """The names of the slices of each volume in each folder."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self.folders: dict[Path, dict[int, _Names]] = {}
        self.alike: dict[str, dict[int, _Names]] = {}  # by the pattern of the folder, for a series with many folders
        for i, volume in enumerate(volumes):
            for path in volume.paths:
                self.folders.setdefault(path.parent, {}).setdefault(i, _Names()).add(path)
            if len({path.parent for path in volume.paths}) > 1:
                for path in volume.paths:
                    self.alike.setdefault(_pattern(str(path.parent)), {}).setdefault(i, _Names()).add(path)

    def of(self, path: Path) -> dict[int, _Names]:
        """Return the volumes with slices in the folder of a file, or spread over folders that are named like it."""
        return self.folders.get(path.parent) or self.alike.get(_pattern(str(path.parent)), {})


@dataclass
class _Names:
    """The names of the slices of one volume that are in one folder."""

    patterns: set[str] = field(default_factory=set)
    suffixes: set[str] = field(default_factory=set)
    lengths: set[int] = field(default_factory=set)
    lettered: bool = True

    def add(self, path: Path) -> None:
        self.patterns.add(_pattern(path.name))
        self.suffixes.add(file_suffix(path))
        self.lengths.add(len(path.name))
        self.lettered &= path.name.isalpha()

    def matches_name(self, path: Path) -> bool:
        """Return whether a file is named like the slices: the same but for its digits."""
        if _NEVER.fullmatch(path.name):
            return False
        lettered = self.lettered and path.name.isalpha() and len(path.name) in self.lengths
        return lettered or _pattern(path.name) in self.patterns or _pattern(_name_of_copy(path)) in self.patterns

    def could_hold(self, path: Path) -> bool:
        """Return whether a file that cannot be read as any format looks like a slice."""
        if self.matches_name(path):
            return True
        name = path.name.lower()
        if _NEVER.fullmatch(name):
            return False
        if name.endswith(_DICOM_SUFFIXES):
            return True
        head = first_bytes(path)
        if head[128:132] == b"DICM" or starts_like_dicom(head):
            return True
        if file_suffix(path) not in self.suffixes or head.startswith(_OTHER_START):
            return False
        return not _is_text(head) if head else bool(file_suffix(path))


def _warning(paths: Iterable[Path], what: str) -> str:
    """Return the warning about files beside a series: the first few by name, and how many."""
    names = sorted(path.name for path in paths)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    files = "1 file" if len(names) == 1 else f"{len(names)} files"
    return f"{files} beside the slices {what}: {', '.join(names[:_LISTED])}{more}. Slices may be missing."


def _pattern(name: str) -> str:
    """Return a name with each number replaced: of digits, a UID, or a long hexadecimal number."""
    text = re.sub(r"(?=[0-9a-fA-F-]*\d)(?<![0-9a-zA-Z])[0-9a-fA-F-]{8,}(?![0-9a-zA-Z])", "#", name)
    text = re.sub(r"\d+", "#", text)
    return re.sub(r"#(?:[.]#)+", "#", text)


def _is_text(head: bytes) -> bool:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return True
    for end in range(4):  # a character may be cut at the end
        try:
            text = head[: len(head) - end].decode()
        except UnicodeDecodeError:
            continue
        return all(c.isprintable() or c in "\t\r\n\f\x1b\ufeff" for c in text)
    return sum(32 <= byte < 127 or byte in (9, 10, 13) for byte in head) > 0.95 * len(head)
