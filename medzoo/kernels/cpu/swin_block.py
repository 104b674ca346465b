"""A Swin block on a CPU, slab by slab, so that intermediate results stay in the cache.

In inference each slab runs through the block before the next starts. In training both branches have a backward pass
of their own: the forward pass keeps the map before each branch, and the result of attention; all else is computed again
in the backward pass, one slab at a time. Within a slab autograd does the work, but for attention, whose derivative is
written out here since PyTorch gives none for its bias without keeping every weight.

Axes: b batch, d h w depth height width, n tokens of a slab, r rows of its boxes, g boxes of a type, t tokens of a box,
k its keys, c channels, m heads, e head width.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from medzoo.kernels.box_attention import (
    AttentionWeights,
    BlockInputs,
    attend,
    attend_in_boxes,
    box_bias,
    fill_biases,
    first_layer,
    mix,
    mlp_branch,
    split_heads,
)
from medzoo.kernels.cpu.recompute import Sums, gradients, refuse_second_derivative, through_linear
from medzoo.kernels.cpu.slabs import SLAB, slabs
from medzoo.kernels.window_partition import BoxGroup, BoxLayout, BoxType, WindowGeometry, box_layout

__all__ = ["AttentionBranch", "MlpBranch", "run_by_slabs", "run_in_training"]

# Values in one chunk of attention weights.
CHUNK = 2**20


def run_by_slabs(b: BlockInputs) -> Tensor:
    """Run a block in inference, ``b d h w c -> b d h w c``, each slab through all of it before the next."""
    x, c = b.x, b.x.shape[-1]
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if b.out is None else b.out
    table, known = b.memo.recall(b.table)
    for where, axes in slabs(b.geometry, x.shape[0], SLAB // (3 * c)):
        slab = x[where]
        layout = box_layout(axes, b.geometry.window, slab.shape[0], x.device)
        tokens = slab.reshape(-1, c)
        biases = fill_biases(known, table, b.window, layout)
        tokens = attend(tokens, b.attention, biases, layout, eps=b.eps[0], add=tokens)
        # A contiguous slab takes each result at once, any other takes them all in the end.
        done = out[where].view(-1, c) if out[where].is_contiguous() else tokens
        step = SLAB // (8 * c)
        for rows, results in zip(torch.split(tokens, step), torch.split(done, step), strict=True):
            results.copy_(mlp_branch(rows, b.mlp, b.eps[1], add=rows))
        if done is tokens:
            out[where] = tokens.view(slab.shape)
    return out


def run_in_training(b: BlockInputs) -> Tensor:
    """Run a block under autograd, ``b d h w c -> b d h w c``; both branches have their own backward pass."""
    x = AttentionBranch.apply(b.x, b.draw_scale(), b.geometry, b.window, b.eps[0], b.table, *b.attention)
    return MlpBranch.apply(x, b.draw_scale(), b.eps[1], *b.mlp)


class AttentionBranch(torch.autograd.Function):
    """``x + scale * attend(norm(x))``, ``b d h w c -> b d h w c``.

    Inputs: the map, a factor for each sample or ``None``, the geometry, the sides of the table's window, the norm's
    eps, the bias table, and the six tensors of :class:`AttentionWeights`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        geometry: WindowGeometry,
        window: tuple[int, ...],
        eps: float,
        table: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        """Run the branch, and keep what attention gave."""
        ctx.geometry, ctx.window, ctx.eps = geometry, window, eps
        biases = _Biases(table, window)
        y, kept = torch.empty_like(x, memory_format=torch.contiguous_format), []

        def core(qkv: Tensor, groups: Sequence[BoxGroup], biases: Sequence[Tensor]) -> Tensor:
            kept.append(attend_in_boxes(qkv, groups, biases))
            return kept[-1]

        for where, layout in _slabs(x, geometry):
            tokens = x[where].reshape(-1, x.shape[-1])
            branch = attend(tokens, AttentionWeights(*weights), biases, layout, eps=eps, core=core)
            y[where] = (tokens + _scaled(branch, scale, where)).view(y[where].shape)
        ctx.save_for_backward(x, scale, table, *weights, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Run each slab again, and go back through it."""
        refuse_second_derivative("SwinBlock")
        x, scale, table, *rest = ctx.saved_tensors
        weights, kept = rest[: len(AttentionWeights._fields)], iter(rest[len(AttentionWeights._fields) :])
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[6:]]
        sums = Sums(len(weights))
        to_x = torch.empty_like(x, memory_format=torch.contiguous_format) if wanted[0] else None
        with torch.enable_grad():
            leaves = [w.detach().requires_grad_(want) for w, want in zip(weights, wanted[1:], strict=True)]
            root = table.detach().requires_grad_(ctx.needs_input_grad[5])
            made, biases = _Biases(root, ctx.window), _Leaves(ctx.needs_input_grad[5])
            for where, layout in _slabs(x, ctx.geometry):
                tokens = x[where].reshape(-1, x.shape[-1]).detach().requires_grad_(wanted[0])
                used = [biases.of(group.type, made[group.type]) for group in layout.groups]
                core = functools.partial(_core, next(kept))
                mixed = mix(tokens, AttentionWeights(*leaves), biases, layout, eps=ctx.eps, core=core)
                part = grad[where].reshape(tokens.shape)
                to_mixed, *last = through_linear(_scaled(part, scale, where), mixed, *leaves[-2:])
                got = gradients(mixed, [tokens, *leaves[:-2], *used], to_mixed)
                sums.add([*got[1 : len(leaves) - 1], *last])
                biases.add(layout.groups, got[len(leaves) - 1 :])
                if to_x is not None and got[0] is not None:
                    to_x[where] = (part + got[0]).view(to_x[where].shape)
            kinds = list(biases.sums)
            to_table = gradients([made[kind] for kind in kinds], [root], [biases.sums[kind] for kind in kinds])[0]
        return to_x, None, None, None, None, to_table, *sums.values


class MlpBranch(torch.autograd.Function):
    """``x + scale * mlp(norm(x))``, ``b d h w c -> b d h w c``.

    Inputs: the map, a factor for each sample or ``None``, the norm's eps, and weight and bias of the norm and of the
    two linear layers.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None, eps: float, *weights: Tensor) -> Tensor:
        """Run the branch."""
        ctx.eps = eps
        ctx.save_for_backward(x, scale, *weights)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        for where in _chunks(x):
            tokens = x[where].reshape(-1, x.shape[-1])
            if scale is None:
                branch = mlp_branch(tokens, weights, eps, add=tokens)
            else:
                branch = tokens + _scaled(mlp_branch(tokens, weights, eps), scale, where)
            y[where] = branch.view(y[where].shape)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Run each chunk again, and go back through it."""
        refuse_second_derivative("SwinBlock")
        x, scale, *weights = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]]
        sums = Sums(len(weights))
        to_x = torch.empty_like(x, memory_format=torch.contiguous_format) if wanted[0] else None
        with torch.enable_grad():
            leaves = [w.detach().requires_grad_(want) for w, want in zip(weights, wanted[1:], strict=True)]
            for where in _chunks(x):
                tokens = x[where].reshape(-1, x.shape[-1]).detach().requires_grad_(wanted[0])
                part = grad[where].reshape(tokens.shape)
                hidden = first_layer(tokens, leaves, ctx.eps)
                to_hidden, *last = through_linear(_scaled(part, scale, where), hidden, *leaves[-2:])
                got = gradients(hidden, [tokens, *leaves[:-2]], to_hidden)
                sums.add([*got[1:], *last])
                if to_x is not None and got[0] is not None:
                    to_x[where] = (part + got[0]).view(to_x[where].shape)
        return to_x, None, None, *sums.values


def _core(out: Tensor, qkv: Tensor, groups: Sequence[BoxGroup], biases: Sequence[Tensor]) -> Tensor:
    return _BoxAttention.apply(out, groups, qkv, *biases)


class _BoxAttention(torch.autograd.Function):
    """The derivative of :func:`attend_in_boxes`, whose result ``out`` is given: ``r 3c -> r c``."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, groups: Sequence[BoxGroup], qkv: Tensor, *biases: Tensor) -> Tensor:
        ctx.groups = groups
        ctx.save_for_backward(out, qkv, *biases)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, qkv, *biases = ctx.saved_tensors
        to_qkv = torch.empty_like(qkv)
        to_biases = [torch.zeros_like(bias) for bias in biases]
        for group, bias, to_bias in zip(ctx.groups, biases, to_biases, strict=True):
            heads, tokens = bias.shape[:2]
            q, k, v = split_heads(qkv, group, heads, 3)
            to_q, to_k, to_v = split_heads(to_qkv, group, heads, 3)
            to_q[:, :, tokens:] = 0  # padding has no queries
            q, to_q = q[:, :, :tokens], to_q[:, :, :tokens]
            result, upstream = (split_heads(rows, group, heads, 1)[0][:, :, :tokens] for rows in (out, grad))
            step = max(1, CHUNK // bias.numel())
            for first in range(0, group.boxes, step):
                part = slice(first, first + step)
                _one_chunk(
                    *(x[part] for x in (q, k, v, result, upstream, to_q, to_k, to_v)), bias=bias, to_bias=to_bias
                )
        return None, None, to_qkv, *to_biases


def _one_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    grad: Tensor,
    to_q: Tensor,
    to_k: Tensor,
    to_v: Tensor,
    *,
    bias: Tensor,
    to_bias: Tensor,
) -> None:
    """Write the gradients of a few boxes into ``to_q``, ``to_k``, ``to_v``, and add that of the bias to ``to_bias``."""
    factor = q.shape[-1] ** -0.5
    q, k, v, grad = q * factor, k.contiguous(), v.contiguous(), grad.contiguous()
    weight = (q @ k.mT).add_(bias).softmax(-1)
    to_v.copy_(weight.mT @ grad)
    # The softmax's derivative: each weight times what its gradient has over the row's mean.
    change = (grad @ v.mT).sub_((grad * out).sum(-1, keepdim=True)).mul_(weight)
    to_q.copy_((change @ k).mul_(factor))
    to_k.copy_(change.mT @ q)
    for box in change:
        to_bias.add_(box)


