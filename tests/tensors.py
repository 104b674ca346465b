"""Tensors that tests share."""

from __future__ import annotations

import torch
from torch import nn


def scatter_weights(module: nn.Module) -> None:
    """Move every parameter off its starting point, so that no bias is zero and no norm is one."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
