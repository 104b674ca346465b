"""What is wrong with a recipe, in plain words: every fault with its dotted path, and the nearest known name."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from medzoo.errors import did_you_mean

__all__ = ["describe_faults", "fields_of"]

EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text (a number or a truth value needs quotes here)",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "fields with values",
    "model_type": "fields with values",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number from {ge:g} on",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number up to {le:g}",
    "string_pattern_mismatch": "auto, cpu, cuda or cuda:N",
    "too_long": "at most {max_length} values",
    "none_required": "nothing",
}


def fields_of(schema: type[BaseModel], before: str = "") -> Iterator[str]:
    """Yield the dotted path of every field that is no section."""
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields_of(field.annotation, f"{before}{name}.")
        else:
            yield before + name


def describe_faults(who: str, error: ValidationError, schema: type[BaseModel]) -> str:
    """Return the message of all faults: one line for one fault, else a line for each."""
    lines: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        for path, text in _describe(fault, schema):
            lines.setdefault(path, f"{path}: {text}")
    if len(lines) == 1:
        return f"{who}: {next(iter(lines.values()))}"
    return "\n  ".join([f"{who}: {len(lines)} faults", *lines.values()])


def _describe(fault: Mapping[str, Any], schema: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yield the paths of a fault, and what is wrong there."""
    path, section, description = _place(fault["loc"], schema)
    kind, got = fault["type"], _short(fault.get("input"))
    if kind == "recipe_rules":
        yield from ((f"{path}.{field}".lstrip("."), f"{text}.") for field, text in fault["ctx"]["faults"])
    elif kind == "extra_forbidden":
        yield path, _unknown(str(fault["loc"][-1]), section, schema)
    elif kind == "missing":
        yield path, "missing. Give it a value."
    elif kind == "recipe":
        yield path, f"{fault['msg']}, got {got}."
    elif path == "format":
        yield path, f"expected 1, got {got}. It may be of a later medzoo."
    elif kind == "literal_error" and not description:
        known = _literals(fault)
        yield path, f"expected {_either(known)}, got {got}.{did_you_mean(str(fault.get('input')), known)}"
    else:
        expected = description or EXPECTED.get(kind, "another value").format(**fault.get("ctx", {}))
        yield path, f"expected {expected}, got {got}."


def _place(loc: tuple[Any, ...], schema: type[BaseModel]) -> tuple[str, type[BaseModel], str]:
    """Return the dotted path without pydantic's branches of a union, its section, and the field's own description."""
    parts: list[str] = []
    section, description = schema, ""
    for index, name in enumerate(loc):
        parts.append(str(name))
        field = section.model_fields.get(str(name))
        if field is None:
            break
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
            continue
        description = field.description or ""
        rest = loc[index + 1 :]
        if _is_mapping(annotation) and rest:
            parts.append(str(rest[0]))
        elif rest and isinstance(rest[0], int) and not description:
            parts[-1] += f"[{rest[0]}]"
        break
    return ".".join(parts), section, description


def _is_mapping(annotation: Any) -> bool:
    """Whether a type is a dictionary, or one or nothing: in another union a branch comes before the key."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return all(_is_mapping(one) for one in typing.get_args(annotation) if one is not types.NoneType)
    return typing.get_origin(annotation) is dict


def _unknown(name: str, section: type[BaseModel], schema: type[BaseModel]) -> str:
    """Return what to do about a field that does not exist."""
    if name.startswith(("_", "$")):
        return "unknown: a recipe holds no code."
    near = did_you_mean(name, section.model_fields)
    elsewhere = [path for path in fields_of(schema) if path.rpartition(".")[2] == name]
    if elsewhere and not near:
        return f"unknown here. It is {_either([repr(path) for path in elsewhere])}."
    return f"unknown.{near}" if near else f"unknown. Known are {', '.join(section.model_fields)}."


def _literals(fault: Mapping[str, Any]) -> list[str]:
    """Return the values of a ``Literal``, which pydantic gives as one text."""
    text = fault["ctx"]["expected"].replace(" or ", ", ")
    return [part.strip("'") for part in text.split(", ")]


def _either(values: list[str]) -> str:
    """Return ``"a, b or c"``."""
    return " or ".join(filter(None, [", ".join(values[:-1]), values[-1]]))


def _short(value: Any) -> str:
    """Return a value for a message, cut where it is long."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
