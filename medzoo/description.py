"""The last step of ``create``: what the outputs of a model mean, how files become its inputs, and what was loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from medzoo.classifier import Classifier
from medzoo.contract import Outputs, Preprocessing
from medzoo.errors import ConfigError
from medzoo.resolve import Request
from medzoo.weights.load import CLASSIFIER, Loaded, LoadReport
from medzoo.weights.obtain import Obtained
from medzoo.weights.record import LocalFile, Weights

__all__ = ["choose_outputs", "choose_preprocessing", "report_load"]


def choose_outputs(built: Classifier, asked: Request, loaded: Loaded | None) -> Outputs:
    """Return the outputs as the weights have them if their classifier was loaded, else as asked, else the builder's.

    Raises:
        ConfigError: trained outputs were asked to mean something else.
    """
    spec, weights, labels, task = asked.spec, asked.weights, asked.labels, asked.task
    count, trained = built.num_classes, weights.outputs if weights else None
    if count and weights and trained and loaded and CLASSIFIER[0] not in loaded.new:
        if (labels or trained.labels, task or trained.task) != (trained.labels, trained.task):
            raise ConfigError(
                f"{spec.name}: the outputs of the weights {weights.tag!r} are {', '.join(trained.labels)} "
                f"({trained.task}), got {', '.join(labels or trained.labels)} ({task or trained.task}). To rename "
                "them, call model.set_outputs(labels=..., trained=model.outputs.trained); for outputs of your own, "
                "model.reset_classifier(n)."
            )
        return trained
    named_by_builder = len(spec.outputs.labels) == count and task in (None, spec.outputs.task)
    unnamed = Outputs.unnamed(count, task or spec.outputs.task)
    names = labels or (spec.outputs.labels if named_by_builder else unnamed.labels)
    return Outputs(tuple(names), task or unnamed.task)


def choose_preprocessing(built: Classifier, asked: Request) -> tuple[Preprocessing, list[str]]:
    """Return the preprocessing asked for, or the weights', or the builder's, fitted to the channels; and notes on it.

    Raises:
        ConfigError: it does not fit the input of the model.
    """
    takes, weights, own = built.input_spec, asked.weights, asked.preprocessing
    stated = weights.preprocessing if weights else None
    chosen = own or stated or replace(asked.spec.preprocessing, size=takes.size)
    notes = []
    if weights is not None and weights.is_listed and own is None and stated is None:
        notes.append("the preprocessing of these weights is not known: the builder's is used")
    if stated is not None and own is not None:
        notes += [
            f"preprocessing {name}: {value!r} is recorded, here it is {getattr(own, name)!r}"
            for name, value in asdict(stated).items()
            if getattr(own, name) != value
        ]
    if len(chosen.size) != takes.dims or not takes.fits(chosen.size):
        raise ConfigError(f"{built.name}: preprocessing gives size {chosen.size}, but the model takes {takes}.")
    if len(chosen.mean) in (1, takes.channels) and len(chosen.std) in (1, takes.channels):
        return chosen, notes
    if own:
        raise ConfigError(
            f"{built.name}: expected mean and std of preprocessing to be 1 or {takes.channels} numbers, got "
            f"{len(own.mean)} and {len(own.std)}."
        )
    notes.append(f"mean and std of the input averaged over {len(chosen.mean)} channels")
    mean, std = (sum(values) / len(values) for values in (chosen.mean, chosen.std))
    return replace(chosen, mean=(mean,), std=(std,)), notes


def report_load(
    built: Classifier, weights: Weights, obtained: Obtained, loaded: Loaded, notes: Sequence[str]
) -> LoadReport:
    """Return what became of every tensor, with what the weights state that stays true of the model."""
    same = built.input_spec.channels == weights.in_chans
    return LoadReport(
        source=weights.title(built.name),
        digest=obtained.digest,
        loaded=loaded.loaded,
        adapted=loaded.adapted,
        new=loaded.new,
        dropped=(*loaded.dropped, *obtained.dropped),
        notes=tuple(notes),
        channels=weights.channels if same else (),
        license=weights.license,
        trained_on=weights.trained_on,
        intended_use=weights.intended_use,
        is_published=not isinstance(weights.source, LocalFile),
    )
