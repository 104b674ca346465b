"""The pixel module of a DICOM header, checked against the length of the pixels.

What a header leaves out is taken from what it does not leave open; a contradiction is resolved where one reading alone
fits the pixels, and reported as a warning. Anything else is an error that names the element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.io.codestream import Codestream
from medzoo.io.dicom.elements import ElementError, integer, integer_or_none, text
from medzoo.io.dicom.header import frame_count, modality_of

__all__ = ["MEASUREMENTS", "PIXEL_KEYWORDS", "PixelModule", "native_length", "pixel_module", "stored_bits"]

MEASUREMENTS = frozenset({"CT", "PT", "NM"})
"""Modalities whose values are measurements: a window or MONOCHROME1 defines only how they are displayed."""

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_ALLOCATED = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")


@dataclass(frozen=True)
class PixelModule:
    """How the pixels are stored.

    Attributes:
        keyword: the element with the pixels.
        rows: height of a frame.
        columns: width of a frame.
        samples: 1 or 3 samples per pixel.
        frames: how many frames.
        allocated: bits from one sample to the next.
        stored: bits of a sample.
        shift: unused bits below a sample.
        signed: samples are two's complement.
        planar: whole planes of red, green and blue follow each other.
        photometric: the photometric interpretation.
        overlays: bits that the samples do not use may hold overlays.
    """

    keyword: str
    rows: int
    columns: int
    samples: int
    frames: int
    allocated: int
    stored: int
    shift: int
    signed: bool
    planar: bool
    photometric: str
    overlays: bool

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and highest value that the stored bits can hold; infinite for floats."""
        if self.keyword != "PixelData":
            return -math.inf, math.inf
        return (
            (-(2.0 ** (self.stored - 1)), 2.0 ** (self.stored - 1) - 1) if self.signed else (0.0, 2.0**self.stored - 1)
        )


def native_length(count: int, allocated: int, photometric: str) -> int:
    """Return the bytes of uncompressed samples; YBR_FULL_422 stores one pair of colours for two pixels."""
    return math.ceil(count * allocated / 8 * (2 / 3 if photometric == "YBR_FULL_422" else 1))


def pixel_module(ds: Any, form: Codestream | None, native: bool, warnings: list[str], notes: list[str]) -> PixelModule:
    """Return the checked pixel module.

    Args:
        ds: a data set with pixels.
        form: the header of the first codestream of compressed pixels.
        native: the pixels are not compressed.
        warnings: receives the contradictions that were resolved.
        notes: receives what was missing and could be inferred.

    Raises:
        ElementError: an element is missing or contradicts the others.
    """
    found = [keyword for keyword in PIXEL_KEYWORDS if keyword in ds]
    if len(found) != 1:
        raise ElementError(found[1], "is present beside PixelData")
    keyword, rows, columns, frames = found[0], integer(ds, "Rows"), integer(ds, "Columns"), frame_count(ds)
    photometric, samples = _colours(ds, form, native, rows * columns * frames, warnings, notes)
    length = len(ds[keyword].value) if native else 0
    if native and photometric == "YBR_FULL_422" and columns % 2:
        raise ElementError("Columns", f"is {columns}, odd, where YBR_FULL_422 stores pairs of columns")
    overlays = _has_overlays(ds)
    planar = _planar(ds, samples, native, photometric)
    if keyword != "PixelData":
        bits = _ALLOCATED[keyword]
        return PixelModule(keyword, rows, columns, samples, frames, bits, bits, 0, True, planar, photometric, False)
    allocated = integer_or_none(ds, "BitsAllocated")
    per_sample = 8 * length / max(1, rows * columns * samples * frames)
    if allocated is None and per_sample in (8, 16, 32):
        allocated = int(per_sample)
        notes.append(f"BitsAllocated is missing; the length of the pixels gives {allocated}")
    if allocated is None:
        raise ElementError("BitsAllocated", "is missing")
    if allocated == 1 and not native:
        raise ElementError("BitsAllocated", "is 1, which compressed pixels cannot have")
    stored = integer(ds, "BitsStored")
    declared = stored
    allocated, stored = _resolve_bits(allocated, stored, per_sample, form, warnings)
    representation = integer(ds, "PixelRepresentation")
    if representation not in (0, 1):
        raise ElementError("PixelRepresentation", "is neither 0, unsigned, nor 1, signed")
    shift = _shift(ds, allocated, stored, form, warnings, notes) if stored == declared else 0
    return PixelModule(
        keyword, rows, columns, samples, frames, allocated, stored, shift, bool(representation), planar, photometric,
        overlays,
    )  # fmt: skip


