"""From stored DICOM pixels to values that mean something: modality LUT, window, and which end is white.

The order is DICOM's own (PS3.4 N.2): modality, then values of interest, then presentation. pydicom's
``apply_modality_lut`` and ``apply_windowing`` are not used: the first overflows where a signed 16-bit pixel meets a LUT
that starts below zero, the second turns the image over when the slope is negative, and neither tells its range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import DataError
from medzoo.io.dicom.header import frame_item, numbers

__all__ = ["Values", "picture", "rescaled", "stored_range", "turned_over"]


@dataclass(frozen=True, eq=False)
class Values:
    """Pixels and the lowest and highest value they could have.

    Attributes:
        array: the pixels, any shape.
        low: the lowest value that the storage could hold.
        high: the highest.
        notes: what was done, in words.
        rescaled: a modality LUT or a rescale was there, so the values are in the modality's own unit.
    """

    array: NDArray[Any]
    low: float
    high: float
    notes: tuple[str, ...] = ()
    rescaled: bool = False


def stored_range(ds: Any) -> tuple[float, float]:
    """Return the lowest and highest value that the stored bits can hold."""
    bits = int(ds.BitsStored)
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if int(ds.PixelRepresentation) else (0.0, 2.0**bits - 1)


def rescaled(stored: NDArray[Any], ds: Any, path: Path, frame: int = 0) -> Values:
    """Apply the modality LUT or the rescale slope and intercept of one frame.

    Whole numbers stay whole: the type is the smallest that holds the whole range of the storage, so that the slices of
    a series agree. Anything else becomes float32.

    Raises:
        DataError: slope 0 or not finite, slope without intercept, or a broken LUT.
    """
    low, high = stored_range(ds) if stored.dtype.kind in "iu" else (-math.inf, math.inf)
    luts = ds.get("ModalityLUTSequence")
    if luts:
        return _look_up(Values(stored, low, high), luts[0], ds, path, "modality")
    source = frame_item(ds, "PixelValueTransformationSequence", frame)
    slope = numbers(source, "RescaleSlope", 1, path)
    intercept = numbers(source, "RescaleIntercept", 1, path)
    if slope is None and intercept is None:
        return Values(stored, low, high)
    if slope is None or intercept is None:
        raise DataError(
            f"{path}: expected RescaleSlope and RescaleIntercept together, found one. Export the image anew."
        )
    if slope[0] == 0:
        raise DataError(f"{path}: expected a RescaleSlope other than 0, which makes every pixel equal. Export it anew.")
    ends = sorted((low * slope[0] + intercept[0], high * slope[0] + intercept[0]))
    whole = stored.dtype.kind in "iu" and slope[0].is_integer() and intercept[0].is_integer()
    if whole and max(map(abs, ends)) < 2**31:
        kind = np.int16 if ends[0] >= -(2**15) and ends[1] < 2**15 else np.int32
        array: Any = stored.astype(kind)
        array *= kind(slope[0])
        array += kind(intercept[0])
    else:
        array = (stored * slope[0] + intercept[0]).astype(np.float32)
    same = (slope[0], intercept[0]) == (1, 0)
    notes = () if same else (f"rescaled × {slope[0]:g} {intercept[0]:+g}",)
    return Values(array, ends[0], ends[1], notes, rescaled=True)


def picture(values: Values, ds: Any, path: Path) -> Values:
    """Apply the window or VOI LUT and turn MONOCHROME1 over: the picture as a reader sees it, white is high.

    Raises:
        DataError: a window or LUT that cannot be.
    """
    luts = ds.get("VOILUTSequence")
    if luts and values.array.dtype.kind in "iu":
        values = _look_up(values, luts[0], ds, path, "VOI")
    else:
        values = _windowed(values, ds, path)
    return turned_over(values, path) if str(ds.get("PhotometricInterpretation")) == "MONOCHROME1" else values


def turned_over(values: Values, path: Path) -> Values:
    """Mirror the values within their range: in MONOCHROME1 the lowest is white.

    Raises:
        DataError: float pixels, which have no range to mirror them in.
    """
    array = values.array
    if not math.isfinite(values.low + values.high):
        raise DataError(
            f"{path}: expected MONOCHROME2 for pixels without a fixed range, found MONOCHROME1. Export it anew."
        )
    total = values.low + values.high
    if array.dtype.kind in "iu":
        # Twice the type's width, so that low + high - value cannot wrap around.
        wide = (np.int64(total) - array.astype(np.int64)) if array.itemsize > 2 else (np.int32(total) - array)
        array = wide.astype(array.dtype)
    else:
        array = (np.float32(total) - array).astype(array.dtype)
    return replace(values, array=array, notes=(*values.notes, "MONOCHROME1 inverted"))


def _windowed(values: Values, ds: Any, path: Path) -> Values:
    """Apply the first window (PS3.3 C.11.2.1.2); the result keeps the range of its input."""
    centres, widths = _listed(ds, "WindowCenter"), _listed(ds, "WindowWidth")
    if not centres or not widths:
        return values
    centre, width = centres[0], widths[0]
    shape = str(ds.get("VOILUTFunction") or "LINEAR").upper()
    least = 1 if shape == "LINEAR" else 0
    if not (math.isfinite(centre) and math.isfinite(width)) or width < least or (shape != "LINEAR" and width <= 0):
        raise DataError(f"{path}: expected a window with a positive width, found {width:g} at {centre:g}. Export it.")
    if not math.isfinite(values.low + values.high):
        return replace(values, notes=(*values.notes, "window left out: the values have no fixed range"))
    x = values.array.astype(np.float64)
    if shape == "SIGMOID":
        part: NDArray[Any] = 1 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -700, 700)))
    elif shape == "LINEAR_EXACT":
        part = np.clip((x - centre) / width + 0.5, 0, 1)
    elif shape == "LINEAR":  # a width of 1 is a step at the centre
        part = np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) if width > 1 else (x > centre - 0.5) * 1.0
    else:
        raise DataError(f"{path}: expected VOILUTFunction LINEAR, LINEAR_EXACT or SIGMOID, found another one.")
    array = (part * (values.high - values.low) + values.low).astype(np.float32)
    which = f", the first of {len(centres)}" if len(centres) > 1 else ""
    note = f"window centre {centre:g} width {width:g} applied{which}"
    return replace(values, array=array, notes=(*values.notes, note))


def _listed(ds: Any, keyword: str) -> list[float]:
    value = ds.get(keyword)
    if value is None or value == "":
        return []
    return [float(v) for v in value] if hasattr(value, "__len__") and not isinstance(value, str) else [float(value)]


def _look_up(values: Values, item: Any, ds: Any, path: Path, which: str) -> Values:
    """Map values through a LUT (PS3.3 C.11.1, C.11.2); those beyond either end take its first or last entry."""
    entries, first, bits = (int(v) for v in item.LUTDescriptor)
    entries = entries or 2**16
    if values.low < 0 and first >= 2**15:  # read as unsigned, meant as signed
        first -= 2**16
    data = item.LUTData
    if isinstance(data, (bytes, bytearray)):
        order = "<" if ds.original_encoding[1] is not False else ">"
        wide = len(data) >= 2 * entries
        table = np.frombuffer(data, dtype=f"{order}u2" if wide else "u1")
    else:
        table = np.asarray(data, dtype=np.int64)
    if not 8 <= bits <= 16 or len(table) < entries or table.min() < 0 or table.max() > 2**bits - 1:
        raise DataError(
            f"{path}: expected a {which} LUT of {entries} entries of 8 to 16 bits, "
            f"found {len(table)} entries of {bits} bits. Export the image anew."
        )
    index = np.clip(values.array.astype(np.int64) - first, 0, entries - 1)
    mapped = table[:entries].astype(np.uint8 if bits == 8 else np.uint16)[index]
    return Values(mapped, 0.0, 2.0**bits - 1, (*values.notes, f"{which} LUT applied"), rescaled=True)
