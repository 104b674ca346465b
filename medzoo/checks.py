"""Checks of the arguments a person gives: each returns the value, or raises a ConfigError."""

from __future__ import annotations

import operator
from typing import Any

from medzoo.errors import ConfigError

__all__ = ["rate", "whole", "wholes"]


def whole(who: str, name: str, value: Any, least: int) -> int:
    """Return a whole number of at least ``least``; NumPy's are taken, booleans are not.

    >>> whole("model", "num_classes", 3, 0)
    3
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ConfigError(f"{who}: expected {name} to be a number from {least}, got {value!r}.")
    return number


def wholes(who: str, name: str, values: Any, count: int) -> tuple[int, ...]:
    """Return ``count`` whole numbers from 1.

    >>> wholes("model", "widths", [4, 8], 2)
    (4, 8)
    """
    if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != count:
        raise ConfigError(f"{who}: expected {name} to be {count} numbers, got {values!r}.")
    return tuple(whole(who, name, value, 1) for value in values)


def rate(who: str, name: str, value: Any) -> float:
    """Return a share in [0, 1), such as of dropout.

    >>> rate("model", "dropout", 0.5)
    0.5
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0.0 <= value < 1.0:
        raise ConfigError(f"{who}: expected {name} to be in [0, 1), got {value!r}.")
    return float(value)