def _has_overlays(ds: Any) -> bool:
    """Return whether an overlay lies in bits of the pixels, as it does where it has no data of its own."""
    groups = {tag >> 16 for tag in ds.keys() if 0x6000 <= tag >> 16 <= 0x60FF}  # noqa: SIM118  not the elements
    return any((group, 0x0102) in ds and (group, 0x3000) not in ds for group in groups)


def _colours(
    ds: Any, form: Codestream | None, native: bool, pixels: int, warnings: list[str], notes: list[str]
) -> tuple[str, int]:
    """Return the photometric interpretation and the samples of a pixel, which must agree."""
    photometric, samples = text(ds, "PhotometricInterpretation").upper(), integer_or_none(ds, "SamplesPerPixel")
    if photometric and photometric not in _GREY + _COLOUR:
        raise ElementError("PhotometricInterpretation", f"is none of {', '.join(_GREY + _COLOUR)}")
    if samples is not None and samples not in (1, 3):
        raise ElementError("SamplesPerPixel", f"is {samples}; 1 and 3 are supported")
    meant = {True: 1, False: 3}[photometric in _GREY] if photometric else None
    stored = form.samples if form else _native_samples(ds, pixels, photometric) if native else None
    if samples is None:
        samples = stored if stored in (1, 3) else meant
        if samples is None or meant not in (None, samples):
            raise ElementError("SamplesPerPixel", "is missing")
        notes.append(f"SamplesPerPixel is missing; the rest of the header gives {samples}")
    if not photometric:
        if samples == 1 and modality_of(ds) in MEASUREMENTS:
            notes.append("PhotometricInterpretation is missing, and the values are measurements")
            return "MONOCHROME2", samples
        raise ElementError("PhotometricInterpretation", "is missing")
    if samples == meant:
        return photometric, samples
    if stored == samples and photometric != "PALETTE COLOR":
        assumed = "MONOCHROME2" if samples == 1 else "RGB"
        warnings.append(
            f"PhotometricInterpretation is {photometric}, with {samples} sample(s) per pixel: read as {assumed}."
        )
        return assumed, samples
    if stored is not None and stored == meant:
        warnings.append(f"SamplesPerPixel is {samples}, but {photometric} and the pixels have {meant}.")
        return photometric, stored
    raise ElementError("SamplesPerPixel", f"is {samples}, which PhotometricInterpretation {photometric} contradicts")


def _native_samples(ds: Any, pixels: int, photometric: str) -> int | None:
    """Return the samples per pixel that the length of uncompressed pixels gives, if it gives one."""
    allocated = integer_or_none(ds, "BitsAllocated") or 0
    keyword = next(keyword for keyword in PIXEL_KEYWORDS if keyword in ds)
    length = len(ds[keyword].value)
    fits = []
    for samples in (1, 3):
        expected = native_length(pixels * samples, allocated, photometric if samples == 3 else "")
        if expected and length in (expected, expected + expected % 2):
            fits.append(samples)
    return fits[0] if len(fits) == 1 else None


