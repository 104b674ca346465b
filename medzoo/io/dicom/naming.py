"""What distinguishes the stacks of a series or a file, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medzoo.io.dicom.header import Plane
from medzoo.io.dicom.tags import DISTINCTIONS

__all__ = ["stack_labels", "uniform_distinctions"]

_FREE_TEXT = ("series description", "sequence name", "contrast agent", "private b-value")


def uniform_distinctions(values: Sequence[Sequence[tuple[str, ...]]]) -> list[int]:
    """Return the distinctions that are the same within each stack, and not the same in all.

    Args:
        values: for each stack, the values of its frames.
    """
    columns = [[{one[w] for one in stack} for stack in values] for w in range(len(DISTINCTIONS))]
    return [w for w, sets in enumerate(columns) if all(len(s) == 1 for s in sets) and len(set.union(*sets)) > 1]


def stack_labels(values: Sequence[Sequence[tuple[str, ...]]], planes: Sequence[Plane]) -> list[str]:
    """Return what distinguishes each stack from the others, from the values of its frames and its first plane."""
    uniform = uniform_distinctions(values)
    directions = [_direction(plane) for plane in planes]
    names = []
    for i, stack in enumerate(values):
        words = [_described(w, stack[0][w], {other[0][w] for other in values}) for w in uniform[:3]]
        if len(set(directions)) > 1:
            words.append(directions[i])
        names.append(", ".join(words) or f"part {i + 1} of {len(values)}")
    return names


def _described(which: int, value: str, values: set[str]) -> str:
    """Return a distinction with its value; free text, which may name a patient, is only numbered."""
    one = DISTINCTIONS[which]
    shown = f"#{sorted(values).index(value) + 1}" if one.name in _FREE_TEXT else value
    return f"{one.name} {shown}" if value else f"no {one.name}"


def _direction(plane: Plane) -> str:
    axis = int(np.abs(plane.normal).argmax())
    oblique = "" if abs(plane.normal[axis]) > 0.999 else "oblique "
    spacing = f"{np.linalg.norm(plane.down):.4g} × {np.linalg.norm(plane.right):.4g} mm"
    return f"{oblique}{('sagittal', 'coronal', 'axial')[axis]} {spacing}"
