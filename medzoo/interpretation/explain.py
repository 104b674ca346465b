"""``medzoo.explain``: which region of an image drove an output.

Axes: none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

import torch

from medzoo.classifier import Classifier
from medzoo.inference.plan import Points
from medzoo.inference.result import Prediction, Predictions
from medzoo.interpretation.explanation import Explanation, Explanations
from medzoo.interpretation.explanation_run import ExplanationRun, Method
from medzoo.transforms.transform import ImageSource
from medzoo.warn import warn

__all__ = ["ExplainOptions", "explain", "explain_each"]


class ExplainOptions(TypedDict, total=False):
    """The options of :func:`explain`, for its overloads and for :func:`explain_each`."""

    layer: str | None
    mask_size: int | Sequence[int] | None
    points: Points | None
    points_frame: Literal["LPS", "RAS"]
    batch_size: int
    device: torch.device | str | None
    allow_untrained: bool
    strict: bool
    allow_mismatch: bool
    progress: Callable[[int, int], object] | None


Target = str | Sequence[str] | None


@overload
def explain(
    model: Classifier, source: list[Any] | tuple[Any, ...], target: Target = None, method: Method = "gradcam",
    **options: Unpack[ExplainOptions],
) -> Explanations: ...  # fmt: skip
@overload
def explain(
    model: Classifier, source: ImageSource, target: Target = None, method: Method = "gradcam",
    **options: Unpack[ExplainOptions],
) -> Explanation | Explanations: ...  # fmt: skip
def explain(
    model: Classifier,
    source: ImageSource | list[Any] | tuple[Any, ...],
    target: Target = None,
    method: Method = "gradcam",
    *,
    layer: str | None = None,
    mask_size: int | Sequence[int] | None = None,
    points: Points | None = None,
    points_frame: Literal["LPS", "RAS"] = "LPS",
    batch_size: int = 1,
    device: torch.device | str | None = None,
    allow_untrained: bool = False,
    strict: bool = False,
    allow_mismatch: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Explanation | Explanations:
    """Return which region of an image influenced an output of a model: a map of influence, not a localisation.

    Images are read, preprocessed and named as :func:`medzoo.predict` does, and its rules decide which errors are raised
    and which recorded. One image gives an :class:`~medzoo.Explanation`, several give :class:`~medzoo.Explanations`. The
    maps of a model with low precision are computed in float32. The model is not changed, and may be used by other
    threads.

    - ``"gradcam"`` (Selvaraju et al., https://arxiv.org/abs/1610.02391) weights the channels of a layer by their mean
      gradient, and keeps what raises the output. One forward pass, and a backward pass to the layer for each target.
    - ``"gradcam++"`` (Chattopadhay et al., https://arxiv.org/abs/1710.11063) weights the places of a channel too, in
      MONAI's form of it.
    - ``"occlusion"`` (Zeiler and Fergus, https://arxiv.org/abs/1311.2901) hides one box of the image after the other by
      the mean of each channel, and keeps by how much the logit falls: also negative, where a region lowers the output.
      It takes 225 forward passes for an image of 224 x 224, and 343 for a volume of 96 x 96 x 96.

    The first call imports MONAI, which takes seconds.

    Args:
        model: from :func:`medzoo.create` or :func:`medzoo.optimize`, in any mode.
        source: a path, an image, an array ``(c, …)``, or a list of those, as in :func:`medzoo.predict`.
        target: the label of the output to explain, or several. ``None`` is, for each image, the output with the highest
            probability; of those that were trained, if any was.
        method: ``"gradcam"``, ``"gradcam++"`` or ``"occlusion"``.
        layer: dotted name of the module whose map is weighted. ``None`` is the ``cam_layer`` of the registration; where
            its map has fewer than 4 cells along an axis, the deepest stage whose map has them. The result names it.
        mask_size: for occlusion, the sides of the box in voxels of the model's input, one number or one for each axis;
            ``None`` is an eighth of each side of an image, and a quarter of a volume's. Boxes overlap by half.
        points: for a patch model, centres in mm: a list of (x, y, z), or a CSV file like LUNA16's annotations.
        points_frame: ``"LPS"`` (DICOM, LUNA16) or ``"RAS"`` (NIfTI).
        batch_size: images per forward pass; for occlusion, copies of an image. An image has the same map in any batch.
        device: where to run; ``None`` is the device of the model.
        allow_untrained: explain outputs that were not trained; the predictions list them.
        strict: treat every warning of a prediction as an error, but not what an explanation warns of.
        allow_mismatch: run even on an image of another kind than the model is for, as in :func:`medzoo.predict`.
        progress: called with the number of finished images and the total; for occlusion, of copies of the images.

    Raises:
        ConfigError: no such target, method or layer; an output that was not trained; a layer that returns no map;
            ``layer`` for occlusion or ``mask_size`` for another method; or what :func:`medzoo.predict` raises.
        WrongImage, DataError, InputError: as :func:`medzoo.predict`.

    >>> import medzoo, numpy as np
    >>> model = medzoo.create("resnet18_multilabel").eval()
    >>> x_ray = np.random.default_rng(0).integers(0, 256, (1, 400, 300), np.uint8)
    >>> found = medzoo.explain(model, x_ray, target="Effusion", allow_untrained=True)
    >>> found.map.shape, found.layer
    ((400, 300), 'encoder.layer4')
    """
    run = ExplanationRun(
        model, source, target, method, layer=layer, mask_size=mask_size, points=points, points_frame=points_frame,
        batch_size=batch_size, device=device, allow_untrained=allow_untrained, strict=strict,
        allow_mismatch=allow_mismatch, progress=progress, keep_images=False,
    )  # fmt: skip
    found: list[Explanation] = []
    predictions: list[Prediction] = []
    reported: list[str] = []
    for result in run:
        if isinstance(result, Prediction):
            predictions.append(result)
            continue
        found.append(result)
        predictions.append(result.prediction)
        reported += filter(None, [result.prediction.warning, result.warning])
    if reported:
        more = f" (and {len(reported) - 1} more; see Explanation.warning and .prediction)" if len(reported) > 1 else ""
        warn(reported[0] + more)
    return found[0] if run.single else Explanations(found, Predictions(predictions, run.skipped, run.categories))


def explain_each(
    model: Classifier,
    source: ImageSource | list[Any] | tuple[Any, ...],
    target: Target = None,
    method: Method = "gradcam",
    **options: Unpack[ExplainOptions],
) -> ExplanationRun:
    """Return what yields the explanations of :func:`explain` one at a time, with their images, and warns of nothing.

    An image that failed yields its :class:`~medzoo.Prediction` with the error.

    >>> import medzoo, numpy as np
    >>> model = medzoo.create("cnn3d_small", size=32).eval()
    >>> for found in explain_each(model, [np.random.rand(1, 40, 40, 40)], allow_untrained=True):
    ...     print(found.prediction.source, found.image.array.shape)
    array 0 (1, 40, 40, 40)
    """
    return ExplanationRun(model, source, target, method, **options)
