"""The hash of the decoded pixels of every row of a table, by which a split knows that two images are the same.

Axes: n rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medzoo.data.identity import Identities, PixelIdentity, files_of_image, join_digests, list_rows, pixel_identity
from medzoo.data.pixel_folder import PixelFolder
from medzoo.data.pixel_index import PixelIndex
from medzoo.data.table import Table
from medzoo.errors import DataError
from medzoo.io.image import Image
from medzoo.io.options import ReadOptions
from medzoo.io.read import read_image
from medzoo.progress import track

__all__ = ["content_of_row", "decode_row", "identify_row", "name_row", "pixel_hashes"]


def pixel_hashes(table: Table) -> Identities:
    """Return the identity of the pixels of each row; what the index knows is not decoded again.

    Raises:
        DataError: images that cannot be read, all of them listed.
    """
    folder = PixelFolder(0)
    usable: PixelFolder | None = folder
    try:
        folder.create()
    except OSError:
        usable = None
    found: list[PixelIdentity] = []
    faults: list[str] = []
    with PixelIndex(usable.path if usable else None, 1) as index:
        for row in track(range(len(table)), "comparing images"):
            content = content_of_row(table, row, index)
            try:
                known = index.pixels(content)
                found.append(known or identify_row(table, row, decode_row(table, row, 1), {row: content}, index))
            except DataError as error:
                faults.append(f"{name_row(table, row)}: {error}")
    if faults:
        raise DataError(
            f"{table.source}: {len(faults):,} of {len(table):,} images cannot be read. Correct or remove them, or give "
            f"pixels=medzoo.PixelStore(..., unreadable='drop').\n  {list_rows(faults, chr(10) + '  ')}"
        )
    pixels = np.array([identity.pixels for identity in found], dtype=np.str_)
    return Identities(pixels, np.array([identity.constant for identity in found], dtype=bool))


def decode_row(table: Table, row: int, channels: int) -> Image:
    """Return the image of a row for a model of so many channels."""
    return read_image(table.image(row), ReadOptions(channels=channels))


def identify_row(
    table: Table, row: int, image: Image, contents: Sequence[str] | Mapping[int, str] | None, index: PixelIndex | None
) -> PixelIdentity:
    """Return the identity of a decoded row, and store it in the index."""
    if table.arrays is not None:
        return pixel_identity(table.arrays[row])
    identity = pixel_identity(image.array)
    if index is not None and contents is not None:
        index.remember(contents[row], identity)
    return identity


def content_of_row(table: Table, row: int, index: PixelIndex) -> str:
    """Return a digest of the bytes of a row's image; reading a file that has none reports why."""
    image = table.image(row)
    if isinstance(image, np.ndarray):
        return pixel_identity(image).pixels
    try:
        return join_digests([index.content(path) for path in files_of_image(image)])
    except (OSError, IndexError, ValueError):
        return f"unreadable {image}"


def name_row(table: Table, row: int) -> str:
    """Return where a row is in the source of its table, for messages."""
    return f"row {row}" if table.lines is None else f"line {table.lines[row]}"
