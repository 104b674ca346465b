"""``Predictor``: a ready model for servers and batch engines.

Axes: c channels, s spatial axes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal, Self, TypedDict, Unpack, overload

import torch

from medzoo.errors import DataError
from medzoo.inference.engine import AnyModel, EngineModel
from medzoo.inference.optimize import optimized_copy
from medzoo.inference.plan import Points, plan
from medzoo.inference.result import Prediction, Predictions
from medzoo.inference.run import (
    RunOptions,
    check_device,
    check_engine_device,
    check_options,
    input_like,
    run_plan,
)
from medzoo.transforms.transform import ImageSource, transform

__all__ = ["Predictor"]


class CallOptions(TypedDict, total=False):
    """The options of a call, for its overloads."""

    points: Points | None
    points_frame: Literal["LPS", "RAS"]
    progress: Callable[[int, int], object] | None


class Predictor:
    """A model that is ready to be called again and again: :func:`medzoo.predict` with the options given once.

    It holds a copy of the model in eval mode on its device, optimized as by :func:`medzoo.optimize`; the model is not
    changed, and what happens to it afterwards, such as further training, does not reach the copy. The results are those
    of :func:`medzoo.predict`, in less time: nothing has to be checked again, copied or folded.

    Threads may call it at the same time. It can be pickled, for Ray, Spark and ``multiprocessing``: the weights travel,
    what is derived from them is made again there. For batches of tensors that are ready, call
    :func:`medzoo.optimize`'s model itself.

    Args:
        model: from :func:`medzoo.create`, :func:`medzoo.optimize` or :func:`medzoo.open_onnx`.
        device: where to run; ``None`` is the device of the model.
        batch_size: images per forward pass, for lists and folders.
        num_workers: processes that read ahead, for lists and folders; with 0, up to two threads do.
        allow_untrained: run even if no output was trained; the results list the untrained outputs.
        strict: treat every warning as an error; an allowed mismatch is none.
        allow_mismatch: run even on an image whose file contradicts ``model.intended_use`` or the views.

    Raises:
        ConfigError: the model has no outputs, none that was trained, or no preprocessing; ``strict`` with a model that
            has a caution; or a device that the model cannot run on.

    >>> import medzoo, numpy as np
    >>> model = medzoo.create("xray_cnn", size=64)
    >>> predictor = medzoo.Predictor(model, allow_untrained=True).warm_up()
    >>> prediction = predictor(np.random.default_rng(0).integers(0, 256, (1, 64, 64), np.uint8))
    >>> list(prediction.probabilities)[:2]
    ['Atelectasis', 'Cardiomegaly']
    """

    def __init__(
        self,
        model: AnyModel,
        *,
        device: torch.device | str | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        allow_untrained: bool = False,
        strict: bool = False,
        allow_mismatch: bool = False,
    ) -> None:
        check_options(model, batch_size, num_workers, allow_untrained, strict)
        transform(model)
        self._how = RunOptions(batch_size, num_workers, strict, allow_mismatch)
        self._model = _own(model, device)

    @overload
    def __call__(self, source: list[Any] | tuple[Any, ...], **options: Unpack[CallOptions]) -> Predictions: ...
    @overload
    def __call__(self, source: ImageSource, **options: Unpack[CallOptions]) -> Prediction | Predictions: ...
    def __call__(
        self,
        source: ImageSource | list[Any] | tuple[Any, ...],
        *,
        points: Points | None = None,
        points_frame: Literal["LPS", "RAS"] = "LPS",
        progress: Callable[[int, int], object] | None = None,
    ) -> Prediction | Predictions:
        """Return what :func:`medzoo.predict` returns.

        Args:
            source: a path, an image, an array ``(c, …)``, or a list of those.
            points: for a patch model, centres in mm.
            points_frame: ``"LPS"`` or ``"RAS"``.
            progress: called after each image with the number of finished images and the total.

        Raises:
            ConfigError, WrongImage, DataError, InputError: as :func:`medzoo.predict`.
        """
        work = plan(self._model, source, points, points_frame)
        return run_plan(self._model, (self._model, input_like(self._model)), work, self._how, progress)

    def warm_up(self) -> Self:
        """Do what the first call would otherwise take longer for, and return the predictor.

        The libraries that read DICOM and resample are imported; zeros of another size than the model's are
        preprocessed. Then the model runs on zeros of its own size, in a batch of ``batch_size`` and in one of a single
        image: its weights are folded and packed for that size, and memory is allocated. No result is kept.
        """
        import pydicom.encaps  # noqa: F401

        steps, like = transform(self._model), input_like(self._model)
        size = steps.preprocessing.size
        with contextlib.suppress(DataError):  # an empty image is no valid one
            if steps.preprocessing.patch is None:
                steps.examine(torch.zeros(steps.channels, *(side + 1 for side in size)), allow_mismatch=True)
        with torch.inference_mode():
            for images in sorted({1, self._how.batch_size}, reverse=True):
                self._model(like.new_zeros(images, steps.channels, *size))
        return self

    def __repr__(self) -> str:
        """Return what it is in one line."""
        where = self._model.engine if isinstance(self._model, EngineModel) else input_like(self._model).device
        return f"Predictor({self._model.name} on {where}, batch_size={self._how.batch_size})"


def _own(model: AnyModel, device: torch.device | str | None) -> AnyModel:
    """Return an optimized copy of a model on the device; an engine's model cannot change, and is shared."""
    if isinstance(model, EngineModel):
        check_engine_device(model, device)
        return model
    target = input_like(model).device if device is None else check_device(device, model.name)
    return optimized_copy(model).to(target)
