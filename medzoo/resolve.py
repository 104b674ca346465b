"""The first step of ``create``: a name, tag, path, folder or Hub repository becomes a model and a record of weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medzoo.contract import Preprocessing, Task, check_task
from medzoo.errors import ConfigError, UnknownModelError, did_you_mean
from medzoo.registry import ModelSpec, describe
from medzoo.weights.config import CONFIG_FILE, read_folder, tuples
from medzoo.weights.hub import read_repo
from medzoo.weights.record import Weights
from medzoo.weights.safetensors import FOREIGN_SUFFIXES

__all__ = ["Pretrained", "Request", "request", "resolve"]

Pretrained = bool | str | os.PathLike[str]
ARGUMENTS = ("pretrained", "labels", "task", "preprocessing", "features_only", "out_indices")


@dataclass(frozen=True)
class Request:
    """The model that :func:`medzoo.create` is to make; ``None`` is what the weights have, else the builder's default.

    Attributes:
        spec: the registered model.
        weights: the record of its weights; ``None`` to start from random numbers.
        options: options of the builder, those that the weights need among them.
        num_classes: number of logits.
        in_chans: channels of the input.
        labels: names of the outputs.
        task: what they mean.
        preprocessing: how files become inputs.
    """

    spec: ModelSpec
    weights: Weights | None
    options: Mapping[str, Any]
    num_classes: int | None = None
    in_chans: int | None = None
    labels: tuple[str, ...] | None = None
    task: Task | None = None
    preprocessing: Preprocessing | None = None


def resolve(model: str, pretrained: Pretrained, options: Mapping[str, Any], **asked: Any) -> Request:
    """Return what is to be made; of a folder and a repository, the config is read.

    Args:
        model: a registered name, ``"local-dir:FOLDER"`` or ``"hf-hub:OWNER/REPO"``.
        pretrained: ``False``, ``True``, a tag or a path, as in :func:`medzoo.create`.
        options: options of the builder.
        **asked: the other attributes of a request.

    Raises:
        UnknownModelError: no model of that name.
        ConfigError: no weights of that tag, or no default ones; a folder with ``pretrained``; or as :func:`request`.
        WeightsUnavailable: the config of a folder or a repository is not available.
    """
    scheme, colon, place = model.partition(":") if isinstance(model, str) else ("", "", "")
    if not colon or scheme not in ("hf-hub", "local-dir"):
        spec = _described(model)
        return request(spec, _weights_of(spec, pretrained), options, **asked)
    if pretrained is not False:
        raise ConfigError(f"{model}: a folder always loads its own weights. Leave pretrained out.")
    if scheme == "local-dir":
        _check_no_run(Path(place))
    saved = read_repo(place) if scheme == "hf-hub" else read_folder(place)
    try:
        spec = describe(saved.model)
    except UnknownModelError as error:
        raise UnknownModelError(f"{model}: {error}") from error
    return request(spec, saved.weights, options, **asked)


def _described(model: str) -> ModelSpec:
    """Return a registered model.

    Raises:
        UnknownModelError: there is none of that name.
        ConfigError: it is the path of a run, of the folder of a model, or of an ONNX file.
    """
    try:
        return describe(model)
    except UnknownModelError:
        if not isinstance(model, (str, os.PathLike)):
            raise
        folder = Path(model)
        _check_no_run(folder)
        if folder.suffix.lower() == ".onnx":
            raise ConfigError(
                f"{folder}: expected a model, got an ONNX file, which onnxruntime runs. Open it with medzoo.open_onnx."
            ) from None
        if (folder / CONFIG_FILE).is_file():
            raise ConfigError(
                f"{folder}: expected a model, got the path of its folder. Give it as local-dir:{folder}."
            ) from None
        raise


def _check_no_run(folder: Path) -> None:
    """Raise ConfigError for the folder of a run, whose model is in a folder of it."""
    if (folder / "run.json").is_file() and not (folder / CONFIG_FILE).is_file():
        raise ConfigError(
            f"{folder}: expected a model, got the folder of a run. Its model is local-dir:{folder / 'model'}."
        )


def _weights_of(spec: ModelSpec, pretrained: Pretrained) -> Weights | None:
    """Return the record that ``pretrained`` means."""
    if pretrained is False or pretrained is None:
        return None
    if isinstance(pretrained, os.PathLike) or (isinstance(pretrained, str) and _is_path(pretrained)):
        return Weights.of_file(Path(pretrained))
    tags = ", ".join(map(repr, spec.weights)) or "none yet"
    if not isinstance(pretrained, (bool, str)):
        raise ConfigError(f"{spec.name}: expected pretrained to be True, a tag or a path, got {pretrained!r}.")
    if pretrained is True:
        record = spec.default_weights
        if record is None:
            raise ConfigError(
                f"{spec.name}: there are no default weights (tags: {tags}). Use pretrained=False to start from random "
                "numbers, or give the path of a safetensors file."
            )
        return record
    if pretrained not in spec.weights:
        raise ConfigError(
            f"{spec.name}: no weights {pretrained!r}.{did_you_mean(pretrained, spec.weights)} "
            f"Tags: {tags}. A path needs a separator or a suffix such as .safetensors."
        )
    return spec.weights[pretrained]


def _is_path(text: str) -> bool:
    separators = [os.sep, os.altsep] if os.altsep else [os.sep]
    return any(s in text for s in separators) or Path(text).suffix.lower() in FOREIGN_SUFFIXES | {".safetensors"}


def request(
    spec: ModelSpec,
    weights: Weights | None,
    options: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    labels: Sequence[str] | None = None,
    task: Task | None = None,
    preprocessing: Preprocessing | None = None,
) -> Request:
    """Return a request, with as many classes as labels and all options that the weights need.

    Raises:
        ConfigError: an unknown option or task, or arguments that contradict each other or the weights.
    """
    who = spec.name
    if labels is not None:
        labels = _names(who, labels, num_classes)
        num_classes = len(labels)
    if task is not None:
        check_task(who, task)
    if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
        got = type(preprocessing).__name__
        raise ConfigError(f"{who}: expected preprocessing to be a medzoo.Preprocessing, got {got}.")
    needed, known = weights.options if weights else {}, spec.options.keys()
    for name in (*needed, *options):
        if name not in known:
            hint = did_you_mean(name, {*known, *ARGUMENTS})
            raise ConfigError(f"{who}: no option {name!r}.{hint} It has {', '.join(sorted(known))}.")
    for name, value in needed.items():
        if name in options and tuples(options[name]) != tuples(value):
            raise ConfigError(
                f"{who}: the weights {weights and weights.tag!r} need {name}={value!r}, got {options[name]!r}. "
                "Leave it out, or use other weights."
            )
    return Request(spec, weights, {**options, **needed}, num_classes, in_chans, labels, task, preprocessing)


def _names(who: str, labels: Sequence[str], num_classes: int | None) -> tuple[str, ...]:
    if isinstance(labels, str):
        raise ConfigError(f"{who}: expected labels to be a list of names, got the text {labels!r}.")
    names = tuple(labels)
    if not names:
        raise ConfigError(f"{who}: expected one label or more, got none. num_classes=0 makes a backbone.")
    if num_classes not in (None, len(names)):
        raise ConfigError(
            f"{who}: got {len(names)} labels and num_classes={num_classes}. Leave num_classes out; labels set it."
        )
    return names
