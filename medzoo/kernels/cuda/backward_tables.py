"""How the work of the backward pass of attention over boxes is cut into programs, as tables of integers.

Axes: as in :mod:`medzoo.kernels.cuda.box_tables`.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from medzoo.kernels.cuda.box_tables import BLOCK, TILE_FIELDS, box_tables
from medzoo.kernels.window_partition import Axes

__all__ = ["BackwardTables", "backward_tables"]

# Programs that sum the gradients of the biases: enough to fill a GPU of 132 multiprocessors several times.
PROGRAMS = 132 * 16
# The fewest blocks that such a program adds up: its result costs about as much to store as that many to read.
FEWEST = 8
# Integers for each piece of that work, and for each type.
PIECE_FIELDS, SPLIT_FIELDS = 8, 4
# What stands in the map from places to tokens for a place that is outside the box, or in its padding.
OUTSIDE, PADDING = -1, -2


class BackwardTables(NamedTuple):
    """What the backward pass needs to know of the boxes beyond ``BoxTables``, on one device.

    Attributes:
        tiles: for each block of keys the first row of its box, its type, the first key, and which of the blocks of
            queries in ``BoxTables`` is the first of this box; ``tiles 4``.
        pieces: pieces of work for the gradient of the biases: type, first query, first key, begin and end of the range
            of blocks to add up, which are numbered box by box and in each box sample by sample, which part of the sum
            this is, and two zeros; ``pieces 8``.
        starts: first row of each box and its first block of queries, type by type; ``boxes 2``.
        split: for each type where its first part begins divided by the number of heads, the number of parts, where its
            boxes begin in ``starts``, and 0; ``types 4``.
        local: the token of each type's box at each place of the full window, ``OUTSIDE`` or ``PADDING``;
            ``types places``.
        parts: numbers in all parts of one head.
    """

    tiles: Tensor
    pieces: Tensor
    starts: Tensor
    split: Tensor
    local: Tensor
    parts: int


@functools.lru_cache(maxsize=64)
def backward_tables(
    axes: Axes, window: tuple[int, ...], sides: tuple[int, ...], samples: int, heads: int, device: torch.device
) -> BackwardTables:
    """Lay out the work of the backward pass, in one transfer.

    Args:
        axes: the segments along each axis.
        window: sides of the window, clipped to the map.
        sides: of the window that the table of biases is made for.
        samples: in the batch.
        heads: how many there are.
        device: where the tables are to be.
    """
    base = box_tables.__wrapped__(axes, window, torch.device("cpu"))  # needed once: it takes no place in the cache
    types, places, padding = base.types.tolist(), base.places.tolist(), base.padding.tolist()
    boxes = [(start, kind, tile) for tile, (start, kind, first, _) in enumerate(base.tiles.tolist()) if first == 0]
    by_type = [[(start, tile) for start, kind, tile in boxes if kind == number] for number in range(len(types))]
    tiles = [(start, kind, first, tile) for start, kind, tile in boxes for first in range(0, types[kind][1], BLOCK)]
    blocks = [(kind[2] // BLOCK) * (kind[3] // BLOCK) for kind in types]
    total = heads * samples * sum(n * len(starts) for n, starts in zip(blocks, by_type, strict=True))
    longest = max(FEWEST, math.ceil(total / PROGRAMS))
    pieces: list[list[int]] = []
    split: list[int] = []
    local: list[int] = []
    parts = begin = 0
    for number, (kind, starts) in enumerate(zip(types, by_type, strict=True)):
        tokens, _, queries, columns, _, at, pad_at, pads = kind
        work = len(starts) * samples
        count = math.ceil(work / longest)
        edges = [work * part // count for part in range(count + 1)]
        for part, (low, high) in enumerate(itertools.pairwise(edges)):
            for i, j in itertools.product(range(0, queries, BLOCK), range(0, columns, BLOCK)):
                pieces.append([number, i, j, low, high, part, 0, 0])
        split += [parts, count, begin, 0]
        parts, begin = parts + count * queries * columns, begin + len(starts)
        where = [OUTSIDE] * math.prod(sides)
        for token, place in enumerate(places[at : at + tokens]):
            where[place] = token
        for place in padding[pad_at : pad_at + pads]:
            where[place] = PADDING
        local += where
    pieces.sort(key=lambda piece: piece[3] - piece[4])  # the longest first: what is short fills the gaps at the end
    chain = itertools.chain.from_iterable
    lists = [list(chain(tiles)), list(chain(pieces)), list(chain(chain(by_type))), split, local]
    # Every table starts at a multiple of 16 bytes: a kernel is compiled once more for a pointer that does not.
    flat = list(chain(numbers + [0] * (-len(numbers) % 4) for numbers in lists))
    with torch.inference_mode(False):  # what is remembered serves training too
        whole = torch.tensor(flat, dtype=torch.int32).to(device)
    cut = whole.split([len(numbers) + -len(numbers) % 4 for numbers in lists])
    parted = [part[: len(numbers)] for part, numbers in zip(cut, lists, strict=True)]
    return BackwardTables(
        parted[0].view(-1, TILE_FIELDS),
        parted[1].view(-1, PIECE_FIELDS),
        parted[2].view(-1, 2),
        parted[3].view(-1, SPLIT_FIELDS),
        parted[4].view(len(types), -1),
        parts=parts,
    )
