"""Loaders: the same batches for any number of workers, every row once, a place, and what happens when a worker ends."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import threading
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from part_data import drawn_part, stored
from training_data import data_module, image_split

from medzoo.data.dataset import Rows
from medzoo.data.loader import PlacedLoader, explain_lost_workers
from medzoo.errors import ConfigError, DataError, TrainError
from medzoo.transforms.augment import Augmentation, Augmenter

EVERYTHING = Augmentation(
    flip=("x", "z"), rotate=20, translate=0.1, scale=(0.9, 1.2), crop=(0.7, 1.0), contrast=0.3, brightness=0.2,
    gamma=(0.8, 1.2), noise=0.1, blur=1.0,
)  # fmt: skip


def loader(n=7, batch=3, *, cache="memory", augmentation=None, size=8, shuffle=True, **options):
    """Return a loader of n drawn volumes."""
    part = drawn_part(n, size=size)
    pixels = stored(part, size=size, cache=cache)
    augmenter = augmentation and Augmenter(augmentation, pixels.transform.preprocessing)
    return PlacedLoader(Rows(part, pixels, augmenter, 5), batch, seed=5, shuffle=shuffle, **options)


def rows(batches):
    return [batch.row.tolist() for batch in batches]


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    if multiprocessing.active_children():  # an error that a test caught has the frames of its loader
        gc.collect()
    wait_for(lambda: not multiprocessing.active_children())


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("n", "batch", "sizes"),
    [(7, 3, [3, 4]), (8, 3, [3, 3, 2]), (6, 3, [3, 3]), (4, 9, [4]), (3, 1, [1, 1, 1]), (3, 2, [3]), (2, 2, [2])],
)
def test_fault_112_every_row_is_delivered_once_and_none_alone(n, batch, sizes, shuffle):
    given = loader(n, batch, shuffle=shuffle)
    assert len(given) == len(sizes)
    found = rows(given)
    assert [len(batch) for batch in found] == sizes
    assert sorted(row for batch in found for row in batch) == list(range(n))


def test_fault_112_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"the train part: expected 2 rows or more, got 0\. Change the split"):
        loader(0)
    with pytest.raises(ConfigError, match=r"expected 2 rows or more, got 1\. BatchNorm cannot train on one"):
        loader(1)
    assert rows(loader(1, shuffle=False)) == [[0]]
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ConfigError, match="expected batch_size to be an int >= 1"):
            loader(4, wrong)
    with pytest.raises(ConfigError, match="expected workers to be an int >= 0"):
        loader(4, workers=-1)


def test_the_order_follows_from_seed_and_epoch():
    given = loader(9, 4)
    first, second = rows(given), rows(given)
    assert (given.epoch, given.done) == (1, 3 - 1)
    assert first != second
    again = loader(9, 4)
    assert [rows(again), rows(again)] == [first, second]


def test_without_shuffling_each_iteration_is_the_same():
    given = loader(5, 2, shuffle=False)
    next(iter(given))
    assert rows(given) == rows(given) == [[0, 1], [2, 3, 4]]
    assert given.epoch == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_place_is_gone_to(workers):
    whole = loader(9, 2, augmentation=EVERYTHING)
    expected = [*whole, *whole]
    for stop in (0, 1, 3, 4, 6) if workers == 0 else (3,):
        first = loader(9, 2, augmentation=EVERYTHING, workers=workers)
        for _ in range(stop // len(first)):
            list(first)
        if stop % len(first):
            iterator = iter(first)
            for _ in range(stop % len(first)):
                next(iterator)
        second = loader(9, 2, augmentation=EVERYTHING, workers=workers)
        second.load_state_dict(first.state_dict())
        rest = list(second) if stop % len(first) else []
        got = [*rest, *second]
        count = len(got) if stop < 4 else 4
        for given, other in zip(got[:count], expected[stop:], strict=False):
            assert all(map(same, given, other))
    second.close()


def same(a, b):
    return torch.equal(a.nan_to_num(9), b.nan_to_num(9))


def test_a_place_that_is_none_is_refused():
    given = loader(9, 2)
    with pytest.raises(ConfigError, match="expected up to 4 batches of an epoch, got 5"):
        given.load_state_dict({"epoch": 0, "done": 5})
    with pytest.raises(ConfigError, match="expected epoch to be an int >= 0, got None"):
        given.load_state_dict({"done": 1})


@pytest.mark.parametrize("cache", ["memory", "off"])
def test_fault_109_0_and_4_workers_give_the_same_bits(cache, many_cores):
    """At 40 voxels a side PyTorch divides sums between threads, of which a worker has one."""
    none, four = (loader(4, 2, cache=cache, augmentation=EVERYTHING, size=40, workers=w) for w in (0, 4))
    for _ in range(1 + (cache == "memory")):
        for a, b in zip(none, four, strict=True):
            assert all(map(same, a, b))
    four.close()


def test_workers_live_from_epoch_to_epoch():
    given = loader(6, 2, workers=2)
    first = rows(given)
    pids = {process.pid for process in multiprocessing.active_children()}
    assert len(pids) == 2
    assert rows(given) != first
    assert {process.pid for process in multiprocessing.active_children()} == pids
    given.close()
    wait_for(lambda: not multiprocessing.active_children())
    assert len(rows(given)) == 3


def test_workers_end_with_their_loader():
    given = loader(4, 2, workers=2)
    assert len(rows(given)) == 2
    assert len(multiprocessing.active_children()) == 2
    gc.disable()
    try:
        del given
        wait_for(lambda: not multiprocessing.active_children())
    finally:
        gc.enable()


@pytest.mark.parametrize("way", ["break", "error", "drop"])
def test_an_iteration_that_is_left_ends_its_workers(way):
    given = loader(8, 2, workers=2)

    def leave():
        for _ in given:
            if way == "error":
                raise KeyError
            break

    if way == "error":
        with pytest.raises(KeyError):
            leave()
    elif way == "break":
        leave()
    else:
        iterator = iter(given)
        next(iterator)
        del iterator
    wait_for(lambda: not multiprocessing.active_children())
    assert len(rows(given)) == 3  # the others of this epoch


def test_two_iterations_at_once_are_refused():
    given = loader(8, 2)
    first, second = iter(given), iter(given)
    next(first)
    next(second)
    with pytest.raises(ConfigError, match="iterated twice at once"):
        next(first)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [6, 7, 13, 14, 17])
def test_processes_share_each_batch(n, world):
    alone = loader(n, 6)
    shares = [loader(n, 6, rank=rank, world=world) for rank in range(world)]
    if world == 1:
        assert rows(alone) == rows(shares[0])
        return
    for together in zip(*(given.batches() for given in shares), strict=True):
        sizes = [len(share) for share in together]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 2 or n < 2 * world
    whole = [position for batch in alone.batches() for _, position in batch]
    shared = [p for parts in zip(*(given.batches() for given in shares), strict=True) for s in parts for _, p in s]
    assert sorted(shared) == sorted(whole) == list(range(n))
    if n % 6 == 0:
        assert shares[1].batches()[0] == alone.batches()[0][1::world]


def test_shares_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="expected a batch_size that 2 processes share equally, got 3"):
        loader(6, 3, world=2)
    with pytest.raises(ConfigError, match="expected rank to be below world, got 2 of 2"):
        loader(6, 4, rank=2, world=2)
    with pytest.raises(ConfigError, match="expected 4 rows or more, got 3"):
        loader(3, 4, world=4)


@pytest.mark.parametrize(
    ("batch_size", "n", "cause"),
    [
        (3, 8, "expected a batch_size that 2 processes share equally, got 3"),
        (1, 8, "expected a batch_size that 2 processes share equally, got 1"),
        (2, 1, "the valid part: expected 2 rows or more, got 1"),
    ],
)
def test_a_trainer_whose_processes_cannot_share_a_batch_is_refused(batch_size, n, cause):
    _, split, pixels = image_split(n=8 + n, valid=n)
    module = data_module(split, pixels, batch_size=batch_size)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    module.trainer = SimpleNamespace(global_rank=1, world_size=2, strategy=strategy)
    with pytest.raises(ConfigError, match=cause):
        module.setup("fit")


def test_the_process_of_a_trainer_gets_its_share():
    _, split, pixels = image_split()
    module = data_module(split, pixels)
    module.trainer = SimpleNamespace(
        global_rank=1, world_size=2, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    module.setup("fit")
    assert [len(batch.row) for batch in module.val_dataloader()] == [2, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_fault_108_a_row_that_fails_is_named(tmp_path, workers):
    part = drawn_part(4, folder=tmp_path)
    pixels = stored(part, cache="off")
    (tmp_path / "2.npy").write_bytes(b"no array")  # after all were read once
    given = PlacedLoader(Rows(part, pixels), 2, workers=workers)
    with pytest.raises(DataError, match=r"the table, line 2 \(2\.npy\): .*2\.npy") as caught:
        list(given)
    assert "Traceback" not in str(caught.value)
    assert not getattr(caught.value, "__notes__", [])


class Fails:
    """An augmenter with a fault of its own."""

    def __init__(self, error):
        self.error = error

    def __call__(self, image, seed):
        raise self.error


@pytest.mark.parametrize("workers", [0, 2])
def test_fault_108_a_fault_of_the_program_keeps_its_traceback(workers):
    part = drawn_part(4)
    given = PlacedLoader(Rows(part, stored(part), Fails(KeyError("q"))), 2, workers=workers)
    with pytest.raises(DataError, match=r"line 0 \(array 0\): KeyError: 'q'") as caught:
        list(given)
    assert "in __call__" in caught.value.__notes__[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_memory_keeps_its_type(workers):
    part = drawn_part(4)
    given = PlacedLoader(Rows(part, stored(part), Fails(MemoryError("full"))), 2, workers=workers)
    with pytest.raises(MemoryError) as caught:
        list(given)
    assert "while reading the table, line 0" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


class Slow:
    """An augmenter that takes a second."""

    def __call__(self, image, seed):
        time.sleep(1)
        return image


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGBUS])
def test_fault_107_a_worker_that_is_killed(sent):
    part = drawn_part(6)
    given = PlacedLoader(Rows(part, stored(part), Slow()), 2, workers=2)

    def kill():
        wait_for(lambda: len(multiprocessing.active_children()) == 2)
        time.sleep(0.3)
        os.kill(multiprocessing.active_children()[0].pid, sent)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(TrainError, match=r"batches ended: DataLoader worker .* such as workers=0, a smaller batch"):
        next(iter(given))
    thread.join()


def test_fault_107_only_that_error_is_explained():
    for error in (RuntimeError("mat1 and mat2"), TrainError("killed by signal"), KeyError("shared memory")):
        with pytest.raises(type(error)) as caught, explain_lost_workers(2):
            raise error
        assert caught.value is error
    lost = RuntimeError("Caught RuntimeError\n unable to write to file in shared memory </torch_1>: No space left")
    with pytest.raises(TrainError, match="ended: unable to write"), explain_lost_workers(2):
        raise lost


def test_workers_beyond_the_cores_are_warned_about(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2), raising=False)
    with pytest.warns(UserWarning, match="3 workers on 2 cores take turns"):
        loader(4, workers=3)


def test_no_global_random_numbers_are_used(monkeypatch):
    """One training epoch; workers are processes of their own, which PyTorch seeds."""

    def refuse(*_, **__):
        raise AssertionError("global random numbers")

    for name in ("random", "randint", "uniform", "shuffle", "choice", "seed", "getrandbits", "gauss"):
        monkeypatch.setattr(random, name, refuse)
    for name in ("rand", "randn", "random", "uniform", "normal", "randint", "choice", "shuffle", "permutation", "seed"):
        monkeypatch.setattr(np.random, name, refuse)
    given, before = loader(6, 2, augmentation=EVERYTHING), torch.get_rng_state()
    assert len(list(given)) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_are_of_a_split():
    part = drawn_part(4)
    pixels = stored(part)
    for wrong in (part.table, part.rows, [0, 1]):
        with pytest.raises(ConfigError, match=r"Rows: expected a part of a split, got \w+\. Make a split"):
            Rows(wrong, pixels)
    with pytest.raises(ConfigError, match="4 rows, got those of a table of 3"):
        Rows(part, stored(drawn_part(3)))


def test_it_works_in_lightnings_trainer():
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):
        seen = ()

        def training_step(self, batch, index):
            self.seen += ((self.trainer.current_epoch, tuple(batch.row.tolist())),)

        def validation_step(self, batch, index):
            pass

        def configure_optimizers(self):
            return None

    train, valid, module = loader(9, 4, workers=1), loader(3, 2, shuffle=False), Module()
    plain = loader(9, 4)
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    with warnings.catch_warnings(action="ignore"):
        trainer.fit(module, train, valid)
    assert module.seen == tuple((epoch, tuple(batch)) for epoch in range(3) for batch in rows(plain))
    train.close()


@pytest.mark.slow  # 45 s
def test_memory_stays_flat_over_40_epochs_with_4_workers(many_cores):
    def resident():
        """Return the bytes that this process and its workers have allocated and touched.

        A page that is shared until it is copied on write counts in each process before and after, so that only memory
        which is newly allocated makes the sum grow.
        """
        pids = [os.getpid(), *(process.pid for process in multiprocessing.active_children())]
        total = 0
        for pid in pids:
            with open(f"/proc/{pid}/smaps_rollup") as file:  # noqa: PTH123
                total += sum(int(line.split()[1]) for line in file if line.startswith("Anonymous:")) * 1024
        return total

    given = loader(200, 8, augmentation=EVERYTHING, size=24, workers=4)
    used = []
    for _ in range(40):
        for _batch in given:
            pass
        gc.collect()
        used.append(resident())
    given.close()
    # A leak grows in every epoch, the allocator in steps.
    growth = float(np.median(np.diff(used[20:])))
    assert growth < 0.25 * 2**20, [round(u / 2**20, 1) for u in used]
