"""FROC: sensitivity over false positives per scan, for marks at places in scans, and its mean at seven rates, the CPM.

The rules are those of the LUNA16 challenge: Setio et al., Medical Image Analysis 42 (2017) 1-13,
doi:10.1016/j.media.2017.06.015, and its script ``noduleCADEvaluationLUNA16.py``. A mark within the radius of a nodule
hits it, and several marks count once, with the highest score. A mark that hits an excluded finding and no nodule is
left out. Every other mark is a false positive, and a nodule that no mark hits is missed at every threshold.

Axes: n marks, m findings, s scans, k points of a curve, r resamples, b resamples at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.estimate import LEAST_PATIENTS, Estimate
from medzoo.evaluation.intervals import interval
from medzoo.evaluation.ranking import Ranking, ThresholdSweep
from medzoo.evaluation.resample import Resamples

__all__ = ["RATES", "Froc", "Marks", "froc_curve", "match_marks"]

Array = NDArray[np.float64]

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan whose sensitivities the CPM averages."""
BOOTSTRAP_SCANS = "bootstrap over scans"
_UNKNOWN = 10.0  # mm, the diameter that the script takes where it is not known and -1
_GRID = np.geomspace(RATES[0], RATES[-1], 97)


@dataclass(frozen=True, eq=False)
class Marks:
    """What counts: one row for each nodule that is hit, with its highest score, and one for each false positive.

    Attributes:
        scans: ``k``, the scan of each.
        scores: ``k``.
        hit: ``k``, whether it is a nodule.
        nodules: ``s``, the nodules of each scan, those that no mark hits too.
        on_excluded: marks that were left out, as they hit an excluded finding alone.
        again: marks that hit a nodule that another mark with a higher or the same score hits.
        over: marks beyond the most of a scan.
    """

    scans: NDArray[np.int64]
    scores: Array
    hit: NDArray[np.bool_]
    nodules: NDArray[np.int64]
    on_excluded: int
    again: int
    over: int


@dataclass(frozen=True, eq=False)
class Froc:
    """A free-response ROC curve.

    Attributes:
        rates: false positives per scan.
        sensitivities: at each of them, interpolated between the thresholds on both sides, with an interval.
        cpm: competition performance metric, their mean.
        curve: false positives per scan and sensitivity ``k`` as the threshold is lowered.
        band: rates ``g`` and the 2.5th and 97.5th percentile of the sensitivity there; ``None`` for few scans.
        scans, nodules, hit: how many there are, and how many nodules are hit by a mark of any score.
        candidates, false_positives, on_excluded, again, over: marks, those that are false positives, and those that
            do not count; see :class:`Marks`.
        resamples, seed: of the bootstrap.
    """

    rates: tuple[float, ...]
    sensitivities: tuple[Estimate, ...]
    cpm: Estimate
    curve: tuple[Array, Array]
    band: tuple[Array, Array, Array] | None
    scans: int
    nodules: int
    hit: int
    candidates: int
    false_positives: int
    on_excluded: int
    again: int
    over: int
    resamples: int
    seed: int

    def __str__(self) -> str:
        """Return the figures in a few lines."""
        lines = [
            f"{self.scans:,} scans, {self.nodules:,} nodules, {self.nodules - self.hit:,} of them hit by no candidate; "
            f"{self.candidates:,} candidates",
            *(f"  sensitivity at {rate:g} false positives per scan: {e}"
              for rate, e in zip(self.rates, self.sensitivities, strict=True)),
            f"  CPM, their mean: {self.cpm}",
        ]  # fmt: skip
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        counts = ("scans", "nodules", "hit", "candidates", "false_positives", "on_excluded", "again", "over")
        band = None if self.band is None else dict(zip(("rate", "low", "high"), _rounded(self.band), strict=True))
        pairs = zip(self.rates, self.sensitivities, strict=True)
        return {
            **{name: getattr(self, name) for name in (*counts, "resamples", "seed")},
            "cpm": self.cpm.to_dict(),
            "sensitivities": [{"false_positives_per_scan": rate, **e.to_dict()} for rate, e in pairs],
            "curve": dict(zip(("false_positives_per_scan", "sensitivity"), _rounded(self.curve), strict=True)),
            "band": band,
        }


