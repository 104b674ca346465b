"""Attention inside the boxes of a Swin block: one kernel for all boxes of a batch of maps.

Its rows are the tokens in the order of their boxes, and one row for the padding of each box that has some; what is
read is contiguous, and nothing is masked but the end of a box. A second kernel fills the biases of all types of
boxes from their table, so that no copy of them has to be kept and checked.

The softmax is computed block by block of keys with a running maximum (Milakov and Gimelshein,
https://arxiv.org/abs/1805.02867; Dao et al., FlashAttention, https://arxiv.org/abs/2205.14135).

Axes: b batch, r rows of a map, c channels, m heads, e head width, t tokens of a box, k its keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from medzoo.kernels.cuda.box_tables import BLOCK, BoxTables

__all__ = ["attend_in_boxes", "fill_biases"]

# Keys of one step.
KEYS = 32


@triton.jit
def _row_of(i, j, WD: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr):
    """Return the row of the bias table for a query and a key, given their positions in the window."""
    d = i // (WH * WW) - j // (WH * WW) + WD - 1
    h = i // WW % WH - j // WW % WH + WH - 1
    w = i % WW - j % WW + WW - 1
    return (d * (2 * WH - 1) + h) * (2 * WW - 1) + w


@triton.jit
def _fill(table, out, blocks, types, positions, padding, HEADS, WD: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr,
          BM: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Fill BM rows of the biases of one type and head."""
    block, head = blocks + 2 * tl.program_id(0), tl.program_id(1)
    kind, first = tl.load(block), tl.load(block + 1)
    about = types + 8 * kind
    tokens, keys, queries = tl.load(about), tl.load(about + 1), tl.load(about + 2)
    columns = tl.multiple_of(tl.load(about + 3), BLOCK)  # so that rows of biases are read in wide pieces
    start, at, pad_at, pads = (
        tl.multiple_of(tl.load(about + 4), BLOCK),
        tl.load(about + 5),
        tl.load(about + 6),
        tl.load(about + 7),
    )
    i = first + tl.arange(0, BM)
    mine = tl.load(positions + at + i, mask=i < tokens, other=0)
    # One key represents all padding: exp(s + b1) + exp(s + b2) = exp(s + log(exp(b1) + exp(b2))).
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    for begin in range(0, pads, BN):
        p = begin + tl.arange(0, BN)
        theirs = tl.load(padding + pad_at + p, mask=p < pads, other=0)
        row = _row_of(mine[:, None], theirs[None, :], WD, WH, WW)
        value = tl.load(table + row * HEADS + head).to(tl.float32)
        value = tl.where((p < pads)[None, :], value, float("-inf"))
        higher = tl.maximum(top, tl.max(value, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(value - higher[:, None]), 1)
        top = higher
    joined = top + tl.log(tl.where(pads > 0, total, 1.0))
    base = out + start.to(tl.int64) * HEADS + head.to(tl.int64) * queries * columns + first * columns
    r = tl.arange(0, BM)
    for begin in range(0, columns, BN):
        j = begin + tl.arange(0, BN)
        theirs = tl.load(positions + at + j)
        row = _row_of(mine[:, None], theirs[None, :], WD, WH, WW)
        value = tl.load(table + row * HEADS + head).to(tl.float32)
        value = tl.where((j < tokens)[None, :], value, float("-inf"))
        value = tl.where(((j == tokens) & (tokens < keys))[None, :], joined[:, None], value)
        # Each block of BM queries and BN keys is contiguous.
        tl.store(base + begin * BM + r[:, None] * BN + tl.arange(0, BN)[None, :], value)


def fill_biases(table: Tensor, tables: BoxTables, sides: Sequence[int], keys: int = KEYS) -> Tensor:
    """Return the biases of all types of boxes; ``-inf`` where no key is.

    They lie type by type, ``m t k`` with t and k padded to multiples of ``BLOCK``, and within a head block by block of
    ``BLOCK`` queries and ``keys`` keys.

    Args:
        table: the learned biases, one row for each offset, ``rows m``.
        tables: the boxes.
        sides: of the window that the table is made for.
        keys: of a block.
    """
    heads = table.shape[1]
    out = torch.empty(tables.biases * heads, dtype=table.dtype, device=table.device)
    _fill[len(tables.blocks), heads](
        table, out, tables.blocks, tables.types, tables.positions, tables.padding, heads, *sides,
        BM=BLOCK, BN=keys, BLOCK=BLOCK,
    )  # fmt: skip
    return out


@triton.jit
def _weigh(s, top, total):
    """Return the weights of a block of keys, the new maximum and sum, and the factor of what was summed before."""
    higher = tl.maximum(top, tl.max(s, 1))
    p = tl.exp2(s * 1.4426950408889634 - (higher * 1.4426950408889634)[:, None])
    keep = tl.exp2((top - higher) * 1.4426950408889634)
    return p, higher, total * keep + tl.sum(p, 1), keep


# A size that changes would else compile the kernel once more.
@triton.jit(do_not_specialize=["samples", "rows"])
def _attend(qkv, biases, out, lse, tiles, types, samples, rows, scale, HEADS: tl.constexpr, E: tl.constexpr,
            BM: tl.constexpr, BN: tl.constexpr, PAIR: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """Attend from BM queries of one box and head, in one sample or in two that share the biases."""
    C: tl.constexpr = HEADS * E
    tile, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    start, kind, first = tl.load(tiles + 4 * tile), tl.load(tiles + 4 * tile + 1), tl.load(tiles + 4 * tile + 2)
    about = types + 8 * kind
    tokens, keys, queries = tl.load(about), tl.load(about + 1), tl.load(about + 2)
    columns = tl.multiple_of(tl.load(about + 3), BLOCK)  # so that rows of biases are read in wide pieces
    begin = tl.multiple_of(tl.load(about + 4), BLOCK)
    sample = tl.program_id(1) * (2 if PAIR else 1)
    # Two samples where there are two; else the second is the first again, and writes the same.
    other = tl.minimum(sample + 1, samples - 1)
    e = tl.arange(0, E)
    i = first + tl.arange(0, BM)
    asks = (i < tokens)[:, None]
    here = (sample.to(tl.int64) * rows + start) * (3 * C) + head * E
    q = tl.load(qkv + here + i[:, None] * (3 * C) + e[None, :], mask=asks, other=0.0)
    top, total = tl.full([BM], float("-inf"), tl.float32), tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, E], tl.float32)
    if PAIR:
        there = (other.to(tl.int64) * rows + start) * (3 * C) + head * E
        q2 = tl.load(qkv + there + i[:, None] * (3 * C) + e[None, :], mask=asks, other=0.0)
        top2, total2, acc2 = top, total, acc
    block = biases + begin.to(tl.int64) * HEADS + head.to(tl.int64) * queries * columns + first * columns
    block += tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
    for step in range(0, keys, BN):
        j = step + tl.arange(0, BN)
        known = j < keys
        at = j * (3 * C)
        bias = tl.load(block + step * BM).to(tl.float32)
        k = tl.load(qkv + here + C + at[None, :] + e[:, None], mask=known[None, :], other=0.0)
        s = tl.dot(q, k, input_precision=PRECISION)
        if PAIR:
            k2 = tl.load(qkv + there + C + at[None, :] + e[:, None], mask=known[None, :], other=0.0)
            s2 = tl.dot(q2, k2, input_precision=PRECISION)
        v = tl.load(qkv + here + 2 * C + at[:, None] + e[None, :], mask=known[:, None], other=0.0)
        p, top, total, keep = _weigh(s * scale + bias, top, total)
        acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None], input_precision=PRECISION)
        if PAIR:
            v2 = tl.load(qkv + there + 2 * C + at[:, None] + e[None, :], mask=known[:, None], other=0.0)
            p, top2, total2, keep = _weigh(s2 * scale + bias, top2, total2)
            acc2 = tl.dot(p.to(v.dtype), v2, acc2 * keep[:, None], input_precision=PRECISION)
    row = sample.to(tl.int64) * rows + start + i
    tl.store(out + row[:, None] * C + head * E + e[None, :], acc / total[:, None], mask=asks)
    if KEEP:
        tl.store(lse + row * HEADS + head, top + tl.log(total), mask=i < tokens)
    if PAIR:
        row = other.to(tl.int64) * rows + start + i
        tl.store(out + row[:, None] * C + head * E + e[None, :], acc2 / total2[:, None], mask=asks)
        if KEEP:
            tl.store(lse + row * HEADS + head, top2 + tl.log(total2), mask=i < tokens)


