"""The command ``python -m benchmarks``, and the runner for a GPU machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import medzoo
from benchmarks import gpu
from benchmarks.__main__ import main, parser
from benchmarks.targets import check_targets

ROOT = Path(__file__).parents[2]
# Prints the command line of each process of this user, where /proc lists them.
PROCESSES = """
import glob, pathlib
for path in glob.glob("/proc/[0-9]*/cmdline"):
    try:
        print(pathlib.Path(path).read_bytes().replace(b"\\0", b" ").decode(errors="replace"))
    except OSError:
        pass
"""


def run(*command, **variables):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | variables,
    )


def test_the_command_shows_its_options_and_names_unknown_models(capsys):
    with pytest.raises(SystemExit) as shown:
        main(["run", "--help"])
    assert shown.value.code == 0
    assert "usage: python -m benchmarks run" in capsys.readouterr().out
    refused = run("-m", "benchmarks", "xray_cn")
    assert refused.returncode == 2
    assert "Did you mean 'xray_cnn'?" in refused.stderr


def test_the_options_of_a_run():
    given = parser().parse_args(["run", "xray_cnn", "--quick", "--targets", "--allocators", "--limit", "3"])
    assert (given.models, given.level, given.targets, given.allocators, given.limit) == (
        ["xray_cnn"],
        "quick",
        True,
        True,
        3.0,
    )


@pytest.mark.slow
def test_a_busy_machine_is_recorded_and_its_processes_end(tmp_path):
    """A run beside busy processes: its own file, which states how many there were, and none that stays."""
    row = "xray_cnn-320x320-b1-float32-forward"
    done = run("-m", "benchmarks", "run", "--quick", "--busy", "--row", row, "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*_busy.json")
    result = json.loads(file.read_text())
    assert result["environment"]["busy"] == os.cpu_count()
    assert [found["id"] for found in result["rows"]] == [row]
    (verdict,) = [line for line in check_targets(result) if line[0] == row]
    assert verdict[:4] == (row, "time", "eager PyTorch", "≥ 1")
    assert "while True: pass" not in run("-c", PROCESSES).stdout


def test_the_benchmarks_need_neither_click_nor_rich_nor_monai_nor_matplotlib():
    """On a bare GPU machine a peer is absent with the reason."""
    code = """
import sys
absent = ["monai", "click", "rich", "pooch", "nibabel", "SimpleITK", "pydicom", "matplotlib"]
sys.modules |= dict.fromkeys(absent)
import torch
from benchmarks.__main__ import main
from benchmarks.peers import PEERS, Absent
import benchmarks.page, benchmarks.results, benchmarks.suite
try:
    PEERS["MONAI"](None)
except Absent as reason:
    print(reason)
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MONAI is not installed")


# The runner


def test_the_runner_keeps_pythonpath_and_unpacks_wheels(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/already/there")
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried/__init__.py", "")
    variables = gpu.environment(tmp_path / "wheels", tmp_path / "site")
    assert variables["PYTHONPATH"].split(os.pathsep)[-2:] == [str(tmp_path / "site"), "/already/there"]
    assert variables["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)
    assert (tmp_path / "site" / "carried" / "__init__.py").exists()


def test_a_step_that_hangs_is_stopped_and_logged(tmp_path):
    log = tmp_path / "gpu.log"
    code = "import time; print('begun', flush=True); time.sleep(60)"
    assert gpu.run("nap", 1, [sys.executable, "-c", code], dict(os.environ), log) == 124
    assert "begun" in log.read_text()
    assert "stopped after 1 s" in log.read_text()


def test_an_unknown_step_is_named(tmp_path):
    done = run("benchmarks/gpu.py", tmp_path, "--steps", "suit")
    assert done.returncode == 1
    assert "expected steps of device, tests, suite, files, compiled, got suit" in done.stderr


@pytest.mark.slow
def test_a_dry_run_takes_every_step(tmp_path):
    done = run("benchmarks/gpu.py", tmp_path, "--dry-run")
    assert done.returncode == 0, done.stdout
    log, result = sorted(tmp_path.iterdir(), key=lambda file: file.suffix, reverse=True)
    assert log.name == "gpu.log"
    assert {row["case"]["subject"] for row in json.loads(result.read_text())["rows"]} == set(medzoo.list_models())
