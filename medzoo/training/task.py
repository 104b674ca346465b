"""``ClassificationTask``: a LightningModule for every model of the zoo, usable in any ``Trainer``.

Axes: b batch, l labels.
"""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from medzoo.classifier import Classifier
from medzoo.data.dataset import Batch
from medzoo.errors import TrainError
from medzoo.training.losses import ClassificationLoss
from medzoo.training.recipe import OptimizerSection, ScheduleSection

__all__ = ["ClassificationTask"]

Freeze = Literal["none", "encoder", "features"]


class ClassificationTask(pl.LightningModule):
    """Trains a classifier on batches of :class:`~medzoo.data.dataset.Batch`.

    Args:
        model: from :func:`medzoo.create`.
        loss: ``None`` follows the task of the model's outputs, without weights.
        optimizer: a section of a recipe.
        schedule: likewise.
        freeze: ``"encoder"`` trains the head alone; the encoder then stays in eval mode.
    """

    def __init__(
        self,
        model: Classifier,
        *,
        loss: ClassificationLoss | None = None,
        optimizer: OptimizerSection | None = None,
        schedule: ScheduleSection | None = None,
        freeze: Freeze = "none",
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss or ClassificationLoss("cross_entropy" if model.outputs.task == "multiclass" else "bce")
        self.optimizer, self.schedule, self.freeze = (
            optimizer or OptimizerSection(),
            schedule or ScheduleSection(),
            freeze,
        )
        self.collected: list[tuple[Tensor, Tensor, Tensor]] = []
        if freeze != "none":
            model.encoder.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``b l``."""
        return self.model(image)

    def on_train_epoch_start(self) -> None:
        """Keep a frozen encoder in eval mode: the statistics of its BatchNorm would move otherwise."""
        if self.freeze != "none":
            self.model.encoder.eval()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of a batch."""
        if not torch.isfinite(batch.image).all():
            raise TrainError("a NaN")
        loss = self.loss(self.model(batch.image), batch.target)
        if not torch.isfinite(loss):
            raise TrainError("a NaN")
        self.log("loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch.row))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect the logits; metrics are computed once, from all of them."""
        self.collected.append((batch.row.cpu(), self.model(batch.image).float().cpu(), batch.target.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Compute and log the metrics of the whole validation set."""
        rows, logits, targets = (torch.cat(part) for part in zip(*self.collected, strict=True))
        self.collected.clear()
        loss = self.loss.cpu()(logits, targets)
        self.loss.to(self.device)
        self.log("valid_loss", loss)
        self.predictions = (rows, logits, targets)

    def configure_optimizers(self) -> Any:
        """Return the optimiser and the schedule, which steps with each step of the optimiser."""
        how = self.optimizer
        groups = self.model.param_groups(how.lr, how.weight_decay, how.layer_decay)
        optimizer: torch.optim.Optimizer
        if how.kind == "sgd":
            optimizer = torch.optim.SGD(groups, how.lr, momentum=how.momentum)
        elif how.kind == "adam":
            optimizer = torch.optim.Adam(groups, how.lr)
        else:
            optimizer = torch.optim.AdamW(groups, how.lr)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        per_epoch = total / max(1, self.trainer.max_epochs or 1)
        factor = _Factor(self.schedule, total, round(self.schedule.warmup_epochs * per_epoch))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class _Factor:
    """The learning rate of a step, as a share of the highest."""

    def __init__(self, schedule: ScheduleSection, total: int, warmup: int) -> None:
        self.schedule, self.total, self.warmup = schedule, total, warmup

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        import math

        if self.schedule.kind == "exponential":
            return self.schedule.gamma ** (step - self.warmup)
        if self.schedule.kind == "cosine":
            share = (step - self.warmup) / max(1, self.total - self.warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        return 1.0
