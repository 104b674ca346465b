"""The figures of a set of scores in every resample of its patients.

Axes: l labels, p patients, b resamples at a time, r resamples.

Every figure is a function of sums over patients (counts of calls, of squared errors, of logarithms), which a product of
matrices weighs for all resamples at once, or of the ranking; see :mod:`medzoo.evaluation.ranking`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import ConfigError
from medzoo.evaluation.ranking import Ranking
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.scores import Scores
from medzoo.progress import track

__all__ = ["Options", "Replicates", "replicate"]

Array = NDArray[np.float64]

# scikit-learn's limit of a logarithm: a probability that is no further from 0 or 1 in double precision.
_LEAST_LOG = math.log(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Options:
    """What is computed beside the figures that need no choice.

    Attributes:
        prevalence: share of positives for which predictive values and the accuracy are stated too, one for each label
            or empty.
        specificity: at which the highest sensitivity is stated.
        sensitivity: at which the highest specificity is stated.
        sampled: whether the rows were sampled by class, so that the predictive values of the rows mean nothing.

    Raises:
        ConfigError: a number is not a share.
    """

    prevalence: tuple[float, ...] = ()
    specificity: float = 0.9
    sensitivity: float = 0.9
    sampled: bool = False

    def __post_init__(self) -> None:
        for name, values in (
            ("prevalence", self.prevalence), ("specificity", [self.specificity]), ("sensitivity", [self.sensitivity])
        ):  # fmt: skip
            if not all(0 < value <= 1 for value in values) or (name == "prevalence" and 1 in values):
                raise ConfigError(f"Options: expected {name} to be a share such as 0.05, got {getattr(self, name)}.")


@dataclass(frozen=True, eq=False)
class Replicates:
    """Figures by name, of the scores as they are and in every resample.

    Attributes:
        labels: ``l`` and ``l r`` by the name of a figure of one output.
        overall: a number and ``r`` by the name of a figure of all outputs.
        right: rows of each patient ``p`` of which every known label was called right, and all its rows with a known
            label.
    """

    labels: Mapping[str, tuple[Array, Array]]
    overall: Mapping[str, tuple[float, Array]]
    right: tuple[Array, Array] = (np.zeros(0), np.zeros(0))


def replicate(
    scores: Scores, resamples: Resamples, eligible: Sequence[bool], options: Options | None = None, *, title: str = ""
) -> Replicates:
    """Return the figures of all resamples.

    Args:
        scores: row i is of the patient ``resamples.clusters[i]``.
        resamples: of the patients.
        eligible: the labels that are averaged in ``macro_auroc`` and ``macro_average_precision``.
        options: what else is computed.
        title: of a progress bar; empty for none.

    Raises:
        ConfigError: there are not as many prevalences as labels.
    """
    stated = len(options.prevalence) if options else 0
    if stated not in (0, len(scores.labels)):
        raise ConfigError(
            f"Options: expected a prevalence for each of the {len(scores.labels)} labels, got {stated}. "
            "State one number per label, in their order."
        )
    sums = _Sums(scores, resamples.clusters, resamples.patients, np.asarray(eligible, bool), options or Options())
    labels, overall = sums.figures(np.ones((resamples.patients, 1)))
    steps = resamples.steps()
    parts = [sums.figures(resamples.weights(step)) for step in (track(steps, title) if title else steps)]
    return Replicates(
        {name: (v[:, 0], np.concatenate([p[0][name] for p in parts], 1)) for name, v in labels.items()},
        {name: (float(v[0]), np.concatenate([p[1][name] for p in parts])) for name, v in overall.items()},
        (sums.all[:, 1], sums.all[:, 0]),
    )


class _Sums:
    """What each patient adds to each figure."""

    def __init__(
        self, scores: Scores, clusters: NDArray[np.int64], patients: int, eligible: NDArray[np.bool_], options: Options
    ) -> None:
        self.eligible, self.options, self.multiclass = eligible, options, scores.task == "multiclass"
        self.rankings: list[Ranking] = []
        self.columns: list[Array] = []  # p k of each label
        targets, calls, p, log_odds = scores.targets, scores.calls, scores.probabilities, scores.log_odds

        def per_patient(rows: NDArray[np.bool_], *values: Array) -> Array:
            return np.stack(
                [np.bincount(clusters[rows], weights=value[rows], minlength=patients) for value in values], 1
            )

        for i in range(len(scores.labels)):
            known, positive = ~np.isnan(targets[:, i]), targets[:, i] == 1
            called, y = calls[:, i], positive.astype(float)
            self.rankings.append(Ranking(positive[known], scores.ranks[known, i], clusters[known], patients))
            loss = _log_loss(log_odds[:, i], y)
            self.columns.append(
                per_patient(
                    known, y, 1 - y, np.where(np.isnan(called), np.nan, called * y), called * (1 - y),
                    (p[:, i] - y) ** 2, loss,
                )
            )  # fmt: skip
        known = ~np.isnan(targets)
        if self.multiclass:
            known &= known.all(1, keepdims=True)
        self.there = np.flatnonzero((targets == 1).any(0))  # the classes that balanced accuracy averages
        self.valid = {  # the labels that the averages over all of them average, also in a resample that lacks a class
            "auroc": (targets == 1).any(0) & (targets == 0).any(0), "average_precision": (targets == 1).any(0)
        }  # fmt: skip
        right = (((calls == targets) | ~known) & ~(np.isnan(calls) & known)).all(1)
        rows = np.asarray(known.any(1))
        undecided = bool((np.isnan(calls) & known).any())
        extra = [np.ones(len(scores)), np.where(undecided, np.nan, right.astype(float))]
        if self.multiclass:
            truth = np.nan_to_num(targets)
            z = scores.logits - np.logaddexp.reduce(scores.logits, axis=1, keepdims=True)
            extra += [((p - truth) ** 2).sum(1), -(np.maximum(z, _LEAST_LOG) * truth).sum(1)]
        self.all = per_patient(rows, *extra)

    def figures(self, w: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the figures of the labels, ``l b``, and of all of them, ``b``, for weights ``p b``."""
        found = [
            self._label(ranking, w.T @ columns, w) for ranking, columns in zip(self.rankings, self.columns, strict=True)
        ]
        labels = {name: np.stack([each[name] for each in found]) for name in found[0]}
        if self.options.prevalence:
            labels |= self._at_prevalence(labels)
        with np.errstate(invalid="ignore", divide="ignore"):
            sums = w.T @ self.all
            means = sums[:, 1:] / sums[:, :1]
        overall = {"exact_match": means[:, 0]}
        if self.multiclass:
            overall = {"accuracy": means[:, 0], "balanced_accuracy": _mean(labels["sensitivity"][self.there])}
            overall |= {"brier": means[:, 1], "log_loss": means[:, 2]}
        for name in ("auroc", "average_precision"):
            overall[f"macro_{name}"] = _mean(labels[name][self.eligible])
            overall[f"macro_{name}_all"] = _mean(labels[name][self.valid[name]])
        return labels, overall

    def _label(self, ranking: Ranking, sums: Array, w: Array) -> dict[str, Array]:
        positive, negative, tp, fp, squares, losses = sums.T
        tn, fn, all_ = negative - fp, positive - tp, positive + negative
        sweep, nowhere = ranking.sweep(w), np.full_like(all_, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "auroc": sweep.auroc(),
                "average_precision": sweep.average_precision(),
                "sensitivity_at_specificity": sweep.sensitivity_at(self.options.specificity),
                "specificity_at_sensitivity": sweep.specificity_at(self.options.sensitivity),
                "accuracy": (tp + tn) / all_,
                "sensitivity": tp / positive,
                "specificity": tn / negative,
                "ppv": nowhere if self.options.sampled else tp / (tp + fp),
                "npv": nowhere if self.options.sampled else tn / (tn + fn),
                "f1": 2 * tp / (2 * tp + fp + fn),
                "brier": squares / all_,
                "log_loss": losses / all_,
                "prevalence": positive / all_,
            }

    def _at_prevalence(self, labels: Mapping[str, Array]) -> dict[str, Array]:
        share = np.array(self.options.prevalence)[:, None]
        hit, spared = labels["sensitivity"] * share, labels["specificity"] * (1 - share)
        false, missed = (1 - labels["specificity"]) * (1 - share), (1 - labels["sensitivity"]) * share
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "ppv_at_prevalence": hit / (hit + false), "npv_at_prevalence": spared / (spared + missed),
                "accuracy_at_prevalence": hit + spared,
            }  # fmt: skip


def _log_loss(z: Array, y: Array) -> Array:
    """Return -log p of what is true, from log-odds, at most 36.04: that of a probability of 0, as in scikit-learn."""
    return np.logaddexp(0, np.clip(np.where(y == 1, -z, z), _LEAST_LOG, -_LEAST_LOG))


def _mean(values: Array) -> Array:
    """Return the mean over the first axis; NaN if it is empty."""
    return values.mean(0) if len(values) else np.full(values.shape[1], np.nan)
