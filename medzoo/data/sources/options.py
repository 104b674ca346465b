"""What a person chooses about a published data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypedDict

from medzoo.errors import ConfigError, did_you_mean

__all__ = ["SourceChoices", "SourceOptions"]


class SourceOptions(TypedDict, total=False):
    """Options of :meth:`medzoo.Table.from_source`; each set takes some of them.

    ``missing``: what happens to rows whose image is not there, such as those of subsets that were not downloaded:
    ``"refuse"`` raises an error that counts them, ``"drop"`` leaves them out, with a note.

    ``findings``: the findings that become labels, in this order; all by default.

    ``mapping``: file by which images are of patients, for a set that does not name these.

    ``negatives``: negatives that are drawn for each positive; by default all of them.

    ``sample_seed``: of that draw.

    ``sequence``: which MR sequence is taken.

    ``roi``: where the region that matters is taken from.

    ``same_person``: what counts as one person where names leave it open.
    """

    missing: Literal["refuse", "drop"]
    findings: Sequence[str] | None
    mapping: str | os.PathLike[str] | None
    negatives: float | None
    sample_seed: int
    sequence: str | None
    roi: str | None
    same_person: str | None


@dataclass(frozen=True)
class SourceChoices:
    """The options of :class:`SourceOptions` with their defaults; ``None`` is the default of the set."""

    missing: Literal["refuse", "drop"] = "refuse"
    findings: Sequence[str] | None = None
    mapping: str | os.PathLike[str] | None = None
    negatives: float | None = None
    sample_seed: int = 0
    sequence: str | None = None
    roi: str | None = None
    same_person: str | None = None

    @classmethod
    def of(cls, who: str, options: SourceOptions, takes: Sequence[str]) -> SourceChoices:
        """Return the choices, after a check that the set takes each of them.

        Raises:
            ConfigError: an option that the set does not take, or a value that cannot be.
        """
        known = {field.name: field.default for field in fields(cls)}
        for name, value in options.items():
            if name not in known:
                raise ConfigError(f"{who}: unknown option {name!r}.{did_you_mean(name, known)}")
            if name not in takes and value != known[name]:
                listed = ", ".join(takes) or "no options"
                raise ConfigError(f"{who}: it does not take {name}. It takes {listed}. Leave it out.")
        found = cls(**options)
        if found.missing not in ("refuse", "drop"):
            raise ConfigError(f"{who}: expected missing to be 'refuse' or 'drop', got {found.missing!r}. Choose one.")
        if found.negatives is not None and not found.negatives > 0:
            raise ConfigError(f"{who}: expected negatives for each positive to be above 0, got {found.negatives}.")
        return found
