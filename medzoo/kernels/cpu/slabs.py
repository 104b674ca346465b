"""Keep freed memory for the next slab, instead of giving each page back to the system and asking for it again.

PyTorch's CPU allocator keeps nothing: all goes to ``malloc``. At first glibc's maps each block of 128 KB or more anew,
and every page of it is filled with zeros by the kernel when it is first touched, which costs more than a slab's
arithmetic. The limit rises by itself to the size of any mapped block that is freed, up to 32 MB, and with it what is
kept at the top of the heap, to twice as much (``man mallopt``, M_MMAP_THRESHOLD). Most programs get there sooner or
later; this gets there at once.
"""

from __future__ import annotations

import contextlib
import functools

import torch

__all__ = ["keep_freed_memory"]

# The largest block that raises the limit, less what malloc's header and the alignment take.
LARGEST = 32 * 2**20 - 2**16


@functools.cache
def keep_freed_memory() -> None:
    """Have ``malloc`` keep up to 64 MB of what is freed; once, and without touching a page of it.

    That is 64 MB for the main heap, and for that of each thread that frees as much. Another allocator, or limits set by
    ``MALLOC_MMAP_THRESHOLD_`` and its like, stay as they are.
    """
    # A storage, for a tensor may be filled or be a fake; and where 32 MB are too much, there is nothing to keep.
    with contextlib.suppress(RuntimeError):
        torch.UntypedStorage(LARGEST, device="cpu")  # type: ignore[no-untyped-call]  # torch's
