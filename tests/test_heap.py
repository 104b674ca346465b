"""The heap keeps what a slab frees."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

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

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tells what glibc's malloc does on Linux")


@needs_glibc
def test_a_tight_limit_is_no_reason_to_fail():
    run = subprocess.run([sys.executable, "-c", TIGHT], capture_output=True, text=True, check=True)
    assert run.stdout == "went on\n"


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
    assert fresh * page > 400 * 2**20, "each block larger than all before is mapped anew"
