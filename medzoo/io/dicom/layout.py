"""Where the elements of a DICOM file lie: those of its header that are wanted, and the place of its pixels.

pydicom takes about 1 ms for a header, most of it for sequences that nobody asked for. Here they are stepped over
(PS3.5 7.1, 7.5). Whatever is not laid out as the standard has it, or is rare, is left to pydicom.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from struct import Struct
from typing import Any, BinaryIO

__all__ = [
    "IMPLICIT_LITTLE",
    "NATIVE",
    "UNDEFINED",
    "Element",
    "HeaderLayout",
    "dataset_of",
    "items_end",
    "read_layout",
]

Element = tuple[int, str | None, bytes]
"""Tag, VR (``None`` where it is implicit) and the bytes of the value."""

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
NATIVE = frozenset({IMPLICIT_LITTLE, "1.2.840.10008.1.2.1"})
"""The transfer syntaxes of uncompressed pixels whose layout is read here."""

_COMPRESSED = "1.2.840.10008.1.2.4."  # and all that follow, but RLE
_RLE = "1.2.840.10008.1.2.5"

UNDEFINED = 0xFFFFFFFF
"""The length of an element that ends with a delimiter."""

_FIRST, _MOST, _GROWTH = 2**14, 2**20, 4  # bytes of a header; pydicom reads a longer one
_DEEPEST = 16
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_CHARSET, _DEFAULT_CHARSET = 0x00080005, "iso8859"
_OVERLAYS = (0x60000000, 0x60FFFFFF)
_explicit, _implicit, _length = Struct("<HH2sH").unpack_from, Struct("<HHL").unpack_from, Struct("<L").unpack_from


class _Unusual(Exception):
    """The bytes are not laid out as is usual."""


class _Short(Exception):
    """The header goes on behind the bytes that were read."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HeaderLayout:
    """The header of a file, up to its pixels.

    Attributes:
        syntax: UID of the transfer syntax.
        elements: each wanted element by its tag.
        noticed: tags of the other elements whose presence was asked for.
        overlays: there are overlay elements.
        tag: of the pixels.
        vr: likewise.
        offset: of their first byte.
        length: of their value, or :data:`UNDEFINED`.
    """

    syntax: str
    elements: dict[int, Element]
    noticed: frozenset[int]
    overlays: bool
    tag: int
    vr: str | None
    offset: int
    length: int


def read_layout(file: BinaryIO, wanted: Container[int], noticed: Container[int]) -> HeaderLayout | None:
    """Return the layout of a file, read from its start; ``None`` where pydicom has to read it.

    Args:
        file: a file.
        wanted: tags of the elements to return.
        noticed: tags of elements of which only the presence is of interest.
    """
    data, size = b"", _FIRST
    while len(data) < _MOST:
        more = file.read(size)
        if not more:
            return None
        data += more
        try:
            return _parse(data, wanted, noticed)
        except _Short:
            size = (_GROWTH - 1) * len(data)
        except _Unusual:
            return None
    return None


def dataset_of(syntax: str, elements: Iterable[Element], more: Mapping[int, Any] | None = None) -> Any:
    """Return a data set as pydicom's reader does, with elements that are converted where they are asked for.

    Args:
        syntax: the transfer syntax.
        elements: its elements.
        more: elements of pydicom.
    """
    from pydicom.dataelem import RawDataElement, empty_value_for_VR
    from pydicom.dataset import Dataset

    implicit = syntax == IMPLICIT_LITTLE
    raw: dict[Any, Any] = {}
    for number, vr, data in elements:
        tag, value = _base_tag(number), data or empty_value_for_VR(vr, raw=True)
        raw[tag] = RawDataElement(tag, vr, len(data), value, 0, implicit, True)
    ds = Dataset(raw | dict(more or {}))
    charset = raw.get(_CHARSET)
    ds.set_original_encoding(implicit, True, _charset(charset) if charset else _DEFAULT_CHARSET)
    ds.file_meta = _file_meta(syntax)
    return ds


@lru_cache(256)
def _base_tag(number: int) -> Any:
    from pydicom.tag import BaseTag

    return BaseTag(number)


@lru_cache(16)
def _charset(element: Any) -> Any:
    """Return the encodings of an element SpecificCharacterSet, as pydicom's reader does."""
    from pydicom.charset import convert_encodings
    from pydicom.dataelem import convert_raw_data_element

    return convert_encodings(convert_raw_data_element(element).value)


@lru_cache(16)
def _file_meta(syntax: str) -> Any:
    from pydicom.dataset import FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    return meta


def items_end(data: bytes) -> int:
    """Return where the fragments of compressed pixels end, behind their delimiter; -1 where there is none."""
    try:
        return _skip_items(data, 0, False, 0, fragments=True)
    except (_Short, _Unusual):
        return -1


