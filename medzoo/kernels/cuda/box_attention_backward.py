"""Gradients of the attention inside boxes, which :mod:`medzoo.kernels.cuda.box_attention` computes.

Nothing of the size of the attention weights is kept or written: three kernels compute the weights block by block from
queries, keys and the log-sum-exp that the forward pass kept (Dao et al., FlashAttention,
https://arxiv.org/abs/2205.14135), which costs less than to read them back:

1. a block of queries against all keys of its box, for the gradient of the queries;
2. a block of keys against all queries of its box, for the gradients of keys and values;
3. a block of queries and keys of one type of box, over the boxes of that type in all samples, for the gradient of the
   biases, which these boxes share.

A fourth kernel sums the gradients of the biases into the rows of their table. Every sum has one owner and a fixed
order: there are no atomic operations, and two runs give the same bits.

Sums and the gradients of biases are in float32; the factors of matrix products are in the type of the queries.

Axes: b batch, r rows of a map, c channels, m heads, e head width, t tokens of a box, k its keys (its tokens, and one
for all its padding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from medzoo.kernels.cuda.box_attention import fill_biases
from medzoo.kernels.cuda.box_tables import BLOCK, BackwardTables, BoxTables

__all__ = ["attend_backward", "biases_backward"]

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _type(types, kind, BLOCK: tl.constexpr):
    """Return a type's tokens, keys, padded queries and keys, and where its biases begin."""
    about = types + 8 * kind
    # The hints let biases be read in wide pieces.
    columns = tl.multiple_of(tl.load(about + 3), BLOCK)
    begin = tl.multiple_of(tl.load(about + 4), BLOCK)
    return tl.load(about), tl.load(about + 1), tl.load(about + 2), columns, begin


