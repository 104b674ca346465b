"""``check``: what a training would see, without one: the table, the split, the classes, memory, time and a batch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from medzoo.data.pixels import PixelStore
from medzoo.data.split import Dropped
from medzoo.data.table import Table
from medzoo.training.check_counts import PartCount, count_part
from medzoo.training.frozen import phase_setup, phases
from medzoo.training.measure import FewSteps, MemoryPlan, TimePlan, peak_memory, plan_memory, plan_time
from medzoo.training.recipe import Recipe
from medzoo.training.setup import Setup, set_up
from medzoo.training.source import load_table
from medzoo.training.wait import Speed, advise

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["CheckReport", "check", "dry_run"]

UNTIMED: dict[str, Any] = {
    "schedule": {"kind": "constant", "gamma": 1.0, "warmup": 0.0},
    "stop_after": None,
}
"""What a training of a few steps cannot follow; none of it takes time."""


@dataclass(frozen=True, eq=False)
class CheckReport:
    """What a training would see; printed as tables by rich.

    Attributes:
        recipe: complete, with all overrides.
        table: the table.
        parts: counts of train, valid and test.
        how: how the split was made.
        dropped: rows in no part.
        notes: what the checks cannot see, and warnings.
        memory: the bytes of a training.
        times: of each phase, measured by a few steps.
        advice: the one thing to change, or empty.
        pictures: a batch as the network sees it, the labels of each part, and each transform of the augmentation; none
            if nothing was drawn.
        resumed: whether a checkpoint was written and continued; ``None`` if that was not tried.
        peak: the most bytes that the process had in memory in a dry run, or ``None``.
    """

    recipe: Recipe
    table: Table
    parts: tuple[PartCount, ...]
    how: str
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...]
    memory: MemoryPlan
    times: tuple[TimePlan, ...]
    advice: str
    pictures: tuple[Path, ...] = ()
    resumed: bool | None = None
    peak: int | None = None

    def __rich__(self) -> Group:
        from medzoo.training.check_report import render

        return render(self)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=120, color_system=None)
        with console.capture() as text:
            console.print(self)
        return text.get()


def check(
    recipe: Recipe | str | os.PathLike[str],
    data: Table | str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> CheckReport:
    """Check a recipe on data: read the table and the images, split, count, and measure a few steps. Nothing is kept.

    Args:
        recipe: a recipe, its name, or a file.
        data: a table, or what :func:`~medzoo.training.source.load_table` reads.
        root: folder of the images of a CSV file.
        out: a PNG file, such as ``check.png``, for a training batch as the network sees it; beside it
            ``check_incidence.png`` and ``check_transforms.png``.
        overrides: see :meth:`~medzoo.training.recipe.Recipe.with_`.

    Raises:
        ConfigError: the recipe or a path cannot be.
        DataError: a row or an image cannot be used, or patients are in several parts.
    """
    with TemporaryDirectory(prefix="medzoo-check-") as folder:
        setup, report = _prepare(recipe, data, root, overrides)
        pictures = () if out is None else _draw(setup, Path(out))
        times = tuple(plan_time(part, Path(folder) / str(i)) for i, part in enumerate(_phases(setup)))
        return replace(report(times), pictures=pictures)


def _draw(setup: Setup, out: Path) -> tuple[Path, ...]:
    beside = {name: out.with_name(f"{out.stem}_{name}{out.suffix}") for name in ("incidence", "transforms")}
    return setup.draw(out, **beside)


def dry_run(
    recipe: Recipe | str | os.PathLike[str],
    data: Table | str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> CheckReport:
    """Check, with two steps of training and validation, a checkpoint, and two more steps from that checkpoint.

    Args:
        recipe: see :func:`check`.
        data: likewise.
        root: likewise.
        overrides: likewise.

    Raises:
        ConfigError, DataError: as :func:`check`.
        TrainError: the training cannot go on.
    """
    from medzoo.training.fit import fit

    with TemporaryDirectory(prefix="medzoo-dry-run-") as name:
        setup, report = _prepare(recipe, data, root, overrides)
        times, resumed = [], True
        for i, part in enumerate(_phases(setup)):
            folder, again = Path(name) / str(i), Speed()
            times.append(plan_time(part, folder, train=2, valid=2))
            with warnings.catch_warnings():  # of a model that has hardly been trained
                warnings.simplefilter("ignore", UserWarning)
                fit(part, folder, callbacks=[FewSteps(2, 2, epochs=2), again])
            resumed &= again.samples > 0
        return replace(report(tuple(times)), resumed=resumed, peak=peak_memory())


def _phases(setup: Setup) -> Iterator[Setup]:
    """Yield the setup of each phase. Features are not computed: their phase is as long as one epoch of the encoder."""
    for recipe in phases(setup.recipe):
        how = recipe
        if recipe.train.freeze == "features":
            how = recipe.with_(freeze="encoder", epochs=1)
        yield phase_setup(setup, how)


def _prepare(
    recipe: Recipe | str | os.PathLike[str],
    data: Table | str | os.PathLike[str],
    root: str | os.PathLike[str] | None,
    overrides: dict[str, Any],
) -> tuple[Setup, Any]:
    """Return the setup, and the function that makes the report of it from a plan of the time."""
    import torch

    resolved = (recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)).with_(**overrides)
    table = data if isinstance(data, Table) else load_table(resolved, data, root)
    torch.manual_seed(resolved.train.seed)
    setup = set_up(resolved.with_(**UNTIMED), table)
    memory = plan_memory(setup, _image_bytes(setup))
    parts = tuple(map(count_part, (setup.split.train, setup.split.valid, setup.split.test)))

    def report(times: tuple[TimePlan, ...]) -> CheckReport:
        how = resolved.train
        advice = advise(times[-1].data_wait_share, how.workers, resolved.data.cache, os.cpu_count() or 1)
        return CheckReport(
            resolved, table, parts, setup.split.how, setup.split.dropped, setup.notes, memory, times, advice
        )  # fmt: skip

    return setup, report


def _image_bytes(setup: Setup) -> int:
    """Return the bytes of the cached images."""
    if setup.recipe.data.cache == "off":
        return 0
    return PixelStore.plan(setup.table, setup.pixels.transform).bytes
