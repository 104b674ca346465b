"""The boxes of a Swin block, as tables of integers that GPU kernels read.

Rows are the tokens of a map sorted by box, with one row more for the padding of each box that has some.
The tables describe one map, and serve every sample of a batch; one transfer brings them to the GPU.

Axes: n tokens of a map, r its rows, t tokens of a box, k keys of a box (its tokens, and one for all its padding).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medzoo.kernels.window_partition import Axes

__all__ = ["BLOCK", "BackwardTables", "BoxTables", "backward_tables", "box_tables"]

# Queries and keys are padded to a multiple of this, which every kernel's blocks divide.
BLOCK = 64
# Integers for each type and for each tile.
TYPE_FIELDS, TILE_FIELDS = 8, 4

# Programs that sum the gradients of the biases: enough to fill a GPU of 132 multiprocessors several times.
PROGRAMS = 132 * 16
# The fewest blocks that such a program adds up: its result costs about as much to store as that many to read.
FEWEST = 8
# Integers for each piece of that work, and for each type.
PIECE_FIELDS, SPLIT_FIELDS = 8, 4
# Entries of the map from positions to tokens for a position outside the box, or in its padding.
OUTSIDE, PADDING = -1, -2


class BoxTables(NamedTuple):
    """The boxes of one map size, on one device.

    Attributes:
        token_of_row: the token of each row, or -1 where it stands for padding; ``r``.
        gather_index: the same with any token in place of padding.
        scatter_index: the row of each token; ``n``.
        padding_rows: the rows that stand for padding, in int64, as ``index_fill_`` requires.
        tiles: for each block of queries the first row of its box, its type, the first query, and 0; ``tiles 4``.
        types: for each type the number of tokens, of keys, of queries and keys padded to blocks, where its biases begin
            divided by the number of heads, where its tokens begin in ``positions``, where its padding begins in
            ``padding``, and how much of that there is; ``types 8``.
        positions: position of each token of a type in the full window, in C order.
        padding: positions of the padding of each type.
        blocks: each block of queries of each type: type, and first query; ``blocks 2``.
        biases: values in all biases of one head.
    """

    token_of_row: Tensor
    gather_index: Tensor
    scatter_index: Tensor
    padding_rows: Tensor
    tiles: Tensor
    types: Tensor
    positions: Tensor
    padding: Tensor
    blocks: Tensor
    biases: int


def _up(n: int) -> int:
    return -(-n // BLOCK) * BLOCK


@functools.lru_cache(maxsize=128)  # about 1 MB each for an encoder at 96³
def box_tables(axes: Axes, window: tuple[int, ...], device: torch.device) -> BoxTables:
    """Return the tables of the boxes that segments along d, h, w make.

    Args:
        axes: the segments along each axis.
        window: sides of the window, clipped to the map. A clipped window's token number ``i`` reads the biases of
            token ``i`` of the full window, as in MONAI.
        device: of the tables.
    """
    depth, height, width = (sum(segment.length for segment in axis) for axis in axes)
    number_of: dict[tuple[tuple[int, int, int], ...], int] = {}
    types: list[list[int]] = []
    positions: list[int] = []
    padding: list[int] = []
    blocks: list[int] = []
    boxes: list[tuple[int, int, list[int]]] = []
    biases = 0
    for box in itertools.product(*axes):
        kind = tuple((segment.length, segment.offset, segment.padding) for segment in box)
        inside = list(itertools.product(*(range(length) for length, _, _ in kind)))
        if kind not in number_of:
            real = {tuple(o + i for (_, o, _), i in zip(kind, at, strict=True)) for at in inside}
            seen = itertools.product(*(range(offset, offset + length + pad) for length, offset, pad in kind))
            missing = [at for at in seen if at not in real]
            n, keys = len(inside), len(inside) + bool(missing)
            number_of[kind] = len(types)
            types.append([n, keys, _up(n), _up(keys), biases, len(positions), len(padding), len(missing)])
            blocks += [number for first in range(0, _up(n), BLOCK) for number in (number_of[kind], first)]
            positions += [_position(at, window) for at in sorted(real)] + [0] * (_up(keys) - n)
            padding += [_position(at, window) for at in missing]
            biases += _up(n) * _up(keys)
        d, h, w = (segment.start for segment in box)
        tokens = [((d + i) * height + h + j) * width + w + k for i, j, k in inside]
        boxes.append((len(inside), number_of[kind], tokens))
    # The largest boxes first: what is short fills the gaps at the end.
    boxes.sort(key=lambda box: (-box[0], box[1]))
    token_of_row: list[int] = []
    tiles: list[int] = []
    for n, number, tokens in boxes:
        tiles += [value for first in range(0, n, BLOCK) for value in (len(token_of_row), number, first, 0)]
        token_of_row += tokens + [-1] * (types[number][1] - n)
    scatter_index = [0] * (depth * height * width)
    for row, token in enumerate(token_of_row):
        if token >= 0:
            scatter_index[token] = row
    padding_rows = [row for row, token in enumerate(token_of_row) if token < 0]
    fields = list(itertools.chain.from_iterable(types))
    lists = [token_of_row, scatter_index, padding_rows, tiles, fields, positions, padding, blocks]
    rows, scatter, pads, *rest = _transfer(lists, device)
    with torch.inference_mode(False):  # what is cached must serve training too
        gather, pads = rows.clamp(min=0), pads.long()
    return BoxTables(
        token_of_row=rows,
        gather_index=gather,
        scatter_index=scatter,
        padding_rows=pads,
        tiles=rest[0].view(-1, TILE_FIELDS),
        types=rest[1].view(-1, TYPE_FIELDS),
        positions=rest[2],
        padding=rest[3],
        blocks=rest[4].view(-1, 2),
        biases=biases,
    )


def _transfer(lists: Sequence[list[int]], device: torch.device) -> list[Tensor]:
    """Return each list as an int32 tensor on the device, all by one transfer.

    Every tensor starts at a multiple of 16 bytes: a kernel is compiled once more for a pointer that does not.
    """
    padded = [values + [0] * (-len(values) % 4) for values in lists]
    with torch.inference_mode(False):  # what is cached must serve training too
        joined = torch.tensor(list(itertools.chain.from_iterable(padded)), dtype=torch.int32).to(device)
        parts = joined.split(list(map(len, padded)))
        return [part[: len(values)] for part, values in zip(parts, lists, strict=True)]


def _position(at: Sequence[int], window: Sequence[int]) -> int:
    return (at[0] * window[1] + at[1]) * window[2] + at[2]


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
        local: the token of each type's box at each position of the full window, ``OUTSIDE`` or ``PADDING``;
            ``types positions``.
        parts: values in all parts of one head.
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
    """Return the tables of the backward pass, in one transfer.

    Args:
        axes: the segments along each axis.
        window: sides of the window, clipped to the map.
        sides: of the window that the table of biases is made for.
        samples: in the batch.
        heads: how many there are.
        device: of the tables.
    """
    base = box_tables.__wrapped__(axes, window, torch.device("cpu"))  # needed once: not cached
    types, positions, padding = base.types.tolist(), base.positions.tolist(), base.padding.tolist()
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
        for token, position in enumerate(positions[at : at + tokens]):
            where[position] = token
        for position in padding[pad_at : pad_at + pads]:
            where[position] = PADDING
        local += where
    pieces.sort(key=lambda piece: piece[3] - piece[4])  # the longest first: what is short fills the gaps at the end
    chain = itertools.chain.from_iterable
    lists = [list(chain(tiles)), list(chain(pieces)), list(chain(chain(by_type))), split, local]
    on_device = _transfer(lists, device)
    return BackwardTables(
        tiles=on_device[0].view(-1, TILE_FIELDS),
        pieces=on_device[1].view(-1, PIECE_FIELDS),
        starts=on_device[2].view(-1, 2),
        split=on_device[3].view(-1, SPLIT_FIELDS),
        local=on_device[4].view(len(types), -1),
        parts=parts,
    )
