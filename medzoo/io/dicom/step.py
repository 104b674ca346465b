"""The step from slice to slice of a stack, which is uniform but for the rounding of positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom.stacks import STEP_TOLERANCE, Frame

__all__ = ["slice_step"]

_ROUNDING = 0.05  # mm: positions that are written with one decimal


def slice_step(frames: Sequence[Frame], where: str) -> NDArray[np.float64]:
    """Return the vector from slice to slice of a sorted stack in RAS mm.

    Raises:
        DataError: two slices at one position, a gap, or slices that are not along one line.
    """
    origins = np.stack([one.plane.origin for one in frames])
    gaps = np.diff(origins @ frames[0].plane.normal)
    usual = float(np.median(gaps))
    rounded = _is_rounded(gaps)
    for i, gap in enumerate(gaps):
        pair = f"{frames[i].name} and {frames[i + 1].name}"
        if gap <= max(1e-3, STEP_TOLERANCE * usual):
            raise DataError(
                f"{where}: expected one slice at each position, found {pair} {gap:.3g} mm apart. "
                "Two images are mixed, and no tag separates them: export them as separate series."
            )
        if abs(gap - usual) > STEP_TOLERANCE * usual and not rounded:
            raise DataError(
                f"{where}: expected slices {usual:.4g} mm apart, found {gap:.4g} mm between {pair}. "
                "A slice is missing, two images are mixed, or the scan has parts of different spacing: export it "
                "again, each part as a series of its own."
            )
    step = np.asarray((origins[-1] - origins[0]) / (len(frames) - 1))
    ideal = origins[0] + np.arange(len(frames))[:, None] * step
    if np.linalg.norm(origins - ideal, axis=1).max() > 0.5 * float(np.linalg.norm(step)):
        raise DataError(f"{where}: expected slices along one line, found them shifted. Export it again.")
    return step


def _is_rounded(gaps: NDArray[np.float64]) -> bool:
    """Return whether gaps are those of a uniform line whose positions were rounded; a missing slice doubles a gap."""
    if gaps.min() <= 0 or gaps.max() >= 1.6 * gaps.min():
        return False
    usual, step = float(np.median(gaps)), float(gaps.mean())
    if np.abs(gaps - usual).max() > STEP_TOLERANCE * usual + 2 * _ROUNDING:
        return False
    away = np.concatenate([[0.0], np.cumsum(gaps - step)])
    return bool(np.ptp(away) / 2 <= STEP_TOLERANCE * step + _ROUNDING)
