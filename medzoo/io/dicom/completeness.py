"""What the headers of a series show about slices that are not there: its numbering, declared counts, other stacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from medzoo.io.dicom.stacks import Frame, Stack
from medzoo.io.dicom.tags import DISTINCTIONS

if TYPE_CHECKING:
    from medzoo.io.dicom.slices import Slice

__all__ = ["declared_counts", "merge_warnings", "missing_numbers", "repeated_numbers", "shorter_than_others"]

_LISTED = 5
_MOST_STRIDE = 20
_ROUND = 100  # a numbering that starts after a multiple of it, such as at 1001, is a scheme
# Regions of their own: their volumes need not be of one length.
_REGIONS = tuple(i for i, one in enumerate(DISTINCTIONS) if one.name in ("series number", "stack"))


def merge_warnings(warnings: Iterable[tuple[str, str]]) -> str:
    """Return the distinct warnings of the slices or stacks of one image as one.

    Args:
        warnings: the name and the warning of each; a warning that not all have is preceded by the first name, and how
            many more have it.
    """
    pairs = list(warnings)
    by_text: dict[str, list[str]] = {}
    for name, text in pairs:
        if text:
            by_text.setdefault(text, []).append(name)
    found = []
    for text, names in list(by_text.items())[:_LISTED]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        found.append(text if len(names) == len(pairs) else f"{names[0]}{more}: {text}")
    if len(by_text) > _LISTED:
        others = sum(len(names) for names in list(by_text.values())[_LISTED:])
        found.append(f"{others} more have other warnings.")
    return " ".join(found)


def missing_numbers(
    slices: Sequence[Slice], stacks: Sequence[Sequence[Slice]], elsewhere: Mapping[str, set[int]]
) -> str:
    """Return a warning if the instance numbers of a series have holes, or do not start at 0 or 1.

    Args:
        slices: everything with this SeriesInstanceUID.
        stacks: the slices of each volume, for a series that numbers each by itself.
        elsewhere: the numbers in the other series of the study. A series may continue the numbering of another.
    """
    numbers = [one.number for one in slices if one.number is not None]
    if len(set(numbers)) == len(numbers):
        missing = _holes(set(numbers), elsewhere)
    else:
        missing = []
        for stack in stacks:
            own = [one.number for one in stack if one.number is not None]
            missing += _holes(set(own), elsewhere) if len(set(own)) == len(own) else []
    if not missing:
        return ""
    listed = ", ".join(map(str, missing[:_LISTED])) + (", …" if len(missing) > _LISTED else "")
    return (
        f"{len(missing)} of the instance numbers of the series {'are' if len(missing) > 1 else 'is'} missing "
        f"({listed}): slices may be missing."
    )


def repeated_numbers(slices: Sequence[Slice]) -> str:
    """Return a warning if slices of one volume share an instance number, unless all have the same."""
    numbers = [one.number for one in slices if one.number is not None]
    distinct = len(set(numbers))
    if distinct < 2 or distinct == len(numbers):
        return ""
    shared = sum(count for count in Counter(numbers).values() if count > 1)
    return f"{shared} slices of the volume share an instance number: slices of two series may be mixed."


def _holes(numbers: set[int], elsewhere: Mapping[str, set[int]]) -> list[int]:
    if len(numbers) < 2 or min(numbers) < 0:
        return []
    low, high = min(numbers), max(numbers)
    missing: list[int] = []
    if low - 1 <= 3 * len(numbers) and (low - 1) % _ROUND:
        missing += range(1, low)
    strides = {b - a for a, b in pairwise(sorted(numbers))}
    thinned = len(numbers) > 2 and len(strides) == 1 and max(strides) <= _MOST_STRIDE  # each second one, or fifth
    if high - low < 5 * len(numbers) or thinned:  # otherwise the numbers are not consecutive by design
        missing += [n for n in range(low, high) if n not in numbers]
    if not missing:
        return []
    known: set[int] = set().union(*(other for other in elsewhere.values() if not other & numbers))
    return [n for n in missing if n not in known]


def declared_counts(slices: Sequence[Slice], stacks: int) -> str:
    """Return a warning if headers declare more images, or more temporal positions, than there are."""
    found = []
    declared = {one.counts[0] for one in slices if one.counts[0]}
    by_acquisition = Counter(one.acquisition for one in slices)
    per_acquisition = any(one.counts[0] == by_acquisition[one.acquisition] for one in slices if one.counts[0])
    if declared and max(declared) > len(slices):
        found.append(f"{max(declared)} images in the acquisition, found {len(slices)}")
    elif declared and per_acquisition:
        short = {one.acquisition: one.counts[0] for one in slices if one.counts[0] > by_acquisition[one.acquisition]}
        found += [f"{n} images in an acquisition, found {by_acquisition[key]}" for key, n in short.items()]
    series = max((one.counts[3] for one in slices), default=0)
    if series > len(slices):
        found.append(f"{series} images in the series, found {len(slices)}")
    positions = max((one.counts[2] for one in slices), default=0)
    if positions > stacks:
        found.append(f"{positions} temporal positions, found {stacks}")
    return f"The headers declare {'; '.join(found)}: slices may be missing." if found else ""


def shorter_than_others(frames: Sequence[Frame], stacks: Sequence[Stack], declared: Sequence[int]) -> list[str]:
    """Return for each stack a warning if others have slices at positions where it has none, or ``""``.

    Args:
        frames: the slices.
        stacks: those of one series; only stacks of one direction are compared.
        declared: for each slice, how many the header declares in its volume, or 0.
    """
    found = []
    for stack in stacks:
        first = frames[stack.members[0]]
        number = max(declared[i] for i in stack.members)
        if number > len(stack.members):
            found.append(f"The header declares {number} slices, found {len(stack.members)}: slices may be missing.")
            continue
        others = [i for other in stacks if other is not stack and _comparable(first, frames[other.members[0]])
                  for i in other.members]  # fmt: skip
        normal = first.plane.normal
        places = np.array([frames[i].plane.origin @ normal for i in stack.members])
        apart = np.diff(places)
        same = max(0.1, 0.1 * float(np.median(apart))) if len(apart) else 0.1
        extra = {
            round(place / same) for i in others
            if np.abs(places - (place := float(frames[i].plane.origin @ normal))).min() > same
        }  # fmt: skip
        found.append(
            f"Other stacks of the series have {len(extra)} slices where {stack.name} has none: slices may be missing."
            if extra else ""
        )  # fmt: skip
    return found


def _comparable(one: Frame, other: Frame) -> bool:
    parallel = np.abs(one.plane.down - other.plane.down).max() + np.abs(one.plane.right - other.plane.right).max()
    return bool(parallel < 0.01) and all(
        one.values[w] == other.values[w] or "" in (one.values[w], other.values[w]) for w in _REGIONS
    )
