"""``check_model``: what the zoo's own test suite demands of every model, as one call for the tests of a plugin.

Axes: b batch, c channels, s the spatial axes (h w or d h w), n classes.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medzoo.build_check import build_faults, without_build_check
from medzoo.classifier import Classifier
from medzoo.factory import create
from medzoo.registry import ModelSpec, describe, registration_error

__all__ = ["ModelReport", "check_model"]


@dataclass(frozen=True)
class ModelReport:
    """What :func:`check_model` found of a model without faults.

    Attributes:
        name: the registered name.
        builder: module and name of its builder.
        parameters: trainable parameters with the default options.
        maps: channels and stride of each map of the tiny form.
        cam_map: shape ``c *s`` of the output of ``cam_layer``, at the tiny size.
        checks: what was checked.
    """

    name: str
    builder: str
    parameters: int
    maps: tuple[tuple[int, int], ...]
    cam_map: tuple[int, ...]
    checks: tuple[str, ...]

    def __str__(self) -> str:
        """Return a line for each of the facts."""
        maps = ", ".join(f"{channels} channels at stride {stride}" for channels, stride in self.maps)
        return (
            f"{self.name}, built by {self.builder}: {self.parameters:,} parameters\n"
            f"maps of the tiny form: {maps}\n"
            f"output of cam_layer: {self.cam_map}\n"
            f"passed: {', '.join(self.checks)}"
        )


@dataclass
class _Subject:
    """The model under test: its registration, its tiny form in eval mode, and a folder for files."""

    spec: ModelSpec
    folder: Path
    model: Any = field(init=False)  # a Classifier; Any, because torch types its modules so
    cam_map: tuple[int, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        self.model = self.tiny().eval()

    def tiny(self, **options: Any) -> Any:
        """Create the tiny form."""
        return create(self.spec.name, **(dict(self.spec.tiny) | options))

    def batch(self, n: int = 2, size: Sequence[int] = (), channels: int = 0) -> Tensor:
        """Return standard normal images, ``b c *s``."""
        return torch.randn(n, channels or self.spec.input_spec.channels, *(size or self.spec.tiny_size))


def check_model(name: str) -> ModelReport:
    """Check all that the zoo demands of a registered model, on random images; takes seconds.

    The number of parameters is that of the default form, which is built on the meta device. All else is checked with
    the tiny form, on the default device: the axes and finiteness of the logits; bit-equal eval passes; independent
    rows of a batch; a gradient for every parameter; ``cam_layer``, ``feature_info`` and the head against what really
    runs; ``num_classes``, ``in_chans`` and ``features_only``; every kind of size that ``input_spec`` allows; and
    saving and loading. The random state of torch is restored afterwards.

    Args:
        name: a registered name.

    Returns:
        What was found and checked; printing it shows a summary.

    Raises:
        UnknownModelError: no model of that name.
        RegistrationError: lists each fault: what was expected, what was found, and what to do. The first faults may be
            the cause of later ones.

    >>> import medzoo
    >>> medzoo.check_model("cnn3d_small").maps
    ((4, 3), (8, 9), (8, 27))
    """
    spec = describe(name)
    with (
        without_build_check(),
        TemporaryDirectory(prefix="medzoo-") as folder,
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        torch.manual_seed(0)
        try:
            with torch.device("meta"):
                built = spec.builder(**spec.options)
        except Exception as error:
            fault = _raised("the builder with its default options", error) + ". Change the builder."
            raise registration_error(spec, [fault]) from error
        faults = list(build_faults(spec, built, spec.options))
        if not isinstance(built, Classifier):
            raise registration_error(spec, faults)
        try:
            subject = _Subject(spec, Path(folder))
        except Exception as error:
            faults.append(_raised("the tiny form", error) + ". Change tiny, or the builder.")
            raise registration_error(spec, faults) from error
        # A fault of the default form is often one of the tiny form too.
        faults += [f for f in build_faults(spec, subject.model, subject.model.options) if f not in faults]
        cause = _run_checks(subject, faults)
    if faults:
        raise registration_error(spec, faults) from cause
    info = subject.model.feature_info
    return ModelReport(
        name=name,
        builder=spec.qualified_name,
        parameters=spec.parameters,
        maps=tuple(zip(info.channels(), info.reduction(), strict=True)),
        cam_map=subject.cam_map,
        checks=("registration", *CHECKS),
    )


def _run_checks(subject: _Subject, faults: list[str]) -> Exception | None:
    """Append the faults that each check finds; return the first error that a check did not expect."""
    cause: Exception | None = None
    for topic, check in CHECKS.items():
        try:
            faults.extend(f"{topic}: {fault}" for fault in check(subject))
        except Exception as error:
            # The model's own code runs here: whatever it raises must not hide the other faults.
            faults.append(_raised(topic, error))
            cause = cause or error
    return cause


def _raised(topic: str, error: Exception) -> str:
    return f"{topic}: expected no error, got {_summary(error)}"


def _summary(error: Exception) -> str:
    """Return the kind of an error and the first line of its message, without a final period."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"


