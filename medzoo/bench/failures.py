"""What the failure of one case or one peer must not take along: the other rows, the memory, the result file."""

from __future__ import annotations

import gc

import torch

__all__ = ["DeviceLost", "describe_error", "recover", "release"]


class DeviceLost(Exception):
    """The GPU refuses all further work of this process, as after an illegal memory access."""


def describe_error(error: BaseException) -> str:
    """Return the kind of an error and the start of its message, in one line.

    >>> describe_error(ValueError("too   large"))
    'ValueError: too large'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def release(device: torch.device) -> None:
    """Give back memory that nobody uses: what PyTorch keeps cached counts as used by the free memory of a GPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def recover(device: torch.device) -> None:
    """Release memory after an error, and check that the device still works.

    Call it after the ``except`` block: the error's traceback keeps its tensors.

    Raises:
        DeviceLost: every further call would fail too.
    """
    try:
        release(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.ones(1, device=device).item()
    except RuntimeError as error:
        raise DeviceLost(describe_error(error)) from None
