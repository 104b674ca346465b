"""Independent pieces of work in threads, each of which computes alone.

PyTorch shares out each operation among its threads, and waits for all of them before the next. Where an operation takes
a tenth of a millisecond, waiting costs as much as the work, and a hundred times as much where other processes keep one
of the threads from running. Threads that each run all operations of a piece meet once, at the end.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["in_threads"]

T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], pieces: Sequence[T]) -> Iterator[R]:
    """Return the results in the order of the pieces; as many run at a time as PyTorch has threads here.

    The bits of a result do not depend on which thread computed it. Gradients are not recorded: the caller is in
    ``no_grad`` too.
    """
    threads = torch.get_num_threads()
    if min(threads, len(pieces)) < 2:
        return map(function, pieces)
    return _pool(os.getpid(), threads).map(function, pieces)


@functools.lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Start threads that each compute with one; a forked process starts its own."""
    del process
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "medzoo", _compute_alone)
    started = threading.Barrier(threads)
    try:
        for future in [pool.submit(started.wait) for _ in range(threads)]:
            future.result()
    except RuntimeError:  # no more threads may be started, and those that were would wait for ever
        started.abort()
        pool.shutdown()
        raise
    finally:
        # PyTorch gives threads that are new to it the last number that was set anywhere.
        torch.set_num_threads(before)
    return pool


def _compute_alone() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # otherwise the first operation asks, and takes over what was set elsewhere meanwhile
    torch.set_grad_enabled(False)
