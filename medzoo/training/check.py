"""``check``: what a training would see, without one: the table, the split, the classes, memory, time and a batch."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from medzoo.data.pixels import PixelStore
from medzoo.data.split import Dropped
from medzoo.data.table import Table
from medzoo.training.check_counts import PartCount, count_part
from medzoo.training.measure import FewSteps, MemoryPlan, TimePlan, peak_memory, plan_memory, plan_time
from medzoo.training.recipe import Recipe
from medzoo.training.setup import Setup, set_up
from medzoo.training.source import load_table
from medzoo.training.wait import Speed, advise

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["CheckReport", "check", "dry_run", "known_data_sets"]

DATA_SETS = {
    "ChestX-ray14": r"chest-?x-?ray-?(8|14)|\bnih\b",
    "CheXpert": r"chexpert",
    "MIMIC-CXR": r"mimic",
    "PadChest": r"padchest",
    "RSNA pneumonia": r"\brsna\b",
    "Open-i": r"open-?i\b",
    "LUNA16": r"luna-?16|lidc",
    "BraTS": r"\bbrats|mgmt",
    "BTCV": r"\bbtcv\b",
    "AdrenalMNIST3D": r"adrenal-?mnist",
    "Kermany chest X-rays": r"kermany|pneumonia-?mnist|pneumonia_cxr",
}
"""Names by which a data set is known, for the warning that weights may have been trained on the same images."""


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
        time: measured by a few steps.
        advice: the one thing to change, or empty.
        picture: a batch as the network sees it; ``None`` if it was not drawn.
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
    time: TimePlan
    advice: str
    picture: Path | None = None
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
        out: a PNG file for a training batch as the network sees it.
        overrides: see :meth:`~medzoo.training.recipe.Recipe.with_`.

    Raises:
        ConfigError: the recipe or a path cannot be.
        DataError: a row or an image cannot be used, or patients are in several parts.
    """
    with TemporaryDirectory(prefix="medzoo-check-") as folder:
        setup, report = _prepare(recipe, data, root, overrides)
        picture = None if out is None else setup.draw_first_batch(Path(out))
        return replace(report(plan_time(setup, Path(folder))), picture=picture)


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
        folder = Path(name)
        setup, report = _prepare(recipe, data, root, overrides)
        time = plan_time(setup, folder, train=2, valid=2)
        again = Speed()
        with warnings.catch_warnings():  # of a model that has hardly been trained
            warnings.simplefilter("ignore", UserWarning)
            fit(setup, folder, callbacks=[FewSteps(2, 2, epochs=2), again])
        return replace(report(time), resumed=again.samples > 0, peak=peak_memory())


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
    notes = (*table.notes, *setup.split.notes, *_notes(setup, "" if isinstance(data, Table) else str(data)))

    def report(time: TimePlan) -> CheckReport:
        how = resolved.train
        advice = advise(time.data_wait_share, how.workers, resolved.data.cache, os.cpu_count() or 1)
        return CheckReport(
            resolved, table, parts, setup.split.how, setup.split.dropped, notes, memory, time, advice
        )  # fmt: skip

    return setup, report


def _image_bytes(setup: Setup) -> int:
    """Return the bytes of the cached images."""
    if setup.recipe.data.cache == "off":
        return 0
    return PixelStore.plan(setup.table, setup.pixels.transform).bytes


def _notes(setup: Setup, data: str) -> list[str]:
    """Return the warning that the weights may know the images."""
    found = []
    given = f"{data} {setup.table.source} {setup.recipe.name} {setup.recipe.source.reference}"
    loaded = setup.model.load_report
    same = known_data_sets(loaded.trained_on if loaded else "") & known_data_sets(given)
    if same:
        found.append(
            f"the weights {setup.recipe.model.pretrained!r} were trained on {' and '.join(sorted(same))}, and the name "
            "of the data says the same: they may know the images of the validation and test parts."
        )
    return found


def known_data_sets(text: str) -> set[str]:
    """Return the public data sets that a text names; a match of names is no proof, and no match is none either.

    >>> known_data_sets("chest X-rays of NIH ChestX-ray14 and CheXpert") == {"ChestX-ray14", "CheXpert"}
    True
    """
    return {name for name, pattern in DATA_SETS.items() if re.search(pattern, text, re.IGNORECASE)}
