"""What is decided when a training has ended: the calibration and the thresholds, on the validation part alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medzoo.classifier import Classifier
from medzoo.data.table import Table
from medzoo.evaluation.calibration import apply_calibration, cross_fitted, fit_calibration, fold_calibration
from medzoo.evaluation.metrics import Metrics, measure
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.thresholds import choose_thresholds
from medzoo.training.recipe import Recipe
from medzoo.training.validation import ValidationPredictions

__all__ = ["Decided", "decide"]

SPLIT = "validation"


@dataclass(frozen=True, eq=False)
class Decided:
    """What was decided on the validation part.

    Attributes:
        before: scores of the model as it was trained.
        scores: scores of the model as it is saved, with its thresholds.
        honest: the same, but each row calibrated by a fit on other patients; ``None`` without a calibration.
        notes: what was not decided, and why.
    """

    before: Scores
    scores: Scores
    honest: Scores | None
    notes: tuple[str, ...]

    def metrics(self) -> dict[str, float]:
        """Return the figures that go into the model card, with their intervals."""
        return card_metrics(measure(self.honest or self.scores), SPLIT)


def decide(
    model: Classifier, recipe: Recipe, table: Table, predictions: ValidationPredictions, prevalence: tuple[float, ...]
) -> Decided:
    """Calibrate a trained model, choose its thresholds, and state both in its outputs.

    Args:
        model: with the outputs of the table; changed.
        recipe: its section ``decide``.
        table: that the rows of the predictions are of.
        predictions: of the validation part.
        prevalence: share of positives in the training part.
    """
    how, scores = recipe.decide, validation_scores(table, predictions)
    notes: list[str] = []
    calibrated, honest, calibration = scores, None, None
    if how.calibrate == "auto":
        fitted = fit_calibration(scores, split=SPLIT)
        calibration = fitted.calibration
        notes += fitted.notes
    if calibration is not None:
        fold_calibration(model, calibration)
        calibrated, honest = apply_calibration(scores, calibration), cross_fitted(scores)
    chosen = choose_thresholds(
        calibrated, how.threshold, split=SPLIT, scale="probability" if calibration is None else "calibrated"
    )
    notes += chosen.notes
    stated: dict[str, Any] = {"thresholds": chosen.values, "policy": chosen.policy, "calibration": calibration}
    if table.task == "multiclass":
        del stated["thresholds"], stated["policy"]
    model.set_outputs(labels=table.labels, task=table.task, prevalence=prevalence, **stated)
    return Decided(scores, _with(calibrated, model), None if honest is None else _with(honest, model), tuple(notes))


def validation_scores(table: Table, predictions: ValidationPredictions) -> Scores:
    """Return the predictions of a training as scores, without thresholds."""
    rows = predictions.rows.numpy()
    return Scores.from_logits(
        predictions.logits.double().numpy(), task=table.task, ids=table.ids[rows],
        targets=np.asarray(predictions.targets.numpy(), np.float32), labels=table.labels,
        patients=None if table.patients is None else table.patients[rows],
        groups={name: values[rows] for name, values in table.groups.items()}, source="the validation part",
    )  # fmt: skip


def card_metrics(metrics: Metrics, split: str) -> dict[str, float]:
    """Return the figures of a model card by name, each with its interval or none; what cannot be computed is left out.

    Args:
        metrics: of the model that is saved.
        split: of the rows, which starts each name.
    """
    found: dict[str, float] = {f"{split}: rows": float(metrics.rows)}
    if metrics.patients is not None:
        found[f"{split}: patients"] = float(metrics.patients)
    several = len(metrics.labels) > 1
    figures = [(f"AUROC, {m.label}" if several else "AUROC", m["auroc"]) for m in metrics.labels]
    if several:
        figures.insert(0, (f"mean AUROC of {len(metrics.eligible)} labels", metrics.overall["macro_auroc"]))
    for name, estimate in figures:
        for suffix, value in (("", estimate.value), (", 95 % low", estimate.low), (", 95 % high", estimate.high)):
            if value is not None and value == value:
                found[f"{split}: {name}{suffix}"] = round(float(value), 4)
    return found


def _with(scores: Scores, model: Classifier) -> Scores:
    """Return scores with the thresholds of the model."""
    outputs = model.outputs
    rule = f"{outputs.policy.rule}, chosen on {SPLIT}" if outputs.policy else ""
    return replace(scores, thresholds=outputs.thresholds, threshold_rule=rule)
