"""``create``: from a name to a model with its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from medzoo.build_check import check_build
from medzoo.classifier import Classifier
from medzoo.contract import Outputs, Preprocessing, Task, check_task
from medzoo.errors import ConfigError, WeightsMismatch, check_int, did_you_mean
from medzoo.features import FeatureExtractor
from medzoo.registry import ModelSpec, describe
from medzoo.weights.download import fetch_tensors
from medzoo.weights.hub import read_repo
from medzoo.weights.load import CLASSIFIER, input_kernel, load_tensors, stored_channels
from medzoo.weights.record import Weights
from medzoo.weights.safetensors import FOREIGN_SUFFIXES, read_tensors
from medzoo.weights.save import SavedModel, read_folder

__all__ = ["create"]

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
    saved = _saved(model, pretrained)
    spec = describe(saved.name if saved else model)
    if labels is not None:
        labels = _names(spec.name, labels, num_classes)
        num_classes = len(labels)
    if task is not None:
        check_task(spec.name, task)
    if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
        raise ConfigError(
            f"{spec.name}: expected preprocessing to be a medzoo.Preprocessing, got {type(preprocessing).__name__}."
        )
    _check_options(spec, {**(saved.record.options if saved else {}), **options})
    if out_indices is not None and not features_only:
        raise ConfigError(f"{spec.name}: out_indices chooses among the maps that features_only=True returns.")
    if features_only and (num_classes is not None or task is not None):
        raise ConfigError(f"{spec.name}: features_only=True returns maps; num_classes, labels and task do not apply.")
    if features_only:
        num_classes = 0

    chosen = saved.record if saved else _weights_of(spec, pretrained)
    record = chosen if isinstance(chosen, Weights) else None
    if saved and num_classes is None:
        num_classes = saved.num_classes
    merged = _merge_options(spec, record, options)
    if chosen is None:
        built = _build(spec, merged, num_classes, in_chans)
    else:
        built = _build_with(spec, merged, num_classes, in_chans, chosen, saved.dtype if saved else None)
    _describe_outputs(built, spec, record, labels, task)
    built.preprocessing = _fit_preprocessing(built, preprocessing, record, spec)
    if saved is not None:
        _check_saved(built, saved, num_classes, in_chans)
    if chosen is not None:
        built.eval()
    return FeatureExtractor(built, out_indices).train(built.training) if features_only else built


def _saved(model: str, pretrained: bool | str | os.PathLike[str]) -> SavedModel | None:
    """Read what ``local-dir:`` or ``hf-hub:`` names, or return None for a registered name."""
    if not isinstance(model, str) or not model.startswith(("hf-hub:", "local-dir:")):
        return None
    scheme, _, place = model.partition(":")
    if pretrained is not False:
        raise ConfigError(f"{model}: a folder always loads its own weights. Leave pretrained out.")
    return read_repo(place) if scheme == "hf-hub" else read_folder(place)


def _check_saved(built: Classifier, saved: SavedModel, num_classes: int | None, in_chans: int | None) -> None:
    """Check that the builder takes the input it took when the folder was written, unless the user changed it."""
    changed = num_classes != saved.num_classes or in_chans not in (None, saved.record.in_chans)
    if not changed and built.input_spec != saved.input_spec:
        raise ConfigError(
            f"{saved.record.tag}: it was saved with the input {saved.input_spec}, but {saved.name} of this "
            f"medzoo takes {built.input_spec}. Use the medzoo that config.json names."
        )


def _names(who: str, labels: Sequence[str], num_classes: int | None) -> tuple[str, ...]:
    if isinstance(labels, str):
        raise ConfigError(f"{who}: expected labels to be a list of names, got the text {labels!r}.")
    names = tuple(labels)
    if not names:
        raise ConfigError(f"{who}: expected one label or more, got none. num_classes=0 makes a backbone.")
    if num_classes is not None and num_classes != len(names):
        raise ConfigError(
            f"{who}: got {len(names)} labels and num_classes={num_classes}. Leave num_classes out; labels set it."
        )
    return names


def _check_options(spec: ModelSpec, options: Mapping[str, Any]) -> None:
    known = spec.options.keys()
    for option in options:
        if option not in known:
            raise ConfigError(
                f"{spec.name}: no option {option!r}.{did_you_mean(option, {*known, *ARGUMENTS})} "
                f"It has {', '.join(sorted(known))}."
            )


def _weights_of(spec: ModelSpec, pretrained: bool | str | os.PathLike[str]) -> Weights | Path | None:
    """Resolve ``pretrained`` to a record, to the path of a file, or to nothing."""
    if pretrained is False or pretrained is None:
        return None
    if isinstance(pretrained, os.PathLike) or (isinstance(pretrained, str) and _is_path(pretrained)):
        return Path(pretrained)
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


def _merge_options(spec: ModelSpec, record: Weights | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Add what the weights need; an option that contradicts it is an error."""
    needed = record.options if record else {}
    for name, value in needed.items():
        if options.get(name, value) != value:
            raise ConfigError(
                f"{spec.name}: the weights {record and record.tag!r} need {name}={value!r}, got {options[name]!r}. "
                "Leave it out, or use other weights."
            )
    return {**needed, **options}


