"""Metrics of a whole validation set, computed once from all of its logits and never averaged over batches.

Axes: n rows, l labels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medzoo.contract import Task
from medzoo.errors import ConfigError
from medzoo.training.numerics import TrainFailed

__all__ = ["ValidationMetrics", "ValidationPredictions", "both_classes", "check_monitor", "merge_shards", "metrics"]


class ValidationPredictions(NamedTuple):
    """What a model returned for every row of the validation part, sorted by row.

    Attributes:
        rows: ``n``, indices into the table.
        logits: ``n l`` float32.
        targets: ``n l`` of 0, 1 and NaN.
    """

    rows: Tensor
    logits: Tensor
    targets: Tensor


class ValidationMetrics(NamedTuple):
    """Metrics of one validation.

    Attributes:
        auroc: mean over the outputs with positives and negatives among the known targets; NaN if there is none.
        accuracy: share of rows whose known labels are all right, at a probability of 0.5 or by the largest logit; NaN
            if no target is known.
        n_auroc: outputs that ``auroc`` is the mean of.
        constant: whether each of these outputs predicts one class for every row.
    """

    auroc: float
    accuracy: float
    n_auroc: int
    constant: bool


def merge_shards(shards: list[ValidationPredictions]) -> ValidationPredictions:
    """Return the predictions of all processes, sorted by row; a row that pads a shard counts once."""
    rows = torch.cat([shard.rows for shard in shards])
    unique, inverse = torch.unique(rows, return_inverse=True)
    first = torch.empty_like(unique).scatter_reduce_(
        0, inverse, torch.arange(len(rows)), reduce="amin", include_self=False
    )
    logits, targets = (torch.cat([shard[i] for shard in shards])[first] for i in (1, 2))
    return ValidationPredictions(unique, logits, targets)


def both_classes(targets: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return for each label whether its known targets ``n l`` have both classes."""
    return np.asarray((targets == 0).any(0) & (targets == 1).any(0))


def metrics(predictions: ValidationPredictions, task: Task) -> ValidationMetrics:
    """Return the metrics of all rows.

    Raises:
        TrainError: a logit is NaN or infinite: the model has diverged.
    """
    from sklearn.metrics import roc_auc_score

    logits, targets = predictions.logits.double(), predictions.targets.numpy()
    bad = (~torch.isfinite(logits)).any(1)
    if bad.any():
        raise TrainFailed.because(
            "validation has logits that are NaN or infinite",
            f"validation: {int(bad.sum())} of {len(bad)} rows have a logit that is NaN or infinite: the training has "
            "diverged. Lower optimizer.lr, or set optimizer.clip.",
        )
    # The logarithm has the ranking of the probability, and does not saturate.
    scores = (logits.log_softmax(1) if task == "multiclass" else logits).numpy()
    known, valid = ~np.isnan(targets), both_classes(targets)
    areas = [roc_auc_score(targets[known[:, i], i], scores[known[:, i], i]) for i in np.flatnonzero(valid)]
    if task == "multiclass":
        rows, predicted = known.all(1), np.eye(targets.shape[1], dtype=bool)[scores.argmax(1)]
        right = predicted.argmax(1) == np.nan_to_num(targets).argmax(1)
    else:
        rows, predicted = known.any(1), scores >= 0
        right = ((predicted == (targets == 1)) | ~known).all(1)
    one_class = [len(np.unique(predicted[known[:, i], i])) == 1 for i in np.flatnonzero(valid)]
    return ValidationMetrics(
        auroc=float(np.mean(areas)) if areas else math.nan,
        accuracy=float(right[rows].mean()) if rows.any() else math.nan,
        n_auroc=len(areas),
        constant=bool(one_class) and all(one_class),
    )


def check_monitor(monitor: str, targets: NDArray[np.float32]) -> None:
    """Raise ConfigError if a validation part with these targets ``n l`` cannot give what is to be monitored.

    A metric that is NaN in every epoch would stop a training after its patience, or never choose a best epoch.
    """
    if not monitor.startswith("valid_"):
        return
    if not (~np.isnan(targets)).any():
        raise ConfigError(f"train.monitor: {monitor} needs labels, but none is known in the validation part.")
    if monitor == "valid_auroc" and not both_classes(targets).any():
        raise ConfigError(
            "train.monitor: valid_auroc needs an output with positives and negatives in the validation part, but "
            f"each of the {targets.shape[1]} has one class alone. Monitor valid_loss, or give the validation part more "
            "rows (split.shares)."
        )
