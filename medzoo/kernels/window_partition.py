"""How the shifted windows of a Swin block cut a map into boxes: arithmetic on sizes, for CPU and GPU.

One axis of 16 tokens under windows of 7, padded to 21:

    unshifted    |0 1 2 3 4 5 6|7 8 9 . . . 13|14 15 + + + + +|
    shifted by 3 |0 1 2|3 4 5 . . 9|10 11 . . . 15 +|               + is padding behind the map

The roll of a shifted block brings the first tokens behind the last ones, where a mask parts them again. Left in place,
each part is a stretch of its own. The stretches of three axes make boxes, and attention inside each box is attention
inside masked windows.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

__all__ = ["Axes", "Segment", "partition", "segments"]


class Segment(NamedTuple):
    """A stretch of one axis that is attended to within itself.

    Attributes:
        start: its first token on the map.
        length: how many tokens of the map it has.
        offset: where its first token lies in the window.
        padding: how many tokens of padding follow in the same region.
    """

    start: int
    length: int
    offset: int
    padding: int


Axes = tuple[tuple[Segment, ...], ...]


def segments(size: int, window: int, shift: int) -> tuple[Segment, ...]:
    """Cut one axis where windows and the roll cut it.

    >>> segments(16, window=7, shift=0)
    (Segment(start=0, length=7, offset=0, padding=0), Segment(start=7, length=7, offset=0, padding=0), \
Segment(start=14, length=2, offset=0, padding=5))
    >>> [(s.start, s.length, s.offset, s.padding) for s in segments(16, window=7, shift=3)]
    [(0, 3, 4, 0), (3, 7, 0, 0), (10, 6, 0, 1)]
    """
    padded = -(-size // window) * window
    # The roll takes the first tokens to the end of the last window, whose beginning is then a region of its own.
    edges = [0, *range(shift, padded, window), padded] if shift else list(range(0, padded + 1, window))
    cut = []
    for start, end in itertools.pairwise(edges):
        if start < size:
            length = min(end, size) - start
            offset = window - shift if shift and start == 0 else 0
            cut.append(Segment(start, length, offset, end - start - length))
    return tuple(cut)


@functools.lru_cache(maxsize=256)
def partition(size: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> Axes:
    """Cut every axis of a map; see :func:`segments`."""
    return tuple(map(segments, size, window, shift))
