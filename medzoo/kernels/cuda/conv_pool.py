"""Convolution of one channel with max pooling in one kernel, and max pooling of channels-last maps, in Triton.

Both finish what follows a convolution in a folded stage: the bias is added, then comes one of

- a clamp by bounds of each channel: ReLU, BatchNorm and pooling, in that order, with BatchNorm folded into the kernel;
- ReLU, then a scale and a shift of each channel: ReLU, pooling, BatchNorm;
- ReLU alone.

``conv_pool`` computes each pooled position from its window of ``(pool + kernel - 1)³`` voxels, which are read once. The
window is the inner axis of a matrix product with the kernel shifted to each of the ``pool³`` positions of the
convolution; the zeros around the shifted kernel cost arithmetic, which a GPU has to spare here, and no memory traffic.
The map of the convolution, eight times as large as the pooled one for a pool of 2, is never written. A NaN in the
window makes the pooled value NaN, as in the plain stage: each voxel of the window is part of some position. An infinity
gives NaN where the plain stage may give infinity.

Sums, maxima and what follows are in float32. All of it is for inference: there are no gradients.

Axes: b batch, c channels, d h w depth height width, with a prime after pooling; t taps of a window, p positions of the
convolution in a pooling window.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Epilogue", "Tile", "conv_pool", "conv_pool_serves", "pack_windows", "pool_last", "pool_last_serves"]

# Addresses of sites are computed in 32 bits; a program may count past the last one by less than this.
SITES = 2**31 - 2**16
# What one program can hold of a convolution.
MAX_CHANNELS, MAX_TAPS = 128, 128
# Numbers of a pool_last tile. At 16 bytes a load, 128 threads then have 8 or 16 loads of one row under way.
POOLED = 2048


class Tile(NamedTuple):
    """How much of the pooled map one program of ``conv_pool`` computes, and with how many threads.

    Attributes:
        rows: pooled positions.
        warps: of 32 threads.
        stages: shifted kernels loaded ahead of their use.
    """

    rows: int
    warps: int
    stages: int


class Epilogue(NamedTuple):
    """What follows the pooled convolution, ``c`` each, in float32.

    Attributes:
        bias: added first.
        low: lower bound, instead of ReLU.
        high: upper bound; only with ``low``.
        scale: multiplied after ReLU.
        shift: added after ``scale``; only with it.
    """

    bias: Tensor
    low: Tensor | None = None
    high: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None


@triton.jit
def _finish(y, bias, low, high, scale, shift, c, inside):
    """Apply the epilogue, ``m c -> m c``; NaN stays NaN."""
    y += tl.load(bias + c, mask=inside, other=0.0)[None, :]
    if low is not None:
        y = tl.maximum(y, tl.load(low + c, mask=inside, other=0.0)[None, :], propagate_nan=tl.PropagateNan.ALL)
        if high is not None:
            y = tl.minimum(y, tl.load(high + c, mask=inside, other=0.0)[None, :], propagate_nan=tl.PropagateNan.ALL)
    else:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
        if scale is not None:
            y = y * tl.load(scale + c, mask=inside, other=0.0)[None, :]
            y += tl.load(shift + c, mask=inside, other=0.0)[None, :]
    return y


@triton.jit
def _place(m, pd, ph, pw):
    """Split the number of a pooled position into those of its volume, plane, row and column."""
    line = m // pw
    plane = line // ph
    return plane // pd, plane % pd, line % ph, m % pw


# Sizes are not specialised: a volume of another size must not compile again.
@triton.jit(do_not_specialize=["rows", "d", "h", "w", "pd", "ph", "pw"])
def _conv_pool(
    x, weight, out, bias, low, high, scale, shift, rows, d, h, w, pd, ph, pw, C: tl.constexpr, CP: tl.constexpr,
    KERNEL: tl.constexpr, PADDING: tl.constexpr, POOL: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Compute ``ROWS`` pooled positions of all channels; see the head of the file."""
    SIDE: tl.constexpr = POOL + KERNEL - 1
    first = tl.program_id(0).to(tl.int64) * ROWS
    # Positions past the last one repeat it, and are not stored.
    m = tl.minimum(tl.program_id(0) * ROWS + tl.arange(0, ROWS), rows - 1)
    n, i, j, k = _place(m, pd, ph, pw)
    i, j, k = i * POOL - PADDING, j * POOL - PADDING, k * POOL - PADDING
    base = n.to(tl.int64) * (d * h * w) + ((i * h + j) * w + k)
    t = tl.arange(0, TAPS)
    tk, ti, tj = t // (SIDE * SIDE), t // SIDE % SIDE, t % SIDE
    inside = (t < SIDE * SIDE * SIDE)[None, :]
    if PADDING > 0:
        z, y, v = i[:, None] + ti[None, :], j[:, None] + tj[None, :], k[:, None] + tk[None, :]
        inside &= (z >= 0) & (z < d) & (y >= 0) & (y < h) & (v >= 0) & (v < w)
    # Neighbouring threads are to take neighbouring positions, a row of the volume, and not the taps of one position,
    # which lie in many rows. The compiler does so as long as no taps follow each other in memory: w is the outer axis.
    window = tl.load(x + base[:, None] + ((ti * h + tj) * w + tk)[None, :], mask=inside, other=0.0)
    c = tl.arange(0, CP)
    best = tl.full((ROWS, CP), float("-inf"), tl.float32)
    for p in tl.range(0, POOL * POOL * POOL):
        shifted = tl.load(weight + p * (TAPS * CP) + (t[:, None] * CP + c[None, :]))
        best = tl.maximum(best, tl.dot(window, shifted, out_dtype=tl.float32), propagate_nan=tl.PropagateNan.ALL)
    best = _finish(best, bias, low, high, scale, shift, c, c < C)
    local = tl.arange(0, ROWS)
    kept = (first + local < rows)[:, None] & (c < C)[None, :]
    tl.store(out + first * C + (local[:, None] * C + c[None, :]), best.to(out.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["rows", "d", "h", "w", "pd", "ph", "pw"])
def _pool_last(
    x, out, bias, low, high, scale, shift, rows, d, h, w, pd, ph, pw, C: tl.constexpr, CP: tl.constexpr,
    POOL_D: tl.constexpr, POOL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Pool ``ROWS`` positions of up to ``CP`` channels."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    m = tl.minimum(tl.program_id(0) * ROWS + tl.arange(0, ROWS), rows - 1)
    n, i, j, k = _place(m, pd, ph, pw)
    site = ((n * d + i * POOL_D) * h + j * POOL) * w + k * POOL
    c = tl.program_id(1) * CP + tl.arange(0, CP)
    corner = x + site.to(tl.int64)[:, None] * C + c[None, :]
    inside = (c < C)[None, :]
    best = tl.full((ROWS, CP), float("-inf"), tl.float32)
    for di in tl.static_range(POOL_D):
        for dj in tl.static_range(POOL):
            line = corner + ((di * h + dj) * w).to(tl.int64) * C
            for dk in tl.static_range(POOL):
                y = tl.load(line + dk * C, mask=inside, other=0.0).to(tl.float32)
                best = tl.maximum(best, y, propagate_nan=tl.PropagateNan.ALL)
    best = _finish(best, bias, low, high, scale, shift, c, c < C)
    local = tl.arange(0, ROWS)
    kept = (first + local < rows)[:, None] & (c < C)[None, :]
    tl.store(out + first * C + (local[:, None] * C + c[None, :]), best.to(out.dtype.element_ty), mask=kept)


def conv_pool_serves(channels: int, kernel: int, pool: int) -> bool:
    """Whether :func:`conv_pool` computes a convolution of one channel to ``channels``.

    float32 is left to the library: without the tensor cores the zeros around the shifted kernels would cost too much.
    """
    return channels <= MAX_CHANNELS and (pool + kernel - 1) ** 3 <= MAX_TAPS and pool > 1


def pool_last_serves(x: Tensor) -> bool:
    """Whether :func:`pool_last` takes the map ``b *s c``: its sites can be counted in 32 bits."""
    return x.is_contiguous() and x.numel() // max(1, x.shape[-1]) <= SITES


def pack_windows(weight: Tensor, pool: int) -> Tensor:
    """Lay out a kernel as :func:`conv_pool` reads it, ``c 1 k k k -> p t c``: shifted to each position of a window.

    The taps of a window are in the order w, d, h. The taps and the channels are padded with zeros to powers of two that
    the tensor cores take.
    """
    channels, kernel = weight.shape[0], weight.shape[-1]
    side = pool + kernel - 1
    rows, columns = _power(side**3), _power(channels)
    packed = weight.new_zeros(pool, pool, pool, side, side, side, channels)
    last = weight[:, 0].permute(3, 1, 2, 0)
    for i in range(pool):
        for j in range(pool):
            for k in range(pool):
                packed[i, j, k, k : k + kernel, i : i + kernel, j : j + kernel] = last
    return F.pad(packed.reshape(pool**3, side**3, channels), (0, columns - channels, 0, rows - side**3)).contiguous()


def conv_pool(
    x: Tensor, packed: Tensor, epilogue: Epilogue, *, kernel: int, padding: int, pool: int, tile: Tile | None = None
) -> Tensor:
    """Convolve one channel and pool, ``b 1 d h w -> b d' h' w' c``.

    Args:
        x: the volumes.
        packed: the kernel, from :func:`pack_windows`; of the type of ``x``.
        epilogue: what follows.
        kernel: side of the kernel.
        padding: zeros at each border.
        pool: side of the pooling window.
        tile: the size of a program; by default one that suits the number of channels.
    """
    return _convolve_and_pool(x, packed, *epilogue, kernel, padding, pool, *(tile or (0, 0, 0)))


def pool_last(x: Tensor, epilogue: Epilogue, pool: int) -> Tensor:
    """Pool a map whose channels lie last, ``b *s c -> b *s' c``; rows left over are dropped.

    Args:
        x: the map, contiguous, of two or three spatial axes.
        epilogue: what follows.
        pool: side of the pooling window.
    """
    return _pool(x, *epilogue, pool)


def tile_of(columns: int) -> Tile:
    """Return the size of a ``conv_pool`` program for a padded number of channels.

    A thread keeps two float32 tiles of ``rows × columns`` in registers, the running maximum and the last product. These
    sizes need at most 104 registers for sm_90 and spill none. With fewer columns a loop is unrolled that takes seconds
    to compile if kernels are also loaded ahead.
    """
    if columns > 64:
        return Tile(64, 8, 2)
    return Tile(128, 8, 2) if columns > 32 else Tile(128, 4, 1)


def _power(n: int) -> int:
    """Return the next power of two that is an axis of a product on tensor cores, at least 16."""
    return max(16, 1 << (n - 1).bit_length())


def _pooled(size: torch.Size | tuple[int, ...], grow: int, pool: int) -> list[int]:
    return [(n + grow) // pool for n in size]


def _convolve_and_pool(
    x: Tensor,
    packed: Tensor,
    bias: Tensor,
    low: Tensor | None,
    high: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    kernel: int,
    padding: int,
    pool: int,
    rows: int,
    warps: int,
    stages: int,
) -> Tensor:
    x = x.contiguous()
    b, (d, h, w), (_, taps, columns) = x.shape[0], x.shape[2:], packed.shape
    if not rows:
        rows, warps, stages = tile_of(columns)
    size = _pooled((d, h, w), 2 * padding - kernel + 1, pool)
    out = x.new_empty(b, *size, len(bias))
    count = out.numel() // len(bias)
    if count:
        grid: Any = (triton.cdiv(count, rows),)
        with torch.cuda.device_of(x):  # kernels are launched on the current device
            _conv_pool[grid](
                x, packed, out, bias, low, high, scale, shift, count, d, h, w, *size,
                C=len(bias), CP=columns, KERNEL=kernel, PADDING=padding, POOL=pool, TAPS=taps, ROWS=rows,
                num_warps=warps, num_stages=stages,
            )  # fmt: skip
    return out


def _pool(
    x: Tensor,
    bias: Tensor,
    low: Tensor | None,
    high: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    pool: int,
) -> Tensor:
    b, size, c = x.shape[0], x.shape[1:-1], x.shape[-1]
    pooled = _pooled(size, 0, pool)
    out = x.new_empty(b, *pooled, c)
    flat = len(size) == 2  # an image is a volume of one plane
    count = out.numel() // max(1, c)
    if count:
        columns = min(128, _power(c))
        rows = POOLED // columns
        grid: Any = (triton.cdiv(count, rows), triton.cdiv(c, columns))
        with torch.cuda.device_of(x):
            _pool_last[grid](
                x, out, bias, low, high, scale, shift, count, *([1] * flat), *size, *([1] * flat), *pooled,
                C=c, CP=columns, POOL_D=1 if flat else pool, POOL=pool, ROWS=rows, num_warps=4,
            )  # fmt: skip
    return out


# The same as operators of PyTorch with fake kernels, for code that traces or exports around them. The functions above
# do not go through them: PyTorch's dispatcher takes longer than the launch.
_EPILOGUE = "Tensor bias, Tensor? low, Tensor? high, Tensor? scale, Tensor? shift"
_conv_pool_op = torch.library.custom_op(
    "medzoo::conv_pool",
    _convolve_and_pool,
    mutates_args=(),
    schema=f"(Tensor x, Tensor packed, {_EPILOGUE}, int kernel, int padding, int pool, int rows, int warps, "
    "int stages) -> Tensor",
)


@_conv_pool_op.register_fake
def _(x, packed, bias, low, high, scale, shift, kernel, padding, pool, rows, warps, stages):  # noqa: ARG001
    return x.new_empty(x.shape[0], *_pooled(x.shape[2:], 2 * padding - kernel + 1, pool), bias.shape[0])


_pool_last_op = torch.library.custom_op(
    "medzoo::pool_last", _pool, mutates_args=(), schema=f"(Tensor x, {_EPILOGUE}, int pool) -> Tensor"
)


@_pool_last_op.register_fake
def _(x, bias, low, high, scale, shift, pool):  # noqa: ARG001
    return x.new_empty(x.shape[0], *_pooled(x.shape[1:-1], 0, pool), x.shape[-1])
