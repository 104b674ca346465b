"""Use the installed wheel with core dependencies only: ``python -P smoke.py DIST MEDZOO``, outside the repository.

DIST is the folder with the wheel and the sdist, MEDZOO the installed command.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

dist, command = map(Path, sys.argv[1:])

(wheel,) = dist.glob("*.whl")
names = zipfile.ZipFile(wheel).namelist()
roots = {name.partition("/")[0] for name in names}
assert {root for root in roots if not root.endswith(".dist-info")} == {"medzoo"}, roots
assert {"medzoo/py.typed", "medzoo/__init__.pyi"} <= set(names), names
assert not [name for name in names if "test" in name or "benchmark" in name]

(sdist,) = dist.glob("*.tar.gz")
with tarfile.open(sdist) as opened:
    inside = {name.partition("/")[2] for name in opened.getnames()}
for name in (
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "tests/conftest.py",
    "docs/conf.py",
):
    assert name in inside, name

# Nothing of an extra is there, or what follows would prove nothing.
for name in ("pytest", "hypothesis", "lightning", "sklearn", "onnx", "mypy"):
    assert importlib.util.find_spec(name) is None, name

import medzoo  # noqa: E402

assert "site-packages" in str(medzoo.__file__), medzoo.__file__

import torch  # noqa: E402

model = medzoo.create("cnn3d_small", size=(16, 16, 16)).eval()
assert model(torch.zeros(2, 1, 16, 16, 16)).shape == (2, 1)

with tempfile.TemporaryDirectory() as folder:
    for arguments in (
        ["--help"],
        ["--version"],
        ["list"],
        ["info", "xray_cnn"],
        ["cache"],
        ["quickstart", "--to", folder],
    ):
        done = subprocess.run([command, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout, arguments
        assert not done.stderr, done.stderr
sys.stdout.write(f"medzoo {medzoo.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}: works\n")
