"""Python code as text, laid out as a formatter does: values, calls and comments in lines of at most 120 characters."""

from __future__ import annotations

import keyword
import math
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from medzoo.errors import ConfigError

__all__ = ["Code", "assign_lines", "call_lines", "comment_lines", "python_text"]

WIDTH = 120


class Code(str):
    """Text that is code. Every other text is a value, and is quoted; what is put together from code is a value too."""


def comment_lines(text: str) -> list[str]:
    """Return a text as comments; nothing in it can end one."""
    shown = "".join(c if c.isprintable() else " " for c in text)  # a null character would end the file
    return [f"# {line}" for line in textwrap.wrap(" ".join(shown.split()), WIDTH - 2)]


def python_text(value: Any) -> str:
    """Return a plain value as code that evaluates to it.

    >>> python_text(("x", 1e-4)), python_text(["a"]), python_text((2,))
    ('("x", 0.0001)', '["a"]', '(2,)')
    """
    if isinstance(value, Code):
        return str(value)
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{python_text(key)}: {python_text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(python_text, value))}{',' * (len(value) == 1)})"
    if isinstance(value, list):
        return f"[{', '.join(map(python_text, value))}]"
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    raise ConfigError(f"script: expected texts and finite numbers, got {value!r}. Change the recipe.")


def _quoted(text: str) -> str:
    """Return a text in the quotes that need fewer escapes, double ones by preference, as formatters choose them."""
    quote = "'" if text.count('"') > text.count("'") else '"'
    inner = (f"\\{c}" if c == quote else c if c in "'\"" else repr(c)[1:-1] for c in text)
    return f"{quote}{''.join(inner)}{quote}"


def _name(text: str) -> str:
    """Return a text that is a name in Python, and stays the same when Python reads it.

    Raises:
        ConfigError: it is no name.
    """
    if not text.isidentifier() or keyword.iskeyword(text) or unicodedata.normalize("NFKC", text) != text:
        raise ConfigError(f"script: expected the name of an argument, got {text!r}. Correct it in the recipe.")
    return str(text)


def assign_lines(before: str, after: str, value: Any) -> list[str]:
    """Return ``before value after`` in lines that are short enough, the parts of a long value in lines of their own."""
    line = f"{before}{python_text(value)}{after}"
    if len(line) <= WIDTH or isinstance(value, (str, int, float)) or not value:
        return [line]
    indent = " " * (len(before) - len(before.lstrip()))
    opened, closed = ("{", "}") if isinstance(value, Mapping) else "()" if isinstance(value, tuple) else "[]"
    named = value.items() if isinstance(value, Mapping) else ((None, each) for each in value)
    lines = [f"{before}{opened}"]
    for name, each in named:
        lines += assign_lines(f"{indent}    {'' if name is None else f'{python_text(name)}: '}", ",", each)
    return [*lines, f"{indent}{closed}{after}"]


def call_lines(
    before: str, name: str, arguments: Iterable[Any], options: Mapping[str, Any], *, long: bool = False
) -> list[str]:
    """Return a call as a formatter lays it out: in one line, in three, or with an argument in each.

    Args:
        before: what is before the call, with the indentation.
        name: of the function.
        arguments: values, quoted unless they are :class:`Code`.
        options: values by keyword; a key that is :class:`Code`, such as ``**name``, stands for itself.
        long: an argument in each line in any case.

    Raises:
        ConfigError: a keyword or the name of the function that Python would not read as a name.
    """
    name, given = ".".join(map(_name, name.split("."))), [python_text(argument) for argument in arguments]
    named = [(key, "") if isinstance(key, Code) else (f"{_name(key)}=", value) for key, value in options.items()]
    each = [*given, *(key if isinstance(key, Code) else f"{key}{python_text(value)}" for key, value in named)]
    line = f"{before}{name}({', '.join(each)})"
    indent = " " * (len(before) - len(before.lstrip()))
    inner = f"{indent}    {', '.join(each)}"
    if len(line) <= WIDTH and not long:
        return [line]
    if len(inner) <= WIDTH and not long:
        return [f"{before}{name}(", inner, f"{indent})"]
    lines = [f"{before}{name}(", *(f"{indent}    {argument}," for argument in given)]
    for key, value in named:
        lines += [f"{indent}    {key},"] if isinstance(key, Code) else assign_lines(f"{indent}    {key}", ",", value)
    return [*lines, f"{indent})"]
