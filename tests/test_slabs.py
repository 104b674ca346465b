"""Slabs of complete boxes, and the heap that keeps what a slab frees."""

from __future__ import annotations

import itertools
import platform
import resource
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medzoo.kernels.cpu.slabs import _runs, slabs
from medzoo.kernels.window_partition import WindowGeometry, cut_axis
from medzoo.nn.swin_block import WindowGrid

sides = st.tuples(*[st.integers(1, 24)] * 3)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 200), shifted=st.booleans(), longest=st.integers(0, 250))
def test_runs_are_as_few_as_can_be_and_about_even(size, shifted, longest):
    window = min(size, 7)
    axis = cut_axis(size, window, window // 2 if shifted and size > window else 0)
    runs = _runs(axis, longest)
    assert tuple(itertools.chain(*runs)) == axis
    lengths = [sum(s.length for s in run) for run in runs]
    assert all(length <= longest or len(run) == 1 for length, run in zip(lengths, runs, strict=True))
    fewest, length = 1, 0
    for segment in axis:
        fewest, length = (fewest + 1, 0) if length and length + segment.length > longest else (fewest, length)
        length += segment.length
    assert len(runs) == fewest
    # Cut between windows, a run may be longer than an even share by less than one.
    assert max(lengths) <= max(7, -(-size // fewest) + 7)


@settings(max_examples=100, deadline=None)
@given(size=sides, shifted=st.booleans(), batch=st.integers(1, 3), tokens=st.integers(1, 5000))
def test_slabs_hold_each_token_once_and_stay_small(size, shifted, batch, tokens):
    grid = WindowGrid.of(size, (7, 7, 7), shifted)
    seen = torch.zeros(batch, *size)
    for where, axes in slabs(WindowGeometry(grid.size, grid.window, grid.shift), batch, tokens):
        slab = seen[where]
        assert tuple(sum(s.length for s in axis) for axis in axes) == slab.shape[1:]
        assert slab.numel() <= max(tokens, 49 * size[2])
        seen[where] += 1
    assert (seen == 1).all()


FAULTS = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: one fault for each page
import torch
from medzoo.kernels.cpu.slabs import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for megabytes in range(1, 31):
    torch.ones(megabytes * 2**18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


TIGHT = """
import resource
import torch
from medzoo.kernels.cpu.slabs import LARGEST, keep_freed_memory

with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + LARGEST // 2, resource.RLIM_INFINITY))
try:
    torch.empty(LARGEST, dtype=torch.uint8)
except RuntimeError:
    keep_freed_memory()
    print("went on")
"""

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="measures glibc's malloc on Linux")


@needs_glibc
def test_a_tight_limit_is_no_reason_to_fail():
    run = subprocess.run([sys.executable, "-c", TIGHT], capture_output=True, text=True, check=True)
    assert run.stdout == "went on\n"


@pytest.mark.slow
@needs_glibc
def test_freed_blocks_are_not_faulted_in_again():
    env = {"PATH": "", "MALLOC_ARENA_MAX": "1"}
    run = [sys.executable, "-c", FAULTS]
    kept, fresh = (
        int(subprocess.run([*run, how], env=env, capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "fresh")
    )
    page = resource.getpagesize()
    assert kept * page < 120 * 2**20, "the heap grows to the largest block"
    assert fresh * page > 400 * 2**20, "each block larger than all before is mapped again"
