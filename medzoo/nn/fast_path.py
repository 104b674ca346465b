"""When a block may run its fast path, which gives the same numbers without calling its parts one by one.

Whatever looks into a model (a hook, a compiler, an exporter, a transform, a counter of operations) or changes a part of
it (a quantised or parametrised layer) expects the plain path, and gets it.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext

__all__ = ["SLAB", "fast_path_for", "hooked", "inner", "needs_gradient", "plain_path", "plain_path_wanted", "watched"]

# Numbers in the largest temporary of a slab: 8 MB of float32, little enough for the cache and for malloc to keep.
SLAB = 2**21

_ORDINARY = (Tensor, nn.Parameter)
# Classes of a module's usual attributes.
_NO_TENSORS = frozenset({bool, int, float, str, type(None), tuple, list, set, dict, OrderedDict})

_plain: ContextVar[bool] = ContextVar("_plain", default=False)


@contextlib.contextmanager
def plain_path() -> Iterator[None]:
    """Within this context no fast path runs: for derivatives of derivatives, or to compare the two."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def plain_path_wanted() -> bool:
    """Whether this is inside :func:`plain_path`."""
    return _plain.get()


def fast_path_for(module: nn.Module, x: Tensor, known: Collection[type[nn.Module]]) -> bool:
    """Whether ``module`` may compute on ``x`` without calling its parts, all of which should be of ``known`` types."""
    device = x.device.type
    if watched(x) or _plain.get() or type(x) not in _ORDINARY or device not in ("cpu", "cuda"):
        return False
    if device == "cpu" and torch.is_autocast_enabled("cpu"):
        return False
    on_cpu, index, dtype = device == "cpu", x.get_device(), x.dtype
    for part in inner(module):
        if part is not module and (type(part) not in known or hooked(part)):
            return False
        for t in _tensors(part):
            if type(t) not in _ORDINARY:
                return False
            if not (t.is_cpu and t.dtype is dtype if on_cpu else t.is_cuda and t.get_device() == index):
                return False
    return True


def inner(*modules: nn.Module) -> list[nn.Module]:
    """List modules and all inside them; ``modules()`` also builds their names, and takes ten times as long."""
    found = list(modules)
    for parent in found:
        if children := parent._modules:
            found.extend([child for child in children.values() if child is not None])
    return found


def hooked(*modules: nn.Module) -> bool:
    """Whether someone listens to one of the modules or put a forward of their own in it, so that it must run itself."""
    for m in modules:
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks or not _as_built(m):
            return True
    return False


def _as_built(part: nn.Module) -> bool:
    """Whether nobody put a forward of their own or a plain tensor in the place of a parameter."""
    own = part.__dict__
    # Only classes that are not known to hold no numbers are looked at one by one: this runs in front of each block.
    return "forward" not in own and (
        _NO_TENSORS.issuperset(map(type, own.values())) or not any(isinstance(value, Tensor) for value in own.values())
    )


def needs_gradient(module: nn.Module, x: Tensor) -> bool:
    """Whether a backward pass through ``module`` may follow."""
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(t.requires_grad for part in inner(module) for t in _tensors(part))


def _tensors(part: nn.Module) -> list[Tensor]:
    """List what stands where a module's own parameters do; in a replica or a functional call, plain tensors do."""
    if not (parameters := part._parameters):
        return []
    own = part.__dict__
    return [t for name, p in parameters.items() if (t := own.get(name, p)) is not None]


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
