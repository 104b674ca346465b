"""Losses over targets of 0, 1 and NaN: a NaN is a label that is not known, and has no part in the loss.

Axes: b batch, l labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medzoo.contract import Task
from medzoo.data.balance import class_weights, positive_weights
from medzoo.data.split import Part
from medzoo.errors import ConfigError
from medzoo.training.recipe import LossSection

__all__ = ["ClassificationLoss", "LossKind", "loss_from_recipe"]

LossKind = Literal["bce", "cross_entropy"]


class ClassificationLoss(nn.Module):
    """Mean loss over the known targets of logits ``b l``, computed in float32.

    Without unknown targets it equals ``torch.nn.BCEWithLogitsLoss(pos_weight=...)``, or
    ``torch.nn.CrossEntropyLoss(weight=..., label_smoothing=...)`` of class indices, whose mean is weighted.

    The weights are neither parameters nor buffers: they are in no state dict, and no average of weights changes them.
    They follow the module to its device.

    Args:
        kind: ``"bce"``, one sigmoid per output, or ``"cross_entropy"``, one softmax over the outputs.
        positive_weight: ``l``, factor of the positive term of each output, or of each class.
        negative_weight: ``l``, factor of the negative term; only for ``"bce"``.
        smoothing: in [0, 0.5): targets of 0 and 1 become ``smoothing / 2`` and ``1 - smoothing / 2``, the target of
            the true class ``1 - smoothing + smoothing / l`` and of any other ``smoothing / l``.

    Raises:
        ConfigError: there is no such loss, or the weights do not belong to it.
    """

    def __init__(
        self,
        kind: LossKind,
        positive_weight: Tensor | None = None,
        negative_weight: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in ("bce", "cross_entropy"):
            raise ConfigError(f"ClassificationLoss: expected kind to be 'bce' or 'cross_entropy', got {kind!r}.")
        if negative_weight is not None and kind != "bce":
            raise ConfigError("ClassificationLoss: cross_entropy takes one weight per class, got a negative_weight.")
        if not 0.0 <= smoothing < 0.5:
            raise ConfigError(f"ClassificationLoss: expected smoothing in [0, 0.5), got {smoothing!r}.")
        for name, weight in (("positive_weight", positive_weight), ("negative_weight", negative_weight)):
            if weight is not None and (weight.ndim != 1 or not bool((weight > 0).all() & weight.isfinite().all())):
                raise ConfigError(
                    f"ClassificationLoss: expected {name} to be one finite number above 0 for each output, got "
                    f"{weight.tolist()}."
                )
        self.kind, self.smoothing = kind, smoothing
        self.positive_weight, self.negative_weight = positive_weight, negative_weight

    @property
    def relative_weights(self) -> tuple[float, ...]:
        """Weight of the positives of each output as a multiple of its negatives, or of each class; empty without."""
        if self.positive_weight is None:
            return ()
        weight = self.positive_weight if self.negative_weight is None else self.positive_weight / self.negative_weight
        return tuple(weight.double().cpu().tolist())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the weights with the module: ``to``, ``cuda`` and ``cpu`` end here."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.positive_weight = None if self.positive_weight is None else fn(self.positive_weight)
        self.negative_weight = None if self.negative_weight is None else fn(self.negative_weight)
        return self

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of logits ``b l`` and targets ``b l``; 0 where no target is known."""
        total, weight = self.parts(logits, targets)
        return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)

    def parts(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum and the weight that it is divided by, which processes can add before they divide.

        Raises:
            ConfigError: logits, targets and weights are not of one shape.
        """
        given = self.positive_weight if self.positive_weight is not None else self.negative_weight
        if logits.shape != targets.shape or (given is not None and len(given) != logits.shape[-1]):
            raise ConfigError(
                f"ClassificationLoss: expected targets of the shape of the logits, {tuple(logits.shape)}, got "
                f"{tuple(targets.shape)}" + ("" if given is None else f", and {len(given)} weights") + "."
            )
        logits = logits.float()
        return self._cross_entropy(logits, targets) if self.kind == "cross_entropy" else self._bce(logits, targets)

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        known = ~targets.isnan().any(1)
        classes = torch.where(known, targets.nan_to_num().argmax(1), -100)  # -100 is ignored
        weight = _on(self.positive_weight, logits)
        total = F.cross_entropy(logits, classes, weight, reduction="sum", label_smoothing=self.smoothing)
        counts = known.float() if weight is None else weight[classes.clamp(min=0)] * known
        return total, counts.sum()

    def _bce(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        known = ~targets.isnan()
        targets = torch.where(known, targets, 0.0).to(logits.dtype)
        if self.smoothing:
            targets = targets * (1 - self.smoothing) + self.smoothing / 2
        positive, negative = _on(self.positive_weight, logits), _on(self.negative_weight, logits)
        if negative is None:
            each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=positive)
        else:
            ratio = 1 / negative if positive is None else positive / negative
            each = negative * F.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=ratio)
        return torch.where(known, each, 0.0).sum(), known.sum().to(logits.dtype)

    def extra_repr(self) -> str:
        """Show the weights, which are no parameters."""
        parts = [repr(self.kind)]
        for name in ("positive_weight", "negative_weight"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name}={[round(v, 4) for v in value.tolist()]}")
        if self.smoothing:
            parts.append(f"smoothing={self.smoothing}")
        return ", ".join(parts)


def _on(weight: Tensor | None, like: Tensor) -> Tensor | None:
    """Return the weight in the dtype and on the device of a tensor: validation may be on another device."""
    return None if weight is None else weight.to(like)


def loss_from_recipe(section: LossSection, task: Task, part: Part) -> ClassificationLoss:
    """Return the loss that a recipe asks for, with weights from the counts of the training part.

    Args:
        section: of the recipe.
        task: of the labels. ``auto`` is cross-entropy for ``"multiclass"``, binary cross-entropy otherwise.
        part: the training part.

    Raises:
        ConfigError: a loss that does not go with the task, weights given twice or not one for each label, or a part
            that is not the training part.
    """
    labels = part.table.labels
    kind: LossKind = "cross_entropy" if task == "multiclass" else "bce"
    if section.kind not in ("auto", kind):
        better = "bce" if section.kind == "cross_entropy" else "cross_entropy"
        raise ConfigError(
            f"loss.kind: {section.kind} does not go with {task} labels ({', '.join(labels)}), which need {better}. "
            "Leave out loss.kind, or set data.task."
        )
    given = section.weights
    if given is not None and kind == "bce" and len(labels) == 1 and len(given) == 2:
        negative, positive = (torch.tensor([value]) for value in given)
        return ClassificationLoss(kind, positive, negative, section.smoothing)
    if given is not None:
        if len(given) != len(labels):
            either = " or 2, of the negative and the positive class" if task == "binary" else ""
            raise ConfigError(
                f"loss.weights: expected {len(labels)}, one for each of {', '.join(labels)}{either}, got {len(given)}."
            )
        return ClassificationLoss(kind, torch.tensor(given), None, section.smoothing)
    if kind == "cross_entropy":
        weight = class_weights(part, section.balance, clamp=section.clamp)
        return ClassificationLoss(kind, weight, None, section.smoothing)
    weights = positive_weights(part, section.balance, clamp=section.clamp)
    return ClassificationLoss(kind, weights.positive, weights.negative, section.smoothing)
