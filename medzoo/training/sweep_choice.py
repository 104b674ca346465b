"""How the runs of a sweep are compared and one of them is chosen, by the validation part alone.

Axes: l labels, r resamples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medzoo.evaluation.case_counts import Counts, count, units_of, why_few
from medzoo.evaluation.compare import Difference, difference
from medzoo.evaluation.estimate import LEAST_PATIENTS, Estimate
from medzoo.evaluation.intervals import scaled_interval
from medzoo.evaluation.metrics import measure
from medzoo.evaluation.replicates import Replicates, replicate
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.run_record import RunRecord
from medzoo.evaluation.sampled import move_to_rows
from medzoo.evaluation.scores import Scores

__all__ = ["FIGURES", "By", "SweepRow", "Validated", "choose", "validated", "validated_run"]

By = Literal["auroc", "log_loss", "accuracy"]
FIGURES: Mapping[By, str] = {"auroc": "macro AUROC", "log_loss": "log-loss", "accuracy": "accuracy"}
"""What a run may be chosen by, in words. A larger one is better, but of the log-loss."""
DIGITS = 12  # decimal digits that make a tie
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Validated:
    """The figures of one run on the validation part.

    Attributes:
        estimates: by the name of the figure.
        replicates: of each figure ``r``, in the same resamples of the patients for all runs.
        units: patients that the interval of a difference rests on, by figure.
        why: why there is no interval of a difference, by figure; empty if there is one.
        rows: of the validation part.
        patients: likewise; ``None`` if they are not known.
        fitted: whether the calibration of the probabilities was fitted to these rows.
        moved: whether probabilities for the population of sampled rows were moved to the share of these rows.
    """

    estimates: Mapping[By, Estimate]
    replicates: Mapping[By, Array]
    units: Mapping[By, int]
    why: Mapping[By, str]
    rows: int
    patients: int | None
    fitted: bool = False
    moved: bool = False


@dataclass(frozen=True, eq=False)
class SweepRow:
    """One run of a sweep.

    Attributes:
        name: of the combination.
        folder: of the run, which :func:`medzoo.evaluate` takes.
        values: of the fields of the sweep.
        status: ``"finished"``, ``"failed"``, ``"unfinished"`` or ``"not begun"``.
        epochs: that were trained.
        seconds: of these epochs, validation included.
        log_loss: of the saved model on the validation part, mean over the labels, of sampled rows at their own share of
            positives; ``None`` unless finished.
        auroc: macro AUROC, over the labels with 10 positive and 10 negative patients, or over all with both classes if
            none has so many.
        accuracy: share of the rows whose known labels are all right, at a probability of 0.5 or by the most probable
            class, of the same probabilities.
        chosen: whether it is the run that was chosen.
        difference: of its figure and that of the chosen run, this - chosen, paired over patients; ``None`` for the
            chosen one, and unless finished. With several seeds, of the means over them.
        reason: why it failed; empty if it did not.
    """

    name: str
    folder: Path
    values: Mapping[str, Any]
    status: Literal["finished", "failed", "unfinished", "not begun"]
    epochs: int = 0
    seconds: float = 0.0
    log_loss: Estimate | None = None
    auroc: Estimate | None = None
    accuracy: Estimate | None = None
    chosen: bool = False
    difference: Difference | None = None
    reason: str = ""

    @property
    def separable(self) -> bool | None:
        """Whether the interval of the difference excludes 0; ``None`` without an interval."""
        return None if self.difference is None else self.difference.separable


def validated_run(record: RunRecord) -> Validated:
    """Return the figures of a finished run; see :func:`validated`.

    Probabilities that were shifted to the population of rows that were sampled by class are moved back to the share of
    positives of the validation rows: of others neither the log-loss nor the accuracy at 0.5 is that of these rows.
    """
    scores, calibration = record.predictions("valid"), record.weights().calibration
    if calibration is None:
        return validated(scores)
    moved = move_to_rows(scores, calibration.prevalence)
    # A fit states its rows; what is in closed form has none.
    return replace(validated(moved or scores), fitted=bool(calibration.split), moved=moved is not None)


def validated(scores: Scores, *, resamples: int = 2000) -> Validated:
    """Return the figures by which runs are compared.

    Args:
        scores: of the validation part, by the model as it is saved.
        resamples: of the bootstrap over patients, the same in all runs.
    """
    if scores.task != "multiclass":  # not the thresholds, which were chosen on these rows
        scores = replace(scores, thresholds=(0.5,) * len(scores.labels))
    clusters = scores.clusters
    counts = [count(scores.targets[:, i], clusters) for i in range(len(scores.labels))]
    eligible = [c.eligible for c in counts]
    draws = Resamples(clusters, resamples)
    found = replicate(scores, draws, eligible)
    overall = measure(scores, resamples=resamples, replicates=found).overall
    auroc = "macro_auroc" if any(eligible) else "macro_auroc_all"
    accuracy = "accuracy" if scores.task == "multiclass" else "exact_match"
    names: dict[By, str] = {"auroc": auroc, "accuracy": accuracy, "log_loss": "log_loss"}
    units = {by: units_of(name, counts, eligible, draws.patients) for by, name in names.items()}
    why = {
        by: why_few(name, len(counts), draws.patients) if units[by] < LEAST_PATIENTS else ""
        for by, name in names.items()
    }
    loss, losses = _log_loss(found, counts)
    estimate = scaled_interval(loss, losses, max(2, units["log_loss"]), at_most=math.inf)
    return Validated(
        estimates={
            "auroc": overall[auroc],
            "log_loss": Estimate(loss, why=why["log_loss"]) if why["log_loss"] else estimate,
            "accuracy": overall[accuracy],
        },
        replicates={"auroc": found.overall[auroc][1], "accuracy": found.overall[accuracy][1], "log_loss": losses},
        units=units,
        why=why,
        rows=len(scores),
        patients=None if scores.patients is None else draws.patients,
    )


def _log_loss(found: Replicates, counts: Sequence[Counts]) -> tuple[float, Array]:
    """Return the log-loss, and in each resample: of all classes, or the mean over the labels with a known row."""
    if "log_loss" in found.overall:
        return found.overall["log_loss"]
    known = [c.positive + c.negative > 0 for c in counts]
    values, resampled = found.labels["log_loss"]
    if not any(known):
        return math.nan, np.full(resampled.shape[1], math.nan)
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # a resample without a known row
        return float(values[known].mean()), np.nanmean(resampled[known], 0)


def choose(
    rows: Sequence[SweepRow], found: Mapping[str, Validated], by: By, seed: str | None = None
) -> tuple[SweepRow, ...]:
    """Return the rows with the chosen one marked, and the difference of every other finished run to it.

    The best figure wins; a tie is decided by the smaller log-loss, or by the larger AUROC where the log-loss itself is
    tied, and then by the order of the rows. Seeds are repetitions of one setting and are not chosen: with several of
    them the setting with the best mean wins, and its first run is marked. A setting of which a run failed comes after
    all without one.

    Args:
        rows: of all combinations.
        found: the figures of the finished ones, by name.
        by: the figure.
        seed: the name of the field ``train.seed``, if it is one of the fields.
    """
    settings: dict[str, list[SweepRow]] = {}
    for row in rows:
        key = repr([value for name, value in row.values.items() if name != seed])
        settings.setdefault(key, []).append(row)
    ranked = sorted(
        (own for own in settings.values() if any(row.name in found for row in own)),
        key=lambda own: _rank(own, found, by),
    )
    if not ranked:
        return tuple(rows)
    best = [row.name for row in ranked[0] if row.name in found]
    against: dict[str, Difference] = {}
    for own in ranked[1:]:
        names = [row.name for row in own if row.name in found]
        against |= dict.fromkeys(names, _difference([found[n] for n in names], [found[n] for n in best], by))
    return tuple(replace(row, chosen=row.name == best[0], difference=against.get(row.name)) for row in rows)


def _rank(rows: Sequence[SweepRow], found: Mapping[str, Validated], by: By) -> tuple[Any, ...]:
    """Return what sorts settings, the best first; Python's sort keeps the order of the rest."""
    tie: By = "auroc" if by == "log_loss" else "log_loss"
    missing = sum(row.name not in found for row in rows)
    own = [found[row.name] for row in rows if row.name in found]
    return missing, *(_cost(float(np.mean([one.estimates[name].value for one in own])), name) for name in (by, tie))


def _cost(value: float, by: By) -> float:
    """Return a figure as a number of which the smallest is the best; one that is not defined is the worst."""
    if math.isnan(value):
        return math.inf
    return round(value if by == "log_loss" else -value, DIGITS)


def _difference(these: Sequence[Validated], others: Sequence[Validated], by: By) -> Difference:
    """Return the difference of the means of two settings, on the same resamples."""
    this, other = (float(np.mean([one.estimates[by].value for one in all_])) for all_ in (these, others))
    resampled = [np.mean([one.replicates[by] for one in all_], 0) for all_ in (these, others)]
    return difference(this, other, resampled[0] - resampled[1], others[0].units[by], why=others[0].why[by])
