"""What the hand-written backward passes share: gradients of one piece at a time, added up.

Axes: n rows, c channels, o output channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medzoo.kernels.cpu.linear import linear

__all__ = ["Sums", "gradients", "refuse_second_derivative", "through_linear"]


class Sums:
    """Gradients of the same tensors, added up over the slabs."""

    def __init__(self, count: int) -> None:
        self.values: list[Tensor | None] = [None] * count

    def add(self, more: Sequence[Tensor | None]) -> None:
        """Add one gradient to each sum; ``None`` adds nothing."""
        for i, gradient in enumerate(more):
            if gradient is not None:
                known = self.values[i]
                self.values[i] = gradient if known is None else known.add_(gradient)


def gradients(outputs: Any, inputs: Sequence[Tensor], given: Any) -> list[Tensor | None]:
    """Return the gradient of each input, or ``None`` where it is frozen."""
    moving = [x for x in inputs if x.requires_grad]
    if not moving or (isinstance(outputs, list) and not outputs):
        return [None] * len(inputs)
    got = iter(torch.autograd.grad(outputs, moving, given))
    return [next(got) if x.requires_grad else None for x in inputs]


def through_linear(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of a linear layer whose own result is not needed: of its input, weight and bias."""
    with torch.no_grad():
        to_weight = grad.t() @ x if weight.requires_grad else None
        to_bias = grad.sum(0) if bias is not None and bias.requires_grad else None
        return linear(grad, weight.t().contiguous()), to_weight, to_bias


def refuse_second_derivative(who: str) -> None:
    """Raise RuntimeError when the derivative of this derivative is asked for."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{who}: expected a first derivative, got create_graph=True: the fast backward pass on a CPU cannot be "
            "differentiated. Run the forward pass under `with medzoo.set_fast_paths(False):`."
        )
