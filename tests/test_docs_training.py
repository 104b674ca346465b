"""The page "Train your own" runs word for word, with warnings as errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import medzoo
from medzoo.training.frozen import phases

PAGE = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning")
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/training.md, block {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert float(re.search(r"accuracy ([\d.]+)", printed)[1]) >= 0.8
    assert float(re.search(r"AUROC ([\d.]+) of", printed)[1]) >= 0.8
    assert float(re.search(r"after one step: ([\d.]+)", printed)[1]) == pytest.approx(0.1, abs=0.02)
    for folder in ("plain", "runs/disc/model"):
        model = medzoo.create(f"local-dir:{folder}")
        assert model.outputs.labels == ("disc",)
        assert all(model.outputs.trained)
    assert (tmp_path / "runs" / "disc" / "model" / "model.safetensors").exists()


def test_the_plain_loop_is_short():
    loop = next(block for block in BLOCKS if "DataLoader" in block)
    assert len([line for line in loop.splitlines() if line.strip()]) <= 30


def test_the_yaml_is_a_recipe():
    import yaml

    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    recipe = medzoo.Recipe(model={"name": "xray_cnn"}, **yaml.safe_load(text))
    first, second = phases(recipe)
    assert (first.train.freeze, second.train.freeze, second.optimizer.lr) == ("features", "none", 1e-4)
