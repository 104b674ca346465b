"""A training that is stopped anywhere and resumed ends with the same bits; the kills are in test_resume_kills.py."""

from __future__ import annotations

import functools
import logging
import os
import random
import signal
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from training_children import STEPS, Crash, Killer, TrainingServer, digest, recipe, setup

from medzoo.data.loader import PlacedLoader
from medzoo.errors import ConfigError, TrainError
from medzoo.kernels.cpu import conv_slabs, conv_training
from medzoo.training.checkpoints import find_checkpoint
from medzoo.training.environment import Environment, numeric_environment, resolve_environment
from medzoo.training.fit import fit
from medzoo.training.folder import is_finished, mark_finished

TWO = {"train": {"epochs": 2}}
SECTIONS: dict[str, dict[str, Any]] = {
    "plain": TWO,
    "every step": {"train": {"epochs": 2, "checkpoint_steps": 1}},
    # 8 batches: steps after 3, 6 and 8. Time asks for a checkpoint after every batch.
    "accumulate": {"train": {"epochs": 2, "accumulate": 3, "checkpoint_minutes": 1e-9}, "optimizer": {"clip": 0.1}},
    # No epoch is better than the first, so it stops after the third of five.
    "stop": {"train": {"epochs": 5, "stop_after": 2, "batchnorm": "frozen"}, "optimizer": {"lr": 1e-30}},
    "ema": {"train": {"epochs": 2, "ema": 0.9}},
    "frozen": {"train": {"epochs": 2, "ema": 0.9, "freeze": "encoder"}},
}


def run(folder: Path, name: str = "plain", **how: Any) -> tuple[str, int, list[float]]:
    """Train, and return the digest of the weights, the steps, and the losses of the validations."""
    made, killer = setup(recipe(**SECTIONS[name])), how.pop("killer", Killer())
    fit(made, folder, callbacks=[killer], **how)
    return digest(made.model), made.task.trainer.global_step, killer.losses


@functools.cache
def whole(name: str) -> tuple[str, int, list[float]]:
    """Return the result of a training that is not stopped."""
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), name)


def crash(folder: Path, name: str, place: str, at: int) -> None:
    with pytest.raises(Crash):
        run(folder, name, killer=Killer(place, at, 0))


def test_two_runs_of_one_recipe_are_equal_whatever_the_state_of_the_process(tmp_path):
    made = setup(recipe(**TWO))
    torch.manual_seed(99)
    torch.rand(5)
    fit(made, tmp_path)
    assert digest(made.model) == whole("plain")[0]
    assert made.task.trainer.global_step == 2 * STEPS


def test_trap_1_every_epoch_has_all_its_batches():
    loader = setup().data.train_loader
    orders = []
    for _ in range(3):
        batches = iter(loader)
        # Like a trainer that knows the length and never asks for a batch beyond the last.
        orders.append([next(batches).row.tolist() for _ in range(len(loader))])
        assert sorted(row for rows in orders[-1] for row in rows) == list(range(37))
    assert orders[0] != orders[1] != orders[2]


