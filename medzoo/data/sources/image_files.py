"""The files of a published set: where its folder is, which images are there, and the rows that have none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from medzoo.data.columns import Columns
from medzoo.data.faults import join_some, quote
from medzoo.data.table_paths import find_images
from medzoo.errors import DataError, did_you_mean
from medzoo.io.files import existing

__all__ = ["folder_with", "index_images", "match_images", "need_columns"]


def folder_with(folder: Path, files: Sequence[str], layout: Sequence[str]) -> Path:
    """Return the folder that has one of some files: the given one, or the only one in it that has.

    Raises:
        DataError: none has, or several.
    """
    if not existing(folder).is_dir():
        raise DataError(f"{folder}: expected the folder of the set, found a file. Unpack it, and give the folder.")
    if any((folder / name).is_file() for name in files):
        return folder
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != "__MACOSX")
    below = [entry for entry in entries if entry.is_dir() and any((entry / name).is_file() for name in files)]
    if len(below) == 1:
        return below[0]
    found = join_some([entry.name for entry in below or entries]) or "nothing"
    several = " in several folders" * (len(below) > 1)
    raise DataError(
        f"{folder}: expected {' or '.join(files)}, found {found}{several}. The set is: {'; '.join(layout)}."
    )


def need_columns(columns: Columns, names: Iterable[str]) -> None:
    """Raise a DataError unless the columns are there."""
    missing = [name for name in names if name not in columns.values]
    if missing:
        near = "".join(did_you_mean(name, columns.values) for name in missing)
        wanted, found = join_some(list(map(quote, missing))), join_some(list(map(quote, columns.values)), 40)
        raise DataError(
            f"{columns.faults.source}: expected the column{'s' * (len(missing) > 1)} {wanted}, found {found}."
            f"{near} Take the file as it is published."
        )


def index_images(root: Path, folders: Iterable[Path], suffixes: tuple[str, ...]) -> tuple[dict[str, str], int]:
    """Return the path relative to ``root`` of each image in some folders by its name, and how many names occur again.

    The first of several files of one name is taken. Hidden files, such as ``._x.png`` of macOS, are left out.
    """
    found: dict[str, str] = {}
    again = 0
    for folder in folders:
        with os.scandir(existing(folder)) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.name.lower().endswith(suffixes)]
        inside = folder.relative_to(root).as_posix()
        again += sum(name in found for name in names)
        found |= {name: name if inside == "." else f"{inside}/{name}" for name in names if name not in found}
    return found, again


def match_images(
    columns: Columns, image: str, index: Mapping[str, str], root: Path, missing: Literal["refuse", "drop"]
) -> tuple[Columns, list[str]]:
    """Return the columns and the absolute path of each image, ``""`` where it is a fault, which is added.

    Args:
        columns: of the source.
        image: the column of the name of the image.
        index: the path relative to ``root`` by name, as :func:`index_images` returns it.
        root: the folder, out of which no path may lead.
        missing: whether rows without an image are a fault or are left out, with a note.

    Raises:
        DataError: no image is there at all.
    """
    names = columns.values[image]
    absent = [(row, quote(name)) for row, name in enumerate(names) if name not in index]
    if names and len(absent) == len(names):
        raise DataError(
            f"{root}: expected the {len(names):,} images of {columns.faults.source}, such as {quote(names[0])}, found "
            f"none of them among {len(index):,}. Unpack the images into this folder, with their own folders."
        )
    if absent and missing == "refuse":
        columns.faults.add_rows(
            "rows whose image is missing", absent,
            f"Looked in {root}: unpack the other images too, or leave these rows out with missing='drop' (medzoo "
            "train: --set data.missing=drop).",
        )  # fmt: skip
        return columns, [""] * len(names)
    if absent:
        columns = columns.select(
            [row for row, name in enumerate(names) if name in index],
            f"{len(absent):,} of {len(names):,} rows left out, whose image is missing",
        )  # fmt: skip
    return columns, find_images([index[name] for name in columns.values[image]], root, columns.faults)
