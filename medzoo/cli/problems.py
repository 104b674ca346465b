"""What ``predict`` and ``explain`` print to stderr: warnings, skipped objects, errors, and how many there were."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from medzoo.cli.tables import cli_message

if TYPE_CHECKING:
    from medzoo.inference.result import Predictions

__all__ = ["print_problems"]

MOST_LINES = 50  # of each kind of problem


def print_problems(results: Predictions, verb: str = "predict") -> None:
    """Print warnings, skipped objects and errors, one line each, and the counts."""
    rest = ": --output json or csv has them all" if verb == "predict" else ""
    lines = _first([f"warning: {result.warning}" for result in results if result.warning and not result.error], rest)
    lines += _first([f"skipped {source}: {reason}" for source, reason in results.skipped.items()], rest)
    lines += _first([f"DataError: {result.error}" for result in results.failed], rest)
    if not results:
        reason = f"{len(results.skipped)} skipped" if results.skipped else "no image was found"
        lines.append(f"nothing to {verb}: {reason}")
    elif len(results) + len(results.skipped) > 1:
        lines.append(results.summary().replace("predicted", f"{verb}ed", 1))
    for line in lines:
        click.echo(cli_message(line), err=True)


def _first(lines: list[str], rest: str) -> list[str]:
    """Return the lines, of which an archive may have thousands, up to a number that a person reads."""
    more = len(lines) - MOST_LINES
    return lines if more < 2 else [*lines[:MOST_LINES], f"… and {more} more{rest}"]
