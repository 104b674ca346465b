"""Rows in words: the same cells for the terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["HEADERS", "cells", "figure", "markdown", "seconds", "text"]

HEADERS = ("case", "median", "quartiles", "samples/s", "of matmul", "of copy", "peak", "ratio", "difference")
# Characters of the bar that one ratio of 1 gets, and the longest bar.
BAR, LONGEST = 2, 40


def seconds(value: float) -> str:
    """Return a time with its unit, to three digits.

    >>> seconds(1.2345), seconds(0.0123456), seconds(0.0000012)
    ('1.23 s', '12.3 ms', '1.2 µs')
    """
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1 or unit == "µs":
            return f"{value * factor:.3g} {unit}"
    raise AssertionError  # pragma: no cover


def figure(value: float) -> str:
    """Return a number to three digits, without an exponent where it is large.

    >>> figure(4512.3), figure(0.00351), figure(2e-5)
    ('4510', '0.00351', '2e-05')
    """
    short = f"{value:.3g}"
    return short if value < 1000 else f"{float(short):.0f}"


def size(value: int | None) -> str:
    """Return bytes in MB; a dash where they were not measured."""
    return "–" if value is None else f"{value / 1e6:.0f} MB"


def cells(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return our line and one for each peer."""
    share = [f"{row[key]:.0%}" if key in row else "–" for key in ("share_of_matmul", "share_of_copy")]
    rate = figure(row["samples_per_second"])
    lines = [(row["id"], *_time(row["seconds"]), rate, *share, size(row["peak"]), "", "")]
    for name, peer in row["peers"].items():
        ratio = peer["ratio"]
        difference = f"{peer['difference']:.1e}"
        if peer["gradient_difference"] is not None:
            difference += f", gradient {peer['gradient_difference']:.1e}"
        rate = figure(row["case"]["batch"] / peer["seconds"]["median"])
        times = f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
        lines.append((f"· {name}", *_time(peer["seconds"]), rate, "", "", size(peer["peak"]), times, difference))
    lines += [(f"· {name}: {reason}", *[""] * (len(HEADERS) - 1)) for name, reason in row["absent"].items()]
    return lines


def _time(spread: dict[str, float]) -> tuple[str, str]:
    return seconds(spread["median"]), f"{seconds(spread['low'])}–{seconds(spread['high'])}"


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table for a page.

    >>> print(markdown(["a", "b"], [("1", "2")]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [headers, *rows]
    drawn = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([drawn[0], "|---" * len(headers) + "|", *drawn[1:]])


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table for the terminal; a bar shows how many times as long as us a peer took, a mark at 1."""
    lines, bars = [tuple(HEADERS)], [""]
    for row in rows:
        lines += cells(row)
        bars += ["█" * BAR]
        for peer in row["peers"].values():
            length = max(1, round(BAR * peer["ratio"]["median"]))
            bars.append("█" * min(length, LONGEST) + ("…" if length > LONGEST else ""))
        bars += [""] * len(row["absent"])
    whole = [line for line in lines if any(line[1:])]
    widths = [max(len(line[i]) for line in whole) for i in range(len(HEADERS))]
    drawn = []
    for line, bar in zip(lines, bars, strict=True):
        padded = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        drawn.append("  ".join([*padded, bar]).rstrip())
    return "\n".join(drawn)
