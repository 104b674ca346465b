"""Deal groups of rows to parts: the best balanced of many random draws, then improved by moves and exchanges.

The score of a division is the largest relative deviation of any label's share from the wanted one: of 100 rows with
Edema, 24 in a part that should have 20 % of them are a deviation of 0.2. The number of rows counts as one more label.
Labels that are too rare for that are not part of the score; of two divisions with the same score, the one with the
lower mean over all labels is better.

Axes: d draws, g groups, p parts, l labels, of which the first is the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["deal", "deviations"]

# Groups times draws of one call: 20,000 draws of 1,000 groups, 650 of 30,805. With more groups, chance leaves less to
# choose between: the shares of a draw differ by about one over the square root of their number.
MOST_PLACES = 20_000_000
LEAST_DRAWS = 100
# Groups times draws that are in memory at the same time, at about 40 bytes each.
_BLOCK = 1_000_000
# Of the improvement: candidates looked at in a step, steps, and steps in a row without a better one.
_CANDIDATES = 4000
_STEPS = 300
_FRUITLESS = 4
# A part without rows is worse than any deviation.
_EMPTY = 1000.0


def deal(
    counts: NDArray[np.int64],
    shares: Sequence[float],
    *,
    seed: int,
    draws: int,
    scored: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], float]:
    """Return the part of each group, and the score of that.

    Args:
        counts: ``g l``; rows of each group in the first column, then positives of each label.
        shares: of each part, above 0, with a sum of 1.
        seed: the result follows from it.
        draws: at most so many are made; see :data:`MOST_PLACES`.
        scored: which columns the score is of; ``None`` is all.
    """
    scored = np.ones(counts.shape[1], bool) if scored is None else scored
    rng = np.random.default_rng(seed)
    # Exact: sums of whole numbers below 2**24.
    weights = counts.astype(np.float32)
    wanted = np.outer(shares, weights.sum(0)).astype(np.float32)
    draws = max(min(draws, max(LEAST_DRAWS, MOST_PLACES // len(counts))), 1)
    best, lowest = np.zeros(len(counts), np.int64), np.inf
    step = max(1, _BLOCK // len(counts))
    for start in range(0, draws, step):
        which = _draw(rng, weights[:, 0], shares, min(step, draws - start))
        scores = _score(_totals(which, weights, len(shares)), wanted, scored)
        at = int(scores.argmin())
        if scores[at] < lowest:
            best, lowest = which[at].astype(np.int64), float(scores[at])
    best = _improve(rng, best, weights, wanted, scored)
    found = deviations(_totals(best[None], weights, len(shares))[0], wanted)
    return best, float(found[:, scored].max())


def deviations(totals: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the relative deviation ``… p l`` of totals from the wanted ones; 0 where nothing is wanted."""
    safe = np.where(wanted > 0, wanted, 1)
    return np.where(wanted > 0, np.abs(totals - wanted) / safe, 0)


def _draw(
    rng: np.random.Generator, sizes: NDArray[np.float32], shares: Sequence[float], draws: int
) -> NDArray[np.int8]:
    """Return random parts ``d g``: a random order of the groups, cut where the rows reach the shares."""
    order = rng.random((draws, len(sizes))).argsort(axis=1)
    ordered = sizes[order]
    middle = (ordered.cumsum(axis=1, dtype=np.float64) - ordered / 2) / sizes.sum(dtype=np.float64)
    parts = np.searchsorted(np.cumsum(shares)[:-1], middle, side="right").astype(np.int8)
    which = np.empty_like(parts)
    np.put_along_axis(which, order, parts, axis=1)
    return which


def _totals(which: NDArray[np.integer], weights: NDArray[np.float32], parts: int) -> NDArray[np.float32]:
    """Return the sums ``d p l`` of each part."""
    return np.stack([(which == part).astype(np.float32) @ weights for part in range(parts)], axis=1)


def _score(totals: NDArray[np.float32], wanted: NDArray[np.float32], scored: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the scores ``d``."""
    found = deviations(totals, wanted)
    empty = (totals[..., 0] == 0).sum(axis=-1)
    return found[..., scored].max(axis=(-2, -1)) + 0.001 * found.mean(axis=(-2, -1)) + _EMPTY * empty


def _improve(
    rng: np.random.Generator,
    which: NDArray[np.int64],
    weights: NDArray[np.float32],
    wanted: NDArray[np.float32],
    scored: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Move single groups, and exchange pairs of them, as long as that makes the score better."""
    parts, groups = len(wanted), len(which)
    totals = _totals(which[None], weights, parts)[0]
    score = float(_score(totals[None], wanted, scored)[0])
    fruitless, rows = 0, np.arange(_CANDIDATES)
    for _ in range(_STEPS):
        if fruitless == _FRUITLESS or parts == 1:
            break
        first, second = rng.integers(groups, size=(2, _CANDIDATES))
        exchanged = rng.random(_CANDIDATES) < 0.5
        target = np.where(exchanged, which[second], rng.integers(parts, size=_CANDIDATES))
        gain = weights[first] - np.where(exchanged[:, None], weights[second], 0)
        trial = np.repeat(totals[None], _CANDIDATES, axis=0)
        trial[rows, which[first]] -= gain
        trial[rows, target] += gain
        scores = _score(trial, wanted, scored)
        at = int(scores.argmin())
        if scores[at] >= score:
            fruitless += 1
            continue
        fruitless, score, totals = 0, float(scores[at]), trial[at]
        if exchanged[at]:
            which[second[at]] = which[first[at]]
        which[first[at]] = target[at]
    return which
