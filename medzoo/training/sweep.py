"""``medzoo.sweep``: a grid of trainings on the same rows, each an ordinary run, and one of them chosen.

The folder holds ``sweep.json`` (what is swept), ``sweep.csv``, ``sweep.png``, and one folder for each run. A run that
failed has ``failed.json``; without its folder it is trained again.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from medzoo.extra import require_train_extra

require_train_extra()  # before the imports that would fail with the name of one package

import torch

from medzoo.classifier import Classifier
from medzoo.data.table import Table
from medzoo.errors import ConfigError, TrainError
from medzoo.evaluation.run_record import PART, RunRecord, is_run
from medzoo.progress import progress_bar, shows_progress
from medzoo.registry import describe
from medzoo.training.folder import check_folder, is_finished
from medzoo.training.lock import lock_state
from medzoo.training.numerics import TrainFailed
from medzoo.training.overrides import override, plain_value, resolve_field
from medzoo.training.progress import duration
from medzoo.training.recipe import Recipe
from medzoo.training.run import resume, train
from medzoo.training.signals import TrainInterrupted
from medzoo.training.source import load_table
from medzoo.training.sweep_choice import By, SweepRow, Validated, choose, validated_run
from medzoo.training.sweep_folder import (
    FAILED,
    PLAN,
    check_same_sweep,
    check_sweep_folder,
    digest_of_rows,
    has_trained,
    plan_of,
    read_failure,
    read_plan,
    write_file,
)
from medzoo.training.sweep_grid import Combination, Grid, value_text
from medzoo.training.sweep_plot import draw_sweep
from medzoo.training.sweep_table import FIGURE, TABLE, Sweep, notes_of

__all__ = ["sweep"]

REDRAW = 60.0  # seconds between two drawings, but for the last
log = logging.getLogger("medzoo")


def sweep(
    recipe: str | os.PathLike[str] | Recipe,
    data: Table | str | os.PathLike[str],
    *,
    over: Mapping[str, Sequence[Any]],
    to: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    by: By = "auroc",
    **overrides: Any,
) -> Sweep:
    """Train a recipe with every combination of some values, and choose one run by the validation part alone.

    Each run is one of :func:`medzoo.train`, in a folder of its own. All have the same rows, labels and parts, and no
    test part is read. The run with the best figure is chosen: that figure is optimistic, as the best of several is in
    part the luckiest. For every other run a paired bootstrap over patients gives the difference to it with a 95 %
    interval; one that holds 0 does not separate the two. ``train.seed`` may be swept too. Seeds are repetitions: with
    several, the setting with the best mean is chosen, and its run with the first seed is marked.

    The same call again returns finished runs as they are, continues one that was stopped at any moment, on a CPU to the
    same weights, bit for bit, and trains the others. It may give more values of the same fields than before. A
    combination whose training fails (a loss that is not finite, no memory, a batch larger than the training part) is
    recorded with the reason, and the others go on; to train it again, delete its folder.

    Args:
        recipe: as in :func:`medzoo.train`, but for a model, which has to be saved first.
        data: likewise. The table is read once for all runs, and so are the images, unless ``data.cache`` is other than
            ``disk``, its default.
        over: values by field, named as in ``overrides``, such as ``{"batch": [16, 64], "lr": [1e-4, 2e-4]}``. At most
            200 combinations. Not those of the split, the rows and the labels.
        to: the folder of the sweep: new, empty, or that of the same sweep.
        root: as in :func:`medzoo.train`.
        by: the figure of the validation part: ``"auroc"`` (macro AUROC), ``"log_loss"`` or ``"accuracy"``; see
            :class:`SweepRow`. A tie is decided by the log-loss, and that of the log-loss by the AUROC. Another one
            chooses again, and trains nothing.
        **overrides: fields of the recipe, for all runs.

    Raises:
        ConfigError: the recipe, a field, a value or the folder cannot be, or the folder holds another sweep.
        DataError: the table or its images cannot be used, or a patient is in two parts.
        TrainInterrupted: a signal; the same call continues.
        TrainError: no combination could be trained, or the machine fails: a full disk, or another process that trains
            in the folder.
    """
    if by not in get_args(By):
        raise ConfigError(f"sweep: expected by to be one of {', '.join(get_args(By))}, got {by!r}.")
    base, folder = _base(recipe, over, overrides), Path(to)
    known = read_plan(folder)
    grid = Grid.of(base, over, tuple(known["over"]) if known else ())
    for name in dict.fromkeys(one.recipe.model.name for one in grid.combinations):
        if not name.startswith(("local-dir:", "hf-hub:")):
            describe(name)  # raises for a model that there is not, before the first one trains
    table = data if isinstance(data, Table) else load_table(base, data, root)
    plan = plan_of(grid, table)
    check_sweep_folder(folder)
    with lock_state(folder / "state"):
        known = read_plan(folder)  # another process may have begun while this one waited for the lock
        if known and has_trained(folder):
            check_same_sweep(folder, known, plan)
        write_file(folder / PLAN, (json.dumps(plan, indent=2) + "\n").encode())
        return _Sweeping(folder, grid, table, by).run()


@dataclass(eq=False)
class _Sweeping:
    """A sweep while it runs.

    Attributes:
        found: figures of the finished runs, by name.
        seconds: of the runs that this process has trained.
        parts: the name of the first run and a digest of its rows and their parts, which all others have too.
    """

    folder: Path
    grid: Grid
    table: Table
    by: By
    found: dict[str, Validated] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    parts: tuple[str, str] | None = None
    _drawn: float = -math.inf

    def run(self) -> Sweep:
        """Train what is not trained yet, and return the sweep."""
        rows = {one.name: self._row(one) for one in self.grid.combinations}
        waiting = [one for one in self.grid.combinations if rows[one.name].status in ("not begun", "unfinished")]
        for number, one in enumerate(waiting):
            if number:
                self._write(rows)
            self._announce(one, len(waiting) - number)
            try:
                began = time.perf_counter()
                self._train(one)
                self.seconds.append(time.perf_counter() - began)
            except TrainInterrupted as error:
                rows[one.name] = self._row(one)
                self._write(rows)
                raise self._interrupted(one, error) from error
            rows[one.name] = self._row(one)
        if not self.found:
            self._raise_all_failed(rows)
        return self._write(rows, last=True)

    def _train(self, one: Combination) -> None:
        """Train a combination, or continue it; record what is a fault of the combination and not of the machine."""
        folder = self.folder / one.name
        begun, failed = is_run(folder), None
        if not begun:
            check_folder(folder)
        try:
            if begun:
                resume(folder, data=None if self.table.arrays is None else self.table)
            else:
                train(one.recipe, self.table, to=folder)
        except TrainFailed as error:
            failed = error.reason or str(error), str(error)
        except ConfigError as error:
            if begun:  # it could be trained before: what is wrong now is not the combination
                raise
            failed = str(error), str(error)
        except (torch.OutOfMemoryError, MemoryError) as error:
            failed = f"out of memory with batches of {one.recipe.train.batch} images", str(error)
        if is_run(folder):  # after the error, which had the model and the batch in its traceback
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if failed is not None:
            folder.mkdir(parents=True, exist_ok=True)
            facts = {"recipe": one.recipe.digest(), "reason": failed[0], "message": failed[1]}
            write_file(folder / FAILED, (json.dumps(facts, indent=2) + "\n").encode())
            log.info("%s failed: %s", one.name, failed[1])

    def _row(self, one: Combination) -> SweepRow:
        """Return what is known of a combination."""
        folder = self.folder / one.name
        row = SweepRow(one.name, folder, one.values, "not begun")
        if (facts := read_failure(folder)) is not None:
            self._check_recipe(one, facts)
            row = replace(row, status="failed", reason=facts["reason"])
        elif not is_run(folder):
            return row
        # A recipe with ``train.then`` has a frozen training before.
        logs = [line for part in (folder / "frozen", folder) for line in RunRecord(part).read_log()]
        row = replace(row, epochs=len(logs), seconds=sum(line["seconds"] for line in logs))
        if row.status == "failed":
            return row
        record = RunRecord(folder)
        self._check_recipe(one, record.facts())
        if not is_finished(folder):
            return replace(row, status="unfinished")
        self._check_parts(one, record)
        found = self.found[one.name] = validated_run(record)
        return replace(
            row, status="finished", auroc=found.estimates["auroc"], log_loss=found.estimates["log_loss"],
            accuracy=found.estimates["accuracy"],
        )  # fmt: skip

    def _check_recipe(self, one: Combination, facts: Mapping[str, Any]) -> None:
        if facts.get("recipe") != one.recipe.digest():
            raise ConfigError(
                f"{self.folder / one.name}: expected the run of this combination, got that of another recipe. Move the "
                "folder away, or choose another folder for the sweep."
            )

    def _check_parts(self, one: Combination, record: RunRecord) -> None:
        """Raise ConfigError unless a run has the rows and parts of the others, and their images where that is known."""
        if not any(name in self.grid.values for name in ("model", "in_chans")):
            digest = str(record.facts().get("data"))
        else:  # how an image is decoded, and so its hash, depends on the channels of the model
            own = record.read_rows()
            digest = digest_of_rows(own, own.groups[PART])
        first = self.parts = self.parts or (one.name, digest)
        if first[1] != digest:
            raise ConfigError(
                f"{self.folder}: the runs {first[0]} and {one.name} have other images, labels or parts, so that they "
                "cannot be compared: the data was changed in between. Restore it and delete the folder of one, or "
                "choose another folder for the sweep."
            )

    def _write(self, rows: Mapping[str, SweepRow], *, last: bool = False) -> Sweep:
        """Write the table of what there is, and the figure now and then and at the end."""
        chosen = choose(list(rows.values()), self.found, self.by, self.grid.seed)
        notes = notes_of(chosen, self.found, self.by, self.grid.seed)
        made = Sweep(chosen, self.folder, self.by, tuple(self.grid.values), notes)
        write_file(self.folder / TABLE, made.to_csv().encode())
        if last or time.monotonic() - self._drawn > REDRAW:
            write_file(self.folder / FIGURE, draw_sweep(made, self.grid))
            self._drawn = time.monotonic()
        return made

    def _announce(self, one: Combination, left: int) -> None:
        """State which combination of how many begins, as a line above the bars of its training."""
        total = len(self.grid.combinations)
        text = f"run {total - left + 1} of {total}: " + ", ".join(
            f"{name} {value_text(value)}" for name, value in one.values.items()
        )
        if self.seconds:
            text += f" · about {duration(left * sum(self.seconds) / len(self.seconds))} left for all"
        if shows_progress():
            progress_bar().console.print(text, style="bold", highlight=False, markup=False, soft_wrap=True)
        else:
            log.info(text)

    def _interrupted(self, one: Combination, error: TrainInterrupted) -> TrainInterrupted:
        """Return the error with what continues the sweep."""
        stopped = TrainInterrupted(
            f"the sweep in {self.folder} was stopped in the run {one.name}: {error} The same call continues the sweep."
        )
        stopped.exit_code = error.exit_code
        return stopped

    def _raise_all_failed(self, rows: Mapping[str, SweepRow]) -> None:
        """Raise the error that no combination could be trained, and forget the failures, which all of them share."""
        for row in rows.values():
            (row.folder / FAILED).unlink(missing_ok=True)
            with suppress(OSError):  # a training that had begun has files there
                row.folder.rmdir()
        reasons = list(dict.fromkeys(row.reason for row in rows.values()))
        more = f" and {len(reasons) - 1} other reasons" if len(reasons) > 1 else ""
        raise TrainError(
            f"sweep: none of the {len(rows)} combinations could be trained: {reasons[0]}{more}. Change the recipe."
        )


def _base(
    recipe: str | os.PathLike[str] | Recipe, over: Mapping[str, Sequence[Any]], overrides: Mapping[str, Any]
) -> Recipe:  # fmt: skip
    """Return what all runs share."""
    if isinstance(recipe, Classifier):
        raise ConfigError(
            "sweep: expected a recipe, got a model. Save it with model.save_pretrained(FOLDER), and give the recipe "
            "'table' with model='local-dir:FOLDER'."
        )
    base = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    base = override(base, overrides, "sweep")
    fixed = {path for name, value in overrides.items() for path, _ in resolve_field(name, plain_value(value), Recipe)}
    for name in over if isinstance(over, Mapping) else ():
        if name in overrides or name in {path.rpartition(".")[2] for path in fixed} | fixed:
            raise ConfigError(f"sweep: {name} is given for all runs and in over. Leave one out.")
    return base
