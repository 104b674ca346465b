"""The branches of a Swin block over boxes, by PyTorch's own operators: no roll, no mask, no padding of windows.

:mod:`medzoo.kernels.window_partition` documents the boxes and why they equal masked windows. The attention branch sorts
the tokens by box, projects, attends in the boxes of each type with one call, and sorts back.

Axes: n tokens of a slab, r rows (those tokens and one for the padding of each box that has some), g boxes of a type,
t tokens of a box, k keys of a box, p padding tokens, c channels, m heads, e head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from medzoo.kernels.cpu.linear import linear
from medzoo.kernels.cuda.graphs import keep_alive
from medzoo.kernels.window_partition import (
    BoxGroup,
    BoxLayout,
    BoxType,
    WindowGeometry,
    bias_rows,
    box_layout,
    partition,
)

__all__ = [
    "AttentionWeights",
    "BiasMemo",
    "BlockInputs",
    "Reorder",
    "attend",
    "attend_in_boxes",
    "biased_attention",
    "box_bias",
    "fill_biases",
    "first_layer",
    "mix",
    "mlp_branch",
    "run_by_sdpa",
    "split_heads",
]


class AttentionWeights(NamedTuple):
    """The tensors of a block's attention branch but for its bias table."""

    norm_weight: Tensor
    norm_bias: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor
    proj_weight: Tensor
    proj_bias: Tensor


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attend, ``b m t e, b m k e, b m k e, b|1 m t k -> b m t e``."""
    # The bias must share q's dtype: cuDNN silently misreads a float32 mask beside bfloat16 queries (pytorch 191612).
    bias = bias.to(q.dtype)
    if q.is_cuda and torch.is_grad_enabled():
        # Its backward pass gives NaN for some lengths, 64 among them (pytorch 196678).
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def run_by_sdpa(b: BlockInputs) -> Tensor:
    """Run a block on all boxes of a batch at once, ``b d h w c -> b d h w c``, under autograd if need be."""
    x = b.x
    layout = box_layout(partition(*b.geometry), b.geometry.window, x.shape[0], x.device)
    # In the dtype of the products: a bias cast later would lose the alignment of its rows.
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else b.table.dtype
    table, known = (b.table.to(dtype), {}) if b.differentiated else b.memo.recall(b.table, dtype)
    biases = fill_biases(known, table, b.window, layout)
    keep_alive(layout, *biases.values())
    attended = attend(x.flatten(0, 3), b.attention, biases, layout, eps=b.eps[0])
    x = x + b.drop(attended.view_as(x))
    return x + b.drop(mlp_branch(x.flatten(0, 3), b.mlp, b.eps[1]).view_as(x))


def mlp_branch(tokens: Tensor, weights: Sequence[Tensor], eps: float, add: Tensor | None = None) -> Tensor:
    """Run the MLP branch on some tokens, ``n c -> n c``, and add ``add``.

    Args:
        tokens: ``n c``.
        weights: weight and bias of the norm and of the two linear layers.
        eps: of the norm.
        add: ``n c``.
    """
    return linear(first_layer(tokens, weights, eps), *weights[-2:], add=add)


def first_layer(tokens: Tensor, weights: Sequence[Tensor], eps: float) -> Tensor:
    """Run the MLP branch up to its second linear layer, ``n c -> n 4c``."""
    normed = F.layer_norm(tokens, tokens.shape[1:], weights[0], weights[1], eps)
    return linear(normed, weights[2], weights[3], gelu=True)


def attend(
    tokens: Tensor,
    weights: AttentionWeights,
    biases: Mapping[BoxType, Tensor],
    layout: BoxLayout,
    *,
    eps: float,
    core: Callable[..., Tensor] | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """Run the attention branch on a slab, ``n c -> n c``, and add ``add``; see :func:`mix`."""
    mixed = mix(tokens, weights, biases, layout, eps=eps, core=core)
    return linear(mixed, weights.proj_weight, weights.proj_bias, add=add)


def mix(
    tokens: Tensor,
    weights: AttentionWeights,
    biases: Mapping[BoxType, Tensor],
    layout: BoxLayout,
    *,
    eps: float,
    core: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Run the attention branch up to its output projection, ``n c -> n c``.

    Args:
        tokens: ``n c``.
        weights: those of the branch.
        biases: the bias of each type of box, ``m t k``.
        layout: the boxes.
        eps: of the norm.
        core: what attends, ``r 3c -> r c``; :func:`attend_in_boxes` by default.
    """
    normed = F.layer_norm(tokens, tokens.shape[1:], weights.norm_weight, weights.norm_bias, eps)
    boxed = Reorder.apply(normed, layout.gather_index, layout.scatter_index)
    if len(layout.padding_rows):
        boxed.index_fill_(0, layout.padding_rows, 0)
    qkv = linear(boxed, weights.qkv_weight, weights.qkv_bias)
    out = (core or attend_in_boxes)(qkv, layout.groups, [biases[group.type] for group in layout.groups])
    return Reorder.apply(out, layout.scatter_index, layout.gather_index)


