"""Result files: names, the table of rows, and the comparison of two files."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil

import pytest

import benchmarks
from benchmarks.__main__ import main
from benchmarks.cases import CREATED, EAGER
from benchmarks.results import compare, text


def test_all_models_are_timed_in_every_round(result):
    row = result["rows"][0]
    assert row["rounds"] == 3
    assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
    assert row["peers"][EAGER]["ratio"]["median"] > 0


def test_the_table_has_a_line_for_medzoo_and_each_peer(result):
    drawn = text(result["rows"])
    assert "cnn3d_small-16x16x16-b1-float32-train-tiny" in drawn
    assert "· eager PyTorch" in drawn
    assert "· timm: timm is not installed" in drawn


# Comparison


def slower(result, by):
    """Multiply medzoo's times by ``by``, and leave the peers' as they are."""
    changed = json.loads(json.dumps(result))
    for row in changed["rows"]:
        row["seconds"] = {key: value * by for key, value in row["seconds"].items()}
        for peer in row["peers"].values():
            peer["ratio"] = {key: value / by for key, value in peer["ratio"].items()}
    return changed


def test_the_same_run_twice_is_no_regression(result):
    assert not [change for change in compare(result, result) if change.verdict]


def test_a_regression_beyond_noise_is_named(result, tmp_path, capsys):
    now = slower(result, 100.0)
    assert {change.verdict for change in compare(result, now)} == {"slower"}
    assert {change.verdict for change in compare(now, result)} == {"faster"}
    for name, made in (("old", result), ("new", now)):
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    assert main(["compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 1
    assert "5 regressions beyond noise" in capsys.readouterr().out


def test_a_slower_machine_is_no_regression(result):
    """The ratios to the peers are as before, so it was the machine; rows without peers cannot show it."""
    now = json.loads(json.dumps(result))
    now["environment"]["device"] = "another"
    for row in now["rows"]:
        row["seconds"] = {key: value * 100 for key, value in row["seconds"].items()}
    assert [change.verdict for change in compare(result, now)] == [""]


def test_more_memory_is_a_regression(result):
    now = json.loads(json.dumps(result))
    now["rows"][1]["peak"] *= 2
    assert [change.verdict for change in compare(result, now) if change.verdict] == ["more memory"]


def made_up(ours, monai, failed=()):
    spread = {"low": ours * 0.99, "median": ours, "high": ours * 1.01}

    def peer(seconds):
        ratio = seconds / ours
        return {"ratio": {"low": ratio * 0.99, "median": ratio, "high": ratio * 1.01}}

    row = {"id": "swin", "seconds": spread, "peak": None, "peers": {"MONAI": peer(monai), CREATED: peer(ours)}}
    environment = {"device": "cpu", "threads": 2, "allocator": "default", "variables": {}, "versions": {}}
    return {"rows": [] if failed else [row], "failed": dict.fromkeys(failed, "differs"), "environment": environment}


def test_a_slower_model_is_not_excused_by_itself():
    (change,) = compare(made_up(0.1, 1.0), made_up(0.3, 1.0))
    assert (change.verdict, change.reference) == ("slower", "MONAI")
    assert change.factor == pytest.approx(3.0)


def test_a_row_that_failed_is_a_regression(tmp_path, capsys):
    for name, made in (("old", made_up(0.1, 1.0)), ("new", made_up(0.1, 1.0, failed=["swin"]))):
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    assert main(["compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 1
    assert "failed in the new file: swin: differs" in capsys.readouterr().out


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name != "tests"])
def test_examples_in_docstrings(name):
    failed, _ = doctest.testmod(importlib.import_module(f"benchmarks.{name}"))
    assert failed == 0
