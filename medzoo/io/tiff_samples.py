"""The samples of a TIFF page, assembled from its strips or tiles.

Axes: h w height width, s samples of a pixel.
"""

from __future__ import annotations

from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from medzoo.io.files import DEFLATE_LIMIT
from medzoo.io.tiff_codecs import PREDICTED, decompress
from medzoo.io.tiff_tags import Layout, Page, Tag, tiff_damage, unsupported_tiff

__all__ = ["read_samples"]

_UNCOMPRESSED = 1
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
_NAMES = {"u": "unsigned", "i": "signed", "f": "float"}
_HORIZONTAL, _FLOATING = 2, 3  # predictors
_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1).ravel()


def read_samples(page: Page, layout: Layout, file: BinaryIO) -> NDArray[Any]:
    """Return the stored samples ``h w s``, in the byte order of the machine.

    Raises:
        DataError: a strip or tile is absent, cut short or damaged; a type or compression that is not read.
    """
    dtype = _sample_type(page, layout)
    predictor = _predictor(page, layout)
    out = np.empty((layout.height, layout.width, layout.samples), dtype)
    for index in range(layout.count):
        plane, place = divmod(index, layout.across * layout.down)
        top, left = (
            n * step for n, step in zip(divmod(place, layout.across), (layout.rows, layout.columns), strict=True)
        )
        rows = layout.rows if layout.tiled else min(layout.rows, layout.height - top)
        values = _segment(page, layout, file, index, rows, predictor, dtype)
        height, width = min(rows, layout.height - top), min(layout.columns, layout.width - left)
        if values.shape[0] < height or values.shape[1] < width or values.shape[2] != layout.samples_together:
            raise tiff_damage(page.path, f"a strip or tile of {values.shape} where {(height, width)} is expected")
        samples = slice(plane, plane + 1) if layout.planar else slice(None)
        out[top : top + height, left : left + width, samples] = values[:height, :width]
    return out


def _sample_type(page: Page, layout: Layout) -> np.dtype[Any]:
    """Return the dtype of the result: the narrowest that holds the bits."""
    bits, kind = layout.bits, _KINDS.get(layout.kind)
    if kind is None:
        what = "complex samples" if layout.kind in (5, 6) else f"an unknown sample format ({layout.kind})"
        raise unsupported_tiff(page.path, what)
    if bits == 1 and layout.samples_together > 1:  # writers do not agree on how they are packed
        raise unsupported_tiff(page.path, "1-bit samples of several channels together")
    widths = {"f": (16, 32, 64), "i": (8, 16, 32, 64), "u": (*range(1, 17), 32, 64)}[kind]
    if bits not in widths:
        raise unsupported_tiff(page.path, f"{bits}-bit {_NAMES[kind]} samples")
    return np.dtype(f"{kind}{1 if bits <= 8 else 2 if bits <= 16 else bits // 8}")


def _predictor(page: Page, layout: Layout) -> int:
    """Return the predictor: 1 for none."""
    predictor = page.number(Tag.PREDICTOR, 1)
    if predictor == 1 or page.number(Tag.COMPRESSION, 1) not in PREDICTED:  # libtiff ignores it for the others
        return 1
    whole = layout.bits in (8, 16, 32, 64)
    if not (predictor == _HORIZONTAL and whole) and not (predictor == _FLOATING and layout.kind == 3):
        raise unsupported_tiff(page.path, f"predictor {predictor} of {layout.bits}-bit samples")
    return predictor


def _segment(
    page: Page, layout: Layout, file: BinaryIO, index: int, rows: int, predictor: int, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return the samples of one strip or tile, ``h w s``."""
    across = layout.columns * layout.samples_together
    row_bytes = -(-across * layout.bits // 8)
    data = _stored(page, layout, file, index, rows * row_bytes)
    decoded = decompress(page, layout, data, rows * row_bytes, layout.rows * row_bytes)
    if isinstance(decoded, np.ndarray):
        if decoded.dtype.kind != dtype.kind or decoded.dtype.itemsize != dtype.itemsize:
            raise unsupported_tiff(page.path, f"{decoded.dtype} samples where the tags declare {dtype}")
        return decoded
    if predictor == _FLOATING:
        return _undo_floating(np.frombuffer(decoded, np.uint8).reshape(rows, -1, layout.samples_together), dtype)
    order: Literal["<", ">"] = "<" if page.order == "<" else ">"
    if layout.bits in (8, 16, 32, 64):
        values = np.frombuffer(decoded, dtype.newbyteorder(order)).reshape(rows, layout.columns, -1)
        if predictor == _HORIZONTAL:
            unsigned = np.dtype(f"u{dtype.itemsize}")
            values = values.view(unsigned.newbyteorder(order)).cumsum(axis=1, dtype=unsigned).view(dtype)
        return values
    bits = np.unpackbits(np.frombuffer(decoded, np.uint8).reshape(rows, row_bytes), axis=1, count=across * layout.bits)
    weights = 1 << np.arange(layout.bits - 1, -1, -1, dtype=dtype)
    return (bits.reshape(rows, layout.columns, -1, layout.bits) @ weights).astype(dtype)


def _stored(page: Page, layout: Layout, file: BinaryIO, index: int, size: int) -> bytes:
    """Return the bytes of a strip or tile as they are in the file; ``size`` is what they should decode to."""
    compression = page.number(Tag.COMPRESSION, _UNCOMPRESSED)
    offset = layout.offsets[index]
    count = layout.byte_counts[index] if index < len(layout.byte_counts) else 0
    if compression == _UNCOMPRESSED and offset and (count > size or (not count and layout.count == 1)):
        count = size  # more than it needs, or one strip without its size: both are written, and both are plain
    if not offset or not count:
        raise unsupported_tiff(page.path, f"strip or tile {index} has no data (a sparse file)")
    file.seek(offset)
    end = page.path.stat().st_size
    if offset + count > end:
        raise tiff_damage(page.path, f"a strip or tile up to byte {offset + count} of {end}")
    if compression in (8, 32946) and size > count * DEFLATE_LIMIT:
        raise tiff_damage(page.path, f"a strip or tile of {count} bytes that declares {size}")
    data = file.read(count)
    if page.number(Tag.FILL_ORDER, 1) == 2 and compression != 7:
        data = _REVERSED[np.frombuffer(data, np.uint8)].tobytes()
    return data


def _undo_floating(data: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Undo predictor 3: differences of bytes, and in each row first the highest byte of all samples, then the next."""
    rows, _, samples = data.shape
    planes = data.cumsum(axis=1, dtype=np.uint8).reshape(rows, dtype.itemsize, -1)
    values = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(dtype.newbyteorder(">"))
    return values.reshape(rows, -1, samples)
