"""What the labels of a table mean: the options of its constructors, and the result of reading labels.

Axes: n rows, l labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from medzoo.contract import Task, check_task
from medzoo.errors import ConfigError, did_you_mean

__all__ = ["LabelOptions", "LabelRules", "Labels", "Uncertain", "masked_note"]

Uncertain = Literal["refuse", "mask", "positive", "negative"]


class LabelOptions(TypedDict, total=False):
    """Options of every constructor of :class:`~medzoo.Table`.

    ``task``: ``"binary"``, ``"multilabel"`` or ``"multiclass"``; without it, it follows from the labels.

    ``names``: of a column of classes, the classes in order, the second of two being the positive one; of a column with
    ``sep``, the findings; of columns of 0 and 1, the names to use instead of the columns'.

    ``positive``: the positive one of two classes; needed where their names do not say which is negative, as ``normal``
    and ``no edema`` do.

    ``sep``: what joins several findings in one column, such as ``"|"``.

    ``none``: the word of such a column for no finding; ``"No Finding"``.

    ``others``: what findings mean that are not in ``names``: ``"refuse"``, or ``"negative"`` to leave them out.

    ``uncertain``: what -1 means: ``"refuse"``, ``"mask"`` (not known: NaN), ``"positive"`` or ``"negative"``.

    ``blank``: what a blank or NaN means: ``"refuse"``, ``"mask"`` or ``"negative"``. Without it, blanks are masked
    where ``uncertain`` is anything but ``"refuse"``; a blank never means positive.
    """

    task: Task | None
    names: Sequence[str] | None
    positive: str | None
    sep: str | None
    none: str
    others: Literal["refuse", "negative"]
    uncertain: Uncertain
    blank: Literal["refuse", "mask", "negative"] | None


@dataclass(frozen=True)
class LabelRules:
    """The options of :class:`LabelOptions`, checked."""

    task: Task | None = None
    names: Sequence[str] | None = None
    positive: str | None = None
    sep: str | None = None
    none: str = "No Finding"
    others: Literal["refuse", "negative"] = "refuse"
    uncertain: Uncertain = "refuse"
    blank: Literal["refuse", "mask", "negative"] | None = None

    def __post_init__(self) -> None:
        if self.task is not None:
            check_task("Table", self.task)
        for name, known in (
            ("uncertain", ("refuse", "mask", "positive", "negative")),
            ("blank", (None, "refuse", "mask", "negative")),
            ("others", ("refuse", "negative")),
        ):
            if (given := getattr(self, name)) not in known:
                raise ConfigError(f"Table: expected {name} to be one of {', '.join(map(repr, known))}, got {given!r}.")
        if self.sep == "":
            raise ConfigError("Table: expected sep to be what joins findings, such as '|', got ''. Leave it out.")
        if isinstance(self.names, str) or (self.names is not None and len(set(self.names)) != len(self.names)):
            raise ConfigError(f"Table: expected names to be distinct names, got {self.names!r}. Give each name once.")

    @classmethod
    def of(cls, options: LabelOptions) -> LabelRules:
        """Return the rules that a constructor was given.

        Raises:
            TypeError: an argument that no constructor has.
            ConfigError: a value that an option cannot have.
        """
        known = LabelOptions.__annotations__
        for name in options:
            if name not in known:
                raise TypeError(f"Table: unknown argument {name!r}.{did_you_mean(name, known)}")
        return cls(**options)

    @property
    def blanks(self) -> str:
        """What a blank means."""
        return self.blank or ("refuse" if self.uncertain == "refuse" else "mask")


@dataclass(frozen=True)
class Labels:
    """Labels that were read.

    Attributes:
        targets: ``n l`` float32 of 0, 1 and NaN.
        names: of the l labels.
        task: given, or as it follows.
        notes: choices that were made.
    """

    targets: NDArray[np.float32]
    names: tuple[str, ...]
    task: Task
    notes: tuple[str, ...] = ()


def masked_note(targets: NDArray[np.float32]) -> tuple[str, ...]:
    """Return a note on how many labels are NaN; none if there is none."""
    count = int(np.isnan(targets).sum())
    return (f"{count:,} label{'s' * (count > 1)} not known, left out of loss and metrics",) if count else ()
