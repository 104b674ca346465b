"""Recipes: everything that determines a training, as data. A closed schema, read from YAML, and nothing that runs.

``medzoo/training/recipes/*.yaml`` are the recipes in the package. Every field has a default except the model's name, so
a recipe states only what it changes. A default does not change within a format.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from medzoo.contract import Task
from medzoo.errors import ConfigError
from medzoo.training.recipe_types import (
    Count,
    Factor,
    Finite,
    Flag,
    NotNegative,
    Positive,
    Range,
    Rate,
    Section,
    Text,
    Whole,
    list_text,
    ordered,
)

__all__ = [
    "FORMAT",
    "PREPROCESSING_FIELDS",
    "AugmentSection",
    "DataSection",
    "DecideSection",
    "LossSection",
    "ModelSection",
    "OptimizerSection",
    "ProtocolSection",
    "Recipe",
    "ScheduleSection",
    "SplitSection",
    "TrainSection",
]

FORMAT = 1

PREPROCESSING_FIELDS = ("spacing", "intensity", "window", "fit", "patch", "orientation", "foreground", "resample")
"""Fields of ``data`` that replace those of the model's preprocessing as they are; ``size`` may be a single number."""

Axis = Literal["x", "y", "z"]


class ModelSection(Section):
    """Which model starts from which weights.

    ``name`` may also be ``local-dir:FOLDER`` or ``hf-hub:OWNER/REPO``; ``pretrained`` is a tag, a file, or true for the
    default weights. ``options`` are those of :func:`medzoo.create`, such as ``size``.
    """

    name: Text
    pretrained: Flag | Text = Field(default=False, description="true, false, a tag or a file")
    in_chans: Count | None = None
    options: dict[Text, Flag | int | Finite | Text | tuple[int, ...] | None] = Field(
        default={}, description="plain values, such as size: 64"
    )


