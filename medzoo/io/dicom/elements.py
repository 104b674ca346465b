"""Values of header elements; one that is missing or cannot be read is named by its keyword and tag.

A value is never quoted: a scanner may have written a name into any of them.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["ElementError", "integer", "integer_or_none", "items", "number_texts", "numbers", "text"]

_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")


class ElementError(ValueError):
    """A header element that is missing, or whose value cannot be used.

    Attributes:
        keyword: its DICOM keyword.
        problem: what is wrong with it.
    """

    def __init__(self, keyword: str, problem: str) -> None:
        super().__init__(f"{keyword} {problem}")
        self.keyword = keyword
        self.problem = problem

    def __str__(self) -> str:
        from pydicom.datadict import tag_for_keyword
        from pydicom.tag import Tag

        tag = Tag(tag_for_keyword(self.keyword) or 0)
        return f"{self.keyword} ({tag.group:04X},{tag.element:04X}) {self.problem}"


def numbers(ds: Any, keyword: str) -> tuple[float, ...]:
    """Return the numbers of an element; ``()`` where it is absent or empty.

    A decimal comma, which some vendors write, is read as a decimal point.

    Raises:
        ElementError: a value that is not a number.
    """
    try:
        value = ds.get(keyword)
    except Exception:
        return _from_text(ds, keyword)
    if value is None or value == "":
        return ()
    try:
        several = hasattr(value, "__len__") and not isinstance(value, (str, bytes))
        return tuple(float(v) for v in (value if several else [value]))
    except (TypeError, ValueError, OverflowError):
        return _from_text(ds, keyword)


def _from_text(ds: Any, keyword: str) -> tuple[float, ...]:
    """Return the numbers of an element whose text pydicom does not read."""
    from pydicom.datadict import tag_for_keyword

    element = ds.get_item(tag_for_keyword(keyword))
    value = getattr(element, "value", None)
    if getattr(element, "VR", None) not in (None, "DS", "IS", "UN"):
        raise ElementError(keyword, "cannot be read")
    parts = value if isinstance(value, (bytes, str)) else "\\".join(str(part) for part in value or ())
    try:
        return tuple(float(number) for number in number_texts(parts))
    except ValueError:
        raise ElementError(keyword, "holds text that is not a number") from None


def number_texts(value: bytes | str) -> list[str]:
    """Return the parts of a decimal string, without padding of spaces or NUL, each with a decimal point."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    text = text.rstrip("\\ \0")  # values that are left out at the end
    parts = [part.strip(" \0") for part in text.split("\\")] if text else []
    return [part.replace(",", ".") if _DECIMAL_COMMA.fullmatch(part) else part for part in parts]


def integer_or_none(ds: Any, keyword: str) -> int | None:
    """Return an integer, or ``None`` where the element is absent or empty.

    Raises:
        ElementError: several values, or one that is not an integer.
    """
    found = numbers(ds, keyword)
    if not found:
        return None
    if len(found) != 1 or not found[0].is_integer():
        raise ElementError(keyword, "is not one integer")
    return int(found[0])


def integer(ds: Any, keyword: str) -> int:
    """Return an integer.

    Raises:
        ElementError: the element is absent or empty, or not one integer.
    """
    found = integer_or_none(ds, keyword)
    if found is None:
        raise ElementError(keyword, "is missing")
    return found


def text(ds: Any, keyword: str) -> str:
    """Return the text of an element, the first of several; ``""`` where it is absent.

    Raises:
        ElementError: a value that cannot be read.
    """
    try:
        value = ds.get(keyword)
    except Exception:
        raise ElementError(keyword, "cannot be read") from None
    if value is not None and not isinstance(value, (str, bytes)) and hasattr(value, "__len__"):
        value = value[0] if len(value) else ""
    return str("" if value is None else value).strip(" \0\t\r\n")


def items(ds: Any, keyword: str) -> list[Any]:
    """Return the items of a sequence; ``[]`` where it is absent or empty.

    Raises:
        ElementError: the element is not a sequence.
    """
    try:
        found = list(ds.get(keyword) or ())
    except Exception:
        raise ElementError(keyword, "cannot be read") from None
    if not all(hasattr(item, "get_item") for item in found):
        raise ElementError(keyword, "is not a sequence")
    return found
