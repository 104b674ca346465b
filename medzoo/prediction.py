"""``predict``: from files to named, traceable probabilities.

Axes: b batch, c channels, s spatial axes, n classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from numpy.typing import NDArray
from torch import Tensor

import medzoo
from medzoo.classifier import Classifier
from medzoo.data.image import Image
from medzoo.data.transform import Prepared, Source, transform
from medzoo.errors import ConfigError

__all__ = ["Prediction", "predict"]


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        source: the file, or ``"the array"``.
        probabilities: label to probability, in [0, 1].
        positive: label to whether its probability reaches the threshold; for a multiclass model, the largest.
        logits: label to logit.
        untrained: labels whose outputs were never trained: their numbers mean nothing.
        steps: how the image was prepared, in words.
        identity: what the file says of itself; UIDs, and a patient only hashed.
        provenance: model, weights, digest and the version of medzoo.
    """

    source: str
    probabilities: Mapping[str, float]
    positive: Mapping[str, bool]
    logits: Mapping[str, float]
    untrained: tuple[str, ...]
    steps: tuple[str, ...]
    identity: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether every output was trained."""
        return not self.untrained


@overload
def predict(
    model: Classifier,
    source: str | os.PathLike[str] | Image | NDArray[Any] | Tensor,
    *,
    batch_size: int = ...,
    device: torch.device | str | None = ...,
    allow_untrained: bool = ...,
    strict: bool = ...,
) -> Prediction: ...
@overload
def predict(
    model: Classifier,
    source: list[Any] | tuple[Any, ...],
    *,
    batch_size: int = ...,
    device: torch.device | str | None = ...,
    allow_untrained: bool = ...,
    strict: bool = ...,
) -> list[Prediction]: ...
def predict(
    model: Classifier,
    source: Source | list[Any] | tuple[Any, ...],
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    allow_untrained: bool = False,
    strict: bool = False,
) -> Prediction | list[Prediction]:
    """Read, prepare as the weights need, run, and name every output.

    Args:
        model: from :func:`medzoo.create`.
        source: a path, an image, an array ``(c, …)``, or a list of those.
        batch_size: images in one forward pass.
        device: where to run; ``None`` is where the model is. The model is brought back afterwards.
        allow_untrained: predict although no output was trained; the result is marked.
        strict: raise instead of warn when the values of an image cannot be what the model expects.

    Returns:
        One prediction, or a list of them for a list.

    Raises:
        ConfigError: the model has no outputs, or none that was trained.
        DataError: a file cannot be read, or is not of the model's kind.
        InputError: something that is not an image, or more than the memory holds.
    """
    _refuse_untrained(model, allow_untrained)
    if batch_size < 1:
        raise ConfigError(f"{model.name}: expected batch_size of 1 or more, got {batch_size}.")
    many = isinstance(source, (list, tuple))
    sources: Sequence[Source] = source if isinstance(source, (list, tuple)) else [source]
    prepare = transform(model).prepare
    results: list[Prediction] = []
    with _inference(model, device) as place:
        for start in range(0, len(sources), batch_size):
            prepared = [prepare(item, strict=strict) for item in sources[start : start + batch_size]]
            logits = model(torch.stack([p.tensor for p in prepared]).to(place)).float().cpu()
            probabilities = model.outputs.probabilities(logits)
            positive = model.outputs.positive(probabilities)
            results += map(_named(model), prepared, logits, probabilities, positive)
    return results if many else results[0]


def _refuse_untrained(model: Classifier, allowed: bool) -> None:
    if model.num_classes == 0:
        raise ConfigError(f"{model.name}: it has no outputs to name (num_classes=0). Call model(x) for its features.")
    if not allowed and not any(model.outputs.trained):
        raise ConfigError(
            f"{model.name}: no output was trained, so its probabilities mean nothing. Load weights, or say "
            "model.set_outputs(...) after your own training, or look at them with allow_untrained=True "
            "(--allow-untrained)."
        )


@contextmanager
def _inference(model: Classifier, device: torch.device | str | None) -> Iterator[torch.device]:
    """Put the model into eval mode, on the device, and afterwards back as it was."""
    was_training, home = model.training, next(model.parameters()).device
    place = torch.device(device) if device is not None else home
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{model.name}: expected a device of this machine, got {str(place)!r}. Use device='cpu'.")
    try:
        model.eval().to(place)
        with torch.inference_mode():
            yield place
    finally:
        model.to(home).train(was_training)


def _named(model: Classifier) -> Any:
    """Return what turns one row of numbers into a prediction with names."""
    outputs, report = model.outputs, model.load_report
    untrained = tuple(label for label, ok in zip(outputs.labels, outputs.trained, strict=True) if not ok)
    provenance = {
        "model": model.name,
        "weights": report.source if report else "none",
        "digest": report.digest if report else "none",
        "medzoo": medzoo.__version__,
    }

    def name(prepared: Prepared, logits: Tensor, probabilities: Tensor, positive: Tensor) -> Prediction:
        def by_label(row: Tensor) -> dict[str, Any]:
            return dict(zip(outputs.labels, row.tolist(), strict=True))

        return Prediction(
            source=prepared.image.identity.get("file", "the array"),
            probabilities=by_label(probabilities),
            positive=by_label(positive),
            logits=by_label(logits),
            untrained=untrained,
            steps=prepared.steps,
            identity=dict(prepared.image.identity),
            provenance=provenance,
        )

    return name
