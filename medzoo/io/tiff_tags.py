"""The tags of a TIFF or BigTIFF: the pages of a file, and how the samples of a page are stored.

Source: TIFF Revision 6.0 (Adobe, 1992), its Technical Notes 1 to 3, and the BigTIFF design of libtiff.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from medzoo.errors import DataError

__all__ = ["Layout", "Page", "Tag", "read_pages", "tiff_damage", "unsupported_tiff"]


class Tag:
    """The numbers of the tags that are read; every other tag is skipped."""

    SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
    FILL_ORDER, DESCRIPTION, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES = (
        266, 270, 273, 274, 277, 278, 279,
    )  # fmt: skip
    PLANAR, PREDICTOR, COLOR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 284, 317, 320, 322, 323, 324, 325
    INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES = 332, 338, 339, 347
    YCBCR_COEFFICIENTS, YCBCR_SUBSAMPLING, REFERENCE_BLACK_WHITE = 529, 530, 532
    IMAGE_DEPTH, TILE_DEPTH, METAMORPH_STACK = 32997, 32998, 33629


_KNOWN = {value for name, value in vars(Tag).items() if name.isupper()}
_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d",
          13: "I", 16: "Q", 17: "q", 18: "Q"}  # fmt: skip
_REDUCED, _MASK, _OLD_REDUCED = 1, 4, 2  # bits of NewSubfileType, and a value of SubfileType


def tiff_damage(path: Path, what: str) -> DataError:
    """Return the error for a TIFF whose bytes are wrong."""
    return DataError(f"{path}: expected a sound TIFF, found {what}. It is cut short or damaged: copy it again.")


def unsupported_tiff(path: Path, what: str) -> DataError:
    """Return the error for a TIFF that may be sound, of a kind that is not read."""
    return DataError(
        f"{path}: a kind of TIFF that is not read: {what}. Convert it to grey or RGB of 8 or 16 bits, uncompressed or "
        "with deflate."
    )


@dataclass(frozen=True)
class Page:
    """The tags of one page, each a tuple of values, or bytes."""

    path: Path
    order: str
    tags: dict[int, Any]

    def numbers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the values of a tag of integers."""
        values = self.tags.get(tag, default)
        if isinstance(values, bytes):
            values = tuple(values)
        if not all(isinstance(value, int) for value in values):
            raise tiff_damage(self.path, f"tag {tag} that is not an integer")
        return values

    def number(self, tag: int, default: int | None = None) -> int:
        """Return the value of a tag that has one; of several, the first."""
        values = self.numbers(tag) or (() if default is None else (default,))
        if not values:
            raise tiff_damage(self.path, f"no tag {tag}, which is required")
        return values[0]

    def layout(self) -> Layout:
        """Return how the samples are stored.

        Raises:
            DataError: a required tag is absent, or the tags contradict each other.
        """
        samples = self.number(Tag.SAMPLES, 1)
        width, height = self.number(Tag.WIDTH), self.number(Tag.HEIGHT)
        tiled = Tag.TILE_OFFSETS in self.tags or Tag.TILE_WIDTH in self.tags
        planar = self.number(Tag.PLANAR, 1) == 2 and samples > 1
        bits = set(self.numbers(Tag.BITS, (1,))[:samples])
        kinds = set(self.numbers(Tag.SAMPLE_FORMAT, (1,))[:samples])
        if samples < 1 or width < 1 or height < 1:
            raise tiff_damage(self.path, f"an image of {width} × {height} with {samples} samples a pixel")
        if len(bits) != 1 or len(kinds) != 1:
            raise unsupported_tiff(self.path, f"samples of different types (bits {sorted(bits)})")
        if self.number(Tag.IMAGE_DEPTH, 1) > 1 or self.number(Tag.TILE_DEPTH, 1) > 1:
            raise unsupported_tiff(self.path, "a volume in one page (ImageDepth)")
        if tiled:
            columns, rows = self.number(Tag.TILE_WIDTH), self.number(Tag.TILE_HEIGHT)
            offsets, counts = self.numbers(Tag.TILE_OFFSETS), self.numbers(Tag.TILE_BYTES)
            offsets, counts = offsets or self.numbers(Tag.STRIP_OFFSETS), counts or self.numbers(Tag.STRIP_BYTES)
        else:
            columns, rows = width, min(self.number(Tag.ROWS_PER_STRIP, height), height)
            offsets, counts = self.numbers(Tag.STRIP_OFFSETS), self.numbers(Tag.STRIP_BYTES)
        if columns < 1 or rows < 1:
            raise tiff_damage(self.path, f"strips or tiles of {columns} × {rows}")
        if columns * rows > 4 * width * height + 2**20:
            raise unsupported_tiff(self.path, f"tiles of {columns} × {rows} for an image of {width} × {height}")
        layout = Layout(width, height, samples, bits.pop(), kinds.pop(), tiled, planar, columns, rows, offsets, counts)
        if len(offsets) < layout.count:
            raise tiff_damage(self.path, f"{len(offsets)} strips or tiles where {layout.count} are expected")
        return layout