def test_trap_2_a_loader_draws_no_global_random_number():
    data = setup().data
    before = torch.get_rng_state()
    assert list(data.train_loader)
    assert list(data.valid_loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_trap_3_no_checkpoint_after_the_last_batch_so_that_its_validation_is_not_skipped(tmp_path):
    crash(tmp_path, "every step", "validation", 1)
    saved = find_checkpoint(tmp_path / "state")
    assert saved is not None
    assert saved.content["global_step"] == STEPS - 1
    assert run(tmp_path, "every step") == whole("every step")


def test_trap_4_the_place_after_an_epoch_s_end_is_restored(tmp_path):
    crash(tmp_path, "plain", "epoch_start", 1)
    digest, steps, losses = run(tmp_path)
    assert (digest, steps, losses) == (whole("plain")[0], 2 * STEPS, whole("plain")[2][1:])


def test_trap_5_no_checkpoint_in_the_middle_of_an_accumulation(tmp_path):
    crash(tmp_path, "accumulate", "batch", 5)
    saved = find_checkpoint(tmp_path / "state")
    assert saved is not None
    assert saved.content["global_step"] == 1
    assert run(tmp_path, "accumulate") == whole("accumulate")
    assert whole("accumulate")[1] == 6


def test_trap_6_killed_after_an_early_stop_it_does_not_train_on(tmp_path):
    assert whole("stop")[1] == 3 * STEPS
    crash(tmp_path, "stop", "train_end", 0)
    assert run(tmp_path, "stop")[:2] == whole("stop")[:2]


def test_killed_after_the_last_checkpoint_the_model_still_gets_the_average(tmp_path):
    assert whole("ema")[0] != whole("plain")[0]
    crash(tmp_path, "ema", "train_end", 0)
    assert run(tmp_path, "ema")[:2] == whole("ema")[:2]


@pytest.mark.parametrize("threads", [1, 2])
def test_stages_that_are_trained_by_slabs(threads, tmp_path, monkeypatch):
    """Such small maps would be computed by the plain layers."""
    monkeypatch.setattr(conv_slabs, "SMALL_MAP", 0)
    monkeypatch.setattr(conv_slabs, "LARGE_MAP", 0)
    monkeypatch.setitem(SECTIONS, "slabs", {"train": {"epochs": 2, "threads": threads}})
    stages = []
    apply = conv_training.PooledConv.apply
    monkeypatch.setattr(conv_training.PooledConv, "apply", lambda *given: stages.append(1) or apply(*given))
    expected = run(tmp_path / "whole", "slabs")
    assert len(stages) == 2 * STEPS * 3  # all three stages in every step
    crash(tmp_path / "a", "slabs", "batch", 5)
    assert run(tmp_path / "a", "slabs") == expected
    assert expected[0] != whole("plain")[0]  # sums are rounded otherwise


def test_a_frozen_encoder_stays_in_eval_mode_in_an_epoch_that_is_continued(tmp_path):
    crash(tmp_path, "frozen", "batch", 5)
    assert run(tmp_path, "frozen") == whole("frozen")


def test_the_average_of_a_frozen_weight_is_the_weight(tmp_path):
    made = setup(recipe(**SECTIONS["frozen"]))
    before = {name: value.clone() for name, value in made.model.encoder.state_dict().items()}
    fit(made, tmp_path)
    for name, value in made.model.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.slow
def test_one_killed_process(tmp_path):
    with TrainingServer() as children:
        assert children.train(tmp_path / "a", TWO, kill=("batch", 5)).wait() == -9
        child = children.train(tmp_path / "a", TWO)
        assert child.result()["digest"] == whole("plain")[0]


def test_the_two_newest_checkpoints_are_kept_and_hold_no_code(tmp_path):
    run(tmp_path)
    found = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert found == ["LOCK", "step-000000015.ckpt", "step-000000016.ckpt"]
    content = torch.load(tmp_path / "state" / found[1], weights_only=True)
    assert set(content["medzoo"]) == {"format", "rng", "rng_cuda", "place", "should_stop", "facts"}


def test_partial_files_of_a_killed_process_and_checkpoints_of_slurm_are_removed(tmp_path):
    (tmp_path / "state").mkdir()
    for name in (".1.2.partial", "hpc_ckpt_1.ckpt"):
        (tmp_path / "state" / name).write_bytes(b"x")
    assert run(tmp_path)[0] == whole("plain")[0]
    assert not [p for p in (tmp_path / "state").iterdir() if p.name.startswith((".", "hpc"))]


def test_a_finished_training_is_marked(tmp_path):
    (tmp_path / "state").mkdir()
    assert not is_finished(tmp_path)
    mark_finished(tmp_path)
    assert is_finished(tmp_path)


def test_a_state_that_could_not_be_read_again_is_found_at_the_first_checkpoint(tmp_path):
    class Bad(pl.Callback):
        def state_dict(self):
            return {"path": Path("x")}

    with pytest.raises(TrainError, match=r"pathlib\.\w+.*Change what its state_dict returns"):
        fit(setup(recipe(**TWO)), tmp_path, callbacks=[Bad()])
    assert not list((tmp_path / "state").glob("*.ckpt"))


def settings() -> tuple[Any, ...]:
    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.is_grad_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.get_rng_state().tolist(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
        logging.getLogger("lightning.pytorch").level,
        list(warnings.filters),
    )


def test_settings_of_the_process_are_restored_also_after_an_error(tmp_path):
    made, before = setup(recipe(**TWO)), settings()
    with pytest.raises(Crash):
        fit(made, tmp_path, callbacks=[Killer("batch", 9, 0)])
    assert settings() == before
    made, before = setup(recipe(**TWO)), settings()
    fit(made, tmp_path)
    assert settings() == before


def test_nothing_draws_from_the_random_numbers_of_python_or_numpy(tmp_path, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a global random number")

    made = setup(recipe(**TWO))
    for name in ("random", "randint", "seed", "shuffle", "choice", "uniform"):
        monkeypatch.setattr(random, name, refuse)
    for name in ("rand", "randn", "random", "randint", "seed", "shuffle", "choice", "uniform", "permutation"):
        monkeypatch.setattr(np.random, name, refuse)
    fit(made, tmp_path)
    assert digest(made.model) == whole("plain")[0]


def test_a_training_in_another_thread_has_no_handlers_and_the_same_weights(tmp_path):
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run(tmp_path)))
    thread.start()
    thread.join()
    assert found == [whole("plain")]


