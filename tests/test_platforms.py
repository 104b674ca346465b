"""What is not on every system is not needed: modules of Unix, ``/proc``, and processes that fork."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import medzoo
from medzoo.cli import bench
from medzoo.visual.phantoms import write_xray

ROOT = Path(medzoo.__file__).parent
UNIX = ["fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"]
UNIX_CALLS = {"fork", "forkpty", "getuid", "geteuid", "getpgid", "setsid", "sysconf", "sched_getaffinity", "mkfifo"}


def test_no_module_of_unix_is_imported():
    for path in ROOT.rglob("*.py"):
        # SIGINT and SIGTERM, which stop a training, are on every system.
        forbidden = {*UNIX} | (set() if path.name == "signals.py" else {"signal"})
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & forbidden, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in forbidden, path
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os":
                assert node.attr not in UNIX_CALLS, path


def test_proc_is_read_by_bench_alone():
    found = {path.name for path in ROOT.rglob("*.py") if "/proc" in path.read_text("utf-8")}
    assert found == {"bench.py"}


@pytest.mark.slow
def test_models_run_without_the_modules_of_unix(tmp_path):
    """Where importing them fails, as on Windows: create, forward, predict, and the lock of a download."""
    code = f"""
import sys
sys.modules |= dict.fromkeys({UNIX})  # importing one of these now fails
import medzoo, torch
from medzoo.weights.cache import download_lock
for name in medzoo.list_models():
    spec = medzoo.describe(name)
    model = medzoo.create(name, **spec.tiny).eval()
    model(torch.zeros(1, model.input_spec.channels, *spec.tiny_size))
model = medzoo.create("resnet18_multilabel").eval()
assert medzoo.predict(model, {str(write_xray(tmp_path))!r}, allow_untrained=True).probabilities
with download_lock("sha256:" + "0" * 64):
    pass
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"MEDZOO_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_workers_may_be_spawned(tmp_path):
    """The only way to start a process on macOS and Windows."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import medzoo, torch

if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")
    model = medzoo.create("xray_cnn", size=64, widths=(4, 4, 8, 8), hidden=8).eval()
    results = medzoo.predict(model, [{str(write_xray(tmp_path))!r}] * 2, num_workers=1, allow_untrained=True)
    assert len(results) == 2 and not results.failed, results.failed
""")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("harm", ["no file", "no line"])
def test_bench_needs_no_proc(monkeypatch, harm):
    import torch

    def write_text(*arguments, **options):
        if harm == "no file":
            raise FileNotFoundError("/proc/self/clear_refs")

    monkeypatch.setattr(bench.Path, "write_text", write_text)
    monkeypatch.setattr(bench, "_find", lambda *arguments: "")

    def no_library(name):
        raise TypeError("expected a name, as on Windows")

    monkeypatch.setattr(bench.ctypes, "CDLL", no_library)
    assert bench._peak_bytes(lambda: None, torch.device("cpu")) is None
