"""Where a fast path runs."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

__all__ = ["triton_serves"]


@functools.cache
def _triton_runs_on(device: torch.device) -> bool:
    """Whether Triton is installed and the card has matrix units for bfloat16."""
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def triton_serves(x: Tensor) -> bool:
    """Whether a Triton kernel can run on ``x``: on a GPU from compute capability 8.0, or in Triton's interpreter."""
    return _triton_runs_on(x.device)
