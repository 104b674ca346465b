"""The folders and files of a published set, however deep an archive unpacked them."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from medzoo.data.faults import join_some
from medzoo.errors import DataError

__all__ = ["OUTSIDE", "OUTSIDE_ADVICE", "leads_out", "one_file", "walk_tree"]

OUTSIDE = "links that lead out of the folder"
OUTSIDE_ADVICE = "Give a folder that holds their targets too, or copy the files."


def walk_tree(folder: Path, enter: Callable[[Path], bool] = lambda _: True) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder with the sorted names of its files.

    Hidden entries and ``__MACOSX`` are left out, and links to folders are not followed.

    Args:
        folder: where to start.
        enter: whether a folder below is looked into.

    Raises:
        DataError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: the folder cannot be listed ({error.strerror}). Ask for read access.")

    for where, folders, names in os.walk(folder, onerror=refuse):
        here = Path(where)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name != "__MACOSX" and not (here / name).is_symlink() and enter(here / name)
        )
        yield here, sorted(name for name in names if not name.startswith("."))


def leads_out(files: Sequence[Path], root: str) -> bool:
    """Whether a file, or the folder it is in, is a link to somewhere outside of ``root``, which has no link itself."""
    ends = [os.path.realpath(folder) for folder in {file.parent for file in files}]
    ends += [os.path.realpath(file) for file in files if file.is_symlink()]
    return not all(Path(end).is_relative_to(root) for end in ends)


def one_file(found: Iterable[Path], what: str, folder: Path) -> Path | None:
    """Return the only file of a name, or the first of identical copies; ``None`` where there is none.

    Raises:
        DataError: several that differ.
    """
    files = sorted(found, key=lambda path: (len(path.parts), path))
    if not files:
        return None
    if all(filecmp.cmp(files[0], other, shallow=False) for other in files[1:]):
        return files[0]
    listed = join_some([str(path.relative_to(folder)) for path in files], 4)
    raise DataError(f"{folder}: expected one {what}, found {len(files)} that differ: {listed}. Remove all but one.")