def froc_curve(
    scans: NDArray[np.int64], scores: Array, centres: Array, nodule_scans: NDArray[np.int64], nodule_centres: Array,
    diameters: Array, excluded: NDArray[np.bool_], n_scans: int, *, rates: Sequence[float] = RATES,
    most: int | None = 100, resamples: int = 1000, seed: int = 0,
) -> Froc:  # fmt: skip
    """Return the FROC curve of marks in scans, with intervals of a bootstrap over scans.

    Args:
        scans: ``n``, the scan of each mark, 0 to ``n_scans`` - 1.
        scores: ``n``, larger for more likely; on any scale.
        centres: ``n 3`` in mm.
        nodule_scans: ``m``, the scan of each finding.
        nodule_centres: ``m 3`` in mm, in the frame of the marks.
        diameters: ``m`` in mm; for a negative one, which is not known, 10 mm is taken.
        excluded: ``m``, whether a finding is no nodule to be found, and marks on it do not count.
        n_scans: that were read, also those without a mark or a nodule.
        rates: false positives per scan, above 0.
        most: marks of a scan that count at most, those with the highest scores; as in the challenge's script, those
            whose score is that of the first one beyond do not. ``None`` for all.
        resamples: of the scans.
        seed: of the bootstrap.

    Raises:
        ConfigError: arrays that do not fit, or a rate that is not above 0.
        DataError: no nodule, or a score or a place that is not finite.
    """
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ConfigError(f"froc_curve: expected rates above 0, got {list(rates)}.")
    marks = match_marks(scans, scores, centres, nodule_scans, nodule_centres, diameters, excluded, n_scans, most=most)
    nodules = int(marks.nodules.sum())
    if not nodules:
        raise DataError(f"froc_curve: expected nodules in the {n_scans:,} scans, found none. Add scans with nodules.")
    draws = Resamples(np.arange(n_scans), resamples, seed)
    ranking = Ranking(marks.hit, marks.scores, marks.scans, n_scans)
    grid = np.union1d(_GRID, rates)
    ones = np.ones((n_scans, 1))
    curve = _curves(ranking.sweep(ones), ones, marks.nodules)[0]
    found = np.interp(rates, *curve)
    replicates = np.concatenate(
        [
            np.stack([np.interp(grid, x, y) for x, y in _curves(ranking.sweep(w), w, marks.nodules)], 1)
            for w in map(draws.weights, draws.steps())
        ],
        1,
    )  # g r; NaN where no drawn scan has a nodule
    at = replicates[np.searchsorted(grid, rates)]
    known = replicates[:, np.isfinite(replicates).all(0)]
    few = n_scans < LEAST_PATIENTS
    band = None if few else (grid, *np.percentile(known, [2.5, 97.5], axis=1))
    why = f"under {LEAST_PATIENTS} scans"

    def estimate(value: float, of: Array) -> Estimate:
        return Estimate(float(value), why=why) if few else interval(float(value), of, BOOTSTRAP_SCANS)

    return Froc(
        tuple(map(float, rates)), tuple(map(estimate, found, at)), estimate(found.mean(), at.mean(0)), curve, band,
        n_scans, nodules, int(marks.hit.sum()), len(scans), int((~marks.hit).sum()), marks.on_excluded, marks.again,
        marks.over, resamples, seed,
    )  # fmt: skip


