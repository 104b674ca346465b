"""Whether the values of an image can be right: one check for every intensity rule, before and after preprocessing.

The rule of ``intensity="unit"`` warns wherever TorchXRayVision's ``warn_normalization`` does.

Axes: c channels, s spatial axes.
"""

from __future__ import annotations

from torch import Tensor

from medzoo.contract import Preprocessing
from medzoo.io.files import join_sizes
from medzoo.io.image import Image
from medzoo.transforms.pixel_statistics import PixelStatistics

__all__ = ["implausible_input", "implausible_values"]

# On the scale of 0 to 1, TorchXRayVision's -255 and 255 of -1024 to 1024, and its margin of 1.
DARKEST, BRIGHTEST, MARGIN = 769 / 2048, 1279 / 2048, 1 / 2048
# The span of all pixels but the darkest and brightest 1%. Real radiographs have 0.33 or more (tests/real_values.py).
LEAST_SPAN = 0.125
# The share of voxels at one end of a window, or of one value, that leaves nothing to see. Masks of organs have 0.998.
SATURATED, SINGLE_VALUE = 0.999, 0.9995
# The share of a picture that is black, or white, where the window of its file is beside the values.
AT_ONE_END = 0.95
# The least pixels by which a picture is known for a mask, or for one that a window of its file left nothing of.
LEAST_PIXELS = 64 * 64
# Standard deviations by which few voxels may exceed the others, and how much less the others may vary without them.
OUTLYING, MASKED = 50, 0.1
# The smallest part of the storage's range that a z-scored volume uses, and of a window that a scan spans.
LEAST_RANGE, LEAST_WINDOW = 0.002, 0.1
# Relative to the largest value, rounding errors of float32.
ROUNDING = 1e-5


def implausible_values(x: Tensor, statistics: PixelStatistics, image: Image, how: Preprocessing) -> str:
    """Return why the values of an image ``c *s`` cannot be what the preprocessing expects, or an empty text."""
    low, high = statistics.low, statistics.high
    faults = [_wrong_unit(low, high, image, how), _single_slice(image)]
    if how.intensity == "unit":
        faults += [_beyond_range(low, high, image), _constant(x, low, high, image), _unfilled_range(low, high, image)]
        faults += [_two_values(statistics), _at_one_end(statistics, image)]
    elif how.window:
        faults += [_scaled(low, high, image, how.window), _constant(x, low, high, image)]
    else:
        faults += [_constant(x, low, high, image), _single_value(statistics, image), _dominated(x, statistics)]
    return next(filter(None, faults), "") or _equal_channels(x, image)


