"""``predict``: from files to named probabilities with provenance.

Axes: b batch, c channels, s spatial axes, n classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medzoo.classifier import Classifier
from medzoo.errors import ConfigError, DataError, InputError, check_int
from medzoo.inference.optimize import optimized_view
from medzoo.inference.plan import Plan, PlannedImage, Points, plan
from medzoo.inference.result import Prediction, Predictions
from medzoo.io.dicom.series import read_series
from medzoo.io.image import Image
from medzoo.io.read import read
from medzoo.transforms.transform import ExcludedView, ImageSource, Transform, transform
from medzoo.version import __version__

if TYPE_CHECKING:
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
    source: ImageSource,
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
    source: ImageSource | list[Any] | tuple[Any, ...],
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
    """Read images, preprocess them as the weights require, run the model, and name every output.

    A file, an array or a folder with one DICOM series returns a :class:`~medzoo.Prediction`; errors are raised. A list,
    a folder tree or points return :class:`~medzoo.Predictions`: a file that cannot be read gets a result with its
    error, objects that are not images are skipped with a reason, and the other images are predicted. An object in
    memory that cannot be an image raises an error, also in a list.

    The model runs as :func:`medzoo.optimize` would run it, where that takes less time; it is not changed.

    Args:
        model: from :func:`medzoo.create`.
        source: a path, an image, an array ``(c, …)``, or a list of those. In a folder tree, and among the files
            of a list, DICOM slices are grouped by series: a 3D model takes series and volumes, a 2D model images.
        batch_size: images per forward pass.
        device: where to run; ``None`` is the device of the model. The model is moved back afterwards.
        num_workers: processes that read and preprocess while the model runs; 0 uses the calling process.
        points: for a patch model, centres in mm: a list of (x, y, z), or a CSV file like LUNA16's annotations
            (``coordX``, ``coordY``, ``coordZ``, and ``seriesuid`` if it covers several scans).
        points_frame: ``"LPS"`` (DICOM, LUNA16) or ``"RAS"`` (NIfTI).
        allow_untrained: run even if no output was trained; the results list the untrained outputs.
        strict: treat implausible values as an error instead of a warning.
        progress: called after each image with the number of finished images and the total.

    Raises:
        ConfigError: the model has no outputs, or none that was trained; points for a model of complete images, or none
            for a patch model.
        DataError: a file cannot be read, or has the wrong number of dimensions for the model.
        InputError: something that is not an image, or a batch that exceeds the memory.
    """
    _check_outputs(model, allow_untrained)
    check_int(model.name, "batch_size", batch_size, 1)
    check_int(model.name, "num_workers", num_workers, 0)
    work = plan(model, source, points, points_frame)
    skipped = dict(work.skipped)
    results: list[Prediction] = []
    reported: list[str] = []
    for done, (result, excluded) in enumerate(_run(model, work, batch_size, device, num_workers), start=1):
        if progress is not None:
            progress(done, len(work.images))
        if result.warning and strict:
            result = replace(result, probabilities={}, positive={}, logits={}, untrained=(), error=result.warning)
        elif result.warning:
            reported.append(result.warning)
        if work.single and result.error:
            raise DataError(result.error)
        if excluded:
            skipped[result.source] = result.error.removeprefix(f"{result.source}: ")
        else:
            results.append(result)
    if reported:
        more = f" (and {len(reported) - 1} more; see Prediction.warning)" if len(reported) > 1 else ""
        warnings.warn(reported[0] + more, stacklevel=2)
    return results[0] if work.single else Predictions(results, skipped)


def _check_outputs(model: Classifier, allow_untrained: bool) -> None:
    """Raise ConfigError unless the model has outputs to name, and a trained one among them."""
    if not isinstance(model, Classifier):
        raise ConfigError(
            f"predict: expected a model from medzoo.create, got {type(model).__name__}. "
            "A model created with features_only=True has no outputs to name."
        )
    if model.num_classes == 0:
        raise ConfigError(f"{model.name}: it has no outputs to name (num_classes=0). Call model(x) for its features.")
    if not allow_untrained and not any(model.outputs.trained):
        raise ConfigError(
            f"{model.name}: no output was trained, so its probabilities mean nothing. Load weights (pretrained=...), "
            "call model.set_outputs(labels=...) after training or loading a bare file, or pass allow_untrained=True."
        )


@dataclass(frozen=True, eq=False)
class _Item:
    """A planned image after preprocessing: its tensor, or the error."""

    planned: PlannedImage
    tensor: Tensor | None
    steps: tuple[str, ...] = ()
    identity: Mapping[str, str] = field(default_factory=dict)
    warning: str = ""
    error: str = ""
    excluded: bool = False


class _Reader(Dataset[_Item]):
    """Reads and preprocesses the n-th planned image; pickled to the workers."""

    def __init__(self, transform: Transform, images: tuple[PlannedImage, ...]) -> None:
        self.transform, self.images = transform, images
        self.last: tuple[object, Image] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> _Item:
        planned = self.images[index]
        try:
            prepared = self.transform.examine(self._read(planned), planned.point)
        except DataError as error:
            return _Item(planned, None, error=str(error), excluded=isinstance(error, ExcludedView))
        except (MemoryError, RuntimeError, ValueError) as error:
            # An unexpected error of a library in one image must not stop the others.
            reason = str(error).split("\n")[0][:200]
            message = f"{planned.label}: preprocessing failed ({reason}). Check the image with medzoo.show(path)."
            return _Item(planned, None, error=message)
        return _Item(planned, prepared.tensor, prepared.steps, dict(prepared.image.identity), prepared.warning)

    def _read(self, planned: PlannedImage) -> Image:
        """Read the image, or return the last one again: a scan may have many points."""
        if isinstance(planned.image, Image):
            return planned.image
        if self.last is None or self.last[0] != planned.image:
            self.last = None  # two scans at once may exceed the memory
            image = read_series(planned.image) if isinstance(planned.image, tuple) else read(planned.image)
            if planned.point is None:
                return image
            self.last = (planned.image, image)
        return self.last[1]


def _run(
    model: Classifier, work: Plan, batch_size: int, device: torch.device | str | None, num_workers: int
) -> Iterator[tuple[Prediction, bool]]:
    """Yield each prediction in order, and whether its view is excluded."""
    reader = _Reader(transform(model), work.images)
    # The loader yields single images, so that a slow or broken one delays no batch; workers read ahead.
    loader: Iterable[_Item] = DataLoader(reader, batch_size=None, num_workers=num_workers)
    results = _Results(model)
    with _inference_mode(model, device) as target:
        runner = optimized_view(model, len(work.images))
        batch: list[_Item] = []
        for item in _check_workers(loader):
            if item.planned.in_memory and item.error and not item.excluded:
                raise DataError(item.error)
            batch.append(item)
            if sum(item.tensor is not None for item in batch) == batch_size:
                yield from _run_batch(runner, batch, target, results)
                batch = []
        yield from _run_batch(runner, batch, target, results)


def _check_workers(loader: Iterable[_Item]) -> Iterator[_Item]:
    """Yield the items, and raise DataError if a worker was killed."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "a worker process that reads images was killed, probably because memory or shared memory ran out. Use "
            "fewer workers (num_workers=0)."
        ) from error


