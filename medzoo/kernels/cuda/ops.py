"""Attention over boxes as an operator of PyTorch, with what compilers and autograd ask of one.

Axes: b batch, r rows of a map (see :mod:`medzoo.kernels.cuda.box_tables`), c channels, m heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medzoo.kernels.cuda.box_attention import attend_in_boxes, fill_biases
from medzoo.kernels.cuda.box_attention_backward import backward, setup_context
from medzoo.kernels.cuda.box_tables import box_tables
from medzoo.kernels.cuda.graphs import hold
from medzoo.kernels.window_partition import partition

__all__ = ["box_attention"]


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
    hold(tables)
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


box_attention.register_autograd(backward, setup_context=setup_context)
