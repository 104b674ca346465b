"""``create``: from a name to a model with its weights, in one line.

1. *resolve*: a name, tag, path, folder or Hub repository becomes a registered model and one record of weights;
2. *obtain*: the bytes of the record, verified, become tensors by medzoo's names;
3. *build*: the builder makes the model, on the meta device if tensors follow;
4. *load*: the model gets its tensors, strictly;
5. *describe*: outputs, preprocessing and the load report are set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, overload

from medzoo.assembly import assemble
from medzoo.classifier import Classifier
from medzoo.contract import Preprocessing, Task
from medzoo.errors import ConfigError
from medzoo.features import FeatureExtractor
from medzoo.resolve import resolve
from medzoo.weights.obtain import obtain

__all__ = ["create"]


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
    asked = resolve(
        model,
        pretrained,
        options,
        num_classes=num_classes,
        in_chans=in_chans,
        labels=labels,
        task=task,
        preprocessing=preprocessing,
    )
    name, weights = asked.spec.name, asked.weights
    if out_indices is not None and not features_only:
        raise ConfigError(f"{name}: out_indices chooses among the maps that features_only=True returns.")
    if features_only:
        if asked.num_classes is not None or task is not None:
            raise ConfigError(f"{name}: features_only=True returns maps; num_classes, labels and task do not apply.")
        asked = replace(asked, num_classes=0)
    obtained = obtain(weights, weights.title(name)) if weights else None
    built = assemble(asked, obtained)
    return FeatureExtractor(built, out_indices).train(built.training) if features_only else built
