"""The compressions of TIFF, each of which fails on damage; libtiff reports it on stderr only, and leaves blanks.

None, PackBits, LZW, deflate and LZMA are decoded here and JPEG by Pillow; others need imagecodecs.
"""

from __future__ import annotations

import importlib
import io
import lzma
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.io.tiff_tags import Layout, Page, Tag, tiff_damage, unsupported_tiff

__all__ = ["JPEG", "PREDICTED", "decompress"]

JPEG = 7
PREDICTED = (5, 8, 32946, 34925, 50000)
"""The compressions that a predictor applies to: LZW, deflate, LZMA, Zstandard."""

_DEFLATE = (8, 32946)
_JPEG_BLOCKS = 32  # pixels by which blocks of chroma may exceed a tile
_LZMA_MEMORY = 2**28  # bytes: xz -9 needs a quarter
_WITH_IMAGECODECS = {
    34887: ("LERC", "lerc_decode"), 34933: ("PNG", "png_decode"), 50000: ("Zstandard", "zstd_decode"),
    50001: ("WebP", "webp_decode"),
    50002: ("JPEG XL", "jpegxl_decode"), 52546: ("JPEG XL", "jpegxl_decode"), 33003: ("JPEG 2000", "jpeg2k_decode"),
    33005: ("JPEG 2000", "jpeg2k_decode"), 34712: ("JPEG 2000", "jpeg2k_decode"),
}  # fmt: skip
# imagecodecs decodes those of CCITT and JPEG XR too, and leaves blank what is cut off, without an error.
_OTHERS = {
    2: "CCITT RLE", 3: "CCITT T.4", 4: "CCITT T.6", 6: "old-style JPEG", 32809: "ThunderScan", 34661: "JBIG",
    34676: "SGI LogLuv", 34677: "SGI LogLuv", 34892: "lossy DNG JPEG", 22610: "JPEG XR", 34934: "JPEG XR",
}  # fmt: skip
_CLEAR, _END, _MOST_CODES = 256, 257, 3839  # the last is the one after which a table of 12-bit codes is full
_WIDTHS = np.array([9] * 254 + [10] * 512 + [11] * 1024 + [12] * (_MOST_CODES - 1790))
_STARTS = np.concatenate([[0], np.cumsum(_WIDTHS)[:-1]])


def decompress(page: Page, layout: Layout, data: bytes, size: int, full: int) -> bytes | NDArray[Any]:
    """Return the bytes of a strip or tile, or its samples ``h w c`` where the compression is one of images.

    Args:
        page: the page.
        layout: how its samples are stored.
        data: the compressed bytes.
        size: how many bytes of samples are expected.
        full: how many a strip would have that is not the last, which some writers pad.

    Raises:
        DataError: fewer bytes or more, a wrong checksum, or a compression that cannot be decoded.
    """
    kind = page.number(Tag.COMPRESSION, 1)
    if kind == JPEG:
        return _jpeg(page, layout, data)
    if kind in _WITH_IMAGECODECS:
        return _by_imagecodecs(page, *_WITH_IMAGECODECS[kind], data, size)
    decoders = {1: _uncompressed, 5: _lzw, 32773: _packbits, 34925: _lzma} | dict.fromkeys(_DEFLATE, _deflate)
    if kind not in decoders:
        raise unsupported_tiff(page.path, f"compressed with {_OTHERS.get(kind, 'an unknown method')} (code {kind})")
    out, complete = decoders[kind](data, full)
    if not complete or len(out) not in (size, full):
        found = f"{len(out)} of {size} bytes" if len(out) != size else "no valid end"
        raise tiff_damage(page.path, f"a strip or tile with {found}")
    return out[:size]


def _uncompressed(data: bytes, full: int) -> tuple[bytes, bool]:
    return data[:full], True


def _deflate(data: bytes, full: int) -> tuple[bytes, bool]:
    inflate = zlib.decompressobj()
    try:
        out = inflate.decompress(data, full)
        return out + inflate.decompress(inflate.unconsumed_tail, 1), inflate.eof
    except zlib.error:
        return b"", False


def _lzma(data: bytes, full: int) -> tuple[bytes, bool]:
    inflate = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)
    try:
        out = inflate.decompress(data, full + 1)
        return out, inflate.eof
    except (lzma.LZMAError, EOFError):
        return b"", False


def _packbits(data: bytes, full: int) -> tuple[bytes, bool]:
    out, at = bytearray(), 0
    while at < len(data) and len(out) < full:
        head = data[at]
        if head < 128:
            piece = data[at + 1 : at + 2 + head]
            if len(piece) <= head:
                return bytes(out), False
            out += piece
            at += 2 + head
        elif head == 128:
            at += 1
        elif at + 1 < len(data):
            out += data[at + 1 : at + 2] * (257 - head)
            at += 2
        else:
            return bytes(out), False
    return bytes(out), True