def test_two_trainings_in_one_process_at_once_are_refused():
    environment = Environment(torch.device("cpu"), "float32", 1, channels_last=False)
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with numeric_environment(environment, 0):
                pass
        except ConfigError as error:
            errors.append(error)

    with numeric_environment(environment, 0), numeric_environment(environment, 1):  # nested it is allowed
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert "another thread of this process trains" in str(errors[0])


def test_auto_is_resolved_by_features(monkeypatch):
    train = recipe(train={"device": "auto", "threads": None}).train
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = resolve_environment(train, 3)
    assert (found.device.type, found.precision, found.channels_last) == ("cpu", "float32", False)
    assert found.threads == torch.get_num_threads()
    assert "no CUDA device" in found.why[0]
    assert resolve_environment(train, 3, threads=5).threads == 5
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, precision in (((7, 5), "float32"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        found = resolve_environment(train, 2)
        assert (found.device.type, found.precision) == ("cuda", precision)
        assert found.channels_last == (precision == "bf16")
        assert not resolve_environment(train, 3).channels_last


def test_bf16_on_a_cpu_trains_and_resumes(tmp_path):
    sections = {"train": {"epochs": 1, "precision": "bf16"}}
    made = setup(recipe(**sections))
    fit(made, tmp_path / "a")
    with pytest.raises(Crash):
        fit(setup(recipe(**sections)), tmp_path / "b", callbacks=[Killer("batch", 5, 0)])
    again = setup(recipe(**sections))
    fit(again, tmp_path / "b")
    assert digest(again.model) == digest(made.model)


def test_the_place_is_independent_of_the_loader_object():
    data = setup().data
    batches = iter(data.train_loader)
    for _ in range(3):
        next(batches)
    other: PlacedLoader = setup().data.train_loader
    other.load_state_dict(data.train_loader.state_dict())
    assert [b.row.tolist() for b in other] == [b.row.tolist() for b in batches]


def test_write_atomically_with_fsync(tmp_path):
    from medzoo.atomic import write_atomically

    write_atomically(tmp_path / "a", b"1", fsync=True)
    write_atomically(tmp_path / "a", lambda file: file.write(b"22"), fsync=True)
    assert (tmp_path / "a").read_bytes() == b"22"

    def fail(file: Any) -> None:
        file.write(b"3")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_atomically(tmp_path / "a", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"22"
