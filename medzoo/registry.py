"""Which models there are: a dict of :class:`ModelSpec`, filled by :func:`register`.

This module imports no model. The first look-up imports ``medzoo.models``, then the entry points of the group
``medzoo.models``, by which other packages add theirs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from medzoo.contract import Outputs, Preprocessing, Task, check_task
from medzoo.errors import ConfigError, RegistrationError, UnknownModelError, did_you_mean
from medzoo.input_spec import InputSpec
from medzoo.provenance import UNSTATED, IntendedUse
from medzoo.warn import warn
from medzoo.weights.record import Weights

if TYPE_CHECKING:
    from medzoo.classifier import Classifier

__all__ = ["ModelSpec", "describe", "is_wanted", "list_models", "register", "registration_error"]

Builder = Callable[..., "Classifier"]

_MODELS: dict[str, ModelSpec] = {}


@dataclass(frozen=True)
class ModelSpec:
    """What the zoo knows of a model without building it.

    Attributes:
        name: what :func:`medzoo.create` is given.
        builder: the function that builds it from keyword arguments.
        summary: one line.
        input_spec: the input of the model with its default options.
        outputs: the default outputs, untrained.
        preprocessing: how a file is preprocessed unless weights or the user give another way.
        parameters: trainable parameters with the default options.
        source: paper or code it follows.
        citation: how to cite that.
        cam_layer: dotted name of the module whose output activation maps are computed from.
        tiny: builder options for a model small enough for a quick test.
        tiny_size: spatial input size for the tiny model.
        weights: tag to record.
        intended_use: the images it is for unless weights or the user state others; nothing is checked by default.
    """

    name: str
    builder: Builder
    summary: str
    input_spec: InputSpec
    outputs: Outputs
    preprocessing: Preprocessing
    parameters: int
    source: str
    citation: str
    cam_layer: str
    tiny: Mapping[str, Any]
    tiny_size: tuple[int, ...]
    weights: Mapping[str, Weights] = field(default_factory=dict)
    intended_use: IntendedUse = UNSTATED

    @property
    def options(self) -> dict[str, Any]:
        """The builder's options and their defaults."""
        return {name: p.default for name, p in inspect.signature(self.builder).parameters.items()}

    @property
    def qualified_name(self) -> str:
        """Module and name of the builder, which names the package that registered it."""
        return f"{self.builder.__module__}.{self.name}"

    @property
    def default_weights(self) -> Weights | None:
        """The record that ``pretrained=True`` means."""
        return next((record for record in self.weights.values() if record.default), None)


def register(
    *,
    input_spec: InputSpec,
    outputs: Outputs,
    preprocessing: Preprocessing,
    parameters: int,
    summary: str,
    source: str,
    citation: str,
    cam_layer: str,
    tiny: Mapping[str, Any],
    tiny_size: tuple[int, ...],
    weights: tuple[Weights, ...] = (),
    intended_use: IntendedUse = UNSTATED,
) -> Callable[[Builder], Builder]:
    """Register a builder under its own name; the arguments are those of :class:`ModelSpec`.

    The builder returns a :class:`~medzoo.Classifier`; :func:`medzoo.create` gives it its name, options and outputs.

    Raises:
        RegistrationError: the name is taken, or the arguments contradict each other or the builder. The message names
            the builder and lists each fault. What only a built model shows, :func:`medzoo.create` checks the first time
            it builds the model, and :func:`medzoo.check_model` in full.
    """

    def add(builder: Builder) -> Builder:
        spec = ModelSpec(
            name=builder.__name__,
            builder=builder,
            summary=summary,
            input_spec=input_spec,
            outputs=outputs,
            preprocessing=preprocessing,
            parameters=parameters,
            source=source,
            citation=citation,
            cam_layer=cam_layer,
            tiny=MappingProxyType(dict(tiny or {})),
            tiny_size=tiny_size,
            weights=MappingProxyType({record.tag: record for record in weights}),
            intended_use=intended_use,
        )
        faults = [*_option_faults(spec), *_size_faults(spec), *_weights_faults(weights)]
        if spec.name in _MODELS:
            holder = _MODELS[spec.name].builder.__module__
            faults.insert(0, f"a model {spec.name!r} is already registered by {holder}; give this one another name.")
        if faults:
            raise registration_error(spec, faults)
        _MODELS[spec.name] = spec
        return builder

    return add


def registration_error(spec: ModelSpec, faults: Sequence[str]) -> RegistrationError:
    """Return the error that lists what is wrong with a registered model."""
    if len(faults) == 1:
        return RegistrationError(f"{spec.qualified_name}: {faults[0]}")
    lines = "".join(f"\n- {fault}" for fault in faults)
    return RegistrationError(f"{spec.qualified_name}: {len(faults)} faults:{lines}")


def _option_faults(spec: ModelSpec) -> Iterator[str]:
    """Yield what is wrong with the options of the builder, and with arguments that repeat their defaults."""
    options = inspect.signature(spec.builder).parameters
    loose = [p.name for p in options.values() if p.kind is not p.KEYWORD_ONLY or p.default is p.empty]
    if loose:
        yield f"expected keyword-only options with defaults, got {', '.join(loose)}. Put a * before them."
        return
    if not {"num_classes", "in_chans"} <= options.keys():
        yield "expected the options num_classes and in_chans among its own. Add them."
        return
    labels, channels = spec.outputs.labels, spec.input_spec.channels
    count = options["num_classes"].default
    if count != len(labels):
        yield (
            f"outputs: expected as many labels as the builder's default num_classes={count!r}, got {len(labels)}. "
            "Give a label for each logit, or change the default."
        )
    if options["in_chans"].default != channels:
        yield (
            f"input_spec: expected the channels of the builder's default in_chans={options['in_chans'].default!r}, got "
            f"channels={channels!r}. Make the two equal."
        )
    for where, given in (("tiny", spec.tiny), *((f"weights {r.tag!r}", r.options) for r in spec.weights.values())):
        for option in sorted(given.keys() - options.keys()):
            yield (
                f"{where}: the builder has no option {option!r}.{did_you_mean(option, options)} "
                f"It has {', '.join(sorted(options))}."
            )


