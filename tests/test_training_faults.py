"""What can end or spoil a training, and what is left: a message with the cause, and a checkpoint to go on from."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tensors import TINY
from training_children import STEPS, Crash, Killer, TrainingServer, digest, recipe, setup, table

import medzoo
from medzoo import registry
from medzoo.errors import ConfigError, TrainError
from medzoo.training import checkpoints, lock, numerics, signals
from medzoo.training.fit import fit
from medzoo.training.folder import check_folder, mark_finished
from medzoo.training.lock import lock_state
from medzoo.training.numerics import FiniteGuard
from medzoo.training.signals import TrainInterrupted

TWO = {"train": {"epochs": 2}}
ACCUMULATE = {"train": {"epochs": 2, "accumulate": 3, "checkpoint_steps": None}}


def train(folder: Path, *callbacks: pl.Callback, sections: Any = None, **how: Any) -> str:
    """Train, and return the digest of the weights."""
    made = setup(recipe(**(sections or TWO)))
    fit(made, folder, callbacks=callbacks, **how)
    return digest(made.model)


@functools.cache
def whole(accumulate: bool = False) -> str:
    """Return the digest of a training that is not stopped."""
    with tempfile.TemporaryDirectory() as folder:
        return train(Path(folder), sections=ACCUMULATE if accumulate else TWO)


@pytest.fixture(scope="module")
def crashed(tmp_path_factory) -> Path:
    """Return the folder of a training that was stopped after the checkpoints of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("crashed")
    with pytest.raises(Crash):
        train(folder, Killer("batch", 7, 0))
    return folder


@pytest.fixture
def stopped(crashed, tmp_path) -> Path:
    """Return a copy of that folder."""
    return Path(shutil.copytree(crashed, tmp_path / "run"))


def steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints."""
    return sorted(int(path.stem[5:]) for path in (folder / "state").glob("*.ckpt"))


@pytest.fixture(scope="module")
def children():
    with TrainingServer() as started:
        yield started


# Signals


@pytest.mark.parametrize(
    ("number", "code", "place", "saved"),
    [
        pytest.param(signal.SIGTERM, 143, ("batch", 5), 5, id="fault_98_sigterm"),
        pytest.param(signal.SIGINT, 130, ("batch", 5), 5, id="fault_99_sigint"),
        pytest.param(signal.SIGTERM, 143, ("batch", STEPS), STEPS, id="fault_98_at_the_last_batch"),
        pytest.param(signal.SIGTERM, 143, ("validation", 1), STEPS, id="fault_98_in_validation"),
    ],
)
def test_a_signal_saves_at_the_next_step(tmp_path, number, code, place, saved):
    with pytest.raises(TrainInterrupted, match=rf"stopped by {number.name}.*step {saved} .*medzoo.resume\(") as found:
        train(tmp_path, Killer(*place, number))
    assert found.value.exit_code == code
    assert steps(tmp_path)[-1] == saved
    assert train(tmp_path) == whole()


def test_fault_98_sigterm_in_an_accumulation_waits_for_its_step(tmp_path):
    with pytest.raises(TrainInterrupted, match="the checkpoint of step 2 is written"):
        train(tmp_path, Killer("batch", 4, signal.SIGTERM), sections=ACCUMULATE)
    assert train(tmp_path, sections=ACCUMULATE) == whole(accumulate=True)


@pytest.mark.parametrize("place", [("validation", 1), ("batch", 4)])
def test_fault_98_where_no_checkpoint_can_be_written_it_stops_after_a_while(tmp_path, monkeypatch, place):
    monkeypatch.setattr(signals, "GRACE", 0.0)
    with pytest.raises(TrainInterrupted, match="no further checkpoint was written"):
        train(tmp_path, Killer(*place, signal.SIGTERM), sections=ACCUMULATE)
    assert train(tmp_path, sections=ACCUMULATE) == whole(accumulate=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.slow
def test_fault_98_99_a_second_signal_exits_at_once(children, tmp_path, number, code):
    assert children.train(tmp_path / "run", TWO, kill=("batch", 5, number, 2)).wait() == code
    assert steps(tmp_path / "run") == [3]


def test_fault_98_a_handler_that_was_there_is_called_and_restored(tmp_path):
    seen = []

    def mine(*_: Any) -> None:
        seen.append(1)

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(TrainInterrupted):
            train(tmp_path, Killer("batch", 2, signal.SIGTERM))
        assert seen == [1]
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_fault_99_an_ignored_signal_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert train(tmp_path, Killer("batch", 2, signal.SIGINT)) == whole()
    finally:
        signal.signal(signal.SIGINT, before)


def test_fault_99_a_keyboard_interrupt_of_a_callback_does_not_exit_the_process(tmp_path):
    class Stop(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Stop())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_handler_with_which_slurm_requeues_stays(tmp_path, monkeypatch):
    found = []

    class Look(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            found.append(signal.getsignal(signal.SIGUSR1))

    for name in ("SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_JOB_NAME"):
        monkeypatch.setenv(name, "1")
    for name in ("SLURM_NODEID", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "0")
    assert train(tmp_path, Look()) == whole()
    assert "slurm" in found[0].signal_handlers[0].__name__
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


# Checkpoints


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    """Change one bit of a tensor, which PyTorch itself does not notice."""
    data = bytearray(path.read_bytes())
    content = torch.load(path, weights_only=True)
    tensor = max(content["state_dict"].values(), key=lambda t: t.numel())
    data[data.index(tensor.contiguous().numpy().tobytes()) + 3] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.write_bytes(b"")])
def test_fault_100_a_damaged_checkpoint_is_passed_over_with_a_warning(stopped, damage):
    assert steps(stopped) == [3, 6]
    damage(stopped / "state" / "step-000000006.ckpt")
    with pytest.warns(UserWarning, match=r"step-000000006.ckpt is damaged and is not used"):
        assert train(stopped) == whole()


def test_fault_100_with_all_damaged_nothing_is_deleted(stopped):
    for path in (stopped / "state").glob("*.ckpt"):
        truncate(path)
    before = {path: path.read_bytes() for path in (stopped / "state").glob("*.ckpt")}
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(TrainError, match=r"no checkpoint in .* is whole .*Nothing was deleted"),
    ):
        train(stopped)
    assert {path: path.read_bytes() for path in (stopped / "state").glob("*.ckpt")} == before


def test_fault_101_a_full_disk_leaves_the_old_checkpoint_and_a_warning(children, tmp_path):
    folder = tmp_path / "run"
    assert children.train(folder, TWO, kill=("batch", 5)).wait() == -9
    found = children.train(folder, TWO, limit=2000, until=0).result()
    assert found["digest"] == whole()
    assert len(found["warnings"]) == 1
    assert "step-000000003.ckpt, is intact. Training goes on" in found["warnings"][0]


def test_fault_101_after_three_failures_the_training_stops(children, tmp_path):
    folder = tmp_path / "run"
    assert children.train(folder, TWO, kill=("batch", 5)).wait() == -9
    found = children.train(folder, TWO, limit=2000).result()
    assert (found["error"], found["exit"], len(found["warnings"])) == ("TrainError", 6, 2)
    assert "File too large" in found["message"]
    assert "number 3 in a row: free some space and resume" in found["message"]
    assert steps(folder) == [3]
    assert not list((folder / "state").glob(".*"))
    assert children.train(folder, TWO).result()["digest"] == whole()


def test_fault_102_a_folder_is_checked_before_the_training(tmp_path, monkeypatch):
    check_folder(tmp_path / "new" / "run")
    check_folder(tmp_path / "new" / "run")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"new or an empty folder, got the file"):
        check_folder(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"cannot write to .*file/run: Not a directory"):
        check_folder(tmp_path / "file" / "run")
    with pytest.raises(ConfigError, match=r"is not empty. Choose another"):
        check_folder(tmp_path)
    run = tmp_path / "run"
    (run / "state").mkdir(parents=True)
    (run / "state" / "LOCK").touch()
    (run / "initial").mkdir()
    check_folder(run)  # of a training that was killed before it began
    (run / "run.json").touch()
    with pytest.raises(ConfigError, match=r"not finished. Continue it with medzoo.resume\("):
        check_folder(run)
    (run / "run.json").unlink()
    (run / "mine.txt").touch()
    with pytest.raises(ConfigError, match=r"is not empty. Choose another"):
        check_folder(run)
    (tmp_path / "state").mkdir()
    mark_finished(tmp_path)
    with pytest.raises(ConfigError, match="holds a finished training"):
        check_folder(tmp_path)

    def refuse(path: Path) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(ConfigError, match=r"cannot write to .*other: Permission denied"):
        check_folder(tmp_path / "other")


OTHERS: dict[str, tuple[Any, Any, str]] = {
    "recipe": ({"train": {"epochs": 3}}, None, r"train.epochs is 3, was 2"),
    "optimiser": ({**TWO, "optimizer": {"lr": 0.02}}, None, r"optimizer.lr is 0.02, was 0.01"),
    "seed": ({"train": {"epochs": 2, "seed": 5}}, None, r"train.seed is 5, was 0"),
    "model": ({**TWO, "model": {"options": {**TINY, "dropout": 0.2}}}, None, r"model.options.dropout is 0.2, was 0.3"),
    "images": (TWO, lambda: table(1), r"the images, their labels, or their split are not those"),
    "classes": (TWO, lambda: table(names=["ill"]), r"labels is \['ill'\], was \['.*'\]"),
    "threads": ({"train": {"epochs": 2, "threads": 2}}, None, r"threads is 2, was 1.*inexact=True"),
    "precision": ({"train": {"epochs": 2, "precision": "bf16"}}, None, r"precision is 'bf16', was 'float32'"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_fault_103_another_training_is_refused_with_the_difference(stopped, name):
    sections, images, message = OTHERS[name]
    made = setup(recipe(**sections), images() if images else None)
    with pytest.raises(ConfigError, match=message):
        fit(made, stopped)
    assert steps(stopped) == [3, 6]


def test_fault_103_another_state_format_is_refused(stopped, monkeypatch):
    monkeypatch.setattr(checkpoints, "STATE_FORMAT", 2)
    with pytest.raises(ConfigError, match=r"has state format 1, this medzoo continues format 2"):
        train(stopped)


def test_fault_103_the_fast_paths_are_a_numeric_choice(stopped):
    from medzoo import set_fast_paths

    with set_fast_paths(False), pytest.raises(ConfigError, match=r"fast_paths is 0, was 2"):
        train(stopped)


def test_fault_103_another_preprocessing_of_the_model_is_refused_though_the_recipe_is_the_same(stopped, monkeypatch):
    spec = medzoo.describe("cnn3d_small")
    other = replace(spec, preprocessing=replace(spec.preprocessing, resample="reference"))
    monkeypatch.setitem(registry._MODELS, "cnn3d_small", other)
    with pytest.raises(ConfigError, match=r"another training.*preprocessing.resample is 'reference', was 'triangle'"):
        train(stopped)


def test_fault_103_inexact_allows_other_numeric_choices_and_nothing_else(stopped):
    with pytest.raises(ConfigError, match=r"train.epochs is 3"):
        train(stopped, sections={"train": {"epochs": 3}}, inexact=True)
    with pytest.warns(UserWarning, match=r"resumed under other conditions.*threads is 2, was 1"):
        train(stopped, sections={"train": {"epochs": 2, "threads": 2}}, inexact=True)


def test_fault_103_threads_that_the_recipe_leaves_open_are_those_of_the_checkpoint(tmp_path):
    sections = {"train": {"epochs": 2, "threads": None}}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with pytest.raises(Crash):
            train(tmp_path, Killer("batch", 7, 0), sections=sections)
        torch.set_num_threads(2)
        assert train(tmp_path, sections=sections) == whole()
    finally:
        torch.set_num_threads(threads)


def test_what_does_not_change_the_weights_may_change(stopped):
    other = {"train": {"epochs": 2, "checkpoint_steps": None, "checkpoint_minutes": 1.0}}
    assert train(stopped, sections=other) == whole()


def test_fault_104_one_training_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    with (
        lock_state(tmp_path / "state"),
        pytest.raises(TrainError, match=rf"another process trains in this folder \(process {os.getpid()} on .*since"),
    ):
        train(tmp_path)
    assert train(tmp_path) == whole()


def test_fault_104_a_lock_that_cannot_be_made_names_the_cause(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(TrainError, match=r"cannot lock the folder \(.*File exists"):
        train(tmp_path)


# Numbers


class At(pl.Callback):
    """Calls a function at a hook when the training has taken so many steps."""

    def __init__(self, hook: str, step: int, what: Any) -> None:
        def call(trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
            if trainer.global_step == step:
                what(module, *args)

        setattr(self, hook, call)


def poison_weights(module: Any, *_: Any) -> None:
    next(module.parameters()).data.fill_(float("nan"))


def poison_gradients(module: Any, *_: Any) -> None:
    next(module.parameters()).grad.fill_(float("inf"))


@pytest.mark.parametrize(
    ("hook", "poison", "what"),
    [
        ("on_train_batch_start", poison_weights, "the loss is nan"),
        ("on_after_backward", poison_gradients, "the gradient is not finite"),
    ],
)
def test_fault_105_a_value_that_is_not_finite_stops_the_training(tmp_path, hook, poison, what):
    with pytest.raises(
        TrainError, match=rf"step 4 of epoch 0: {what}.*array \d+.*nan_batch.json.*optimizer.lr"
    ) as found:
        train(tmp_path, At(hook, 4, poison))
    assert found.value.exit_code == 6
    report = json.loads((tmp_path / "nan_batch.json").read_text())
    assert (report["step"], len(report["rows"])) == (4, 5)
    assert report["rows"][0]["id"] == f"array {report['rows'][0]['row']}"
    assert steps(tmp_path) == [3]
    assert train(tmp_path) == whole()


def guard(tmp_path: Path) -> tuple[FiniteGuard, Any, Any]:
    """Return a guard of a float16 training and what its hooks get: the trainer and the optimiser."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    trainer = SimpleNamespace(global_step=1, current_epoch=0, accumulate_grad_batches=1)
    return FiniteGuard(table(), tmp_path, scaled=True), trainer, torch.optim.SGD([parameter], 1.0)


