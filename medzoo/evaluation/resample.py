"""Bootstrap over patients: how often each patient is drawn, as weights, so that no row is copied.

Axes: p patients, r resamples, b resamples at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import check_int

__all__ = ["CachedResamples", "Resamples", "ResamplesWithin"]

_MOST_BYTES = 3 * 2**20  # of the weights that are held at a time: with more, a step leaves the processor's cache
_CACHE_BYTES = 256 * 2**20  # of draws that are kept


class Resamples:
    """Draws of as many patients as there are, with replacement.

    Which patients are drawn in a resample follows from the seed and its number alone, so that two models, two metrics
    and two runs are compared on the same resamples.

    Args:
        clusters: the patient of each row, 0 to p - 1; every patient has a row.
        count: number of resamples.
        seed: of the draws.

    Raises:
        ConfigError: there is no resample, or the seed is negative.
    """

    def __init__(self, clusters: NDArray[np.int64], count: int = 2000, seed: int = 0) -> None:
        self.clusters = clusters
        self.count, self.seed = check_int("bootstrap", "resamples", count, 1), check_int("bootstrap", "seed", seed, 0)
        self.patients = int(clusters.max(initial=-1)) + 1

    def steps(self, at_most: int = 64) -> list[range]:
        """Return the numbers of the resamples whose weights are held at the same time."""
        step = max(1, min(at_most, _MOST_BYTES // max(1, 8 * self.patients)))
        return [range(begin, min(begin + step, self.count)) for begin in range(0, self.count, step)]

    def weights(self, numbers: range) -> NDArray[np.float64]:
        """Return how often each patient is drawn in these resamples, ``p b``."""
        found = np.empty((self.patients, len(numbers)))
        if not self.patients:
            return found
        for i, number in enumerate(numbers):
            drawn = np.random.default_rng([self.seed, number]).integers(self.patients, size=self.patients)
            found[:, i] = np.bincount(drawn, minlength=self.patients)
        return found


class CachedResamples(Resamples):
    """Resamples whose draws are kept, for groups that each ask for them again."""

    def __init__(self, clusters: NDArray[np.int64], count: int, seed: int) -> None:
        super().__init__(clusters, count, seed)
        self._drawn: NDArray[np.uint8] | None = None
        if self.patients * count <= _CACHE_BYTES:
            parts = [super(CachedResamples, self).weights(step).astype(np.uint8) for step in self.steps()]
            self._drawn = np.concatenate(parts, 1)

    def weights(self, numbers: range) -> NDArray[np.float64]:
        """Return how often each patient is drawn in these resamples, ``p b``."""
        if self._drawn is None:
            return super().weights(numbers)
        return self._drawn[:, numbers.start : numbers.stop].astype(np.float64)


class ResamplesWithin(Resamples):
    """The resamples of all patients, of those patients who have one of the rows."""

    def __init__(self, of: Resamples, rows: NDArray[np.int64]) -> None:
        self._of, (self._kept, clusters) = of, np.unique(of.clusters[rows], return_inverse=True)
        super().__init__(clusters.astype(np.int64), of.count, of.seed)

    def steps(self, at_most: int = 64) -> list[range]:
        """Return the numbers of the resamples whose weights are held at the same time."""
        return self._of.steps(at_most)

    def weights(self, numbers: range) -> NDArray[np.float64]:
        """Return how often each of its patients is drawn in these resamples, ``p b``."""
        return self._of.weights(numbers)[self._kept]
