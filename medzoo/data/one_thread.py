"""``one_thread``: let PyTorch use one thread for a while, also where several threads of Python ask for it at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

__all__ = ["one_thread"]

_lock = threading.Lock()
_inside = 0
_outside = 1  # the number of threads before the first of those who are inside came


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread in this thread of Python, and afterwards as many as before.

    One image is too little work for more, which only wait where the machine is busy; and sums and convolutions depend
    on the number in their last bits. PyTorch gives a thread of Python the number that any other one set last, so a
    thread that comes second finds the 1 of the first one: both go back to what the first one found.
    """
    global _inside, _outside
    with _lock:
        own = torch.get_num_threads()
        if not _inside:
            _outside = own
        before = own if own > 1 else _outside
        _inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            torch.set_num_threads(before)