def implausible_input(x: Tensor, how: Preprocessing) -> str:
    """Return why a preprocessed tensor ``c *s``, before mean and std, shows nothing, or an empty text."""
    low, high = (float(end) for end in x.aminmax())
    if how.window and (fault := _saturated(x, low, high, how.window)):
        return fault
    got = f"got {low:.3g} to {high:.3g} after preprocessing"
    if high - low <= ROUNDING:
        part = "crop" if how.fit != "resize" or how.foreground or how.patch else "image"
        return f"expected an image, {got}: every value of the {part} is the same. Check that it shows the patient."
    if how.intensity != "unit":
        return ""
    if low > DARKEST or high < BRIGHTEST or low < -MARGIN or high > 1 + MARGIN:
        return f"expected values that fill 0 to 1, {got}: too dark, too bright or without contrast. {_CHECK}"
    darkest, brightest = (float(x.flatten().kthvalue(1 + (x.numel() - 1) * p // 100).values) for p in (1, 99))
    if brightest - darkest < LEAST_SPAN:
        span = f"{darkest:.3g} to {brightest:.3g}"
        return f"expected values that fill 0 to 1, got 98% of them in {span} after preprocessing. {_CHECK}"
    return ""


def _saturated(x: Tensor, low: float, high: float, window: tuple[float, float]) -> str:
    """Find a scan beside the model's window, where nearly every value is clipped to one end."""
    for found, where in ((low <= 0, "below"), (high >= 1, "above")):
        share = int(((x <= 0) if where == "below" else (x >= 1)).count_nonzero()) / x.numel() if found else 0.0
        if share >= SATURATED:
            return (
                f"expected values within the window {window[0]:g} to {window[1]:g}, got {100 * share:.4g}% of them "
                f"{where} it. Check the unit of the file, and that it shows the body part the model is for."
            )
    return ""


_CHECK = "Check its bit depth and window with medzoo.show(path)."


def _wrong_unit(low: float, high: float, image: Image, how: Preprocessing) -> str:
    """Find HU where grey levels are expected, and the reverse."""
    got = f"got {low:g} to {high:g}"
    if how.intensity == "unit" and image.unit == "HU":
        return f"expected the grey levels of a picture, {got} HU: this model was not made for CT."
    if how.window and image.unit != "HU" and image.modality == "CT":
        return f"expected Hounsfield units, {got} in an unknown unit: the CT has no rescale. Export it with one."
    if how.window and image.unit == "HU" and how.window[0] < 0 <= low < high:
        return (
            f"expected Hounsfield units, {got} HU: no value is below 0, and air is -1000 HU. Check the rescale "
            "intercept of the file."
        )
    return ""


def _single_slice(image: Image) -> str:
    """Find a volume that is a picture."""
    sides = image.array.shape[1:]
    if image.dims == 2 or sorted(sides)[:2].count(1) != 1:
        return ""
    return f"expected a volume, got a single slice, {join_sizes(sides)}. Give all slices of the scan."


def _two_values(statistics: PixelStatistics) -> str:
    """Find a mask, or a picture that a window of its file turned into one."""
    low, high, count = statistics.low, statistics.high, statistics.count
    if count < LEAST_PIXELS or (low < high and statistics.at_low + statistics.at_high < count):
        return ""
    return f"expected a picture, got {low:g} and {high:g} alone. Is it a mask, or is the window of the file too narrow?"


def _at_one_end(statistics: PixelStatistics, image: Image) -> str:
    """Find a picture nearly all black or white, as a window beside the data leaves it."""
    if statistics.count < LEAST_PIXELS:
        return ""
    bottom, top = image.value_range or (0.0, 1.0)
    at_bottom = statistics.at_low if statistics.low == bottom else 0
    at_top = statistics.at_high if statistics.high == top else 0
    for many, name in ((at_bottom, "black"), (at_top, "white")):
        if (share := many / statistics.count) >= AT_ONE_END:
            return f"expected a picture, got {100 * share:.3g}% of it {name}. {_cause_of_window(image)}"
    return ""


def _equal_channels(x: Tensor, image: Image) -> str:
    """Find channels of a volume that are one and the same."""
    if image.dims == 3 and len(x) > 1 and all(x[0].equal(channel) for channel in x[1:]):
        return f"expected {len(x)} different channels, got the same {len(x)} times."
    return ""


def _dominated(x: Tensor, statistics: PixelStatistics) -> str:
    """Find volumes in which few voxels, or padding of one value, leave no contrast to the others in a z-score."""
    low, high, (mean, spread) = statistics.low, statistics.high, statistics.moments
    if spread and max(high - mean, mean - low) > OUTLYING * spread:
        return (
            f"expected voxels of one scale, got {low:g} to {high:g} with a standard deviation of {spread:.3g}: a few "
            "voxels leave no contrast to the others. Is the file damaged, or does it hold something else than an image?"
        )
    for value, many in ((low, statistics.at_low), (high, statistics.at_high)):
        few = statistics.count - many <= statistics.count / 100
        # Twice as much as is looked for cannot be less by rounding.
        if few or statistics.spread_without(value, many) >= 2 * MASKED * spread:
            continue
        rest = x[x != value].double()
        if float(rest.min()) < float(rest.max()):
            inner = float(rest.std(correction=0))
            if inner < MASKED * spread:
                share = f"{100 * (1 - len(rest) / x.numel()):.3g}%"
                return (
                    f"expected voxels of one scale, got {value:g} in {share} of them, which vary by {spread:.3g}, the "
                    f"others by {inner:.3g}: padding leaves no contrast to the image. Set it to the value of air."
                )
    return ""


def _constant(x: Tensor, low: float, high: float, image: Image) -> str:
    """Find an image, or a channel of a volume, in which every value is the same but for rounding."""
    if high - low <= ROUNDING * max(abs(low), abs(high)):
        bottom, top = image.value_range or (0.0, 1.0)
        name = "" if image.unit == "HU" else " (black)" if low == bottom else " (white)" if high == top else ""
        return f"expected an image, got {low:g} to {high:g}: every value is the same{name}. {_cause_of_window(image)}"
    if image.dims == 3 and len(x) > 1:
        flat = [str(i) for i, channel in enumerate(x) if _has_single_value(channel)]
        if flat:
            names = ", ".join(flat)
            return f"expected {len(x)} channels, got one value everywhere in channel {names} (from 0). Is it missing?"
    return ""


def _beyond_range(low: float, high: float, image: Image) -> str:
    """Find values beyond the range of the storage, which is 0 to 1 where it is not known."""
    bottom, top = image.value_range or (0.0, 1.0)
    if not bottom < top:
        return f"expected a value_range of two different values, low and high, got {bottom:g} and {top:g}. Correct it."
    margin = MARGIN * (top - bottom)
    if bottom - margin <= low <= high <= top + margin:
        return ""
    got = f"got {low:g} to {high:g}"
    if image.value_range is None:
        return f"expected values in [0, 1] where the range of the storage is not known, {got}. Divide by the range."
    return f"expected values in {bottom:g} to {top:g}, the range of the storage, {got}. Correct value_range."


def _unfilled_range(low: float, high: float, image: Image) -> str:
    """Find values that leave the dark or the bright part of the storage's range empty."""
    bottom, top = image.value_range or (0.0, 1.0)
    darkest, brightest = ((value - bottom) / (top - bottom) for value in (low, high))
    if darkest <= DARKEST and brightest >= BRIGHTEST:
        return ""
    cause = _cause(low, high, bottom, top, image)
    return f"expected values that fill {bottom:g} to {top:g}, got {low:g} to {high:g}. {cause}"


def _cause(low: float, high: float, bottom: float, top: float, image: Image) -> str:
    """Return the likely cause of values that leave much of the storage's range empty, and what to do."""
    if any("window" in note or "LUT" in note for note in image.notes):
        return _cause_of_window(image)
    if bottom < 0 <= low:
        return "These look like values without a sign in signed storage: give uint8 or uint16, or divide by the range."
    if bottom == 0 and top > 1 and high <= 1:
        return "These look like values that were scaled to 0 to 1 before: give them as float32."
    bits = max(8, int(high).bit_length())
    if bottom == 0 and 2**bits - 1 < top:
        header = f", or set BitsStored to {bits}" if image.identity.get("sop") else ""
        storage = f"{int(top).bit_length()}-bit storage"
        return f"These look like {bits}-bit values in {storage}: divide by {2**bits - 1}{header}."
    return f"It is too dark, too bright or without contrast. {_CHECK}"


def _cause_of_window(image: Image) -> str:
    """Return what to do about an image that was read through a window or LUT of its file, or without one."""
    windows = [note for note in image.notes if "window" in note or "LUT" in note]
    return f"Is the window of the file beside its values ({windows[-1]})?" if windows else _CHECK


def _scaled(low: float, high: float, image: Image, window: tuple[float, float]) -> str:
    """Find values that span a sliver of the model's window, as they do when they were scaled before."""
    bottom, top = window
    unsigned = bottom < 0 <= low and image.unit != "HU"
    if unsigned or 0 < high - low < LEAST_WINDOW * (top - bottom):
        return f"expected values around {bottom:g}, {top:g} (HU for CT), got {low:g} to {high:g}: already scaled?"
    return ""


def _single_value(statistics: PixelStatistics, image: Image) -> str:
    """Find a volume for z-scores that uses a sliver of its storage, or has one value nearly everywhere."""
    low, high = statistics.low, statistics.high
    bottom, top = image.value_range or (low, high)
    if high - low < LEAST_RANGE * (top - bottom):
        return f"expected values that use more of {bottom:g} to {top:g}, got {low:g} to {high:g}. Check the export."
    for value, many in ((low, statistics.at_low), (high, statistics.at_high)):
        if (share := many / statistics.count) >= SINGLE_VALUE:
            return f"expected an image, got {value:g} in {100 * share:.4g}% of the voxels. Check that it is complete."
    return ""


def _has_single_value(channel: Tensor) -> bool:
    return max(_share(channel, float(channel.min())), _share(channel, float(channel.max()))) >= SINGLE_VALUE


def _share(x: Tensor, value: float) -> float:
    return int((x == value).count_nonzero()) / x.numel()
