"""Losses over targets of 0, 1 and NaN: a NaN is a label that is not known, and has no part in the loss.

Axes: b batch, l labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ClassificationLoss"]


class ClassificationLoss(nn.Module):
    """Mean loss over the known targets.

    Args:
        kind: ``"bce"``, one sigmoid per output, or ``"cross_entropy"``, one softmax over the outputs.
        positive_weight: ``l``, factor of the positive term of each output, or of each class.
        negative_weight: ``l``, factor of the negative term; only for ``"bce"``.
        smoothing: targets become ``smoothing / 2`` and ``1 - smoothing / 2``, or for classes
            ``1 - smoothing + smoothing / l``.
    """

    def __init__(
        self,
        kind: str,
        positive_weight: Tensor | None = None,
        negative_weight: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.kind, self.smoothing = kind, smoothing
        self.register_buffer("positive_weight", positive_weight, persistent=False)
        self.register_buffer("negative_weight", negative_weight, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of logits ``b l`` and targets ``b l``; 0 where no target is known."""
        known = ~targets.isnan()
        if self.kind == "cross_entropy":
            rows = known.all(1)
            targets = torch.where(rows[:, None], targets, 0.0)
            each = F.cross_entropy(
                logits.float(), targets, self.positive_weight, reduction="none", label_smoothing=self.smoothing
            )
            return each.where(rows, 0.0).sum() / rows.sum().clamp(min=1)
        targets = torch.where(known, targets, 0.0)
        if self.smoothing:
            targets = targets * (1 - self.smoothing) + self.smoothing / 2
        logits = logits.float()
        positive, negative = targets * F.softplus(-logits), (1 - targets) * F.softplus(logits)
        if self.positive_weight is not None:
            positive = positive * self.positive_weight
        if self.negative_weight is not None:
            negative = negative * self.negative_weight
        return (positive + negative).where(known, 0.0).sum() / known.sum().clamp(min=1)