def attend_in_boxes(
    qkv: Tensor, biases: Tensor, tables: BoxTables, heads: int, *, keep: bool, **config: Any
) -> tuple[Tensor, Tensor]:
    """Attend within each box, ``(b r) 3c -> (b r) c``; the rows of the padding hold nothing.

    Args:
        qkv: queries, keys and values of each row, ``(b r) 3c``, contiguous.
        biases: from :func:`fill_biases`.
        tables: the boxes of one map.
        heads: how many there are.
        keep: return the log-sum-exp of each row's weights too, ``(b r) m`` in float32, else an empty tensor.
        config: block sizes.
    """
    total, width = qkv.shape
    c, rows = width // 3, len(tables.token_of_row)
    out = torch.empty(total, c, dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty((total, heads) if keep else (0,), dtype=torch.float32, device=qkv.device)
    samples = total // rows
    # Shared memory for what is loaded ahead: smaller cards have 99 KB, and wide heads in float32 take more.
    stages = 1 if qkv.dtype == torch.float32 and c // heads > 32 else 3
    config = {"BM": BLOCK, "BN": KEYS, "PAIR": True, "num_warps": 4, "num_stages": stages} | config
    config["PAIR"] = config["PAIR"] and samples > 1
    _attend[len(tables.tiles) * heads, -(-samples // 2) if config["PAIR"] else samples](
        qkv, biases, out, lse, tables.tiles, tables.types, samples, rows,
        (c // heads) ** -0.5, HEADS=heads, E=c // heads, KEEP=keep, BLOCK=BLOCK,
        PRECISION="tf32x3" if qkv.dtype == torch.float32 else "tf32", **config,
    )  # fmt: skip
    return out, lse
