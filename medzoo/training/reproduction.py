"""``Reproduction``: the figures of a source beside the honest ones, as a table, a page and a picture."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medzoo.atomic import write_atomically
from medzoo.errors import ConfigError, TrainError
from medzoo.training.recipe import Recipe
from medzoo.training.reproduce_page import draw, page
from medzoo.training.reproduce_ways import WAYS, FigureRow, Measured
from medzoo.version import __version__

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["Reproduction"]

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Reproduction:
    """What :func:`medzoo.reproduce` found.

    Attributes:
        recipe: of every run.
        ways: what was measured, in the order of the columns.
        figures: the rows of the table.
        notes: what a reader should know.
        folder: where the runs, the table and the picture are.
    """

    recipe: Recipe
    ways: tuple[Measured, ...]
    figures: tuple[FigureRow, ...]
    notes: tuple[str, ...]
    folder: Path

    def __repr__(self) -> str:
        return f"Reproduction({self.recipe.name!r}: {len(self.figures)} figures; {self.folder})"

    def __str__(self) -> str:
        """Return :meth:`summary`."""
        return self.summary()

    def __getitem__(self, figure: str) -> FigureRow:
        """Return a row of the table by the name of its figure.

        Raises:
            ConfigError: there is no such figure.
        """
        names = [row.name for row in self.figures]
        if figure not in names:
            raise ConfigError(f"Reproduction: there is no figure {figure!r}. There are {', '.join(names)}.")
        return self.figures[names.index(figure)]

    def __rich__(self) -> Group:
        from medzoo.training.reproduce_page import rich_table

        return rich_table(self)

    def summary(self) -> str:
        """Return the table, the sentences and the notes as text."""
        from rich.console import Console

        console = Console(width=140, color_system=None)
        with console.capture() as text:
            console.print(self)
        return text.get()

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: every figure, without a path, an id or a patient."""
        source = self.recipe.source.model_dump(mode="json")
        return {
            "format": FORMAT, "medzoo": __version__, "recipe": self.recipe.name, "digest": self.recipe.digest(),
            "source": {name: source[name] for name in ("reference", "claim", "protocol")},
            "ways": {way.name: way.to_dict() for way in self.ways},
            "figures": [row.to_dict() for row in self.figures], "notes": list(self.notes),
        }  # fmt: skip

    def write(self) -> Reproduction:
        """Write ``reproduction.csv``, ``.json``, ``.html`` and ``.png`` to the folder, and return this.

        Raises:
            TrainError: a file cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        picture = draw(self)
        files = {"csv": self._csv().encode(), "json": text.encode(), "png": picture, "html": page(self, picture)}
        for suffix, content in files.items():
            path = self.folder / f"reproduction.{suffix}"
            try:
                write_atomically(path, content)
            except OSError as error:
                raise TrainError(
                    f"{path}: the file cannot be written ({error.strerror or error}). The runs are finished: check "
                    "permissions and free space, and reproduce again, which only measures."
                ) from error
        return self

    def _csv(self) -> str:
        """Return the table with a column for each figure and each end of its interval."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = [f"{name}{end}" for name in WAYS for end in ("", "_low", "_high", "_chance")]
        writer.writerow(["figure", "title", "claimed", *columns, "sentence"])
        for row in self.figures:
            cells = [
                cell
                for name, one in ((name, row.estimates[name]) for name in WAYS)
                for cell in (one.value, one.low, one.high, row.baseline(name))
            ]
            numbers = ["" if v is None or math.isnan(v) else repr(float(v)) for v in (row.claimed, *cells)]
            writer.writerow([row.name, row.title, *numbers, row.sentence])
        return text.getvalue()
