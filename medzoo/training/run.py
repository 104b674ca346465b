"""``medzoo.train`` and ``medzoo.resume``: from a table to a trained model in a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from medzoo.classifier import Classifier
from medzoo.data.table import Table
from medzoo.training.fit import fit
from medzoo.training.recipe import Recipe
from medzoo.training.setup import set_up

__all__ = ["Run", "resume", "train"]


@dataclass(frozen=True, eq=False)
class Run:
    """A finished training.

    Attributes:
        model: the trained model, in eval mode.
        log: one row for each epoch, as in ``log.csv``.
        folder: everything that was written.
    """

    model: Classifier
    log: tuple[dict[str, float], ...]
    folder: Path


def train(recipe: Recipe, table: Table, *, to: str | os.PathLike[str]) -> Run:
    """Train a model."""
    folder = Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.train.seed)
    setup = set_up(recipe, table)
    fit(setup, folder)
    model = setup.model.eval()
    model.set_outputs(labels=table.labels, task=table.task)
    model.save_pretrained(folder / "model")
    return Run(model, (), folder)


def resume(folder: str | os.PathLike[str]) -> Run:
    """Go on with a training that was stopped."""
    raise NotImplementedError
