"""``predict``: from files to named probabilities with provenance.

Axes: b batch, c channels, s spatial axes, n classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from medzoo.classifier import Classifier
from medzoo.contract import Outputs
from medzoo.errors import ConfigError, DataError, InputError, check_int
from medzoo.inference.engine import AnyModel, EngineModel, refuse_engine
from medzoo.inference.naming import name_outputs, provenance, settle
from medzoo.inference.optimize import optimized_view
from medzoo.inference.plan import Plan, Points, plan
from medzoo.inference.reading import ImageReader, PreparedItem, read_all
from medzoo.inference.result import Prediction, Predictions
from medzoo.nn.guards import inner
from medzoo.transforms.suitability import ExcludedView
from medzoo.transforms.transform import ImageSource, transform
from medzoo.warn import warn

__all__ = [
    "RunOptions",
    "Runner",
    "check_caution",
    "check_device",
    "check_engine_device",
    "check_options",
    "check_outputs",
    "input_like",
    "predict",
    "ready_runner",
    "run_plan",
]

# What runs a batch in eval mode, and a tensor of the device and dtype that it takes.
Runner = tuple[Callable[[Tensor], Tensor], Tensor]


class PredictOptions(TypedDict, total=False):
    """The options of :func:`predict`, for its overloads."""

    batch_size: int
    device: torch.device | str | None
    num_workers: int
    points: Points | None
    points_frame: Literal["LPS", "RAS"]
    allow_untrained: bool
    strict: bool
    allow_mismatch: bool
    progress: Callable[[int, int], object] | None


@overload
def predict(model: AnyModel, source: list[Any] | tuple[Any, ...], **options: Unpack[PredictOptions]) -> Predictions: ...
@overload
def predict(model: AnyModel, source: ImageSource, **options: Unpack[PredictOptions]) -> Prediction | Predictions: ...
def predict(
    model: AnyModel,
    source: ImageSource | list[Any] | tuple[Any, ...],
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    num_workers: int = 0,
    points: Points | None = None,
    points_frame: Literal["LPS", "RAS"] = "LPS",
    allow_untrained: bool = False,
    strict: bool = False,
    allow_mismatch: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Prediction | Predictions:
    """Read images, preprocess them as the weights require, run the model, and name every output.

    A file, an array or a folder with one DICOM series returns a :class:`~medzoo.Prediction`; errors are raised. A list,
    a folder tree or points return :class:`~medzoo.Predictions`: a file that cannot be read gets a result with its
    error, objects that are not images are skipped with a reason, and the other images are predicted. An object in
    memory that cannot be an image raises an error, also in a list.

    Slices are one image where patient, study, series, frame of reference, size, direction and spacing agree; phases,
    echoes and stacks of a series or of a multi-frame file are predicted one by one. What is known against an image is
    its ``warning``: lost or unreadable slices, values that cannot be right, tags that are missing.

    The model runs as :func:`medzoo.optimize` would run it; it is not changed. What is derived from its weights for that
    is kept with it until it is deleted, and made again whenever anything about the model has changed; copies and files
    do not have it. A model in training mode or for another device is copied in each call, where a
    :class:`~medzoo.Predictor` copies it once.

    Args:
        model: from :func:`medzoo.create`, or :func:`medzoo.open_onnx`.
        source: a path, an image, an array ``(c, …)``, or a list of those. In a folder tree, and among the files
            of a list, DICOM slices are grouped by series: a 3D model takes series and volumes, a 2D model images.
        batch_size: images per forward pass.
        device: where to run; ``None`` is the device of the model. The model itself is neither moved nor changed.
            One from :func:`medzoo.open_onnx` runs on the CPU alone.
        num_workers: processes that read and preprocess the next images while the model runs. With 0, up to two threads
            do, which leave one core to the model; results and their order do not depend on it.
        points: for a patch model, centres in mm: a list of (x, y, z), or a CSV file like LUNA16's annotations
            (``coordX``, ``coordY``, ``coordZ``, and ``seriesuid`` if it covers several scans).
        points_frame: ``"LPS"`` (DICOM, LUNA16) or ``"RAS"`` (NIfTI).
        allow_untrained: run even if no output was trained; the results list the untrained outputs.
        strict: treat every warning, such as of implausible values, as an error; an allowed mismatch is none.
        allow_mismatch: run even on an image whose file contradicts ``model.intended_use`` or the views of the
            preprocessing: another modality, body part, age or view. The result then has a ``mismatch``.
        progress: called after each image with the number of finished images and the total.

    Raises:
        ConfigError: the model has no outputs, or none that was trained; points for a model of complete images, or none
            for a patch model; ``strict`` with a model that has a caution; or a device that the model cannot run on.
        WrongImage: a DataError; the image is of another kind than the model is for.
        DataError: a file cannot be read, or has the wrong number of dimensions for the model.
        InputError: something that is not an image, or a batch that exceeds the memory.
    """
    check_options(model, batch_size, num_workers, allow_untrained, strict)
    work = plan(model, source, points, points_frame)
    how = RunOptions(batch_size, num_workers, strict, allow_mismatch)
    return run_plan(model, ready_runner(model, device, len(work.images)), work, how, progress)


@dataclass(frozen=True)
class RunOptions:
    """How planned images are run: the options of :func:`predict` of these names."""

    batch_size: int
    num_workers: int
    strict: bool
    allow_mismatch: bool


def run_plan(
    model: AnyModel, runner: Runner, work: Plan, how: RunOptions, progress: Callable[[int, int], object] | None
) -> Prediction | Predictions:
    """Predict what is planned; see :func:`predict`.

    Args:
        model: what names the outputs.
        runner: what runs it, from :func:`ready_runner`.
        work: the images.
        how: the options.
        progress: called after each image.
    """
    skipped = dict(work.skipped)
    results: list[Prediction] = []
    reported: list[str] = []
    categories: dict[str, str] = {}
    reader = ImageReader(transform(model), work.images, provenance(model), how.allow_mismatch)
    with closing(read_all(reader, how.num_workers, how.batch_size)) as items:
        for done, (result, kind) in enumerate(_run(model, runner, items, work, how.batch_size), start=1):
            if progress is not None:
                progress(done, len(work.images))
            result, kind = settle(result, kind, how.strict)
            if result.warning and not result.error:
                reported.append(result.warning)
            if work.single and result.error:
                raise kind(result.error)
            if kind is ExcludedView:
                skipped[result.source] = result.error.removeprefix(f"{result.source}: ")
                categories[result.source] = kind.reason
            else:
                results.append(result)
    if reported:
        more = f" (and {len(reported) - 1} more; see Prediction.warning)" if len(reported) > 1 else ""
        warn(reported[0] + more)
    return results[0] if work.single else Predictions(results, skipped, categories)


def check_options(
    model: AnyModel, batch_size: int, num_workers: int, allow_untrained: bool, strict: bool
) -> None:  # fmt: skip
    """Raise ConfigError for a model or options that :func:`predict` refuses."""
    if isinstance(model, EngineModel):
        check_trained(model, allow_untrained)
    else:
        check_outputs(model, allow_untrained)
    check_caution(model, strict)
    check_int(model.name, "batch_size", batch_size, 1)
    check_int(model.name, "num_workers", num_workers, 0)


def check_outputs(model: Classifier, allow_untrained: bool, who: str = "predict") -> None:
    """Raise ConfigError unless the model is a classifier with outputs to name, and a trained one among them."""
    if isinstance(model, EngineModel):
        raise refuse_engine(model, who)
    if not isinstance(model, Classifier):
        raise ConfigError(
            f"{who}: expected a model from medzoo.create, got {type(model).__name__}. "
            "A model created with features_only=True has no outputs to name."
        )
    if model.num_classes == 0:
        raise ConfigError(f"{model.name}: it has no outputs to name (num_classes=0). Call model(x) for its features.")
    check_trained(model, allow_untrained)


def check_trained(model: AnyModel, allow_untrained: bool) -> None:
    """Raise ConfigError unless an output was trained, or that is not asked for."""
    if not allow_untrained and not any(model.outputs.trained):
        raise ConfigError(
            f"{model.name}: no output was trained, so its probabilities mean nothing. Load weights (pretrained=...), "
            "call model.set_outputs(labels=...) after training or loading a bare file, or pass allow_untrained=True."
        )


def check_caution(model: AnyModel, strict: bool) -> None:
    """Raise ConfigError for a model with a caution, which is a warning of each image, if warnings are errors."""
    if strict and model.outputs.caution:
        raise ConfigError(
            f"{model.name}: expected a model without a caution, as strict treats every warning as an error. "
            f"{model.outputs.caution} Take another model."
        )


def _run(
    model: AnyModel, runner: Runner, items: Iterable[PreparedItem], work: Plan, batch_size: int
) -> Iterator[tuple[Prediction, type[DataError]]]:
    """Yield each prediction in order, and the type of its error if it has one."""
    batch: list[PreparedItem] = []
    for planned, item in zip(work.images, items, strict=True):
        if planned.in_memory and item.prediction.error and item.kind is not ExcludedView:
            raise item.kind(item.prediction.error)
        batch.append(item)
        if sum(item.tensor is not None for item in batch) == batch_size:
            yield from _run_batch(runner, batch, model.outputs)
            batch = []
    yield from _run_batch(runner, batch, model.outputs)


def _run_batch(
    runner: Runner, batch: list[PreparedItem], outputs: Outputs
) -> Iterator[tuple[Prediction, type[DataError]]]:
    """Run the tensors of a batch in one forward pass, and yield all results in order."""
    run, like = runner
    tensors = [item.tensor for item in batch if item.tensor is not None]
    rows: Iterator[Tensor] = iter(())
    failure = ""
    if tensors:
        try:
            with torch.inference_mode():
                rows = iter(run(torch.stack(tensors).to(like)).float().cpu())
        except InputError as error:  # out of memory: the next batch may be smaller
            failure = str(error)
    for item in batch:
        if item.tensor is None:
            yield item.prediction, item.kind
        elif failure:
            message = f"{item.prediction.source}: {failure}"
            yield replace(item.prediction, error=message, reason="out of memory"), DataError
        else:
            yield name_outputs(item, next(rows), outputs), DataError


def ready_runner(model: AnyModel, device: torch.device | str | None, images: int) -> Runner:
    """Return what runs batches in eval mode, and a tensor of the device and dtype that it takes.

    Args:
        model: it is not changed.
        device: where to run; ``None`` is the device of the model.
        images: how many it is to run on.
    """
    if isinstance(model, EngineModel):
        check_engine_device(model, device)
        return model, input_like(model)
    ready = _ready_copy(model, device)
    return optimized_view(ready, None if ready is model else images), input_like(ready)


def input_like(model: AnyModel) -> Tensor:
    """Return a tensor of the device and dtype that a model takes."""
    return torch.empty(0) if isinstance(model, EngineModel) else next(model.parameters())


def check_engine_device(model: EngineModel, device: torch.device | str | None) -> None:
    """Raise ConfigError for a device that the engine does not run on."""
    if device is not None and str(device).partition(":")[0] != "cpu":
        raise ConfigError(
            f"{model.name}: expected the CPU, where alone {model.engine} runs it, got {str(device)!r}. Use "
            "device='cpu', or the model that it was exported from."
        )


def _ready_copy(model: Classifier, device: torch.device | str | None) -> Classifier:
    """Return the model in eval mode on the device.

    A model in training mode or on another device is copied: another thread may be using it.
    """
    here = next(model.parameters()).device
    target = check_device(device, model.name) if device is not None else here
    if target == here and not any(module.training for module in inner(model)):
        return model
    return copy.deepcopy(model).eval().to(target)


def check_device(device: torch.device | str, who: str) -> torch.device:
    """Return the device, or raise ConfigError if this machine does not have it."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError):
        found = torch.device("meta")
    if found.type == "meta":
        raise ConfigError(f"{who}: expected a device of this machine, got {str(device)!r}. Use device='cpu'.")
    return found
