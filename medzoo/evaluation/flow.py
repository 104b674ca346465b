"""``Flow`` of rows and patients, and the ``Characteristics`` of the parts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Characteristics", "Flow", "FlowStep"]


@dataclass(frozen=True)
class FlowStep:
    """What is left after a step."""

    text: str
    rows: int
    patients: int | None
    dropped: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Flow:
    """From all rows to those evaluated."""

    steps: tuple[FlowStep, ...]
    parts: tuple[FlowStep, ...] = ()


@dataclass(frozen=True)
class Characteristics:
    """Table 1."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
