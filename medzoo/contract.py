"""What a model states about the images before it and the logits behind it: :class:`Preprocessing`, :class:`Outputs`.

Axes: b batch, n outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from medzoo.errors import ConfigError, check_texts, did_you_mean
from medzoo.provenance import Calibration, ThresholdPolicy

__all__ = ["Outputs", "Preprocessing", "Task", "check_task"]

Task = Literal["binary", "multilabel", "multiclass"]
TASKS: tuple[Task, ...] = ("binary", "multilabel", "multiclass")
INTENSITIES = ("unit", "window", "zscore", "zscore_nonzero")
FITS = ("resize", "crop", "square")
RESAMPLERS = ("reference", "triangle")


def check_task(who: str, task: str) -> None:
    """Raise ConfigError, naming the closest match, unless ``task`` is a known task."""
    if task not in TASKS:
        raise ConfigError(
            f"{who}: expected task 'binary', 'multilabel' or 'multiclass', got {task!r}."
            + did_you_mean(str(task), TASKS)
        )


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing that a set of weights was trained with. Every step is optional and is reported.

    The steps run in the order of the attributes.

    Attributes:
        size: spatial size of the tensor, in the model's axis order.
        orientation: anatomical direction of each spatial axis of a volume, such as ``"RAS"`` (x, y, z) or ``"SPL"``
            (slices from feet to head, rows from front to back, columns from right to left, the usual view of axial
            slices). ``None`` in 2D.
        spacing: mm between voxel centres after resampling, in the order of ``orientation``; ``None`` keeps the file's.
        intensity: ``"unit"`` maps the stored range to [0, 1]; ``"window"`` maps ``window`` to [0, 1] and clips;
            ``"zscore"`` subtracts the mean of the image and divides by its standard deviation; ``"zscore_nonzero"``
            does so per channel over the nonzero values, and keeps the zeros.
        window: lowest and highest value of ``intensity="window"``, in HU for CT.
        foreground: crop a volume to the bounding box of the values above 0 after ``intensity``.
        fit: how the image is brought to ``size``: ``"resize"`` scales each axis; ``"crop"`` crops or pads around the
            centre; ``"square"`` crops a 2D image to its central square and scales it.
        mean: subtracted last, one value for all channels or one per channel.
        std: divided by after ``mean``, likewise.
        patch: sides in mm of the box around a point that the model was trained on, in the order of ``orientation``;
            replaces ``spacing``, ``foreground`` and ``fit``. ``None`` for a model of complete images.
        views: DICOM view positions the weights were trained on, such as ``("AP", "PA")``; empty accepts any.
        resample: the filter that changes the number of pixels or voxels: ``"reference"`` is torchvision's antialiased
            one for images and MONAI's for volumes; ``"triangle"`` is that of torchvision for both, many times as fast
            for volumes. Weights keep the one they were trained with. A ``patch`` is interpolated linearly with either.
    """

    size: tuple[int, ...]
    orientation: str | None = None
    spacing: tuple[float, ...] | None = None
    intensity: Literal["unit", "window", "zscore", "zscore_nonzero"] = "unit"
    window: tuple[float, float] | None = None
    foreground: bool = False
    fit: Literal["resize", "crop", "square"] = "resize"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    patch: tuple[float, ...] | None = None
    views: tuple[str, ...] = ()
    resample: Literal["reference", "triangle"] = "reference"

    def __post_init__(self) -> None:
        for fault in self._faults():
            raise ConfigError(f"Preprocessing: {fault}")

    def _faults(self) -> Iterator[str]:
        """Yield what is wrong; a later check may rely on the earlier ones."""
        if len(self.size) not in (2, 3):
            yield f"expected size of 2 or 3 numbers, got {self.size}."
        if (self.window is None) == (self.intensity == "window"):
            got = f"intensity={self.intensity!r} and window={self.window}"
            yield f"intensity='window' and window=(low, high) go together, got {got}."
        if self.window is not None and not (
            len(self.window) == 2 and all(map(math.isfinite, self.window)) and self.window[0] < self.window[1]
        ):
            yield f"expected window=(low, high) with low < high, got {self.window}."
        for name, sides in (("spacing", self.spacing), ("patch", self.patch)):
            if sides is not None and (len(sides) != len(self.size) or not all(0 < s < math.inf for s in sides)):
                yield f"expected {name} to be {len(self.size)} numbers of mm above 0, got {sides}."
        if self.patch is not None and (self.orientation is None or self.spacing or self.foreground):
            got = f"orientation={self.orientation!r}, spacing={self.spacing}, foreground={self.foreground}"
            yield f"a patch needs an orientation, and excludes spacing and foreground, got {got}."
        if self.intensity not in INTENSITIES or self.fit not in FITS:
            intensities, fits = (", ".join(map(repr, known)) for known in (INTENSITIES, FITS))
            yield (
                f"expected intensity to be one of {intensities} and fit one of {fits}, "
                f"got {self.intensity!r} and {self.fit!r}."
            )
        if isinstance(self.views, str):
            yield f"expected views to be a list of view positions, got the text {self.views!r}."
        if self.resample not in RESAMPLERS:
            yield f"expected resample to be {' or '.join(map(repr, RESAMPLERS))}, got {self.resample!r}."
        if self.fit == "square" and (len(self.size) != 2 or self.size[0] != self.size[1]):
            yield f"fit='square' is for an image of two equal sides, got size {self.size}. Use 'resize' or 'crop'."
        if not (self.mean and self.std and all(map(math.isfinite, (*self.mean, *self.std))) and min(self.std) > 0):
            yield f"expected finite mean and std above 0, got {self.mean} and {self.std}."
        if len(self.size) == 2 and (self.orientation or self.spacing or self.patch or self.foreground):
            yield "orientation, spacing, foreground and patch are for volumes, got a size of 2 numbers."
        if self.orientation is not None and sorted(map(_axis_of, self.orientation)) != [0, 1, 2]:
            got = repr(self.orientation)
            yield f"expected an orientation of one of RL, one of AP and one of SI, such as 'RAS', got {got}."


