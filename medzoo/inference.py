"""``predict``: from files to named, traceable probabilities.

Axes: b batch, c channels, s spatial axes, n classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import medzoo
from medzoo.checks import whole
from medzoo.classifier import Classifier
from medzoo.data.transform import ExcludedView, Source, Transform, transform
from medzoo.errors import ConfigError, DataError
from medzoo.prediction import Prediction, Predictions
from medzoo.weights.load import LoadReport
from medzoo.worklist import Plan, Points, Task, plan

__all__ = ["predict", "run"]


@overload
def predict(
    model: Classifier,
    source: list[Any] | tuple[Any, ...],
    *,
    batch_size: int = ...,
    device: torch.device | str | None = ...,
    num_workers: int = ...,
    points: Points | None = ...,
    points_frame: Literal["LPS", "RAS"] = ...,
    allow_untrained: bool = ...,
    strict: bool = ...,
    progress: Callable[[int, int], object] | None = ...,
) -> Predictions: ...
@overload
def predict(
    model: Classifier,
    source: Source,
    *,
    batch_size: int = ...,
    device: torch.device | str | None = ...,
    num_workers: int = ...,
    points: Points | None = ...,
    points_frame: Literal["LPS", "RAS"] = ...,
    allow_untrained: bool = ...,
    strict: bool = ...,
    progress: Callable[[int, int], object] | None = ...,
) -> Prediction | Predictions: ...
def predict(
    model: Classifier,
    source: Source | list[Any] | tuple[Any, ...],
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    num_workers: int = 0,
    points: Points | None = None,
    points_frame: Literal["LPS", "RAS"] = "LPS",
    allow_untrained: bool = False,
    strict: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Prediction | Predictions:
    """Read, prepare as the weights need, run, and name every output.

    A file, an array or a folder that holds one DICOM series gives a :class:`~medzoo.prediction.Prediction`, and its
    faults are raised. A list, a folder tree or points give :class:`~medzoo.prediction.Predictions`: a bad file is kept
    among them with its error, objects that are no images are passed over with their reason, and the rest goes on.

    Args:
        model: from :func:`medzoo.create`.
        source: a path, an image, an array ``(c, …)``, or a list of those. In a folder tree DICOM slices are grouped by
            series; a 3D model takes series and volumes, a 2D model takes images one by one.
        batch_size: images in one forward pass.
        device: where to run; ``None`` is where the model is. The model is brought back afterwards.
        num_workers: processes that read and prepare while the model runs; 0 reads in this one.
        points: for a patch model, centres in mm: a list of (x, y, z), or a CSV file as LUNA16's annotations
            (``coordX``, ``coordY``, ``coordZ``, and ``seriesuid`` where it holds several scans).
        points_frame: ``"LPS"`` (DICOM, LUNA16) or ``"RAS"`` (NIfTI).
        allow_untrained: predict although no output was trained; the result is marked.
        strict: treat values that the model cannot expect as a fault instead of warning.
        progress: called with the number done and the number in all, after each.

    Raises:
        ConfigError: the model has no outputs or none that was trained; points for a model of whole images, or none for
            a patch model.
        DataError: a file cannot be read, or is not of the model's kind.
        InputError: something that is not an image, or more than the memory holds.
    """
    _refuse_untrained(model, allow_untrained)
    whole(model.name, "batch_size", batch_size, 1)
    whole(model.name, "num_workers", num_workers, 0)
    work = plan(model, source, points, points_frame)
    skipped = dict(work.skipped)
    results: list[Prediction] = []
    for done, (result, doubt, excluded) in enumerate(run(model, work, batch_size, device, num_workers), start=1):
        if progress is not None:
            progress(done, len(work.tasks))
        if doubt and strict:
            result = Prediction(result.source, identity=result.identity, point=result.point, error=doubt)
        elif doubt:
            warnings.warn(doubt, stacklevel=2)
        if work.single and result.error:
            raise DataError(result.error)
        if excluded and not work.single:
            skipped[result.source] = result.error
        else:
            results.append(result)
    return results[0] if work.single else Predictions(results, skipped)


def _refuse_untrained(model: Classifier, allowed: bool) -> None:
    if not isinstance(model, Classifier):
        raise ConfigError(
            f"predict: expected a model from medzoo.create, got {type(model).__name__}. "
            "A model of features_only=True has no outputs to name."
        )
    if model.num_classes == 0:
        raise ConfigError(f"{model.name}: it has no outputs to name (num_classes=0). Call model(x) for its features.")
    if not allowed and not any(model.outputs.trained):
        raise ConfigError(
            f"{model.name}: no output was trained, so its probabilities mean nothing. Load weights, or, after your own "
            "training or with weights from a bare file, say model.set_outputs(labels=...), or look at them with "
            "allow_untrained=True (--allow-untrained)."
        )


@dataclass(frozen=True, eq=False)
class _Ready:
    """What a worker sends back: a tensor, or what went wrong."""

    task: Task
    tensor: Tensor | None
    steps: tuple[str, ...] = ()
    identity: Mapping[str, str] | None = None
    doubt: str = ""
    error: str = ""
    excluded: bool = False


class _Reader(Dataset[_Ready]):
    """Reads and prepares the n-th task; sent to the workers."""

    def __init__(self, prepare: Transform, tasks: tuple[Task, ...]) -> None:
        self.prepare, self.tasks = prepare, tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, place: int) -> _Ready:
        task = self.tasks[place]
        try:
            prepared = self.prepare.examine(_whole(task.image), task.point)
        except DataError as error:
            if task.in_memory:
                raise
            return _Ready(task, None, error=str(error), excluded=isinstance(error, ExcludedView))
        return _Ready(task, prepared.tensor, prepared.steps, dict(prepared.image.identity), prepared.doubt)


def _whole(image: Source | tuple[Path, ...]) -> Source:
    if isinstance(image, tuple):
        from medzoo.data.series import read_series

        return read_series(image)
    return image


def run(
    model: Classifier, work: Plan, batch_size: int, device: torch.device | str | None, num_workers: int
) -> Iterator[tuple[Prediction, str, bool]]:
    """Yield each prediction in order, with a doubt about its values and whether its view is excluded."""
    reader = _Reader(transform(model), work.tasks)
    # One image an item, so that a slow or broken one holds up no batch; workers read ahead while the model runs.
    loader: Iterable[_Ready] = DataLoader(reader, batch_size=None, num_workers=num_workers)
    name = _namer(model)
    with _inference(model, device) as place:
        waiting: list[_Ready] = []
        for ready in loader:
            waiting.append(ready)
            if sum(item.tensor is not None for item in waiting) == batch_size:
                yield from _finish(model, waiting, place, name)
                waiting = []
        yield from _finish(model, waiting, place, name)


def _finish(
    model: Classifier, waiting: list[_Ready], place: torch.device, name: Callable[..., Prediction]
) -> Iterator[tuple[Prediction, str, bool]]:
    """Run what can be run as one batch, and yield everything in its order."""
    tensors = [item.tensor for item in waiting if item.tensor is not None]
    rows: Iterator[Any] = iter(())
    if tensors:
        like = next(model.parameters())
        with torch.inference_mode():
            logits = model(torch.stack(tensors).to(place, like.dtype)).float().cpu()
        probabilities = model.outputs.probabilities(logits)
        rows = zip(logits, probabilities, model.outputs.positive(probabilities), strict=True)
    for item in waiting:
        if item.tensor is None:
            failed = Prediction(item.task.label, point=item.task.given_point, error=item.error)
            yield failed, "", item.excluded
        else:
            yield name(item, *next(rows)), item.doubt, False


@contextmanager
def _inference(model: Classifier, device: torch.device | str | None) -> Iterator[torch.device]:
    """Put the model into eval mode, on the device, and afterwards back as it was."""
    modes = {module: module.training for module in model.modules()}
    home = next(model.parameters()).device
    try:
        place = torch.device(device) if device is not None else home
    except RuntimeError:
        raise ConfigError(f"{model.name}: expected a device such as 'cpu' or 'cuda:0', got {device!r}.") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{model.name}: expected a device of this machine, got {str(place)!r}. Use device='cpu'.")
    try:
        model.eval().to(place)
        yield place
    finally:
        model.to(home)
        for module, training in modes.items():
            module.training = training


def _weights_name(report: LoadReport) -> str:
    """Name the weights, and what of the model is not from them."""
    return f"{report.source}, but for {len(report.new)} new tensors of the head" if report.new else report.source


def _namer(model: Classifier) -> Callable[..., Prediction]:
    """Return what turns one row of numbers into a prediction with names."""
    outputs, report = model.outputs, model.load_report
    untrained = tuple(label for label, ok in zip(outputs.labels, outputs.trained, strict=True) if not ok)
    provenance = {
        "model": model.name,
        "weights": _weights_name(report) if report else "none",
        "digest": report.digest if report else "none",
        "medzoo": medzoo.__version__,
    }

    def name(item: _Ready, logits: Tensor, probabilities: Tensor, positive: Tensor) -> Prediction:
        def by_label(row: Tensor) -> dict[str, Any]:
            return dict(zip(outputs.labels, row.tolist(), strict=True))

        return Prediction(
            source=item.task.label,
            probabilities=by_label(probabilities),
            positive=by_label(positive),
            logits=by_label(logits),
            untrained=untrained,
            steps=item.steps,
            identity=item.identity or {},
            provenance=provenance,
            point=item.task.given_point,
        )

    return name
