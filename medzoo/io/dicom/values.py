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
from medzoo.io.dicom.colour import table_from
from medzoo.io.dicom.elements import ElementError, items, numbers, text
from medzoo.io.dicom.header import functional_group
from medzoo.io.dicom.rescale import rescale_values

__all__ = ["PixelValues", "apply_modality", "apply_voi", "invert"]

_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True, eq=False)
class PixelValues:
    """Pixels and the lowest and highest value they could have.

    Attributes:
        array: the pixels, any shape.
        low: the lowest value that the storage could hold.
        high: the highest.
        notes: the steps applied.
        rescaled: a modality LUT or a rescale was applied, so the values are in the modality's own unit.
        warnings: what is known against them.
    """

    array: NDArray[Any]
    low: float
    high: float
    notes: tuple[str, ...] = ()
    rescaled: bool = False
    warnings: tuple[str, ...] = ()


def apply_modality(values: PixelValues, ds: Any, path: Path, frame: int = 0) -> PixelValues:
    """Apply the modality LUT or the rescale slope and intercept of one frame, which it may have for itself.

    Integers stay integers where slope and intercept are: the dtype is the smallest that holds the complete range of
    the storage, so that the slices of a series agree. Everything else becomes float32.

    Raises:
        DataError: slope 0 or not finite, slope without intercept, or a broken LUT.
    """
    stored, low, high = values.array, values.low, values.high
    if luts := items(ds, "ModalityLUTSequence"):
        return _apply_lut(values, luts[0], ds, path, "modality")
    rescale = rescale_values(low, high, stored.dtype.kind in "iu", ds, path, frame)
    if rescale is None:
        return values
    array = rescale.apply(stored, np.empty(stored.shape, rescale.dtype))
    return PixelValues(array, rescale.low, rescale.high, rescale.notes, rescaled=True)


def apply_voi(values: PixelValues, ds: Any, path: Path, frame: int = 0) -> PixelValues:
    """Apply the VOI LUT or window of one frame, which it may have for itself, or of the file.

    Raises:
        DataError: a broken LUT.
        ElementError: an invalid window.
    """
    source = functional_group(ds, "FrameVOILUTSequence", frame)
    luts = items(source, "VOILUTSequence")
    if luts and values.array.dtype.kind in "iu":
        return _apply_lut(values, luts[0], ds, path, "VOI")
    if luts:
        values = _warn(values, "VOILUTSequence ignored: the rescaled values are not integers.")
    return _apply_window(values, source)


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


def _apply_window(values: PixelValues, source: Any) -> PixelValues:
    """Apply the first window (PS3.3 C.11.2.1.2); the result keeps the range of its input.

    LINEAR needs a width of at least 1, since it subtracts 1 from it. A width between 0 and 1 is meant for values that
    are fractions, and is read as LINEAR_EXACT, which is defined for it. A width of 0 or below is how some vendors
    write that there is no window.
    """
    centres, widths = numbers(source, "WindowCenter"), numbers(source, "WindowWidth")
    if bool(centres) != bool(widths):
        return _warn(values, "WindowCenter and WindowWidth are not both given: the values are shown without a window.")
    if not centres:
        return values
    centre, width = centres[0], widths[0]
    function = text(source, "VOILUTFunction").upper() or "LINEAR"
    for keyword, number in (("WindowCenter", centre), ("WindowWidth", width)):
        if not math.isfinite(number):
            raise ElementError(keyword, "is not a finite number")
    if function not in _FUNCTIONS:
        raise ElementError("VOILUTFunction", f"is none of {', '.join(_FUNCTIONS)}")
    if width <= 0:
        return _warn(values, f"WindowWidth is {width:g}, which is no window: the values are shown without one.")
    if not math.isfinite(values.low + values.high):
        return replace(values, notes=(*values.notes, "window not applied: the values have no fixed range"))
    if function == "LINEAR" and width < 1:
        function = "LINEAR_EXACT"
        values = _warn(values, f"WindowWidth is {width:g}, below the 1 that LINEAR needs: applied as LINEAR_EXACT.")
    array = (_windowed(values.array, centre, width, function) * (values.high - values.low) + values.low).astype(
        np.float32
    )
    which = f", the first of {len(centres)}" if len(centres) > 1 else ""
    note = f"window centre {centre:g} width {width:g} applied{which}"
    return replace(values, array=array, notes=(*values.notes, note))


def _windowed(array: NDArray[Any], centre: float, width: float, function: str) -> NDArray[Any]:
    """Return the window's output from 0 to 1."""
    x = array.astype(np.float64)
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return np.clip((x - centre) / width + 0.5, 0, 1)
    if width > 1:
        return np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    return np.asarray((x > centre - 0.5) * 1.0)  # a width of 1 is a step at the centre


def _warn(values: PixelValues, warning: str) -> PixelValues:
    return replace(values, warnings=(*values.warnings, warning))


def _apply_lut(values: PixelValues, item: Any, ds: Any, path: Path, which: str) -> PixelValues:
    """Map values through a LUT (PS3.3 C.11.1, C.11.2); values beyond either end get its first or last entry."""
    descriptor = numbers(item, "LUTDescriptor")
    if len(descriptor) != 3:
        raise ElementError("LUTDescriptor", "does not hold a length, a first value, and bits")
    entries, first, bits = (int(number) for number in descriptor)
    entries = entries or 2**16
    if values.low < 0 and first >= 2**15:  # stored as signed, read as unsigned
        first -= 2**16
    if "LUTData" not in item:
        raise ElementError("LUTData", "is missing")
    table = table_from(item["LUTData"], entries, ds)
    if not 8 <= bits <= 16 or len(table) < entries or table.min() < 0 or table.max() > 2**bits - 1:
        raise DataError(
            f"{path}: expected a {which} LUT of {entries} entries of 8 to 16 bits, "
            f"found {len(table)} entries of {bits} bits. Export the image again."
        )
    index = np.clip(values.array.astype(np.int64) - first, 0, entries - 1)
    mapped = table[:entries].astype(np.uint8 if bits == 8 else np.uint16)[index]
    notes = (*values.notes, f"{which} LUT applied")
    return PixelValues(mapped, 0.0, 2.0**bits - 1, notes, rescaled=True, warnings=values.warnings)
