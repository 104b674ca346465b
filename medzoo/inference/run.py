"""``predict``: from files to named, traceable probabilities.

Axes: b batch, c channels, s spatial axes, n classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medzoo.classifier import Classifier
from medzoo.errors import ConfigError, DataError, InputError, check_int
from medzoo.inference.optimize import optimized_view
from medzoo.inference.plan import Plan, Points, Task, plan
from medzoo.inference.result import Prediction, Predictions
from medzoo.io.dicom.series import read_series
from medzoo.io.image import Image
from medzoo.io.read import read
from medzoo.transforms.transform import ExcludedView, Source, Transform, transform
from medzoo.version import __version__
from medzoo.weights.load import LoadReport

__all__ = ["predict"]


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

    A file, an array or a folder that holds one DICOM series gives a :class:`~medzoo.Prediction`, and its faults are
    raised. A list, a folder tree or points give :class:`~medzoo.Predictions`: a bad file is kept among them with its
    error, objects that are no images are passed over with their reason, and the rest goes on. What is in memory and
    cannot be an image is the caller's fault, and is raised, from a list too.

    The model runs as :func:`medzoo.optimize` would make it, where that takes less time; it is not changed.

    Args:
        model: from :func:`medzoo.create`.
        source: a path, an image, an array ``(c, …)``, or a list of those. In a folder tree, and among the files
            of a list, DICOM slices are grouped by series: a 3D model takes series and volumes, a 2D model images.
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
    check_int(model.name, "batch_size", batch_size, 1)
    check_int(model.name, "num_workers", num_workers, 0)
    work = plan(model, source, points, points_frame)
    skipped = dict(work.skipped)
    results: list[Prediction] = []
    doubts: list[str] = []
    for done, (result, excluded) in enumerate(_run(model, work, batch_size, device, num_workers), start=1):
        if progress is not None:
            progress(done, len(work.tasks))
        if result.doubt and strict:
            result = replace(_failed(result), error=result.doubt)
        elif result.doubt:
            doubts.append(result.doubt)
        if work.single and result.error:
            raise DataError(result.error)
        if excluded:
            skipped[result.source] = result.error.removeprefix(f"{result.source}: ")
        else:
            results.append(result)
    if doubts:
        more = f" (and {len(doubts) - 1} more; see Prediction.doubt)" if len(doubts) > 1 else ""
        warnings.warn(doubts[0] + more, stacklevel=2)
    return results[0] if work.single else Predictions(results, skipped)


def _failed(result: Prediction) -> Prediction:
    """Take a prediction's numbers away."""
    return replace(result, probabilities={}, positive={}, logits={}, untrained=())


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
    identity: Mapping[str, str] = field(default_factory=dict)
    doubt: str = ""
    error: str = ""
    excluded: bool = False


class _Reader(Dataset[_Ready]):
    """Reads and prepares the n-th task; sent to the workers."""

    def __init__(self, prepare: Transform, tasks: tuple[Task, ...]) -> None:
        self.prepare, self.tasks = prepare, tasks
        self.last: tuple[object, Image] | None = None

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, place: int) -> _Ready:
        task = self.tasks[place]
        try:
            prepared = self.prepare.examine(self._read(task), task.point)
        except DataError as error:
            return _Ready(task, None, error=str(error), excluded=isinstance(error, ExcludedView))
        except (MemoryError, RuntimeError, ValueError) as error:
            # One image that the libraries choke on must not take the others with it.
            reason = str(error).split("\n")[0][:200]
            said = f"{task.label}: it could not be prepared ({reason}). Look at it with medzoo show."
            return _Ready(task, None, error=said)
        return _Ready(task, prepared.tensor, prepared.steps, dict(prepared.image.identity), prepared.doubt)

    def _read(self, task: Task) -> Image:
        """Read an image, unless it is the one that was read last: many points lie in one scan."""
        if isinstance(task.image, Image):
            return task.image
        if self.last is None or self.last[0] != task.image:
            self.last = None  # two scans at once may be more than the memory holds
            image = read_series(task.image) if isinstance(task.image, tuple) else read(task.image)
            if task.point is None:
                return image
            self.last = (task.image, image)
        return self.last[1]


