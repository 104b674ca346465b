"""What a training would take on this machine: memory by counting, time by a few real steps."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from medzoo.training.fit import fit
from medzoo.training.setup import Setup
from medzoo.training.wait import Speed

__all__ = ["FewSteps", "MemoryPlan", "TimePlan", "activation_bytes", "peak_memory", "plan_memory", "plan_time"]

STATES = {"adam": 2, "adamw": 2, "sgd": 1}  # tensors of the optimiser for each weight


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a training holds at once.

    Attributes:
        weights: all parameters and buffers.
        gradients: of the parameters that are trained.
        optimizer: its state.
        average: the moving average of the weights.
        activations: kept for the backward pass of one batch, in float32; what an operation takes in between is not in
            it.
        batch: rows of that batch.
        images: the cached images.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    batch: int
    images: int

    @property
    def total(self) -> int:
        """Everything but the images, which are on disk or shared."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


@dataclass(frozen=True)
class TimePlan:
    """Time of a training by a few steps of it, measured now; another load of the machine gives another.

    Attributes:
        step_seconds: of a training step, the wait for its batch included.
        valid_step_seconds: of a batch of validation.
        steps: training batches of an epoch.
        valid_steps: validation batches of an epoch.
        epochs: of the training.
        samples_per_second: training rows per second.
        data_wait_share: share of the training time that waits for data; ``None`` if not measured.
        checkpoint_bytes: size of a checkpoint; two are kept.
    """

    step_seconds: float
    valid_step_seconds: float
    steps: int
    valid_steps: int
    epochs: int
    samples_per_second: float
    data_wait_share: float | None
    checkpoint_bytes: int

    @property
    def epoch_seconds(self) -> float:
        """Training and validation of one epoch."""
        return self.steps * self.step_seconds + self.valid_steps * self.valid_step_seconds

    @property
    def total_seconds(self) -> float:
        """All epochs."""
        return self.epochs * self.epoch_seconds


class FewSteps(pl.Callback):
    """Cuts a training to a few batches of training and validation in each of a few epochs."""

    def __init__(self, train: int, valid: int, epochs: int = 1) -> None:
        self.train, self.valid, self.epochs = train, valid, epochs

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set the limits, before the loops read them."""
        trainer.limit_train_batches, trainer.limit_val_batches = self.train, self.valid
        trainer.fit_loop.max_epochs = self.epochs


def plan_memory(setup: Setup, images: int) -> MemoryPlan:
    """Count the bytes of a training; the activations are measured by one forward pass of a batch on the CPU.

    Args:
        setup: of the training; the gradients of its model are cleared.
        images: bytes of the cached images.
    """
    how = setup.recipe
    every = [*setup.model.parameters(), *setup.model.buffers()]
    trained = [parameter for parameter in setup.model.parameters() if parameter.requires_grad]
    gradients = _bytes(trained)
    states = 0 if how.optimizer.kind == "sgd" and not how.optimizer.momentum else STATES[how.optimizer.kind]
    batch = next(iter(setup.data.val_dataloader()))
    return MemoryPlan(
        weights=_bytes(every),
        gradients=gradients,
        optimizer=states * gradients,
        average=_bytes(every) if how.train.ema else 0,
        # Validation batches are of the same size; the training loader would move on.
        activations=activation_bytes(setup.model, batch.image) * how.train.batch // len(batch.image),
        batch=how.train.batch,
        images=images,
    )


def activation_bytes(model: nn.Module, image: Tensor) -> int:
    """Return the bytes that a forward pass of ``b c *s`` keeps for the backward pass, without parameters."""
    owned = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # the tensor, so that its address is not used again
        return tensor

    with _train_mode(model), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(image)
    return sum(size for size, _ in kept.values())


def plan_time(setup: Setup, folder: Path, *, train: int = 4, valid: int = 3) -> TimePlan:
    """Run a few batches of training and validation, and return the time of all by them.

    Args:
        setup: of the training; its model is trained by these steps.
        folder: for a checkpoint.
        train: batches of training; the first is not counted.
        valid: batches of validation.
    """
    import sklearn.metrics  # noqa: F401  # which the first validation would wait for

    speed = Speed()
    with warnings.catch_warnings():  # of a model that has hardly been trained
        warnings.simplefilter("ignore", UserWarning)
        fit(setup, folder, callbacks=[FewSteps(train, valid), speed])
    step = _mean(speed.step_seconds)
    return TimePlan(
        step_seconds=step,
        valid_step_seconds=_mean(speed.valid_step_seconds),
        steps=len(setup.data.train_dataloader()),
        valid_steps=len(setup.data.val_dataloader()),
        epochs=setup.recipe.train.epochs,
        samples_per_second=min(setup.recipe.train.batch, len(setup.split.train)) / step,
        data_wait_share=speed.data_wait_share,
        checkpoint_bytes=max((path.stat().st_size for path in folder.rglob("*.ckpt")), default=0),
    )


def _mean(seconds: list[float]) -> float:
    """Return the mean without the first, in which workers start and memory is reserved."""
    counted = seconds[1:] or seconds
    return sum(counted) / max(1, len(counted))


def peak_memory() -> int | None:
    """Return the most bytes that this process has had in memory, on the GPU if one was used; ``None`` on Windows."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        resource = import_module("resource")
    except ImportError:
        return None
    most = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return most if sys.platform == "darwin" else 1024 * most


def _bytes(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def _train_mode(model: nn.Module) -> Iterator[None]:
    """Compute as in training, and leave the BatchNorm statistics as they were."""
    modes = {module: module.training for module in model.modules()}
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
        for module, mode in modes.items():
            module.training = mode
