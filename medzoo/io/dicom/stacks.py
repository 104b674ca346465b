"""How slices or frames become volumes: split into stacks by what distinguishes them, then sorted by position.

The slices of a series and the frames of a multi-frame file are treated alike. DICOM stores frames in any order
(PS3.3 C.7.6.16.2.3), and a series or a file may hold several volumes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from medzoo.errors import DataError
from medzoo.io.dicom.header import Plane
from medzoo.io.dicom.naming import stack_labels
from medzoo.io.dicom.tags import DISTINCTIONS
from medzoo.io.options import ReadOptions

__all__ = [
    "PARALLEL_TOLERANCE", "SEPARATING", "STEP_TOLERANCE", "Frame", "Stack", "are_channels", "choose_stack", "describe",
    "list_stacks", "split",
]  # fmt: skip

PARALLEL_TOLERANCE = 1e-3
"""mm by which the step between pixels may differ among the slices of a volume."""

SEPARATING = tuple(i for i, one in enumerate(DISTINCTIONS) if one.use == "always")
"""The distinctions that separate volumes wherever they differ."""

STEP_TOLERANCE = 0.1
"""By which steps may differ, as a share: scanners round positions, and a missing slice doubles the step."""

_LISTED = 12  # stacks that a message lists
_OTHERS = tuple(i for i, one in enumerate(DISTINCTIONS) if one.use != "always")
_TIMES = tuple(i for i, one in enumerate(DISTINCTIONS) if one.use == "time")
_ECHO_TIME = next(i for i, one in enumerate(DISTINCTIONS) if one.name == "echo time")
_TRIGGER_TIME = next(i for i, one in enumerate(DISTINCTIONS) if one.name == "trigger time")
_ECHO_JITTER = 0.005  # as a share of the echo time, which some scanners write as measured
_GUESSED = "No tag gives the phase of each slice: they are separated by their order in time, which may be wrong."


@dataclass(frozen=True, eq=False)
class Frame:
    """A slice of a series, or a frame of a multi-frame file, that has a position.

    Attributes:
        name: its name in messages.
        plane: its position.
        values: the value of each of :data:`~medzoo.io.dicom.tags.DISTINCTIONS`.
        sop: SOPInstanceUID, ``""`` for a frame.
    """

    name: str
    plane: Plane
    values: tuple[str, ...]
    sop: str = ""


@dataclass(frozen=True)
class Stack:
    """Frames that make up one volume.

    Attributes:
        members: their indices, sorted by position along right × down.
        name: what distinguishes the stack from the others, such as ``"echo time 30"``; ``""`` for the only one.
        warning: why its frames may be those of several volumes.
    """

    members: tuple[int, ...]
    name: str = ""
    warning: str = ""


def split(frames: Sequence[Frame]) -> list[Stack]:
    """Return the stacks among frames, in the order of the values that distinguish them.

    Frames of one direction and pixel spacing belong together unless a tag separates them. Two at one position that no
    tag separates stay in one stack, which :func:`~medzoo.io.dicom.step.slice_step` refuses.
    """
    frames = _with_similar_echo_times(frames)
    parts: list[list[int]] = []
    warnings: list[str] = []
    for members in _by_direction(frames):
        for own in _by_values(frames, members, SEPARATING):
            found, warning = _without_duplicates(frames, own)
            parts += [_sorted(frames, part) for part in found]
            warnings += [warning] * len(found)
    if len(parts) == 1:
        return [Stack(tuple(parts[0]))]
    values = [[frames[i].values for i in part] for part in parts]
    names = stack_labels(values, [frames[part[0]].plane for part in parts])
    return [Stack(tuple(p), name, w) for p, name, w in zip(parts, names, warnings, strict=True)]


def _with_similar_echo_times(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Return the frames with echo times that differ by less than their jitter as one."""
    times = sorted({(number, text) for one in frames if (number := _natural(text := one.values[_ECHO_TIME])[0]) > 0})
    same: dict[str, str] = {}
    first = (math.inf, "")
    for number, text in times:
        if not first[0] <= number <= first[0] * (1 + _ECHO_JITTER):
            first = (number, text)
        same[text] = first[1]
    if all(text == other for text, other in same.items()):
        return frames
    at = _ECHO_TIME
    return [
        replace(one, values=(*one.values[:at], same.get(one.values[at], one.values[at]), *one.values[at + 1 :]))
        for one in frames
    ]


def are_channels(frames: Sequence[Frame], stacks: Sequence[Stack], options: ReadOptions) -> bool:
    """Return whether the stacks are to be read as channels: the caller wants that, and their geometry is identical."""
    wanted = options.channel_axis in (3, -1) or (options.channels > 1 and options.channels == len(stacks))
    if not wanted or options.frame is not None or options.stack is not None or len(stacks) < 2:
        return False
    if len({len(stack.members) for stack in stacks}) > 1:
        return False
    planes = [[frames[i].plane for i in stack.members] for stack in stacks]
    vectors = np.array([[(p.origin, p.down, p.right) for p in own] for own in planes])
    return bool(np.abs(vectors - vectors[0]).max() <= 10 * PARALLEL_TOLERANCE)


def choose_stack(stacks: Sequence[Stack], stack: int | None, where: str) -> Stack:
    """Return the stack that is asked for, or the only one.

    Raises:
        DataError: several and none is asked for, or there is no such stack.
    """
    if len(stacks) > 1 and stack is None:
        raise DataError(
            f"{where}: expected one volume, found {len(stacks)} stacks: {list_stacks(stacks)}. "
            f"Choose one with stack=0 to {len(stacks) - 1}."
        )
    if (stack or 0) >= len(stacks):
        raise DataError(f"{where}: expected stack below {len(stacks)}, got stack={stack}. Count stacks from 0.")
    return stacks[stack or 0]


