"""Parameter groups for an optimiser: what is decayed, and how the learning rate shrinks towards the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

__all__ = ["param_groups"]


def param_groups(
    model: nn.Module, ends: Sequence[str], lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Return the trainable parameters of ``model.encoder`` and ``model.head`` in groups.

    Biases, norms and position bias tables are not decayed.

    Args:
        model: has the roots ``encoder`` and ``head``.
        ends: name of the last module of each stage of the encoder, in the order they run.
        lr: learning rate of the head.
        weight_decay: weight decay of matrices and kernels.
        layer_decay: factor of the learning rate for each stage from the head down to the input.
    """
    depth = _depths(model, ends)
    top = len(ends)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and not name.endswith("relative_position_bias_table")
        level = depth[name] if layer_decay < 1.0 else top
        group = groups.setdefault(
            (level, decayed),
            {
                "params": [],
                "lr": lr * layer_decay ** (top - level),
                "weight_decay": weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _depths(model: nn.Module, ends: Sequence[str]) -> dict[str, int]:
    """Number the stage each parameter belongs to, from 0 at the input; the head is one above the last.

    Modules are registered in the order they run, so a module belongs to the first stage that ends at or after it.
    """
    encoder, head = model.get_submodule("encoder"), model.get_submodule("head")
    order = [name for name, _ in encoder.named_modules()]
    last = [max(i for i, name in enumerate(order) if name == end or name.startswith(end + ".")) for end in ends]
    place = {name: i for i, name in enumerate(order)}
    depths = {f"head.{name}": len(ends) for name, _ in head.named_parameters()}
    for name, _ in encoder.named_parameters():
        at = place[name.rpartition(".")[0]]
        depths[f"encoder.{name}"] = next((i for i, end in enumerate(last) if at <= end), len(ends) - 1)
    return depths
