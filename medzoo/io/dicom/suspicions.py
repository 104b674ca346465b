"""What indicates that the slices of one stack are not of one volume, or not all of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from medzoo.io.dicom.stacks import Frame
from medzoo.io.dicom.tags import DISTINCTIONS

__all__ = ["suspicions", "thinned"]

_EQUAL = tuple(i for i, one in enumerate(DISTINCTIONS) if one.expected_equal)
_ALTERNATING = tuple(
    i for i, one in enumerate(DISTINCTIONS) if one.name in ("acquisition", "time offset", "trigger time")
)
_ACQUISITION = next(i for i, one in enumerate(DISTINCTIONS) if one.name == "acquisition")
_ACQUISITION_TIME = next(i for i, one in enumerate(DISTINCTIONS) if one.name == "acquisition time")
_JITTER = 0.05  # as a share of a time: a heart beats that regularly at best


def suspicions(frames: Sequence[Frame], modality: str) -> str:
    """Return why the slices of a sorted stack may not be of one volume; ``""`` if nothing indicates it."""
    found = []
    for i in _EQUAL:
        values = list(dict.fromkeys(one.values[i] for one in frames if one.values[i]))
        if len(values) > 1:
            found.append(f"{len(values)} values of {DISTINCTIONS[i].name}")
    for i in _ALTERNATING:
        if i == _ACQUISITION and modality == "MR":
            continue  # odd and even slices are acquired one after the other, in two concatenations
        numbers = [one.values[i] for one in frames]
        distinct = len(set(numbers))
        alternate = 1 < distinct <= len(numbers) / 2 and sum(a != b for a, b in pairwise(numbers)) >= distinct
        if alternate and (i == _ACQUISITION or _differ(numbers)):
            found.append(f"{distinct} values of {DISTINCTIONS[i].name} that alternate")
    if modality == "CT" and _zigzag([one.values[_ACQUISITION_TIME] for one in frames]):
        found.append("acquisition times that alternate between neighbouring slices")
    if not found:
        return ""
    return f"The slices differ in what one volume has in common: {'; '.join(found)}. Two may be mixed."


def _differ(values: Sequence[str]) -> bool:
    """Return whether times differ by more than the jitter of one trigger, or cannot be compared."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return True
    return max(numbers) - min(numbers) > _JITTER * max(map(abs, numbers))


def _zigzag(values: Sequence[str]) -> bool:
    """Return whether times go forth and back at most slices. A CT scans in the order of the positions, or in blocks."""
    try:
        steps = np.diff([float(value) for value in values])
    except ValueError:
        return False
    return len(steps) >= 4 and bool((steps[1:] * steps[:-1] < 0).sum() > 0.5 * (len(steps) - 1))


def thinned(step: float, thickness: float, between: float) -> str:
    """Return a warning if slices are a multiple of SpacingBetweenSlices apart, as if each second one were missing.

    Args:
        step: measured along the normal, in mm.
        thickness: SliceThickness in mm, or 0. Some vendors store the gap between slices as SpacingBetweenSlices.
        between: SpacingBetweenSlices in mm, or 0.
    """
    between = abs(between)
    if between <= 0 or abs(step - thickness - between) <= 0.05 * step:
        return ""
    times = round(step / between)
    if times < 2 or abs(step / between - times) > 0.05:
        return ""
    return (
        f"The slices are {step:.4g} mm apart, {times} times the SpacingBetweenSlices of {between:.4g} mm: slices "
        "may be missing."
    )
