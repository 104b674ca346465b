"""Where the boxes of a 3D Swin block lie: the windows without roll, mask and padding.

After the roll a window holds up to eight regions that must not see each other. Put back in place, each region is a box
of the map of its own, and all boxes tile the map: attention inside each box is attention inside masked windows.

What differs, and why it may:

- The mask adds -100 to a logit between regions; a box leaves such a pair out. If no dropped logit lies more than
  ``r`` above the largest kept one of its row, what is left out weighs at most ``n exp(r - 100)`` of the row for
  ``n`` dropped keys, and an output moves by at most twice that times the largest value: 1e-27 for ``r`` = 30.
- Padding is zeros behind the norm, so all padding keys of a box are one and the same, with the same value. One key
  stands for them; its bias is the logsumexp of theirs. This is exact. The queries of the padding are thrown away.

Axes: d h w depth height width, t real tokens of a box, p padding tokens of a box.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from medzoo.kernels.cpu.slabs import keep_freed_memory
from medzoo.kernels.window_partition import Axes, Segment, partition
from medzoo.nn.windows import WindowGrid

__all__ = ["Arrangement", "BoxGroup", "BoxType", "arrange", "slabs"]


class BoxType(NamedTuple):
    """All that the bias of a box depends on.

    Attributes:
        window: sides of the window, clipped to the map.
        offset: where the box begins in its window.
        length: its sides on the map.
        padding: how far it goes on behind the map.
    """

    window: tuple[int, ...]
    offset: tuple[int, ...]
    length: tuple[int, ...]
    padding: tuple[int, ...]

    @property
    def keys(self) -> int:
        """Keys that a query sees: the real tokens, and one for all padding."""
        return _volume(self.length) + any(self.padding)

    def places(self) -> tuple[Tensor, Tensor]:
        """Return the places in the window of the real tokens, ``t``, and of the padding, ``p``, in C order."""
        axes = [torch.arange(o, o + n + p) for o, n, p in zip(self.offset, self.length, self.padding, strict=True)]
        inside = [axis < o + n for axis, o, n in zip(axes, self.offset, self.length, strict=True)]
        d, h, w = torch.meshgrid(*axes, indexing="ij")
        real = torch.stack(torch.meshgrid(*inside, indexing="ij")).all(0)
        place = (d * self.window[1] + h) * self.window[2] + w
        return place[real], place[~real]


@dataclass(frozen=True)
class BoxGroup:
    """Boxes of one type, which lie behind each other in an :class:`Arrangement`.

    Attributes:
        type: what they have in common.
        boxes: how many there are.
        rows: where their tokens begin and end, one place for the padding of each box counted.
    """

    type: BoxType
    boxes: int
    rows: tuple[int, int]


@dataclass(frozen=True)
class Arrangement:
    """The tokens of a slab in the order of its boxes.

    Attributes:
        order: which token of the slab each row holds; any, where a row stands for padding.
        seat: which row holds each token of the slab.
        empty: the rows that stand for padding.
        groups: the boxes, by type.
    """

    order: Tensor
    seat: Tensor
    empty: Tensor
    groups: tuple[BoxGroup, ...]


def slabs(grid: WindowGrid, batch: int, tokens: int) -> Iterator[tuple[tuple[slice, ...], Axes]]:
    """Cut a batch of maps into slabs of whole boxes with at most ``tokens`` each, or a row of boxes if that is more.

    Yields:
        Where the slab lies, as slices of b d h w, and its segments along d, h, w, which start at 0.
    """
    keep_freed_memory()
    d, h, w = partition(grid.size, grid.window, grid.shift)
    _, height, width = grid.size
    volume = _volume(grid.size)
    samples = max(1, tokens // volume)
    for first in range(0, batch, samples):
        for deep in _runs(d, tokens // (height * width)):
            for high in _runs(h, tokens // (sum(s.length for s in deep) * width)):
                place = (slice(first, min(first + samples, batch)), _extent(deep), _extent(high), slice(0, width))
                yield place, (_from_zero(deep), _from_zero(high), w)


@functools.lru_cache(maxsize=128)
def arrange(axes: Axes, window: tuple[int, ...], batch: int, device: torch.device) -> Arrangement:
    """Put the tokens of ``batch`` equal slabs, in C order, into the order of their boxes.

    Args:
        axes: the segments of a slab along d, h, w, each from 0 on.
        window: sides of the window, clipped to the map.
        batch: number of slabs.
        device: where the indices are to be.
    """
    with torch.inference_mode(False):  # what is remembered must serve training too
        return _arrange(axes, window, batch, device)


def _arrange(axes: Axes, window: tuple[int, ...], batch: int, device: torch.device) -> Arrangement:
    lengths = [sum(s.length for s in axis) for axis in axes]
    number = torch.arange(batch * _volume(lengths), dtype=torch.int32).view(batch, *lengths)
    kinds: dict[BoxType, list[Tensor]] = {}
    for box in itertools.product(*axes):
        kind = BoxType(window, *(tuple(getattr(s, name) for s in box) for name in ("offset", "length", "padding")))
        d, h, w = (slice(s.start, s.start + s.length) for s in box)
        kinds.setdefault(kind, []).append(number[:, d, h, w].flatten(1))
    order, groups, rows = [], [], 0
    for kind, boxes in kinds.items():
        tokens = torch.cat(boxes)
        if any(kind.padding):
            tokens = torch.cat([tokens, tokens.new_full((len(tokens), 1), -1)], 1)
        order.append(tokens.flatten())
        groups.append(BoxGroup(kind, len(tokens), (rows, rows + tokens.numel())))
        rows += tokens.numel()
    whole = torch.cat(order)
    empty = (whole < 0).nonzero().flatten()
    seat = whole.argsort()[len(empty) :].int()
    return Arrangement(whole.clamp(min=0).to(device), seat.to(device), empty.to(device), tuple(groups))


@functools.lru_cache(maxsize=128)
def _runs(axis: tuple[Segment, ...], longest: int) -> tuple[tuple[Segment, ...], ...]:
    """Join neighbouring segments to as few runs of at most ``longest`` places as do, and those about equally long.

    >>> [[s.length for s in run] for run in _runs(partition((32,), (7,), (0,))[0], longest=28)]
    [[7, 7], [7, 7, 4]]
    """
    runs = _joined(axis, longest)
    shorter = min(longest, sum(s.length for s in axis)) - 1
    while len(even := _joined(axis, shorter)) == len(runs) and shorter > 0:
        runs, shorter = even, shorter - 1
    return tuple(runs)


def _joined(axis: Sequence[Segment], longest: int) -> list[tuple[Segment, ...]]:
    """Join neighbouring segments while they are no longer together than ``longest``."""
    runs: list[tuple[Segment, ...]] = []
    length = 0
    for segment in axis:
        length += segment.length
        if runs and length <= longest:
            runs[-1] += (segment,)
        else:
            runs.append((segment,))
            length = segment.length
    return runs


def _extent(run: Sequence[Segment]) -> slice:
    return slice(run[0].start, run[-1].start + run[-1].length)


def _from_zero(run: Sequence[Segment]) -> tuple[Segment, ...]:
    return tuple(s._replace(start=s.start - run[0].start) for s in run)


def _volume(sides: Sequence[int]) -> int:
    return functools.reduce(int.__mul__, sides, 1)
