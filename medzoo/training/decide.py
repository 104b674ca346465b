"""What is decided when a training has ended: the calibration and the thresholds, on the validation part alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from medzoo.classifier import Classifier
from medzoo.data.table import Table
from medzoo.evaluation.assemble import CHOSEN_HERE, Choices, Evidence, assemble
from medzoo.evaluation.calibration import (
    Fitted,
    apply_calibration,
    cross_fitted,
    fit_calibration,
    fold_calibration,
)
from medzoo.evaluation.card import card_metrics
from medzoo.evaluation.compare import compare
from medzoo.evaluation.curves import curves
from medzoo.evaluation.metrics import Metrics, measure
from medzoo.evaluation.replicates import Options
from medzoo.evaluation.report import Report
from medzoo.evaluation.run_record import RunRecord, own_groups
from medzoo.evaluation.sampled import Population, measure_moved, percent, shares_of_rows
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.shifts import shift_for_loss_weights, shift_for_prevalence, weighted_shares, with_shift
from medzoo.evaluation.thresholds import choose_thresholds
from medzoo.provenance import Calibration
from medzoo.training.recipe import DecideSection
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
        moved: the same before the shift to the population, for which sampled rows cannot tell how good probabilities
            are; ``None`` without such a shift.
        honest: the scores, before that shift, with each row calibrated by a fit on other patients, or by a shift that
            was not fitted to these rows; ``None`` without a calibration.
        predictions: of the model as it is saved.
        notes: what was not decided, and why.
        weighted: whether the loss had weights.
        fitted: whether ``honest`` is of fits.
        options: of the figures.
    """

    before: Scores
    scores: Scores
    honest: Scores | None
    predictions: ValidationPredictions
    notes: tuple[str, ...]
    weighted: bool
    fitted: bool
    options: Options
    moved: Scores | None = None

    @cached_property
    def metrics(self) -> Metrics:
        """Figures of the model as it is saved, for its card and its report."""
        return measure_moved(self.scores, self.moved, options=self.options)

    def card_metrics(self, caution: str = "") -> dict[str, float]:
        """Return the figures that go into the model card, with their intervals; none if there is a caution."""
        return {} if caution else card_metrics(self.metrics, SPLIT)


def decide(
    model: Classifier, how: DecideSection, table: Table, predictions: ValidationPredictions, *,
    prevalence: tuple[float, ...], loss_weights: tuple[float, ...] = (),
) -> Decided:  # fmt: skip
    """Calibrate a trained model, choose its thresholds, and state both in its outputs.

    Args:
        model: with the outputs of the table; changed.
        how: that section of a recipe.
        table: that the rows of the predictions are of.
        predictions: of the validation part.
        prevalence: share of positives in the training part.
        loss_weights: of the loss, as :attr:`~medzoo.training.losses.ClassificationLoss.relative_weights` states them.
    """
    scores = validation_scores(table, predictions)
    fitted, notes = _calibration(how.calibrate, scores, loss_weights)
    calibrated = scores if fitted.calibration is None else apply_calibration(scores, fitted.calibration)
    sampled, shift = table.prevalence is not None, None
    there = table.prevalence or ()
    if not all(0 < share < 1 for share in there):
        there = ()
        notes.append("not shifted to the population, in which a label has only positives, or none")
    if there and how.prevalence == "population":
        trained = prevalence if how.calibrate == "shift" else weighted_shares(
            prevalence, loss_weights, multiclass=table.task == "multiclass"
        )  # fmt: skip
        shift, more = _to_population(scores, fitted.labels, trained, there)
        notes += more
    whole = fitted.calibration if shift is None else with_shift(fitted.calibration, shift)
    chosen = choose_thresholds(
        calibrated, how.threshold, split=SPLIT, scale="probability" if whole is None else "calibrated",
        prevalence=None if shift is None else there,
    )  # fmt: skip
    notes += chosen.notes
    decided = chosen.apply(calibrated)
    saved = decided if shift is None else apply_calibration(decided, shift)
    if whole is not None:
        fold_calibration(model, whole)
    model.set_outputs(
        labels=table.labels, task=table.task, prevalence=prevalence, loss_weights=loss_weights, calibration=whole,
        policy=chosen.policy, thresholds=() if table.task == "multiclass" else saved.thresholds,
    )  # fmt: skip
    logits = predictions.logits
    if whole is not None:
        slope, intercept = (torch.tensor(v, dtype=torch.float64) for v in (whole.slope, whole.intercept))
        logits = (logits.double() * slope + intercept).float()
    # A shift in closed form was not fitted to these rows.
    honest = None
    if fitted.calibration is not None:
        honest = cross_fitted(scores) if fitted.labels else calibrated
    return Decided(
        before=scores,
        scores=_with(saved, model),
        moved=None if shift is None else decided,
        honest=honest,
        predictions=predictions._replace(logits=logits),
        notes=tuple(notes),
        weighted=bool(loss_weights),
        fitted=honest is not None and bool(fitted.labels),
        options=Options(there, sampled=sampled),
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
    caution, population = record.caution(), Population(bool(record.sampling()), record.sampling(), "run.json states")
    notes = [*filter(None, [caution]), CHOSEN_HERE, *population.notes(decided.scores, decided.moved, model)]
    if decided.fitted:
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
        moved=decided.moved, metrics=decided.metrics,
    )  # fmt: skip
    report = assemble(decided.scores, Choices(options=decided.options), evidence)
    report = replace(report, title=caution or report.title)  # so that no page of such a run looks honest
    if decided.honest is not None:
        report = with_probabilities_of(report, decided.honest)
    if baseline is not None:
        named = (replace(decided.before, source="with weights"), replace(baseline, source="without weights"))
        report = replace(report, comparison=compare(*named))
    return report


