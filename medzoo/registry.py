"""Which models there are: a dict of :class:`ModelSpec`, filled by :func:`register`.

This module imports no model. The first look-up imports ``medzoo.models``, then the entry points of the group
``medzoo.models``, by which other packages add theirs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from medzoo.contract import InputSpec, Outputs, Preprocessing, Task, check_task
from medzoo.errors import ConfigError, UnknownModelError, did_you_mean
from medzoo.warn import warn
from medzoo.weights.record import Weights

if TYPE_CHECKING:
    from medzoo.classifier import Classifier

__all__ = ["ModelSpec", "describe", "is_wanted", "list_models", "register"]

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

    @property
    def options(self) -> dict[str, Any]:
        """The builder's options and their defaults."""
        return {name: p.default for name, p in inspect.signature(self.builder).parameters.items()}

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
) -> Callable[[Builder], Builder]:
    """Register a builder under its own name; the arguments are those of :class:`ModelSpec`.

    The builder returns a :class:`~medzoo.Classifier`; :func:`medzoo.create` gives it its name, options and outputs.

    Raises:
        ConfigError: the name is taken, a tag is given twice, more than one record is the default, or the builder's
            options are not keyword-only with defaults, ``num_classes`` and ``in_chans`` among them.
    """

    def add(builder: Builder) -> Builder:
        name = builder.__name__
        if name in _MODELS:
            raise ConfigError(
                f"a model {name!r} is already registered by {_MODELS[name].builder.__module__}; "
                f"give that of {builder.__module__} another name."
            )
        options = inspect.signature(builder).parameters
        loose = [p.name for p in options.values() if p.kind is not p.KEYWORD_ONLY or p.default is p.empty]
        if loose:
            raise ConfigError(
                f"{name}: expected keyword-only options with defaults, got {', '.join(loose)}. Put a * before them."
            )
        if not {"num_classes", "in_chans"} <= options.keys():
            raise ConfigError(f"{name}: expected the options num_classes and in_chans among its own. Add them.")
        by_tag = {record.tag: record for record in weights}
        if len(by_tag) != len(weights) or sum(record.default for record in weights) > 1:
            raise ConfigError(f"{name}: expected different tags and at most one default among its weights.")
        _MODELS[name] = ModelSpec(
            name=name,
            builder=builder,
            summary=summary,
            input_spec=input_spec,
            outputs=outputs,
            preprocessing=preprocessing,
            parameters=parameters,
            source=source,
            citation=citation,
            cam_layer=cam_layer,
            tiny=MappingProxyType(dict(tiny)),
            tiny_size=tiny_size,
            weights=MappingProxyType(by_tag),
        )
        return builder

    return add


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