class DataSection(Section):
    """What the table is made from, and how images are read.

    ``image``, ``label`` and ``patient`` are columns; for a folder with a folder for each class, ``patient`` is a
    regular expression with one group, and for DICOM the keyword of an element. ``key`` is the DICOM keyword by which a
    table is joined to the images of a folder, such as AccessionNumber; ``choose`` and ``unmatched`` are for it.
    ``labels``, ``positive``, ``sep``, ``no_finding``, ``others``, ``uncertain`` and ``blank`` are the meaning of the
    labels: see :class:`~medzoo.data.label_rules.LabelOptions`, which calls the first ``names`` and the fourth ``none``.

    ``size`` replaces the spatial size of the model's preprocessing, ``spacing``, ``intensity``, ``window`` and ``fit``
    theirs, and so do ``orientation``, ``foreground`` and ``resample``. ``patch`` are the sides in mm of the box around
    the point of a row, which the columns ``point`` give in ``points_frame``; it replaces spacing and foreground.

    ``source`` is the layout of a published set; ``missing``, ``findings``, ``mapping``, ``negatives``, ``sample_seed``,
    ``sequence``, ``roi`` and ``same_person`` are for it: see
    :class:`~medzoo.data.sources.options.SourceOptions`. A .csv or .npz file is read as a table with any ``source``;
    of a .csv file, ``roi`` is the column with the region whose centre is the point of a row.
    """

    source: Literal["table", "chestxray14", "egfr", "kermany", "luna16", "medmnist", "mgmt", "rsna"] = "table"
    missing: Literal["refuse", "drop"] = "refuse"
    findings: tuple[Text, ...] | None = None
    mapping: Text | None = None
    negatives: Positive | None = None
    sample_seed: Whole = 0
    sequence: Text | None = None
    roi: Text | None = None
    same_person: Text | None = None
    image: Text = "path"
    label: Text | tuple[Text, ...] = Field(default="label", description="a column, or a list of columns")
    task: Task | None = None
    labels: tuple[Text, ...] | None = None
    positive: Text | None = None
    sep: Text | None = None
    no_finding: Text = "No Finding"
    others: Literal["refuse", "negative"] = "refuse"
    uncertain: Literal["refuse", "mask", "positive", "negative"] = "refuse"
    blank: Literal["refuse", "mask", "negative"] | None = None
    patient: Text | None = None
    patient_groups: Flag = True
    duplicates: Literal["refuse", "drop"] = "refuse"
    key: Text | None = None
    choose: Literal["refuse", "most-slices", "all"] = "refuse"
    unmatched: Literal["refuse", "drop"] = "refuse"
    unreadable: Literal["refuse", "drop"] = "refuse"
    point: tuple[Text, Text, Text] | None = Field(default=None, description="three columns, x, y and z in mm")
    points_frame: Literal["LPS", "RAS"] = "LPS"
    size: Count | tuple[Count, ...] | None = Field(
        default=None, description="a whole number >= 1, or a list of 2 or 3 of them"
    )
    spacing: tuple[Positive, Positive, Positive] | None = None
    intensity: Literal["unit", "window", "zscore", "zscore_nonzero"] | None = None
    window: Annotated[tuple[Finite, Finite], AfterValidator(ordered)] | None = None
    fit: Literal["resize", "crop", "square"] | None = None
    patch: tuple[Positive, Positive, Positive] | None = None
    orientation: Annotated[Text, Field(pattern=r"^[RLAPSI]{3}$")] | None = None
    foreground: Flag | None = None
    resample: Literal["reference", "triangle"] | None = None
    allow_mismatch: Flag = False
    cache: Literal["off", "memory", "disk"] = "disk"
    cache_quota_gb: Positive = 100.0

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what contradicts."""
        if (self.window is None) == (self.intensity == "window"):
            got = f"intensity {self.intensity or 'null'} and window {list_text(self.window)}"
            yield "window", f"expected intensity: window and window: [low, high] together, got {got}"
        if self.window is not None and self.window[0] == self.window[1]:
            yield "window", f"expected low < high, got {list_text(self.window)}"
        if isinstance(self.size, tuple) and len(self.size) not in (2, 3):
            yield "size", f"expected one number, 2 or 3, got {len(self.size)}"
        if not self.label:
            yield "label", "expected a column, or a list of columns, got none"


class SplitSection(Section):
    """How rows are divided. ``column`` takes a given split, ``leave_out`` holds out values of a column for the test."""

    shares: tuple[Positive, Positive, NotNegative] = (0.7, 0.15, 0.15)
    seed: Whole = 0
    draws: Count = 20_000
    column: Text | None = None
    leave_out: dict[Text, tuple[Text, ...]] | None = None
    folds: Annotated[int, Field(ge=2, strict=True)] | None = None
    fold: Whole = 0
    on_leak: Literal["refuse", "drop-valid", "drop-train"] = "refuse"

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what contradicts."""
        if abs(sum(self.shares) - 1) > 1e-6:
            yield "shares", f"expected a sum of 1, got {round(sum(self.shares), 6)}"
        ways = [name for name in ("column", "folds", "leave_out") if getattr(self, name)]
        if len(ways) > 1:
            yield ways[1], f"expected one of column, folds and leave_out, got {' and '.join(ways)}"
        if self.fold >= (self.folds or 1):
            got = f"fold {self.fold} of {self.folds}" if self.folds else f"fold {self.fold} without folds"
            yield "fold", f"expected a fold from 0, below folds, got {got}"
        if self.leave_out is not None and (len(self.leave_out) != 1 or not all(self.leave_out.values())):
            yield "leave_out", f"expected one column with values, got {self.leave_out}"


class AugmentSection(Section):
    """See :class:`medzoo.transforms.augment.Augmentation`."""

    flip: tuple[Axis, ...] = ()
    rotate90: Flag = False
    rotate: Annotated[Finite, Field(ge=0, le=180)] = 0.0
    translate: Rate = 0.0
    scale: Range = (1.0, 1.0)
    shear: Annotated[Finite, Field(ge=0, lt=90)] = 0.0
    crop: Annotated[tuple[Factor, Factor], AfterValidator(ordered)] = (1.0, 1.0)
    brightness: Rate = 0.0
    contrast: Rate = 0.0
    gamma: Range = (1.0, 1.0)
    noise: NotNegative = 0.0
    blur: NotNegative = 0.0
    allow_label_flips: Flag = False


class LossSection(Section):
    """The loss: binary cross-entropy per output, or cross-entropy of classes; ``auto`` follows the task."""

    kind: Literal["auto", "bce", "cross_entropy"] = "auto"
    balance: Literal["none", "sqrt", "class", "normalised"] = "none"
    weights: tuple[Positive, ...] | None = None
    clamp: Range = (0.01, 100.0)
    smoothing: Annotated[Finite, Field(ge=0, lt=0.5)] = 0.0

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what contradicts."""
        if self.weights is not None and self.balance != "none":
            yield "balance", f"expected none beside weights, got {self.balance}"


class OptimizerSection(Section):
    """The optimiser, and the learning rate at its start or after the warm-up.

    ``weight_decay`` is 0.05 by default for adamw, where it shrinks the weights, and 0 for adam and sgd, where it is an
    L2 penalty in the gradient.
    """

    kind: Literal["adam", "adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative | None = None
    momentum: Rate = 0.9
    layer_decay: Factor = 1.0
    clip: Positive | None = None

    @property
    def decay(self) -> float:
        """The weight decay, resolved."""
        return (0.05 if self.kind == "adamw" else 0.0) if self.weight_decay is None else self.weight_decay


class ScheduleSection(Section):
    """The learning rate over the steps: constant, exponential per step (``gamma`` is the factor), or cosine to 0.

    ``warmup`` is the share of all steps in which it rises linearly before that.
    """

    kind: Literal["constant", "exponential", "cosine"] = "constant"
    gamma: Factor = 1.0
    warmup: Rate = 0.0

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what contradicts."""
        if self.gamma != 1 and self.kind != "exponential":
            yield "gamma", f"expected 1 beside kind {self.kind}, got {self.gamma}; it is for kind exponential"


