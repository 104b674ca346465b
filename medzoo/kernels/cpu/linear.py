"""A linear layer that runs on oneDNN where this PyTorch offers it, and by ``F.linear`` elsewhere.

On AMD processors the matrix products of PyTorch's CPU build reach half of what its own oneDNN reaches. The operator is
not public, so it is tested once before it is used.

Axes: n rows, c channels, o output channels.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["linear", "onednn_works"]


@functools.cache
def onednn_works() -> bool:
    """Whether the private operator is there, takes our arguments and computes what ``F.linear`` does."""
    try:
        with torch.no_grad():
            plain: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
            shapes = [(32, (4, 8)), (24, (3, 8)), (3, (3,))]
            x, weight, bias = (torch.linspace(-1, 1, n, **plain).view(shape) for n, shape in shapes)
            expected = F.linear(x, weight, bias)
            op = torch.ops.mkldnn._linear_pointwise
            return all(
                torch.allclose(got, want, rtol=1e-5, atol=1e-6)
                for got, want in [
                    (op(x, weight, bias, "none", [], ""), expected),
                    (op(x, weight, None, "gelu", [], "none"), F.gelu(F.linear(x, weight))),
                    (op.binary(x, expected, weight, bias, "add"), 2 * expected),
                ]
            )
    except (AttributeError, RuntimeError, TypeError):
        return False


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False, add: Tensor | None = None
) -> Tensor:
    """Return ``x @ weight.T + bias``, ``n c -> n o``, through a GELU or added to ``add``.

    Args:
        x: ``n c``.
        weight: ``o c``.
        bias: ``o``.
        gelu: apply the exact GELU.
        add: ``n o``, added to the result.
    """
    if not (x.dtype == torch.float32 and x.device.type == "cpu" and torch.backends.mkldnn.enabled and onednn_works()):
        y = F.linear(x, weight, bias)
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, add)):
        y = _Linear.apply(x, weight, bias)
    elif add is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(x, add, weight, bias, "add")
    else:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")
    if gelu:
        y = F.gelu(y)
    return y if add is None else y + add


class _Linear(torch.autograd.Function):
    """The oneDNN operator with its derivative, which PyTorch does not define."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "none")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            linear(grad, weight.t().contiguous()) if to_x else None,
            grad.t() @ x if to_weight else None,
            grad.sum(0) if to_bias else None,
        )