def _lzw(data: bytes, full: int) -> tuple[bytes, bool]:
    """Decode LZW, one table at a time: the width of each code follows from its place after the last clear code.

    A code above 257 repeats what an earlier code of the same table and the byte after that decoded to, so every byte
    is a literal or a copy of an earlier byte; ``_copy_chains`` follows the copies.
    """
    bits = np.frombuffer(data + bytes(4), np.uint8).astype(np.uint32)
    words = bits[:-3] << 16 | bits[1:-2] << 8 | bits[2:-1]
    at, size, blocks = 0, 0, []
    while True:
        starts = at + _STARTS[: np.searchsorted(at + _STARTS + _WIDTHS, 8 * len(data), side="right")]
        widths = _WIDTHS[: len(starts)]
        codes = (words[starts >> 3] >> (24 - (starts & 7) - widths) & (1 << widths) - 1).astype(np.int32)
        stops = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        count = int(stops[0]) if len(stops) else len(codes)
        parents = codes[:count] - 258  # which code of this table it repeats
        invalid = np.flatnonzero(parents >= np.arange(count))
        valid = int(invalid[0]) if len(invalid) else count
        out = _copy_chains(codes[:valid], parents[:valid], full - size)
        blocks.append(out)
        size += len(out)
        ended = bool(len(stops)) and codes[count] == _END
        if size > full or ended or not len(stops) or valid < count:
            # A stream that ends without its end code is accepted where its bytes are complete.
            return b"".join(blocks), (valid == count and (ended or len(codes) < _MOST_CODES)) or size == full
        at = int(starts[count] + widths[count])


def _copy_chains(codes: NDArray[np.int32], parents: NDArray[np.int32], limit: int) -> bytes:
    """Return what the codes of one table decode to, at most ``limit`` bytes and one code."""
    lengths, jump = np.ones(len(codes), np.int64), parents.copy()
    while (linked := np.flatnonzero(jump >= 0)).size:  # the length is one more than the parent's: double the jumps
        lengths[linked] += lengths[jump[linked]]
        jump[linked] = jump[jump[linked]]
    ends = np.cumsum(lengths)
    count = min(len(codes), int(np.searchsorted(ends, limit)) + 1)
    codes, parents, lengths, ends = codes[:count], parents[:count], lengths[:count], ends[:count]
    starts = ends - lengths
    back = np.where(parents >= 0, starts - starts[np.maximum(parents, 0)], 0)
    source = np.arange(ends[-1] if count else 0, dtype=np.int32) - np.repeat(back.astype(np.int32), lengths)
    while not np.array_equal(further := source[source], source):
        source = further
    literals = np.zeros(len(source), np.uint8)
    literals[starts] = np.where(parents < 0, codes, 0)
    return literals[source].tobytes()


def _jpeg(page: Page, layout: Layout, data: bytes) -> NDArray[Any]:
    """Decode a JPEG stream with Pillow; what its three samples mean is in the TIFF, not in the stream."""
    from PIL import Image as Pillow

    if layout.bits != 8 or layout.kind != 1:
        raise unsupported_tiff(page.path, f"JPEG of {layout.bits} bits")
    tables = page.tags.get(Tag.JPEG_TABLES, b"")
    tables = tables[2:-2] if isinstance(tables, bytes) and tables.endswith(b"\xff\xd9") else b""
    transform = int(page.number(Tag.PHOTOMETRIC, 6) == 6)
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    if not data.startswith(b"\xff\xd8") or b"\xff\xd9" not in data.rstrip(b"\0")[-16:]:
        raise tiff_damage(page.path, "a strip or tile that is no complete JPEG")
    start = 2
    while data[start : start + 1] == b"\xff" and 0xE0 <= data[start + 1] <= 0xEF:  # JFIF and Adobe give other meanings
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    stream = io.BytesIO(data[:2] + (adobe if layout.samples_together > 2 else b"") + tables + data[start:])
    try:
        picture = Pillow.open(stream, formats=["JPEG"])
    except Pillow.DecompressionBombError:  # derives from Exception alone
        raise tiff_damage(page.path, "a JPEG larger than its strip or tile") from None
    columns, rows = picture.size
    if not (layout.columns <= columns <= layout.columns + _JPEG_BLOCKS and rows <= layout.rows + _JPEG_BLOCKS):
        raise tiff_damage(page.path, f"a JPEG of {columns} × {rows} in a strip or tile")
    values = np.asarray(picture)
    if picture.mode == "CMYK":  # Pillow inverts it, as Adobe's own files need
        values = 255 - values
    values = values.reshape(*values.shape[:2], -1)
    if values.shape[2] != layout.samples_together:
        raise tiff_damage(
            page.path, f"a JPEG of {values.shape[2]} samples where {layout.samples_together} are declared"
        )
    return values


def _by_imagecodecs(page: Page, name: str, function: str, data: bytes, size: int) -> bytes | NDArray[Any]:
    try:
        codecs = importlib.import_module("imagecodecs")
        out = getattr(codecs, function)(data)
    except ImportError:
        raise unsupported_tiff(
            page.path, f"compressed with {name}, which needs imagecodecs (pip install imagecodecs)"
        ) from None
    except Exception:  # a class of its own for each codec
        raise tiff_damage(page.path, f"a strip or tile that is not {name}") from None
    if isinstance(out, np.ndarray):
        out = out.reshape(*out.shape[:2], -1)
    found = out.nbytes if isinstance(out, np.ndarray) else len(out)
    if found < size:
        raise tiff_damage(page.path, f"a strip or tile with {found} of {size} bytes")
    return out if isinstance(out, np.ndarray) else bytes(out[:size])