class TrainSection(Section):
    """The loop.

    ``stop_after`` is the patience in epochs of early stopping on ``monitor``. ``ema`` is the decay of the moving
    average of weights, 0 for none. ``batchnorm: frozen`` keeps the statistics of the pretrained weights. ``then``
    continues a frozen training with all weights for ``then_epochs``.
    """

    epochs: Count = 10
    batch: Count = 16
    accumulate: Count = 1
    ema: Rate = 0.0
    stop_after: Count | None = None
    monitor: Literal["valid_loss", "valid_auroc", "valid_accuracy"] = "valid_loss"
    freeze: Literal["none", "encoder", "features"] = "none"
    batchnorm: Literal["train", "frozen"] = "train"
    then: Literal["finetune"] | None = None
    then_epochs: Count | None = None
    then_lr: Positive | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = 0
    workers: Whole = 0
    device: Annotated[Text, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    threads: Count | None = None
    checkpoint_steps: Count | None = None
    checkpoint_minutes: Positive = 10.0

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what contradicts."""
        if self.then is not None and self.freeze == "none":
            yield "then", "expected freeze encoder or features before it, got freeze none. Leave it out (then=None)"
        for name in ("then_epochs", "then_lr"):
            if self.then is None and getattr(self, name) is not None:
                yield name, f"expected then: finetune beside it, got {getattr(self, name)} alone"


def _rule_texts(value: Any) -> Any:
    """Return a rule, or rules, with numbers as texts: 0.5 is ``"fixed 0.5"``."""
    if isinstance(value, dict):
        return {name: rule if isinstance(rule, dict) else _rule_texts(rule) for name, rule in value.items()}
    return f"fixed {value}" if isinstance(value, (int, float)) and not isinstance(value, bool) else value


class DecideSection(Section):
    """What is decided on the validation part when the training has ended. Has no effect on the training.

    ``threshold`` is the rule by which the threshold of each output is chosen, or one for each label, with ``"*"`` for
    the others: see :func:`medzoo.evaluation.thresholds.choose_thresholds`. A number is a fixed threshold.
    ``calibrate: auto`` folds a calibration into the last layer where there are enough cases, ``shift`` the closed form
    for a weighted loss. Where the rows were sampled by class, ``prevalence: population`` shifts the probabilities to
    the share of positives in the population, so that :func:`medzoo.predict` gives those of a case as it occurs;
    ``sample`` leaves them for the share of the sample. Order and calls are the same in both: thresholds move with the
    logits, a fixed one too, which is of the sample. Rules that depend on the share, ``f1`` and ``cost``, are for the
    same one as the probabilities. ``baseline`` trains again without the weights of a weighted loss, so that the report
    shows what they change.
    """

    threshold: Annotated[Text | dict[Text, Text], BeforeValidator(_rule_texts)] = Field(
        default="youden", description="a rule, or a rule for each label"
    )
    calibrate: Literal["auto", "shift", "none"] = "auto"
    prevalence: Literal["population", "sample"] = "population"
    baseline: Flag = False

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what contradicts."""
        from medzoo.evaluation.rules import Rule

        for rule in self.threshold.values() if isinstance(self.threshold, dict) else [self.threshold]:
            try:
                Rule.parse(rule)
            except ConfigError as error:
                yield "threshold", str(error).removeprefix("thresholds: ").rstrip(".")


Figure = Literal["auroc", "accuracy", "exact_match", "sensitivity", "specificity", "precision"]


class ProtocolSection(Section):
    """How the source measured what it reported, for ``medzoo reproduce``.

    ``split: row`` draws rows at random, whoever they are of; ``patient`` as the recipe does; ``given`` takes the column
    ``column``, patients in several parts included. ``measured_on`` is the part whose figures were reported, ``epoch``
    whether those of the last epoch or of the best, and ``figures`` which, at a threshold of 0.5.
    """

    split: Literal["row", "patient", "given"] = "row"
    column: Text | None = None
    shares: tuple[Positive, Positive, NotNegative] | None = None
    measured_on: Literal["train", "valid"] = "valid"
    epoch: Literal["last", "best"] = "last"
    figures: tuple[Figure, ...] = ("accuracy",)

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what contradicts."""
        if (self.split == "given") != (self.column is not None):
            yield "column", f"expected a column with split: given and nowhere else, got {self.column}"
        if self.shares is not None and abs(sum(self.shares) - 1) > 1e-6:
            yield "shares", f"expected a sum of 1, got {round(sum(self.shares), 6)}"
        if (self.epoch, self.measured_on) == ("best", "train"):
            yield "epoch", "expected last with measured_on: train, as an epoch is chosen by validation, got best"


class SourceSection(Section):
    """Where a recipe is from, what it does otherwise, what was reported and how that was measured. Has no effect."""

    reference: Text = ""
    changes: tuple[Text, ...] = ()
    claim: dict[Text, Flag | int | Finite | Text | None] = Field(
        default={}, description="plain values, such as auroc: 0.98"
    )
    protocol: ProtocolSection | None = None


NO_EFFECT: Any = {
    "name": True,
    "description": True,
    "source": True,
    "decide": True,
    "data": {"cache_quota_gb"},
    "train": {"workers", "checkpoint_steps", "checkpoint_minutes"},
}
"""Fields that do not change the trained weights."""


class Recipe(Section):
    """Everything that determines a training."""

    format: Literal[1] = 1
    name: Text = "table"
    description: Text = ""
    model: ModelSection
    data: DataSection = DataSection()
    split: SplitSection = SplitSection()
    augment: AugmentSection = AugmentSection()
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    train: TrainSection = TrainSection()
    decide: DecideSection = DecideSection()
    source: SourceSection = SourceSection()

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yield what contradicts."""
        if self.train.freeze == "features" and self.train.then is None and self.augment != AugmentSection():
            yield (
                "augment",
                (
                    "expected nothing beside train.freeze: features, which computes the features of each image once. "
                    "Leave it out (augment=None), set train.then: finetune, whose training of all weights is "
                    "augmented, or set train.freeze: encoder, which augments too"
                ),
            )

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Recipe:
        """Return a recipe of the package by its name, or of a YAML file by its path.

        Args:
            source: a name of :func:`~medzoo.training.recipe_files.list_recipes`, or a file ending in ``.yaml``.

        Raises:
            ConfigError: no such recipe or file, or a recipe that cannot be; lists all faults.
        """
        from medzoo.training.recipe_files import read_recipe

        return cls.from_values(*read_recipe(source))

    @classmethod
    def from_values(cls, values: dict[str, Any], who: str = "Recipe") -> Recipe:
        """Return the recipe of plain values, as :meth:`pydantic.BaseModel.model_dump` returns them.

        Args:
            values: fields by section.
            who: starts the message of an error, such as the file.

        Raises:
            ConfigError: values that cannot be; lists all faults.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            from medzoo.training.recipe_faults import describe_faults

            raise ConfigError(describe_faults(who, error, cls)) from None

    def with_(self, **overrides: Any) -> Recipe:
        """Return the recipe with other values.

        Args:
            overrides: values by field, such as ``lr=1e-4`` or ``epochs=20``, and by path where several sections have
                the field, ``**{"split.seed": 1}``. ``seed`` is that of the training, ``model`` may be ``"name:tag"``,
                and a section may be a dictionary of what changes in it, or ``None`` for its defaults.

        Raises:
            ConfigError: no such field, several of that name, or values that cannot be.
        """
        from medzoo.training.overrides import override

        return override(self, overrides)

    def to_yaml(self) -> str:
        """Return the complete recipe as YAML, every field with its value; :meth:`load` reads the same recipe again."""
        from medzoo.training.recipe_files import write_recipe

        return write_recipe(self)

    def digest(self) -> str:
        """Return the SHA-256 of what affects the trained weights.

        Neither names and sources count, nor workers, checkpoints and the quota of the cache. Fields at their default
        do not count either, so that a field which a later medzoo adds does not change it.
        """
        values = self.effective(exclude_defaults=True)
        text = json.dumps({key: value for key, value in values.items() if value != {}}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def effective(self, *, exclude_defaults: bool = False) -> dict[str, Any]:
        """Return the fields that affect the trained weights; images kept in memory are those kept on disk."""
        values = self.model_dump(mode="json", exclude=NO_EFFECT, exclude_defaults=exclude_defaults)
        if self.data.cache != "off":
            values.get("data", {}).pop("cache", None)
        return values
