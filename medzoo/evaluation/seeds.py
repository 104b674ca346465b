"""``SeedSummary``: mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SeedSummary"]


@dataclass(frozen=True)
class SeedSummary:
    """Mean and SD of each figure."""

    names: tuple[str, ...]
    labels: Mapping[str, Mapping[str, tuple[float, float]]]
    overall: Mapping[str, tuple[float, float]]
