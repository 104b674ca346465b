"""What :func:`medzoo.check_explanation` returns: how similar maps stay when a model's weights become random.

Axes: b images, r random models, s' cells of the map.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["LIMIT", "MapCheck", "MapSimilarity", "Rows", "similarity", "t_quantile"]

LIMIT = 0.5
"""Halfway between maps that have nothing in common, 0, and the same map, 1."""
_IMAGES = 4  # below which an interval is of these images alone
Rows = NDArray[np.float64]


def similarity(a: NDArray[np.float32], b: NDArray[np.float32]) -> Rows:
    """Compare maps one by one, ``b *s', b *s' -> b 3``.

    The columns are Spearman's rank correlation of the cells, the same of their absolute values, and SSIM (Wang et al.
    2004, https://doi.org/10.1109/TIP.2003.819861, by MONAI) of absolute values that are scaled to a maximum of 1, in a
    window of 11 cells, or the largest odd number that fits. All are NaN where a map is the same everywhere: it has no
    order.
    """
    return np.array([_compare(one, other) for one, other in zip(a, b, strict=True)]).reshape(-1, 3)


def _compare(a: NDArray[np.float32], b: NDArray[np.float32]) -> list[float]:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return [np.nan] * 3
    a_, b_ = np.abs(a), np.abs(b)
    if np.ptp(a_) == 0 or np.ptp(b_) == 0:
        return [_rank_correlation(a, b), np.nan, np.nan]
    return [_rank_correlation(a, b), _rank_correlation(a_, b_), _ssim(a_, b_)]


def _rank_correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: NDArray[np.float32]) -> Rows:
    """Return the ranks of all values; equal ones share the mean of theirs."""
    _, where, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    last: Rows = counts.cumsum().astype(float)
    return (last - (counts - 1) / 2)[where]


def _ssim(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    from monai.metrics.regression import compute_ssim_and_cs

    x, y = (torch.from_numpy(one / one.max())[None, None] for one in (a, b))
    side = min(11, (min(a.shape) - 1) // 2 * 2 + 1)
    found, _ = compute_ssim_and_cs(x, y, a.ndim, kernel_size=[side] * a.ndim, kernel_sigma=[1.5] * a.ndim)
    return float(found.mean())


@dataclass(frozen=True, eq=False)
class MapSimilarity:
    """How similar maps are to others, in each image and for each random model.

    Attributes:
        name: what was randomised, or what is compared.
        rank: Spearman's rank correlation, ``b r``; NaN where a map was the same everywhere.
        absolute: the same of absolute values; equal to ``rank`` for maps that are never negative.
        ssim: structural similarity.
    """

    name: str
    rank: Rows
    absolute: Rows
    ssim: Rows

    @classmethod
    def of(cls, name: str, rows: Sequence[Rows]) -> MapSimilarity:
        """Return it from what :func:`similarity` gives for each random model."""
        return cls(name, *np.moveaxis(np.stack(rows, 1), -1, 0))

    @property
    def mean(self) -> float:
        """Mean rank correlation; NaN if no map had an order."""
        return _mean(self.rank)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean rank correlation, over random models and, of four or more, images.

        Student's t with the sum of the variances of the means by model and by image, and Satterthwaite's degrees of
        freedom. ``None`` if too few maps have an order.
        """
        means = [self.rank[:, ~np.isnan(self.rank).all(0)], self.rank[~np.isnan(self.rank).all(1)].T]
        units = [np.nanmean(rows, 0) for rows in means if rows.size]
        if not units or len(units[0]) < _IMAGES:
            return None
        used = units if len(units[1]) >= _IMAGES else units[:1]
        parts = [float(one.var(ddof=1)) / len(one) for one in used]
        if not sum(parts):
            return self.mean, self.mean
        degrees = sum(parts) ** 2 / sum(part**2 / (len(one) - 1) for part, one in zip(parts, used, strict=True))
        half = t_quantile(degrees) * sum(parts) ** 0.5
        return max(-1.0, self.mean - half), min(1.0, self.mean + half)

    def cells(self, interval: bool = True) -> tuple[str, ...]:
        """Return a row of a table; pairs that share models or images have no interval."""
        between = self.interval if interval else None
        return (
            self.name, _two(self.mean), "{:.2f} to {:.2f}".format(*between) if between else "",
            "{} to {}".format(*map(_two, self.spread)), _two(_mean(self.ssim)),
        )  # fmt: skip

    @property
    def spread(self) -> tuple[float, float]:
        """From the 5th to the 95th percentile of the rank correlations."""
        known = self.rank[~np.isnan(self.rank)]
        low, high = np.percentile(known, (5, 95)) if known.size else (np.nan, np.nan)
        return float(low), float(high)


