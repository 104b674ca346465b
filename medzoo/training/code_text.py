"""Python code as text, laid out as a formatter does: values, calls and comments in lines of at most 120 characters."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Code", "assign_lines", "call_lines", "comment_lines", "value_text"]

WIDTH = 120


class Code(str):
    """Text that is code, not a value."""


def comment_lines(text: str) -> list[str]:
    """Return a text as comments; nothing in it can end one."""
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), WIDTH - 2)]


def value_text(value: Any) -> str:
    """Return a plain value as code.

    >>> value_text(("x", 1e-4)), value_text(["a"]), value_text((2,))
    ('("x", 0.0001)', '["a"]', '(2,)')
    """
    if isinstance(value, Code):
        return str(value)
    if isinstance(value, str):
        return (
            repr(value)
            if '"' in value and "'" not in value
            else json.dumps(value, ensure_ascii=not value.isprintable())
        )
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{value_text(key)}: {value_text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(value_text, value))}{',' * (len(value) == 1)})"
    return f"[{', '.join(map(value_text, value))}]" if isinstance(value, list) else repr(value)


def assign_lines(before: str, after: str, value: Any) -> list[str]:
    """Return ``before value after`` in lines that are short enough, the parts of a long value in lines of their own."""
    line = f"{before}{value_text(value)}{after}"
    if len(line) <= WIDTH or isinstance(value, (str, int, float)) or not value:
        return [line]
    indent = " " * (len(before) - len(before.lstrip()))
    opened, closed = ("{", "}") if isinstance(value, Mapping) else "()" if isinstance(value, tuple) else "[]"
    named = value.items() if isinstance(value, Mapping) else ((None, each) for each in value)
    lines = [f"{before}{opened}"]
    for name, each in named:
        lines += assign_lines(f"{indent}    {'' if name is None else f'{value_text(name)}: '}", ",", each)
    return [*lines, f"{indent}{closed}{after}"]


def call_lines(
    before: str, name: str, arguments: Iterable[str], options: Mapping[str, Any], *, long: bool = False
) -> list[str]:
    """Return a call as a formatter lays it out: in one line, in three, or with an argument in each.

    Args:
        before: what is before the call, with the indentation.
        name: of the function.
        arguments: code.
        options: values by keyword, or ``**name``.
        long: an argument in each line in any case.
    """
    each = [
        *arguments,
        *(key if key.startswith("*") else f"{key}={value_text(value)}" for key, value in options.items()),
    ]
    line = f"{before}{name}({', '.join(each)})"
    indent = " " * (len(before) - len(before.lstrip()))
    inner = f"{indent}    {', '.join(each)}"
    if len(line) <= WIDTH and not long:
        return [line]
    if len(inner) <= WIDTH and not long:
        return [f"{before}{name}(", inner, f"{indent})"]
    lines = [f"{before}{name}(", *(f"{indent}    {argument}," for argument in arguments)]
    for key, value in options.items():
        lines += [f"{indent}    {key},"] if key.startswith("*") else assign_lines(f"{indent}    {key}=", ",", value)
    return [*lines, f"{indent})"]