def _defaults(s: _Subject) -> Iterator[str]:
    with torch.device("meta"):
        model = create(s.spec.name)
    for what in ("outputs", "preprocessing", "options"):
        got, expected = getattr(model, what), getattr(s.spec, what)
        if got != expected:
            yield f"expected {what} to be {expected!r}, as registered, got {got!r}. Leave them to create."


def _logits(s: _Subject) -> Iterator[str]:
    logits, expected = s.model(s.batch(3)), (3, len(s.model.outputs.labels))
    if tuple(logits.shape) != expected:
        yield f"expected {expected} for a batch of 3, got {tuple(logits.shape)}. Let Head make the logits."
    if not logits.isfinite().all():
        yield "expected finite values, got NaN or infinity for standard normal images. Check the initial weights."


def _eval_passes(s: _Subject) -> Iterator[str]:
    x, state = s.batch(), {key: tensor.clone() for key, tensor in s.model.state_dict().items()}
    before = x.clone()
    first, second = s.model(x), s.model(x)
    if not torch.equal(first, second):
        apart = (first - second).abs().max().item()
        yield (
            f"expected two passes to be bit-equal, got a difference of {apart:.3g}. "
            "Draw random numbers in training mode only, and keep no state between passes."
        )
    if not torch.equal(x, before):
        yield "expected the input unchanged, got other values in it. Use no in-place operation on the input."
    changed = [key for key, tensor in s.model.state_dict().items() if not torch.equal(tensor, state[key])]
    if changed:
        yield f"expected an unchanged state dict, got other values of {', '.join(changed)}. Update them in training."


def _rows(s: _Subject) -> Iterator[str]:
    x = s.batch(3)
    together, alone = s.model(x), torch.cat([s.model(x[i : i + 1]) for i in range(3)])
    if not torch.allclose(alone, together, rtol=1e-5, atol=1e-5):
        apart = (alone - together).abs().max().item()
        yield (
            f"expected the same logits for an image alone and in a batch, got a difference of {apart:.3g}. "
            "Normalise over no axis of the batch in eval mode."
        )


def _gradients(s: _Subject) -> Iterator[str]:
    model = copy.deepcopy(s.model).train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # it may drop all that a small layer passes on
    with torch.no_grad():
        for parameter in model.parameters():
            # timm starts the last norm of each residual branch at zero, which stops the gradient of the branch.
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model(s.batch()).square().sum().backward()
    for key, parameter in model.named_parameters():
        if parameter.grad is None or not parameter.grad.any():
            got = "none" if parameter.grad is None else "zeros"
            yield f"expected one for {key}, got {got}. Use the parameter in forward, or remove it."
        elif not parameter.grad.isfinite().all():
            yield f"expected finite values for {key}, got NaN or infinity. Look for a root or division at zero."


