"""``log.csv`` has one row per epoch, the same after a resume, and its curves can be looked at."""

from __future__ import annotations

import csv
import math
import time

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from PIL import Image
from training_data import data_module, image_split, trainer

from medzoo import ClassificationTask
from medzoo.training.epoch_log import COLUMNS, WALL_CLOCK, EpochLog, draw_curves
from medzoo.training.losses import ClassificationLoss
from medzoo.training.recipe import OptimizerSection, ScheduleSection

pytestmark = pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning")


class Keep(Checkpoint):
    """Saves after a batch and at the end of each epoch, as medzoo's keeper does, without random numbers."""

    def __init__(self, folder, after):
        self.folder, self.after = folder, after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.after:
            self.place = pl_module.trainer.datamodule.train_loader.state_dict()
            trainer.save_checkpoint(self.folder / "middle.ckpt")

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


class SetPlace(pl.Callback):
    def __init__(self, place):
        self.place = place

    def on_train_start(self, trainer, pl_module):
        trainer.datamodule.train_loader.load_state_dict(self.place)


def run(folder, *, ckpt_path=None, place=None, callbacks=(), **options):
    model, split, pixels = image_split(seeded=True)
    model.head.dropout.p = 0.0
    task = ClassificationTask(
        model, optimizer=OptimizerSection(lr=1e-2), schedule=ScheduleSection(kind="cosine", warmup=0.25)
    )
    log = EpochLog(folder, **options)
    keep = Keep(folder, after=6)
    folder.mkdir(exist_ok=True)
    fit = trainer(
        callbacks=[log, keep, *callbacks, *([SetPlace(place)] if place else [])],
        max_epochs=3,
        enable_checkpointing=True,
    )
    fit.fit(task, datamodule=data_module(split, pixels), ckpt_path=ckpt_path, weights_only=True)
    return log, keep, task


def read(folder):
    with (folder / "log.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in WALL_CLOCK} for row in csv.DictReader(file)]


def test_a_row_for_each_epoch(tmp_path):
    clock = iter(range(1000))
    log, _, task = run(tmp_path, wait=lambda: next(clock) * 1e-6)
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "4"), ("2", "8"), ("3", "12")]
    last = {name: float(value) for name, value in rows[-1].items()}
    assert last["valid_loss"] == pytest.approx(ClassificationLoss("bce")(*task.predictions[1:]).item())
    assert last["valid_n_auroc"] == 1
    assert 0 < last["lr"] < float(rows[0]["lr"])
    assert last["seconds"] > 0
    assert last["samples_per_second"] >= 16 / last["seconds"]
    assert 0 < last["data_wait_share"] < 1
    assert log.rows[-1] == last


def test_the_loss_is_the_mean_over_the_rows_of_the_epoch(tmp_path):
    seen = []

    class Watch(pl.Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            seen.append(loss.item())

    log, _, _ = run(tmp_path, callbacks=[Watch()], draw=False)
    assert log.rows[0]["loss"] == pytest.approx(sum(seen[:4]) / 4)
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("name", ["middle.ckpt", "1.ckpt"])
def test_a_resumed_training_writes_the_same_rows(tmp_path, name):
    began = time.perf_counter()
    _, keep, _ = run(tmp_path / "whole", draw=False)
    place = keep.place if name == "middle.ckpt" else {"epoch": 2, "done": 0}
    resumed, _, _ = run(tmp_path / "resumed", ckpt_path=tmp_path / "whole" / name, place=place, draw=False)
    assert read(tmp_path / "whole") == read(tmp_path / "resumed")
    assert len(resumed.rows) == 3
    assert all(row["seconds"] > 0 for row in resumed.rows)
    assert sum(row["seconds"] for row in resumed.rows) < time.perf_counter() - began, "of both runs together"


def test_accumulation_does_not_change_the_scale_of_the_loss(tmp_path):
    model, split, pixels = image_split(seeded=True)
    log = EpochLog(tmp_path, draw=False)
    fit = trainer(callbacks=[log], max_epochs=1, accumulate_grad_batches=2)
    fit.fit(ClassificationTask(model), datamodule=data_module(split, pixels))
    assert log.rows[0]["loss"] == pytest.approx(fit.callback_metrics["loss"].item())


def test_what_is_not_known_is_empty(tmp_path):
    log, _, _ = run(tmp_path, draw=False)
    with (tmp_path / "log.csv").open(newline="") as file:
        assert {row["data_wait_share"] for row in csv.DictReader(file)} == {""}
    assert math.isnan(log.rows[0]["data_wait_share"])


def test_curves_are_legible_on_light_and_dark_pages(tmp_path):
    import matplotlib.pyplot as plt

    before = dict(plt.rcParams), plt.get_fignums()
    rows = [dict.fromkeys(COLUMNS, 0.5 / (i + 1)) | {"epoch": i + 1, "valid_auroc": math.nan} for i in range(3)]
    draw_curves(rows, tmp_path / "figures" / "curves.png")
    assert (dict(plt.rcParams), plt.get_fignums()) == before
    with Image.open(tmp_path / "figures" / "curves.png") as image:
        pixels = torch.from_numpy(np.array(image.convert("RGBA")).reshape(-1, 4))
    assert image.width > 1000
    opaque = pixels[pixels[:, 3] > 200, :3].float().mean(1)
    assert (pixels[:, 3] == 0).float().mean() > 0.5
    assert ((opaque > 40) & (opaque < 215)).all()


def test_the_end_draws_the_curves(tmp_path):
    run(tmp_path)
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["curves.png"]
