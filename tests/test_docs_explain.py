"""The page "See where it looked" runs word for word, with warnings as errors."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "explain.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^medzoo (\w+) .*$", PAGE, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning")
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "home"))
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/explain.md, block {number}", "exec"), names)
    printed = capsys.readouterr().out
    found = re.search(r"^\((\d+), (\d+)\), planted at \[ *([\d.]+) +([\d.]+) *\]", printed, re.MULTILINE)
    assert found, printed
    values = np.array(found.groups(), float)
    assert np.linalg.norm(values[:2] - values[2:]) <= 6 + 4, "within the disc, enlarged by half a cell"
    assert "encoder.stages.3.relu (64, 48)" in printed
    with PIL.Image.open(tmp_path / "disc.png") as picture:
        assert picture.width == 1600
    volume, scan = nib.load(tmp_path / "cam.nii.gz"), nib.load(tmp_path / "scan.nii.gz")
    assert volume.shape == scan.shape
    assert (tmp_path / "cam.png").exists()


def test_the_commands_of_the_page_exist():
    from medzoo.cli.main import main

    assert set(COMMANDS) == {"explain", "predict"}
    assert set(COMMANDS) <= set(main.commands)
