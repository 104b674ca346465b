"""``create``: from a name to a model with its weights, in one line.

1. *resolve*: a name, tag, path, folder or Hub repository becomes a registered model and one record of weights;
2. *obtain*: the bytes of the record, verified, become tensors by medzoo's names;
3. *build*: the builder makes the model, on the meta device if tensors follow;
4. *load*: the model gets its tensors, strictly;
5. *describe*: outputs, preprocessing and the load report are set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor

from medzoo.classifier import Classifier
from medzoo.contract import Preprocessing, Task, check_task
from medzoo.description import choose_outputs, choose_preprocessing, report_load
from medzoo.errors import ConfigError, WeightsMismatch, check_int, did_you_mean
from medzoo.features import FeatureExtractor
from medzoo.registry import ModelSpec
from medzoo.resolve import resolve
from medzoo.weights.load import CLASSIFIER, Loaded, input_kernel, load_tensors, stored_channels
from medzoo.weights.obtain import Obtained, obtain
from medzoo.weights.record import Weights

__all__ = ["Asked", "assemble", "create", "merge_options"]

ARGUMENTS = ("pretrained", "labels", "task", "preprocessing", "features_only", "out_indices")


@overload
def create(
    model: str,
    *,
    pretrained: bool | str | os.PathLike[str] = ...,
    num_classes: int | None = ...,
    in_chans: int | None = ...,
    labels: Sequence[str] | None = ...,
    task: Task | None = ...,
    preprocessing: Preprocessing | None = ...,
    features_only: Literal[False] = ...,
    out_indices: None = ...,
    **options: Any,
) -> Classifier: ...
@overload
def create(
    model: str,
    *,
    pretrained: bool | str | os.PathLike[str] = ...,
    in_chans: int | None = ...,
    preprocessing: Preprocessing | None = ...,
    features_only: Literal[True],
    out_indices: int | Sequence[int] | None = ...,
    **options: Any,
) -> FeatureExtractor: ...
def create(
    model: str,
    *,
    pretrained: bool | str | os.PathLike[str] = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    labels: Sequence[str] | None = None,
    task: Task | None = None,
    preprocessing: Preprocessing | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **options: Any,
) -> Classifier | FeatureExtractor:
    """Build a model, in eval mode when it has weights and in training mode when it starts from random numbers.

    Args:
        model: a registered name; :func:`medzoo.list_models` lists them. Or ``"local-dir:FOLDER"``, a folder of
            :meth:`Classifier.save_pretrained`, or ``"hf-hub:OWNER/REPO@REVISION"``, such a folder on the Hub; these two
            always load their weights.
        pretrained: ``True`` for the default weights, a tag, or the path of a safetensors file of this model.
        num_classes: number of logits; 0 drops the head and returns averaged features. ``None`` takes the weights', else
            the builder's.
        in_chans: channels of the input; ``None`` takes the weights', else the builder's. Another number than the
            weights' changes the first kernel: summed for one channel, else repeated and scaled.
        labels: names of the outputs; sets ``num_classes``.
        task: ``"binary"``, ``"multilabel"`` or ``"multiclass"``.
        preprocessing: how files become inputs, instead of the weights' or the builder's way.
        features_only: return the encoder's maps as a list instead of logits.
        out_indices: which maps, with ``features_only``.
        **options: options of the builder; ``medzoo.describe(model).options`` lists them.

    Returns:
        A :class:`~medzoo.classifier.Classifier`, or with ``features_only`` a
        :class:`~medzoo.features.FeatureExtractor`.

    Raises:
        UnknownModelError: no model of that name.
        ConfigError: an unknown tag or option, or arguments that contradict each other or the weights.
        WeightsUnavailable, WeightsCorrupt, UnsafeWeights: the weight file is not available or must not be used.
        WeightsMismatch: the weights do not fit the model.

    >>> import medzoo, torch
    >>> model = medzoo.create("cnn3d_small", size=32, num_classes=2).eval()
    >>> tuple(model(torch.zeros(1, 1, 32, 32, 32)).shape)
    (1, 2)
    """
    spec, weights = resolve(model, pretrained)
    asked = Asked(num_classes, in_chans, labels, task, preprocessing).checked(spec.name)
    if out_indices is not None and not features_only:
        raise ConfigError(f"{spec.name}: out_indices chooses among the maps that features_only=True returns.")
    if features_only and (asked.num_classes is not None or task is not None):
        raise ConfigError(f"{spec.name}: features_only=True returns maps; num_classes, labels and task do not apply.")
    if features_only:
        asked = replace(asked, num_classes=0)
    chosen = merge_options(spec, weights, options)
    obtained = obtain(weights, weights.title(spec.name)) if weights else None
    built = assemble(spec, weights, obtained, asked, chosen)
    return FeatureExtractor(built, out_indices).train(built.training) if features_only else built


@dataclass(frozen=True)
class Asked:
    """What the user asks of a model; ``None`` for what the weights have, else the builder's. See :func:`create`."""

    num_classes: int | None = None
    in_chans: int | None = None
    labels: Sequence[str] | None = None
    task: Task | None = None
    preprocessing: Preprocessing | None = None

    def checked(self, who: str) -> Asked:
        """Return the same with as many classes as labels, after checking that the parts go together."""
        if self.task is not None:
            check_task(who, self.task)
        if self.preprocessing is not None and not isinstance(self.preprocessing, Preprocessing):
            got = type(self.preprocessing).__name__
            raise ConfigError(f"{who}: expected preprocessing to be a medzoo.Preprocessing, got {got}.")
        if self.labels is None:
            return self
        if isinstance(self.labels, str):
            raise ConfigError(f"{who}: expected labels to be a list of names, got the text {self.labels!r}.")
        names = tuple(self.labels)
        if not names:
            raise ConfigError(f"{who}: expected one label or more, got none. num_classes=0 makes a backbone.")
        if self.num_classes not in (None, len(names)):
            raise ConfigError(
                f"{who}: got {len(names)} labels and num_classes={self.num_classes}. Leave num_classes out; labels set "
                "it."
            )
        return replace(self, labels=names, num_classes=len(names))


