"""Which implementation computes an operation of an encoder: on which condition, and in which order.

A layer in :mod:`medzoo.nn` or :mod:`medzoo.models` first checks that its modules may be bypassed
(:mod:`medzoo.nn.guards`, which also asks :func:`fast_paths_enabled`). Then it hands over its tensors and sizes, and
gets a result, or ``None`` where its own plain PyTorch is to run. The first row of a table whose condition holds is
taken. Nothing is chosen by a timing: dtype, device and shape decide, so that outputs do not depend on the load of the
machine.

Convolution stages of optimized models are dispatched in :mod:`medzoo.kernels.conv_stage`, by :func:`kernel_serves` too.

Axes: b batch, d h w depth height width, c channels, m heads.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from medzoo.errors import ConfigError
from medzoo.kernels.box_attention import AttentionWeights, BiasMemo, BlockInputs, biased_attention, run_by_sdpa
from medzoo.kernels.cpu.conv_slabs import NormPlace, PooledConvInputs, by_slabs_pays
from medzoo.kernels.cpu.conv_training import PooledConv
from medzoo.kernels.cpu.linear import linear
from medzoo.kernels.cpu.patch_merging import MergeBySlabs, merge_by_slabs
from medzoo.kernels.cpu.swin_block import run_by_slabs, run_in_training
from medzoo.kernels.window_partition import WindowGeometry
from medzoo.warn import warn

__all__ = [
    "KERNELS",
    "TRAINING_REVISION",
    "AttentionWeights",
    "BiasMemo",
    "BlockInputs",
    "MergeInputs",
    "NormPlace",
    "PooledConvInputs",
    "WindowGeometry",
    "biased_attention",
    "fast_paths_enabled",
    "kernel_serves",
    "linear_patches",
    "patch_merging",
    "pooled_conv",
    "set_fast_paths",
    "swin_block",
]


# Increased when a fast path of training is added or gives other bits: an exact resume needs the same one.
TRAINING_REVISION = 2


def _from_environment() -> bool:
    given = os.environ.get("MEDZOO_FAST_PATHS") or "1"
    if given not in ("0", "1"):
        raise ConfigError(f"MEDZOO_FAST_PATHS: expected 0 or 1, got {given!r}. Unset it, or set it to 0 or 1.")
    return given == "1"


# The settings of the process, the last of which holds: each with the object that made it, which may become a context.
_settings: list[tuple[weakref.ref[set_fast_paths] | None, bool]] = [(None, _from_environment())]
_settings_lock = threading.Lock()
# The settings of the contexts that this thread or task is in, the innermost last.
_contexts: ContextVar[tuple[bool, ...]] = ContextVar("_contexts", default=())


class set_fast_paths(contextlib.ContextDecorator):  # noqa: N801  # used like a function, as torch.set_grad_enabled
    """Switch the fast paths on or off; off, every layer runs as the plain PyTorch that its source shows.

    As a call it holds for the process. As a context manager or decorator it holds inside, in this thread or task alone.
    The environment variable ``MEDZOO_FAST_PATHS=0`` switches them off from the start. Outputs agree to rounding either
    way. It is for debugging, for second derivatives of a Swin encoder, and to compare the two. With gradient
    checkpointing the backward pass recomputes, and must run under the same setting.

    Args:
        enabled: whether fast paths may run.

    Raises:
        ConfigError: ``enabled`` is not a bool.

    >>> import medzoo
    >>> model, x = medzoo.create("cnn3d_small", size=32).eval(), torch.rand(1, 1, 32, 32, 32)
    >>> with torch.inference_mode(), medzoo.set_fast_paths(False):
    ...     plain = model(x)
    """

    def __init__(self, enabled: bool) -> None:
        if not isinstance(enabled, bool):
            raise ConfigError(f"set_fast_paths: expected True or False, got {enabled!r}.")
        self._enabled = enabled
        with _settings_lock:
            # An object that is gone can no longer become a context: what was set before it will not hold again.
            final = max(i for i, (made_by, _) in enumerate(_settings) if made_by is None or made_by() is None)
            del _settings[:final]
            _settings.append((weakref.ref(self), enabled))

    def _withdraw(self) -> None:
        """Take the setting of the process back: this is a context."""
        with _settings_lock:
            _settings[:] = [entry for entry in _settings if entry[0] is None or entry[0]() is not self]

    def __call__(self, func: Any) -> Any:
        """Decorate a function."""
        self._withdraw()
        return super().__call__(func)

    def __enter__(self) -> None:
        self._withdraw()
        _contexts.set((*_contexts.get(), self._enabled))

    def __exit__(self, *_: object) -> None:
        _contexts.set(_contexts.get()[:-1])


def fast_paths_enabled() -> bool:
    """Whether fast paths may run here; see :class:`set_fast_paths`."""
    contexts = _contexts.get()
    return contexts[-1] if contexts else _settings[-1][1]


class MergeInputs(NamedTuple):
    """Patch merging as numbers.

    Attributes:
        x: the map, ``b d h w c``; every side is even.
        octants: position of each octant in its cell along d, h, w, in the order of the weights.
        weights: weight and bias of the norm, and weight of the reduction.
        eps: of the norm.
        differentiated: whether a backward pass may follow.
    """

    x: Tensor
    octants: Sequence[tuple[int, ...]]
    weights: tuple[Tensor, Tensor, Tensor]
    eps: float
    differentiated: bool


class Implementation(NamedTuple):
    """One way to compute an operation, and the condition on which it does."""

    serves: Callable[[Any], bool]
    run: Callable[[Any], Tensor]


def _attention_kernel_serves(b: BlockInputs) -> bool:
    """Heads of 16, 32 or 64, every bias there, and a kernel for the backward pass if one may follow."""
    c, heads = b.x.shape[-1], b.table.shape[-1]
    return (
        kernel_serves("box_attention", b.x)
        and b.x.numel() > 0
        and c // heads in (16, 32, 64)
        and b.is_complete
        and b.attention.qkv_weight.shape == (3 * c, c)
        and b.table.shape == (math.prod(2 * side - 1 for side in b.window), heads)
        and (kernel_serves("box_attention_backward", b.x) or not b.differentiated)
    )


def _layer_kernels_serve(b: BlockInputs) -> bool:
    """Inference in one dtype, and tokens that are not too wide."""
    if b.differentiated or not kernel_serves("swin_layers", b.x):
        return False
    from medzoo.kernels.cuda.swin_layers import WIDEST

    return (
        b.x.shape[-1] <= WIDEST
        and not (b.drops or torch.is_autocast_enabled(b.x.device.type))
        and len(b.mlp[2]) % 64 == 0  # which the kernel takes at once
        and all(t.dtype == b.x.dtype and t.is_contiguous() for t in (*b.attention, *b.mlp))
    )


def _run_block_kernels(b: BlockInputs) -> Tensor:
    from medzoo.kernels.cuda.swin_block import run_by_kernels

    return run_by_kernels(b, layers=_layer_kernels_serve(b))


SWIN_BLOCK = (
    # GPU: attention in all boxes by one kernel, and the layers around it by kernels too where they have no gradient.
    Implementation(_attention_kernel_serves, _run_block_kernels),
    # GPU without Triton: one SDPA call for each type of boxes.
    Implementation(lambda b: b.x.is_cuda, run_by_sdpa),
    # CPU, inference.
    Implementation(lambda b: not b.differentiated and not b.drops, lambda b: run_by_slabs(b)),
    # CPU, training.
    Implementation(lambda b: b.is_complete, lambda b: run_in_training(b)),
)


def _merge_kernel_serves(m: MergeInputs) -> bool:
    if m.differentiated or not kernel_serves("merge_patches", m.x):
        return False
    from medzoo.kernels.cuda.swin_layers import WIDEST

    c = m.x.shape[-1]
    narrow = m.x.numel() > 0 and c <= WIDEST and m.weights[2].shape == (2 * c, 8 * c)
    alike = all(w.dtype == m.x.dtype and w.is_contiguous() for w in m.weights) and m.x.is_contiguous()
    return narrow and alike and not torch.is_autocast_enabled(m.x.device.type)


def _run_merge_kernel(m: MergeInputs) -> Tensor:
    from medzoo.kernels.cuda.swin_layers import merge_patches

    with torch.cuda.device_of(m.x):  # type: ignore[no-untyped-call]  # where kernels are launched
        return merge_patches(m.x, m.octants, *m.weights, m.eps)


PATCH_MERGING = (
    Implementation(_merge_kernel_serves, _run_merge_kernel),
    # CPU, training.
    Implementation(
        lambda m: not m.x.is_cuda and m.differentiated,
        lambda m: MergeBySlabs.apply(m.x, m.octants, m.eps, *m.weights),
    ),
    # CPU, inference.
    Implementation(lambda m: not m.x.is_cuda, lambda m: merge_by_slabs(m.x, m.octants, m.eps, m.weights)),
)


def swin_block(inputs: BlockInputs) -> Tensor | None:
    """Run a Swin block, ``b d h w c -> b d h w c``, or return ``None`` where the plain layers are to run."""
    return _first(SWIN_BLOCK, inputs)


def patch_merging(inputs: MergeInputs) -> Tensor | None:
    """Merge patches, ``b d h w c -> b d/2 h/2 w/2 2c``, or return ``None`` where the plain layers are to run."""
    return _first(PATCH_MERGING, inputs)


def pooled_conv(inputs: PooledConvInputs) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """Run a convolution stage in training, or return ``None`` where the plain layers are to run.

    Returns:
        The result, ``b c' *s'``, and mean and biased variance of what a BatchNorm normalised, ``c'``, if there is one.
    """
    return PooledConv.apply(*inputs) if by_slabs_pays(inputs) else None


def linear_patches(patches: Tensor, weight: Tensor, bias: Tensor | None, *, differentiated: bool) -> Tensor:
    """Project patches, ``n k -> n c``: a convolution that PyTorch would run slowly, as one matrix product."""
    # oneDNN's has no second derivative.
    return F.linear(patches, weight, bias) if differentiated else linear(patches, weight, bias)


def _first(table: Sequence[Implementation], inputs: Any) -> Tensor | None:
    for implementation in table:
        if implementation.serves(inputs):
            return implementation.run(inputs)
    return None


HALF = frozenset({torch.bfloat16, torch.float16})
FLOAT = HALF | {torch.float32}


class Kernel(NamedTuple):
    """A kernel for GPUs.

    Attributes:
        module: where it is, in ``medzoo.kernels.cuda``.
        replaces: what runs where it does not.
        dtypes: of the input.
        measured: the id of the benchmark that shows what it gains, in a result file of ``benchmarks/results``.
    """

    module: str
    replaces: str
    dtypes: frozenset[torch.dtype]
    measured: str


SWIN_FORWARD = "swin_encoder_mlp-96x96x96-b8-bfloat16-forward"
SWIN_TRAINING = "swin_encoder_mlp-96x96x96-b2-bfloat16-train"
CNN_FORWARD = "cnn3d_base-64x128x128-b64-bfloat16-forward"
LAYERS = "LayerNorm, linear layers, GELU and sums one by one"

KERNELS = {
    "box_attention": Kernel("box_attention", "an SDPA call for each type of boxes", FLOAT, SWIN_FORWARD),
    "box_attention_backward": Kernel(
        "box_attention_backward", "autograd through those SDPA calls", FLOAT, SWIN_TRAINING
    ),
    "swin_layers": Kernel("swin_layers", LAYERS, HALF, SWIN_FORWARD),
    "merge_patches": Kernel("swin_layers", "concatenation, LayerNorm and linear layer", HALF, SWIN_FORWARD),
    "conv_pool": Kernel("conv_pool", "cuDNN's convolution of one channel and max pooling", HALF, CNN_FORWARD),
    "pool_last": Kernel("conv_pool", "maxima along one axis after the other", FLOAT, CNN_FORWARD),
}


def kernel_serves(name: str, x: Tensor) -> bool:
    """Whether a kernel of the table runs on ``x``: on a GPU, or on a CPU in Triton's interpreter."""
    return x.dtype in KERNELS[name].dtypes and _triton_runs_on(x.device)


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
        from medzoo.kernels.cuda.swin_layers import trial_launch

        trial_launch(device)
    except Exception as error:  # no C compiler, no place for its cache, a build that does not fit: all leave PyTorch
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        warn(
            f"Triton is installed but does not run on {device}: {type(error).__name__}: {reason}. medzoo continues "
            "without its kernels, with the same outputs and slower. Triton needs a C compiler and a folder to write to "
            "(TRITON_CACHE_DIR).",
            RuntimeWarning,
        )
        return False
    return True
