"""The page "Report it for a paper" runs word for word, with warnings as errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import medzoo

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^medzoo (\w+) .*$", PAGE, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning")
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "home"))
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/evaluation.md, block {number}", "exec"), names)
    printed = capsys.readouterr().out
    value, low, high = map(float, re.search(r"AUROC ([\d.]+) \(([\d.]+) to ([\d.]+)\), \w", printed).groups())
    assert 0.6 < low < value < high < 1
    assert "separable" in printed
    assert "scores: 240 rows of 120 patients" in printed
    assert (tmp_path / "disc.html").exists()
    assert (tmp_path / "runs" / "disc" / "report.html").exists()
    assert medzoo.create("local-dir:models/south").outputs.calibration.split.startswith("hospital south")


def test_the_commands_of_the_page_exist():
    from medzoo.cli.main import main

    assert set(COMMANDS) >= {"evaluate"}
    assert set(COMMANDS) <= set(main.commands)
