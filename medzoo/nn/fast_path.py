"""When a block may run its fast path, which gives the same numbers without calling its parts one by one.

Whatever looks into a model (a hook, a compiler, an exporter, a transform, a counter of operations) or changes a part of
it (a quantised or parametrised layer) expects the plain path, and gets it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext

__all__ = ["SLAB", "fast_path_for", "hooked", "needs_gradient", "plain_path", "watched"]

# Numbers in the largest temporary of a slab: 8 MB of float32, little enough for the cache and for malloc to keep.
SLAB = 2**21

_plain: ContextVar[bool] = ContextVar("_plain", default=False)


@contextlib.contextmanager
def plain_path() -> Iterator[None]:
    """Within this context no fast path runs: for derivatives of derivatives, or to compare the two."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def fast_path_for(module: nn.Module, x: Tensor, known: Collection[type[nn.Module]]) -> bool:
    """Whether ``module`` may compute on ``x`` without calling its parts, all of which should be of ``known`` types."""
    device = x.device.type
    if watched(x) or _plain.get() or type(x) not in (Tensor, nn.Parameter) or device not in ("cpu", "cuda"):
        return False
    if device == "cpu" and torch.is_autocast_enabled("cpu"):
        return False
    tensors_match = all(
        type(p) in (Tensor, nn.Parameter) and p.device == x.device and (device == "cuda" or p.dtype == x.dtype)
        for p in _tensors(module)
    )
    return tensors_match and all(
        type(part) in known and not hooked(part) for part in module.modules() if part is not module
    )


def hooked(*modules: nn.Module) -> bool:
    """Whether someone listens to one of the modules or put a forward of their own in it, so that it must run itself."""
    for m in modules:
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks or not _as_built(m):
            return True
    return False


def _as_built(part: nn.Module) -> bool:
    """Whether nobody put a forward of their own or a plain tensor in the place of a parameter."""
    return not any(name == "forward" or isinstance(value, Tensor) for name, value in part.__dict__.items())


def needs_gradient(module: nn.Module, x: Tensor) -> bool:
    """Whether a backward pass through ``module`` may follow."""
    return torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in _tensors(module)))


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield what stands where parameters do; in a replica or a functional call that is plain tensors."""
    for part in module.modules():
        for name in part._parameters:
            if (tensor := getattr(part, name)) is not None:
                yield tensor


def watched(x: Tensor) -> bool:
    """Whether a compiler, a tracer, a mode, a transform or a global hook wants to see each operation or module.

    A default device, which is a mode too, watches nothing; but what is made without a device should lie beside ``x``.
    Most of what is asked here is private to PyTorch.
    """
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch._C._get_tracing_state():
        return True
    functorch = getattr(torch._C, "_functorch", None)
    if functorch is not None and functorch.peek_interpreter_stack() is not None:
        return True
    if getattr(torch._C, "_len_torch_function_stack", int)():
        for mode in torch.overrides._get_current_function_mode_stack():  # type: ignore[no-untyped-call]  # torch's
            if not isinstance(mode, DeviceContext) or mode.device.type != x.device.type:
                return True
    level = getattr(torch.autograd.forward_ad, "_current_level", -1)
    modes = getattr(torch._C, "_len_torch_dispatch_stack", int)()
    return bool(modes) or level >= 0 or getattr(nn.modules.module, "_has_any_global_hook", bool)()
