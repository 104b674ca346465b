"""Names of labels that differ in spelling alone: ``Pleural_Thickening`` and ``Pleural Thickening``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from medzoo.data.faults import join_some, quote

__all__ = ["loose", "match_names", "spelling_note"]


def loose(name: str) -> str:
    """Return a name without capitals, spaces, underscores and hyphens.

    >>> loose("Pleural_Thickening") == loose("pleural thickening")
    True
    """
    return re.sub(r"[\s_\-]+", "", name).casefold()


def match_names(wanted: Sequence[str], known: Iterable[str]) -> dict[str, str]:
    """Return the known name of each wanted one that has one: the same, else the only one that is spelled alike.

    >>> match_names(["Edema", "Lung Lesion", "Mass"], ["mass", "Edema", "edema", "lung_lesion"])
    {'Edema': 'Edema', 'Lung Lesion': 'lung_lesion', 'Mass': 'mass'}
    """
    left = list(known)
    found = {name: name for name in wanted if name in left}
    left = [name for name in left if name not in found]
    missing = [name for name in wanted if name not in found]
    for name in missing:
        alike = [other for other in left if loose(other) == loose(name)]
        if len(alike) == 1 and sum(loose(other) == loose(name) for other in missing) == 1:
            found[name] = alike[0]
    return {name: found[name] for name in wanted if name in found}


def spelling_note(matched: Mapping[str, str], whose: str) -> tuple[str, ...]:
    """Return a note on the names that are spelled otherwise; none if there is none."""
    other = [f"{quote(name)} is {whose} {quote(found)}" for name, found in matched.items() if name != found]
    return (f"labels spelled otherwise: {join_some(other, 20)}",) if other else ()
