"""``AveragedWeights``: Lightning's moving average of weights, exact over a resume."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

__all__ = ["AveragedWeights"]


class AveragedWeights(WeightAveraging):
    """The exponential moving average of weights and of BatchNorm's statistics; the trained model gets the average.

    What no step changes keeps its bits, though ``decay * w + (1 - decay) * w`` rounds to others than those of ``w``.
    Copied are frozen parameters, integers such as the count of batches, and buffers that are not in the state dict,
    which a checkpoint would not restore.

    Args:
        decay: share of the former average that a step keeps.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(avg_fn=self._average)
        self.decay, self._transferred = decay, False

    @torch.no_grad()
    def _average(self, average: Tensor, current: Tensor, _: Tensor) -> Tensor:
        """Return the new average of a parameter or a buffer."""
        if not average.is_floating_point():
            return current
        return torch.where(average == current, average, self.decay * average + (1 - self.decay) * current)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after a step of the optimiser."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        assert self._average_model is not None  # noqa: S101  # made in setup
        average, stored = self._average_model.module, pl_module.state_dict().keys()
        for weight, parameter in zip(average.parameters(), pl_module.parameters(), strict=True):
            if not parameter.requires_grad:
                weight.data.copy_(parameter.data)
        for held, (name, buffer) in zip(average.buffers(), pl_module.named_buffers(), strict=True):
            if name not in stored:
                held.data.copy_(buffer.data)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the average to the model."""
        super().on_train_end(trainer, pl_module)
        self._transferred = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the average to the model when a resume had no step left, in which case no training starts or ends."""
        if not self._transferred:
            super().on_train_end(trainer, pl_module)
