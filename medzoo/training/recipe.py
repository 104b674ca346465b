"""Recipes: everything that determines a training, as data. A closed schema, read from YAML, and nothing that runs.

``medzoo/training/recipes/*.yaml`` are the recipes in the package. Every field has a default except the model's name, so
a recipe states only what it changes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medzoo.contract import Task

__all__ = [
    "FORMAT",
    "AugmentSection",
    "DataSection",
    "LossSection",
    "ModelSection",
    "OptimizerSection",
    "Recipe",
    "ScheduleSection",
    "SplitSection",
    "TrainSection",
]

FORMAT = 1

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, strict=True)]
Axis = Literal["x", "y", "z"]


class Section(BaseModel):
    """A part of a recipe: frozen, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=())


class ModelSection(Section):
    """Which model starts from which weights."""

    name: str
    pretrained: bool | str = False
    in_chans: Count | None = None
    options: dict[str, bool | int | float | str | list[int] | None] = {}


class DataSection(Section):
    """What the table is made from, and how images are read.

    ``size`` replaces the spatial size of the model's preprocessing, ``spacing`` and the others their fields.
    """

    source: Literal["table"] = "table"
    image: str = "path"
    label: str | list[str] = "label"
    labels: list[str] | None = None
    task: Task | None = None
    patient: str | None = None
    patient_groups: bool = True
    uncertain: Literal["refuse", "mask", "positive", "negative"] = "refuse"
    unreadable: Literal["refuse", "drop"] = "refuse"
    size: Count | list[Count] | None = None
    spacing: list[Positive] | None = None
    intensity: Literal["unit", "window", "zscore", "zscore_nonzero"] | None = None
    window: tuple[float, float] | None = None
    fit: Literal["resize", "crop", "square"] | None = None
    allow_mismatch: bool = False
    cache: Literal["off", "memory", "disk"] = "disk"
    cache_quota_gb: Positive = 100.0


class SplitSection(Section):
    """How rows are divided. ``column`` takes a given split, ``leave_out`` holds out values of a column for the test."""

    shares: tuple[Positive, Positive, NotNegative] = (0.7, 0.15, 0.15)
    seed: Annotated[int, Field(ge=0)] = 0
    draws: Count = 20_000
    column: str | None = None
    leave_out: dict[str, list[str]] | None = None
    folds: Annotated[int, Field(ge=2)] | None = None
    fold: Annotated[int, Field(ge=0)] = 0
    on_leak: Literal["refuse", "drop-valid", "drop-train"] = "refuse"


class AugmentSection(Section):
    """See :class:`medzoo.transforms.augment.Augmentation`."""

    flip: list[Axis] = []
    rotate90: bool = False
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    translate: Rate = 0.0
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0
    crop: tuple[Positive, Positive] = (1.0, 1.0)
    brightness: Rate = 0.0
    contrast: Rate = 0.0
    gamma: tuple[Positive, Positive] = (1.0, 1.0)
    noise: NotNegative = 0.0
    blur: NotNegative = 0.0
    allow_label_flips: bool = False


class LossSection(Section):
    """The loss: binary cross-entropy per output, or cross-entropy of classes; ``auto`` follows the task."""

    kind: Literal["auto", "bce", "cross_entropy"] = "auto"
    balance: Literal["none", "sqrt", "class", "normalised"] = "none"
    weights: list[Positive] | None = None
    clamp: tuple[Positive, Positive] = (0.01, 100.0)
    smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0


class OptimizerSection(Section):
    """The optimiser, and the learning rate at its start or after the warm-up."""

    kind: Literal["adam", "adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.05
    momentum: Rate = 0.9
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    clip: Positive | None = None


class ScheduleSection(Section):
    """The learning rate over the steps: constant, exponential per step (``gamma`` is the factor), or cosine to 0."""

    kind: Literal["constant", "exponential", "cosine"] = "constant"
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    warmup_epochs: NotNegative = 0.0


class TrainSection(Section):
    """The loop.

    ``stop_after`` is the patience in epochs of early stopping on ``monitor``. ``ema`` is the decay of the moving
    average of weights, 0 for none. ``then`` continues a frozen training with all weights for ``then_epochs``.
    """

    epochs: Count = 10
    batch: Count = 16
    accumulate: Count = 1
    ema: Rate = 0.0
    stop_after: Count | None = None
    monitor: Literal["valid_loss", "valid_auroc", "valid_accuracy"] = "valid_loss"
    freeze: Literal["none", "encoder", "features"] = "none"
    then: Literal["finetune"] | None = None
    then_epochs: Count | None = None
    then_lr: Positive | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    workers: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    threads: Count | None = None
    checkpoint_steps: Count | None = None
    checkpoint_minutes: Positive = 10.0
    time_limit_minutes: Positive | None = None


class SourceSection(Section):
    """Where a recipe is from, and what it does otherwise. Has no effect."""

    reference: str = ""
    changes: list[str] = []
    claim: dict[str, Any] = {}


class Recipe(Section):
    """Everything that determines a training."""

    format: Literal[1] = 1
    name: str = "table"
    description: str = ""
    model: ModelSection
    data: DataSection = DataSection()
    split: SplitSection = SplitSection()
    augment: AugmentSection = AugmentSection()
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    train: TrainSection = TrainSection()
    source: SourceSection = SourceSection()
