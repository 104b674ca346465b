"""Whether a built model is what its registration states, as far as that shows without a forward pass.

``create`` checks every registered model the first time it builds it in a process, which takes a millisecond or less.
:func:`medzoo.check_model` checks the same and runs the model too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from medzoo.classifier import Classifier
from medzoo.errors import did_you_mean
from medzoo.nn.head import Head
from medzoo.registry import ModelSpec, registration_error

__all__ = ["build_faults", "check_build", "without_build_check"]

FEATURE_KEYS = ("num_chs", "reduction", "module")

# The registrations that passed, by name and whether with default options, which alone show the number of parameters.
_PASSED: dict[tuple[str, bool], ModelSpec] = {}
_DISABLED: ContextVar[bool] = ContextVar("medzoo_build_check_disabled", default=False)


def check_build(spec: ModelSpec, model: object, options: Mapping[str, Any]) -> None:
    """Check a model that the builder of ``spec`` returned, unless one of this registration has passed before.

    Args:
        spec: what was registered.
        model: what its builder returned.
        options: all options that the builder was given.

    Raises:
        RegistrationError: the model is not what was registered; lists each fault, and what to write instead.
    """
    if _PASSED.get((spec.name, True)) is spec or _DISABLED.get():
        return
    default = _are_default(spec, options)
    if not default and _PASSED.get((spec.name, False)) is spec:
        return
    faults = list(build_faults(spec, model, options))
    if faults:
        raise registration_error(spec, faults)
    _PASSED[spec.name, default] = spec


@contextmanager
def without_build_check() -> Iterator[None]:
    """Let ``create`` build a model that is not as registered, in this context, to find its other faults."""
    token = _DISABLED.set(True)
    try:
        yield
    finally:
        _DISABLED.reset(token)


def build_faults(spec: ModelSpec, model: object, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield how a built model differs from its registration; the arguments are those of :func:`check_build`."""
    if not isinstance(model, Classifier):
        yield (
            f"the builder: expected a medzoo.Classifier, got {type(model).__name__}. "
            "Return Classifier(encoder, head, input_spec=...)."
        )
        return
    maps: Any = getattr(model.encoder, "feature_info", None)
    fault = _feature_info_fault(model.encoder, maps)
    if fault:
        yield fault
    else:
        yield from _width_faults(model, maps[-1]["num_chs"])
    yield from _option_faults(model, options)
    if not _has_module(model, spec.cam_layer):
        yield (
            f"cam_layer: expected the name of a module, got {spec.cam_layer!r}."
            f"{did_you_mean(str(spec.cam_layer), dict(model.named_modules()))} model.named_modules() lists them."
        )
    own = [*model._parameters, *model._buffers, *model._modules]
    other = sorted(set(own) - {"encoder", "head"})
    if other:
        yield (
            f"state dict: expected the roots encoder. and head. alone, got {', '.join(other)} too. "
            "Move them into the encoder."
        )
    if _are_default(spec, options):
        yield from _default_faults(spec, model)


def _are_default(spec: ModelSpec, options: Mapping[str, Any]) -> bool:
    """Whether all options are the builder's own; an array, which cannot be compared, is not."""
    return all(options[k] is v or (type(options[k]) is type(v) and options[k] == v) for k, v in spec.options.items())


def _feature_info_fault(encoder: nn.Module, maps: Any) -> str:
    """Return what is wrong with the form of ``feature_info``, or an empty text."""
    known = bool(maps) and isinstance(maps, (list, tuple))
    known = known and all(isinstance(info, Mapping) and info.keys() >= {*FEATURE_KEYS} for info in maps)
    if not known:
        return (
            f"encoder.feature_info: expected a dict with {', '.join(FEATURE_KEYS)} for each map, got {maps!r}. "
            "Append one for each stage in the encoder's __init__."
        )
    reductions = [info["reduction"] for info in maps]
    if reductions != sorted(reductions):
        return (
            f"encoder.feature_info: expected reduction to be the stride to the input, which never shrinks, got "
            f"{reductions}. Multiply the strides of the stages so far."
        )
    for i, info in enumerate(maps):
        if not _has_module(encoder, info["module"]):
            near = did_you_mean(str(info["module"]), dict(encoder.named_modules()))
            return (
                f"encoder.feature_info[{i}]: expected module to name a module of the encoder, got {info['module']!r}."
                f"{near} encoder.named_modules() lists them."
            )
    return ""


def _has_module(root: nn.Module, name: object) -> bool:
    """Whether ``name`` is the dotted name of a module inside of ``root``."""
    try:
        return isinstance(name, str) and name != "" and isinstance(root.get_submodule(name), nn.Module)
    except AttributeError:
        return False


def _width_faults(model: Classifier, width: Any) -> Iterator[str]:
    """Yield where the encoder or the head states another number of channels than the last of ``feature_info``."""
    stated = getattr(model.encoder, "num_features", width)
    if stated != width:
        yield (
            f"encoder.num_features: expected {width}, the num_chs of the last map in feature_info, got {stated}. "
            "Make the two equal."
        )
    if isinstance(model.head, Head) and model.head.channels != width:
        yield (
            f"head: expected Head({width}, ...), the channels of the encoder's last map, got "
            f"Head({model.head.channels}, ...). Write Head(encoder.num_features, num_classes)."
        )


def _option_faults(model: Classifier, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield which of ``num_classes`` and ``in_chans`` the builder does not follow."""
    count, channels = options["num_classes"], options["in_chans"]
    if not isinstance(model.head, Head):
        got = type(model.head).__name__
        yield f"head: expected a medzoo.nn.Head, got {got}. Return Classifier(encoder, Head(...), input_spec=...)."
    elif model.head.num_classes != count:
        yield (
            f"head.classifier: expected {count} outputs for num_classes={count}, got {model.head.num_classes}. "
            "Pass num_classes to Head."
        )
    if model.input_spec.channels != channels:
        yield (
            f"input_spec: expected {channels} channels for in_chans={channels}, got {model.input_spec.channels}. "
            "Write Classifier(..., input_spec=input_spec.with_channels(in_chans))."
        )


def _default_faults(spec: ModelSpec, model: Classifier) -> Iterator[str]:
    """Yield what is wrong of what was registered for the default options."""
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        yield "parameters: expected a size for each, got a lazy module, which takes it from its first input. Give it."
        return
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if count != spec.parameters:
        yield (
            f"parameters: expected {spec.parameters}, as registered, got {count}. "
            f"If the model is as intended, register parameters={count:_}."
        )
    if model.input_spec != spec.input_spec:
        yield (
            f"input_spec: expected {spec.input_spec!r}, as registered, got {model.input_spec!r}. Register what the "
            "builder passes to Classifier; exact is True where the head flattens."
        )
