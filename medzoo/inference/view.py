"""A second model around the tensors of a model, to hook and differentiate without changing the first.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from medzoo.classifier import Classifier
from medzoo.inference.optimize import OptimizedClassifier, copy_model

__all__ = ["float32_view", "without_values"]

T = TypeVar("T")


def float32_view(model: Classifier, device: torch.device) -> Classifier:
    """Return a plain classifier in eval mode, whose modules are copies and whose tensors are those of ``model``.

    Tensors of another dtype than float32 or on another device are copied. No parameter requires a gradient, so that a
    backward pass reaches only what is marked, and accumulates nothing in the model. Forward hooks run in the view too,
    as they may change a result; backward hooks do not, as they are for training.

    Raises:
        ConfigError: the model cannot be copied.
    """
    # Tensors made in inference mode cannot be differentiated through.
    with torch.inference_mode(False):
        memo: dict[int, Any] = {}
        for module in model.modules():
            for name, value in (*module._parameters.items(), *module._buffers.items()):
                if value is not None and id(value) not in memo:
                    plain = value.detach().clone() if value.is_inference() else value.detach()
                    plain = plain.to(device, torch.float32 if plain.is_floating_point() else None)
                    is_parameter = name in module._parameters
                    memo[id(value)] = nn.Parameter(plain, requires_grad=False) if is_parameter else plain
        view = copy_model(model, memo)
    if isinstance(view, OptimizedClassifier):  # it refuses to be differentiated
        object.__setattr__(view, "__class__", Classifier)
    if hasattr(view.encoder, "set_grad_checkpointing"):
        view.set_grad_checkpointing(False)  # with it, timm's models run parts of a layer instead of the layer
    for module in view.modules():
        module.training = False
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    return view


def without_values(view: Classifier, x: Tensor, run: Callable[[Classifier, Tensor], T]) -> T:
    """Return ``run(view, x)``, of which the sizes alone matter, where possible without computing a value.

    A pass over shapes takes a tenth of the time of a pass over a volume.
    """
    shapes_only = float32_view(view, torch.device("meta"))
    for module in shapes_only.modules():  # hooks of the user see real passes alone
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    try:
        return run(shapes_only, torch.empty_like(x, device="meta"))
    except Exception:  # a model that reads values, or has kernels of its own, runs as it is
        return run(view, x)
