"""Progress bars: one helper for all of them, so that they are shown or hidden by one rule.

A bar is written to stderr if that is a terminal. ``MEDZOO_PROGRESS=0`` hides all of them, those of the Hub client
included.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, TypeVar

from medzoo.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

__all__ = ["hide_hub_progress", "progress_bar", "shows_progress", "track"]

T = TypeVar("T")


def shows_progress() -> bool:
    """Whether progress bars are shown: stderr is a terminal, and ``MEDZOO_PROGRESS`` is not 0.

    Raises:
        ConfigError: ``MEDZOO_PROGRESS`` is neither 0 nor 1.
    """
    # A program without a console on Windows has no stderr.
    return _allows_progress() and sys.stderr is not None and sys.stderr.isatty()


def _allows_progress() -> bool:
    given = os.environ.get("MEDZOO_PROGRESS") or "1"
    if given not in ("0", "1"):
        raise ConfigError(f"MEDZOO_PROGRESS: expected 0 or 1, got {given!r}. Unset it, or set it to 0 or 1.")
    return given == "1"


def progress_bar(*columns: ProgressColumn, transient: bool = False) -> Progress:
    """Return a rich progress bar, which writes nothing unless :func:`shows_progress`.

    Args:
        columns: columns after the default ones.
        transient: whether the bar is removed when it is done.
    """
    drawn = random.getstate()
    from rich.console import Console
    from rich.progress import Progress

    random.setstate(drawn)  # rich draws a number when it is imported
    hidden = not shows_progress()
    # Before rich 14.3 a disabled bar still ends with an empty line, which a quiet console does not print.
    console = Console(stderr=True, quiet=hidden)
    return Progress(*Progress.get_default_columns(), *columns, console=console, transient=transient, disable=hidden)


def track(items: Collection[T], description: str) -> Iterator[T]:
    """Yield the items, with a bar that is removed after the last."""
    with progress_bar(transient=True) as bar:
        yield from bar.track(items, total=len(items), description=description)


def hide_hub_progress() -> None:
    """Switch off the bars of the Hub client in this process if ``MEDZOO_PROGRESS=0``.

    Without a terminal the client hides them itself. ``HF_HUB_DISABLE_PROGRESS_BARS=0`` has priority, as in the client.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not _allows_progress() and constants.HF_HUB_DISABLE_PROGRESS_BARS is not False:
        disable_progress_bars()
