"""``predict`` reads the next images by threads: the same results, order, errors and memory as without."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensors import pytorch_threads

import medzoo
from medzoo.errors import DataError
from medzoo.inference import reading
from medzoo.visual.phantoms import write_ct, write_xray


class Source:
    """Images by index, which counts those that were started."""

    def __init__(self, count, read=lambda index: index, point=None):
        self.images = [SimpleNamespace(point=point)] * count
        self.read, self.started = read, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.started.append(index)
        return self.read(index)


@pytest.fixture
def cores(monkeypatch):
    def have(count):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)

    have(8)
    return have


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "medzoo-reader"]


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("batch_size", [1, 5])
def test_images_come_in_order_and_few_are_read_ahead(batch_size):
    delays = np.random.default_rng(0).random(24) / 1000
    source = Source(24, lambda index: time.sleep(delays[index]) or index)
    most = max(batch_size, 3)
    found = []
    for item in reading.read_all(source, 0, batch_size):
        found.append(item)
        assert len(source.started) - len(found) <= most
        if item == 8:  # what may be read is read
            while len(source.started) - len(found) < most:
                time.sleep(0.001)
    assert found == list(range(24))
    assert sorted(source.started) == found
    assert not readers()


@pytest.mark.usefixtures("cores")
def test_an_exception_is_raised_in_place_of_its_image():
    def read(index):
        if index in (4, 5):
            raise KeyError(index)
        return index

    items = reading.read_all(Source(9, read), 0, 1)
    assert [next(items) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(KeyError, match="4"):
        next(items)
    assert not readers()


@pytest.mark.usefixtures("cores")
def test_closing_early_ends_the_threads_and_reads_no_more():
    source = Source(1000)
    items = reading.read_all(source, 0, 1)
    assert next(items) == 0
    assert len(readers()) == reading.READERS
    items.close()
    assert not readers()
    assert len(source.started) <= 4


def test_how_many_threads_read(cores, monkeypatch):
    assert [reading._reader_threads(Source(count)) for count in (0, 1, 2, 3, 9)] == [0, 0, 1, 2, 2]
    assert reading._reader_threads(Source(9, point=(0, 0, 0))) == 1
    for count, expected in ((1, 0), (2, 1), (3, 2), (64, 2)):
        cores(count)
        assert reading._reader_threads(Source(9)) == expected
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    assert reading._reader_threads(Source(9)) == 0


@pytest.mark.usefixtures("cores")
def test_where_no_thread_can_be_started_the_caller_reads(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert list(reading.read_all(Source(7), 0, 2)) == list(range(7))


@pytest.mark.usefixtures("cores")
def test_readers_use_one_thread_of_pytorch_and_others_as_many_as_before():
    with pytorch_threads(3):
        numbers = []
        items = reading.read_all(Source(6, lambda index: numbers.append(torch.get_num_threads())), 0, 1)
        next(items)
        other = threading.Thread(target=lambda: numbers.append(-torch.get_num_threads()))
        other.start()
        other.join()
        list(items)
        assert sorted(numbers) == [-3, 1, 1, 1, 1, 1, 3]
        assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("cores")
def test_new_threads_of_a_server_keep_their_threads_of_pytorch():
    """Requests come while others start readers, and each is the first use of PyTorch in its thread."""
    with pytorch_threads(3):
        numbers = []

        def request():
            list(reading.read_all(Source(4), 0, 1))
            numbers.append(torch.get_num_threads())

        for _ in range(20):
            threads = [threading.Thread(target=request) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert set(numbers) == {3}


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("name", ["xray_cnn", "cnn3d_small"])
def test_results_are_those_of_one_image_after_the_other(name, tmp_path, monkeypatch):
    model = medzoo.create(name, **medzoo.describe(name).tiny).eval()
    images = []
    for i in range(2):
        folder = tmp_path / str(i)
        folder.mkdir()
        images.append((write_ct if model.input_spec.dims == 3 else write_xray)(folder))
        (folder / "broken.dcm").write_bytes(b"no image")
        images.append(folder / "broken.dcm")
    images += [np.full((model.input_spec.channels, *model.preprocessing.size), i, np.uint8) for i in range(3)]

    def run():
        done = []
        with pytest.warns(UserWarning, match="and .* more") as caught:
            found = medzoo.predict(
                model, images, batch_size=2, allow_untrained=True, progress=lambda *now: done.append(now)
            )
        return [one.to_dict() for one in found], found.skipped, done, [str(one.message) for one in caught]

    used = []
    start = reading._start_threads
    monkeypatch.setattr(reading, "_start_threads", lambda *given: used.append(1) or start(*given))
    with_threads = run()
    assert used == [1]
    monkeypatch.setattr(reading, "_reader_threads", lambda _: 0)
    assert run() == with_threads
    assert used == [1]
    assert len(with_threads[2]) == len(images)


@pytest.mark.usefixtures("cores")
def test_an_error_in_memory_is_raised_and_ends_the_threads():
    model = medzoo.create("xray_cnn", **medzoo.describe("xray_cnn").tiny).eval()
    images = [np.random.default_rng(i).random((1, 64, 64), dtype=np.float32) for i in range(6)]
    images[3][0, 0, 0] = images[4][0, 0, 0] = np.nan
    with pytest.raises(DataError, match="array 3: expected finite values"):
        medzoo.predict(model, images, allow_untrained=True)
    assert not readers()


@pytest.mark.skipif(sys.platform == "win32", reason="a system without SIGINT for one process")
def test_an_interrupt_ends_the_process_while_a_thread_still_reads():
    code = """
        import signal, threading, os
        os.sched_getaffinity = lambda _: set(range(4))
        from types import SimpleNamespace
        from medzoo.inference import reading

        class Source:
            images = [SimpleNamespace(point=None)] * 5
            def __len__(self): return 5
            def __getitem__(self, index):
                if index == 1:
                    print("reading", flush=True)
                if index:
                    threading.Event().wait()
                return index

        reading.PATIENCE = 0.1
        for item in reading.read_all(Source(), 0, 1):
            pass
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "reading\n"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "KeyboardInterrupt" in errors
    assert process.returncode in (-signal.SIGINT, 130)