def attend_in_boxes(qkv: Tensor, groups: Sequence[BoxGroup], biases: Sequence[Tensor]) -> Tensor:
    """Attend within each box, ``r 3c -> r c``; the rows of the padding are undefined."""
    if qkv.is_cuda:
        return _attend_in_pieces(qkv, groups, biases)
    c = qkv.shape[1] // 3
    out = qkv.new_empty(len(qkv), c)
    for group, bias in zip(groups, biases, strict=True):
        q, k, v = split_heads(qkv, group, len(bias), 3)
        (result,) = split_heads(out, group, len(bias), 1)
        tokens = bias.shape[1]
        result[:, :, :tokens] = biased_attention(q[:, :, :tokens], k, v, bias[None])
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


class Reorder(torch.autograd.Function):
    """Gather rows, ``... n c -> ... r c``, with a gradient that gathers rows too, instead of adding up each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        """Gather the rows ``index``."""
        ctx.save_for_backward(inverse)
        return x.index_select(-2, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Gather the rows ``inverse``."""
        (inverse,) = ctx.saved_tensors
        return grad.index_select(-2, inverse), None, None


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


def fill_biases(
    biases: dict[BoxType, Tensor], table: Tensor, window: tuple[int, ...], layout: BoxLayout
) -> dict[BoxType, Tensor]:
    """Add to ``biases`` those that the boxes of a layout need, and return it."""
    for group in layout.groups:
        if group.type not in biases:
            biases[group.type] = box_bias(table, window, group.type)
    return biases


@functools.lru_cache(maxsize=256)  # at most 120 MB
def _rows(window: tuple[int, ...], kind: BoxType, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the rows of the table for the real keys, ``t t``, and for the padding, ``t p``.

    A map smaller than the window reads the first rows and columns of the complete window's index, as MONAI does.
    """
    with torch.inference_mode(False):  # what is cached must serve training too
        real, padding = kind.positions()
        return bias_rows(window, real, real).int().to(device), bias_rows(window, real, padding).int().to(device)


class BiasMemo:
    """The biases of the boxes met so far, cached while their table is unchanged.

    It keeps a copy of the table, and each bias is made from the copy, so a thread that changes the table spoils
    nothing. On a CPU the cache is valid only while the table equals the copy, in whatever way the table was changed. On
    a GPU that comparison would wait for all work in flight; there it is valid while the table is the same tensor and
    PyTorch counted no write to it, which misses writes through ``.data``. Copies and pickles of a model start with an
    empty memo.
    """

    # 16 MB for each block, three times what an input of 96³ needs; reached by inputs of many sizes.
    LIMIT = 2**22

    def __init__(self) -> None:
        self._known: _Known | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (BiasMemo, ())

    def recall(self, table: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, dict[BoxType, Tensor]]:
        """Return a copy of ``table`` in ``dtype``, its own by default, and the biases made from it."""
        dtype, known = dtype or table.dtype, self._known
        if known is None or known.copy.dtype != dtype or not known.is_valid(table):
            known = _Known(table.detach().to(dtype, copy=True), {}, table, _version(table))
        elif sum(bias.numel() for bias in list(known.biases.values())) > self.LIMIT:  # another thread may add to it
            known = known._replace(biases={})
        self._known = known
        return known.copy, known.biases


class _Known(NamedTuple):
    """A copy of a table, the biases made from it, and the table itself, with its address and version at that time."""

    copy: Tensor
    biases: dict[BoxType, Tensor]
    table: Tensor
    version: tuple[int, int] | None

    def is_valid(self, table: Tensor) -> bool:
        """Whether the biases are still those of ``table``."""
        if table.is_cuda or self.copy.is_cuda:
            return self.table is table and self.version is not None and self.version == _version(table)
        return self.copy.dtype == table.dtype and torch.equal(self.copy, table)


def _version(table: Tensor) -> tuple[int, int] | None:
    """Return what changes when a table is moved or written to; ``None`` where PyTorch counts no writes."""
    return None if table.is_inference() else (table.data_ptr(), table._version)


class BlockInputs(NamedTuple):
    """A Swin block as numbers: all that its implementations compute with.

    Attributes:
        x: the map, ``b d h w c``.
        geometry: its windows.
        window: sides of the window that the bias table is made for.
        table: the learned biases, ``rows m``.
        memo: the cache of the biases made from it.
        attention: the tensors of the attention branch.
        mlp: weight and bias of the second norm and of the two linear layers.
        eps: of the two norms.
        differentiated: whether a backward pass may follow.
        drops: whether stochastic depth is active.
        drop: stochastic depth of a branch, ``b ... -> b ...``.
        out: where the result may be written, ``x`` included, or ``None``.
    """

    x: Tensor
    geometry: WindowGeometry
    window: tuple[int, ...]
    table: Tensor
    memo: BiasMemo
    attention: AttentionWeights
    mlp: tuple[Tensor, ...]
    eps: tuple[float, float]
    differentiated: bool
    drops: bool
    drop: Callable[[Tensor], Tensor]
    out: Tensor | None

    @property
    def is_complete(self) -> bool:
        """Whether no weight or bias was removed."""
        return not any(tensor is None for tensor in (*self.attention, *self.mlp))

    def draw_scale(self) -> Tensor | None:
        """Draw the factor of each sample for one branch, ``b``; ``None`` where nothing is dropped."""
        return self.drop(self.x.new_ones(len(self.x))) if self.drops else None
