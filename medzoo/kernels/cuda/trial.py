"""The smallest kernel, to see whether Triton can build and launch one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["trial"]


@triton.jit
def _one(out):
    tl.store(out, 1.0)


def trial(device: torch.device) -> None:
    """Build and launch a kernel; whatever goes wrong is raised. It does not wait for the GPU."""
    out = torch.empty(1, dtype=torch.float32, device=device)
    with torch.cuda.device_of(out):
        _one[(1,)](out)
