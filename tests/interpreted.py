"""Running the tests of Triton kernels in Triton's interpreter, on a CPU.

The interpreter is chosen when Triton is imported, so such tests run in a process of their own. They are the functions
of a test file whose names begin with ``interpreted_``.
"""

from __future__ import annotations

import os
import subprocess
import sys

import torch

__all__ = ["poison", "run_interpreted"]


def run_interpreted(file):
    """Run the interpreted tests of a file, and fail with what they print."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_functions=interpreted_*"]
    variables = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run([*command, file], env=variables, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    assert "passed" in found.stdout


def poison(monkeypatch):
    """Fill what is allocated with NaN, so that a value that is never written is seen."""

    def filled(make):
        def made(*args, **kwargs):
            found = make(*args, **kwargs)
            return found.fill_(torch.nan) if found.is_floating_point() else found

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))
