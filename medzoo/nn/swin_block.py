"""The block of a 3D Swin Transformer: attention inside (shifted) windows with a relative position bias, and an MLP.

This is the plain form, which compilers, exporters and hooks see. :mod:`medzoo.kernels.dispatch` may compute the same in
another way.

A window covers 7 tokens along each axis. In every second block the windows are shifted by half of that, with the map
rolled so that they stay complete; tokens that only the roll made neighbours must not attend to each other.

Source: Liu et al., Swin Transformer, ICCV 2021, https://arxiv.org/abs/2103.14030; the 3D form and its quirks are
those of MONAI's ``SwinTransformer``, so that its weights give its outputs.

Axes: b batch, d h w depth height width, g windows of a map, t tokens of a window, c channels, m heads, e head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from medzoo.kernels import dispatch
from medzoo.nn.guards import fast_path_for, needs_gradient

__all__ = ["DropPath", "Mlp", "SwinBlock", "WindowAttention", "WindowGrid", "relative_position_index"]

WINDOW = (7, 7, 7)
# What MONAI adds to a logit between tokens of different regions; exp(-100) is 4e-44, negligible beside any weight.
SEPARATED = -100.0


@dataclass(frozen=True)
class WindowGrid:
    """The windows of one block on one map.

    Attributes:
        size: spatial size of the map.
        window: sides of a window, no larger than the map's.
        shift: how far the windows are shifted along each axis.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    shift: tuple[int, ...]

    @classmethod
    def of(cls, size: Sequence[int], window: Sequence[int], shifted: bool) -> WindowGrid:
        """Clip the windows to the map: an axis that fits into one window is not shifted.

        >>> WindowGrid.of((16, 16, 4), window=(7, 7, 7), shifted=True)
        WindowGrid(size=(16, 16, 4), window=(7, 7, 4), shift=(3, 3, 0))
        """
        clipped = tuple(min(s, w) for s, w in zip(size, window, strict=True))
        shift = tuple(w // 2 if shifted and s > w else 0 for s, w in zip(size, window, strict=True))
        return cls(tuple(size), clipped, shift)

    @property
    def padded(self) -> tuple[int, ...]:
        """The map's size rounded up to a multiple of the window."""
        return tuple(-(-s // w) * w for s, w in zip(self.size, self.window, strict=True))

    def split(self, x: Tensor) -> Tensor:
        """Cut a map into windows, ``b d h w c -> (b g) t c``, padding with zeros at the far ends."""
        (d, h, w), (dp, hp, wp) = self.size, self.padded
        x = F.pad(x, (0, 0, 0, wp - w, 0, hp - h, 0, dp - d))
        if any(self.shift):
            x = torch.roll(x, tuple(-s for s in self.shift), dims=(1, 2, 3))
        i, j, k = self.window
        return rearrange(x, "b (d i) (h j) (w k) c -> (b d h w) (i j k) c", i=i, j=j, k=k)

    def join(self, windows: Tensor) -> Tensor:
        """Undo :meth:`split`, ``(b g) t c -> b d h w c``, dropping the padding."""
        (i, j, k), (dp, hp, wp) = self.window, self.padded
        x = rearrange(
            windows,
            "(b d h w) (i j k) c -> b (d i) (h j) (w k) c",
            i=i, j=j, k=k, d=dp // i, h=hp // j, w=wp // k,
        )  # fmt: skip
        if any(self.shift):
            x = torch.roll(x, self.shift, dims=(1, 2, 3))
        d, h, w = self.size
        return x[:, :d, :h, :w]

    def mask(self, device: torch.device) -> Tensor | None:
        """Return what to add to the attention logits of each window, ``g t t``, or ``None`` where nothing is shifted.

        The roll puts the first ``shift`` tokens of an axis behind the last ones. Those that it moved, and those that
        share a window with them, are regions of their own.
        """
        if not any(self.shift):
            return None
        region = torch.zeros(1, 1, 1, 1, 1, device=device)
        for axis, (length, window, shift) in enumerate(zip(self.padded, self.window, self.shift, strict=True)):
            if shift:
                place = torch.arange(length, device=device)
                number = (place >= length - window).float() + (place >= length - shift).float()
                region = region * 3 + number.view([1, *(length if a == axis else 1 for a in range(3)), 1])
        region = region.expand(1, *self.padded, 1)
        i, j, k = self.window
        tokens = rearrange(region, "1 (d i) (h j) (w k) 1 -> (d h w) (i j k)", i=i, j=j, k=k)
        apart = tokens[:, :, None] != tokens[:, None, :]
        return torch.zeros(apart.shape, device=device).masked_fill(apart, SEPARATED)


def relative_position_index(window: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Return the row of the bias table for each pair of tokens, ``t t``.

    Row numbers count the offsets ``-(w-1) ... w-1`` along d, h, w in C order.

    >>> relative_position_index((1, 1, 2))
    tensor([[1, 0],
            [2, 1]])
    """
    axes = [torch.arange(side, device=device) for side in window]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    index = torch.zeros(1, 1, dtype=torch.long, device=device)
    for offset, side in zip(place[:, :, None] - place[:, None, :], window, strict=True):
        index = index * (2 * side - 1) + offset + side - 1
    return index


class WindowAttention(nn.Module):
    """Multi-head attention inside each window, ``(b g) t c -> (b g) t c``.

    Args:
        channels: width of a token.
        heads: number of heads; ``channels`` is a multiple.
        window: sides of the largest window, which the bias table is made for.
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: Sequence[int]) -> None:
        super().__init__()
        self.heads, self.window = heads, tuple(window)
        rows = 1
        for side in window:
            rows *= 2 * side - 1
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.memo = dispatch.BiasMemo()
        self.rebuild_buffers(self.relative_position_bias_table.device)

    def rebuild_buffers(self, device: torch.device) -> None:
        """Compute the index, on ``device``: it is not stored with the weights, and a meta device has no values."""
        index = relative_position_index(self.window, device)
        self.register_buffer("relative_position_index", index, persistent=False)

    def bias(self, tokens: int) -> Tensor:
        """Return the bias of each pair of tokens, ``m t t``.

        A map smaller than the window has fewer tokens, and reads the first rows and columns of the full window's
        index. That is not the geometric sub-window, but it is what MONAI does, and what weights are trained with.
        """
        index = self.relative_position_index[:tokens, :tokens]
        return rearrange(self.relative_position_bias_table[index], "q k m -> m q k")

    def forward(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within each window.

        Args:
            windows: ``(b g) t c``.
            mask: ``g t t``, added to the logits of each window of a map, or ``None``.

        Returns:
            The tokens after the output projection, ``(b g) t c``.
        """
        bias = self.bias(windows.shape[1])[None]
        if mask is not None:
            bias = bias + mask[:, None]
        g = bias.shape[0]
        # Windows that differ in mask share an axis with the heads, so that nothing is repeated for the batch.
        bias = rearrange(bias, "g m q k -> 1 (g m) q k")
        q, k, v = rearrange(self.qkv(windows), "(b g) t (three m e) -> three b (g m) t e", three=3, m=self.heads, g=g)
        out = dispatch.biased_attention(q, k, v, bias)
        return self.proj(rearrange(out, "b (g m) t e -> (b g) t (m e)", g=g))


class Mlp(nn.Module):
    """Two linear layers with a GELU between, ``... c -> ... c``."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Linear, GELU, Linear."""
        return self.linear2(F.gelu(self.linear1(x)))


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a branch for some samples and scale it for the rest, which keeps its mean."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def drops(self) -> bool:
        """Whether it is active."""
        return self.training and self.rate > 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Drop samples of the batch."""
        if not self.drops():
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1.0 - self.rate)


# A block whose parts are all of these classes may be computed without calling them.
PARTS = (nn.LayerNorm, nn.Linear, WindowAttention, DropPath, Mlp)


class SwinBlock(nn.Module):
    """Window attention and an MLP, each behind a LayerNorm and added to its input: ``b d h w c -> b d h w c``."""

    def __init__(self, channels: int, heads: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, WINDOW)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then transform each token."""
        return self._run(x)

    def forward_inplace(self, x: Tensor) -> Tensor:
        """Return what :meth:`forward` does, written over ``x`` where that is possible."""
        return self._run(x, out=x)

    def _run(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        grid = WindowGrid.of(x.shape[1:4], WINDOW, self.shifted)
        if fast_path_for(self, x, PARTS):
            y = dispatch.swin_block(self._inputs(x, grid, out))
            if y is not None:
                return y
        # The padding is added after the norm: its tokens are zeros, and are attended to, as in MONAI.
        attended = self.attn(grid.split(self.norm1(x)), grid.mask(x.device))
        x = x + self.drop_path(grid.join(attended))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _inputs(self, x: Tensor, grid: WindowGrid, out: Tensor | None) -> dispatch.BlockInputs:
        """Return the block as tensors and numbers."""
        attn, mlp = self.attn, self.mlp
        attention, transform = (
            tuple(t for part in branch for t in (part.weight, part.bias))
            for branch in ((self.norm1, attn.qkv, attn.proj), (self.norm2, mlp.linear1, mlp.linear2))
        )
        return dispatch.BlockInputs(
            x,
            dispatch.WindowGeometry(grid.size, grid.window, grid.shift),
            attn.window,
            attn.relative_position_bias_table,
            attn.memo,
            dispatch.AttentionWeights(*attention),
            transform,
            (self.norm1.eps, self.norm2.eps),
            differentiated=needs_gradient(self, x),
            drops=self.drop_path.drops(),
            drop=self.drop_path,
            out=out,
        )
