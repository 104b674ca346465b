"""How the shifted windows of a Swin block cut a map into boxes: arithmetic on sizes, for CPU and GPU.

One axis of 16 tokens under windows of 7, padded to 21:

    not shifted  |0 1 2 3 4 5 6|7 8 9 . . . 13|14 15 + + + + +|
    shifted by 3 |0 1 2|3 4 5 . . 9|10 11 . . . 15 +|               + is padding behind the map

The roll of a shifted block moves the first tokens behind the last ones, where a mask separates them again. Left in
place, each part is a segment of its own. The segments of three axes make boxes that tile the map, and attention inside
each box equals attention inside masked windows, but for two things:

- The mask adds -100 to a logit between regions; a box leaves such a pair out. If no dropped logit is more than
  ``r`` above the largest kept one of its row, what is left out weighs at most ``n exp(r - 100)`` of the row for
  ``n`` dropped keys, and an output moves by at most twice that times the largest value: 1e-27 for ``r`` = 30.
- Padding is zeros behind the norm, so all padding keys of a box are equal, with equal values. One key represents them;
  its bias is the logsumexp of theirs. This is exact. The queries of the padding are dropped.

Axes: d h w depth height width, t tokens of a box, p padding tokens of a box.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Axes",
    "BoxGroup",
    "BoxLayout",
    "BoxType",
    "Segment",
    "WindowGeometry",
    "bias_rows",
    "box_layout",
    "cut_axis",
    "partition",
]


class WindowGeometry(NamedTuple):
    """The windows of one block on one map.

    Attributes:
        size: sides of the map.
        window: sides of a window, no larger than the map's.
        shift: how far the windows are shifted along each axis.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    shift: tuple[int, ...]


class Segment(NamedTuple):
    """A part of one axis whose tokens attend to each other.

    Attributes:
        start: its first token on the map.
        length: how many tokens of the map it has.
        offset: position of its first token in the window.
        padding: how many tokens of padding follow in the same region.
    """

    start: int
    length: int
    offset: int
    padding: int


Axes = tuple[tuple[Segment, ...], ...]


def cut_axis(size: int, window: int, shift: int) -> tuple[Segment, ...]:
    """Cut one axis where windows and the roll cut it.

    >>> cut_axis(16, window=7, shift=0)
    (Segment(start=0, length=7, offset=0, padding=0), Segment(start=7, length=7, offset=0, padding=0), \
Segment(start=14, length=2, offset=0, padding=5))
    >>> [(s.start, s.length, s.offset, s.padding) for s in cut_axis(16, window=7, shift=3)]
    [(0, 3, 4, 0), (3, 7, 0, 0), (10, 6, 0, 1)]
    """
    padded = -(-size // window) * window
    # The roll moves the first tokens to the end of the last window, whose beginning is then a region of its own.
    edges = [0, *range(shift, padded, window), padded] if shift else list(range(0, padded + 1, window))
    segments = []
    for start, end in itertools.pairwise(edges):
        if start < size:
            length = min(end, size) - start
            offset = window - shift if shift and start == 0 else 0
            segments.append(Segment(start, length, offset, end - start - length))
    return tuple(segments)


@functools.lru_cache(maxsize=256)
def partition(size: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> Axes:
    """Cut every axis of a map; see :func:`cut_axis`."""
    return tuple(map(cut_axis, size, window, shift))


class BoxType(NamedTuple):
    """All that the bias of a box depends on.

    Attributes:
        window: sides of the window, clipped to the map.
        offset: position of the box in its window.
        length: its sides on the map.
        padding: how far it extends behind the map.
    """

    window: tuple[int, ...]
    offset: tuple[int, ...]
    length: tuple[int, ...]
    padding: tuple[int, ...]

    @property
    def keys(self) -> int:
        """Keys of a query: the real tokens, and one for all padding."""
        return math.prod(self.length) + any(self.padding)

    def positions(self) -> tuple[Tensor, Tensor]:
        """Return the positions in the window of the real tokens, ``t``, and of the padding, ``p``, in C order."""
        axes = [torch.arange(o, o + n + p) for o, n, p in zip(self.offset, self.length, self.padding, strict=True)]
        inside = [axis < o + n for axis, o, n in zip(axes, self.offset, self.length, strict=True)]
        d, h, w = torch.meshgrid(*axes, indexing="ij")
        real = torch.stack(torch.meshgrid(*inside, indexing="ij")).all(0)
        position = (d * self.window[1] + h) * self.window[2] + w
        return position[real], position[~real]


@dataclass(frozen=True)
class BoxGroup:
    """Boxes of one type, which are consecutive in a :class:`BoxLayout`.

    Attributes:
        type: what they have in common.
        boxes: how many there are.
        rows: begin and end of their rows, one row for the padding of each box included.
    """

    type: BoxType
    boxes: int
    rows: tuple[int, int]


@dataclass(frozen=True)
class BoxLayout:
    """The tokens of a slab sorted by box.

    Attributes:
        gather_index: the token of each row; any token, where a row stands for padding.
        scatter_index: the row of each token.
        padding_rows: the rows that stand for padding.
        groups: the boxes, by type.
    """

    gather_index: Tensor
    scatter_index: Tensor
    padding_rows: Tensor
    groups: tuple[BoxGroup, ...]


@functools.lru_cache(maxsize=128)
def box_layout(axes: Axes, window: tuple[int, ...], batch: int, device: torch.device) -> BoxLayout:
    """Sort the tokens of ``batch`` equal slabs, in C order, by box.

    Args:
        axes: the segments of a slab along d, h, w, each from 0 on.
        window: sides of the window, clipped to the map.
        batch: number of slabs.
        device: of the indices.
    """
    with torch.inference_mode(False):  # what is cached must serve training too
        lengths = [sum(s.length for s in axis) for axis in axes]
        number = torch.arange(batch * math.prod(lengths), dtype=torch.int32).view(batch, *lengths)
        by_type: dict[BoxType, list[Tensor]] = {}
        for box in itertools.product(*axes):
            kind = BoxType(window, *(tuple(getattr(s, name) for s in box) for name in ("offset", "length", "padding")))
            d, h, w = (slice(s.start, s.start + s.length) for s in box)
            by_type.setdefault(kind, []).append(number[:, d, h, w].flatten(1))
        pieces, groups, rows = [], [], 0
        for kind, boxes in by_type.items():
            tokens = torch.cat(boxes)
            if any(kind.padding):
                tokens = torch.cat([tokens, tokens.new_full((len(tokens), 1), -1)], 1)
            pieces.append(tokens.flatten())
            groups.append(BoxGroup(kind, len(tokens), (rows, rows + tokens.numel())))
            rows += tokens.numel()
        token_of_row = torch.cat(pieces)
        padding_rows = (token_of_row < 0).nonzero().flatten()
        row_of_token = token_of_row.argsort()[len(padding_rows) :].int()
        gather_index = token_of_row.clamp(min=0).to(device)
        return BoxLayout(gather_index, row_of_token.to(device), padding_rows.to(device), tuple(groups))


def bias_rows(window: tuple[int, ...], queries: Tensor, keys: Tensor) -> Tensor:
    """Return the row of the bias table for each query and key, ``q k``.

    Args:
        window: sides of the window that the table is made for.
        queries: positions in that window, in C order, ``q``.
        keys: likewise, ``k``.
    """
    rows = torch.zeros(len(queries), len(keys), dtype=torch.long)
    stride = math.prod(window)
    for side in window:
        stride //= side
        offset = (queries // stride % side)[:, None] - (keys // stride % side)[None, :]
        rows = rows * (2 * side - 1) + offset + side - 1
    return rows
