"""What is wrong with the images of a table, stored by their content and read for a table that has them elsewhere.

A path in a text is stored as its place among the files of the image, whose order is that of its content.
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medzoo.data.identity import files_of_image
from medzoo.data.table import Table

__all__ = ["PixelReport", "with_paths", "without_paths"]

# The fields of a report that are a text for each row.
_TEXTS = ("unreadable", "wrong", "warnings", "mismatches")
_PLACE = re.compile("\0(\\d+)\0")

Source = Path | tuple[Path, ...] | NDArray[Any]


@dataclass
class PixelReport:
    """What one pass over all images found; it is kept beside the cached file."""

    pixels: list[str] = field(default_factory=list)
    constant: list[int] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)
    wrong: dict[int, str] = field(default_factory=dict)
    warnings: dict[int, str] = field(default_factory=dict)
    mismatches: dict[int, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, found: dict[str, Any], table: Table) -> PixelReport:
        """Return a report from JSON, whose keys are text, about the images of a table."""
        texts = {
            name: {int(row): with_paths(text, table.image(int(row))) for row, text in found[name].items()}
            for name in _TEXTS
        }
        return cls(found["pixels"], found["constant"], **texts)

    def to_json(self, table: Table) -> dict[str, Any]:
        """Return the same as it is stored: for the content of the images, wherever they are."""
        texts = {
            name: {row: without_paths(text, table.image(row)) for row, text in getattr(self, name).items()}
            for name in _TEXTS
        }
        return asdict(self) | texts


def without_paths(text: str, image: Source) -> str:
    """Return a text with the paths of an image replaced by their places.

    >>> stored = without_paths("/a/1.png: is blank", Path("/a/1.png"))
    >>> with_paths(stored, Path("/b/2.png"))
    '/b/2.png: is blank'
    """
    paths = _paths(image)
    for place in sorted(range(len(paths)), key=lambda i: len(paths[i]), reverse=True):
        # A bare name, such as that of a DICOM file, can also be a word of the text: it is a path at its beginning.
        start = r"(?<![\w/\\.\0-])" if os.sep in paths[place] else "^"
        end = r"(?![\w\0-]|\.\w)" if os.sep in paths[place] else "(?=:)"
        text = re.sub(start + re.escape(paths[place]) + end, f"\0{place}\0", text)
    return text


def with_paths(text: str, image: Source) -> str:
    """Return a text from :func:`without_paths` with the paths of an image, which may be another one's."""
    if "\0" not in text:
        return text
    paths = _paths(image)
    return _PLACE.sub(lambda found: paths[int(found[1])] if int(found[1]) < len(paths) else "a file", text)


def _paths(image: Source) -> list[str]:
    """Return the folder of a series or the file of an image first, then its other files."""
    if isinstance(image, tuple):
        return [os.path.commonpath([path.parent for path in image]), *map(str, image)]
    if not isinstance(image, Path):
        return []
    return [str(image), *(str(path) for path in files_of_image(image) if path != image)]