def _size_faults(spec: ModelSpec) -> Iterator[str]:
    """Yield what is wrong with the numbers and sizes."""
    takes, prepared = spec.input_spec, spec.preprocessing
    if takes.axes not in ("b c h w", "b c d h w"):
        yield f"input_spec: expected axes 'b c h w' or 'b c d h w', got {takes.axes!r}. Write one of the two."
        return
    for name, size in (("input_spec.size", takes.size), ("tiny_size", spec.tiny_size)):
        if any(type(side) is not int or side < 1 for side in size):
            yield f"{name}: expected ints of 1 or more, got {size!r}. Write the sides of an input."
        elif len(size) != takes.dims:
            letters = ", ".join(takes.spatial)
            yield f"{name}: expected ({letters}), as the axes are {takes.axes!r}, got {size!r}. Give as many numbers."
    if prepared.size != takes.size:
        yield (
            f"preprocessing: expected the size of input_spec, {takes.size}, got {prepared.size}. "
            "Write Preprocessing(size=input_spec.size, ...)."
        )
    if not {len(prepared.mean), len(prepared.std)} <= {1, takes.channels}:
        counts = f"{len(prepared.mean)} and {len(prepared.std)}"
        allowed = " or ".join(map(str, sorted({1, takes.channels})))
        yield (
            f"preprocessing: expected {allowed} numbers for each of mean and std, got {counts}. "
            "Give one for all channels, or one for each."
        )
    if not isinstance(spec.intended_use, IntendedUse):
        yield f"intended_use: expected medzoo.IntendedUse(...), got {spec.intended_use!r}. Write it so."
    if type(spec.parameters) is not int or spec.parameters < 0:
        yield f"parameters: expected the number of trainable ones, an int >= 0, got {spec.parameters!r}. Count them."


def _weights_faults(weights: Sequence[Weights]) -> Iterator[str]:
    """Yield what is wrong with the records of weights, among themselves."""
    tags = [record.tag for record in weights]
    for tag in sorted({tag for tag in tags if tags.count(tag) > 1}):
        yield f"weights: expected different tags, got {tag!r} {tags.count(tag)} times. Rename all but one."
    for record in weights:
        if not record.is_listed:
            yield f"weights {record.tag!r}: expected a record with a digest, got the path of a file. State its digest."
    defaults = [record.tag for record in weights if record.default]
    if len(defaults) > 1:
        yield f"weights: expected at most one default, got {', '.join(map(repr, defaults))}. Choose one."


@cache
def _load_models() -> None:
    """Import every module that registers models, once."""
    import_module("medzoo.models")
    for entry in entry_points(group="medzoo.models"):
        before = set(_MODELS)
        try:
            entry.load()
        except Exception as error:
            # Whatever another package's import raises must not hide the zoo's own models.
            for half in set(_MODELS) - before:
                del _MODELS[half]
            warn(f"the models of {entry.value} ({entry.name}) are missing: {error}")


def _models() -> dict[str, ModelSpec]:
    _load_models()
    return _MODELS


def list_models(
    pattern: str = "*",
    *,
    dims: int | None = None,
    task: Task | None = None,
    pretrained: bool = False,
    license: str | None = None,
    trained: bool = False,
) -> list[str]:
    """Return the names of the registered models, sorted.

    Args:
        pattern: shell-style pattern, such as ``"cnn3d_*"``.
        dims: 2 or 3 for models of images or of volumes only.
        task: only models whose default task this is.
        pretrained: only models that have weights.
        license: only models that have weights under a licence of this name or pattern, such as ``"apache-*"``;
            upper and lower case are alike.
        trained: only models that have weights with trained outputs, not of an encoder alone.

    Raises:
        ConfigError: a number of axes or a task that there is not.

    >>> import medzoo
    >>> medzoo.list_models("cnn3d_*")
    ['cnn3d_base', 'cnn3d_small']
    """
    if dims not in (None, 2, 3):
        raise ConfigError(f"list_models: expected dims 2 or 3, got {dims!r}.")
    if task is not None:
        check_task("list_models", task)
    return sorted(
        name
        for name, spec in _models().items()
        if fnmatchcase(name, pattern)
        and dims in (None, spec.input_spec.dims)
        and task in (None, spec.outputs.task)
        and (
            not (pretrained or license or trained) or any(is_wanted(r, license, trained) for r in spec.weights.values())
        )
    )


def is_wanted(record: Weights, license: str | None, trained: bool) -> bool:
    """Whether weights are under a licence, and bring trained outputs."""
    under = license is None or fnmatchcase(record.license.lower(), license.lower())
    return under and (record.part == "model" or not trained)


def describe(name: str) -> ModelSpec:
    """Return what the zoo knows of a model; its ``weights`` maps tags to records.

    Raises:
        UnknownModelError: there is no model of that name.
    """
    models = _models()
    if not isinstance(name, str) or name not in models:
        raise UnknownModelError(
            f"no model {name!r}.{did_you_mean(str(name), models)} medzoo.list_models() names all {len(models)}."
        )
    return models[name]
