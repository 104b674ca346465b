"""Independent pieces of work in threads, each of which computes alone.

PyTorch shares out each operation among its threads, and waits for all of them before the next. Where an operation takes
a tenth of a millisecond, waiting costs as much as the work, and a hundred times as much where other processes keep one
of the threads from running. Threads that each run all operations of a piece meet once, at the end.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch

__all__ = ["compute_alone", "in_threads"]

T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], pieces: Sequence[T]) -> list[R]:
    """Return the results in the order of the pieces; as many run at a time as PyTorch has threads here.

    The calling thread takes pieces too, so that it waits at the end alone, and for no thread that has not begun. The
    bits of a result do not depend on which thread computed it. Gradients are not recorded: the caller is in ``no_grad``
    or ``inference_mode`` too.
    """
    threads, setter = torch.get_num_threads(), _openmp_setter()
    if min(threads, len(pieces)) < 2 or setter is None:
        return list(map(function, pieces))
    try:
        pool = _pool(os.getpid(), threads)
    except RuntimeError:  # a limit of the system
        return list(map(function, pieces))
    results: list[Any] = [None] * len(pieces)
    left, inference = deque(range(len(pieces))), torch.is_inference_mode_enabled()

    def work() -> None:
        with torch.inference_mode(inference), torch.no_grad():  # without inference mode, the first enables gradients
            while left:
                try:
                    i = left.popleft()
                except IndexError:  # another thread was faster
                    return
                results[i] = function(pieces[i])

    others = [pool.submit(work) for _ in range(min(threads, len(pieces)) - 1)]
    setter(1)
    try:
        work()
    finally:
        setter(threads)
        left.clear()
        begun = [other for other in others if not other.cancel()]
        wait(begun)
    for other in begun:
        other.result()
    return results


def compute_alone() -> None:
    """Let the calling thread use one thread for each operation from now on, where PyTorch's OpenMP can be reached.

    ``torch.set_num_threads`` also sets the number for whatever thread is new to PyTorch, such as that of a request to a
    server: one that comes before the number is set back would keep it, and pass it on.
    """
    torch.get_num_threads()  # PyTorch sets the number of a thread when it first needs it, and then never again
    if (setter := _openmp_setter()) is not None:
        setter(1)


@functools.lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Start threads that each compute with one; a forked process starts its own."""
    del process
    pool = ThreadPoolExecutor(threads - 1, "medzoo", compute_alone)
    started = threading.Barrier(threads - 1)
    try:
        for future in [pool.submit(started.wait) for _ in range(threads - 1)]:
            future.result()
    except RuntimeError:  # no more threads may be started, and those that were would wait for ever
        started.abort()
        pool.shutdown()
        raise
    return pool


@functools.cache
def _openmp_setter() -> Callable[[int], object] | None:
    """Return what sets how many threads of OpenMP the calling thread uses; ``None`` where it is not found."""
    try:
        # The library that PyTorch itself uses: there may be others in the process.
        library = ctypes.CDLL("libiomp5md" if sys.platform == "win32" else torch._C.__file__)
        setter: Callable[[int], object] = library.omp_set_num_threads
    except (AttributeError, OSError):
        return None
    return setter
