"""What a trained model states about its training: the images it is for, its thresholds and its calibration.

Nothing here is computed; :mod:`medzoo.weights.config` writes it to ``config.json`` and reads it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from medzoo.errors import ConfigError

__all__ = ["UNSTATED", "Calibration", "IntendedUse", "ThresholdPolicy"]

Scale = Literal["probability", "calibrated"]


@dataclass(frozen=True)
class IntendedUse:
    """The images and patients that weights were made for. Empty fields are not stated.

    Attributes:
        modality: DICOM modalities, such as ``("CT",)`` or ``("CR", "DX")``.
        body_part: DICOM body parts, such as ``("CHEST",)``.
        population: the patients of the training data, in a sentence.
        age_range: youngest and oldest patient in years.
    """

    modality: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    population: str = ""
    age_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("modality", "body_part"):
            values = getattr(self, name)
            if isinstance(values, str) or not all(isinstance(v, str) and v == v.upper() and v for v in values):
                raise ConfigError(
                    f"IntendedUse: expected {name} to be DICOM terms in capitals, such as ('CT',), got {values!r}."
                )
            object.__setattr__(self, name, tuple(values))
        if self.age_range is not None and not (
            len(self.age_range) == 2 and 0 <= self.age_range[0] <= self.age_range[1]
        ):
            raise ConfigError(f"IntendedUse: expected age_range=(youngest, oldest) in years, got {self.age_range}.")

    def __str__(self) -> str:
        """Return what is stated, or an empty text.

        >>> print(IntendedUse(("CT",), ("CHEST",), age_range=(18, 90)))
        CT, CHEST, 18 to 90 years
        """
        stated = [*self.modality, *self.body_part, *filter(None, [self.population])]
        if self.age_range:
            stated.append("{:g} to {:g} years".format(*self.age_range))
        return ", ".join(stated)


UNSTATED = IntendedUse()


@dataclass(frozen=True)
class ThresholdPolicy:
    """How the thresholds of the outputs were chosen.

    Attributes:
        rule: what was aimed at, such as ``"sensitivity >= 0.95"`` or ``"Youden"``.
        split: the data they were chosen on, such as ``"validation"``.
        positives: positive samples of that data, one number for each label; empty if not stated.
        negatives: negative samples, likewise.
        scale: ``"probability"`` of the logits as they were trained, or ``"calibrated"`` ones.
    """

    rule: str
    split: str = ""
    positives: tuple[int, ...] = ()
    negatives: tuple[int, ...] = ()
    scale: Scale = "probability"

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            known = " or ".join(map(repr, get_args(Scale)))
            raise ConfigError(f"ThresholdPolicy: expected scale {known}, got {self.scale!r}.")

    def faults(self, n: int) -> Iterator[str]:
        """Yield what does not fit ``n`` outputs."""
        for name in ("positives", "negatives"):
            counts = getattr(self, name)
            if counts and (len(counts) != n or any(type(c) is not int or c < 0 for c in counts)):
                yield f"expected {name} of the threshold policy to be {n} ints >= 0, got {counts}."


@dataclass(frozen=True)
class Calibration:
    """A calibration that is part of ``head.classifier``: each logit is ``slope * before + intercept``.

    It is recorded so that it can be undone, and is not done twice.

    Attributes:
        method: such as ``"temperature"`` or ``"Platt"``.
        slope: one number above 0 for each output.
        intercept: one number for each output.
        split: the data it was fitted on, such as ``"validation"``.
    """

    method: str
    slope: tuple[float, ...]
    intercept: tuple[float, ...]
    split: str = ""

    def faults(self, n: int) -> Iterator[str]:
        """Yield what does not fit ``n`` outputs."""
        values = (*self.slope, *self.intercept)
        if len(self.slope) != n or len(self.intercept) != n or not all(map(math.isfinite, values)):
            yield f"expected slope and intercept of the calibration to be {n} finite numbers each, got {values}."
        if any(s <= 0 for s in self.slope):
            yield f"expected slopes of the calibration above 0, got {self.slope}."