def _run(
    model: Classifier, work: Plan, batch_size: int, device: torch.device | str | None, num_workers: int
) -> Iterator[tuple[Prediction, bool]]:
    """Yield each prediction in order, and whether its view is excluded."""
    reader = _Reader(transform(model), work.tasks)
    # One image an item, so that a slow or broken one holds up no batch; workers read ahead while the model runs.
    loader: Iterable[_Ready] = DataLoader(reader, batch_size=None, num_workers=num_workers)
    name = _Namer(model)
    with _inference(model, device) as place:
        runner = optimized_view(model, len(work.tasks))
        waiting: list[_Ready] = []
        for ready in _alive(loader):
            if ready.task.in_memory and ready.error and not ready.excluded:
                raise DataError(ready.error)
            waiting.append(ready)
            if sum(item.tensor is not None for item in waiting) == batch_size:
                yield from _finish(runner, waiting, place, name)
                waiting = []
        yield from _finish(runner, waiting, place, name)


def _alive(loader: Iterable[_Ready]) -> Iterator[_Ready]:
    """Say in words when a worker was killed."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "a process that reads images was killed, perhaps for want of memory or of shared memory. Use fewer workers "
            "(num_workers=0, --workers 0)."
        ) from error


def _finish(
    model: Classifier, waiting: list[_Ready], place: torch.device, name: _Namer
) -> Iterator[tuple[Prediction, bool]]:
    """Run what can be run as one batch, and yield everything in its order."""
    tensors = [item.tensor for item in waiting if item.tensor is not None]
    rows: Iterator[Tensor] = iter(())
    trouble = ""
    if tensors:
        like = next(model.parameters())
        try:
            with torch.inference_mode():
                rows = iter(model(torch.stack(tensors).to(place, like.dtype)).float().cpu())
        except InputError as error:  # more than the memory holds: the next batch may be smaller
            trouble = str(error)
    for item in waiting:
        if item.error or trouble:
            yield name.failure(item, item.error or f"{item.task.label}: {trouble}"), item.excluded
        else:
            yield name.success(item, next(rows)), False


@contextmanager
def _inference(model: Classifier, device: torch.device | str | None) -> Iterator[torch.device]:
    """Put the model into eval mode, on the device, and afterwards back as it was."""
    modes = {module: module.training for module in model.modules()}
    home = next(model.parameters()).device
    place = _usable(device, model.name) if device is not None else home
    try:
        model.eval().to(place)
        yield place
    finally:
        model.to(home)
        for module, training in modes.items():
            module.training = training


def _usable(device: torch.device | str, who: str) -> torch.device:
    """Return a device that this machine has."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError):
        place = torch.device("meta")
    if place.type == "meta":
        raise ConfigError(f"{who}: expected a device of this machine, got {str(device)!r}. Use device='cpu'.")
    return place


class _Namer:
    """Turns a row of logits into a prediction with names."""

    def __init__(self, model: Classifier) -> None:
        report = model.load_report
        self.outputs = model.outputs
        self.untrained = tuple(
            label for label, ok in zip(self.outputs.labels, self.outputs.trained, strict=True) if not ok
        )
        self.provenance = {
            "model": model.name,
            "weights": _weights_name(report) if report else "none",
            "digest": report.digest if report else "none",
            "medzoo": __version__,
        }

    def failure(self, item: _Ready, error: str) -> Prediction:
        """Return a prediction without numbers."""
        return Prediction(
            source=item.task.label,
            identity=item.identity,
            provenance=self.provenance,
            point=item.task.given_point,
            error=error,
        )

    def success(self, item: _Ready, logits: Tensor) -> Prediction:
        """Return the named numbers; logits that are not finite say nothing, and must not read as negative."""
        if not bool(torch.isfinite(logits).all()):
            return self.failure(
                item,
                f"{item.task.label}: the model gave NaN or infinity. Use float32, and check its weights.",
            )
        probabilities = self.outputs.probabilities(logits[None])
        positive = self.outputs.positive(probabilities)

        def by_label(row: Tensor) -> dict[str, Any]:
            return dict(zip(self.outputs.labels, row.tolist(), strict=True))

        return replace(
            self.failure(item, ""),
            probabilities=by_label(probabilities[0]),
            positive=by_label(positive[0]),
            logits=by_label(logits),
            untrained=self.untrained,
            steps=item.steps,
            doubt=item.doubt,
        )


def _weights_name(report: LoadReport) -> str:
    """Name the weights, and what of the model is not from them."""
    return f"{report.source}, but for {len(report.new)} new tensors of the head" if report.new else report.source
