"""Volumes of one series that continue each other in space, and may be one that a header value splits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medzoo.io.dicom.slices import IDENTITY, Slice
from medzoo.io.dicom.stacks import PARALLEL_TOLERANCE, SEPARATING
from medzoo.io.dicom.tags import DISTINCTIONS

__all__ = ["continuations"]

_NUMBER = next(i for i, one in enumerate(DISTINCTIONS) if one.name == "series number")
_OTHERS = tuple(i for i in SEPARATING if i != _NUMBER)
_AXES = ("down", "right")
_TOLERANCE = 0.1  # as a share of the step, and as mm


def continuations(volumes: Sequence[Sequence[Slice]]) -> list[str]:
    """Return for each volume of a series a warning if another continues where it ends, at its step; ``""`` otherwise.

    Two are compared that have one normal, whose ranges along it do not overlap, and that share no instance number.
    What an echo or a phase separates is not compared.

    Args:
        volumes: the slices of each volume.
    """
    places = [_positions(own) for own in volumes]
    found: list[dict[str, int]] = [{} for _ in volumes]
    for i, one in enumerate(volumes):
        for j, other in enumerate(volumes):
            if i == j or not one or not other or _numbered_apart(one, other):
                continue
            if _continue(one[0], other[0], places[i], places[j]) and (why := _differences(one[0], other[0])):
                found[i][why] = found[i].get(why, 0) + len(other)
    return [" ".join(_warning(why, count) for why, count in own.items()) for own in found]


def _warning(why: str, count: int) -> str:
    slices = "1 slice" if count == 1 else f"{count} slices"
    return (
        f"{slices} of the series that differ{'s' * (count == 1)} in {why} continue{'s' * (count == 1)} where these "
        "end. They are read as separate images, and may belong together."
    )


def _numbered_apart(one: Sequence[Slice], other: Sequence[Slice]) -> bool:
    """Return whether each of two volumes has a numbering of its own, as volumes that a value split do not."""
    first, second = ({s.number for s in own if s.number is not None} for own in (one, other))
    return bool(first & second) and len(first | second) > 1


def _positions(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """Return the sorted positions along the normal of the first slice."""
    planes = [one.plane for one in slices if one.plane is not None]
    return np.sort([float(plane.origin @ planes[0].normal) for plane in planes]) if planes else np.empty(0)


def _continue(
    one: Slice, other: Slice, places: NDArray[np.float64], others: NDArray[np.float64]
) -> bool:  # fmt: skip
    if one.plane is None or other.plane is None or np.abs(one.plane.normal - other.plane.normal).max() > 1e-3:
        return False
    if any(one.values[w] != other.values[w] and one.values[w] and other.values[w] for w in _OTHERS):
        return False
    gap = max(others[0] - places[-1], places[0] - others[-1])
    steps = np.diff(places if len(places) >= len(others) else others)
    steps = steps[steps > 1e-3]  # several frames at one position
    if not len(steps):
        return False
    step = float(np.median(steps))
    return bool(abs(gap - step) <= _TOLERANCE * (1 + step))


def _differences(one: Slice, other: Slice) -> str:
    """Return in what two slices differ, in words."""
    found = [name for name, a, b in zip(IDENTITY, one.identity, other.identity, strict=True) if a != b]
    if one.values[_NUMBER] != other.values[_NUMBER]:
        found.append("series number")
    if one.plane is None or other.plane is None:
        return ", ".join(found)
    spacing, direction = [
        max(float(np.abs(a - b).max()) for a, b in pairs)
        for pairs in (
            [(np.linalg.norm(getattr(one.plane, k)), np.linalg.norm(getattr(other.plane, k))) for k in _AXES],
            [(_unit(getattr(one.plane, k)), _unit(getattr(other.plane, k))) for k in _AXES],
        )
    ]
    if spacing > PARALLEL_TOLERANCE:
        found.append("pixel spacing")
    if direction > PARALLEL_TOLERANCE:
        found.append("direction of rows and columns")
    return ", ".join(found)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector))
