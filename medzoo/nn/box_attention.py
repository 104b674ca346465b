"""Window attention over boxes: no roll, no mask, no padding, and on a CPU no large temporary.

:mod:`medzoo.nn.boxes` says which boxes there are and why they give what masked windows give. Here a block's attention
runs over them in four steps: put the tokens into the order of the boxes, project, attend in the boxes of each type
with one call, put the results back.

Axes: b batch, d h w depth height width, n tokens of a slab, t tokens of a box, k keys of a box, c channels, m heads,
e head width.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from medzoo.nn.attention import WindowAttention
from medzoo.nn.boxes import Arrangement, BoxType
from medzoo.nn.linear import linear

__all__ = ["Biases", "attend", "box_bias"]


def box_bias(table: Tensor, index: Tensor, kind: BoxType) -> Tensor:
    """Return the bias of each query and key of a box, ``m t k``.

    Args:
        table: the learned biases, one row for each offset, ``rows m``.
        index: the row for each pair of places in a window.
        kind: which box.
    """
    real, padding = (place.to(index.device) for place in kind.places())
    rows = index[real]
    bias = table[rows[:, real]]
    if len(padding):
        # All padding keys are one: exp(s + b1) + exp(s + b2) = exp(s + logsumexp(b1, b2)).
        one = table[rows[:, padding]].to(torch.promote_types(table.dtype, torch.float32)).logsumexp(1, keepdim=True)
        bias = torch.cat([bias, one.to(table.dtype)], 1)
    return rearrange(bias, "t k m -> m t k")


class Biases:
    """The biases of one attention's boxes, for one pass."""

    def __init__(self, attention: WindowAttention, memo: BiasMemo | None = None) -> None:
        self._index = attention.relative_position_index
        self._table: Tensor = attention.relative_position_bias_table
        self._made: dict[BoxType, Tensor] = {}
        if memo is not None:
            self._table, self._made = memo.recall(self._table)

    def __getitem__(self, kind: BoxType) -> Tensor:
        bias = self._made.get(kind)
        if bias is None:
            bias = self._made[kind] = box_bias(self._table, self._index, kind)
        return bias


def attend(tokens: Tensor, attention: WindowAttention, where: Arrangement, biases: Biases) -> Tensor:
    """Attend within the boxes of a slab, ``n c -> n c``, the output projection included. Not for autograd."""
    boxed = gather(tokens, where)
    qkv = linear(boxed, attention.qkv.weight, attention.qkv.bias)
    parts = []
    for group in where.groups:
        q, k, v = split_heads(qkv, group.rows, group.boxes, attention.heads)
        bias = biases[group.type]
        out = F.scaled_dot_product_attention(q[:, :, : bias.shape[1]], k, v, attn_mask=bias.to(q.dtype)[None])
        parts.append(rearrange(out, "g m t e -> (g t) (m e)"))
    out = (torch.cat(parts) if len(parts) > 1 else parts[0]).index_select(0, where.back)
    return linear(out, attention.proj.weight, attention.proj.bias)


def gather(tokens: Tensor, where: Arrangement) -> Tensor:
    """Put normalised tokens into the order of the boxes; the padding is zeros."""
    boxed = tokens.index_select(0, where.order)
    return boxed.index_fill_(0, where.empty, 0) if len(where.empty) else boxed


def split_heads(qkv: Tensor, rows: tuple[int, int], boxes: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return views of q, k, v of the boxes in ``rows``, ``g m k e`` each."""
    part = qkv[rows[0] : rows[1]].view(boxes, -1, 3, heads, qkv.shape[1] // (3 * heads))
    q, k, v = part.permute(2, 0, 3, 1, 4)
    return q, k, v
