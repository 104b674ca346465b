"""Where the boxes of a Swin block lie, as tables of integers that GPU kernels read.

Rows are the tokens of a map in the order of its boxes, with one row more for the padding of each box that has some.
The tables describe one map, and serve every sample of a batch; one transfer brings them to the GPU.

Axes: n tokens of a map, r its rows, t tokens of a box, k keys of a box (its tokens, and one for all its padding).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medzoo.kernels.window_partition import Axes

__all__ = ["BLOCK", "BoxTables", "box_tables"]

# Queries and keys are padded to a multiple of this, which every kernel's blocks divide.
BLOCK = 64
# Integers for each type and for each tile.
TYPE_FIELDS, TILE_FIELDS = 8, 4


class BoxTables(NamedTuple):
    """The boxes of one map size, on one device.

    Attributes:
        order: which token each row holds, or -1 where it stands for padding; ``r``.
        taken: the same with any token in the place of padding.
        seat: which row holds each token; ``n``.
        empty: the rows that stand for padding, in int64, as ``index_fill_`` wants them.
        tiles: for each block of queries the first row of its box, its type, the first query, and 0; ``tiles 4``.
        types: for each type the number of tokens, of keys, of queries and keys padded to blocks, where its biases begin
            divided by the number of heads, where its tokens begin in ``places``, where its padding begins in
            ``padding``, and how much of that there is; ``types 8``.
        places: place of each token of a type in the full window, in C order.
        padding: places of the padding of each type.
        blocks: each block of queries of each type: type, and first query; ``blocks 2``.
        biases: numbers in all biases of one head.
    """

    order: Tensor
    taken: Tensor
    seat: Tensor
    empty: Tensor
    tiles: Tensor
    types: Tensor
    places: Tensor
    padding: Tensor
    blocks: Tensor
    biases: int


def _up(n: int) -> int:
    return -(-n // BLOCK) * BLOCK


@functools.lru_cache(maxsize=128)  # about 1 MB each for an encoder at 96³
def box_tables(axes: Axes, window: tuple[int, ...], device: torch.device) -> BoxTables:
    """Lay out the boxes that segments along d, h, w make.

    Args:
        axes: the segments along each axis.
        window: sides of the window, clipped to the map. A clipped window's token number ``i`` reads the biases of
            token ``i`` of the full window, as in MONAI.
        device: where the tables are to be.
    """
    depth, height, width = (sum(segment.length for segment in axis) for axis in axes)
    kinds: dict[tuple[tuple[int, int, int], ...], int] = {}
    types: list[list[int]] = []
    places: list[int] = []
    padding: list[int] = []
    blocks: list[int] = []
    boxes: list[tuple[int, int, list[int]]] = []
    biases = 0
    for box in itertools.product(*axes):
        kind = tuple((segment.length, segment.offset, segment.padding) for segment in box)
        inside = list(itertools.product(*(range(length) for length, _, _ in kind)))
        if kind not in kinds:
            real = {tuple(o + i for (_, o, _), i in zip(kind, at, strict=True)) for at in inside}
            seen = itertools.product(*(range(offset, offset + length + pad) for length, offset, pad in kind))
            missing = [at for at in seen if at not in real]
            n, keys = len(inside), len(inside) + bool(missing)
            kinds[kind] = len(types)
            types.append([n, keys, _up(n), _up(keys), biases, len(places), len(padding), len(missing)])
            blocks += [number for first in range(0, _up(n), BLOCK) for number in (kinds[kind], first)]
            places += [_place(at, window) for at in sorted(real)] + [0] * (_up(keys) - n)
            padding += [_place(at, window) for at in missing]
            biases += _up(n) * _up(keys)
        d, h, w = (segment.start for segment in box)
        tokens = [((d + i) * height + h + j) * width + w + k for i, j, k in inside]
        boxes.append((len(inside), kinds[kind], tokens))
    # The largest boxes first: what is short fills the gaps at the end.
    boxes.sort(key=lambda box: (-box[0], box[1]))
    order: list[int] = []
    tiles: list[int] = []
    for n, number, tokens in boxes:
        tiles += [value for first in range(0, n, BLOCK) for value in (len(order), number, first, 0)]
        order += tokens + [-1] * (types[number][1] - n)
    seat = [0] * (depth * height * width)
    for row, token in enumerate(order):
        if token >= 0:
            seat[token] = row
    empty = [row for row, token in enumerate(order) if token < 0]
    pieces = [order, seat, empty, tiles, list(itertools.chain.from_iterable(types)), places, padding, blocks]
    # Every table starts at a multiple of 16 bytes: a kernel is compiled once more for a pointer that does not.
    flat = list(itertools.chain.from_iterable(piece + [0] * (-len(piece) % 4) for piece in pieces))
    with torch.inference_mode(False):  # what is remembered serves training too
        whole = torch.tensor(flat, dtype=torch.int32).to(device)
        parts, at = [], 0
        shapes = [(-1,)] * 3 + [(-1, TILE_FIELDS), (-1, TYPE_FIELDS), (-1,), (-1,), (-1, 2)]
        for piece, shape in zip(pieces, shapes, strict=True):
            parts.append(whole[at : at + len(piece)].view(shape))
            at += len(piece) + -len(piece) % 4
        taken, parts[2] = parts[0].clamp(min=0), parts[2].long()
    return BoxTables(parts[0], taken, *parts[1:], biases)  # type: ignore[arg-type, call-arg]  # eight parts


def _place(at: Sequence[int], window: Sequence[int]) -> int:
    return (at[0] * window[1] + at[1]) * window[2] + at[2]