def test_fault_105_float16_skips_ten_steps_in_a_row(tmp_path):
    found, trainer, optimizer = guard(tmp_path)
    module = torch.nn.BatchNorm1d(2)
    parameter = optimizer.param_groups[0]["params"][0]
    found.on_before_backward(trainer, module, torch.tensor(float("inf")))
    for bad in [*[True] * numerics.SKIPS, False, *[True] * numerics.SKIPS]:
        parameter.grad = torch.full((2,), float("inf") if bad else 1.0)
        found.on_before_optimizer_step(trainer, module, optimizer)
    with pytest.raises(TrainError, match="not finite in 11 steps in a row"):
        found.on_before_optimizer_step(trainer, module, optimizer)


def test_fault_105_float16_does_not_skip_a_step_that_has_spoiled_batchnorm(tmp_path):
    found, trainer, optimizer = guard(tmp_path)
    module = torch.nn.BatchNorm1d(2)
    module.running_mean.fill_(float("inf"))
    optimizer.param_groups[0]["params"][0].grad = torch.full((2,), float("inf"))
    with pytest.raises(TrainError, match="the gradient is not finite"):
        found.on_before_optimizer_step(trainer, module, optimizer)


def test_fault_106_a_nan_in_an_image_does_not_reach_batchnorm(tmp_path):
    made = setup(recipe(**TWO))
    seen: dict[str, torch.Tensor] = {}

    def poison(module: Any, batch: Any, index: int) -> None:
        seen.update({name: value.clone() for name, value in module.state_dict().items()})
        batch.image[1, 0, 0, 0, 0] = float("nan")

    with pytest.raises(TrainError, match=r"an image after preprocessing has NaN .* Rows: array \d+\. "):
        fit(made, tmp_path, callbacks=[At("on_train_batch_start", 4, poison)])
    assert len(json.loads((tmp_path / "nan_batch.json").read_text())["rows"]) == 1
    for name, value in made.task.state_dict().items():
        assert torch.equal(value, seen[name]), name


