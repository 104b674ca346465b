"""The layers of a Swin block around its attention, each one pass over the tokens.

Eager PyTorch writes every map between two operations to memory and reads it again: LayerNorm, linear layer, GELU and
sum each move all tokens. Here a block of tokens stays on chip from LayerNorm to the result of the linear layer, and
from the attended tokens through projection, sum, LayerNorm and MLP to the end of the block. Sums are in float32, and
so is what the tokens are until they are stored; factors of matrix products are in the type of the weights.

Axes: b batch, n tokens of a map, r rows of tokens sorted by box, c channels, o output channels, h hidden
width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from medzoo.kernels.cuda.graphs import keep_alive

__all__ = ["WIDEST", "finish_block", "merge_patches", "norm_linear", "trial_launch"]

# The widest tokens that these kernels keep on chip; wider ones are few, and run by the library.
WIDEST = 192


@triton.jit
def _normalised(x, weight, bias, cols, C: tl.constexpr, eps):
    """Normalise rows over their C channels, in float32; columns beyond C hold zeros and stay zero."""
    live = (cols < C)[None, :]
    mean = tl.sum(x, 1) / C
    centred = tl.where(live, x - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / C + eps)
    w = tl.load(weight + cols, mask=cols < C, other=0.0).to(tl.float32)
    b = tl.load(bias + cols, mask=cols < C, other=0.0).to(tl.float32)
    return centred * scale[:, None] * w[None, :] + b[None, :]


@triton.jit
def _gelu(x):
    """Return x times the normal distribution function of x, to 5e-5 absolute, a tenth of what float16 rounds at 1.

    An odd polynomial between -4.5 and 4.5, fitted by reweighted least squares, and 0 or x beyond. The exact erf takes
    twice the instructions, and the kernel was bound by them.
    """
    u = tl.minimum(x * x, 20.25)
    phi = u * -8.484819834578272e-13 + 1.1562712592949609e-10
    phi = phi * u - 6.948094100067692e-09
    phi = phi * u + 2.4456531377836654e-07
    phi = phi * u - 5.661374871124281e-06
    phi = phi * u + 9.195374877890572e-05
    phi = phi * u - 0.001092809485271573
    phi = phi * u + 0.009748517535626888
    phi = phi * u - 0.06622045487165451
    phi = phi * u + 0.3988291323184967
    return x * tl.maximum(tl.minimum(tl.maximum(x, -4.5), 4.5) * phi + 0.5, 0.0)


@triton.jit(do_not_specialize=["total", "rows", "tokens"])
def _norm_linear(x, token_of_row, norm_weight, norm_bias, weight, bias, out, total, rows, tokens, eps, C: tl.constexpr,
                 OUT: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                 CHUNK: tl.constexpr):  # fmt: skip
    """Normalise the tokens of BM rows and give CHUNK blocks of BN output channels."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.arange(0, CP)
    token = tl.load(token_of_row + row % rows, mask=row < total, other=-1)
    held = (token >= 0)[:, None]
    token = (row // rows).to(tl.int64) * tokens + token
    values = tl.load(x + token[:, None] * C + cols[None, :], mask=held & (cols < C)[None, :], other=0.0)
    normed = _normalised(values.to(tl.float32), norm_weight, norm_bias, cols, C, eps)
    # Padding is added behind the norm: its row is zeros, and projects to the bias.
    normed = tl.where(held, normed, 0.0).to(x.dtype.element_ty)
    live = (row < total)[:, None]
    at = row.to(tl.int64)[:, None] * OUT
    for step in range(CHUNK):
        o = (tl.program_id(1) * CHUNK + step) * BN + tl.arange(0, BN)
        w = tl.load(weight + o[None, :] * C + cols[:, None], mask=(o < OUT)[None, :] & (cols < C)[:, None], other=0.0)
        b = tl.load(bias + o, mask=o < OUT, other=0.0).to(tl.float32)
        tl.store(out + at + o[None, :], tl.dot(normed, w) + b[None, :], mask=live & (o < OUT)[None, :])


def norm_linear(
    x: Tensor,
    token_of_row: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    **config: Any,
) -> Tensor:
    """Return ``linear(layer_norm(x))`` of the tokens sorted by box, ``b n c -> (b r) o``.

    Args:
        x: contiguous.
        token_of_row: the token of each row, or -1 for one that is zeros behind the norm; ``r``.
        norm_weight: ``c``.
        norm_bias: ``c``.
        weight: ``o c``.
        bias: ``o``.
        eps: of the norm.
        config: block sizes.
    """
    b, n, c = x.shape
    total, width = b * len(token_of_row), len(weight)
    out = torch.empty(total, width, dtype=x.dtype, device=x.device)
    config = {"BM": 64, "BN": 64, "CHUNK": -(-width // 64), "num_warps": 4, "num_stages": 2} | config
    _norm_linear[triton.cdiv(total, config["BM"]), triton.cdiv(width, config["BN"] * config["CHUNK"])](
        x, token_of_row, norm_weight, norm_bias, weight, bias, out, total, len(token_of_row), n, eps,
        C=c, OUT=width, CP=triton.next_power_of_2(c), **config,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["total", "rows", "tokens"])
def _finish(attended, scatter_index, x, out, proj_weight, proj_bias, norm_weight, norm_bias, weight1, bias1, weight2,
            bias2, total, rows, tokens, eps, C: tl.constexpr, HIDDEN: tl.constexpr, CP: tl.constexpr, BM: tl.constexpr,
            BK: tl.constexpr, BH: tl.constexpr):  # fmt: skip
    """Run BM tokens from attention to the end of the block."""
    token = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.arange(0, CP)
    wide = cols < C
    at = token.to(tl.int64)[:, None] * C + cols[None, :]
    live = (token < total)[:, None] & wide[None, :]
    row = tl.load(scatter_index + token % tokens, mask=token < total, other=0)
    row = (token // tokens).to(tl.int64) * rows + row
    y = tl.load(x + at, mask=live, other=0.0).to(tl.float32)
    y += tl.load(proj_bias + cols, mask=wide, other=0.0).to(tl.float32)[None, :]
    for step in range(0, C, BK):
        k = step + tl.arange(0, BK)
        a = tl.load(
            attended + row[:, None] * C + k[None, :], mask=(token < total)[:, None] & (k < C)[None, :], other=0.0
        )
        w = tl.load(proj_weight + cols[None, :] * C + k[:, None], mask=wide[None, :] & (k < C)[:, None], other=0.0)
        y = tl.dot(a, w, y)
    normed = _normalised(y, norm_weight, norm_bias, cols, C, eps).to(x.dtype.element_ty)
    y += tl.load(bias2 + cols, mask=wide, other=0.0).to(tl.float32)[None, :]
    for step in range(0, HIDDEN, BH):
        h = step + tl.arange(0, BH)
        w1 = tl.load(weight1 + h[None, :] * C + cols[:, None], mask=wide[:, None], other=0.0)
        hidden = tl.dot(normed, w1) + tl.load(bias1 + h).to(tl.float32)[None, :]
        w2 = tl.load(weight2 + cols[None, :] * HIDDEN + h[:, None], mask=wide[None, :], other=0.0)
        y = tl.dot(_gelu(hidden).to(x.dtype.element_ty), w2, y)
    tl.store(out + at, y, mask=live)


def finish_block(
    attended: Tensor,
    scatter_index: Tensor,
    x: Tensor,
    proj: Sequence[Tensor],
    norm: Sequence[Tensor],
    linear1: Sequence[Tensor],
    linear2: Sequence[Tensor],
    eps: float,
    **config: Any,
) -> Tensor:
    """Return ``y + linear2(gelu(linear1(layer_norm(y))))`` for ``y = x + proj(attended)``, ``b n c -> b n c``.

    Args:
        attended: the result of attention, sorted by box, ``(b r) c``, contiguous.
        scatter_index: the row of ``attended`` of each token; ``n``.
        x: the tokens before attention, contiguous.
        proj: weight and bias of the output projection.
        norm: weight and bias of the norm.
        linear1: weight ``h c`` and bias of the MLP's first layer; h is a multiple of 64, the block of hidden channels.
        linear2: weight ``c h`` and bias of its second layer.
        eps: of the norm.
        config: block sizes.
    """
    b, n, c = x.shape
    out = torch.empty_like(x)
    # Wide tokens leave room for fewer.
    config = {"BM": 64 if c <= 96 else 32, "BK": 64, "BH": 64, "num_warps": 4, "num_stages": 2} | config
    _finish[(triton.cdiv(b * n, config["BM"]),)](
        attended, scatter_index, x, out, *proj, *norm, *linear1, *linear2, b * n, len(attended) // b, n, eps,
        C=c, HIDDEN=len(linear1[0]), CP=triton.next_power_of_2(c), **config,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["n", "h", "w"])
def _merge(x, norm_weight, norm_bias, weight, out, octants, n, h, w, eps, C: tl.constexpr, OUT: tl.constexpr,
           CP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """Give BN channels of BM merged tokens."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.arange(0, CP)
    live = (rows < n)[:, None] & (cols < C)[None, :]
    # The first token of each cell: the map is twice as long along each axis.
    line = rows // w
    plane = line // h
    first = ((plane * 2 * (2 * h)) + (line % h) * 2).to(tl.int64) * (2 * w) + (rows % w) * 2
    at = x + first[:, None] * C + cols[None, :]
    # Mean and variance in one pass, around the mean of the first token: around zero, a large mean would drown both.
    near = tl.sum(tl.load(at, mask=live, other=0.0).to(tl.float32), 1) / C
    first_sum, second_sum = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    for i in range(8):
        piece = tl.load(at + tl.load(octants + i) * C, mask=live, other=0.0).to(tl.float32)
        piece = tl.where(live, piece - near[:, None], 0.0)
        first_sum += tl.sum(piece, 1)
        second_sum += tl.sum(piece * piece, 1)
    away = first_sum / (8 * C)
    mean = near + away
    scale = tl.rsqrt(second_sum / (8 * C) - away * away + eps)
    o = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros([BM, BN], tl.float32)
    for i in range(8):
        piece = tl.load(at + tl.load(octants + i) * C, mask=live, other=0.0).to(tl.float32)
        g = tl.load(norm_weight + i * C + cols, mask=cols < C, other=0.0).to(tl.float32)
        b = tl.load(norm_bias + i * C + cols, mask=cols < C, other=0.0).to(tl.float32)
        piece = (piece - mean[:, None]) * scale[:, None] * g[None, :] + b[None, :]
        part = tl.load(
            weight + o[None, :] * (8 * C) + i * C + cols[:, None],
            mask=(o < OUT)[None, :] & (cols < C)[:, None], other=0.0,
        )  # fmt: skip
        acc = tl.dot(piece.to(x.dtype.element_ty), part, acc)
    tl.store(out + rows.to(tl.int64)[:, None] * OUT + o[None, :], acc, mask=(rows < n)[:, None] & (o < OUT)[None, :])


def merge_patches(
    x: Tensor,
    octants: Sequence[tuple[int, ...]],
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    eps: float,
    **config: Any,
) -> Tensor:
    """Lay the octants of each cell side by side, normalise and reduce, ``b d h w c -> b d/2 h/2 w/2 o``.

    Args:
        x: contiguous; every side is even.
        octants: position of each octant in its cell along d, h, w, in the order of ``norm_weight`` and ``weight``.
        norm_weight: ``8c``.
        norm_bias: ``8c``.
        weight: ``o 8c``.
        eps: of the norm.
        config: block sizes.
    """
    b, d, h, w, c = x.shape
    width, away = len(weight), _distances(tuple(octants), h, w, x.device)
    keep_alive(away)
    out = torch.empty(b, d // 2, h // 2, w // 2, width, dtype=x.dtype, device=x.device)
    n = out.numel() // width
    # Shared memory for what is loaded ahead: smaller cards have 99 KB, and wide tokens take more.
    stages = 2 if c <= 96 else 1
    config = {"BM": 64, "BN": 128, "num_warps": 4 if c == 96 else 8, "num_stages": stages} | config
    grid = (triton.cdiv(n, config["BM"]), triton.cdiv(width, config["BN"]))
    _merge[grid](
        x, norm_weight, norm_bias, weight, out, away, n, h // 2, w // 2, eps,
        C=c, OUT=width, CP=triton.next_power_of_2(c), **config,
    )  # fmt: skip
    return out


@functools.lru_cache(maxsize=64)
def _distances(octants: tuple[tuple[int, ...], ...], h: int, w: int, device: torch.device) -> Tensor:
    """Return the distance of each octant's token from the cell's first one, on a map of height h and width w."""
    with torch.inference_mode(False):  # what is cached serves any caller
        return torch.tensor([(i * h + j) * w + k for i, j, k in octants], dtype=torch.int32).to(device)


@triton.jit
def _one(out):
    tl.store(out, 1.0)


def trial_launch(device: torch.device) -> None:
    """Build and launch the smallest kernel; whatever goes wrong is raised. It does not wait for the GPU."""
    out = torch.empty(1, dtype=torch.float32, device=device)
    with torch.cuda.device_of(out):
        _one[(1,)](out)
