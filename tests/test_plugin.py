"""The plugin template of the docs: built, installed, and used like any model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "docs" / "plugin_template"
USE = """
import medzoo, torch
assert medzoo.list_models("example_*") == ["example_resnet"]
assert "cnn3d_small" in medzoo.list_models()
print(medzoo.check_model("example_resnet"))
model = medzoo.create("example_resnet", num_classes=2)
assert model(torch.zeros(2, 1, 64, 80)).shape == (2, 2)
"""


def run(*command, folder, path=()):
    """Run Python in a folder, with folders before others on its path, and return what it printed."""
    paths = [*map(str, path), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_plugin_template_installs_and_passes_its_own_test(tmp_path):
    source, installed = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(TEMPLATE, source)  # a build writes into its source
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    run("-m", "pip", "install", *offline, "--target", installed, source, folder=tmp_path)
    printed = run("-c", USE, folder=tmp_path, path=[installed])
    assert printed.startswith("example_resnet, built by medzoo_example.models.example_resnet: 304,369 parameters\n")
    assert "1 passed" in run("-m", "pytest", "-q", "test_models.py", folder=source / "tests", path=[installed])


def test_every_file_of_the_template_is_in_the_docs():
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    for path in TEMPLATE.rglob("*"):
        if path.suffix in (".py", ".toml") and path.name != "__init__.py":
            assert f"{{literalinclude}} plugin_template/{path.relative_to(TEMPLATE).as_posix()}\n" in page