@triton.jit
def _stats(tile, head, sample, samples, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """Return where the statistics of a block of queries lie."""
    return ((tile.to(tl.int64) * HEADS + head) * samples + sample) * (2 * BLOCK)


@triton.jit(do_not_specialize=["rows"])
def _grad_queries(
    grad_out, qkv, out, lse, biases, grad_qkv, stats, tiles, types, rows, scale, HEADS: tl.constexpr, E: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of BM = BLOCK queries of one box, head and sample.

    For the other kernels, ``stats`` gets the log-sum-exp in base 2 and grad_out · out of each query, block by block.
    """
    C: tl.constexpr = HEADS * E
    tile, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    start, kind, first = tl.load(tiles + 4 * tile), tl.load(tiles + 4 * tile + 1), tl.load(tiles + 4 * tile + 2)
    tokens, keys, queries, columns, begin = _type(types, kind, BLOCK)
    box = tl.program_id(1).to(tl.int64) * rows + start
    e = tl.arange(0, E)
    i = first + tl.arange(0, BM)
    asks = i < tokens
    here = box * (3 * C) + head * E
    mine, own = i[:, None] * (3 * C) + e[None, :], box * C + head * E + i[:, None] * C + e[None, :]
    q = tl.load(qkv + here + mine, mask=asks[:, None], other=0.0)
    do = tl.load(grad_out + own, mask=asks[:, None], other=0.0)
    o = tl.load(out + own, mask=asks[:, None], other=0.0)
    # Where there is no query, the weights are exp(-inf).
    total = tl.load(lse + (box + i) * HEADS + head, mask=asks, other=float("inf")) * LOG2E
    mean = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    stats += _stats(tile, head, tl.program_id(1), tl.num_programs(1), HEADS, BLOCK) + tl.arange(0, BM)
    tl.store(stats, total)
    tl.store(stats + BLOCK, mean)
    block = biases + begin.to(tl.int64) * HEADS + head.to(tl.int64) * queries * columns + first * columns
    block += tl.arange(0, BM)[:, None] * BLOCK + tl.arange(0, BN)[None, :]
    dq = tl.zeros([BM, E], tl.float32)
    for step in range(0, keys, BN):
        j = step + tl.arange(0, BN)
        known, theirs = (j < keys)[:, None], j[:, None] * (3 * C) + e[None, :]
        k = tl.load(qkv + here + C + theirs, mask=known, other=0.0)
        v = tl.load(qkv + here + 2 * C + theirs, mask=known, other=0.0)
        # The hint lets biases be read in wide pieces.
        bias = tl.load(block + tl.multiple_of((step // BLOCK) * (BLOCK * BLOCK) + step % BLOCK, BN)).to(tl.float32)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        p = tl.exp2(s * (scale * LOG2E) + (bias * LOG2E - total[:, None]))
        ds = p * (tl.dot(do, tl.trans(v), input_precision=PRECISION) - mean[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    tl.store(grad_qkv + here + mine, dq * scale, mask=asks[:, None])


@triton.jit(do_not_specialize=["rows"])
def _grad_keys(
    grad_out, qkv, stats, biases, grad_qkv, tiles, types, rows, scale, HEADS: tl.constexpr, E: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of BN = BLOCK keys of one box, head and sample, and of their values.

    Scores lie as ``k t`` here, so that products with them need no transposition.
    """
    C: tl.constexpr = HEADS * E
    tile, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    start, kind, first = tl.load(tiles + 4 * tile), tl.load(tiles + 4 * tile + 1), tl.load(tiles + 4 * tile + 2)
    tokens, keys, queries, columns, begin = _type(types, kind, BLOCK)
    box = tl.program_id(1).to(tl.int64) * rows + start
    e = tl.arange(0, E)
    j = first + tl.arange(0, BN)
    known = (j < keys)[:, None]
    here, there = box * (3 * C) + head * E, box * C + head * E
    theirs = j[:, None] * (3 * C) + e[None, :]
    k = tl.load(qkv + here + C + theirs, mask=known, other=0.0)
    v = tl.load(qkv + here + 2 * C + theirs, mask=known, other=0.0)
    block = biases + begin.to(tl.int64) * HEADS + head.to(tl.int64) * queries * columns + first * BLOCK
    block += tl.arange(0, BM)[:, None] * BLOCK + tl.arange(0, BN)[None, :]
    first_tile, samples = tl.load(tiles + 4 * tile + 3), tl.num_programs(1)
    stats += _stats(first_tile, head, tl.program_id(1), samples, HEADS, BLOCK)
    over = HEADS * samples * (2 * BLOCK)
    dk, dv = tl.zeros([BN, E], tl.float32), tl.zeros([BN, E], tl.float32)
    for step in range(0, tokens, BM):
        i = step + tl.arange(0, BM)
        asks = i < tokens
        q = tl.load(qkv + here + i[:, None] * (3 * C) + e[None, :], mask=asks[:, None], other=0.0)
        do = tl.load(grad_out + there + i[:, None] * C + e[None, :], mask=asks[:, None], other=0.0)
        at = stats + (step // BLOCK) * over + tl.multiple_of(step % BLOCK, BM) + tl.arange(0, BM)
        total, mean = tl.load(at), tl.load(at + BLOCK)
        bias = tl.load(block + (step // BLOCK) * (BLOCK * columns) + (step % BLOCK) * BLOCK)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        p = tl.exp2(s * (scale * LOG2E) + (tl.trans(bias).to(tl.float32) * LOG2E - total[None, :]))
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        ds = p * (tl.dot(v, tl.trans(do), input_precision=PRECISION) - mean[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    grad_qkv += here
    tl.store(grad_qkv + C + theirs, dk * scale, mask=known)
    tl.store(grad_qkv + 2 * C + theirs, dv, mask=known)
    # Padding asks nothing.
    tl.store(grad_qkv + theirs, tl.zeros([BN, E], tl.float32), mask=known & (j >= tokens)[:, None])


@triton.jit(do_not_specialize=["samples", "rows"])
def _grad_biases(
    grad_out, qkv, stats, biases, parts, pieces, starts, split, types, samples, rows, scale, HEADS: tl.constexpr,
    E: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add up the gradient of BM by BN biases of one type and head over some boxes and samples."""
    C: tl.constexpr = HEADS * E
    piece, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    about = pieces + 8 * piece
    kind, low, high, part = tl.load(about), tl.load(about + 3), tl.load(about + 4), tl.load(about + 5)
    first_i, first_j = tl.multiple_of(tl.load(about + 1), BLOCK), tl.multiple_of(tl.load(about + 2), BLOCK)
    # A piece is one block; a program may take a part of it.
    at_i = tl.program_id(1) // (BLOCK // BN) * BM + tl.arange(0, BM)
    at_j = tl.program_id(1) % (BLOCK // BN) * BN + tl.arange(0, BN)
    tokens, keys, queries, columns, begin = _type(types, kind, BLOCK)
    starts += 2 * tl.load(split + 4 * kind + 2)
    e = tl.arange(0, E)
    i, j = first_i + at_i, first_j + at_j
    asks, known = i < tokens, (j < keys)[None, :]
    mine, own = i[:, None] * (3 * C) + e[None, :], i[:, None] * C + e[None, :]
    theirs = j[None, :] * (3 * C) + e[:, None]
    place = head.to(tl.int64) * queries * columns + first_i * columns + first_j * BLOCK
    place += at_i[:, None] * BLOCK + at_j[None, :]
    bias = tl.load(biases + begin.to(tl.int64) * HEADS + place).to(tl.float32) * LOG2E
    acc = tl.zeros([BM, BN], tl.float32)
    for number in range(low, high):
        sample, at = number % samples, starts + 2 * (number // samples)
        box = sample.to(tl.int64) * rows + tl.load(at)
        here = qkv + box * (3 * C) + head * E
        q = tl.load(here + mine, mask=asks[:, None], other=0.0)
        k = tl.load(here + C + theirs, mask=known, other=0.0)
        v = tl.load(here + 2 * C + theirs, mask=known, other=0.0)
        do = tl.load(grad_out + box * C + head * E + own, mask=asks[:, None], other=0.0)
        seat = stats + _stats(tl.load(at + 1) + first_i // BLOCK, head, sample, samples, HEADS, BLOCK) + at_i
        total, mean = tl.load(seat), tl.load(seat + BLOCK)
        p = tl.exp2(tl.dot(q, k, input_precision=PRECISION) * (scale * LOG2E) + (bias - total[:, None]))
        acc += p * (tl.dot(do, v, input_precision=PRECISION) - mean[:, None])
    first = tl.load(split + 4 * kind).to(tl.int64) * HEADS + part.to(tl.int64) * HEADS * queries * columns
    tl.store(parts + tl.multiple_of(first, BLOCK) + place, acc)


@triton.jit
def _sum_parts(
    parts, out, blocks, types, split, HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the parts of a row of blocks of one type and head."""
    entry, head = tl.program_id(0), tl.program_id(1)
    kind, first = tl.load(blocks + 2 * entry), tl.load(blocks + 2 * entry + 1)
    _, _, queries, columns, begin = _type(types, kind, BLOCK)
    count = tl.load(split + 4 * kind + 1)
    own, size = head.to(tl.int64) * queries * columns + first * columns, (queries * columns).to(tl.int64) * HEADS
    parts += tl.multiple_of(tl.load(split + 4 * kind), BLOCK).to(tl.int64) * HEADS + own
    out += begin.to(tl.int64) * HEADS + own
    for step in range(tl.program_id(2) * SIZE, BLOCK * columns, tl.num_programs(2) * SIZE):
        at = step + tl.arange(0, SIZE)
        total = tl.zeros([SIZE], tl.float32)
        for part in range(count):
            total += tl.load(parts + part * size + at)
        tl.store(out + at, total)


@triton.jit(do_not_specialize=["entries"])
def _grad_table(
    grad, biases, table, out, blocks, types, positions, local, entries, HEADS: tl.constexpr, WD: tl.constexpr,
    WH: tl.constexpr, WW: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of all pairs whose offset is that of one row of the table, for one head."""
    row, head = tl.program_id(0), tl.program_id(1)
    # Offset of the query from the key, or from the position of padding.
    d = row // ((2 * WH - 1) * (2 * WW - 1)) - (WD - 1)
    h = row // (2 * WW - 1) % (2 * WH - 1) - (WH - 1)
    w = row % (2 * WW - 1) - (WW - 1)
    lane = tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([R, BLOCK], tl.float32)
    if PADDED:
        bias = tl.load(table + row * HEADS + head).to(tl.float32)
    for step in range(0, entries, R):
        entry = step + tl.arange(0, R)
        kind = tl.load(blocks + 2 * entry, mask=entry < entries, other=0)[:, None]
        first = tl.load(blocks + 2 * entry + 1, mask=entry < entries, other=0)[:, None]
        about = types + 8 * kind
        tokens, queries, columns = tl.load(about), tl.load(about + 2), tl.load(about + 3)
        live = (first + lane < tokens) & (entry < entries)[:, None]
        mine = tl.load(positions + tl.load(about + 5) + first + lane, mask=live, other=0)
        key_d, key_h, key_w = mine // (WH * WW) - d, mine // WW % WH - h, mine % WW - w
        live = live & (key_d >= 0) & (key_d < WD) & (key_h >= 0) & (key_h < WH) & (key_w >= 0) & (key_w < WW)
        place = kind * (WD * WH * WW) + (key_d * WH + key_h) * WW + key_w
        j = tl.load(local + place, mask=live, other=-1)
        at = tl.load(about + 4).to(tl.int64) * HEADS + head * queries * columns + first * columns + lane * BLOCK
        total += tl.load(grad + at + j // BLOCK * (BLOCK * BLOCK) + j % BLOCK, mask=j >= 0, other=0.0)
        if PADDED:
            padded = j == -2
            at += tokens // BLOCK * (BLOCK * BLOCK) + tokens % BLOCK
            share = tl.exp(bias - tl.load(biases + at, mask=padded, other=float("inf")))
            total += share * tl.load(grad + at, mask=padded, other=0.0)
    tl.store(out + row * HEADS + head, tl.sum(tl.sum(total, 1), 0))


def attend_backward(
    grad_out: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    biases: Tensor,
    tables: BoxTables,
    work: BackwardTables,
    heads: int,
    *,
    with_biases: bool = True,
    config: Mapping[str, Mapping[str, int]] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of :func:`medzoo.kernels.cuda.box_attention.attend_in_boxes`.

    Args:
        grad_out: gradient of its first result, ``(b r) c``, contiguous; the rows of padding are not read.
        qkv: queries, keys and values of each row, ``(b r) 3c``, contiguous.
        out: the first result, ``(b r) c``.
        lse: the second result, ``(b r) m`` in float32.
        biases: from :func:`medzoo.kernels.cuda.box_attention.fill_biases` with blocks of ``BLOCK`` keys.
        tables: the boxes of one map.
        work: from :func:`backward_tables`, for the same boxes, samples and heads.
        heads: how many there are.
        with_biases: compute the gradient of the biases.
        config: block sizes of the kernels ``queries``, ``keys`` and ``biases``.

    Returns:
        The gradient of ``qkv``, and that of ``biases`` in their order, in float32.
    """
    total, width = qkv.shape
    rows, e = len(tables.token_of_row), width // 3 // heads
    samples, scale = total // rows, e**-0.5
    exact = qkv.dtype == torch.float32
    shared = {"HEADS": heads, "E": e, "BLOCK": BLOCK, "PRECISION": "tf32x3" if exact else "tf32"}
    sizes: dict[str, dict[str, Any]] = {
        "queries": {"BM": BLOCK, "BN": 32, "num_warps": 4, "num_stages": 2},
        "keys": {"BM": 16 if exact and e > 32 else 32, "BN": BLOCK, "num_warps": 4, "num_stages": 2},
        "biases": {"BM": BLOCK, "BN": 32 if exact else BLOCK, "num_warps": 4, "num_stages": 2},
    }
    for name, chosen in (config or {}).items():
        sizes[name] |= chosen
    grad_qkv = torch.empty_like(qkv)
    stats = torch.empty(len(tables.tiles), heads, samples, 2, BLOCK, dtype=torch.float32, device=qkv.device)
    _grad_queries[len(tables.tiles) * heads, samples](
        grad_out, qkv, out, lse, biases, grad_qkv, stats, tables.tiles, tables.types, rows, scale,
        **shared, **sizes["queries"],
    )  # fmt: skip
    _grad_keys[len(work.tiles) * heads, samples](
        grad_out, qkv, stats, biases, grad_qkv, work.tiles, tables.types, rows, scale, **shared, **sizes["keys"]
    )
    if not with_biases:
        return grad_qkv, None
    parts = torch.empty(work.parts * heads, dtype=torch.float32, device=qkv.device)
    inner = (BLOCK // sizes["biases"]["BM"]) * (BLOCK // sizes["biases"]["BN"])
    _grad_biases[len(work.pieces) * heads, inner](
        grad_out, qkv, stats, biases, parts, work.pieces, work.starts, work.split, tables.types, samples, rows,
        scale, **shared, **sizes["biases"],
    )  # fmt: skip
    if work.parts == tables.biases:  # each type has one part, in the position of its biases
        return grad_qkv, parts
    grad_biases = torch.empty(tables.biases * heads, dtype=torch.float32, device=qkv.device)
    _sum_parts[len(tables.blocks), heads, 4](
        parts, grad_biases, tables.blocks, tables.types, work.split, HEADS=heads, SIZE=1024, BLOCK=BLOCK
    )
    return grad_qkv, grad_biases


def biases_backward(
    grad_biases: Tensor, tables: BoxTables, work: BackwardTables, table: Tensor, sides: Sequence[int]
) -> Tensor:
    """Return the gradient of the table that the biases were filled from, ``rows m`` in float32.

    Args:
        grad_biases: from :func:`attend_backward`.
        tables: the boxes.
        work: from :func:`backward_tables`, for the same boxes.
        table: the learned biases, one row for each offset, ``rows m``.
        sides: of the window that the table is made for.
    """
    rows, heads = table.shape
    padded = len(tables.padding) > 0
    # The bias of a padding key is a log-sum-exp, whose gradient goes to each of its terms by its weight. In the type
    # of a half-precision table it would be too coarse for those weights to sum to 1.
    biases = fill_biases(table.float(), tables, sides, keys=BLOCK) if padded else grad_biases
    out = torch.empty(rows, heads, dtype=torch.float32, device=table.device)
    _grad_table[rows, heads](
        grad_biases, biases, table, out, tables.blocks, tables.types, tables.positions, work.local, len(tables.blocks),
        heads, *sides, R=8, BLOCK=BLOCK, PADDED=padded,
    )  # fmt: skip
    return out
