"""Every error medzoo raises on purpose, and the checks of plain arguments that raise them.

A message says who, expected, got, and what to do. Each type is built from that one message, which holds
everything: attributes would not survive a data-loader worker. ``exit_code`` is what the command line exits with.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

__all__ = [
    "ConfigError",
    "DataError",
    "ExportError",
    "InputError",
    "MedzooError",
    "RegistrationError",
    "ShapeError",
    "TrainError",
    "UnknownModelError",
    "UnsafeWeights",
    "WeightsCorrupt",
    "WeightsMismatch",
    "WeightsUnavailable",
    "WrongImage",
    "check_int",
    "check_ints",
    "check_rate",
    "did_you_mean",
]


class MedzooError(Exception):
    """The root of medzoo's errors."""

    exit_code = 1


class UnknownModelError(MedzooError, LookupError):
    """No model of that name is registered."""

    exit_code = 2


class ConfigError(MedzooError, ValueError):
    """An option, a tag or a combination of arguments that cannot be."""

    exit_code = 2


class RegistrationError(ConfigError):
    """A model that is not what its registration states, or a registration that cannot be."""


class WeightsUnavailable(MedzooError, OSError):
    """The weight file cannot be had: no network, no cache, no permission, no space."""

    exit_code = 3


class WeightsCorrupt(MedzooError, OSError):
    """The bytes of a weight file are not what they should be."""

    exit_code = 4


class WeightsMismatch(MedzooError, ValueError):
    """A weight file is sound but does not fit the model."""

    exit_code = 4


class UnsafeWeights(MedzooError, ValueError):
    """A weight file that could only be read by running code from it."""

    exit_code = 4


class InputError(MedzooError, ValueError):
    """A tensor that the model cannot take as it is."""

    exit_code = 5


class ShapeError(InputError):
    """A tensor whose axes, channels or sizes are not the model's."""


class DataError(MedzooError, ValueError):
    """A file or a table that cannot be used. Names file and row; a patient id appears only hashed."""

    exit_code = 5
    reason = "cannot be read"
    """What the failures of many files are counted by; each kind of error has its own."""


class WrongImage(DataError):
    """An image of another kind than the model is for: another modality, body part, view or age."""

    reason = "another kind of image"


class ExportError(MedzooError, RuntimeError):
    """A model cannot be exported, or its exported form does not compute what it does."""

    exit_code = 8


class TrainError(MedzooError, RuntimeError):
    """Training cannot go on."""

    exit_code = 6


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known name, or an empty string.

    >>> did_you_mean("cnn3d_smal", ["cnn3d_small", "xray_cnn"])
    " Did you mean 'cnn3d_small'?"
    >>> did_you_mean("vgg", ["cnn3d_small"])
    ''
    """
    near = get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_int(who: str, name: str, value: Any, least: int) -> int:
    """Return an int >= ``least``, NumPy's included and booleans excluded, or raise a ConfigError.

    >>> check_int("model", "num_classes", 3, 0)
    3
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ConfigError(f"{who}: expected {name} to be an int >= {least}, got {value!r}.")
    return number


def check_ints(who: str, name: str, values: Any, count: int) -> tuple[int, ...]:
    """Return ``count`` ints >= 1, or raise a ConfigError.

    >>> check_ints("model", "widths", [4, 8], 2)
    (4, 8)
    """
    if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != count:
        raise ConfigError(f"{who}: expected {name} to be {count} numbers, got {values!r}.")
    return tuple(check_int(who, name, value, 1) for value in values)


def check_rate(who: str, name: str, value: Any) -> float:
    """Return a rate in [0, 1), such as of dropout, or raise a ConfigError.

    >>> check_rate("model", "dropout", 0.5)
    0.5
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0.0 <= value < 1.0:
        raise ConfigError(f"{who}: expected {name} to be in [0, 1), got {value!r}.")
    return float(value)