def with_probabilities_of(report: Report, scores: Scores) -> Report:
    """Return a report whose figures and curves of the probabilities are those of other scores of the same rows."""
    found = measure(scores, eligible=report.metrics.eligible, options=report.metrics.options)
    drawn = curves(scores)
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
        moved=scores if report.moved is not None else None,
        metrics=replace(report.metrics, labels=labels, overall=overall),
        curves=tuple(
            replace(own, **{name: getattr(other, name) for name in taken})
            for own, other in zip(report.curves, drawn, strict=True)
        ),
    )


def _calibration(how: str, scores: Scores, loss_weights: tuple[float, ...]) -> tuple[Fitted, list[str]]:
    """Return the calibration that a recipe asks for, and notes."""
    if how == "none":
        return Fitted(None), []
    if how == "shift":
        if not loss_weights:
            return Fitted(None), ["not shifted: the loss has no weights"]
        return Fitted(shift_for_loss_weights(scores.labels, loss_weights)), []
    fitted = fit_calibration(scores, split=SPLIT)
    notes = list(fitted.notes)
    if fitted.calibration is None and loss_weights:
        notes.append(
            "the loss was weighted, which shifts the probabilities, and no calibration was fitted: "
            "decide.calibrate=shift takes the shift in closed form, which is right in the limit of much data"
        )
    return fitted, notes


def _to_population(
    scores: Scores, fitted: Sequence[str], trained: Sequence[float], there: Sequence[float]
) -> tuple[Calibration | None, list[str]]:
    """Return the shift from the sample to the population of a table that was sampled by class, and notes.

    Args:
        scores: of the validation part.
        fitted: the labels whose probabilities are for the share of positives of these rows, by a calibration.
        trained: the share that the probabilities of the others are for.
        there: the share of positives in the population, of each label.
    """
    labels, classes = scores.labels, scores.task == "multiclass"
    shares = [v if x in fitted else t for x, v, t in zip(labels, shares_of_rows(scores), trained, strict=True)]
    both = [0 < p < 1 for p in shares]
    moved = [label for label, ok in zip(labels, both, strict=True) if ok]
    if not moved or (classes and len(moved) < len(labels)):
        return None, ["not shifted to the population: the training part has one class alone"]
    before, after = ([p if ok else 0.5 for p, ok in zip(each, both, strict=True)] for each in (shares, there))
    shift = shift_for_prevalence(labels, before, after, multiclass=classes, only=moved)
    each = ", ".join(f"{x} {percent(q)} ({c:+.2f})" for x, q, c in zip(labels, there, shift.intercept, strict=True))
    return shift, [
        f"the rows were sampled by class: the probabilities are shifted to the share of positives in the population, "
        f"{each} logits; order and calls stay. It is right where positives, and negatives, are alike in both. "
        "decide.prevalence=sample leaves it out"
    ]


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
