"""The heap keeps what a slab frees."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from medzoo.nn.heap import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for megabytes in range(1, 31):
    torch.ones(megabytes * 2**18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tells what glibc's malloc does")
def test_freed_blocks_are_not_faulted_in_again():
    env = {"PATH": "", "MALLOC_ARENA_MAX": "1"}
    run = [sys.executable, "-c", FAULTS]
    kept, fresh = (
        int(subprocess.run([*run, how], env=env, capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "fresh")
    )
    page = 4096
    assert kept * page < 120 * 2**20, "the heap grows to the largest block"
    assert fresh * page > 400 * 2**20, "each block larger than all before is mapped anew"
