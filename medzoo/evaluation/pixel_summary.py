"""``PixelSummary``: a few figures of preprocessed images, as their mean and spread over images.

Axes: c channels, s spatial axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.data.pixels import PixelStore

__all__ = ["CONTRAST", "PixelSummary", "summarise_pixels"]

CONTRAST = "standard deviation"
_NAMES = ("mean", CONTRAST, "percentile 1", "median", "percentile 99", "share of zeros", "sharpness")
# Values that are looked at in all, and in an image for its percentiles: more do not change the figures, only the time.
_MOST_VALUES, _MOST_OF_AN_IMAGE = 30_000_000, 2**14
# Images that are read from their files again, where no cache has them.
_MOST_FILES = 50


@dataclass(frozen=True)
class PixelSummary:
    """Figures of preprocessed images, before the mean of the model is subtracted.

    Attributes:
        images: how many were looked at.
        figures: mean and standard deviation over these images of: the mean, standard deviation, and percentiles 1, 50
            and 99 of an image's values; its share of zeros; and its sharpness, the mean absolute difference of
            neighbours along each spatial axis.
    """

    images: int
    figures: Mapping[str, tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"images": self.images, "figures": {name: list(pair) for name, pair in self.figures.items()}}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> PixelSummary:
        """Return the summary that :meth:`to_dict` gave."""
        figures = {str(name): (float(mean), float(sd)) for name, (mean, sd) in found["figures"].items()}
        return cls(int(found["images"]), figures)


def summarise_pixels(
    pixels: PixelStore, rows: Sequence[int] | NDArray[np.int64], limit: int = 500, seed: int = 0
) -> PixelSummary:
    """Return figures of the images of some rows.

    Args:
        pixels: the images.
        rows: of its table; those that were dropped are left out.
        limit: most images that are read, drawn at random. Of large ones, and of ones that no cache has, fewer are, so
            that it takes seconds.
        seed: of the draw.
    """
    gone = {each.row for each in pixels.dropped}
    usable = np.array([int(row) for row in rows if int(row) not in gone], dtype=np.int64)
    size = pixels.transform.channels * int(np.prod(pixels.transform.preprocessing.size))
    most = min(limit, max(30, _MOST_VALUES // max(1, size)), limit if pixels.cache != "off" else _MOST_FILES)
    if len(usable) > most:
        usable = np.sort(np.random.default_rng(seed).choice(usable, most, replace=False))
    if not len(usable):
        return PixelSummary(0, {})
    values = np.array([_figures(pixels.read(int(row)).numpy()) for row in usable])
    pairs = zip(values.mean(0).tolist(), values.std(0).tolist(), strict=True)
    return PixelSummary(len(usable), dict(zip(_NAMES, pairs, strict=True)))


def _figures(x: NDArray[np.float32]) -> list[float]:
    """Return the figures of an image ``c *s``, in the order of their names."""
    if len(x) > 1 and np.array_equal(x[0], x[-1]):
        x = x[:1]  # grey, repeated
    flat = x.ravel()
    # Neighbouring values are alike, so every k-th, with k odd against the sides, has the same percentiles.
    some = flat[:: max(1, flat.size // _MOST_OF_AN_IMAGE) | 1]
    low, middle, high = np.percentile(some, [1, 50, 99])
    steps = [float(np.abs(np.diff(x, axis=axis)).mean()) for axis in range(1, x.ndim) if x.shape[axis] > 1]
    sharpness = sum(steps) / max(1, len(steps))
    zeros = 1 - np.count_nonzero(flat) / flat.size
    return [
        float(flat.mean(dtype=np.float64)), float(flat.std(dtype=np.float64)), float(low), float(middle), float(high),
        zeros, sharpness,
    ]  # fmt: skip
