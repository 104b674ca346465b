"""From stored DICOM pixels to meaningful values: modality LUT or rescale, VOI LUT or window, MONOCHROME1.

The order is DICOM's own (PS3.4 N.2): modality, then values of interest (VOI), then presentation. pydicom's
``apply_modality_lut`` and ``apply_windowing`` are not used: the first overflows where a signed 16-bit pixel meets a LUT
that starts below zero, the second inverts the image when the slope is negative, and neither returns the value range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom.header import finite_values, float_values, functional_group

__all__ = ["PixelValues", "apply_modality", "apply_voi", "invert"]


@dataclass(frozen=True, eq=False)
class PixelValues:
    """Pixels and the lowest and highest value they could have.

    Attributes:
        array: the pixels, any shape.
        low: the lowest value that the storage could hold.
        high: the highest.
        notes: the steps applied.
        rescaled: a modality LUT or a rescale was applied, so the values are in the modality's own unit.
    """

    array: NDArray[Any]
    low: float
    high: float
    notes: tuple[str, ...] = ()
    rescaled: bool = False


def apply_modality(stored: NDArray[Any], ds: Any, path: Path, frame: int = 0) -> PixelValues:
    """Apply the modality LUT or the rescale slope and intercept of one frame.

    Integers stay integers where slope and intercept are: the dtype is the smallest that holds the complete range of
    the storage, so that the slices of a series agree. Everything else becomes float32.

    Raises:
        DataError: slope 0 or not finite, slope without intercept, or a broken LUT.
    """
    low, high = _stored_range(ds) if stored.dtype.kind in "iu" else (-math.inf, math.inf)
    if luts := ds.get("ModalityLUTSequence"):
        return _apply_lut(PixelValues(stored, low, high), luts[0], ds, path, "modality")
    source = functional_group(ds, "PixelValueTransformationSequence", frame)
    slopes = finite_values(source, "RescaleSlope", 1, path)
    intercepts = finite_values(source, "RescaleIntercept", 1, path)
    if slopes is None and intercepts is None:
        return PixelValues(stored, low, high)
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
    if stored.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer() and max(-low, high) < 2**31:
        dtype = np.int16 if low >= -(2**15) and high < 2**15 else np.int32
        array: Any = stored.astype(dtype)
        array *= dtype(slope)
        array += dtype(intercept)
    else:
        array = (stored * slope + intercept).astype(np.float32)
    notes = () if (slope, intercept) == (1, 0) else (f"rescaled with slope {slope:g} and intercept {intercept:g}",)
    return PixelValues(array, low, high, notes, rescaled=True)


def apply_voi(values: PixelValues, ds: Any, path: Path) -> PixelValues:
    """Apply the VOI LUT or window and invert MONOCHROME1: the image as a radiologist sees it, white is high.

    Raises:
        DataError: an invalid window or LUT.
    """
    luts = ds.get("VOILUTSequence")
    if luts and values.array.dtype.kind in "iu":
        values = _apply_lut(values, luts[0], ds, path, "VOI")
    else:
        values = _apply_window(values, ds, path)
    return invert(values, path) if str(ds.get("PhotometricInterpretation")) == "MONOCHROME1" else values


def invert(values: PixelValues, path: Path) -> PixelValues:
    """Mirror the values within their range: in MONOCHROME1 the lowest is white.

    Raises:
        DataError: float pixels, which have no range to mirror them in.
    """
    array = values.array
    total = values.low + values.high
    if not math.isfinite(total):
        raise DataError(
            f"{path}: expected MONOCHROME2 for pixels without a fixed range, found MONOCHROME1. Export it again."
        )
    dtype: Any = np.float32
    if array.dtype.kind in "iu":  # twice the width, so that low + high - value cannot overflow
        dtype = np.int64 if array.itemsize > 2 else np.int32
    array = (dtype(total) - array.astype(dtype)).astype(array.dtype)
    return replace(values, array=array, notes=(*values.notes, "MONOCHROME1 inverted"))


def _stored_range(ds: Any) -> tuple[float, float]:
    """Return the lowest and highest value that the stored bits can hold."""
    bits = int(ds.BitsStored)
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if int(ds.PixelRepresentation) else (0.0, 2.0**bits - 1)


def _apply_window(values: PixelValues, ds: Any, path: Path) -> PixelValues:
    """Apply the first window (PS3.3 C.11.2.1.2); the result keeps the range of its input."""
    centres, widths = float_values(ds, "WindowCenter"), float_values(ds, "WindowWidth")
    if not centres or not widths:
        return values
    centre, width = centres[0], widths[0]
    function = str(ds.get("VOILUTFunction") or "LINEAR").upper()
    narrow = width < 1 if function == "LINEAR" else width <= 0
    if not (math.isfinite(centre) and math.isfinite(width)) or narrow:
        raise DataError(
            f"{path}: expected a window with a positive width, found {width:g} at {centre:g}. Export it again."
        )
    if not math.isfinite(values.low + values.high):
        return replace(values, notes=(*values.notes, "window not applied: the values have no fixed range"))
    x = values.array.astype(np.float64)
    if function == "SIGMOID":
        unit: NDArray[Any] = 1 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -700, 700)))
    elif function == "LINEAR_EXACT":
        unit = np.clip((x - centre) / width + 0.5, 0, 1)
    elif function == "LINEAR":  # a width of 1 is a step at the centre
        unit = np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) if width > 1 else (x > centre - 0.5) * 1.0
    else:
        raise DataError(f"{path}: expected VOILUTFunction LINEAR, LINEAR_EXACT or SIGMOID, found another one.")
    array = (unit * (values.high - values.low) + values.low).astype(np.float32)
    which = f", the first of {len(centres)}" if len(centres) > 1 else ""
    note = f"window centre {centre:g} width {width:g} applied{which}"
    return replace(values, array=array, notes=(*values.notes, note))


def _apply_lut(values: PixelValues, item: Any, ds: Any, path: Path, which: str) -> PixelValues:
    """Map values through a LUT (PS3.3 C.11.1, C.11.2); values beyond either end get its first or last entry."""
    entries, first, bits = (int(v) for v in item.LUTDescriptor)
    entries = entries or 2**16
    if values.low < 0 and first >= 2**15:  # stored as signed, read as unsigned
        first -= 2**16
    data = item.LUTData
    if isinstance(data, (bytes, bytearray)):
        order = "<" if ds.original_encoding[1] is not False else ">"
        table = np.frombuffer(data, dtype=f"{order}u2" if len(data) >= 2 * entries else "u1")
    else:
        table = np.asarray(data, dtype=np.int64)
    if not 8 <= bits <= 16 or len(table) < entries or table.min() < 0 or table.max() > 2**bits - 1:
        raise DataError(
            f"{path}: expected a {which} LUT of {entries} entries of 8 to 16 bits, "
            f"found {len(table)} entries of {bits} bits. Export the image again."
        )
    index = np.clip(values.array.astype(np.int64) - first, 0, entries - 1)
    mapped = table[:entries].astype(np.uint8 if bits == 8 else np.uint16)[index]
    return PixelValues(mapped, 0.0, 2.0**bits - 1, (*values.notes, f"{which} LUT applied"), rescaled=True)
