"""Which kernels for GPUs there are, on what they run, and the measurement behind each.

A kernel is on by a row of the table below, and a row names the benchmark that shows what it gains: an id in the result
files of ``benchmarks/results``. What else a kernel asks of its input, such as a width of heads, is asked where it is
called. Nothing is chosen by a timing: the row and the card decide, so that numbers do not depend on the hour.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["KERNELS", "Kernel", "kernel_serves"]

HALF = frozenset({torch.bfloat16, torch.float16})
FLOAT = HALF | {torch.float32}


class Kernel(NamedTuple):
    """A row of the table.

    Attributes:
        module: where it is, in ``medzoo.kernels.cuda``.
        replaces: what runs where it does not.
        dtypes: of the input.
        measured: the row of a result file that shows it.
    """

    module: str
    replaces: str
    dtypes: frozenset[torch.dtype]
    measured: str


KERNELS = {
    "box_attention": Kernel(
        "box_attention",
        "an SDPA call for each type of boxes",
        FLOAT,
        "swin_encoder_mlp-96x96x96-b8-bfloat16-forward",
    ),
    "box_attention_backward": Kernel(
        "box_attention_backward",
        "autograd through those SDPA calls",
        FLOAT,
        "swin_encoder_mlp-96x96x96-b2-bfloat16-train",
    ),
    "swin_layers": Kernel(
        "swin_layers",
        "LayerNorm, linear layers, GELU and sums one by one",
        HALF,
        "swin_encoder_mlp-96x96x96-b8-bfloat16-forward",
    ),
    "merge_patches": Kernel(
        "swin_layers",
        "concatenation, LayerNorm and linear layer",
        HALF,
        "swin_encoder_mlp-96x96x96-b8-bfloat16-forward",
    ),
    "conv_pool": Kernel(
        "conv_pool",
        "cuDNN's convolution of one channel and max pooling",
        HALF,
        "cnn3d_base-64x128x128-b64-bfloat16-forward",
    ),
    "pool_last": Kernel(
        "conv_pool",
        "maxima along one axis after the other",
        FLOAT,
        "cnn3d_base-64x128x128-b64-bfloat16-forward",
    ),
}


@functools.cache
def _triton_runs_on(device: torch.device) -> bool:
    """Whether Triton works on a card that has matrix units for bfloat16 (compute capability 8.0)."""
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        from medzoo.kernels.cuda.trial import trial

        trial(device)
    except Exception as error:  # no C compiler, no place for its cache, a build that does not fit: all leave PyTorch
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        warnings.warn(
            f"Triton is installed but does not run on {device}: {type(error).__name__}: {reason}. medzoo goes on "
            "without its kernels, with the same outputs and slower. Triton needs a C compiler and a folder to write to "
            "(TRITON_CACHE_DIR).",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def kernel_serves(name: str, x: Tensor) -> bool:
    """Whether a kernel of the table runs on ``x``: on a GPU, or on a CPU in Triton's interpreter."""
    return x.dtype in KERNELS[name].dtypes and _triton_runs_on(x.device)
