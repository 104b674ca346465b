"""Slabs: parts of a map small enough for intermediate results to stay in the cache.

PyTorch's CPU allocator keeps nothing of what is freed: all goes to ``malloc``. At first glibc maps each block of 128 KB
or more separately, and the kernel fills every page with zeros when it is first touched, which costs more than a slab's
arithmetic. The limit rises by itself to the size of any mapped block that is freed, up to 32 MB, and with it what is
kept at the top of the heap, to twice as much (``man mallopt``, M_MMAP_THRESHOLD). Most programs get there sooner or
later; :func:`keep_freed_memory` gets there at once.

Axes: b batch, d h w depth height width.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence

import torch

from medzoo.kernels.window_partition import Axes, Segment, WindowGeometry, partition

__all__ = ["SLAB", "keep_freed_memory", "slabs"]

# Values in the largest temporary of a slab: 8 MB of float32, little enough for the cache and for malloc to keep.
SLAB = 2**21
# The largest block that raises malloc's limit, less what its header and the alignment take.
LARGEST = 32 * 2**20 - 2**16


@functools.cache
def keep_freed_memory() -> None:
    """Have ``malloc`` keep up to 64 MB of what is freed; once, and without touching a page of it.

    That is 64 MB for the main heap, and for that of each thread that frees as much. Another allocator, or limits set by
    ``MALLOC_MMAP_THRESHOLD_`` and its like, stay as they are.
    """
    # A storage, for a tensor may be filled or be a fake; and where 32 MB are too much, there is nothing to keep.
    with contextlib.suppress(RuntimeError):
        torch.UntypedStorage(LARGEST, device="cpu")  # type: ignore[no-untyped-call]  # torch's


def slabs(geometry: WindowGeometry, batch: int, tokens: int) -> Iterator[tuple[tuple[slice, ...], Axes]]:
    """Cut a batch of maps into slabs of complete boxes with at most ``tokens`` each, or a row of boxes if that is more.

    Yields:
        The slab as slices of b d h w, and its segments along d, h, w, which start at 0.
    """
    keep_freed_memory()
    d, h, w = partition(*geometry)
    _, height, width = geometry.size
    samples = max(1, tokens // math.prod(geometry.size))
    for first in range(0, batch, samples):
        for deep in _runs(d, tokens // (height * width)):
            for high in _runs(h, tokens // (sum(s.length for s in deep) * width)):
                slab = (slice(first, min(first + samples, batch)), _extent(deep), _extent(high), slice(0, width))
                yield slab, (_from_zero(deep), _from_zero(high), w)


@functools.lru_cache(maxsize=128)
def _runs(axis: tuple[Segment, ...], longest: int) -> tuple[tuple[Segment, ...], ...]:
    """Join neighbouring segments to the fewest runs of at most ``longest`` tokens, and those about equally long.

    >>> [[s.length for s in run] for run in _runs(partition((32,), (7,), (0,))[0], longest=28)]
    [[7, 7], [7, 7, 4]]
    """
    runs = _joined(axis, longest)
    shorter = min(longest, sum(s.length for s in axis)) - 1
    while len(even := _joined(axis, shorter)) == len(runs) and shorter > 0:
        runs, shorter = even, shorter - 1
    return tuple(runs)


def _joined(axis: Sequence[Segment], longest: int) -> list[tuple[Segment, ...]]:
    """Join neighbouring segments while they are together no longer than ``longest``."""
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
