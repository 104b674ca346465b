"""The block of a 3D Swin Transformer: window attention and an MLP.

It can run in two ways with the same result. The plain path is windows of one size under a mask; compilers, exporters
and hooks see this one. The fast path is attention over boxes, see :mod:`medzoo.kernels.cpu.box_attention`: on a GPU over the
whole map at once, by the kernels in :mod:`medzoo.kernels.cuda` where :mod:`medzoo.kernels.dispatch` has them; on a CPU
slab by slab, so that what lies between the operations stays in the cache.

Axes: b batch, d h w depth height width, n tokens of a slab, c channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medzoo.kernels.boxes import Arrangement, BoxType, arrange, slabs
from medzoo.kernels.cpu.box_attention import Reorder, Weights, attend, box_bias
from medzoo.kernels.cpu.swin_block import AttentionBranch, MlpBranch, transform
from medzoo.kernels.cuda.graphs import hold
from medzoo.kernels.dispatch import kernel_serves
from medzoo.kernels.window_partition import partition
from medzoo.nn.fast_path import SLAB, fast_path_for, needs_gradient
from medzoo.nn.window_attention import WindowAttention
from medzoo.nn.windows import WindowGrid

__all__ = ["DropPath", "Mlp", "SwinBlock"]

WINDOW = (7, 7, 7)


class Mlp(nn.Module):
    """Two linear layers with a GELU between, ``... c -> ... c``."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, bend, narrow."""
        return self.linear2(F.gelu(self.linear1(x)))


