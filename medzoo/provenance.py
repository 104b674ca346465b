"""What a trained model states about its training: the images it is for, its thresholds and its calibration.

Nothing here is computed; :mod:`medzoo.weights.config` writes it to ``config.json`` and reads it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from medzoo.errors import ConfigError

__all__ = ["RADIOGRAPH", "UNSTATED", "Calibration", "IntendedUse", "ThresholdPolicy"]

Scale = Literal["probability", "calibrated"]


@dataclass(frozen=True)
class IntendedUse:
    """The images and patients that weights were made for. Empty fields are not stated.

    :func:`medzoo.predict` refuses an image whose file contradicts a stated modality, body part or age.

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
            known = isinstance(values, (tuple, list)) and all(isinstance(v, str) and v.strip() for v in values)
            if not known or any(v != v.upper() for v in values):
                raise ConfigError(
                    f"IntendedUse: expected {name} to be DICOM terms in capitals, such as ('CT',), got {values!r}."
                )
            object.__setattr__(self, name, tuple(values))
        if not isinstance(self.population, str):
            raise ConfigError(f"IntendedUse: expected population to be a text, got {self.population!r}.")
        if self.age_range is not None:
            ages = _numbers("IntendedUse: expected age_range=(youngest, oldest) in years", self.age_range)
            if len(ages) != 2 or not 0 <= ages[0] <= ages[1]:
                raise ConfigError(f"IntendedUse: expected age_range=(youngest, oldest) in years, got {self.age_range}.")
            object.__setattr__(self, "age_range", ages)

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
RADIOGRAPH = IntendedUse(modality=("CR", "DX"))
"""Projection X-rays of any body part: the default of the X-ray models."""


@dataclass(frozen=True)
class ThresholdPolicy:
    """How the thresholds of the outputs were chosen.

    Attributes:
        rule: what was aimed at, such as ``"sensitivity >= 0.95"`` or ``"Youden"``.
        split: the data they were chosen on, such as ``"validation"``.
        positives: positive samples of that data, one number for each label; empty if not stated.
        negatives: negative samples, likewise.
        scale: ``"probability"`` of the logits as they were trained, or ``"calibrated"`` ones.
        sensitivity: what each threshold reached on that data, from 0 to 1, one for each label and ``None`` where there
            is no threshold; empty if not stated. On the data it was chosen on, it is optimistic.
        specificity: likewise.
    """

    rule: str
    split: str = ""
    positives: tuple[int, ...] = ()
    negatives: tuple[int, ...] = ()
    scale: Scale = "probability"
    sensitivity: tuple[float | None, ...] = ()
    specificity: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            known = " or ".join(map(repr, get_args(Scale)))
            raise ConfigError(f"ThresholdPolicy: expected scale {known}, got {self.scale!r}.")
        if not isinstance(self.rule, str) or not isinstance(self.split, str):
            raise ConfigError(
                f"ThresholdPolicy: expected rule and split to be texts, got {self.rule!r}, {self.split!r}."
            )
        for name in ("positives", "negatives"):
            counts = _numbers(f"ThresholdPolicy: expected {name} to be a list of ints >= 0", getattr(self, name))
            if any(count < 0 or not count.is_integer() for count in counts):
                raise ConfigError(f"ThresholdPolicy: expected {name} to be a list of ints >= 0, got {counts}.")
            object.__setattr__(self, name, tuple(map(int, counts)))
        for name in ("sensitivity", "specificity"):
            given: Any = getattr(self, name)
            what = f"ThresholdPolicy: expected {name} to be a list of numbers from 0 to 1 or None"
            if isinstance(given, str) or not hasattr(given, "__iter__"):
                raise ConfigError(f"{what}, got {given!r}.")
            reached = tuple(None if rate is None else _numbers(what, [rate])[0] for rate in given)
            if any(rate is not None and not 0.0 <= rate <= 1.0 for rate in reached):
                raise ConfigError(f"{what}, got {reached}.")
            object.__setattr__(self, name, reached)

    def faults(self, n: int) -> Iterator[str]:
        """Yield what does not fit ``n`` outputs."""
        for name in ("positives", "negatives"):
            counts = getattr(self, name)
            if counts and len(counts) != n:
                yield f"expected {name} of the threshold policy to be {n} ints >= 0, got {counts}."
        for name in ("sensitivity", "specificity"):
            rates = getattr(self, name)
            if rates and len(rates) != n:
                yield f"expected {name} of the threshold policy to be {n} numbers from 0 to 1 or None, got {rates}."


@dataclass(frozen=True)
class Calibration:
    """A calibration that is part of ``head.classifier``: each logit is ``slope * before + intercept``.

    It is recorded so that it can be undone, and is not done twice.

    Attributes:
        method: such as ``"temperature"`` or ``"Platt"``.
        slope: one number above 0 for each output.
        intercept: one number for each output.
        split: the data it was fitted on, such as ``"validation"``.
        prevalence: share of positives that the probabilities after it are for, where they were shifted to a stated one:
            one number for each output, ``None`` for an output that was not shifted; empty if none was.
    """

    method: str
    slope: tuple[float, ...]
    intercept: tuple[float, ...]
    split: str = ""
    prevalence: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or not isinstance(self.split, str):
            raise ConfigError(
                f"Calibration: expected method and split to be texts, got {self.method!r}, {self.split!r}."
            )
        for name in ("slope", "intercept"):
            values = _numbers(f"Calibration: expected {name} to be a list of numbers", getattr(self, name))
            object.__setattr__(self, name, values)
        if any(s <= 0 for s in self.slope):
            raise ConfigError(f"Calibration: expected slopes above 0, got {self.slope}.")
        what = "Calibration: expected prevalence to be a list of numbers above 0 and below 1, or None"
        shares = tuple(None if p is None else _numbers(what, [p])[0] for p in self.prevalence)
        if any(p is not None and not 0 < p < 1 for p in shares):
            raise ConfigError(f"{what}, got {shares}.")
        object.__setattr__(self, "prevalence", shares)

    def faults(self, n: int) -> Iterator[str]:
        """Yield what does not fit ``n`` outputs."""
        if len(self.slope) != n or len(self.intercept) != n:
            counts = f"{len(self.slope)} and {len(self.intercept)}"
            yield f"expected slope and intercept of the calibration to be {n} numbers each, got {counts}."
        if self.prevalence and len(self.prevalence) != n:
            yield f"expected prevalence of the calibration to be {n} numbers or None, got {self.prevalence}."


def _numbers(what: str, values: Iterable[float]) -> tuple[float, ...]:
    """Return finite numbers, of lists, arrays and tensors too."""
    try:
        numbers = () if isinstance(values, str) else tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        numbers = (math.nan,)
    if isinstance(values, str) or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{what}, got {values!r}.")
    return numbers
