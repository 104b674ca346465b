"""The steps of ``create`` after the tensors are there: build, load, describe."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from medzoo.build_check import check_build
from medzoo.classifier import Classifier
from medzoo.description import choose_outputs, choose_preprocessing, report_load
from medzoo.errors import ConfigError, RegistrationError, WeightsMismatch, check_int
from medzoo.resolve import Request
from medzoo.weights.load import CLASSIFIER, input_kernel, load_tensors
from medzoo.weights.obtain import Obtained
from medzoo.weights.record import Weights

__all__ = ["assemble"]


def assemble(asked: Request, obtained: Obtained | None) -> Classifier:
    """Make the model of a request: in training mode from random numbers, in eval mode with tensors.

    Args:
        asked: what is to be made.
        obtained: the tensors of its weights; ``None`` to start from random numbers.
    """
    weights = asked.weights
    if weights is None or obtained is None:
        built = _build(asked, asked.num_classes, asked.in_chans)
        built.outputs = choose_outputs(built, asked, None)
        built.preprocessing, _ = choose_preprocessing(built, asked)
        return built
    built = _build_for(asked, weights, obtained.tensors).eval()
    loaded = load_tensors(
        built,
        obtained.tensors,
        source=weights.title(built.name),
        kernel=input_kernel(built, built.input_spec.channels),
        part=weights.part,
        device=torch.get_default_device(),
    )
    built.outputs = choose_outputs(built, asked, loaded)
    built.preprocessing, notes = choose_preprocessing(built, asked)
    built.load_report = report_load(built, weights, obtained, loaded, notes)
    return built


def _build_for(asked: Request, weights: Weights, tensors: Mapping[str, Tensor]) -> Classifier:
    """Build on the meta device, where nothing is drawn at random, with as many classes and channels as the file has."""
    num_classes = weights.num_classes if asked.num_classes is None else asked.num_classes
    in_chans = weights.in_chans if asked.in_chans is None else asked.in_chans
    head = tensors.get(CLASSIFIER[0])
    if num_classes is None and head is not None and head.ndim:
        num_classes = head.shape[0]
        if head.numel() == 0:
            title = weights.title(asked.spec.name)
            raise WeightsMismatch(f"{title}: expected a classifier of one output or more, got none. Save it again.")
    try:
        with torch.device("meta"):
            built = _build(asked, num_classes, in_chans)
            stored = tensors.get(input_kernel(built, built.input_spec.channels))
            if in_chans is None and stored is not None and stored.ndim > 2 and stored.numel():
                built = _build(asked, num_classes, stored.shape[1])
    except ConfigError as error:
        if weights.input_spec is None or isinstance(error, RegistrationError):
            raise
        # The options are those of a saved config.
        raise ConfigError(f"{weights.tag}: {error}") from error
    changed = (num_classes, in_chans) != (weights.num_classes, weights.in_chans)
    if weights.input_spec is not None and not changed and built.input_spec != weights.input_spec:
        raise ConfigError(
            f"{weights.tag}: it was saved with the input {weights.input_spec}, but {built.name} of this medzoo takes "
            f"{built.input_spec}. Use the medzoo that config.json names."
        )
    return built.to(getattr(torch, weights.dtype)) if weights.dtype else built


def _build(asked: Request, num_classes: int | None, in_chans: int | None) -> Classifier:
    """Call the builder, and set the name and options of the model."""
    spec, explicit = asked.spec, {"num_classes": num_classes, "in_chans": in_chans}
    chosen = spec.options | dict(asked.options) | {k: v for k, v in explicit.items() if v is not None}
    for name, least in (("num_classes", 0), ("in_chans", 1)):
        chosen[name] = check_int(spec.name, name, chosen[name], least)
    built = spec.builder(**chosen)
    check_build(spec, built, chosen)
    built.name, built.options, built.default_use = spec.name, chosen, spec.intended_use
    return built
