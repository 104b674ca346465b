"""Small tables, splits and models that the tests of training share."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

import medzoo
from medzoo.data.pixels import PixelStore
from medzoo.data.split import _MADE, Part, Split, split_from_column
from medzoo.data.table import Table
from medzoo.training.datamodule import ImageDataModule


def part_of(targets: Any, rows: Any = None) -> Part:
    """Return a training part with these targets; its images are blank."""
    values = np.asarray(targets, np.float32)
    names = ("first", "second", "third")[: values.shape[1]]
    table = Table(
        ids=np.array([f"row {i}" for i in range(len(values))]),
        targets=values,
        labels=names,
        task="multilabel" if len(names) > 1 else "binary",
        arrays=np.zeros((len(values), 1, 4, 4), np.uint8),
    )
    return Part(table, np.arange(len(values)) if rows is None else np.asarray(rows), "train", made=_MADE)


def image_split(
    name: str = "xray_cnn", n: int = 24, valid: int = 8, labels: Any = None, *, seeded: bool = False
) -> tuple[Any, Split, PixelStore]:
    """Return a tiny model, a split of random images whose brightness follows the label, and their pixels."""
    spec = medzoo.describe(name)
    rng = np.random.default_rng(0)
    given = np.asarray(labels if labels is not None else np.arange(n) % 2)
    positive = np.nan_to_num(given if given.ndim == 1 else given[:, 0])
    ones = [1] * (1 + len(spec.tiny_size))
    images = rng.integers(0, 160, (n, 1, *spec.tiny_size)) + 60 * positive.astype(int).reshape(n, *ones)
    groups = {"split": np.array(["train"] * (n - valid) + ["valid"] * valid)}
    table = Table.from_arrays(images.astype(np.uint8), given, groups=groups, blank="mask")
    if seeded:
        torch.manual_seed(0)
    model = medzoo.create(name, **dict(spec.tiny), in_chans=1, labels=table.labels, task=table.task)
    split = split_from_column(table, "split", patient_groups=False)
    return model, split, PixelStore(table, medzoo.transform(model), cache="memory")


def data_module(split: Split, pixels: Any, **options: Any) -> ImageDataModule:
    """Return the loaders, with batches of 4."""
    return ImageDataModule(split, pixels, **{"batch_size": 4} | options)


def trainer(**options: Any) -> pl.Trainer:
    """Return a silent trainer on the CPU."""
    silent: dict[str, Any] = {
        "max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
    }  # fmt: skip
    return pl.Trainer(**silent | options)