def test_early_stopping_on_a_metric_that_is_not_a_number_is_an_error(tmp_path):
    found = FiniteGuard(table(), tmp_path, monitor="valid_auroc")
    trainer: Any = SimpleNamespace(callback_metrics={"valid_auroc": torch.tensor(float("nan"))}, current_epoch=3)
    with pytest.raises(TrainError, match=r"valid_auroc is nan in epoch 3.*'valid_loss'"):
        found.on_train_epoch_end(trainer, None)


# Devices


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore."),
        MemoryError("cannot allocate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_fault_110_out_of_memory_gives_advice_and_keeps_the_checkpoint(tmp_path, error):
    def fail(*_: Any) -> None:
        raise error

    with pytest.raises(TrainError, match=r"batches of 5 images.*train.batch=2 and train.accumulate=2") as found:
        train(tmp_path, At("on_train_batch_start", 4, fail))
    assert found.value.exit_code == 6
    assert "More" not in str(found.value)
    assert steps(tmp_path) == [3]
    assert train(tmp_path) == whole()


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("cuda", "auto", r"'cuda' is not available: .*CUDA.* Use 'auto' or 'cpu'"),
        ("cuda:1", "auto", r"'cuda:1' is not available"),
        ("tpu", "auto", "expected auto, cpu, cuda or cuda:N, got 'tpu'"),
        ("mps", "auto", r"got 'mps'"),
        ("cpu", "fp16", r"precision 'fp16' needs a CUDA device"),
    ],
)
def test_fault_111_a_device_that_is_absent_is_refused(tmp_path, monkeypatch, device, precision, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, sections={"train": {"device": device, "precision": precision}})