def _axis_of(letter: str) -> int:
    """Return the world axis of a letter of an orientation: 0 for R and L, 1 for A and P, 2 for S and I."""
    return "RLAPSI".find(letter) // 2


@dataclass(frozen=True)
class Outputs:
    """The meaning of the logits.

    Attributes:
        labels: one name per output.
        task: ``"binary"`` (one output, sigmoid), ``"multilabel"`` (one sigmoid per output) or ``"multiclass"``
            (softmax).
        thresholds: probability at and above which an output is positive, one per label; 0.5 by default. ``None`` where
            no threshold was chosen, such as for too few positive patients: that output has a probability, and is called
            neither positive nor negative. ``"multiclass"`` predicts the most probable label and has none.
        trained: which outputs were trained. A new head is untrained until :meth:`Classifier.set_outputs` is called.
        normalised: whether probabilities get the piecewise-linear rescaling that maps each operating point to 0.5, as
            in TorchXRayVision. ``thresholds`` still refer to the plain sigmoid.
        policy: how the thresholds were chosen, or ``None`` if that is not stated.
        calibration: the calibration that is part of the logits, or ``None`` for none.
        prevalence: share of positives in the training data, one for each label; empty if not stated.
        loss_weights: weight of the positives in the training loss as a multiple of that of the negatives, one for each
            label, or of each class; empty if the loss was not weighted or that is not stated. Weights above 1 make
            probabilities too high, unless ``calibration`` was fitted after them.
        caution: why the outputs say nothing about new patients, in sentences; empty for every model but those of
            :func:`medzoo.reproduce` that are not honest. No report is made of such a model, and each prediction has it
            as a warning.
    """

    labels: tuple[str, ...]
    task: Task
    thresholds: tuple[float | None, ...] = ()
    trained: tuple[bool, ...] = ()
    normalised: bool = False
    policy: ThresholdPolicy | None = None
    calibration: Calibration | None = None
    prevalence: tuple[float, ...] = ()
    loss_weights: tuple[float, ...] = ()
    caution: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.labels, str):
            raise ConfigError(f"Outputs: expected labels to be a list of names, got the text {self.labels!r}.")
        # Lists, arrays and tensors are accepted too.
        kinds: dict[str, Callable[[Any], Any]] = {"labels": str, "thresholds": _or_none, "trained": bool}
        kinds |= {"prevalence": float, "loss_weights": float}
        for name, kind in kinds.items():
            given: Any = getattr(self, name)
            try:
                object.__setattr__(self, name, tuple(kind(value) for value in given))
            except (TypeError, ValueError):
                raise ConfigError(
                    f"Outputs: expected {name} to be one value for each label, got {given!r}. Give a list."
                ) from None
        for name, known in (("policy", ThresholdPolicy), ("calibration", Calibration)):
            if not isinstance(getattr(self, name), known | None):
                raise ConfigError(
                    f"Outputs: expected {name} to be a medzoo.{known.__name__} or None, got {getattr(self, name)!r}."
                )
        if not isinstance(self.caution, str):
            raise ConfigError(f"Outputs: expected caution to be a text, got {self.caution!r}.")
        check_texts("Outputs", "labels and caution", (self.labels, self.caution))
        check_task("Outputs", self.task)
        n = len(self.labels)
        if n == 0:
            if self.policy or self.calibration or self.prevalence or self.loss_weights:
                raise ConfigError(
                    "Outputs: a backbone has no outputs to state a policy, calibration, prevalence or loss weights of."
                )
            return  # the task is the one of a new head
        if not self.trained:
            object.__setattr__(self, "trained", (False,) * n)
        if not self.thresholds and self.task != "multiclass":
            object.__setattr__(self, "thresholds", (0.5,) * n)
        for fault in self._faults(n):
            raise ConfigError(f"Outputs: {fault}")

    def _faults(self, n: int) -> Iterator[str]:
        """Yield what is wrong with ``n`` outputs."""
        if self.task == "binary" and n != 1:
            yield (
                f"a binary task has 1 output, got {n} labels. Use task='multiclass' if exactly one of them is true, "
                "task='multilabel' if several can be."
            )
        if self.task == "multiclass" and n == 1:
            yield "a multiclass task needs 2 outputs or more, got 1. Use task='binary'."
        if len(set(self.labels)) != n:
            twice = sorted({name for name in self.labels if self.labels.count(name) > 1})
            yield f"expected different labels, got {', '.join(map(repr, twice))} more than once."
        if len(self.trained) != n:
            yield f"expected {n} values in trained, one for each label, got {len(self.trained)}."
        if self.normalised and self.calibration is not None:
            yield "probabilities that are normalised by operating points have no calibration."
        if self.task == "multiclass" and self.normalised:
            yield "a multiclass task has no thresholds to normalise by. Leave normalised out."
        if self.task == "multiclass" and self.thresholds:
            yield "a multiclass task takes the most probable label and has no thresholds."
        if self.task != "multiclass" and len(self.thresholds) != n:
            yield f"expected {n} thresholds, one for each label, got {len(self.thresholds)}."
        if any(t is not None and not 0.0 < t < 1.0 for t in self.thresholds):
            yield f"expected thresholds between 0 and 1, or None for no call, got {self.thresholds}."
        if self.normalised and None in self.thresholds:
            yield f"expected a threshold for each label to normalise by, got {self.thresholds}. Leave normalised out."
        if self.prevalence and (len(self.prevalence) != n or any(not 0.0 <= p <= 1.0 for p in self.prevalence)):
            yield f"expected prevalence to be {n} numbers from 0 to 1, got {self.prevalence}."
        weights = self.loss_weights
        if weights and (len(weights) != n or not all(0.0 < weight < math.inf for weight in weights)):
            yield f"expected loss_weights to be {n} finite numbers above 0, got {weights}."
        for statement in (self.policy, self.calibration):
            if statement is not None:
                yield from statement.faults(n)
        if self.policy is not None and self.task == "multiclass":
            yield "a multiclass task has no thresholds, and no policy for them."
        scale = "probability" if self.calibration is None else "calibrated"
        if self.policy is not None and self.policy.scale != scale:
            yield (
                f"the thresholds were chosen on the scale {self.policy.scale!r}, but the outputs are on the scale "
                f"{scale!r}, {'with' if self.calibration else 'without'} a calibration. Choose them on this scale."
            )

    @classmethod
    def unnamed(cls, num_classes: int, task: Task) -> Outputs:
        """Return untrained outputs with numbered labels; binary and multiclass are exchanged where ``n`` requires it.

        >>> Outputs.unnamed(3, "multiclass").labels
        ('class_0', 'class_1', 'class_2')
        """
        if task == "binary" and num_classes > 1:
            task = "multiclass"
        if task == "multiclass" and num_classes == 1:
            task = "binary"
        return cls(labels=tuple(f"class_{i}" for i in range(num_classes)), task=task)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Map logits to probabilities in [0, 1], ``b n -> b n``: softmax for multiclass, else sigmoid.

        With ``normalised``, p below its threshold t becomes p / 2t, and above it 1 - (1 - p) / 2(1 - t): a
        piecewise-linear rescaling that maps each operating point to 0.5. An untrained output is then 0.5.

        >>> outputs = Outputs(("a", "b"), "multilabel", (0.1, 0.9), (True, True), normalised=True)
        >>> outputs.probabilities(torch.zeros(1, 2))
        tensor([[0.7222, 0.2778]])
        """
        if self.task == "multiclass":
            return logits.softmax(-1)
        p = logits.sigmoid()
        if not self.normalised:
            return p
        t = self._limits(p)
        rescaled = torch.where(p < t, p / (2 * t), 1 - (1 - p) / (2 * (1 - t)))
        return rescaled.where(torch.tensor(self.trained, device=p.device), 0.5)

    def positive(self, probabilities: Tensor) -> Tensor:
        """Return which outputs are positive, ``b n -> b n`` of bool.

        Multiclass: the most probable label. Otherwise: probabilities at or above the threshold. The threshold is 0.5
        with ``normalised``, and an untrained output is then never positive. An output without a threshold is False
        here, which is no negative call: see :attr:`decided`.
        """
        if self.task == "multiclass":
            return torch.nn.functional.one_hot(probabilities.argmax(-1), len(self.labels)).bool()
        if self.normalised:
            return (probabilities >= 0.5) & torch.tensor(self.trained, device=probabilities.device)
        return probabilities >= self._limits(probabilities)

    @property
    def decided(self) -> tuple[bool, ...]:
        """Whether each output is called positive or negative; one without a threshold is not.

        >>> Outputs(("a", "b"), "multilabel", (0.5, None)).decided
        (True, False)
        """
        return tuple(t is not None for t in self.thresholds or (0.0,) * len(self.labels))

    def with_calibration(self, calibration: Calibration | None) -> Outputs:
        """Return the outputs of the same logits after a calibration, or with ``None`` after theirs is undone.

        A threshold moves with the logits, so that the calls stay as they are: t becomes sigmoid(slope * logit(t) +
        intercept). The default 0.5 of a model for which nobody stated a policy becomes ``None``: it was not chosen, and
        on calibrated probabilities it would call nearly everyone negative where few are positive.

        Raises:
            ConfigError: there is a calibration already, or none to undo; ``normalised``, whose rescaling belongs to the
                logits as they were trained; the calibration is of another number of outputs; or there is a ``caution``,
                which no calibration ends.
        """
        if calibration is not None and self.caution:
            raise ConfigError(f"Outputs: no calibration makes them mean something. {self.caution} Take another model.")
        if calibration is not None and self.calibration is not None:
            raise ConfigError(
                f"Outputs: the logits are calibrated already ({self.calibration.method}). Undo that first, with "
                "model.uncalibrated()."
            )
        change = calibration or self.calibration
        if change is None:
            raise ConfigError("Outputs: there is no calibration to undo.")
        if self.normalised:
            raise ConfigError(
                "Outputs: probabilities that are normalised by operating points are not calibrated: they are no "
                "sigmoid of the logits. Set model.outputs = dataclasses.replace(model.outputs, normalised=False) first."
            )
        thresholds = self.moved(change, undo=calibration is None, chosen=self.policy is not None)
        policy = self.policy
        if policy is not None:
            policy = replace(policy, scale="probability" if calibration is None else "calibrated")
        return replace(self, thresholds=thresholds, policy=policy, calibration=calibration)

    def moved(self, calibration: Calibration, *, undo: bool, chosen: bool) -> tuple[float | None, ...]:
        """Return the thresholds after a calibration, or after it is undone; see :meth:`with_calibration`.

        Args:
            calibration: of these outputs.
            undo: move them back.
            chosen: whether it is known how they were chosen, so that a threshold of 0.5 is no default.

        Raises:
            ConfigError: the calibration is of another number of outputs.
        """
        for fault in calibration.faults(len(self.labels)):
            raise ConfigError(f"Outputs: {fault}")
        pairs = list(zip(calibration.slope, calibration.intercept, strict=True))
        if undo:
            pairs = [(1 / slope, -intercept / slope) for slope, intercept in pairs]
        return tuple(
            None if t is None or (t == 0.5 and not chosen) else _moved(t, *pair)
            for t, pair in zip(self.thresholds, pairs[: len(self.thresholds)], strict=True)
        )

    def _limits(self, like: Tensor) -> Tensor:
        """Return the thresholds ``n``; infinity where there is none, which no probability reaches."""
        limits = [math.inf if t is None else t for t in self.thresholds]
        return torch.tensor(limits, dtype=like.dtype, device=like.device)


def _or_none(value: Any) -> float | None:
    return None if value is None else float(value)


def _moved(threshold: float, slope: float, intercept: float) -> float | None:
    """Return a threshold after a change of its logit; ``None`` if float32 has no such probability between 0 and 1."""
    z = slope * math.log(threshold / (1 - threshold)) + intercept
    t = 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(max(z, -700.0)) / (1 + math.exp(max(z, -700.0)))
    return t if 1e-37 < t < 1 - 2**-24 else None
