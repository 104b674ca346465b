"""Colour pixels as RGB: YBR of JPEG, and palettes, also those written in segments.

Axes: s samples of a colour pixel, ``...`` any frames, rows and columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.io.dicom.elements import ElementError, numbers

__all__ = ["apply_palette", "table_from", "to_rgb"]

_PALETTE = "PaletteColorLookupTable"
_MOST_ENTRIES = 2**16

# PS3.3 C.7.6.3.1.2, in float32 as in pydicom, whose values these are.
_YBR_TO_RGB = np.array([[1, 1, 1], [0, -0.114 * 1.772 / 0.587, 1.772], [1.402, -0.299 * 1.402 / 0.587, 0]], np.float32)


def to_rgb(array: NDArray[Any], photometric: str, signed: bool, high: float) -> NDArray[Any]:
    """Convert ``... 3`` to RGB.

    Args:
        array: the samples.
        photometric: the photometric interpretation that they have.
        signed: they are signed.
        high: the highest value that they could have.

    Raises:
        ElementError: a colour space that is not converted, or YBR of other than 8 unsigned bits.
    """
    if photometric == "RGB":
        return array
    if photometric not in ("YBR_FULL", "YBR_FULL_422"):
        raise ElementError("PhotometricInterpretation", f"is {photometric}, which only JPEG 2000 defines")
    if signed or high != 255:
        raise ElementError("PhotometricInterpretation", f"is {photometric}, which is defined for 8 unsigned bits alone")
    frames = array if array.ndim == 4 else array[None]
    for i, frame in enumerate(frames):  # one by one: float32 needs four times the memory of 8 bits
        ybr = frame.astype(np.float32)
        ybr -= np.array([0, 128, 128], np.float32)
        rgb = np.floor(ybr @ _YBR_TO_RGB + np.float32(0.5))
        frames[i] = np.clip(rgb, 0, 255)
    return array


def apply_palette(array: NDArray[Any], ds: Any, signed: bool) -> tuple[NDArray[Any], float]:
    """Return the colours ``... 3`` of palette indices, and the highest value of the palette; alpha is left out.

    Indices before the first entry get the first, those beyond the last get the last (PS3.3 C.7.6.3.1.5).

    Raises:
        ElementError: an element of the palette is missing, or too short.
    """
    descriptor = numbers(ds, f"Red{_PALETTE}Descriptor")
    if len(descriptor) != 3 or descriptor[2] not in (8, 16):
        raise ElementError(f"Red{_PALETTE}Descriptor", "does not hold a length, a first index, and 8 or 16 bits")
    entries, first, bits = int(descriptor[0]) or _MOST_ENTRIES, int(descriptor[1]), int(descriptor[2])
    if signed and first >= 2**15:  # stored as signed, read as unsigned
        first -= 2**16
    elif not signed and first < 0:
        first += 2**16
    tables = np.stack([_palette(ds, colour, entries, bits) for colour in ("Red", "Green", "Blue")], axis=-1)
    wide = bool(bits == 16 and tables.dtype.itemsize == 2) or int(tables.max()) > 255  # 8 bits may be padded to 16
    index = np.clip(array.astype(np.int64) - first, 0, entries - 1)
    return tables.astype(np.uint16 if wide else np.uint8)[index], 65535.0 if wide else 255.0


def _palette(ds: Any, colour: str, entries: int, bits: int) -> NDArray[Any]:
    keyword = f"{colour}{_PALETTE}Data"
    if keyword in ds:
        table = table_from(ds[keyword], entries, ds)
    elif f"Segmented{keyword}" in ds:
        keyword = f"Segmented{keyword}"
        words = table_from(ds[keyword], 0 if bits == 8 else len(ds[keyword].value) // 2, ds)
        table = _expand(keyword, words.tolist(), bits // 8, entries)
    else:
        raise ElementError(keyword, "is missing")
    if len(table) < entries:
        raise ElementError(keyword, f"has {len(table)} entries, fewer than the {entries} of its descriptor")
    return table[:entries]


def table_from(element: Any, entries: int, ds: Any) -> NDArray[Any]:
    """Return the entries of a lookup table, which may be numbers, or bytes of one or two for each entry."""
    data = element.value
    if isinstance(data, (bytes, bytearray)):
        big = ds.original_encoding[1] is False
        words = entries and len(data) >= 2 * entries
        if not words and big and element.VR == "OW" and len(data) % 2 == 0:  # the first of two is in the low byte
            return np.frombuffer(data, "<u2").astype(">u2").view(np.uint8)
        return np.frombuffer(data, f"{'>' if big else '<'}u2" if words else "u1", len(data) // 2 if words else -1)
    return np.atleast_1d(np.asarray(data, dtype=np.int64))


def _expand(keyword: str, data: list[int], size: int, entries: int) -> NDArray[Any]:
    """Expand a segmented table (PS3.3 C.7.9.2): runs of values, lines to a value, and repeats of earlier segments.

    Args:
        keyword: the element, for messages.
        data: its words.
        size: bytes of a word.
        entries: how many entries are wanted; expansion stops there.
    """
    table: list[int] = []

    def expand(at: int, segments: int, nested: bool) -> None:
        while at + 2 < len(data) and segments and len(table) < entries:
            code, length = data[at], data[at + 1]
            at, segments = at + 2, segments - 1
            if code == 0:
                table.extend(data[at : at + length])
                at += length
            elif code == 1 and table and length:
                start, end = table[-1], data[at]
                table.extend(int(v) for v in np.around(np.linspace(start, end, length + 1)[1:]))
                at += 1
            elif code == 2 and table and not nested:
                words = 4 // size  # the offset in bytes, least significant word first
                offset = sum(word << (8 * size * i) for i, word in enumerate(data[at : at + words]))
                at += words
                expand(offset // size, length, True)
            else:
                raise ElementError(keyword, "has segments that cannot be expanded")

    expand(0, len(data), False)
    if table and max(table) >= 2 ** (8 * size):
        raise ElementError(keyword, "has segments that cannot be expanded")
    return np.array(table, np.uint16 if size == 2 else np.uint8)
