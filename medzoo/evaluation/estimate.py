"""``Estimate``: a figure with its interval, or the reason why it has none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["LEAST_PATIENTS", "Estimate"]

LEAST_PATIENTS = 10
"""Positive and negative patients below which no interval is given, and below which a count in a group is not shown."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: the figure; NaN if it cannot be computed.
        low, high: the interval; ``None`` for none.
        method: how the interval was computed, such as ``"bootstrap over patients"``.
        why: why there is no figure or no interval.
    """

    value: float
    low: float | None = None
    high: float | None = None
    method: str = ""
    why: str = ""

    def __str__(self) -> str:
        """Return the figure with three digits.

        >>> print(Estimate(0.913, 0.88, 0.941), Estimate(0.5), Estimate(float("nan")))
        0.913 (0.880 to 0.941) 0.500 (no interval) –
        """
        if math.isnan(self.value):
            return "–"
        if self.low is None or self.high is None:
            return f"{self.value:.3f} (no interval)"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; NaN becomes ``None``, and empty texts are left out."""
        value = None if math.isnan(self.value) else self.value
        texts = {name: text for name, text in (("method", self.method), ("why", self.why)) if text}
        return {"value": value, "low": self.low, "high": self.high, **texts}
