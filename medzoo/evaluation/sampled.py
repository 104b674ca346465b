"""Rows that were sampled by class: the share of positives in their population, and what depends on it.

A sample of 1,500 positives and 2,000 negatives has 43 % of positives, and its population perhaps 0.2 %. Sensitivity,
specificity and AUROC are those of the population too. Predictive values and the accuracy follow from the former by the
share of positives in the population. Whether probabilities that are for the population are right is seen in the sample
after the closed-form shift to the share of positives there: the odds of a row that was drawn are those of the
population times the ratio by which positives were drawn more often; King and Zeng, Political Analysis 9 (2001) 137-163.

Axes: n rows, l labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.classifier import Classifier
from medzoo.data.table import Table
from medzoo.errors import ConfigError
from medzoo.evaluation.calibration import apply_calibration
from medzoo.evaluation.metrics import Metrics, measure
from medzoo.evaluation.run_record import RunRecord
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.shifts import shift_for_prevalence

__all__ = [
    "Population", "check_prevalence", "measure_moved", "move_to_rows", "percent", "shares_of_rows", "stated_shares",
]  # fmt: skip

_FEW = 3  # labels whose shares a note lists
_ALIKE = 0.1  # relative difference of two shares below which they are the same


@dataclass(frozen=True)
class Population:
    """What is known of the population that rows are from.

    Attributes:
        sampled: whether the rows were sampled by class.
        prevalence: share of positives in it, one for all labels or by label; ``None`` if no figure is stated for one.
        origin: what states it, in words.
        unknown: whether nobody states how these rows were chosen, and the model was trained on rows sampled by class.
    """

    sampled: bool = False
    prevalence: float | Mapping[str, float] | None = None
    origin: str = ""
    unknown: bool = False

    @classmethod
    def of(
        cls, given: float | Mapping[str, float] | None, case_sampled: bool | None, table: Table | None,
        runs: Sequence[RunRecord] = (), trained: RunRecord | None = None,
    ) -> Population:  # fmt: skip
        """Return what is given, or what the table or the runs whose own rows are evaluated state.

        Args:
            given: by the caller, which goes before all else.
            case_sampled: by the caller; ``None`` is what the table and the runs state.
            table: that is evaluated.
            runs: whose own rows are evaluated.
            trained: the run of the model.

        Raises:
            ConfigError: the rows are sampled and no share is known, or the runs state different ones.
        """
        known, origin = None, ""
        if table is not None and table.prevalence is not None:
            known = dict(zip(table.labels, table.prevalence, strict=True))
            origin = "run.json states" if runs else "the table states"
        stated = [run.sampling() for run in runs]
        if known is None and any(stated):
            if any(one != stated[0] for one in stated):
                raise ConfigError(
                    "evaluate: the runs state different shares of positives in the population, or not all were sampled "
                    "by class. Give prevalence=, such as prevalence=0.05."
                )
            known, origin = stated[0], "run.json states"
        sampled = known is not None or any(one is not None for one in stated)
        sampled = sampled if case_sampled is None else case_sampled
        if given is not None:
            return cls(sampled, given, "was given")
        if sampled and not known:
            raise ConfigError(
                "evaluate: the rows were sampled by class, so that predictive values need the share of positives in "
                "the population. Give prevalence=, such as prevalence=0.05."
            )
        if sampled:
            return cls(sampled, known, origin)
        doubt = case_sampled is None and not runs and trained is not None and trained.sampling() is not None
        return cls(unknown=doubt)

    def shares(self, labels: Sequence[str]) -> tuple[float, ...]:
        """Return the share of positives of each label, or nothing.

        Raises:
            ConfigError: a label has none.
        """
        if self.prevalence is None:
            return ()
        by_label = self.prevalence if isinstance(self.prevalence, Mapping) else dict.fromkeys(labels, self.prevalence)
        absent = [label for label in labels if label not in by_label]
        if absent:
            raise ConfigError(f"evaluate: expected a prevalence for each label, got none for {', '.join(absent)}.")
        return tuple(float(by_label[label]) for label in labels)

    def notes(self, scores: Scores, moved: Scores | None, model: Classifier | None) -> tuple[str, ...]:
        """Return what a reader should know: both shares, and of which of them each figure is.

        Args:
            scores: that are evaluated.
            moved: the same after :func:`move_to_rows`.
            model: that gave them, if it is known.
        """
        if self.unknown:
            return (
                "the run was trained on rows that were sampled by class, and whether these rows were is not stated: "
                "they are taken as they occur. Give case_sampled and the prevalence if they were sampled too",
            )
        if not self.sampled:
            return ()
        there, here = self.shares(scores.labels), shares_of_rows(scores)
        pairs = zip(scores.labels, here, there, strict=True)
        each = [f"{label} {percent(a)} and {percent(b)}" for label, a, b in pairs]
        more = f" and {len(each) - _FEW} more labels" if len(each) > _FEW else ""
        if moved is None:
            apart = [f"{x} {b:+.2f}" for x, b in zip(scores.labels, _log_odds(here) - _log_odds(there), strict=True)]
            probabilities = (
                "Figures of the probabilities are of these as they are, in this sample, where the intercept of "
                f"probabilities for the population is about {', '.join(apart[:_FEW])}"
            )
        else:
            probabilities = (
                "The probabilities are for the population; for figures of them they are moved in closed form to the "
                "share of these rows"
            )
        found = [
            f"the rows were sampled by class: shares of positives here and in the population, as {self.origin}, are "
            f"{', '.join(each[:_FEW])}{more}. AUROC, sensitivity and specificity do not depend on it; accuracy and "
            "predictive values are stated for the population; accuracy, F1, average precision, Brier score, log-loss, "
            f"ECE, the intercept and the decision curve are also, or only, those of this sample. {probabilities}"
        ]
        stated = () if model is None else stated_shares(model, scores.labels)
        other = [
            f"{label} {percent(p)}, not {percent(q)}" for label, p, q in zip(scores.labels, stated, there, strict=False)
            if p is not None and abs(p - q) > _ALIKE * q
        ]  # fmt: skip
        if other:
            found.append(
                f"the model's probabilities are for another share of positives than that of the population: "
                f"{', '.join(other[:_FEW])}. medzoo.recalibrate with the prevalence moves them"
            )
        return tuple(found)


def check_prevalence(given: float | Mapping[str, float] | None) -> None:
    """Raise ConfigError for what is no share, before anything is read."""
    shares = given.values() if isinstance(given, Mapping) else [] if given is None else [given]
    if not all(isinstance(share, (int, float)) and 0 < share < 1 for share in shares):
        raise ConfigError(f"evaluate: expected a prevalence above 0 and below 1, got {given}.")


def stated_shares(model: Classifier, labels: Sequence[str]) -> tuple[float | None, ...]:
    """Return the share of positives that the probabilities of a model are for, as its calibration states it."""
    outputs, found = model.outputs, model.outputs.calibration
    if found is None or not found.prevalence or outputs.labels != tuple(labels):
        return ()
    return found.prevalence


def shares_of_rows(scores: Scores) -> tuple[float, ...]:
    """Return the share of positives among the known targets of each label; NaN where none is known."""
    known = (~np.isnan(scores.targets)).sum(0)
    found = np.divide(np.nansum(scores.targets, 0), known, out=np.full(len(known), np.nan), where=known > 0)
    return tuple(map(float, found))


def move_to_rows(scores: Scores, stated: Sequence[float | None]) -> Scores | None:
    """Return the scores with probabilities for the share of positives of these rows; thresholds move with them.

    Order and calls stay as they are.

    Args:
        scores: of rows that were sampled by class.
        stated: the share of positives that the probabilities are for, one for each label; ``None`` where it is not
            known, and for a label whose rows are of one class, nothing moves.

    Returns:
        ``None`` if nothing moves.
    """
    here, classes = shares_of_rows(scores), scores.task == "multiclass"
    pairs = dict(zip(scores.labels, zip(stated, here, strict=False), strict=False))
    both = {label: (p, q) for label, (p, q) in pairs.items() if p is not None and 0 < q < 1}
    if not both or (classes and len(both) < len(scores.labels)):
        return None
    before, after = zip(*(both.get(label, (0.5, 0.5)) for label in scores.labels), strict=True)
    return apply_calibration(scores, shift_for_prevalence(scores.labels, before, after, multiclass=classes, only=both))


def measure_moved(scores: Scores, moved: Scores | None, **how: Any) -> Metrics:
    """Return the figures of moved scores with the thresholds of the scores as they are; see :func:`move_to_rows`."""
    found = measure(moved or scores, **how)
    if moved is None or not scores.thresholds:
        return found
    labels = (replace(m, threshold=t) for m, t in zip(found.labels, scores.thresholds, strict=True))
    return replace(found, labels=tuple(labels))


def _log_odds(shares: Sequence[float]) -> NDArray[np.float64]:
    p = np.asarray(shares, float)
    with np.errstate(divide="ignore"):
        return np.log(p) - np.log1p(-p)


def percent(share: float) -> str:
    """Return a share in percent with three digits.

    >>> percent(1500 / 3500), percent(1 / 485)
    ('42.9 %', '0.206 %')
    """
    return f"{100 * share:.3g} %"
