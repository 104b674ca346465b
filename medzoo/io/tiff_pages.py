"""The pages of a TIFF and the samples that they store, through tifffile and imagecodecs.

tifffile skips a page or tag that it cannot read, and leaves blank a strip or tile that is absent; it logs that. What a
model sees must be complete, so each of these is an error here.

Axes: h w height width, s samples of a pixel.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io import codestream
from medzoo.io.files import select_page

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

__all__ = ["JPEG", "check_layout", "chosen_page", "read_samples", "tiff_damage", "unsupported_tiff"]

JPEG = 7
_BYTES = {
    1: ("", ""), 5: ("LZW", "lzw_decode"), 8: ("deflate", "zlib_decode"), 32946: ("deflate", "zlib_decode"),
    32773: ("PackBits", "packbits_decode"), 34925: ("LZMA", "lzma_decode"), 50000: ("Zstandard", "zstd_decode"),
}  # fmt: skip
_PREDICTED = (5, 8, 32946, 34925, 50000)  # libtiff ignores a predictor for the others
_HEADED = {JPEG: "JPEG", 33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000"}
_SIZED = {
    34887: ("LERC", "lerc_decode"), 34933: ("PNG", "png_decode"), 50001: ("WebP", "webp_decode"),
    50002: ("JPEG XL", "jpegxl_decode"), 52546: ("JPEG XL", "jpegxl_decode"),
}  # fmt: skip
# imagecodecs decodes those of CCITT and JPEG XR too, and leaves blank what is cut off, without an error.
_OTHERS = {
    2: "CCITT RLE", 3: "CCITT T.4", 4: "CCITT T.6", 6: "old-style JPEG", 32809: "ThunderScan", 34661: "JBIG",
    34676: "SGI LogLuv", 34677: "SGI LogLuv", 34892: "lossy DNG JPEG", 22610: "JPEG XR", 34934: "JPEG XR",
}  # fmt: skip
_JPEG_BLOCKS = 32  # pixels by which blocks of chroma may exceed a tile
_KINDS = {1: "unsigned", 2: "signed", 3: "float", 4: "unsigned"}
_BITS = {"unsigned": (*range(1, 17), 32, 64), "signed": (8, 16, 32, 64), "float": (16, 32, 64)}
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_STK_PLANES = 33629  # UIC2tag, with one entry for each plane
# The tags that decide what the samples are: without one of them that the file has, another image would be read.
_NEEDED = {
    254, 255, 256, 257, 258, 259, 262, 266, 270, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 332, 338,
    339, 347, 529, 530, 532, 32997, 32998, _STK_PLANES,
}  # fmt: skip


def tiff_damage(path: Path, what: str) -> DataError:
    """Return the error for a TIFF whose bytes are wrong."""
    return DataError(f"{path}: expected a sound TIFF, found {what}. It is cut short or damaged: copy it again.")


def unsupported_tiff(path: Path, what: str) -> DataError:
    """Return the error for a TIFF that may be sound, of a kind that is not read."""
    return DataError(
        f"{path}: a kind of TIFF that is not read: {what}. Convert it to grey or RGB of 8 or 16 bits, uncompressed or "
        "with deflate."
    )


def chosen_page(path: Path, tiff: TiffFile, file: BinaryIO, frame: int | None) -> TiffPage:
    """Return the page to read; reduced copies of others (thumbnails, pyramids) and masks are not counted.

    Raises:
        DataError: a page cannot be read, or there are several and none is chosen.
    """
    full = []
    first: TiffPage | None = None
    for index, codes in enumerate(_directories(path, tiff, file)):
        page = tiff.pages[index].aspage()
        if lost := (codes & _NEEDED).difference(page.tags.keys()):
            raise tiff_damage(path, f"tag {min(lost)} whose value is not in the file, or of no known type")
        first = first or page
        if not page.subfiletype & (_REDUCED | _MASK):
            full.append(index)
    if first is None:
        raise tiff_damage(path, "no page")
    if len(full) > 1:
        return tiff.pages[full[select_page(path, len(full), frame)]].aspage()
    page = tiff.pages[full[0]].aspage() if full else first
    planes = int((tiff.imagej_metadata or {}).get("images", 1))
    if page.is_stk:
        planes = page.tags[_STK_PLANES].count
    index = select_page(path, max(planes, 1), frame)
    if planes > 1:
        _take_plane(path, page, index, planes)
    return page


def _directories(path: Path, tiff: TiffFile, file: BinaryIO) -> list[set[int]]:
    """Return the codes of the tags of each page.

    tifffile ends its list of pages where one cannot be read, and may follow pages that form a circle without end.
    """
    form, codes, seen = tiff.tiff, [], set()
    file.seek(8 if tiff.is_bigtiff else 4)
    while offset := struct.unpack(form.offsetformat, file.read(form.offsetsize))[0]:
        if offset in seen:
            raise tiff_damage(path, "pages that follow each other in a circle")
        seen.add(offset)
        file.seek(offset)
        (count,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
        size, end = count * form.tagsize, path.stat().st_size
        if file.tell() + size > end:
            raise tiff_damage(path, f"a page of {count} tags at byte {offset} of {end}")
        codes.append(
            {entry[0] for entry in struct.iter_unpack(f"{form.byteorder}H{form.tagsize - 2}x", file.read(size))}
        )
    return codes


def _take_plane(path: Path, page: TiffPage, index: int, planes: int) -> None:
    """Point ``page`` to one of the images behind each other that it alone describes, in ImageJ's or MetaMorph's way."""
    check_layout(path, page)
    size = math.prod(page.shaped) * page.bitspersample // 8
    if page.compression != 1 or page.dataoffsets[0] + planes * size > path.stat().st_size:
        raise tiff_damage(path, f"one image of the {planes} that it declares")
    if not page.is_contiguous:
        raise unsupported_tiff(path, f"a stack of {planes} images in pieces")
    page.rowsperstrip = page.imagelength
    page.dataoffsets, page.databytecounts = (page.dataoffsets[0] + index * size,), (size,)
    page.__dict__.pop("chunked", None)


def check_layout(path: Path, page: TiffPage) -> None:
    """Check how the samples of a page are stored.

    Raises:
        DataError: the tags contradict each other, or a kind that is not read.
    """
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    if not all(isinstance(size, int) and size > 0 for size in (height, width, samples)):
        raise tiff_damage(path, f"an image of {width} × {height} with {samples} samples a pixel")
    if page.imagedepth > 1 or page.tiledepth > 1:
        raise unsupported_tiff(path, "a volume in one page (ImageDepth)")
    bits, kind = page.bitspersample, _KINDS.get(page.sampleformat)
    if not isinstance(bits, int):
        raise unsupported_tiff(path, f"samples of different types (bits {bits})")
    if kind is None:
        complex_or_not = "complex samples" if page.sampleformat in (5, 6) else f"sample format {page.sampleformat}"
        raise unsupported_tiff(path, complex_or_not)
    if bits not in _BITS[kind]:
        raise unsupported_tiff(path, f"{bits}-bit {kind} samples")
    if bits == 1 and page.shaped[4] > 1:  # writers do not agree on how they are packed
        raise unsupported_tiff(path, "1-bit samples of several channels together")
    if page.planarconfig not in (1, 2) and samples > 1:
        raise unsupported_tiff(path, f"planar configuration {page.planarconfig}")
    if page.compression not in _BYTES.keys() | _HEADED.keys() | _SIZED.keys():
        name = _OTHERS.get(page.compression, "an unknown method")
        raise unsupported_tiff(path, f"compressed with {name} (code {page.compression})")
    if page.compression not in _PREDICTED:
        page.predictor = 1
    undone = {1: True, 2: bits in (8, 16, 32, 64), 3: kind == "float"}
    if not undone.get(page.predictor, False):
        raise unsupported_tiff(path, f"predictor {int(page.predictor)} of {bits}-bit samples")
    rows, columns = page.chunks[:2]
    if rows < 1 or columns < 1:
        raise tiff_damage(path, f"strips or tiles of {columns} × {rows}")
    if columns * rows > 4 * width * height + 2**20:
        raise unsupported_tiff(path, f"tiles of {columns} × {rows} for an image of {width} × {height}")
    if len(page.dataoffsets) < (count := math.prod(page.chunked)):
        raise tiff_damage(path, f"{len(page.dataoffsets)} strips or tiles where {count} are expected")


def read_samples(path: Path, page: TiffPage, file: BinaryIO) -> NDArray[Any]:
    """Return the stored samples ``h w s`` of a page whose layout was checked, in the byte order of the machine.

    Raises:
        DataError: a strip or tile is absent, cut short or damaged.
    """
    planes, _, height, width, together = page.shaped
    rows, columns = page.chunks[:2]
    across, down = math.ceil(width / columns), math.ceil(height / rows)
    dtype = np.dtype(np.uint8) if page.bitspersample == 1 else np.dtype(page.dtype)
    out = np.empty((height, width, planes * together), dtype)
    row_bytes = math.ceil(columns * together * page.bitspersample / 8)
    compression, reverse = page.compression, page.fillorder == 2
    if compression in _BYTES:  # tifffile gets what is decompressed, and unpacks it
        page.compression, page.fillorder = 1, 1
    for index in range(planes * across * down):
        plane, place = divmod(index, across * down)
        top, left = place // across * rows, place % across * columns
        here = rows if page.is_tiled else min(rows, height - top)
        sizes = here * row_bytes, rows * row_bytes
        data = _stored(path, page, file, index, compression, sizes[0])
        if compression in _BYTES:
            values = np.asarray(page.decode(_decompress(path, compression, data, sizes, reverse), index)[0])
        elif compression in _HEADED:
            values = _picture(path, page, data, index, _HEADED[compression])
        else:
            values = _sized_picture(path, _SIZED[compression], data, (here, columns, together), dtype)
        if values.dtype != page.dtype:
            raise unsupported_tiff(path, f"{values.dtype} samples where the tags declare {page.dtype}")
        values = values.reshape(values.shape[-3:])[: height - top, : width - left]
        out[top : top + here, left : left + columns, plane : plane + together] = values
    return out


def _stored(path: Path, page: TiffPage, file: BinaryIO, index: int, compression: int, size: int) -> bytes:
    """Return the bytes of a strip or tile as they are in the file; ``size`` is what they should decode to."""
    offset = page.dataoffsets[index]
    counted = 279 in page.tags or 325 in page.tags
    count = page.databytecounts[index] if counted and index < len(page.databytecounts) else 0
    if compression == 1 and offset and (count > size or (not count and math.prod(page.chunked) == 1)):
        count = size  # more than it needs, or one strip without its size: both are written, and both are plain
    if not offset or not count:
        raise unsupported_tiff(path, f"strip or tile {index} has no data (a sparse file)")
    end = path.stat().st_size
    if offset + count > end:
        raise tiff_damage(path, f"a strip or tile up to byte {offset + count} of {end}")
    file.seek(offset)
    return file.read(count)


def _decompress(path: Path, compression: int, data: bytes, sizes: tuple[int, int], reverse: bool) -> bytes:
    """Return the bytes of a strip or tile, of the first of two sizes; some writers pad the last strip to the second."""
    import imagecodecs

    name, function = _BYTES[compression]
    try:
        data = bytes(imagecodecs.bitorder_decode(data)) if reverse else data
        out = getattr(imagecodecs, function)(data, out=sizes[1] + 1) if function else data
    except (RuntimeError, ValueError):  # a class of its own for each codec
        raise tiff_damage(path, f"a strip or tile that is not sound {name}") from None
    if len(out) not in sizes:
        raise tiff_damage(path, f"a strip or tile with {len(out)} of {sizes[0]} bytes")
    return bytes(out[: sizes[0]])


def _picture(path: Path, page: TiffPage, data: bytes, index: int, name: str) -> NDArray[Any]:
    """Decode a JPEG or JPEG 2000, whose header must declare the size of its strip or tile."""
    rows, columns = page.chunks[:2]
    header = codestream.parse(data)
    cut = name == "JPEG" and b"\xff\xd9" not in data.rstrip(b"\0")[-16:]  # libjpeg fills what is missing with grey
    if header is None or cut or not _are_sound_tables(page.jpegtables):
        raise tiff_damage(path, f"a strip or tile that is no complete {name}")
    if header.rows > rows + _JPEG_BLOCKS or header.columns > columns + _JPEG_BLOCKS:
        raise tiff_damage(path, f"a {name} of {header.columns} × {header.rows} in a strip or tile")
    if header.samples != page.shaped[4]:
        raise tiff_damage(path, f"a {name} of {header.samples} samples where {page.shaped[4]} are declared")
    try:
        return np.asarray(page.decode(data, index, jpegtables=page.jpegtables)[0])
    except (RuntimeError, ValueError):
        raise tiff_damage(path, f"a strip or tile that is not sound {name}") from None


def _are_sound_tables(tables: bytes | None) -> bool:
    """Return whether segments fill the tables of JPEG that all strips share; libjpeg replaces those that it lacks."""
    if tables is None:
        return True
    at = 2
    while tables[at : at + 1] == b"\xff" and tables[at : at + 2] != b"\xff\xd9" and at + 4 <= len(tables):
        at += 2 + int.from_bytes(tables[at + 2 : at + 4])
    return tables[:2] == b"\xff\xd8" and tables[at:] == b"\xff\xd9"


def _sized_picture(
    path: Path, codec: tuple[str, str], data: bytes, shape: tuple[int, int, int], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Decode a picture of another format, which must be of the shape ``h w s`` of its strip or tile."""
    import imagecodecs

    name, function = codec
    options = {"hasalpha": True} if name == "WebP" and shape[2] == 4 else {}  # an opaque one may be left out
    out = np.empty(shape if shape[2] > 1 else shape[:2], dtype)  # of another size, nothing is decoded
    try:
        return np.asarray(getattr(imagecodecs, function)(data, out=out, **options)).reshape(shape)
    except (RuntimeError, ValueError):
        raise tiff_damage(path, f"a strip or tile that is not {name} of its size") from None