def _parse(data: bytes, wanted: Container[int], noticed: Container[int]) -> HeaderLayout:
    if data[128:132] != b"DICM":
        raise _Unusual
    syntax, at = _transfer_syntax(data)
    implicit = syntax == IMPLICIT_LITTLE
    if not (syntax in NATIVE or syntax == _RLE or syntax.startswith(_COMPRESSED)):
        raise _Unusual
    if implicit and _looks_explicit(data[at + 4 : at + 6]):
        raise _Unusual
    elements: dict[int, Element] = {}
    found: set[int] = set()
    last, overlays = 0x0007FFFF, False
    while True:
        tag, vr, length, at = _next(data, at, implicit)
        if tag <= last:  # in a wrong order, or before the data set
            raise _Unusual
        if tag in _PIXELS:
            return HeaderLayout(syntax, elements, frozenset(found), overlays, tag, vr, at, length)
        last, overlays = tag, overlays or _OVERLAYS[0] <= tag <= _OVERLAYS[1]
        if tag in noticed:
            found.add(tag)
        if length == UNDEFINED:
            if tag in wanted:
                raise _Unusual
            at = _skip_value(data, at, tag, vr, length, implicit, 0)
            continue
        at += length
        if at > len(data):
            raise _Short
        if tag in wanted:
            elements[tag] = tag, vr, data[at - length : at]


def _transfer_syntax(data: bytes) -> tuple[str, int]:
    """Return the transfer syntax, and where the data set starts."""
    syntax, at = "", 132
    while True:
        if len(data) < at + 8:
            raise _Short
        if data[at : at + 2] != b"\x02\x00":
            return syntax, at
        tag, _, length, at = _next(data, at, False)
        at += length
        if tag == 0x00020010:
            syntax = data[at - length : at].rstrip(b"\0 ").decode("latin-1")


def _next(data: bytes, at: int, implicit: bool) -> tuple[int, str | None, int, int]:
    """Return tag, VR and length of the element at a place, and where its value starts."""
    if len(data) < at + 12:
        raise _Short
    if implicit:
        group, number, length = _implicit(data, at)
        return group << 16 | number, None, length, at + 8
    group, number, code, length = _explicit(data, at)
    if group == 0xFFFE:  # a delimiter has no VR
        return group << 16 | number, None, 0, at + 8
    short, long = _representations()
    if code in short:
        return group << 16 | number, short[code], length, at + 8
    if code in long:
        return group << 16 | number, long[code], _length(data, at + 8)[0], at + 12
    raise _Unusual


@cache
def _representations() -> tuple[dict[bytes, str], dict[bytes, str]]:
    """Return the VRs whose length has two bytes, and those whose length has four."""
    from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

    short, long = ({vr.encode(): str(vr) for vr in own} for own in (EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32))
    return short, long


def _looks_explicit(code: bytes) -> bool:
    return len(code) == 2 and code.isalpha() and code.isupper()


def _skip_items(data: bytes, at: int, implicit: bool, depth: int, fragments: bool = False) -> int:
    """Return where the items of a value of undefined length end: data sets, or fragments of bytes."""
    if depth > _DEEPEST:
        raise _Unusual
    while True:
        if len(data) < at + 8:
            raise _Short
        group, number, length = _implicit(data, at)
        tag, at = group << 16 | number, at + 8
        if tag == _SEQUENCE_END and not length:
            return at
        if tag != _ITEM or (fragments and length == UNDEFINED):
            raise _Unusual
        at = at + length if fragments else _skip_elements(data, at, length, implicit, depth + 1)


def _skip_elements(data: bytes, at: int, size: int, implicit: bool, depth: int) -> int:
    """Return where an item ends, after its size or behind its delimiter; elements that miss the end are unusual."""
    end = at + size
    while at != end:
        if len(data) >= at + 8 and _implicit(data, at) == (_ITEM_END >> 16, _ITEM_END & 0xFFFF, 0):
            if size != UNDEFINED:
                raise _Unusual
            return at + 8
        tag, vr, length, at = _next(data, at, implicit)
        at = _skip_value(data, at, tag, vr, length, implicit, depth)
    return at


def _skip_value(data: bytes, at: int, tag: int, vr: str | None, length: int, implicit: bool, depth: int) -> int:
    """Return where the value of an element ends."""
    if tag >> 16 == 0xFFFE or (length == UNDEFINED and vr == "UN"):  # UN is implicit inside
        raise _Unusual
    if length == UNDEFINED:
        return _skip_items(data, at, implicit, depth, fragments=vr not in (None, "SQ"))
    return at + length
