"""Whether a fast path may take the place of modules, and whether what was derived from modules still holds.

Whatever observes a model (a hook, a compiler, an exporter, a transform, a counter of operations) or changes a part of
it (a quantised or parametrised layer) expects the plain path, and gets it.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext

from medzoo.kernels.dispatch import fast_paths_enabled

__all__ = [
    "Copies",
    "Watch",
    "eager",
    "fast_path_for",
    "hooked",
    "inner",
    "needs_gradient",
    "unobserved",
    "wants_gradients",
    "watched",
]

_ORDINARY = (Tensor, nn.Parameter)
# Classes of a module's usual attributes, none of which holds a tensor.
_NO_TENSORS = frozenset({bool, int, float, str, type(None), tuple, list, set, dict, OrderedDict})
# Attributes of a module that hold its parts and its hooks.
_CONTENTS = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)

_version = operator.attrgetter("_version")


def fast_path_for(module: nn.Module, x: Tensor, known: Collection[type[nn.Module]]) -> bool:
    """Whether ``module`` may compute on ``x`` without calling its parts, which must all be of ``known`` types."""
    device = x.device.type
    if watched(x) or not fast_paths_enabled() or type(x) not in _ORDINARY or device not in ("cpu", "cuda"):
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
    """Whether a module has hooks or a forward put in by hand, so that it must run itself."""
    for m in modules:
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks or not _as_built(m):
            return True
    return False


def _as_built(part: nn.Module) -> bool:
    """Whether neither its forward nor a parameter was replaced by hand."""
    own = part.__dict__
    # Other attributes alone are looked at one by one: this runs before each block.
    return "forward" not in own and (
        _NO_TENSORS.issuperset(map(type, own.values())) or not any(isinstance(value, Tensor) for value in own.values())
    )


def unobserved(x: Tensor, modules: Iterable[nn.Module], kind: type[nn.Module]) -> bool:
    """Whether nobody observes the modules, all as built here and none compiled, so that they may overwrite inputs."""
    modules = list(modules)
    built = all(type(m) is kind and m._compiled_call_impl is None for m in modules)
    return built and not watched(x) and not hooked(*modules)


def needs_gradient(module: nn.Module, x: Tensor) -> bool:
    """Whether a backward pass through ``module`` may follow."""
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(t.requires_grad for part in inner(module) for t in _tensors(part))


def _tensors(part: nn.Module) -> list[Tensor]:
    """List a module's own parameters; in a replica or a functional call, the plain tensors in their place."""
    if not (parameters := part._parameters):
        return []
    own = part.__dict__
    return [t for name, p in parameters.items() if (t := own.get(name, p)) is not None]


def watched(x: Tensor) -> bool:
    """Whether a compiler, a tracer, a mode, a transform or a global hook must see each operation or module.

    A default device, which is a mode too, observes nothing; but it must be the device of ``x``, for tensors that are
    made without one. Most of what is checked here is private to PyTorch.
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


def eager(x: Tensor) -> bool:
    """Whether a fast path may take ``x``: an ordinary tensor, not traced, differentiated or under autocast."""
    return not (
        watched(x)  # before the switch, which compilers cannot trace
        or not fast_paths_enabled()
        or type(x) is not Tensor
        or (x.requires_grad and torch.is_grad_enabled())
        or torch.is_autocast_enabled(x.device.type)
        or x.shape[0] == 0
    )


def wants_gradients(module: nn.Module) -> bool:
    """Whether a parameter of a module, or of one inside it, requires a gradient."""
    for part in inner(module):
        for p in part._parameters.values():
            if p is not None and p.requires_grad:
                return True
    return False


class Copies:
    """Copies of tensors, to see any write to them: writing through ``.data`` leaves no other trace.

    Those on a GPU are joined before they are compared, so that it is waited for once. Those on a CPU are compared bit
    by bit where they are in one piece of memory, so that NaN is equal to itself: C takes a third less time than
    ``torch.equal``, and spends nearly all of it on waiting for memory.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._pieces: list[tuple[Tensor, Tensor]] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._joined: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        self._tensors = list(tensors)
        # An alias keeps the memory, so that no other data gets its address, and how it was read.
        self._aliases = [t.detach() for t in self._tensors]
        self._addresses = list(map(Tensor.data_ptr, self._tensors))
        compare = _memcmp()
        for t in self._aliases:
            if t.is_cuda:
                self._joined.setdefault((t.device, t.dtype), []).append(t)
                continue
            pair = (t, t.clone())
            (self._pieces if compare is not None and _in_one_piece(*pair) else self._pairs).append(pair)
        self._before = [_join(some) for some in self._joined.values()]
        self._places = [(t.data_ptr(), copy.data_ptr(), t.nbytes) for t, copy in self._pieces]

    def in_place(self) -> bool:
        """Whether all tensors are where they were, in the same shape and order: data may be a transposed view of it."""
        there = list(map(Tensor.data_ptr, self._tensors)) == self._addresses
        return there and all(map(Tensor.is_set_to, self._tensors, self._aliases))

    def same(self) -> bool:
        """Whether all tensors are in place, and their values are as they were."""
        if not self.in_place():
            return False
        compare = _memcmp()
        if compare is not None and any(itertools.starmap(compare, self._places)):
            return False
        if not all(itertools.starmap(torch.equal, self._pairs)):
            return False
        return all(map(torch.equal, map(_join, self._joined.values()), self._before))


