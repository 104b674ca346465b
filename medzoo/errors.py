"""Every error medzoo raises on purpose.

A message says who, expected, got, and what to do. Each type is built from that one message, which holds
everything: attributes would not survive a data-loader worker. ``exit_code`` is what the command line exits with.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "ConfigError",
    "DataError",
    "InputError",
    "MedzooError",
    "ShapeError",
    "TrainError",
    "UnknownModelError",
    "UnsafeWeights",
    "WeightsCorrupt",
    "WeightsMismatch",
    "WeightsUnavailable",
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