def _state_dict(s: _Subject) -> Iterator[str]:
    state = s.model.state_dict()
    roots = {key.partition(".")[0] for key in state}
    if roots != {"encoder", "head"}:
        yield f"expected the roots encoder and head, got {', '.join(sorted(roots))}. Move the rest into the encoder."
    missing = {"head.classifier.weight", "head.classifier.bias"} - state.keys()
    if missing:
        yield f"expected a weight and a bias of head.classifier, got no {', '.join(sorted(missing))}. Use Head's."
    homes: dict[int, str] = {}
    for key, tensor in state.items():
        first = homes.setdefault(tensor.untyped_storage().data_ptr(), key) if tensor.numel() else key
        if first != key:
            yield (
                f"expected tensors that share no memory, got {first} and {key}. "
                "Register a module under one name; safetensors refuses such a state dict."
            )


def _safetensors(s: _Subject) -> Iterator[str]:
    x, path, state = s.batch(), s.folder / "model.safetensors", s.model.state_dict()
    save_file(state, path)
    again = s.tiny(pretrained=path)
    report = again.load_report
    if report.new or len(report.loaded) != len(state):
        yield f"expected every tensor to be loaded, got new ones: {', '.join(report.new) or 'none'}. {report}"
    if again.training or not torch.equal(again(x), s.model(x)):
        yield (
            "expected bit-equal logits after loading, got others. Keep what forward reads in parameters and buffers, "
            "and compute what is not stored in rebuild_buffers(device)."
        )


def _save_pretrained(s: _Subject) -> Iterator[str]:
    x = s.batch()
    again = create(f"local-dir:{s.model.save_pretrained(s.folder / 'saved')}")
    for what in ("options", "input_spec", "outputs", "preprocessing"):
        got, expected = getattr(again, what), getattr(s.model, what)
        if got != expected:
            yield f"expected {what} to be loaded as saved, {expected!r}, got {got!r}. Use plain values and tuples."
    if not torch.equal(again(x), s.model(x)):
        yield "expected bit-equal logits from the folder, got others. Let the options alone decide what is built."


def _head(s: _Subject) -> Iterator[str]:
    x = s.batch()
    last = s.model.forward_features(x)
    if last.shape[:2] != (2, s.model.num_features) or last.ndim != x.ndim:
        axes = "b c h w" if x.ndim == 4 else "b c d h w"
        yield (
            f"expected the encoder to return {axes!r} with b=2 and c={s.model.num_features}, the last num_chs of "
            f"feature_info, got {tuple(last.shape)}. Return the last map, neither pooled nor flattened."
        )
        return
    layers = [key for key, module in s.model.named_modules() if isinstance(module, nn.Linear)]
    if not layers or layers[-1] != "head.classifier":
        yield f"expected head.classifier to be the last linear layer, got {layers[-1:]}. Let Head make the last layer."
    pre = s.model.forward_head(last, pre_logits=True)
    if not torch.equal(s.model.get_classifier()(pre), s.model(x)):
        yield (
            "expected the logits to be head.classifier of forward_head(forward_features(x), pre_logits=True), got "
            "others. Override no method of Classifier."
        )


def _feature_info(s: _Subject) -> Iterator[str]:
    """Compare the channels, strides and modules of all maps with those that are stated."""
    model, x, info = s.model, s.batch(), s.model.feature_info
    outputs: dict[str, list[Any]] = {name: [] for name in info.module_name()}
    hooks = [_record(model.encoder.get_submodule(name), outputs[name]) for name in outputs]
    last, maps = model.forward_intermediates(x)
    for hook in hooks:
        hook.remove()
    if len(maps) != len(info):
        yield f"expected {len(info)} maps from forward_intermediates, got {len(maps)}. State each in feature_info."
        return
    if not torch.equal(last, model.forward_features(x)) or not _close(maps[-1], last):
        yield "expected the last map to be the output of the encoder, got another. Return the same tensor from both."
    for i, (stated, found) in enumerate(zip(info, maps, strict=True)):
        who, got = f"map {i} ({stated['module']})", tuple(found.shape)
        if found.ndim != x.ndim or found.shape[1] != stated["num_chs"]:
            yield f"expected {who} to have num_chs={stated['num_chs']} on axis 1, got {got}. Correct its num_chs."
        shapes = [tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__ for y in outputs[stated["module"]]]
        if shapes != [got]:
            yield (
                f"expected the module of {who} to run once and return {got}, got {shapes or 'no call'}. "
                "Name the module whose output is the map."
            )
    yield from _stride_faults(s, maps)


