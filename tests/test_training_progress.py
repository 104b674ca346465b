"""The progress of a training, its speed, and the advice."""

from __future__ import annotations

import io
import logging
import sys

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.profilers import SimpleProfiler
from torch.utils.data import DataLoader

from medzoo.training.progress import TrainingProgress, duration
from medzoo.training.wait import Speed, WaitProfiler, advise

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*does not have many workers", "ignore:.*log_")


class Line(pl.LightningModule):
    """A line, in Lightning's terms alone: the callbacks are for any module."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        loss = (self.line(batch[0]) - batch[1]).square().mean()
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch, index):
        self.log("valid_loss", self.line(batch[0]).square().mean(), batch_size=len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Slow(torch.utils.data.TensorDataset):
    """Takes a clock's time for each row."""

    def __init__(self, clock, seconds):
        super().__init__(torch.ones(8, 1), torch.ones(8, 1))
        self.clock, self.seconds = clock, seconds

    def __getitem__(self, index):
        self.clock.now += self.seconds
        return super().__getitem__(index)


class Clock:
    """A time that only moves when it is moved."""

    now = 0.0

    def __call__(self):
        return self.now


def train(callbacks, *, rows=None, epochs=2, profiler=None):
    rows = rows or torch.utils.data.TensorDataset(torch.ones(8, 1), torch.ones(8, 1))
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, callbacks=callbacks, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, profiler=profiler,
    )  # fmt: skip
    trainer.fit(Line(), DataLoader(rows, 4), DataLoader(rows, 4))
    return trainer


def test_speed_counts_rows_waits_and_validation_apart(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("medzoo.training.wait.time.perf_counter", clock)
    speed = Speed(clock)

    class Work(pl.Callback):
        def on_train_batch_start(self, *_):
            clock.now += 6.0

        def on_validation_batch_start(self, *_):
            clock.now += 100.0

    train([Work(), speed], rows=Slow(clock, 0.5))
    # 2 epochs of 2 batches of 4 rows: 2 s to load and 6 s to work on each.
    assert (speed.samples, len(speed.valid_step_seconds)) == (16, 4)
    assert speed.train_seconds == pytest.approx(32)
    assert speed.wait_seconds == pytest.approx(8)
    assert speed.data_wait_share == pytest.approx(0.25)
    assert speed.samples_per_second == pytest.approx(0.5)
    assert speed.valid_seconds == pytest.approx(4 * 102)
    assert speed.step_seconds == pytest.approx([8, 8])


def test_a_profiler_of_the_user_stays():
    speed = Speed()
    trainer = train([speed], profiler=SimpleProfiler(), epochs=1)
    assert isinstance(trainer.profiler, SimpleProfiler)
    assert speed.data_wait_share is None
    assert speed.samples_per_second > 0


def test_other_actions_cost_the_profiler_nothing_but_a_comparison():
    profiler = WaitProfiler()
    for _ in range(3):
        with profiler.profile("run_training_batch"):
            pass
    profiler.stop("[_TrainingEpochLoop].train_dataloader_next")  # without a start
    assert profiler.seconds == 0


def test_without_a_terminal_there_is_a_line_for_each_epoch(caplog, capsys):
    speed = Speed()
    with caplog.at_level(logging.INFO, "medzoo"):
        train([speed, TrainingProgress(speed)], epochs=3)
    lines = [record.getMessage() for record in caplog.records if record.name == "medzoo"]
    lines = [line for line in lines if line.startswith("epoch")]  # a machine that waits gives advice too
    assert [line.split(" · ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    for part in ("loss ", "valid_loss ", "samples/s", "data wait ", " left"):
        assert part in lines[0]
    assert " left" not in lines[2]
    assert capsys.readouterr().out == ""


def test_in_a_terminal_there_is_a_bar(monkeypatch, caplog):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("MEDZOO_PROGRESS", raising=False)
    speed = Speed()
    with caplog.at_level(logging.INFO, "medzoo"):
        train([speed, TrainingProgress(speed)])
    assert "2/2 · loss" in screen.getvalue()
    assert "epoch 2/2 · loss" in screen.getvalue()
    assert "data wait" in screen.getvalue()
    assert not [record for record in caplog.records if record.name == "medzoo"]


def test_the_bar_is_closed_when_the_training_fails(monkeypatch):
    class Fails(pl.Callback):
        def on_train_batch_end(self, *_):
            raise ValueError("a fault")

    closed = []
    speed = Speed()
    progress = TrainingProgress(speed)
    monkeypatch.setattr(progress, "_close", lambda: closed.append(True))
    with pytest.raises(ValueError, match="a fault"):
        train([speed, progress, Fails()])
    assert closed == [True]


def test_one_piece_of_advice_where_a_tenth_of_the_time_waits(monkeypatch, caplog):
    clock = Clock()
    monkeypatch.setattr("medzoo.training.wait.time.perf_counter", clock)
    speed = Speed(clock)
    progress = TrainingProgress(speed, cache="off")
    with caplog.at_level(logging.INFO, "medzoo"):
        train([speed, progress], rows=Slow(clock, 0.5), epochs=1)
    assert (
        progress.advice == "100 % of the training time waited for data. Keep the preprocessed images: data.cache=disk."
    )
    assert [record.getMessage() for record in caplog.records if record.name == "medzoo"][-1] == progress.advice


@pytest.mark.parametrize(
    ("share", "workers", "cache", "cores", "advice"),
    [
        (None, 0, "off", 8, ""),
        (0.1, 0, "off", 8, ""),
        (0.2, 0, "off", 8, "data.cache=disk."),
        (0.2, 0, "disk", 8, "train.workers=2."),
        (0.2, 4, "memory", 16, "train.workers=8."),
        (0.2, 0, "disk", 2, "train.workers=1."),
        (0.2, 1, "disk", 2, "Use a smaller size, or less augmentation."),
        (0.2, 0, "disk", 1, "Use a smaller size, or less augmentation."),
    ],
)
def test_advice(share, workers, cache, cores, advice):
    text = advise(share, workers, cache, cores)
    assert text.endswith(advice)
    assert bool(text) == bool(advice)


@pytest.mark.parametrize(("seconds", "text"), [(0.0004, "0.4 ms"), (59.6, "1 min 0 s"), (3600, "1 h 0 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text
