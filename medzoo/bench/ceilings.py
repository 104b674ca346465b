"""What this machine can do at best, measured in the same run: matrix products and copies.

On a CPU two libraries multiply, and either can be the faster: the BLAS behind ``torch.mm``, and oneDNN, which
``torch.ops.mkldnn`` reaches in the same wheel. The ceiling is the better one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["measure_ceilings"]


def measure_ceilings(device: torch.device, *, quick: bool = False, tiny: bool = False) -> dict[str, float]:
    """Return operations per second of matrix products in both dtypes, and bytes per second of a copy.

    Args:
        device: where.
        quick: multiply smaller matrices on a CPU.
        tiny: multiply matrices too small to mean anything, since a CPU without bfloat16 takes minutes for others.
    """
    found: dict[str, float] = {}
    cuda = device.type == "cuda"
    lasting = 0.05 if tiny else 0.5
    side = 256 if tiny else 8192 if cuda else 2048 if quick else 4096
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        name = str(dtype).removeprefix("torch.")
        seconds = _fastest(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, lasting)  # type: ignore[misc]
        found[f"torch.mm {name}"] = 2 * side**3 / seconds
        onednn = None if cuda or tiny else _onednn(dtype)
        if onednn:
            call, flops = onednn
            found[f"oneDNN {name}"] = flops / _fastest(call, device, lasting)
        found[f"matmul {name}"] = max(v for k, v in found.items() if k.endswith(name))
    count = 1 << (20 if tiny else 30 if cuda else 28)
    source = torch.ones(count // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    found["copy"] = 2 * count / _fastest(lambda: target.copy_(source), device, lasting)
    return found


def _onednn(dtype: torch.dtype) -> tuple[Callable[[], Any], int] | None:
    """Return a linear layer of the Swin encoder's size through oneDNN, and its operations; the call is private."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    rows, k, n = 13824, 96, 384
    x, w = torch.randn(rows, k).to(dtype), torch.randn(n, k).to(dtype)
    linear = torch.ops.mkldnn._linear_pointwise
    try:
        linear(x, w, None, "none", [], "")
    except (RuntimeError, NotImplementedError):  # a build without oneDNN, or a processor without this dtype
        return None
    return lambda: linear(x, w, None, "none", [], ""), 2 * rows * k * n


def _fastest(call: Callable[[], Any], device: torch.device, lasting: float) -> float:
    """Return the seconds of the fastest of several calls: a ceiling is what was reached once."""
    best, end = float("inf"), 0.0
    with torch.inference_mode():
        for _ in range(2):
            call()
        end = time.perf_counter() + lasting
        while time.perf_counter() < end or best == float("inf"):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
    return best
