"""Warnings that point to the user's line, however many functions of medzoo are between, and deprecations."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

__all__ = ["deprecated_alias", "warn", "warn_deprecated"]

# PyTorch's, because it calls the forward of a model.
INSIDE = ("medzoo", "torch")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning that points to the line outside of medzoo that led to it."""
    frame: FrameType | None = sys._getframe()
    level = 1
    # warnings.warn skips files by itself only from Python 3.12 on.
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, level)


def warn_deprecated(old: str, new: str, *, removed_in: str) -> None:
    """Issue a DeprecationWarning.

    Python shows one by default only where its line is in ``__main__``, such as in a notebook, so the line has to be the
    user's.

    Args:
        old: what is deprecated, as the caller wrote it.
        new: what to use instead.
        removed_in: the first version without ``old``, one minor release after the one that deprecates it.
    """
    warn(f"{old} is deprecated and will be removed in medzoo {removed_in}; use {new}", DeprecationWarning)


def deprecated_alias(old: str, new: str, *, removed_in: str) -> property:
    """Return a property that reads the attribute ``new`` under its former name, with a warning.

    >>> class Result:
    ...     warning = "values above 1"
    ...     doubt = deprecated_alias("doubt", "warning", removed_in="0.2.0")
    >>> with warnings.catch_warnings(record=True, action="always") as caught:
    ...     Result().doubt
    'values above 1'
    >>> print(caught[0].message)
    Result.doubt is deprecated and will be removed in medzoo 0.2.0; use Result.warning
    """

    def read(self: object) -> object:
        owner = type(self).__name__
        warn_deprecated(f"{owner}.{old}", f"{owner}.{new}", removed_in=removed_in)
        return getattr(self, new)

    return property(read, doc=f"Deprecated alias of ``{new}``; removed in medzoo {removed_in}.")
