"""The volumes among DICOM slices: by patient, study, series, frame of reference, size, direction and stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medzoo.io.dicom.completeness import (
    declared_counts,
    merge_warnings,
    missing_numbers,
    repeated_numbers,
    shorter_than_others,
)  # fmt: skip
from medzoo.io.dicom.continuation import continuations
from medzoo.io.dicom.naming import uniform_distinctions
from medzoo.io.dicom.slices import IDENTITY, Slice, describe_difference, frames_with_planes, without_copies
from medzoo.io.dicom.stacks import SEPARATING, Stack, are_channels, split
from medzoo.io.options import ReadOptions

__all__ = ["Volume", "volumes_of"]

# Of each study, by its patient and UID: the instance numbers in each series.
_Numbers = dict[tuple[str, ...], dict[str, set[int]]]

_MAY_BE_ABSENT = ("patient", "patient name", "birth date", "study", "frame of reference")


@dataclass(frozen=True)
class Volume:
    """The files of one volume.

    Attributes:
        paths: the files, with second copies of a slice.
        count: how many slices there are without the copies.
        series: SeriesInstanceUID.
        name: what distinguishes it from the other volumes of its series; ``""`` for the only one.
        warning: what is known against it.
    """

    paths: tuple[Path, ...]
    count: int
    series: str
    name: str
    warning: str

    def with_warning(self, warning: str) -> Volume:
        """Return the volume with one more warning; an empty one changes nothing."""
        return replace(self, warning=" ".join(filter(None, (self.warning, warning))))


def volumes_of(slices: Sequence[Slice], others: Sequence[Slice], options: ReadOptions) -> list[Volume]:
    """Group slices into volumes, in the order of their first slice; stacks in the order of their values.

    Args:
        slices: the slices that have a SeriesInstanceUID.
        others: other objects of the scan, such as scouts, which have instance numbers too.
        options: whether the stacks of a series are read as channels, and so remain together.
    """
    by_series: dict[str, list[Slice]] = {}
    for one in slices:
        by_series.setdefault(one.of("series"), []).append(one)
    beside: dict[str, list[Slice]] = {}
    for one in others:
        beside.setdefault(one.of("series"), []).append(one)
    numbers = _numbers_by_study([*slices, *others])
    found: list[Volume] = []
    for series, own in by_series.items():
        found += _volumes_of_series(own, beside.get(series, []), numbers, options)
    return found


def _volumes_of_series(
    slices: list[Slice], others: list[Slice], numbers: _Numbers, options: ReadOptions
) -> list[Volume]:
    groups: dict[tuple[str, ...], list[Slice]] = {}
    for one in slices:
        groups.setdefault(one.identity, []).append(one)
    absent = _absent(slices)
    found: list[tuple[Volume, list[Slice]]] = []
    for identity, own in groups.items():
        named = [
            describe_difference(name, value)
            for name, value, several in zip(IDENTITY, identity, map(set, zip(*groups, strict=True)), strict=True)
            if len(several) > 1
        ]
        together = [one for key, group in groups.items() if key[:5] == identity[:5] for one in group]
        together += [one for one in others if one.identity[:5] == identity[:5]]
        elsewhere = numbers.get(identity[:4], {})
        found += _stacks(own, together, elsewhere, named, absent, options)
    warnings = continuations([placed for _, placed in found])
    return [volume.with_warning(warning) for (volume, _), warning in zip(found, warnings, strict=True)]


def _stacks(
    slices: list[Slice], together: list[Slice], elsewhere: dict[str, set[int]], named: list[str], absent: str,
    options: ReadOptions,
) -> list[tuple[Volume, list[Slice]]]:  # fmt: skip
    """Return the volumes among slices of one identity, each with its slices that have a position."""
    kept, copies = without_copies(slices)
    copied = {one.path for one, _ in copies}
    placed = [one for one in kept if one.plane is not None]
    unplaced = [one for one in kept if one.plane is None]
    frames = frames_with_planes(placed)
    stacks = split(frames) if placed else []
    together = [one for one in together if one.path not in copied]
    volumes = [[placed[j] for j in stack.members] for stack in stacks]
    whole = [absent, missing_numbers(together, volumes, elsewhere)]
    whole.append(declared_counts(together, len(stacks)))
    shorter = shorter_than_others(frames, stacks, [one.counts[1] for one in placed])
    shorter = [" ".join(filter(None, (s, repeated_numbers(v)))) for s, v in zip(shorter, volumes, strict=True)]
    if are_channels(frames, stacks, options):
        merged = merge_warnings([(stack.name, short) for stack, short in zip(stacks, shorter, strict=True)])
        stacks, shorter = [Stack(tuple(i for s in stacks for i in s.members))], [merged]
        volumes = [placed]
    # Slices without a valid position join the stack that they are of, so that reading it reports them.
    joined, left = _join(unplaced, volumes)
    if left:
        if stacks:
            several = f"{len(left)} slices of the series have" if len(left) > 1 else "1 slice of the series has"
            whole.append(f"{several} no valid position: slices may be missing.")
        stacks, shorter = [*stacks, Stack((), "without a valid position" if stacks else "")], [*shorter, ""]
        joined = [*joined, left]
    found = []
    for stack, short, more in zip(stacks, shorter, joined, strict=True):
        members = [placed[j] for j in stack.members]
        own = [*members, *more]
        inside = {one.path for one in own}
        paths = [one.path for one in own] + [one.path for one, original in copies if original.path in inside]
        name = ", ".join(filter(None, (*named, stack.name)))
        warning = " ".join(filter(None, (*whole, stack.warning, short)))
        volume = Volume(tuple(sorted(paths)), len(own), slices[0].of("series"), name, warning)
        found.append((volume, members))
    return found


def _join(unplaced: Sequence[Slice], volumes: Sequence[Sequence[Slice]]) -> tuple[list[list[Slice]], list[Slice]]:
    """Return the slices without a position that belong to each volume by its values, and those that belong to none.

    One belongs to a volume if that alone has its values in all that separates the volumes of the series.
    """
    values = [[one.values for one in own] for own in volumes]
    which = {*SEPARATING, *(uniform_distinctions(values) if len(values) > 1 else ())}
    joined: list[list[Slice]] = [[] for _ in volumes]
    left: list[Slice] = []
    for one in unplaced:
        fitting = [i for i, own in enumerate(values) if all(one.values[w] in {v[w] for v in own} for w in which)]
        (joined[fitting[0]] if len(fitting) == 1 else left).append(one)
    return joined, left


def _absent(slices: Sequence[Slice]) -> str:
    """Return a warning if slices of a series lack an identifier that others have: they may be of one volume."""
    found = []
    for name in _MAY_BE_ABSENT:
        lacking = sum(not one.of(name) for one in slices)
        if 0 < lacking < len(slices):
            found.append(f"{lacking} of {len(slices)} slices of the series lack the {name} that the others have")
    return f"{'; '.join(found)}. They are read as separate images, and may belong together." if found else ""


def _numbers_by_study(slices: Sequence[Slice]) -> _Numbers:
    """Return the instance numbers in each series of each study; two patients may share its UID."""
    found: _Numbers = {}
    for one in slices:
        if one.number is not None:
            found.setdefault(one.identity[:4], {}).setdefault(one.of("series"), set()).add(one.number)
    return found