def match_marks(
    scans: NDArray[np.int64], scores: Array, centres: Array, nodule_scans: NDArray[np.int64], nodule_centres: Array,
    diameters: Array, excluded: NDArray[np.bool_], n_scans: int, *, most: int | None = 100,
) -> Marks:  # fmt: skip
    """Match marks with findings; see :func:`froc_curve`.

    Raises:
        ConfigError: arrays that do not fit.
        DataError: a score or a place that is not finite.
    """
    _check(scans, scores, centres, nodule_scans, nodule_centres, diameters, excluded, n_scans, most)
    kept = np.ones(len(scans), bool) if most is None else _highest(scans, scores, n_scans, most)
    radius = np.where(diameters < 0, _UNKNOWN, diameters) / 2
    order = np.argsort(scans, kind="stable")
    order = order[kept[order]]
    edges = np.searchsorted(scans[order], np.arange(n_scans + 1))
    used = np.zeros(len(scans), bool)  # hits a nodule
    near = np.zeros(len(scans), bool)  # hits an excluded finding
    best, again = np.full(len(nodule_scans), -np.inf), 0
    for i, scan in enumerate(nodule_scans.tolist()):
        own = order[edges[scan] : edges[scan + 1]]
        hits = own[((centres[own] - nodule_centres[i]) ** 2).sum(1) < radius[i] ** 2]
        if excluded[i]:
            near[hits] = True
        elif len(hits):
            used[hits] = True
            best[i] = scores[hits].max()
            again += len(hits) - 1
    found, false = np.flatnonzero(np.isfinite(best)), np.flatnonzero(kept & ~used & ~near)
    return Marks(
        scans=np.concatenate([nodule_scans[found], scans[false]]),
        scores=np.concatenate([best[found], scores[false]]),
        hit=np.arange(len(found) + len(false)) < len(found),
        nodules=np.bincount(nodule_scans[~excluded], minlength=n_scans),
        on_excluded=int((kept & near & ~used).sum()),
        again=again,
        over=int((~kept).sum()),
    )


def _check(
    scans: Any, scores: Any, centres: Any, nodule_scans: Any, nodule_centres: Any, diameters: Any, excluded: Any,
    n_scans: int, most: int | None,
) -> None:  # fmt: skip
    """Raise an error for arrays that cannot be."""
    n, m = len(scans), len(nodule_scans)
    shapes = {
        "scores": (scores, (n,)), "centres": (centres, (n, 3)), "nodule_centres": (nodule_centres, (m, 3)),
        "diameters": (diameters, (m,)), "excluded": (excluded, (m,)),
    }  # fmt: skip
    for name, (array, shape) in shapes.items():
        if np.shape(array) != shape:
            raise ConfigError(f"froc_curve: expected {name} of shape {shape}, got {np.shape(array)}. Give one a row.")
        if not np.isfinite(np.asarray(array, float)).all():
            raise DataError(f"froc_curve: expected finite {name}, got NaN or infinity. Check the scores and the files.")
    for name, index in (("scans", scans), ("nodule_scans", nodule_scans)):
        if len(index) and not (np.min(index) >= 0 and np.max(index) < n_scans):
            raise ConfigError(f"froc_curve: expected {name} from 0 to {n_scans - 1}, got others. Number the scans.")
    if most is not None and most < 1:
        raise ConfigError(f"froc_curve: expected most to be an int >= 1 or None, got {most}.")


def _highest(scans: NDArray[np.int64], scores: Array, n_scans: int, most: int) -> NDArray[np.bool_]:
    """Return which marks are among those of a scan that count."""
    order = np.lexsort([-scores, scans])
    edges = np.searchsorted(scans[order], np.arange(n_scans + 1))
    limit = np.full(n_scans, -np.inf)
    beyond = np.flatnonzero(np.diff(edges) > most)
    limit[beyond] = scores[order[edges[beyond] + most]]
    return scores > limit[scans]


def _curves(sweep: ThresholdSweep, weights: Array, nodules: NDArray[np.int64]) -> list[tuple[Array, Array]]:
    """Return false positives per scan and sensitivity of each resample of weights ``s b``; NaN without a nodule."""
    n_scans, all_ = len(weights), nodules @ weights
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = sweep.false / n_scans, sweep.true / all_
    x, y = (np.concatenate([np.zeros((1, x.shape[1])), each]) for each in (x, y))
    y[:, all_ == 0] = np.nan
    return [(x[:, i], y[:, i]) for i in range(x.shape[1])]


def _rounded(arrays: Sequence[Array]) -> list[list[float]]:
    return [array.round(6).tolist() for array in arrays]