@functools.cache
def _memcmp() -> Callable[[int, int, int], int] | None:
    """Return the function of C, which other threads run beside, or ``None`` on a system that hides it."""
    try:
        compare = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None).memcmp
    except (AttributeError, OSError):
        return None
    compare.argtypes, compare.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_int
    found: Callable[[int, int, int], int] = compare
    return found


def _in_one_piece(t: Tensor, copy: Tensor) -> bool:
    """Whether a tensor fills its memory without gaps, in any order: a copy then has its strides."""
    return type(t) is Tensor and t.device.type == "cpu" and t.layout == torch.strided and t.stride() == copy.stride()


def _join(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


class Watch:
    """Records the modules, tensors and modes of some modules, to check whether what was derived from them still holds.

    This runs in every forward pass and there may be hundreds of modules, so everything is compared by few calls that
    loop in C. It is to be made before anything is derived: a write of another thread in between is then seen.

    Args:
        modules: what to watch, with all modules inside.
        exact: keep copies of the tensors and compare them too, because writing through ``.data`` leaves no other trace.
            Not on a GPU: each comparison would wait for it, and a CUDA graph could not be captured. There, only what
            PyTorch counts is seen, as without ``exact``.
        derived: the tensors among them that something is derived from; :meth:`verify` compares their values.
    """

    def __init__(self, *modules: nn.Module, exact: bool, derived: Iterable[Tensor] = ()) -> None:
        self.modules = inner(*modules)
        self.hooked, self.training = hooked(*self.modules), any(m.training for m in self.modules)
        self._kinds = [type(m) for m in self.modules]
        # Modes, settings such as the eps of a norm, and a forward put in by hand.
        self._attributes = [m.__dict__ for m in self.modules]
        self._before = [dict(attributes) for attributes in self._attributes]
        contents = [attributes[name] for attributes in self._attributes for name in _CONTENTS]
        self._empty = [some for some in contents if not some]
        self._filled = [some.values() for some in contents if some]
        # References are kept, so that identity is meaningful.
        self._members = list(itertools.chain.from_iterable(self._filled))
        tensors = [t for t in self._members if isinstance(t, Tensor)]
        self._tensors = tensors
        # Moving or casting a module puts other data behind the same tensors. An alias keeps the memory, so that no
        # other data gets its address.
        self._aliases = [t.detach() for t in tensors]
        self._addresses = list(map(Tensor.data_ptr, tensors))
        self._counted = [t for t in tensors if not t.is_inference()]
        self._versions = list(map(_version, self._counted))
        self._copies = Copies([t for t in tensors if exact and not t.is_cuda])
        self._derived = Copies(derived)

    def holds(self) -> bool:
        """Whether nothing was replaced, written to, moved, hooked, set otherwise or switched to training since."""
        try:
            return self._same_modules() and self._same_tensors() and self._copies.same()
        except (RuntimeError, TypeError, ValueError):
            return False  # a new value cannot be compared

    def verify(self) -> bool:
        """Whether no value of ``derived`` was written since, also where PyTorch does not count that.

        :meth:`holds` checks all else, and what is ``exact`` is only checked for being in place.
        """
        try:
            return self._derived.same() and self._copies.in_place()
        except (RuntimeError, TypeError):
            return False  # of another kind, which has no address or no strides

    def _same_modules(self) -> bool:
        if any(self._empty) or self._attributes != self._before or list(map(type, self.modules)) != self._kinds:
            return False
        members = list(itertools.chain.from_iterable(self._filled))
        return len(members) == len(self._members) and all(map(operator.is_, members, self._members))

    def _same_tensors(self) -> bool:
        same = list(map(Tensor.data_ptr, self._tensors)) == self._addresses
        return same and list(map(_version, self._counted)) == self._versions