class DropPath(nn.Module):
    """In training, drop a branch for some samples and scale it for the rest, so that its mean stays."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def drops(self) -> bool:
        """Whether it changes anything now."""
        return self.training and self.rate > 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole samples of the batch."""
        if not self.drops():
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1.0 - self.rate)


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

    def over(self, x: Tensor) -> Tensor:
        """Return what :meth:`forward` does, in the place of ``x`` where that is possible; nobody reads ``x`` again."""
        return self._run(x, x)

    def _run(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        grid = WindowGrid.of(x.shape[1:4], WINDOW, self.shifted)
        if fast_path_for(self, x, PARTS):
            if kernel_serves("box_attention", x):
                weights, mlp = self._weights()
                if self._fits_kernel(x, weights, mlp):
                    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # where kernels are launched
                        return self._by_kernels(x, grid, weights, mlp)
            if x.is_cuda:
                return self._whole(x, grid)
            if not needs_gradient(self, x) and not self.drop_path.drops():
                return self._by_slabs(x, grid, out)
            weights, mlp = self._weights()
            if not any(tensor is None for tensor in (*weights, *mlp)):
                return self._in_training(x, grid)
        # The padding is added after the norm: its tokens are zeros, and are attended to, as in MONAI.
        attended = self.attn(grid.split(self.norm1(x)), grid.mask(x.device))
        x = x + self.drop_path(grid.join(attended))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _fits_kernel(self, x: Tensor, weights: Weights, mlp: tuple[Tensor, ...]) -> bool:
        """Whether the attention kernel in Triton computes this block on ``x``: heads of 16, 32 or 64, and biases."""
        c, attn = x.shape[-1], self.attn
        return (
            x.numel() > 0
            and c // attn.heads in (16, 32, 64)
            and not any(tensor is None for tensor in (*weights, *mlp))
            and weights.qkv_weight.shape == (3 * c, c)
            and attn.relative_position_bias_table.shape == (math.prod(2 * side - 1 for side in attn.window), attn.heads)
            and (kernel_serves("box_attention_backward", x) or not needs_gradient(self, x))
        )

    def _fits_layers(self, x: Tensor, weights: Weights, mlp: tuple[Tensor, ...]) -> bool:
        """Whether the layers around attention can be kernels too, in inference: one type for all, and not too wide."""
        from medzoo.kernels.cuda.swin_layers import WIDEST

        return (
            kernel_serves("swin_layers", x)
            and x.shape[-1] <= WIDEST
            and not (self.drop_path.drops() or torch.is_autocast_enabled(x.device.type))
            and len(mlp[2]) % 64 == 0  # which the kernel takes at once
            and all(t.dtype == x.dtype and t.is_contiguous() for t in (*weights, *mlp))
        )

    def _by_kernels(self, x: Tensor, grid: WindowGrid, weights: Weights, mlp: tuple[Tensor, ...]) -> Tensor:
        """Attend by a kernel in Triton, and run the layers around it by kernels too where they fit."""
        from medzoo.kernels.cuda.box_attention import attend_in_boxes, fill_biases
        from medzoo.kernels.cuda.box_tables import box_tables
        from medzoo.kernels.cuda.ops import box_attention
        from medzoo.kernels.cuda.swin_layers import finish_block, norm_linear

        tables = box_tables(partition(grid.size, grid.window, grid.shift), grid.window, x.device)
        hold(tables)
        attn, differentiated = self.attn, needs_gradient(self, x)
        tokens = x.flatten(1, 3).contiguous()

        def by_boxes(qkv: Tensor) -> Tensor:
            table = attn.relative_position_bias_table.to(qkv.dtype).contiguous()
            if differentiated:
                return box_attention(qkv, table, grid.size, grid.window, grid.shift, attn.window, True)[0]
            # PyTorch's dispatcher would take longer than the launch.
            biases = fill_biases(table, tables, attn.window)
            return attend_in_boxes(qkv, biases, tables, attn.heads, keep=False)[0]

        if not differentiated and self._fits_layers(x, weights, mlp):
            attended = by_boxes(norm_linear(tokens, tables.order, *weights[:4], self.norm1.eps))
            layers = weights[4:], mlp[:2], mlp[2:4], mlp[4:]
            return finish_block(attended, tables.seat, tokens, *layers, self.norm2.eps).view_as(x)
        boxed = Reorder.apply(self.norm1(tokens), tables.taken, tables.seat)
        boxed.index_fill_(1, tables.empty, 0)
        attended = by_boxes(attn.qkv(boxed).flatten(0, 1)).view(len(x), -1, x.shape[-1])
        attended = attn.proj(Reorder.apply(attended, tables.seat, tables.taken))
        tokens = tokens + self.drop_path(attended)
        return (tokens + self.drop_path(self.mlp(self.norm2(tokens)))).view_as(x)

    def _whole(self, x: Tensor, grid: WindowGrid) -> Tensor:
        """Run the boxes of the whole batch at once, under autograd if need be."""
        where = arrange(partition(grid.size, grid.window, grid.shift), grid.window, x.shape[0], x.device)
        weights, _ = self._weights()
        table: Tensor = self.attn.relative_position_bias_table
        known: dict[BoxType, Tensor] = {}
        # In the type of the products: a bias cast later would lose the alignment of its rows.
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else table.dtype
        if needs_gradient(self, x):
            table = table.to(dtype)
        else:
            table, known = self.attn.memo.recall(table, dtype)
        biases = self._biases(table, known, where)
        hold(where, *biases.values())
        attended = attend(x.flatten(0, 3), weights, biases, where, eps=self.norm1.eps)
        x = x + self.drop_path(attended.view_as(x))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _by_slabs(self, x: Tensor, grid: WindowGrid, out: Tensor | None = None) -> Tensor:
        """Take each slab through the whole block before the next, without autograd; ``out`` may be ``x``."""
        c, out = x.shape[-1], torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
        weights, mlp = self._weights()
        table, known = self.attn.memo.recall(self.attn.relative_position_bias_table)
        for place, axes in slabs(grid, x.shape[0], SLAB // (3 * c)):
            slab = x[place]
            where = arrange(axes, grid.window, slab.shape[0], x.device)
            tokens = slab.reshape(-1, c)
            biases = self._biases(table, known, where)
            tokens = attend(tokens, weights, biases, where, eps=self.norm1.eps, add=tokens)
            # A slab that lies in one piece takes each result at once, any other takes them all in the end.
            done = out[place].view(-1, c) if out[place].is_contiguous() else tokens
            step = SLAB // (8 * c)
            for rows, seats in zip(torch.split(tokens, step), torch.split(done, step), strict=True):
                seats.copy_(transform(rows, mlp, self.norm2.eps, add=rows))
            if done is tokens:
                out[place] = tokens.view(slab.shape)
        return out

    def _in_training(self, x: Tensor, grid: WindowGrid) -> Tensor:
        """Run both branches with their own backward pass."""
        weights, mlp = self._weights()
        table, window = self.attn.relative_position_bias_table, self.attn.window
        ones = x.new_ones(len(x)) if self.drop_path.drops() else None
        scale = None if ones is None else self.drop_path(ones)
        x = AttentionBranch.apply(x, scale, grid, window, self.norm1.eps, table, *weights)
        scale = None if ones is None else self.drop_path(ones)
        return MlpBranch.apply(x, scale, self.norm2.eps, *mlp)

    def _biases(self, table: Tensor, known: dict[BoxType, Tensor], where: Arrangement) -> dict[BoxType, Tensor]:
        """Add to ``known`` the biases that these boxes need."""
        for group in where.groups:
            if group.type not in known:
                known[group.type] = box_bias(table, self.attn.window, group.type)
        return known

    def _weights(self) -> tuple[Weights, tuple[Tensor, ...]]:
        """Return the tensors of the two branches."""
        attn, mlp = self.attn, self.mlp
        parts = (self.norm1, attn.qkv, attn.proj), (self.norm2, mlp.linear1, mlp.linear2)
        first, second = (tuple(t for part in branch for t in (part.weight, part.bias)) for branch in parts)
        return Weights(*first), second
