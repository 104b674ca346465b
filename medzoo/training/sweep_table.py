"""``Sweep``: what the runs of a sweep reached, as a table, a CSV file and text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medzoo.evaluation.estimate import Estimate
from medzoo.training.progress import duration
from medzoo.training.sweep_choice import FIGURES, By, SweepRow, Validated
from medzoo.training.sweep_grid import value_text

__all__ = ["FIGURE", "TABLE", "Sweep", "notes_of"]

TABLE, FIGURE = "sweep.csv", "sweep.png"


@dataclass(frozen=True, eq=False)
class Sweep:
    """The runs of a sweep, one of them chosen by the validation part.

    Attributes:
        rows: one for each combination, in the order of the grid.
        folder: of the sweep; the folder of each run is inside.
        by: the figure by which a run was chosen.
        fields: that differ between the runs.
        notes: how the figures are to be read.
    """

    rows: tuple[SweepRow, ...]
    folder: Path
    by: By
    fields: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> SweepRow:
        """The chosen run: ``medzoo.evaluate(sweep.chosen)``, ``medzoo.resume(sweep.chosen.folder).model``."""
        return next(row for row in self.rows if row.chosen)

    @property
    def table(self) -> Path:
        """``sweep.csv``."""
        return self.folder / TABLE

    @property
    def figure(self) -> Path:
        """``sweep.png``."""
        return self.folder / FIGURE

    def header(self) -> list[str]:
        """Return the names of the columns of :meth:`lines`."""
        return [*self.fields, "AUROC", "accuracy", "log-loss", "epochs", "time", f"{FIGURES[self.by]} - chosen"]

    def lines(self) -> list[list[str]]:
        """Return the rows for people, the best first; those without a figure are last."""
        return [self._line(row) for row in self.ranked()]

    def ranked(self) -> list[SweepRow]:
        """Return the rows, the chosen one and then those of the best figure, or mean over seeds, first."""

        def cost(row: SweepRow) -> tuple[bool, float]:
            found = getattr(row, self.by)
            if found is None or math.isnan(found.value):
                return not row.chosen, math.inf
            behind = 0.0 if row.difference is None else row.difference.difference.value
            return not row.chosen, behind if self.by == "log_loss" else -behind

        return sorted(self.rows, key=cost)

    def _line(self, row: SweepRow) -> list[str]:
        values = [value_text(row.values[name]) for name in self.fields]
        if row.status != "finished":
            return [*values, "", "", "", str(row.epochs or ""), "", f"{row.status}: {row.reason}".rstrip(": ")]
        loss = "–" if row.log_loss is None else f"{row.log_loss.value:.3f}"
        against = (
            "chosen" if row.chosen else "another seed of the chosen" if row.difference is None else str(row.difference)
        )
        return [*values, str(row.auroc), str(row.accuracy), loss, str(row.epochs), duration(row.seconds), against]

    def __str__(self) -> str:
        """Return the table and the notes as text."""
        table = [self.header(), *self.lines()]
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        ]
        return "\n".join([*text, *self.notes])

    def to_csv(self) -> str:
        """Return the rows as CSV: numbers with all their digits, nothing for what is not known."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        estimates = ("auroc", "accuracy")
        writer.writerow([
            "run", *self.fields, "status", "epochs_trained", "valid_loss",
            *(f"{name}{end}" for name in estimates for end in ("", "_low", "_high")), "seconds", "chosen",
            "difference", "difference_low", "difference_high", "separable", "reason",
        ])  # fmt: skip
        for row in self.rows:
            apart = None if row.difference is None else row.difference.difference
            cells: list[Any] = [row.name, *(value_text(row.values[name]) for name in self.fields), row.status]
            cells += [row.epochs, *_cells(row.log_loss)[:1]]
            cells += [cell for name in estimates for cell in _cells(getattr(row, name))]
            cells += [f"{row.seconds:.1f}", _yes(row.chosen), *_cells(apart), _yes(row.separable)]
            writer.writerow([*cells, row.reason.replace("\r", " ")])
        return text.getvalue()


def _cells(found: Estimate | None) -> Sequence[Any]:
    """Return a figure and its interval; empty for what there is not."""
    if found is None or math.isnan(found.value):
        return ("", "", "")
    return (found.value, *("" if end is None else end for end in (found.low, found.high)))


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def notes_of(
    rows: Sequence[SweepRow], found: Mapping[str, Validated], by: By, seed: str | None = None
) -> tuple[str, ...]:
    """Return how the figures are to be read; see :func:`~medzoo.training.sweep_choice.choose`."""
    chosen = next((row for row in rows if row.chosen), None)
    if chosen is None:
        return ()
    own, failed = found[chosen.name], sum(row.status == "failed" for row in rows)
    notes = [_how_chosen(chosen, rows, own, by, seed)]
    if math.isnan(own.estimates[by].value):
        notes.append(f"no run has a {FIGURES[by]} on these rows: the tie was decided by the log-loss")
    notes += _of_probabilities(list(found.values()))
    differences = [row.difference for row in rows if row.difference is not None]
    known = [one.separable for one in differences if one.separable is not None]
    if known:
        notes.append(
            f"{known.count(False)} of {len(known)} other runs are not separable from it: the 95 % interval of the "
            "paired difference holds 0. Intervals are of the patients alone, and not corrected for the choice of the "
            "best"
        )
    if len(known) < len(differences):
        why = next(one.difference.why for one in differences if one.separable is None) or "not defined for these rows"
        notes.append(f"without an interval of the difference: {len(differences) - len(known)} other runs ({why})")
    if failed:
        notes.append(f"{failed} of {len(rows)} combinations failed; to train one again, delete its folder")
    return tuple(notes)


def _of_probabilities(found: Sequence[Validated]) -> list[str]:
    """Return of which probabilities log-loss and accuracy are."""
    notes = []
    if fitted := sum(one.fitted for one in found):
        whose = "" if fitted == len(found) else f", in {fitted} of {len(found)} runs,"
        notes.append(
            f"log-loss and accuracy are of probabilities whose calibration{whose} was fitted to the same rows, and "
            "are optimistic for it"
        )
    if any(one.moved for one in found):
        notes.append(
            "the rows were sampled by class: for log-loss and accuracy the probabilities, which are saved for the "
            "population, are moved to the share of positives of the validation rows"
        )
    return notes


def _how_chosen(chosen: SweepRow, rows: Sequence[SweepRow], own: Validated, by: By, seed: str | None) -> str:
    """Return what was chosen, of how many and by what, and that its figure is optimistic for it."""
    finished = [row for row in rows if row.status == "finished"]
    settings = {repr([value for name, value in row.values.items() if name != seed]) for row in finished}
    if len(settings) == 1:
        also = "nothing was chosen, as seeds are repetitions of it" if len(finished) > 1 else "nothing was chosen"
        return f"one setting was trained, and {also}: {chosen.name} is marked"
    who = f"{own.rows:,} validation rows" + (f" of {own.patients:,} patients" if own.patients is not None else "")
    what = f"the mean {FIGURES[by]} over seeds" if seed is not None else FIGURES[by]
    return (
        f"chosen by {what} on {who}: {chosen.name}, the best of {len(settings)}. Its figure is optimistic, as it was "
        "chosen for it: evaluate the run on data that chose nothing, such as its test part"
    )
