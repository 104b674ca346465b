"""A Swin block on a GPU by kernels in Triton, and attention over boxes as an operator of PyTorch.

Axes: b batch, n tokens of a map, r rows of a map (see :mod:`medzoo.kernels.cuda.box_tables`), c channels, m heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medzoo.kernels.box_attention import BlockInputs, Reorder, mlp_branch
from medzoo.kernels.cuda.box_attention import attend_in_boxes, fill_biases
from medzoo.kernels.cuda.box_attention_backward import attend_backward, biases_backward
from medzoo.kernels.cuda.box_tables import BLOCK, backward_tables, box_tables
from medzoo.kernels.cuda.graphs import keep_alive
from medzoo.kernels.cuda.swin_layers import finish_block, norm_linear
from medzoo.kernels.window_partition import partition

__all__ = ["box_attention", "run_by_kernels"]


@torch.library.custom_op("medzoo::box_attention", mutates_args=())
def box_attention(
    qkv: Tensor,
    table: Tensor,
    size: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    sides: Sequence[int],
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Attend within the boxes of a batch of maps, ``(b r) 3c -> (b r) c``.

    Args:
        qkv: queries, keys and values of each row, ``(b r) 3c``, contiguous.
        table: the learned biases, one row for each offset, ``rows m``.
        size: sides of a map.
        window: sides of the window, clipped to the map.
        shift: how far the windows are shifted along each axis.
        sides: of the window that the table is made for.
        keep: return the log-sum-exp of each row's weights too, ``(b r) m``, which a backward pass needs.
    """
    axes = partition(tuple(size), tuple(window), tuple(shift))
    tables = box_tables(axes, tuple(window), qkv.device)
    keep_alive(tables)
    return attend_in_boxes(qkv, fill_biases(table, tables, sides), tables, table.shape[1], keep=keep)


@box_attention.register_fake
def _(
    qkv: Tensor,
    table: Tensor,
    size: Sequence[int],  # noqa: ARG001
    window: Sequence[int],  # noqa: ARG001
    shift: Sequence[int],  # noqa: ARG001
    sides: Sequence[int],  # noqa: ARG001
    keep: bool,
) -> tuple[Tensor, Tensor]:
    total, width = qkv.shape
    lse = qkv.new_empty((total, table.shape[1]) if keep else (0,), dtype=torch.float32)
    return qkv.new_empty(total, width // 3), lse


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save what :func:`_backward` needs; see ``torch.library.register_autograd``."""
    qkv, table, size, window, shift, sides, keep = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(qkv, table, out, lse)
    ctx.axes = partition(tuple(size), tuple(window), tuple(shift))
    ctx.window, ctx.sides, ctx.keep = tuple(window), tuple(sides), keep


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ARG001
    """Return the gradients of the inputs of ``medzoo::box_attention``.

    Raises:
        RuntimeError: the forward pass did not keep the log-sum-exp, or this derivative is to be differentiated itself.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "medzoo::box_attention: expected a first derivative, got create_graph=True: the kernels of the backward "
            "pass cannot be differentiated. Run the forward pass under `with medzoo.set_fast_paths(False):`."
        )
    settings = (None,) * 5
    if grad_out is None:
        return (None, None, *settings)
    if not ctx.keep:
        message = "medzoo::box_attention: the backward pass needs the log-sum-exp; call the forward pass with keep=True"
        raise RuntimeError(message)
    qkv, table, out, lse = ctx.saved_tensors
    heads = table.shape[1]
    tables = box_tables(ctx.axes, ctx.window, qkv.device)
    work = backward_tables(ctx.axes, ctx.window, ctx.sides, len(qkv) // len(tables.token_of_row), heads, qkv.device)
    keep_alive(tables, work)
    biases = fill_biases(table, tables, ctx.sides, keys=BLOCK)
    grad_qkv, grad_biases = attend_backward(
        grad_out.contiguous(), qkv, out, lse, biases, tables, work, heads, with_biases=ctx.needs_input_grad[1]
    )
    grad_table = None
    if grad_biases is not None:
        grad_table = biases_backward(grad_biases, tables, work, table, ctx.sides).to(table.dtype)
    return (grad_qkv, grad_table, *settings)


box_attention.register_autograd(_backward, setup_context=_setup_context)


def run_by_kernels(b: BlockInputs, *, layers: bool) -> Tensor:
    """Run a block, ``b d h w c -> b d h w c``: attention by a kernel, and perhaps the layers around it too.

    Args:
        b: the block.
        layers: run the layers around attention by kernels, which have no gradients.
    """
    tables = box_tables(partition(*b.geometry), b.geometry.window, b.x.device)
    keep_alive(tables)
    tokens = b.x.flatten(1, 3).contiguous()

    def by_boxes(qkv: Tensor) -> Tensor:
        table = b.table.to(qkv.dtype).contiguous()
        if b.differentiated:
            return box_attention(qkv, table, *b.geometry, b.window, True)[0]
        # PyTorch's dispatcher would take longer than the launch.
        return attend_in_boxes(qkv, fill_biases(table, tables, b.window), tables, table.shape[1], keep=False)[0]

    with torch.cuda.device_of(b.x):  # where kernels are launched
        if layers:
            attended = by_boxes(norm_linear(tokens, tables.token_of_row, *b.attention[:4], b.eps[0]))
            parts = b.attention[4:], b.mlp[:2], b.mlp[2:4], b.mlp[4:]
            return finish_block(attended, tables.scatter_index, tokens, *parts, b.eps[1]).view_as(b.x)
        normed = F.layer_norm(tokens, tokens.shape[2:], b.attention.norm_weight, b.attention.norm_bias, b.eps[0])
        boxed = Reorder.apply(normed, tables.gather_index, tables.scatter_index)
        boxed.index_fill_(1, tables.padding_rows, 0)
        qkv = F.linear(boxed, b.attention.qkv_weight, b.attention.qkv_bias)
        attended = by_boxes(qkv.flatten(0, 1)).view(tokens.shape[0], -1, tokens.shape[2])
        attended = Reorder.apply(attended, tables.scatter_index, tables.gather_index)
        tokens = tokens + b.drop(F.linear(attended, b.attention.proj_weight, b.attention.proj_bias))
        return (tokens + b.drop(mlp_branch(tokens.flatten(0, 1), b.mlp, b.eps[1]).view_as(tokens))).view_as(b.x)