def _stride_faults(s: _Subject, maps: list[Tensor]) -> Iterator[str]:
    """Lengthen one axis of the input at a time: a map of stride r then grows by a r-th of it, whatever its padding."""
    info, backbone = s.model.feature_info, s.tiny(features_only=True).eval()
    more = 2 * math.lcm(s.model.input_spec.multiple, *info.reduction())
    for axis, letter in enumerate(s.model.input_spec.spatial):
        size = list(s.spec.tiny_size)
        size[axis] += more
        with torch.no_grad():
            longer = backbone(s.batch(1, size))
        for i, (stated, small, large) in enumerate(zip(info, maps, longer, strict=True)):
            growth, stride = large.shape[2 + axis] - small.shape[2 + axis], stated["reduction"]
            if growth * stride != more:
                yield (
                    f"expected map {i} ({stated['module']}) with reduction={stride} to grow by {more // stride} along "
                    f"{letter} for {more} more in the input, got {growth}. Correct its reduction."
                )


def _cam_layer(s: _Subject) -> Iterator[str]:
    if s.spec.cam_layer not in dict(s.model.named_modules()):
        return  # reported with the registration
    x, outputs = s.batch(), list[Any]()
    hook = _record(s.model.get_submodule(s.spec.cam_layer), outputs)
    s.model(x)
    hook.remove()
    if len(outputs) != 1:
        yield f"expected {s.spec.cam_layer} to run once in a forward pass, got {len(outputs)} times. Name another."
        return
    got = tuple(outputs[0].shape) if isinstance(outputs[0], Tensor) else type(outputs[0]).__name__
    if isinstance(got, str) or len(got) != x.ndim or got[0] != 2:
        axes = "b c h w" if x.ndim == 4 else "b c d h w"
        yield f"expected {s.spec.cam_layer} to return a map {axes!r} with b=2, got {got}. Name a layer that does."
        return
    s.cam_map = got[1:]


def _num_classes(s: _Subject) -> Iterator[str]:
    x, backbone = s.batch(), s.tiny(num_classes=0).eval()
    features = backbone(x)
    expected = backbone.forward_features(x).flatten(2).mean(-1)
    if features.shape != expected.shape or not _close(features, expected):
        yield (
            f"expected num_classes=0 to return the average of the last map, {tuple(expected.shape)}, got "
            f"{tuple(features.shape)}. Pass num_classes to Head."
        )
    if any(key.startswith("head.") for key in backbone.state_dict()):
        yield "expected no tensor under head. for num_classes=0, got some. Pass num_classes to Head."
    shape = tuple(s.tiny(num_classes=5).eval()(x).shape)
    if shape != (2, 5):
        yield f"expected (2, 5) for num_classes=5, got {shape}. Pass num_classes to Head."


def _in_chans(s: _Subject) -> Iterator[str]:
    other = 3 if s.spec.input_spec.channels == 2 else 2
    model = s.tiny(in_chans=other).eval()
    logits = model(s.batch(channels=other))
    if model.input_spec.channels != other or tuple(logits.shape) != (2, model.num_classes):
        yield (
            f"expected in_chans={other} to build a model of {other} channels, got {model.input_spec}. "
            "Write Classifier(..., input_spec=input_spec.with_channels(in_chans))."
        )


def _features_only(s: _Subject) -> Iterator[str]:
    x, chosen = s.batch(), s.tiny(features_only=True, out_indices=[0, -1]).eval()
    chosen.encoder.load_state_dict(s.model.encoder.state_dict())
    expected = s.model.forward_intermediates(x, [0, -1], intermediates_only=True)
    if not all(torch.equal(a, b) for a, b in zip(chosen(x), expected, strict=True)):
        yield "expected the maps of the classifier, got others. Let num_classes change nothing in the encoder."
    if {key.partition(".")[0] for key in chosen.state_dict()} != {"encoder"}:
        yield f"expected the root encoder alone, got {sorted(chosen.state_dict())}. Leave the head to Classifier."


