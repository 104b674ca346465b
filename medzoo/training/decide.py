"""What is decided when a training has ended: the calibration and the thresholds, on the validation part alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from medzoo.classifier import Classifier
from medzoo.data.table import Table
from medzoo.evaluation.assemble import CHOSEN_HERE, Choices, Evidence, assemble
from medzoo.evaluation.calibration import apply_calibration, cross_fitted, fit_calibration, fold_calibration
from medzoo.evaluation.card import card_metrics
from medzoo.evaluation.compare import compare
from medzoo.evaluation.curves import curves
from medzoo.evaluation.metrics import Metrics, measure
from medzoo.evaluation.report import Report
from medzoo.evaluation.run_record import RunRecord, own_groups
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.shifts import shift_for_loss_weights
from medzoo.evaluation.thresholds import choose_thresholds
from medzoo.provenance import Calibration
from medzoo.training.recipe import Recipe
from medzoo.training.validation import ValidationPredictions

__all__ = ["Decided", "decide", "validation_report"]

SPLIT = "validation"
PROBABILITY = ("brier", "log_loss", "ece", "calibration_slope", "calibration_intercept")
"""Figures of the probabilities themselves: neither of their order nor at a threshold."""


@dataclass(frozen=True, eq=False)
class Decided:
    """What was decided on the validation part.

    Attributes:
        before: scores of the model as it was trained.
        scores: scores of the model as it is saved, with its thresholds.
        honest: the same, but each row calibrated by a fit on other patients; ``None`` without a calibration.
        predictions: of the model as it is saved.
        notes: what was not decided, and why.
        weighted: whether the loss had weights.
    """

    before: Scores
    scores: Scores
    honest: Scores | None
    predictions: ValidationPredictions
    notes: tuple[str, ...]
    weighted: bool

    @cached_property
    def metrics(self) -> Metrics:
        """Figures of the model as it is saved, for its card and its report."""
        return measure(self.scores)

    def card_metrics(self, caution: str = "") -> dict[str, float]:
        """Return the figures that go into the model card, with their intervals; none if there is a caution."""
        return {} if caution else card_metrics(self.metrics, SPLIT)


def decide(
    model: Classifier, recipe: Recipe, table: Table, predictions: ValidationPredictions, *,
    prevalence: tuple[float, ...], loss_weights: tuple[float, ...] = (),
) -> Decided:  # fmt: skip
    """Calibrate a trained model, choose its thresholds, and state both in its outputs.

    Args:
        model: with the outputs of the table; changed.
        recipe: its section ``decide``.
        table: that the rows of the predictions are of.
        predictions: of the validation part.
        prevalence: share of positives in the training part.
        loss_weights: of the loss, as :attr:`~medzoo.training.losses.ClassificationLoss.relative_weights` states them.
    """
    how, scores = recipe.decide, validation_scores(table, predictions)
    calibration, notes = _calibration(how.calibrate, scores, loss_weights)
    calibrated, honest = scores, None
    if calibration is not None:
        fold_calibration(model, calibration)
        calibrated = apply_calibration(scores, calibration)
        # A shift in closed form was not fitted to these rows.
        honest = cross_fitted(scores) if how.calibrate == "auto" else calibrated
    chosen = choose_thresholds(
        calibrated, how.threshold, split=SPLIT, scale="probability" if calibration is None else "calibrated"
    )
    notes += chosen.notes
    stated: dict[str, Any] = {"thresholds": chosen.values, "policy": chosen.policy, "calibration": calibration}
    if table.task == "multiclass":
        stated["thresholds"] = ()
    model.set_outputs(labels=table.labels, task=table.task, prevalence=prevalence, loss_weights=loss_weights, **stated)
    logits = predictions.logits
    if calibration is not None:
        slope, intercept = (torch.tensor(v, dtype=torch.float64) for v in (calibration.slope, calibration.intercept))
        logits = (logits.double() * slope + intercept).float()
    return Decided(
        before=scores,
        scores=_with(calibrated, model),
        honest=None if honest is None else _with(honest, model),
        predictions=predictions._replace(logits=logits),
        notes=tuple(notes),
        weighted=bool(loss_weights),
    )


def validation_report(
    record: RunRecord, model: Classifier, decided: Decided, baseline: Scores | None = None
) -> Report:  # fmt: skip
    """Return the report of the validation part, on which the thresholds and the calibration were chosen.

    Args:
        record: of the run, whose table and log are written.
        model: that was trained.
        decided: on its validation part.
        baseline: scores of the same training without the weights of the loss, before a calibration.
    """
    caution = record.caution()
    notes = [*filter(None, [caution]), CHOSEN_HERE]
    if decided.honest is not None:
        notes.append(
            "Brier score, log-loss, ECE, slope, intercept, reliability and decision curve are of a calibration that "
            "was fitted in turns without the patient of the row; the model has the one that was fitted to all of them"
        )
    if decided.weighted and baseline is None:
        notes.append(
            "the loss was weighted, which seldom improves the ranking and shifts the probabilities: "
            "decide.baseline=true trains the same without weights and compares both"
        )
    if baseline is not None:
        notes.append("the training with weights in its loss and that without are compared before any calibration")
    evidence = Evidence(
        name=record.path.name, model=model, record=record, part="valid", count=False, notes=(*notes, *decided.notes),
        before=decided.before if decided.honest is not None else None,
        case_sampled=bool(record.facts().get("case_sampled")), metrics=decided.metrics,
    )  # fmt: skip
    report = assemble(decided.scores, Choices(), evidence)
    report = replace(report, title=caution or report.title)  # so that no page of such a run looks honest
    if decided.honest is not None:
        report = with_probabilities_of(report, decided.honest)
    if baseline is not None:
        named = (replace(decided.before, source="with weights"), replace(baseline, source="without weights"))
        report = replace(report, comparison=compare(*named))
    return report


def with_probabilities_of(report: Report, scores: Scores) -> Report:
    """Return a report whose figures and curves of the probabilities are those of other scores of the same rows."""
    found, drawn = measure(scores, eligible=report.metrics.eligible), curves(scores)
    labels = tuple(
        replace(own, values={**own.values, **{name: other.values[name] for name in PROBABILITY}})
        for own, other in zip(report.metrics.labels, found.labels, strict=True)
    )
    overall = {
        name: found.overall[name] if name in PROBABILITY else value for name, value in report.metrics.overall.items()
    }
    taken = ("reliability", "decision_at", "net_benefit", "net_benefit_band", "treat_all")
    return replace(
        report,
        metrics=replace(report.metrics, labels=labels, overall=overall),
        curves=tuple(
            replace(own, **{name: getattr(other, name) for name in taken})
            for own, other in zip(report.curves, drawn, strict=True)
        ),
    )


def _calibration(
    how: str, scores: Scores, loss_weights: tuple[float, ...]
) -> tuple[Calibration | None, list[str]]:  # fmt: skip
    """Return the calibration that a recipe asks for, and notes."""
    if how == "none":
        return None, []
    if how == "shift":
        if not loss_weights:
            return None, ["not shifted: the loss has no weights"]
        return shift_for_loss_weights(scores.labels, loss_weights), []
    fitted = fit_calibration(scores, split=SPLIT)
    notes = list(fitted.notes)
    if fitted.calibration is None and loss_weights:
        notes.append(
            "the loss was weighted, which shifts the probabilities, and no calibration was fitted: "
            "decide.calibrate=shift takes the shift in closed form, which is right in the limit of much data"
        )
    return fitted.calibration, notes


def validation_scores(table: Table, predictions: ValidationPredictions) -> Scores:
    """Return the predictions of a training as scores, without thresholds."""
    rows = predictions.rows.numpy()
    return Scores.from_logits(
        predictions.logits.double().numpy(), task=table.task, ids=table.ids[rows],
        targets=np.asarray(predictions.targets.numpy(), np.float32), labels=table.labels,
        patients=None if table.patients is None else table.patients[rows],
        groups={name: values[rows] for name, values in own_groups(table.groups).items()},
        source="the validation part",
    )  # fmt: skip


def _with(scores: Scores, model: Classifier) -> Scores:
    """Return scores with the thresholds of the model."""
    outputs = model.outputs
    rule = f"{outputs.policy.rule}, chosen on {SPLIT}" if outputs.policy else ""
    return replace(scores, thresholds=outputs.thresholds, threshold_rule=rule)
