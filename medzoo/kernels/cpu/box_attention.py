"""Window attention over boxes: no roll, no mask, no padding, and on a CPU no large temporary.

:mod:`medzoo.kernels.boxes` says which boxes there are and why they give what masked windows give. Here a block's attention
branch runs over them: put the tokens into the order of the boxes, project, attend in the boxes of each type with one
call, put the results back.

Axes: n tokens of a slab, r rows (those tokens and one for the padding of each box that has some), g boxes of a type,
t tokens of a box, k keys of a box, p padding tokens, c channels, m heads, e head width.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from medzoo.kernels.boxes import Arrangement, BoxGroup, BoxType
from medzoo.kernels.cpu.linear import linear
from medzoo.nn.window_attention import biased_attention
from medzoo.nn.windows import relative_position_index

__all__ = ["Reorder", "Weights", "attend", "attend_in_boxes", "box_bias", "mix", "split_heads"]


class Weights(NamedTuple):
    """The tensors of the branch but for its bias table."""

    norm_weight: Tensor
    norm_bias: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor
    proj_weight: Tensor
    proj_bias: Tensor


def attend(
    tokens: Tensor,
    weights: Weights,
    biases: Mapping[BoxType, Tensor],
    where: Arrangement,
    *,
    eps: float,
    core: Any = None,
    add: Tensor | None = None,
) -> Tensor:
    """Run the attention branch on a slab, ``n c -> n c``, and add ``add``; see :func:`mix`."""
    mixed = mix(tokens, weights, biases, where, eps=eps, core=core)
    return linear(mixed, weights.proj_weight, weights.proj_bias, add=add)


def mix(
    tokens: Tensor,
    weights: Weights,
    biases: Mapping[BoxType, Tensor],
    where: Arrangement,
    *,
    eps: float,
    core: Any = None,
) -> Tensor:
    """Run the attention branch up to its output projection, ``n c -> n c``.

    Args:
        tokens: ``n c``.
        weights: those of the branch.
        biases: the bias of each type of box, ``m t k``.
        where: the boxes.
        eps: of the norm.
        core: what attends, ``r 3c -> r c``; :func:`attend_in_boxes` by default.
    """
    normed = F.layer_norm(tokens, tokens.shape[1:], weights.norm_weight, weights.norm_bias, eps)
    boxed = Reorder.apply(normed, where.order, where.seat)
    if len(where.empty):
        boxed.index_fill_(0, where.empty, 0)
    qkv = linear(boxed, weights.qkv_weight, weights.qkv_bias)
    out = (core or attend_in_boxes)(qkv, where.groups, [biases[group.type] for group in where.groups])
    return Reorder.apply(out, where.seat, where.order)


def attend_in_boxes(qkv: Tensor, groups: Sequence[BoxGroup], biases: Sequence[Tensor]) -> Tensor:
    """Attend within each box, ``r 3c -> r c``; the rows of the padding hold nothing."""
    if qkv.is_cuda:
        return _attend_in_pieces(qkv, groups, biases)
    c = qkv.shape[1] // 3
    out = qkv.new_empty(len(qkv), c)
    for group, bias in zip(groups, biases, strict=True):
        q, k, v = split_heads(qkv, group, len(bias), 3)
        (seats,) = split_heads(out, group, len(bias), 1)
        tokens = bias.shape[1]
        seats[:, :, :tokens] = biased_attention(q[:, :, :tokens], k, v, bias[None])
    return out


def _attend_in_pieces(qkv: Tensor, groups: Sequence[BoxGroup], biases: Sequence[Tensor]) -> Tensor:
    """Do the same by splitting and joining: autograd fills a map with zeros for each slice, and for each write."""
    pieces = []
    lengths = [group.rows[1] - group.rows[0] for group in groups]
    for rows, group, bias in zip(torch.split(qkv, lengths), groups, biases, strict=True):
        heads, tokens = bias.shape[:2]
        q, k, v = rearrange(rows, "(g k) (parts m e) -> parts g m k e", g=group.boxes, parts=3, m=heads).unbind()
        out = biased_attention(q[:, :, :tokens], k, v, bias[None])
        out = F.pad(out, (0, 0, 0, q.shape[2] - tokens)) if q.shape[2] > tokens else out
        pieces.append(rearrange(out, "g m k e -> (g k) (m e)"))
    return torch.cat(pieces)


def split_heads(rows: Tensor, group: BoxGroup, heads: int, parts: int) -> tuple[Tensor, ...]:
    """Return views of a group's rows, ``r (parts m e) -> parts of g m k e``."""
    part = rows[group.rows[0] : group.rows[1]]
    split = rearrange(part, "(g k) (parts m e) -> parts g m k e", g=group.boxes, parts=parts, m=heads)
    # Not unbind, whose results may not be written to under autograd.
    return tuple(split[i] for i in range(parts))


def box_bias(table: Tensor, window: tuple[int, ...], kind: BoxType) -> Tensor:
    """Return the bias of each query and key of a box, ``m t k``.

    Args:
        table: the learned biases, one row for each offset, ``rows m``.
        window: sides of the window that the table is made for.
        kind: which box.
    """
    real, padding = _rows(window, kind, table.device)
    # Columns, for their gradient adds up several times as fast as that of an embedding's rows, and in float32.
    columns = table.to(torch.promote_types(table.dtype, torch.float32)).t().contiguous()
    bias, padded = (columns.index_select(1, at.flatten()).view(len(columns), *at.shape) for at in (real, padding))
    if padding.numel():
        # All padding keys are one: exp(s + b1) + exp(s + b2) = exp(s + logsumexp(b1, b2)).
        bias = torch.cat([bias, padded.logsumexp(2, True)], 2)
    bias = bias.to(table.dtype)
    # A GPU's kernels want rows that start at multiples of 8, and would else copy the bias for every box.
    return F.pad(bias, (0, -bias.shape[2] % 8))[:, :, : bias.shape[2]] if bias.is_cuda else bias


@functools.lru_cache(maxsize=256)  # at most 120 MB
def _rows(window: tuple[int, ...], kind: BoxType, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the rows of the table for the real keys, ``t t``, and for the padding, ``t p``.

    A map smaller than the window reads the first rows and columns of the full window's index, as MONAI does.
    """
    with torch.inference_mode(False):  # what is remembered must serve training too
        real, padding = kind.places()
        rows = relative_position_index(window)[real]
        return rows[:, real].int().to(device), rows[:, padding].int().to(device)


class Reorder(torch.autograd.Function):
    """Take rows by number, ``... n c -> ... r c``, with a gradient that takes rows too, instead of adding up each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        """Take the rows ``index``."""
        ctx.save_for_backward(inverse)
        return x.index_select(-2, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Take the rows back."""
        (inverse,) = ctx.saved_tensors
        return grad.index_select(-2, inverse), None, None