@dataclass(frozen=True)
class Layout:
    """How the samples of a page are stored.

    Attributes:
        width: columns of the image.
        height: rows of the image.
        samples: samples a pixel.
        bits: bits a sample.
        kind: SampleFormat: 1 unsigned, 2 signed, 3 floating-point.
        tiled: in tiles, which are padded at the right and lower edge; else in strips.
        planar: each sample in strips or tiles of its own.
        columns: columns of a tile; of a strip, of the image.
        rows: rows of a tile or strip.
        offsets: where each strip or tile begins.
        byte_counts: how many bytes each has; empty if the tag is absent.
    """

    width: int
    height: int
    samples: int
    bits: int
    kind: int
    tiled: bool
    planar: bool
    columns: int
    rows: int
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]

    @property
    def across(self) -> int:
        """Tiles side by side."""
        return math.ceil(self.width / self.columns)

    @property
    def down(self) -> int:
        """Strips or tiles below each other."""
        return math.ceil(self.height / self.rows)

    @property
    def count(self) -> int:
        """Strips or tiles of the page."""
        return self.across * self.down * (self.samples if self.planar else 1)

    @property
    def samples_together(self) -> int:
        """Samples of a pixel that a strip or tile holds."""
        return 1 if self.planar else self.samples


def read_pages(path: Path, file: BinaryIO) -> list[Page]:
    """Return the pages, without reduced copies of them (thumbnails, pyramids) and masks.

    Raises:
        DataError: not the structure of a TIFF, or a stack whose pages have no tags.
    """
    end = path.stat().st_size
    head = file.read(16)
    order = "<" if head.startswith(b"II") else ">"
    big = len(head) == 16 and struct.unpack(order + "H", head[2:4])[0] == 43
    if big and struct.unpack(order + "HH", head[4:8]) != (8, 0):
        raise tiff_damage(path, "a BigTIFF header with offsets that are not of 8 bytes")
    if len(head) < 8:
        raise tiff_damage(path, f"{end} bytes")
    (offset,) = struct.unpack(order + "Q", head[8:16]) if big else struct.unpack(order + "I", head[4:8])
    pages: list[Page] = []
    seen: set[int] = set()
    while offset:
        if offset in seen:
            raise tiff_damage(path, "pages that follow each other in a circle")
        seen.add(offset)
        tags, offset = _read_directory(path, file, end, order, big, offset)
        pages.append(Page(path, order, tags))
    full = [
        page for page in pages
        if not page.number(Tag.SUBFILE, 0) & (_REDUCED | _MASK) and page.number(Tag.OLD_SUBFILE, 1) != _OLD_REDUCED
    ]  # fmt: skip
    pages = full or pages[:1]
    if not pages:
        raise tiff_damage(path, "no page")
    return _implied_pages(path, pages[0]) if len(pages) == 1 else pages


def _read_directory(
    path: Path, file: BinaryIO, end: int, order: str, big: bool, offset: int
) -> tuple[dict[int, Any], int]:
    """Return the known tags of the directory at ``offset``, and the offset of the next one."""

    def read(start: int, size: int) -> bytes:
        if start + size > end:
            raise tiff_damage(path, f"an entry that points to byte {start + size} of {end}")
        file.seek(start)
        return file.read(size)

    counter, entry, inline = ("Q", "HHQ8s", 8) if big else ("H", "HHI4s", 4)
    (count,) = struct.unpack(order + counter, read(offset, struct.calcsize("=" + counter)))
    start, size = offset + struct.calcsize("=" + counter), struct.calcsize("=" + entry)
    tags: dict[int, Any] = {}
    for tag, kind, number, value in struct.iter_unpack(order + entry, read(start, count * size)):
        code = _TYPES.get(kind)
        if tag not in _KNOWN or tag in tags or code is None:
            continue
        length = number * struct.calcsize("=" + code)
        if length > inline:
            value = read(struct.unpack(order + ("Q" if big else "I"), value)[0], length)
        tags[tag] = (
            value[:length] if code == "s" else struct.unpack(f"{order}{number * len(code)}{code[0]}", value[:length])
        )
    after = start + count * size
    return tags, struct.unpack(order + ("Q" if big else "I"), read(after, inline))[0]


def _implied_pages(path: Path, page: Page) -> list[Page]:
    """Return the images of a file whose first page alone has tags: ImageJ stores large stacks so."""
    description = page.tags.get(Tag.DESCRIPTION, b"")
    stated = re.search(rb"^images=(\d+)", description, re.MULTILINE)
    count = int(stated[1]) if isinstance(description, bytes) and description.startswith(b"ImageJ=") and stated else 1
    if len(page.tags.get(Tag.METAMORPH_STACK, b"")) > 2:
        raise unsupported_tiff(path, "a MetaMorph stack, whose images have no tags of their own")
    if count == 1:
        return [page]
    layout = page.layout()
    size = layout.width * layout.height * layout.samples * layout.bits // 8
    start = layout.offsets[0]
    if page.number(Tag.COMPRESSION, 1) != 1 or start + count * size > path.stat().st_size:
        raise tiff_damage(path, f"one image of the {count} that it declares")
    once = {Tag.ROWS_PER_STRIP: (layout.height,), Tag.STRIP_BYTES: (size,)}
    return [Page(path, page.order, page.tags | once | {Tag.STRIP_OFFSETS: (start + i * size,)}) for i in range(count)]
