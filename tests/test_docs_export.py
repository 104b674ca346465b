"""The page "Run it without torch's eager mode" runs word for word, with warnings as errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/export.md, block {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert len(re.findall(r"^(?:effusion|nodule): 0\.\d{3} (?:positive|negative)$", printed, re.MULTILINE)) == 2
    assert "'size': [64, 64]" in printed
    assert '["effusion", "nodule"]' in printed
    made = {path.name for path in (tmp_path / "xray").iterdir()}
    assert made == {"model.onnx", "config.json", "model.golden.npz", "model.onnx.json", "model.pt2", "model.pt2.json"}
    (shown,) = re.findall(r"^```text\n(file .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    rows = [[line[:11].strip() for line in text.splitlines()] for text in (shown, printed)]
    assert rows[1][: len(rows[0])] == rows[0], "the table of the page has the rows of the report"
