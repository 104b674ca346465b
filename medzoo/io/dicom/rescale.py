"""The rescale of stored values, and whether that of the slices or frames of one volume is what its modality allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom.header import finite_values, functional_group
from medzoo.io.dicom.tags import text_of

__all__ = ["Rescale", "rescale_of", "rescale_values", "rescale_warning"]

_TAGS = (0x00281053, 0x00281052)


@dataclass(frozen=True)
class Rescale:
    """Values times a slope plus an intercept.

    Attributes:
        slope: not 0.
        intercept: likewise finite.
        dtype: of the result.
        low: the lowest value that the result could have.
        high: the highest.
    """

    slope: float
    intercept: float
    dtype: np.dtype[Any]
    low: float
    high: float

    @property
    def notes(self) -> tuple[str, ...]:
        """The step, unless it changes nothing."""
        if (self.slope, self.intercept) == (1, 0):
            return ()
        return (f"rescaled with slope {self.slope:g} and intercept {self.intercept:g}",)

    def apply(self, stored: NDArray[Any], out: NDArray[Any]) -> NDArray[Any]:
        """Write the result to ``out``, of :attr:`dtype`, which may be the memory of the stored values."""
        if self.dtype.kind == "f":
            out[...] = stored * self.slope + self.intercept
            return out
        whole: Any = self.dtype.type
        if out is not stored:
            np.copyto(out, stored, casting="unsafe")
        if self.slope != 1:
            out *= whole(self.slope)
        if self.intercept != 0:
            out += whole(self.intercept)
        return out


def rescale_values(low: float, high: float, integers: bool, ds: Any, path: Path, frame: int) -> Rescale | None:
    """Return the rescale of stored values of a range; ``None`` where the header has none.

    Raises:
        DataError: slope 0 or not finite, or slope without intercept.
    """
    source = functional_group(ds, "PixelValueTransformationSequence", frame)
    slopes = finite_values(source, "RescaleSlope", 1, path)
    intercepts = finite_values(source, "RescaleIntercept", 1, path)
    if slopes is None and intercepts is None:
        return None
    if slopes is None or intercepts is None:
        raise DataError(
            f"{path}: expected RescaleSlope and RescaleIntercept together, found one. Export the image again."
        )
    slope, intercept = slopes[0], intercepts[0]
    if slope == 0:
        raise DataError(
            f"{path}: expected a RescaleSlope other than 0, which makes every pixel equal. Export it again."
        )
    low, high = sorted((low * slope + intercept, high * slope + intercept))
    dtype: Any = np.float32
    if integers and slope.is_integer() and intercept.is_integer() and max(-low, high) < 2**31:
        dtype = np.int16 if low >= -(2**15) and high < 2**15 else np.int32
    return Rescale(slope, intercept, np.dtype(dtype), low, high)


def rescale_of(ds: Any, frame: int = 0) -> tuple[str, str]:
    """Return RescaleSlope and RescaleIntercept of a frame as text; ``""`` where they are absent."""
    source = ds
    if 0x52009229 in ds or 0x52009230 in ds:
        source = functional_group(ds, "PixelValueTransformationSequence", frame)
    slope, intercept = (text_of(source, tag) if tag in source else "" for tag in _TAGS)
    return slope, intercept


def rescale_warning(rescales: Sequence[tuple[str, str]], modality: str) -> str:
    """Return a warning if some slices of a volume are not rescaled, or those of a CT differently; ``""`` otherwise.

    PET and MR may scale each slice to fill its bits. All slices of a CT are in HU, by one slope and intercept.
    """
    lacking = sum(rescale == ("", "") for rescale in rescales)
    if 0 < lacking < len(rescales):
        return (
            f"{lacking} of {len(rescales)} slices lack the RescaleSlope and RescaleIntercept that the others have: "
            "their values may be on another scale."
        )
    if modality == "CT" and len(set(rescales)) > 1:
        return (
            f"The slices have {len(set(rescales))} different pairs of RescaleSlope and RescaleIntercept, where those "
            "of a CT share one: values in HU may be wrong."
        )
    return ""
