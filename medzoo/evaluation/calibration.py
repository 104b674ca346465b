"""Calibration of logits: fitted, applied to scores, folded into a model, and in closed form.

A calibration maps each logit z to ``slope * z + intercept``, with a slope above 0, so that the ranking of an output
does not change.

Axes: n rows, l labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.classifier import Classifier, calibrate_head
from medzoo.contract import Outputs
from medzoo.errors import ConfigError
from medzoo.evaluation.estimate import LEAST_PATIENTS
from medzoo.evaluation.fit_logits import LabelFit, fit_label, fit_temperature
from medzoo.evaluation.metrics import count
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.shifts import shift_for_loss_weights, shift_for_prevalence
from medzoo.provenance import Calibration

__all__ = [
    "LEAST_ROWS",
    "Fitted",
    "apply_calibration",
    "cross_fitted",
    "fit_calibration",
    "fold_calibration",
    "shift_for_loss_weights",
    "shift_for_prevalence",
    "undo_calibration",
]

Array = NDArray[np.float64]
LEAST_ROWS = 30
"""Positive and negative rows below which no calibration is fitted."""


@dataclass(frozen=True)
class Fitted:
    """A calibration that was fitted.

    Attributes:
        calibration: of all outputs; an output that has none keeps slope 1 and intercept 0. ``None`` if no output has
            one.
        notes: why an output has none, or the intercept alone.
        labels: of the outputs that have one.
    """

    calibration: Calibration | None
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


def fit_calibration(scores: Scores, *, split: str = "validation") -> Fitted:
    """Fit a calibration of each output.

    For binary and multilabel outputs it is Platt's: the logistic regression of the label on the logit (Platt, in
    Advances in Large Margin Classifiers, 1999), without a penalty and without his smoothing of the labels. A slope that
    is not above 0, as of a model that learned nothing, would reverse the predictions; one that is infinite, as the
    logits separate the two classes completely, would make every probability 0 or 1. The intercept alone is fitted then,
    with slope 1. An output with fewer than 30 positive or negative rows, or of fewer than 10 positive or negative
    patients, is not calibrated.

    For multiclass it is one temperature (Guo et al., ICML 2017) for all outputs, from 30 rows and 10 patients of each
    class on.

    Args:
        scores: of rows that the model was not trained on.
        split: what the rows are, for :class:`medzoo.Calibration`.
    """
    fits, notes = _fit(scores, LEAST_ROWS, LEAST_PATIENTS)
    if not any(fit.kind for fit in fits):
        return Fitted(None, notes)
    slopes, intercepts = tuple(fit.slope for fit in fits), tuple(fit.intercept for fit in fits)
    kinds = {fit.kind for fit in fits}
    method = fits[0].kind
    if len(kinds) > 1:
        each = ", ".join(f"{label} {fit.kind or 'none'}" for label, fit in zip(scores.labels, fits, strict=True))
        method = f"Platt or intercept per label: {each}"
    fitted = tuple(label for label, fit in zip(scores.labels, fits, strict=True) if fit.kind)
    return Fitted(Calibration(method, slopes, intercepts, split), notes, fitted)


def _fit(scores: Scores, rows: int, patients: int) -> tuple[list[LabelFit], tuple[str, ...]]:
    """Return the fit of each label from so many rows and patients of each class on, and notes."""
    labels, clusters = scores.labels, scores.clusters
    nothing = [LabelFit()] * len(labels)
    if not _plain(scores):
        return nothing, ("not calibrated: the probabilities are not the sigmoid of the logits",)
    unknown = (np.abs(scores.logits) >= 700) & (scores.task != "multiclass")
    counts = [count(scores.targets[:, i], clusters) for i in range(len(labels))]
    if scores.task == "multiclass":
        for label, found in zip(labels, counts, strict=True):
            if found.positive < rows or found.positive_patients < patients:
                return nothing, (
                    f"not calibrated: {found.positive} rows of {found.positive_patients} patients are {label}; "
                    f"{rows} rows of {patients} patients of each class are needed",
                )
        known = ~np.isnan(scores.targets).any(1)
        fit, why = fit_temperature(scores.logits[known], scores.targets[known].argmax(1))
        return [fit] * len(labels), (why,) if why else ()
    fits, notes = [], []
    for i, (label, found) in enumerate(zip(labels, counts, strict=True)):
        fit = LabelFit()
        if (
            min(found.positive, found.negative) < rows
            or min(found.positive_patients, found.negative_patients) < patients
        ):
            why = (
                f"not calibrated, with {found.positive} positive and {found.negative} negative rows of "
                f"{found.positive_patients} and {found.negative_patients} patients; {rows} rows of {patients} patients "
                "of each are needed"
            )
        elif unknown[:, i].any():
            why = f"not calibrated: {int(unknown[:, i].sum())} probabilities are 0 or 1, and have no logit"
        else:
            known = ~np.isnan(scores.targets[:, i])
            fit, why = fit_label(scores.logits[known, i], scores.targets[known, i] == 1)
        fits.append(fit)
        notes += [f"{label}: {why}"] if why else []
    return fits, tuple(notes)


def _plain(scores: Scores) -> bool:
    """Whether the probabilities are those of the logits: not rescaled by operating points."""
    same: NDArray[Any] = scores.ranks
    return (
        same is scores.probabilities or np.array_equal(same, scores.probabilities) or np.allclose(same, scores.logits)
    )


def apply_calibration(scores: Scores, calibration: Calibration) -> Scores:
    """Return the scores as the model gives them after :func:`fold_calibration`; thresholds move with them.

    Raises:
        ConfigError: the calibration is of other outputs, the probabilities are not the sigmoid of the logits, or the
            slopes of the classes of a multiclass model differ: their logits are known up to a constant alone.
    """
    return _applied(scores, calibration, undo=False)


def undo_calibration(scores: Scores, calibration: Calibration) -> Scores:
    """Return scores of a calibrated model as it gave them before; see :func:`apply_calibration`."""
    return _applied(scores, calibration, undo=True)


def _applied(scores: Scores, calibration: Calibration, undo: bool) -> Scores:
    if not _plain(scores):
        raise ConfigError(f"{scores.source}: expected probabilities that are the sigmoid of the logits, got others.")
    if scores.task == "multiclass" and len(set(calibration.slope)) > 1:
        raise ConfigError(
            f"{scores.source}: expected one slope for all classes, got {calibration.slope}: the logits of a multiclass "
            "model are known up to a constant alone. Fold it into the model, and score that."
        )
    outputs = Outputs(scores.labels, scores.task, scores.thresholds if scores.task != "multiclass" else ())
    moved = outputs.moved(calibration, undo=undo, chosen=bool(scores.threshold_rule))
    slope, intercept = np.array(calibration.slope), np.array(calibration.intercept)
    z = (scores.logits - intercept) / slope if undo else slope * scores.logits + intercept
    return _with_logits(scores, z, moved if scores.thresholds else ())


def _with_logits(scores: Scores, z: Array, thresholds: tuple[float | None, ...], rule: str | None = None) -> Scores:
    """Return the scores with other logits, and so other probabilities and ranks."""
    made = Scores.from_logits(z, task=scores.task, labels=scores.labels, ids=scores.ids, targets=scores.targets)
    return replace(
        scores, logits=made.logits, ranks=made.ranks, probabilities=made.probabilities, thresholds=thresholds,
        threshold_rule=scores.threshold_rule if rule is None else rule,
    )  # fmt: skip


def cross_fitted(scores: Scores, *, folds: int = 5, seed: int = 0) -> Scores | None:
    """Return the scores with each row calibrated by a fit on other patients, or ``None`` where that cannot be fitted.

    Figures of scores on the rows that calibrated them are too good; these are not. The patients are dealt to the folds
    at random, those with a positive row of the rarest label first. In the folds half as many rows and patients are
    enough as for :func:`fit_calibration`, whose choice of what is not calibrated is kept. The ranks stay those of the
    model, which a calibration does not change; there are no thresholds.

    Args:
        scores: of rows that the model was not trained on.
        folds: number of parts of the patients.
        seed: of the parts.

    Raises:
        ConfigError: fewer than 2 folds.
    """
    if folds < 2:
        raise ConfigError(f"cross_fitted: expected folds to be an int >= 2, got {folds}.")
    all_rows, _ = _fit(scores, LEAST_ROWS, LEAST_PATIENTS)
    if not any(fit.kind for fit in all_rows):
        return None
    fold_of = _deal(scores, folds, seed)
    logits = scores.logits.copy()
    for fold in range(folds):
        here = fold_of == fold
        fits, _ = _fit(scores.select(np.flatnonzero(~here)), LEAST_ROWS // 2, LEAST_PATIENTS // 2)
        if any(whole.kind and not part.kind for whole, part in zip(all_rows, fits, strict=True)):
            return None
        for i, (whole, part) in enumerate(zip(all_rows, fits, strict=True)):
            if whole.kind:
                logits[here, i] = part.slope * logits[here, i] + part.intercept
    thresholds: tuple[float | None, ...] = () if scores.task == "multiclass" else (None,) * len(scores.labels)
    return replace(_with_logits(scores, logits, thresholds, ""), ranks=scores.ranks)


def _deal(scores: Scores, folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row: patients in random order, by which labels they have, are dealt by turns."""
    clusters = scores.clusters
    positive = np.zeros((int(clusters.max(initial=-1)) + 1, len(scores.labels)), bool)
    np.logical_or.at(positive, clusters, scores.targets == 1)
    order = np.random.default_rng(seed).permutation(len(positive))
    rarest = np.argsort(positive.sum(0), kind="stable")
    order = order[np.lexsort([~positive[order][:, i] for i in rarest[::-1]])]
    fold = np.empty(len(positive), np.int64)
    fold[order] = np.arange(len(positive)) % folds
    return fold[clusters]


