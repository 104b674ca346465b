"""``ClassificationTask``: a LightningModule for every model of the zoo, usable in any ``Trainer``.

Axes: b batch, l labels.
"""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from medzoo.classifier import Classifier
from medzoo.data.dataset import Batch
from medzoo.data.loader import PlacedLoader
from medzoo.errors import ConfigError, TrainError
from medzoo.training.losses import ClassificationLoss
from medzoo.training.recipe import OptimizerSection, ScheduleSection
from medzoo.training.schedule import per_step
from medzoo.training.validation import ValidationPredictions, check_monitor, merge_shards, metrics
from medzoo.warn import warn

__all__ = ["BatchNormMode", "ClassificationTask", "Freeze"]

Freeze = Literal["none", "encoder", "features"]
BatchNormMode = Literal["train", "frozen"]
# With fewer rows, one predicted class is no evidence of a fault.
ROWS_TO_JUDGE = 20


class ClassificationTask(pl.LightningModule):
    """Trains a classifier on batches of :class:`~medzoo.data.dataset.Batch`, that is image, target and row.

    It logs ``loss``, and after each validation ``valid_loss``, ``valid_auroc``, ``valid_accuracy`` and
    ``valid_n_auroc``, computed from all rows at once; see :func:`medzoo.training.validation.metrics`.

    Args:
        model: from :func:`medzoo.create`, with one output for each label. It is trained in place.
        loss: ``None`` follows the task of the model's outputs, without weights.
        optimizer: section of a recipe; ``None`` is its default, AdamW.
        schedule: likewise; ``None`` is a constant rate.
        freeze: ``"encoder"`` trains the head alone. The encoder then gets no gradient and stays in eval mode, so that
            neither its BatchNorm statistics nor its dropout change. ``"features"`` does so too, and takes batches of
            a :class:`~medzoo.training.frozen.FeatureStore`, the outputs of the encoder, instead of images. ``"none"``
            trains every parameter that requires a gradient.
        batchnorm: ``"frozen"`` keeps every BatchNorm in eval mode, with the statistics of the pretrained weights; its
            scale and shift are still trained. For fine-tuning with small batches.

    Attributes:
        predictions: the logits and targets of the last complete validation, sorted by row; ``None`` before the first.

    Raises:
        ConfigError: an unknown option, a model without a head, or no parameter to train.
    """

    def __init__(
        self,
        model: Classifier,
        *,
        loss: ClassificationLoss | None = None,
        optimizer: OptimizerSection | None = None,
        schedule: ScheduleSection | None = None,
        freeze: Freeze = "none",
        batchnorm: BatchNormMode = "train",
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("freeze", freeze, ("none", "encoder", "features")),
            ("batchnorm", batchnorm, ("train", "frozen")),
        ):
            if value not in known:
                raise ConfigError(f"ClassificationTask: expected {name} to be one of {known}, got {value!r}.")
        if model.num_classes == 0:
            raise ConfigError(
                f"{model.name}: expected a model with a head, got num_classes=0. model.reset_classifier(n) adds one."
            )
        self.model = model
        self.loss = loss or ClassificationLoss("cross_entropy" if model.outputs.task == "multiclass" else "bce")
        self.optimizer, self.schedule = optimizer or OptimizerSection(), schedule or ScheduleSection()
        # Not "freeze", which is a method of LightningModule.
        self.frozen, self.batchnorm = freeze, batchnorm
        self.predictions: ValidationPredictions | None = None
        self._collected: list[ValidationPredictions] = []
        if freeze != "none":
            model.freeze_encoder()
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError(f"{model.name}: no parameter requires a gradient, so there is nothing to train.")

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``b l`` of images, or of features with ``freeze="features"``."""
        return self.model.forward_head(image) if self.frozen == "features" else self.model(image)

    def on_train_start(self) -> None:
        """Refuse a monitor that the validation part cannot give, before the first step, and set the mode."""
        loader = self.trainer.val_dataloaders
        targets = getattr(getattr(loader, "rows", None), "targets", None)
        if isinstance(targets, Tensor):
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(monitor := getattr(callback, "monitor", None), str):
                    check_monitor(monitor, targets.numpy())
        loop = self.trainer.fit_loop
        if loop.restarted_mid_epoch:  # such an epoch has no start
            done = loop.epoch_loop.batch_progress.current.ready
            # After the last batch Lightning continues with the next epoch.
            self._begin(done if done < self.trainer.num_training_batches else 0)

    def on_train_epoch_start(self) -> None:
        """Set the mode, and go to the first batch."""
        self._begin(0)

    def _begin(self, done: int) -> None:
        """Set the mode, and the place of the loader, which Lightning neither saves at an epoch's end nor restores."""
        self._set_mode()
        loader = self.trainer.train_dataloader
        if isinstance(loader, PlacedLoader):
            loader.load_state_dict({"epoch": self.trainer.current_epoch, "done": done})

    def _set_mode(self) -> None:
        """Set training mode, except for what is frozen.

        Lightning leaves the mode as it is, so that a model in eval mode would be trained without dropout. A frozen
        encoder stays in eval mode through ``train()``.
        """
        self.train()
        if self.batchnorm == "frozen":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of a batch.

        Raises:
            TrainError: an image has a value that is NaN or infinite. No statistic of a BatchNorm has seen it yet.
        """
        if not torch.isfinite(batch.image).all():
            bad = batch.row[(~torch.isfinite(batch.image)).flatten(1).any(1)].tolist()
            raise TrainError(
                f"training: expected finite images, got NaN or infinite values in rows {bad[:5]} of the table (from 0)."
            )
        loss = self._mean(*self.loss.parts(self(batch.image), batch.target))
        self.log("loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch.row), sync_dist=True)
        return loss

    def _mean(self, total: Tensor, weight: Tensor) -> Tensor:
        """Divide by the weight of the batch of all processes, as Lightning averages their gradients."""
        weight = weight.detach().clone()
        if (world := self.trainer.world_size) > 1:
            torch.distributed.all_reduce(weight)
        return total * world / weight.clamp(min=torch.finfo(weight.dtype).tiny)

    def on_before_backward(self, loss: Tensor) -> None:
        """Stop at a loss that is NaN or infinite; a callback's hook of this name runs before.

        In float16 the gradient scaler skips such a step and lowers its scale.

        Raises:
            TrainError: so it is.
        """
        if self.trainer.precision != "16-mixed" and not torch.isfinite(loss):
            raise TrainError(
                f"training: the loss is {loss.item()} at step {self.global_step}, and its gradient would destroy the "
                "weights. Lower optimizer.lr, or set optimizer.clip."
            )

    def on_validation_epoch_start(self) -> None:
        """Start without the rows of a validation that did not end."""
        self._collected.clear()

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect the logits; metrics are computed once, from all of them."""
        logits = self(batch.image).float()
        self._collected.append(ValidationPredictions(batch.row.cpu(), logits.cpu(), batch.target.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Compute and log the metrics of the whole validation set, the same in every process.

        Raises:
            TrainError: a logit is NaN or infinite.
        """
        shards, self._collected = self._collected, []
        if self.trainer.sanity_checking:
            return
        if (world := self.trainer.world_size) > 1:
            gathered: list[Any] = [None] * world
            torch.distributed.all_gather_object(gathered, shards)
            shards = [shard for part in gathered for shard in part]
        self.predictions = merge_shards(shards)
        found = metrics(self.predictions, self.model.outputs.task)
        loss = self.loss(self.predictions.logits, self.predictions.targets)
        values = {
            "valid_loss": float(loss),
            "valid_auroc": found.auroc,
            "valid_accuracy": found.accuracy,
            "valid_n_auroc": float(found.n_auroc),
        }
        # Every process has the same values, so the mean over the processes changes none.
        self.log_dict(values, sync_dist=True)

    def on_train_end(self) -> None:
        """Warn if the last validation predicted one class alone."""
        found = self.predictions
        if found is None or len(found.rows) < ROWS_TO_JUDGE or not self.trainer.is_global_zero:
            return
        if metrics(found, self.model.outputs.task).constant:
            warn(
                f"{self.model.name}: the last validation predicts one class for all {len(found.rows)} rows. The model "
                "may need more epochs or another optimizer.lr. If valid_auroc is high, the ranking is right and a "
                "probability of 0.5 is the wrong threshold, as for rare positives."
            )

    def configure_optimizers(self) -> Any:
        """Return the optimiser and the schedule, which steps with each step of the optimiser."""
        how = self.optimizer
        groups = self.model.param_groups(how.lr, how.decay, how.layer_decay)
        optimizer: torch.optim.Optimizer
        if how.kind == "sgd":
            optimizer = torch.optim.SGD(groups, how.lr, momentum=how.momentum)
        elif how.kind == "adam":
            optimizer = torch.optim.Adam(groups, how.lr)
        else:
            optimizer = torch.optim.AdamW(groups, how.lr)
        total = self.trainer.estimated_stepping_batches  # of an infinite loader too
        scheduler = per_step(optimizer, self.schedule, total=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
