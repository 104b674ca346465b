"""``over_seeds``: mean and standard deviation of the figures of models that differ in their seed alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medzoo.errors import ConfigError
from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.metrics import Metrics

__all__ = ["SeedSummary", "over_seeds"]

NOTE = (
    "the SD over seeds is how much training varies on these rows; it is not an interval, and how much the figure "
    "would vary with other patients is in the intervals of each model"
)


@dataclass(frozen=True)
class SeedSummary:
    """Figures over several trainings.

    Attributes:
        names: of the models.
        labels: mean and standard deviation (n - 1) by label and figure; NaN where a model has no such figure.
        overall: likewise, of the figures of all labels.
        notes: how they are to be read.
    """

    names: tuple[str, ...]
    labels: Mapping[str, Mapping[str, tuple[float, float]]]
    overall: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...] = (NOTE,)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; NaN becomes ``None``."""
        return {
            "names": list(self.names),
            "labels": {
                label: {name: _plain(pair) for name, pair in figures.items()} for label, figures in self.labels.items()
            },
            "overall": {name: _plain(pair) for name, pair in self.overall.items()},
            "notes": list(self.notes),
        }


def over_seeds(metrics: Sequence[Metrics], names: Sequence[str]) -> SeedSummary:
    """Return mean and standard deviation (n - 1) of each figure over models of the same rows and labels.

    Args:
        metrics: of each model.
        names: of the models.

    Raises:
        ConfigError: under two models, or they differ in rows, labels or options.
    """
    if len(metrics) < 2 or len(names) != len(metrics) or len(set(names)) != len(names):
        raise ConfigError(
            f"over_seeds: expected at least 2 models and a different name for each, got {len(metrics)} and "
            f"{len(names)} names. One model has no spread over seeds."
        )
    first = metrics[0]
    for name, other in zip(names[1:], metrics[1:], strict=True):
        for what, a, b in zip(_COMPARED, _facts(first), _facts(other), strict=True):
            if a != b:
                raise ConfigError(
                    f"over_seeds: expected the same {what} in all models, but {name!r} differs from {names[0]!r}. "
                    "Evaluate all of them on the same rows with the same options."
                )
    labels = {
        label.label: {figure: _pair([m.labels[i].values.get(figure) for m in metrics]) for figure in label.values}
        for i, label in enumerate(first.labels)
    }
    overall = {figure: _pair([m.overall.get(figure) for m in metrics]) for figure in first.overall}
    return SeedSummary(tuple(names), labels, overall)


_COMPARED = ("labels", "number of rows and patients", "positive and negative rows", "averaged labels", "options")


def _facts(metrics: Metrics) -> tuple[object, ...]:
    return (
        tuple(m.label for m in metrics.labels), (metrics.rows, metrics.patients),
        tuple(m.counts for m in metrics.labels), metrics.eligible, metrics.options,
    )  # fmt: skip


def _pair(estimates: Sequence[Estimate | None]) -> tuple[float, float]:
    """Return mean and SD; NaN if one has no value, as the mean of the others would be of other models."""
    values = np.array([math.nan if e is None else e.value for e in estimates])
    if not np.isfinite(values).all():
        return math.nan, math.nan
    return float(values.mean()), float(values.std(ddof=1))


def _plain(pair: tuple[float, float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in pair]