def _planar(ds: Any, samples: int, native: bool, photometric: str) -> bool:
    if samples == 1 or not native or photometric == "YBR_FULL_422":
        return False  # compressed frames define it themselves, and YBR_FULL_422 has no planes
    planar = integer(ds, "PlanarConfiguration")
    if planar not in (0, 1):
        raise ElementError("PlanarConfiguration", "is neither 0 nor 1")
    return planar == 1


def _resolve_bits(
    allocated: int, stored: int, per_sample: float, form: Codestream | None, warnings: list[str]
) -> tuple[int, int]:
    """Return the bits allocated and stored, corrected where the pixels contradict them."""
    if allocated not in (1, 8, 16, 32, 64):
        raise ElementError("BitsAllocated", f"is {allocated}; 1, 8, 16, 32 and 64 are supported. Repack the pixels")
    if stored < 1:
        raise ElementError("BitsStored", f"is {stored}")
    if form and form.precision > allocated:
        warnings.append(f"BitsAllocated is {allocated}, but the codestream has {form.precision} bits: read as that.")
        allocated = 16 if form.precision <= 16 else 32
        stored = form.precision
    if form and not form.lossless and form.precision == 8 < stored:
        warnings.append(f"BitsStored is {stored}, but the codestream has 8 bits: read as 8 bits.")
        stored = 8
    if stored > allocated:
        if per_sample in (16, 32) and stored <= per_sample:
            warnings.append(f"BitsAllocated is {allocated}, but the pixels have {per_sample:g} bits: read as that.")
            return int(per_sample), stored
        warnings.append(f"BitsStored is {stored}, more than BitsAllocated: read as {allocated} bits.")
        stored = allocated
    return allocated, stored


def _shift(ds: Any, allocated: int, stored: int, form: Codestream | None, warnings: list[str], notes: list[str]) -> int:
    """Return how many unused bits lie below a sample, which the high bit gives."""
    high = integer_or_none(ds, "HighBit")
    if high is None:
        notes.append(f"HighBit is missing; BitsStored gives {stored - 1}")
        return 0
    shift = high + 1 - stored
    if shift == 0:
        return 0
    if shift < 0 or high >= allocated or (form is not None and form.precision <= high):
        warnings.append(f"HighBit is {high}, which the other elements contradict: read as {stored - 1}.")
        return 0
    return shift


def stored_bits(array: NDArray[Any], module: PixelModule, lossless: bool, warnings: list[str]) -> NDArray[Any]:
    """Return the samples from the bits that hold them: the others may hold overlays or anything else (PS3.5 8.1.1).

    A codec with loss may go a little beyond the range, and is clipped to it.
    """
    low, high = module.range
    if module.keyword != "PixelData" or module.allocated == 1:
        return array
    if module.shift and not module.overlays and np.any(array & array.dtype.type((1 << module.shift) - 1)):
        high = module.shift + module.stored - 1
        raise ElementError(
            "HighBit",
            f"is {high} for {module.stored} stored bits, but bits below them are set: one of the two is wrong",
        )
    array = array >> module.shift if module.shift else array
    if low <= array.min() and array.max() <= high:
        return array
    if not lossless and not module.shift and module.signed and array.min() >= 0:  # compressed as unsigned
        array = np.minimum(array, array.dtype.type(2**module.stored - 1))
    elif not lossless and not module.shift:
        if array.max() - high > (high - low) / 16 or low - array.min() > (high - low) / 16:
            warnings.append(f"Values need more than the {module.stored} bits of BitsStored: they were clipped.")
        return np.clip(array, array.dtype.type(low), array.dtype.type(high))
    # Of a signed sample the other bits may repeat its sign or be 0: both are common.
    patterns = 2.0**module.stored - 1
    if not module.overlays and not (low <= array.min() and array.max() <= patterns):
        warnings.append(f"Values need more than the {module.stored} bits of BitsStored: the rest was cut off.")
    unused = 8 * array.dtype.itemsize - module.stored
    return np.asarray((array << unused) >> unused)
