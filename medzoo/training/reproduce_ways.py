"""What :func:`medzoo.reproduce` measured: the ways of measuring, and a figure in each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.scores import Scores

__all__ = ["WAYS", "FigureRow", "Measured"]

WAYS = {
    "as_published": "as published",
    "permuted_as_published": "as published, labels permuted",
    "honest": "honest",
    "permuted_honest": "honest, labels permuted",
}
"""The ways of measuring, in the order of the columns."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One way of measuring: which model, on which rows.

    Attributes:
        name: one of :data:`WAYS`.
        scores: of the rows; without patients where the split ignores them, so that intervals are of rows.
        patients: of the rows; ``None`` if they are not known.
        run: name of the folder of the training.
        split: how the rows were divided, in words.
        part: that was measured.
        leaks: whether the parts may share patients.
        shared: patients of the measured part with rows in the training part; ``None`` if they are not known.
        trained: rows that the model was trained on.
        epoch: of the model, counted from 1.
        looks: epochs among which it was chosen by these rows; ``None`` for the last epoch.
        digest: of the weights.
    """

    name: str
    scores: Scores = field(repr=False)
    patients: int | None
    run: str
    split: str
    part: str
    leaks: bool
    shared: int | None
    trained: int
    epoch: int
    looks: int | None = None
    digest: str = ""

    @property
    def unit(self) -> str:
        """What the bootstrap draws: patients or rows."""
        return "row" if self.scores.patients is None else "patient"

    def describe(self) -> str:
        """Return what was measured as a sentence."""
        rows = f"{len(self.scores):,} rows" + ("" if self.patients is None else f" of {self.patients:,} patients")
        what = {"train": "its training part", "valid": "its validation part", "test": "its test part"}[self.part]
        epoch = f"epoch {self.epoch}, the last" if self.looks is None else (
            f"epoch {self.epoch}, the best of {self.looks} looks at these rows"
        )  # fmt: skip
        return f"{rows}, {what}; a model of {self.trained:,} rows after {epoch}. Split {self.split}."

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, without the scores."""
        names = ("run", "part", "split", "leaks", "shared", "trained", "epoch", "looks", "patients", "unit")
        return {"rows": len(self.scores), **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class FigureRow:
    """One figure, measured in every way.

    Attributes:
        name: such as ``"auroc"``.
        title: of the row.
        claimed: what the source reported; ``None`` if it did not.
        estimates: by way.
        labels: how many labels each is the mean of, by way; empty for figures that are not a mean.
        chance: what is reached on the rows and labels of each way without looking at an image, by way; ``None`` where
            that can be any number.
        chance_of: what that is, in words.
        sentence: what the difference between the columns is made of.
    """

    name: str
    title: str
    claimed: float | None
    estimates: Mapping[str, Estimate]
    labels: Mapping[str, int]
    chance: Mapping[str, float | None]
    chance_of: str
    sentence: str

    def fewer(self, way: str) -> str:
        """Return of how many labels the figure of a way is the mean, where others have more; else nothing."""
        own, most = self.labels.get(way), max(self.labels.values(), default=0)
        return "" if own in (None, most) else f"mean over {own} labels, not {most}"

    def baseline(self, way: str) -> float | None:
        """Return what is reached on the rows of a way without looking at an image; ``None`` where it is not known."""
        found = self.chance.get(way)
        return None if found is None or math.isnan(found) else found

    @property
    def same_chance(self) -> float | None:
        """The baseline of every way where it is one number, as the 0.5 of AUROC is; else ``None``."""
        found = {self.baseline(name) for name in WAYS}
        return found.pop() if len(found) == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        estimates = {name: estimate.to_dict() for name, estimate in self.estimates.items()}
        chance = {name: self.baseline(name) for name in self.estimates}
        return {**vars(self), "estimates": estimates, "labels": dict(self.labels), "chance": chance}