def _build(spec: ModelSpec, options: Mapping[str, Any], num_classes: int | None, in_chans: int | None) -> Classifier:
    """Call the builder, and set the name and options of the model."""
    explicit = {"num_classes": num_classes, "in_chans": in_chans}
    chosen = spec.options | dict(options) | {k: v for k, v in explicit.items() if v is not None}
    for name, least in (("num_classes", 0), ("in_chans", 1)):
        chosen[name] = check_int(spec.name, name, chosen[name], least)
    built = spec.builder(**chosen)
    check_build(spec, built, chosen)
    built.name, built.options = spec.name, chosen
    return built


def _build_with(
    spec: ModelSpec,
    options: Mapping[str, Any],
    num_classes: int | None,
    in_chans: int | None,
    chosen: Weights | Path,
    dtype: torch.dtype | None = None,
) -> Classifier:
    """Build on the meta device, where nothing is drawn at random, and give the model its tensors."""
    record = chosen if isinstance(chosen, Weights) else None
    dropped: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor]
    if isinstance(chosen, Weights):
        source, digest = f"{spec.name}:{chosen.tag}", chosen.digest
        obtained = fetch_tensors(chosen, source)
        tensors, dropped = obtained.tensors, obtained.dropped
    else:
        source = str(chosen)
        tensors, digest = read_tensors(chosen)
    head = tensors.get(CLASSIFIER[0])
    if num_classes is None and head is not None and head.ndim:
        num_classes = head.shape[0]
        if num_classes == 0:
            raise WeightsMismatch(f"{source}: expected a classifier of one output or more, got none. Save it again.")
    if in_chans is None and record is not None:
        in_chans = record.in_chans
    device = torch.get_default_device()
    with torch.device("meta"):
        built = _build(spec, options, num_classes, in_chans)
        kernel = input_kernel(built, built.input_spec.channels)
        stored = stored_channels(tensors, kernel, built.input_spec.channels)
        if in_chans is None and stored != built.input_spec.channels:
            built = _build(spec, options, num_classes, stored)
    if dtype is not None:
        built.to(dtype)
    part = record.part if record else "model"
    report = load_tensors(built, tensors, source=source, digest=digest, kernel=kernel, part=part, device=device)
    built.load_report = report.with_dropped(dropped)
    if record is not None:
        same = built.input_spec.channels == record.in_chans
        built.load_report = replace(
            built.load_report,
            channels=record.channels if same else (),
            license=record.license,
            trained_on=record.trained_on,
        )
    left = [name for name, tensor in (*built.named_parameters(), *built.named_buffers()) if tensor.is_meta]
    if left:
        raise ConfigError(
            f"{spec.name}: {', '.join(left)} are not stored with the weights and were not computed again. "
            "Give their module a method rebuild_buffers(device)."
        )
    return built


def _describe_outputs(
    built: Classifier, spec: ModelSpec, record: Weights | None, labels: Sequence[str] | None, task: Task | None
) -> None:
    """Name the outputs: as asked, else as the weights do, else as the builder does, else by number."""
    count = built.num_classes
    if count and record and record.task and built.load_report and CLASSIFIER[0] not in built.load_report.new:
        known = record.trained or (True,) * count
        trained = Outputs(record.labels, record.task, record.thresholds, known, record.normalised)
        if (labels or trained.labels, task or trained.task) != (trained.labels, trained.task):
            raise ConfigError(
                f"{spec.name}: the outputs of the weights {record.tag!r} are {', '.join(trained.labels)} "
                f"({trained.task}), got {', '.join(labels or trained.labels)} ({task or trained.task}). To rename "
                "them, call model.set_outputs(labels=..., trained=model.outputs.trained); for outputs of your own, "
                "model.reset_classifier(n)."
            )
        built.outputs = trained
        return
    named_by_builder = len(spec.outputs.labels) == count and task in (None, spec.outputs.task)
    unnamed = Outputs.unnamed(count, task or spec.outputs.task)
    names = labels or (spec.outputs.labels if named_by_builder else unnamed.labels)
    built.outputs = Outputs(tuple(names), task or unnamed.task)


def _fit_preprocessing(
    built: Classifier, asked: Preprocessing | None, record: Weights | None, spec: ModelSpec
) -> Preprocessing:
    """Return the preprocessing asked for, or the weights', or the builder's, fitted to the number of channels."""
    takes = built.input_spec
    stated = record.preprocessing if record else None
    chosen = asked or stated or replace(spec.preprocessing, size=takes.size)
    if record is not None and stated is None and asked is None:
        _note(built, "the preprocessing of these weights is not known: the builder's is used")
    if stated is not None and asked is not None:
        for name, value in asdict(stated).items():
            if getattr(asked, name) != value:
                _note(built, f"preprocessing {name}: {value!r} is recorded, here it is {getattr(asked, name)!r}")
    if len(chosen.size) != takes.dims or not takes.fits(chosen.size):
        raise ConfigError(f"{built.name}: preprocessing gives size {chosen.size}, but the model takes {takes}.")
    if len(chosen.mean) in (1, takes.channels) and len(chosen.std) in (1, takes.channels):
        return chosen
    if asked:
        raise ConfigError(
            f"{built.name}: expected mean and std of preprocessing to be 1 or {takes.channels} numbers, got "
            f"{len(asked.mean)} and {len(asked.std)}."
        )
    _note(built, f"mean and std of the input averaged over {len(chosen.mean)} channels")
    return replace(chosen, mean=(sum(chosen.mean) / len(chosen.mean),), std=(sum(chosen.std) / len(chosen.std),))


def _note(built: Classifier, note: str) -> None:
    """Add to the load report how the model differs from the contract of its weights."""
    if built.load_report is not None:
        built.load_report = replace(built.load_report, notes=(*built.load_report.notes, note))