def _run_batch(
    model: Classifier, batch: list[_Item], device: torch.device, results: _Results
) -> Iterator[tuple[Prediction, bool]]:
    """Run the tensors of a batch in one forward pass, and yield all results in order."""
    tensors = [item.tensor for item in batch if item.tensor is not None]
    rows: Iterator[Tensor] = iter(())
    failure = ""
    if tensors:
        like = next(model.parameters())
        try:
            with torch.inference_mode():
                rows = iter(model(torch.stack(tensors).to(device, like.dtype)).float().cpu())
        except InputError as error:  # out of memory: the next batch may be smaller
            failure = str(error)
    for item in batch:
        if item.error or failure:
            yield results.failure(item, item.error or f"{item.planned.label}: {failure}"), item.excluded
        else:
            yield results.success(item, next(rows)), False


@contextmanager
def _inference_mode(model: Classifier, device: torch.device | str | None) -> Iterator[torch.device]:
    """Set eval mode and move the model to the device; restore both afterwards."""
    modes = {module: module.training for module in model.modules()}
    before = next(model.parameters()).device
    target = _check_device(device, model.name) if device is not None else before
    try:
        model.eval().to(target)
        yield target
    finally:
        model.to(before)
        for module, training in modes.items():
            module.training = training


def _check_device(device: torch.device | str, who: str) -> torch.device:
    """Return the device, or raise ConfigError if this machine does not have it."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError):
        found = torch.device("meta")
    if found.type == "meta":
        raise ConfigError(f"{who}: expected a device of this machine, got {str(device)!r}. Use device='cpu'.")
    return found


class _Results:
    """Builds predictions from rows of logits."""

    def __init__(self, model: Classifier) -> None:
        report = model.load_report
        self.outputs = model.outputs
        self.untrained = tuple(
            label for label, trained in zip(self.outputs.labels, self.outputs.trained, strict=True) if not trained
        )
        self.provenance = {
            "model": model.name,
            "weights": _weights_name(report) if report else "none",
            "digest": report.digest if report else "none",
            "medzoo": __version__,
        }

    def failure(self, item: _Item, error: str) -> Prediction:
        """Return a prediction without probabilities."""
        return Prediction(
            source=item.planned.label,
            identity=item.identity,
            provenance=self.provenance,
            point=item.planned.given_point,
            error=error,
        )

    def success(self, item: _Item, logits: Tensor) -> Prediction:
        """Return the named outputs. Logits that are not finite are an error, because NaN would read as negative."""
        if not bool(torch.isfinite(logits).all()):
            return self.failure(
                item,
                f"{item.planned.label}: the model returned NaN or infinity. Use float32, and check its weights.",
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
            warning=item.warning,
        )


def _weights_name(report: LoadReport) -> str:
    """Return the name of the weights, and how many tensors did not come from them."""
    return f"{report.source}, but for {len(report.new)} new tensors of the head" if report.new else report.source