def merge_options(spec: ModelSpec, weights: Weights | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Add what the weights need; an unknown option, or one that contradicts them, is an error."""
    needed, known = weights.options if weights else {}, spec.options.keys()
    for option in (*needed, *options):
        if option not in known:
            raise ConfigError(
                f"{spec.name}: no option {option!r}.{did_you_mean(option, {*known, *ARGUMENTS})} "
                f"It has {', '.join(sorted(known))}."
            )
    for name, value in needed.items():
        if options.get(name, value) != value:
            raise ConfigError(
                f"{spec.name}: the weights {weights and weights.tag!r} need {name}={value!r}, got {options[name]!r}. "
                "Leave it out, or use other weights."
            )
    return {**needed, **options}


def assemble(
    spec: ModelSpec, weights: Weights | None, obtained: Obtained | None, asked: Asked, options: Mapping[str, Any]
) -> Classifier:
    """Build, load and describe a model: in training mode without weights, in eval mode with them.

    Args:
        spec: the registered model.
        weights: their record, or ``None`` to start from random numbers.
        obtained: their tensors.
        asked: what the user asks for.
        options: options of the builder.
    """
    loaded: Loaded | None = None
    if weights is None or obtained is None:
        built = _build(spec, options, asked.num_classes, asked.in_chans)
    else:
        built, loaded = _build_and_load(spec, weights, obtained, asked, options)
    built.outputs = choose_outputs(built, spec, weights, loaded, asked.labels, asked.task)
    built.preprocessing, notes = choose_preprocessing(built, spec, weights, asked.preprocessing)
    if weights is None or obtained is None or loaded is None:
        return built
    built.load_report = report_load(built, weights, obtained, loaded, notes)
    return built.eval()


def _build_and_load(
    spec: ModelSpec, weights: Weights, obtained: Obtained, asked: Asked, options: Mapping[str, Any]
) -> tuple[Classifier, Loaded]:
    """Build on the meta device, where nothing is drawn at random, and give the model its tensors."""
    who, tensors = weights.title(spec.name), obtained.tensors
    num_classes = weights.num_classes if asked.num_classes is None else asked.num_classes
    if num_classes is None:
        num_classes = _stored_classes(tensors, who)
    in_chans = weights.in_chans if asked.in_chans is None else asked.in_chans
    with torch.device("meta"):
        built = _build(spec, options, num_classes, in_chans)
        kernel = input_kernel(built, built.input_spec.channels)
        stored = stored_channels(tensors, kernel, built.input_spec.channels)
        if in_chans is None and stored != built.input_spec.channels:
            built = _build(spec, options, num_classes, stored)
    _check_input(built, weights, num_classes, in_chans)
    if weights.dtype:
        built.to(getattr(torch, weights.dtype))
    device = torch.get_default_device()
    return built, load_tensors(built, tensors, source=who, kernel=kernel, part=weights.part, device=device)


def _stored_classes(tensors: Mapping[str, Tensor], who: str) -> int | None:
    """Return the outputs of a stored classifier, or ``None`` if there is none."""
    head = tensors.get(CLASSIFIER[0])
    if head is None or not head.ndim:
        return None
    if head.shape[0] == 0:
        raise WeightsMismatch(f"{who}: expected a classifier of one output or more, got none. Save it again.")
    return head.shape[0]


def _build(spec: ModelSpec, options: Mapping[str, Any], num_classes: int | None, in_chans: int | None) -> Classifier:
    """Call the builder, and set the name and options of the model."""
    explicit = {"num_classes": num_classes, "in_chans": in_chans}
    chosen = spec.options | dict(options) | {k: v for k, v in explicit.items() if v is not None}
    for name, least in (("num_classes", 0), ("in_chans", 1)):
        chosen[name] = check_int(spec.name, name, chosen[name], least)
    built = spec.builder(**chosen)
    built.name, built.options = spec.name, chosen
    return built


def _check_input(built: Classifier, weights: Weights, num_classes: int | None, in_chans: int | None) -> None:
    """Check that the builder takes the input it took when the weights were saved, unless the user changed it."""
    stated, changed = weights.input_spec, (num_classes, in_chans) != (weights.num_classes, weights.in_chans)
    if stated is not None and not changed and built.input_spec != stated:
        raise ConfigError(
            f"{weights.tag}: it was saved with the input {stated}, but {built.name} of this medzoo takes "
            f"{built.input_spec}. Use the medzoo that config.json names."
        )