def t_quantile(degrees: float) -> float:
    """Return the 97.5 % quantile of Student's t, to 0.2 % from 3 degrees of freedom on.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.

    >>> round(t_quantile(4), 2)
    2.78
    """
    z, v = NormalDist().inv_cdf(0.975), degrees
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v**power for power, term in enumerate(terms, start=1))


@dataclass(frozen=True, eq=False)
class MapCheck:
    """Whether a map of influence depends on the weights; printed, it is a table.

    Attributes:
        model: its name.
        method: of the maps.
        layer: the module whose activations were weighted.
        size: cells of a map along each axis.
        targets: the output that was explained of each image.
        seeds: of the random models.
        cascade: similarity to the trained model's maps with the head random, then with one stage more each time.
        alone: the same with each stage below the head alone random, if that was asked for.
        untrained: similarity between the maps of two random models for one image: what image and architecture give.
        images: similarity between the trained model's maps of two images; ``None`` of one.
        warning: what is known against the maps.
    """

    model: str
    method: str
    layer: str
    size: tuple[int, ...]
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    cascade: tuple[MapSimilarity, ...]
    alone: tuple[MapSimilarity, ...]
    untrained: MapSimilarity
    images: MapSimilarity | None
    warning: str = ""

    @property
    def verdict(self) -> Literal["follows", "does not follow", "undecided"]:
        """Whether the map follows the weights: where the interval with all of them random lies, below or above 0.5."""
        interval = self.cascade[-1].interval
        if interval is None or interval[0] <= LIMIT <= interval[1]:
            return "undecided"
        return "follows" if interval[1] < LIMIT else "does not follow"

    def summary(self) -> str:
        """Return the verdict in a few sentences, with its interval."""
        last = self.cascade[-1]
        if last.interval is None:
            return "Undecided: too few maps of random models differ between places. Take more seeds, or another layer."
        low, high = last.interval
        of = "" if len(self.targets) >= _IMAGES else ", for these images alone"
        figure = (
            f"with all weights random, its rank correlation with the trained model's map is {last.mean:.2f} "
            f"(95 % interval {low:.2f} to {high:.2f}{of})"
        )
        said = {
            "follows": f"The map follows the weights: {figure}.",
            "does not follow": f"The map does not follow the weights: {figure}. It would look much the same from an "
            "untrained model.",
            "undecided": f"Undecided: {figure}, which is on neither side of {LIMIT}. Take more images and seeds.",
        }[self.verdict]
        return f"{said} That says nothing about whether it points at the right place."

    def __str__(self) -> str:
        """Return the table and the verdict."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        cells, images = " x ".join(map(str, self.size)), f"{len(self.targets)} image{'s' * (len(self.targets) > 1)}"
        what = f"{self.model}, {self.method} of {self.layer}: {cells} cells, {images}, {len(self.seeds)} random models"
        table = Table(
            "random weights", "rank correlation", "95 % interval", "5 to 95 % of maps", "SSIM", box=box.SIMPLE_HEAD,
            title=what, title_justify="left",
        )  # fmt: skip
        for one in (*self.cascade, *self.alone):
            table.add_row(*one.cells())
        table.add_section()
        table.add_row("to compare with:")
        for other in filter(None, (self.untrained, self.images)):
            table.add_row(*other.cells(interval=False))
        out = io.StringIO()
        Console(file=out, width=110, color_system=None).print(table)
        vanished = float(np.isnan(self.cascade[-1].rank).mean())
        note = f"{vanished:.0%} of the maps with all weights random were the same everywhere, and are left out."
        lines = [self.summary(), *[note] * (vanished > 0), *[f"Warning: {self.warning}."] * bool(self.warning)]
        return "\n".join([*(line.rstrip() for line in out.getvalue().splitlines()), *lines])


def _mean(rows: Rows) -> float:
    known = rows[~np.isnan(rows)]
    return float(known.mean()) if known.size else float("nan")


def _two(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"