def fold_calibration(model: Classifier, calibration: Calibration) -> None:
    """Change ``head.classifier`` in place so that the logits are calibrated, and state it in ``model.outputs``.

    Each row of the weight becomes ``slope * weight``, and the bias ``slope * bias + intercept``, computed in float64
    and rounded once, so that ``forward``, an exported model and saved weights are calibrated too.
    ``model.uncalibrated()`` undoes it. Thresholds move with the logits, so that the calls stay as they are, and so does
    their policy; 0.5 without a policy becomes ``None``, see :meth:`medzoo.Outputs.with_calibration`.

    Args:
        model: it is changed, and no longer has the weights that it was loaded with.
        calibration: of its outputs as they are now.

    Raises:
        ConfigError: the model has no ``head.classifier`` that is a ``torch.nn.Linear``, is calibrated already, has
            ``normalised``, or has another number of outputs; it is unchanged.
    """
    if not isinstance(model, Classifier):
        raise ConfigError(
            f"fold_calibration: expected a model from medzoo.create, got {type(model).__name__}. A model created with "
            "features_only=True has no logits."
        )
    if not isinstance(calibration, Calibration):
        raise ConfigError(
            f"fold_calibration: expected a medzoo.Calibration, got {type(calibration).__name__}. "
            "fit_calibration(scores) has one as .calibration, which is None where none can be fitted."
        )
    calibrate_head(model, calibration)
