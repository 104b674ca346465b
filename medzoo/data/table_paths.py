"""The images that a table names: each is found below one folder, and nothing is fetched or followed out of it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from medzoo.data.faults import Faults, quote
from medzoo.errors import DataError
from medzoo.io.files import existing, identify

__all__ = ["ADVICE", "absolute", "fault_of_file", "find_images"]

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|file:", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PROBED = 50  # files of a folder that are opened to find a DICOM file

ADVICE = {
    "rows without an image": "Give a path in each row.",
    "addresses": "Nothing is fetched: download the images, and give their paths.",
    "names with a control character, such as a line break or NUL": "Correct the names.",
    "Windows paths with a drive": "Give paths relative to the folder of the images.",
    "paths that lead out of {root}": "Give root= a folder that holds all images.",
    "links that lead out of {root}": "Give root= a folder that holds their targets too, or copy the files.",
    "images that do not exist": "Looked in {root}: check root= and the names.",
    "empty files (0 bytes)": "Copy them again from their source.",
    "pipes or devices": "Copy their content to files.",
    "files that cannot be opened": "Ask for read access.",
    "folders without a DICOM file": "Give files, or folders with one DICOM series each.",
}
"""What is wrong with an image, and what to do."""

MISSING = "images that do not exist"


def find_images(
    names: Sequence[str], root: str | os.PathLike[str], faults: Faults, what: str = "images",
    rows: Sequence[int] | None = None,
) -> list[str]:  # fmt: skip
    """Return the path of each image with links resolved, ``""`` where it is a fault, which is added.

    Args:
        names: paths relative to ``root``, or absolute ones that are in it. A backslash is a separator where nothing
            is found otherwise. An image is a file, or a folder with DICOM files; it is not opened.
        root: the folder of the images.
        faults: where to add the rows whose image is not found.
        what: what they are called in messages.
        rows: the row of each name; ``None`` for one name in each row.
    """
    at = range(len(names)) if rows is None else rows
    folder = existing(root)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected root to be a folder, found a file. Give the folder of the images.")
    finder = _Finder(folder)
    paths: list[str] = []
    found: dict[str, list[tuple[int, str]]] = {problem: [] for problem in ADVICE}
    for row, name in zip(at, names, strict=True):
        path, problem = finder.find(name)
        if problem:
            near = finder.near(name) if problem == MISSING and len(found[problem]) < 10 else ""
            found[problem].append((row, quote(name) + near if name else ""))
        paths.append("" if problem else path)
    for problem, places in found.items():
        title, advice = (text.format(root=folder) for text in (problem.replace("images", what), ADVICE[problem]))
        faults.add_rows(title, places, advice)
    return paths


def absolute(path: Path) -> str:
    """Return an absolute path, of the file that a link points to."""
    return str(path.resolve() if path.is_symlink() else path.absolute())


def fault_of_file(path: str, status: os.stat_result) -> str:
    """Return what is wrong with a file or folder that exists, by its entry alone; ``""`` if nothing is."""
    if stat.S_ISDIR(status.st_mode):
        return "" if _has_dicom(path) else "folders without a DICOM file"
    if not stat.S_ISREG(status.st_mode):
        return "pipes or devices"
    if status.st_size == 0:
        return "empty files (0 bytes)"
    return "" if os.access(path, os.R_OK) else "files that cannot be opened"


def _has_dicom(folder: str) -> bool:
    """Return whether one of the first files of a folder is DICOM."""
    try:
        with os.scandir(folder) as entries:
            files = [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    except OSError:
        return False
    for file in sorted(files)[:_PROBED]:
        try:
            if identify(Path(file)) == "dicom":
                return True
        except DataError:  # a file that cannot be opened
            continue
    return False


class _Finder:
    """Finds files below a folder; the folders in between are resolved once."""

    def __init__(self, root: Path) -> None:
        self.given = os.path.abspath(root)  # noqa: PTH100  # links are not resolved here
        self.root = os.path.realpath(root)
        self._folders: dict[str, str] = {}

    def find(self, name: str) -> tuple[str, str]:
        """Return the path, and what is wrong with it."""
        if problem := _fault_of_name(name):
            return "", problem
        path, problem = self._find(name)
        if problem == MISSING and "\\" in name:
            other = self._find(name.replace("\\", "/"))
            return other if other[1] != MISSING else (path, problem)
        return path, problem

    def near(self, name: str) -> str:
        """Return a note on a file of another suffix or other capitals than a missing one; ``""`` if there is none."""
        path = Path(self.root, name.replace("\\", "/"))
        try:
            names = [entry.name for entry in os.scandir(path.parent)]
        except (OSError, ValueError):
            return ""
        same = [n for n in names if n.lower() == path.name.lower()]
        same += [n for n in names if Path(n).stem.lower() in (path.stem.lower(), path.name.lower())]
        return f", there is {quote(same[0])}" if same else ""

    def _find(self, name: str) -> tuple[str, str]:
        path = os.path.join(self.root, name)  # noqa: PTH118  # many rows: os.path is several times faster
        plain = os.path.normpath(path)
        if not _is_below(plain, self.root):
            if not _is_below(plain, self.given):
                return "", "paths that lead out of {root}"
            path = os.path.join(self.root, os.path.relpath(plain, self.given))  # noqa: PTH118
        folder, last = os.path.split(path)
        if last in ("", ".", ".."):
            folder, last = os.path.split(os.path.realpath(path))
        if (known := self._folders.get(folder)) is None:
            known = self._folders[folder] = os.path.realpath(folder)
        path = os.path.join(known, last)  # noqa: PTH118
        try:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                path = os.path.realpath(path)
                status = os.stat(path)  # noqa: PTH116
        except OSError as error:
            return "", "files that cannot be opened" if isinstance(error, PermissionError) else MISSING
        if not _is_below(path, self.root):
            return "", "links that lead out of {root}"
        return path, fault_of_file(path, status)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _fault_of_name(name: str) -> str:
    if not name:
        return "rows without an image"
    if _CONTROL.search(name):
        return "names with a control character, such as a line break or NUL"
    if _ADDRESS.match(name):
        return "addresses"
    return "Windows paths with a drive" if _DRIVE.match(name) else ""
