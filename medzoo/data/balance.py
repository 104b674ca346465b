"""Weights against class imbalance, from the counts of the training part alone.

Axes: l labels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medzoo.data.split import Part
from medzoo.errors import ConfigError
from medzoo.warn import warn

__all__ = ["Balance", "LabelWeights", "class_weights", "positive_weights"]

Balance = Literal["none", "sqrt", "class", "normalised"]
CLAMP = (0.01, 100.0)


class LabelWeights(NamedTuple):
    """Factors of the two terms of binary cross-entropy.

    Attributes:
        positive: ``l``; ``None`` for 1.
        negative: ``l``; ``None`` for 1.
    """

    positive: Tensor | None
    negative: Tensor | None


def positive_weights(part: Part, kind: Balance = "class", clamp: tuple[float, float] = CLAMP) -> LabelWeights:
    """Return weights of positives and negatives for binary cross-entropy; labels that are not known do not count.

    Weights improve no ranking by themselves, and shift the logits: after training with a weight w a probability is too
    high by about log w in the logit, which calibration removes.

    Args:
        part: the training part.
        kind: with p positives and n negatives of a label, ``"class"`` weighs positives by n / p, ``"sqrt"`` by its
            square root, and ``"normalised"`` positives by n / (p + n) and negatives by p / (p + n), which sum to 1.
        clamp: smallest and largest n / p, or its square root; one beyond them is clamped, with a warning.

    Raises:
        ConfigError: there is no such kind, or the part is not the training part.
    """
    if _check(part, kind) == "none":
        return LabelWeights(None, None)
    targets = part.table.targets[part.rows]
    positives, negatives = (targets == 1).sum(0).astype(float), (targets == 0).sum(0).astype(float)
    known = positives + negatives
    names = [
        f"{label} ({int(p)} positive and {int(n)} negative)"
        for label, p, n in zip(part.table.labels, positives, negatives, strict=True)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(known > 0, negatives / positives, 1.0)
    weights = _clamped(np.sqrt(ratio) if kind == "sqrt" else ratio, clamp, names)
    if kind == "normalised":
        return LabelWeights(_tensor(weights / (1 + weights)), _tensor(1 / (1 + weights)))
    return LabelWeights(_tensor(weights), None)


def class_weights(part: Part, kind: Balance = "class", clamp: tuple[float, float] = CLAMP) -> Tensor | None:
    """Return a weight for each class for cross-entropy, or ``None`` for none.

    Args:
        part: the training part; rows without a class do not count.
        kind: with n rows, k classes and n_c rows of a class, ``"class"`` is n / (k n_c), ``"sqrt"`` its square root,
            and ``"normalised"`` is in proportion to ``"class"``, with a sum of 1 over the classes that have rows.
        clamp: smallest and largest weight, before it is normalised; one beyond them is clamped, with a warning.

    Raises:
        ConfigError: there is no such kind, or the part is not the training part.
    """
    if _check(part, kind) == "none":
        return None
    counts = np.nansum(part.table.targets[part.rows], axis=0, dtype=float)
    names = [f"{label} ({int(n)} rows)" for label, n in zip(part.table.labels, counts, strict=True)]
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = counts.sum() / (len(counts) * counts)
    weights = np.where(np.isnan(weights), 1.0, weights)
    weights = _clamped(np.sqrt(weights) if kind == "sqrt" else weights, clamp, names)
    if kind == "normalised" and counts.any():
        weights = weights / weights[counts > 0].sum()
    return _tensor(weights)


def _check(part: Part, kind: str) -> str:
    if kind not in ("none", "sqrt", "class", "normalised"):
        raise ConfigError(f"balance: expected 'none', 'sqrt', 'class' or 'normalised', got {kind!r}.")
    if part.name != "train":
        raise ConfigError(
            f"balance: expected the training part, got the {part.name} part. Its labels must not "
            "influence the training."
        )
    return kind


def _clamped(weights: NDArray[np.float64], clamp: tuple[float, float], names: list[str]) -> NDArray[np.float64]:
    low, high = clamp
    if not 0 < low <= high < float("inf"):
        raise ConfigError(f"balance: expected clamp to be two finite numbers above 0 in order, got {clamp}.")
    beyond = [name for name, weight in zip(names, weights, strict=True) if not low <= weight <= high]
    if beyond:
        more = f" and {len(beyond) - 5} more" if len(beyond) > 5 else ""
        warn(
            f"balance: clamped the weight of {', '.join(beyond[:5])}{more} to [{low:g}, {high:g}]. The training part "
            "has too few rows of one class to learn these labels from."
        )
    return np.clip(weights, low, high)


def _tensor(weights: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(weights).float()