class _Biases(dict[BoxType, Tensor]):
    """The bias of each box met, made from the table when it is first asked for."""

    def __init__(self, table: Tensor, window: tuple[int, ...]) -> None:
        super().__init__()
        self.table, self.window = table, window

    def __missing__(self, kind: BoxType) -> Tensor:
        self[kind] = box_bias(self.table, self.window, kind)
        return self[kind]


class _Leaves(dict[BoxType, Tensor]):
    """The biases detached from their table, and the sums of their gradients over the slabs."""

    def __init__(self, wanted: bool) -> None:
        super().__init__()
        self.wanted, self.sums = wanted, dict[BoxType, Tensor]()

    def of(self, kind: BoxType, bias: Tensor) -> Tensor:
        if kind not in self:
            self[kind] = bias.detach().requires_grad_(self.wanted)
        return self[kind]

    def add(self, groups: Sequence[BoxGroup], more: Sequence[Tensor | None]) -> None:
        for group, gradient in zip(groups, more, strict=True):
            if gradient is not None:
                known = self.sums.get(group.type)
                self.sums[group.type] = gradient if known is None else known.add_(gradient)


def _slabs(x: Tensor, geometry: WindowGeometry) -> Iterator[tuple[tuple[slice, ...], BoxLayout]]:
    """Yield each slab and its boxes."""
    for where, axes in slabs(geometry, x.shape[0], SLAB // (3 * x.shape[-1])):
        samples = len(range(*where[0].indices(x.shape[0])))
        yield where, box_layout(axes, geometry.window, samples, x.device)


def _chunks(x: Tensor) -> Iterator[tuple[slice, ...]]:
    """Yield each chunk of an MLP's tokens: some samples, or some layers of one."""
    layers = max(1, SLAB // (8 * x.shape[2] * x.shape[3] * x.shape[4]))
    thick, some = min(layers, x.shape[1]), max(1, layers // x.shape[1])
    for first in range(0, len(x), some):
        for start in range(0, x.shape[1], thick):
            yield slice(first, min(first + some, len(x))), slice(start, min(start + thick, x.shape[1]))


def _scaled(branch: Tensor, scale: Tensor | None, where: tuple[slice, ...]) -> Tensor:
    """Multiply the rows of each sample by its factor."""
    if scale is None:
        return branch
    factor = scale[where[0]]
    return branch * factor.repeat_interleave(len(branch) // len(factor))[:, None]
