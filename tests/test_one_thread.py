"""PyTorch has its number of threads again after images were prepared, whatever happened meanwhile."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from medzoo.contract import Preprocessing
from medzoo.data.one_thread import one_thread
from medzoo.data.pixels import PixelStore
from medzoo.data.table import Table
from medzoo.transforms.transform import Transform


@pytest.fixture(autouse=True)
def three():
    """Let PyTorch use 3 threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def in_a_thread(function):
    """Return what a function returns in a new thread."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_are_as_before_also_after_an_error():
    with pytest.raises(ZeroDivisionError), one_thread():
        raise ZeroDivisionError
    assert torch.get_num_threads() == in_a_thread(torch.get_num_threads) == 3
    with one_thread(), one_thread():
        pass
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("first_out", ["first", "second"])
def test_two_threads_at_once_leave_no_1_behind(first_out):
    entered, leave = {}, {}
    numbers = {}

    def work(name):
        with one_thread():
            numbers[name, "inside"] = torch.get_num_threads()
            entered[name].set()
            leave[name].wait(10)
        numbers[name, "after"] = torch.get_num_threads()

    threads = {}
    for name in ("first", "second"):  # the second enters while the first is inside
        entered[name], leave[name] = threading.Event(), threading.Event()
        threads[name] = threading.Thread(target=work, args=(name,))
        threads[name].start()
        assert entered[name].wait(10)
    for name in sorted(threads, key=lambda one: one != first_out):
        leave[name].set()
        threads[name].join(10)
    assert numbers == {
        ("first", "inside"): 1, ("first", "after"): 3, ("second", "inside"): 1, ("second", "after"): 3,
    }  # fmt: skip
    assert torch.get_num_threads() == in_a_thread(torch.get_num_threads) == 3


def test_two_stores_made_at_once_leave_no_1_behind(monkeypatch):
    """Each store waits for the other one inside its pass over the images; one of them fails there."""
    both = threading.Barrier(2)
    examine = PixelStore._examine_rows

    def meet(store, *arguments):
        both.wait(10)
        if store.transform.channels == 3:
            raise MemoryError
        examine(store, *arguments)

    monkeypatch.setattr(PixelStore, "_examine_rows", meet)
    given = Table.from_arrays(np.arange(64, dtype=np.uint8).reshape(2, 4, 8), [0, 1])
    ends = []

    def make(channels):
        try:
            PixelStore(given, Transform(Preprocessing(size=(4, 8)), channels, "a model"), cache="memory")
        except MemoryError:
            ends.append("failed")
        ends.append(torch.get_num_threads())

    threads = [threading.Thread(target=make, args=(channels,)) for channels in (1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(map(str, ends)) == ["3", "3", "failed"]
    assert torch.get_num_threads() == in_a_thread(torch.get_num_threads) == 3