def _sizes(s: _Subject) -> Iterator[str]:
    """Run the smallest size, the smallest that a batch of one trains at, and one that is larger on each axis."""
    takes, backbone = s.model.input_spec, s.tiny(num_classes=0)
    smallest = takes.nearest(takes.minimum)[1]
    lone = (takes.nearest(max(smallest, takes.lone_minimum))[1], *[smallest] * (takes.dims - 1))
    larger = tuple(takes.nearest(2 * max(side, takes.minimum))[1] for side in s.spec.tiny_size)
    for training, size, advice in (
        (False, (smallest,) * takes.dims, "Raise minimum in input_spec"),
        (False, larger, "Take any size in the encoder, or state multiple in input_spec"),
        (True, lone, "Raise lone_minimum in input_spec"),
    ):
        try:
            features = backbone.train(training)(s.batch(1, size))
        except Exception as error:
            how = "train on one image" if training else "take an image"
            yield f"expected the encoder to {how} of size {size}, got {_summary(error)}. {advice}."
            continue
        if features.shape != (1, backbone.num_features) or not features.isfinite().all():
            yield f"expected finite features for an image of size {size}, got {tuple(features.shape)}. {advice}."


def _copies(s: _Subject) -> Iterator[str]:
    x = s.batch()
    expected = s.model(x)
    pickled = pickle.loads(pickle.dumps(s.model))
    for what, model in (("a deep copy", copy.deepcopy(s.model)), ("a pickled copy", pickled)):
        if not torch.equal(model(x), expected):
            yield f"expected {what} to give the same logits, got others. Keep no state outside of the module."


def _empty_batch(s: _Subject) -> Iterator[str]:
    got = tuple(s.model(s.batch(0)).shape)
    if got != (0, s.model.num_classes):
        yield f"expected (0, {s.model.num_classes}) for no image, got {got}. Derive no size from the batch."


def _bfloat16(s: _Subject) -> Iterator[str]:
    got = copy.deepcopy(s.model).bfloat16()(s.batch().bfloat16())
    if got.dtype != torch.bfloat16 or not bool(got.isfinite().all()):
        yield f"expected finite logits of torch.bfloat16, got {got.dtype}. Make tensors with the type of the input."


def _training_tools(s: _Subject) -> Iterator[str]:
    """Use what training calls: gradient checkpointing and parameter groups."""
    x, model = s.batch(), copy.deepcopy(s.model)
    expected = s.model(x)
    model.set_grad_checkpointing()
    if not _close(model(x), expected):
        yield "expected the same logits with set_grad_checkpointing(), got others. Recompute the same stages."
    grouped = [id(p) for group in model.param_groups(lr=1.0, layer_decay=0.5) for p in group["params"]]
    if sorted(grouped) != sorted(id(p) for p in model.parameters()):
        yield "expected param_groups to hold every parameter once, got others. Freeze no parameter in the builder."


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two float32 tensors agree as well as torch.testing demands."""
    return torch.allclose(a, b, rtol=1.3e-6, atol=1e-5)


def _record(module: nn.Module, outputs: list[Any]) -> Any:
    """Append to ``outputs`` what ``module`` returns in each call; returns the handle of the hook."""
    return module.register_forward_hook(lambda _module, _args, output: outputs.append(output))


CHECKS: dict[str, Callable[[_Subject], Iterator[str]]] = {
    "defaults": _defaults,
    "logits": _logits,
    "eval mode": _eval_passes,
    "rows of a batch": _rows,
    "gradients": _gradients,
    "state dict": _state_dict,
    "safetensors": _safetensors,
    "save_pretrained": _save_pretrained,
    "head": _head,
    "feature_info": _feature_info,
    "cam_layer": _cam_layer,
    "num_classes": _num_classes,
    "in_chans": _in_chans,
    "features_only": _features_only,
    "sizes": _sizes,
    "copies": _copies,
    "empty batch": _empty_batch,
    "bfloat16": _bfloat16,
    "training": _training_tools,
}
