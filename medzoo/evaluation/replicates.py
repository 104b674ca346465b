"""The figures of a set of scores in every resample of its patients.

Axes: l labels, p patients, b resamples at a time, r resamples.

Every figure is a function of sums over patients (counts of calls, of squared errors, of logarithms), which a product of
matrices weighs for all resamples at once, or of the ranking; see :mod:`medzoo.evaluation.ranking`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medzoo.evaluation.ranking import Ranking
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.scores import Scores
from medzoo.progress import track

__all__ = ["Options", "Replicates", "replicate"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """What is computed beside the figures that need no choice.

    Attributes:
        prevalence: share of positives for which predictive values are stated too, one for each label or empty.
        specificity: at which the highest sensitivity is stated.
        sensitivity: at which the highest specificity is stated.
    """

    prevalence: tuple[float, ...] = ()
    specificity: float = 0.9
    sensitivity: float = 0.9


@dataclass(frozen=True, eq=False)
class Replicates:
    """Figures by name, of the scores as they are and in every resample.

    Attributes:
        labels: ``l`` and ``l r`` by the name of a figure of one output.
        overall: a number and ``r`` by the name of a figure of all outputs.
    """

    labels: Mapping[str, tuple[Array, Array]]
    overall: Mapping[str, tuple[float, Array]]


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
    """
    sums = _Sums(scores, resamples.clusters, resamples.patients, np.asarray(eligible, bool), options or Options())
    labels, overall = sums.figures(np.ones((resamples.patients, 1)))
    steps = resamples.steps()
    parts = [sums.figures(resamples.weights(step)) for step in (track(steps, title) if title else steps)]
    return Replicates(
        {name: (v[:, 0], np.concatenate([p[0][name] for p in parts], 1)) for name, v in labels.items()},
        {name: (float(v[0]), np.concatenate([p[1][name] for p in parts])) for name, v in overall.items()},
    )


class _Sums:
    """What each patient adds to each figure."""

    def __init__(
        self, scores: Scores, clusters: NDArray[np.int64], patients: int, eligible: NDArray[np.bool_], options: Options
    ) -> None:
        self.eligible, self.options, self.multiclass = eligible, options, scores.task == "multiclass"
        self.rankings: list[Ranking] = []
        self.columns: list[Array] = []  # p k of each label
        targets, calls, p = scores.targets, scores.calls, scores.probabilities

        def per_patient(rows: NDArray[np.bool_], *values: Array) -> Array:
            return np.stack(
                [np.bincount(clusters[rows], weights=value[rows], minlength=patients) for value in values], 1
            )

        for i in range(len(scores.labels)):
            known, positive = ~np.isnan(targets[:, i]), targets[:, i] == 1
            called, y = calls[:, i], positive.astype(float)
            self.rankings.append(Ranking(positive[known], scores.ranks[known, i], clusters[known], patients))
            loss = _log_loss(scores.log_odds[:, i], y)
            self.columns.append(
                per_patient(
                    known, y, 1 - y, np.where(np.isnan(called), np.nan, called * y), called * (1 - y),
                    (p[:, i] - y) ** 2, loss,
                )
            )  # fmt: skip
        known = ~np.isnan(targets)
        right = (((calls == targets) | ~known) & ~(np.isnan(calls) & known)).all(1)
        rows = known.any(1)
        undecided = bool((np.isnan(calls) & known).any())
        extra = [np.ones(len(scores)), np.where(undecided, np.nan, right.astype(float))]
        if self.multiclass:
            truth = np.nan_to_num(targets)
            extra += [((p - truth) ** 2).sum(1), -(np.maximum(scores.logits, -700) * truth).sum(1)]
        self.all = per_patient(rows, *extra)

    def figures(self, w: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the figures of the labels, ``l b``, and of all of them, ``b``, for weights ``p b``."""
        found = [self._label(ranking, w.T @ columns, w) for ranking, columns in zip(self.rankings, self.columns, strict=True)]
        labels = {name: np.stack([each[name] for each in found]) for name in found[0]}
        if self.options.prevalence:
            labels |= self._at_prevalence(labels)
        with np.errstate(invalid="ignore", divide="ignore"):
            sums = w.T @ self.all
            means = sums[:, 1:] / sums[:, :1]
        overall = {"exact_match": means[:, 0]}
        if self.multiclass:
            overall = {"accuracy": means[:, 0], "balanced_accuracy": labels["sensitivity"].mean(0)}
            overall |= {"brier": means[:, 1], "log_loss": means[:, 2]}
        for name in ("auroc", "average_precision"):
            chosen = labels[name][self.eligible]
            overall[f"macro_{name}"] = chosen.mean(0) if len(chosen) else np.full(w.shape[1], np.nan)
            overall[f"macro_{name}_all"] = _nanmean(labels[name])
        return labels, overall

    def _label(self, ranking: Ranking, sums: Array, w: Array) -> dict[str, Array]:
        positive, negative, tp, fp, squares, losses = sums.T
        tn, fn, all_ = negative - fp, positive - tp, positive + negative
        sweep = ranking.sweep(w)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "auroc": sweep.auroc(),
                "average_precision": sweep.average_precision(),
                "sensitivity_at_specificity": sweep.sensitivity_at(self.options.specificity),
                "specificity_at_sensitivity": sweep.specificity_at(self.options.sensitivity),
                "accuracy": (tp + tn) / all_,
                "sensitivity": tp / positive,
                "specificity": tn / negative,
                "ppv": tp / (tp + fp),
                "npv": tn / (tn + fn),
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
            return {"ppv_at_prevalence": hit / (hit + false), "npv_at_prevalence": spared / (spared + missed)}


def _log_loss(z: Array, y: Array) -> Array:
    """Return -log p of what is true, from log-odds, which do not saturate."""
    return np.logaddexp(0, np.where(y == 1, -z, z))


def _nanmean(values: Array) -> Array:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)