def list_stacks(stacks: Sequence[Stack]) -> str:
    """Return the stacks for a message: the index of each, its number of slices, and its name."""
    return describe([f"{len(stack.members)} slices, {stack.name}" for stack in stacks])


def describe(lines: Sequence[str]) -> str:
    """Join what was found, each with its index, and at most a dozen."""
    more = f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return "; ".join(f"{i}: {line}" for i, line in enumerate(lines[:_LISTED])) + more


def _by_direction(frames: Sequence[Frame]) -> list[list[int]]:
    """Group frames whose rows, columns and pixel spacing agree."""
    groups: list[tuple[Plane, list[int]]] = []
    for i, one in enumerate(frames):
        for plane, members in groups:
            if _parallel(plane, one.plane):
                members.append(i)
                break
        else:
            groups.append((one.plane, [i]))
    return [members for _, members in groups]


def _parallel(one: Plane, other: Plane) -> bool:
    if one.down is other.down and one.right is other.right:
        return True
    away = max(np.abs(one.down - other.down).max(), np.abs(one.right - other.right).max())
    return bool(away <= PARALLEL_TOLERANCE)


def _by_values(frames: Sequence[Frame], members: Sequence[int], which: Sequence[int]) -> list[list[int]]:
    """Group frames by the values of some distinctions, in the order of the values."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i in members:
        groups.setdefault(tuple(frames[i].values[w] for w in which), []).append(i)
    return [groups[key] for key in sorted(groups, key=lambda key: [_natural(value) for value in key])]


def _natural(value: str) -> tuple[float, str]:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    return (number, "") if math.isfinite(number) else (math.inf if value else -math.inf, value)


def _sorted(frames: Sequence[Frame], members: Sequence[int]) -> list[int]:
    normal = frames[members[0]].plane.normal
    return sorted(members, key=lambda i: float(frames[i].plane.origin @ normal))


def _positions(frames: Sequence[Frame], members: Sequence[int]) -> list[list[int]]:
    """Return the frames at each position, in the order of the positions."""
    ordered = _sorted(frames, members)
    gaps = np.diff(np.stack([frames[i].plane.origin for i in ordered]) @ frames[ordered[0]].plane.normal)
    apart = gaps[gaps > 1e-3]
    same = max(1e-3, STEP_TOLERANCE * float(np.median(apart))) if len(apart) else 1e-3
    found = [[ordered[0]]]
    for i, gap in zip(ordered[1:], gaps, strict=True):
        if gap <= same:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def _without_duplicates(frames: Sequence[Frame], members: list[int]) -> tuple[list[list[int]], str]:
    """Split frames that share positions by the tag that separates them; unchanged where none or several do.

    Returns:
        The parts, and a warning if the split is a guess.
    """
    places = _positions(frames, members)
    most = max(map(len, places))
    if most == 1 or any(_shared_sop(frames, place) for place in places):
        return [members], ""
    varying = [w for w in _OTHERS if len({frames[i].values[w] for i in members}) > 1]
    for count in (1, 2):
        found: list[list[list[int]]] = []
        for which in combinations(varying, count):
            parts = _by_values(frames, members, which)
            only_time = all(w in _TIMES for w in which)
            if not 1 < len(parts) <= (most if only_time else min(2 * most, len(members) // 2 + 1)):
                continue
            if all(len(_positions(frames, part)) == len(part) for part in parts):
                found.append(parts)
        if found:
            # Tags that separate in different ways leave open which volume a slice belongs to.
            return (found[0] if len({_partition(parts) for parts in found}) == 1 else [members]), ""
    return _by_rank(frames, members, places, most)


def _partition(parts: list[list[int]]) -> frozenset[frozenset[int]]:
    return frozenset(frozenset(part) for part in parts)


def _shared_sop(frames: Sequence[Frame], place: Sequence[int]) -> bool:
    sops = [frames[i].sop for i in place if frames[i].sop]
    return len(set(sops)) < len(sops)


def _by_rank(
    frames: Sequence[Frame], members: list[int], places: list[list[int]], most: int
) -> tuple[list[list[int]], str]:
    """Split frames by their order in time at each position, if each position has as many frames."""
    if any(len(place) != most for place in places):
        return [members], ""
    found: list[list[list[int]]] = []
    certain = False
    for which in _TIMES:
        times = [[_natural(frames[i].values[which]) for i in place] for place in places]
        if all(len(set(own)) == most and all(np.isfinite(time) for time, _ in own) for own in times):
            ranked = [sorted(place, key=lambda i, w=which: _natural(frames[i].values[w])) for place in places]  # type: ignore[misc]
            found.append([list(part) for part in zip(*ranked, strict=True)])
            certain |= _are_phases(frames, found[-1], which)
    if not found or len({_partition(parts) for parts in found}) > 1:
        return [members], ""
    return found[0], "" if certain else _GUESSED


def _are_phases(frames: Sequence[Frame], parts: list[list[int]], which: int) -> bool:
    """Return whether parts by rank in time are phases: one is over before the next, or all triggers are equidistant."""
    times = np.array([[_natural(frames[i].values[which])[0] for i in part] for part in parts])  # phase, position
    if (times[1:].min(axis=1) > times[:-1].max(axis=1)).all():
        return True
    steps = np.diff(times, axis=0)  # each heartbeat has a length of its own
    equidistant = np.abs(steps - steps.mean(axis=0)).max(axis=0) <= STEP_TOLERANCE * steps.mean(axis=0)
    return which == _TRIGGER_TIME and len(parts) > 2 and bool(equidistant.all())
