"""Colours of a map over a grey image: even to the eye, distinct for colour-blind readers, and ordered in grey print.

The tables are lines in the OKLab space (Ottosson 2020, https://bottosson.github.io/posts/oklab), along which equal
steps look equally large. Lightness rises from the first colour to the last, so that the order survives where hues do
not: in grey print, and for readers who see two of three primaries. The two sides of a signed map differ in blue against
yellow, which the common forms of colour blindness keep apart.

Axes: k colours, h w height width.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["FALLING", "RISING", "blend", "colour_table", "oklab_to_srgb"]

# First and last lightness, chroma and hue in degrees.
Line = tuple[tuple[float, float, float], tuple[float, float, float]]
RISING: Line = ((0.42, 0.135, 300.0), (0.92, 0.135, 461.0))  # violet, red, orange, yellow
FALLING: Line = ((0.50, 0.110, 262.0), (0.90, 0.090, 205.0))  # blue to cyan, for values below 0
_ROWS = 256
_OPAQUE = 0.62  # at the maximum: the anatomy is seen there too
_LOWEST, _FULL = 0.08, 0.60  # shares of the maximum between which a map becomes visible


def oklab_to_srgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sRGB in [0, 1] where a colour is in its gamut, ``k 3 -> k 3``."""
    cones = lab @ np.array(
        [[1.0, 1.0, 1.0], [0.3963377774, -0.1055613458, -0.0894841775], [0.2158037573, -0.0638541728, -1.2914855480]]
    )
    linear = cones**3 @ np.array(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.7076147010],
        ]
    )
    curved = 1.055 * np.sign(linear) * np.abs(linear) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, curved)


@cache
def colour_table(line: Line) -> NDArray[np.float64]:
    """Return 256 colours in equal steps along a line, sRGB in [0, 1], ``256 3``."""
    fine = np.linspace(line[0], line[1], 4096)
    hue = np.deg2rad(fine[:, 2])
    lab = np.stack([fine[:, 0], fine[:, 1] * np.cos(hue), fine[:, 1] * np.sin(hue)], 1)
    length = np.concatenate([[0.0], np.linalg.norm(np.diff(lab, axis=0), axis=1).cumsum()])
    even = np.linspace(0, length[-1], _ROWS)
    table = oklab_to_srgb(np.stack([np.interp(even, length, column) for column in lab.T], 1))
    table.setflags(write=False)
    return table


def blend(grey: NDArray[np.uint8], level: NDArray[np.float32], opaque: float = _OPAQUE) -> NDArray[np.uint8]:
    """Return a picture with a map over it, ``h w 3``; its values ``h w`` are in [-1, 1], shares of its maximum."""
    size = np.abs(level)
    share = np.clip((size - _LOWEST) / (_FULL - _LOWEST), 0, 1)
    opacity = (opaque * share * share * (3 - 2 * share))[..., None]
    row = np.clip(size * 255, 0, 255).round().astype(np.intp)
    colour = np.where(level[..., None] >= 0, colour_table(RISING)[row], colour_table(FALLING)[row]) * 255
    mixed: NDArray[np.float64] = (1 - opacity) * grey + opacity * colour
    return mixed.round().astype(np.uint8)
