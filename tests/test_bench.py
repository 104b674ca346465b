"""What the benchmarks make of two models: agreement, memory, rows, pages and regressions. No assertion on seconds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import medzoo
from medzoo.bench import suite
from medzoo.bench.__main__ import parser
from medzoo.bench.alone import run_alone, target_rows
from medzoo.bench.cases import EAGER, Case, select
from medzoo.bench.compare import compare
from medzoo.bench.compare import main as compare_files
from medzoo.bench.contest import build, train_call
from medzoo.bench.environment import describe_environment
from medzoo.bench.memory import available, estimate, measure_peak
from medzoo.bench.page import newest, render
from medzoo.bench.parts import TABLES
from medzoo.bench.peers import Chain, eager, matched_parameters
from medzoo.bench.plots import draw
from medzoo.bench.race import Race, differences, spread
from medzoo.bench.table import text
from medzoo.bench.targets import TARGETS, growth, judged
from medzoo.bench.work import work
from medzoo.cli.main import main

CPU = torch.device("cpu")
NEEDS_OPTIMIZE = Case("cnn3d_base", (46, 46, 62), peers=(EAGER,), tiny=True)


# Agreement


class Off(nn.Module):
    def __init__(self, module, by):
        super().__init__()
        self.module, self.by = module, by

    def forward(self, x):
        return self.module(x) + self.by


def small_contest(mode="train"):
    return build(Case("cnn3d_small", (16, 16, 16), mode=mode, peers=(EAGER,), tiny=True), CPU)


def test_a_contest_agrees_in_outputs_and_gradients():
    difference = differences(small_contest())[EAGER]
    assert difference.ok
    assert difference.output <= 2e-5
    assert difference.gradient <= 1e-5


def test_a_wrong_output_is_found():
    contest = small_contest()
    contest.calls[EAGER] = train_call(Off(contest.modules[EAGER], 1e-3))
    assert not differences(contest)[EAGER].ok


def test_a_wrong_gradient_is_found():
    contest = small_contest()
    contest.modules[EAGER][0][0].weight.register_hook(lambda grad: grad * 1.001)
    difference = differences(contest)[EAGER]
    assert difference.output <= 2e-5
    assert not difference.ok


def test_a_missing_gradient_is_found():
    contest = small_contest()
    contest.modules[EAGER][0][0].weight.requires_grad_(False)
    assert differences(contest)[EAGER].gradient == math.inf


def test_disagreement_is_reported_and_not_timed(monkeypatch):
    contest = small_contest()
    contest.calls[EAGER] = train_call(Off(contest.modules[EAGER], 1.0))
    monkeypatch.setattr(suite, "build", lambda case, device: contest)
    monkeypatch.setattr(suite, "measure_ceilings", lambda device, **_: {})
    monkeypatch.setattr(suite, "Race", None)
    result = suite.run_suite([contest.case], CPU, "quick")
    assert not result["rows"]
    assert "expected the outputs of eager PyTorch, got a difference of 1.0e+00" in result["failed"][contest.case.id]


def test_the_plain_peer_runs_the_modules_and_not_our_forward(monkeypatch):
    model = medzoo.create("cnn3d_base", **medzoo.describe("cnn3d_base").tiny).eval()
    x = torch.randn(1, 1, 46, 46, 62)
    expected = model(x)
    plain = eager(model)
    monkeypatch.setattr("medzoo.nn.conv.ConvStage.forward", None)
    assert torch.equal(plain(x), expected)


def test_parameters_pair_by_name_or_else_in_order():
    a, b = nn.Sequential(nn.Linear(2, 3)), nn.ModuleDict({"other": nn.Linear(2, 3)})
    (mine, theirs), _ = matched_parameters(a, b)
    assert mine is a[0].weight
    assert theirs is b["other"].weight
    with pytest.raises(ValueError, match=r"expected parameters of the same shapes, got \(3, 2\) and \(2, 3\)"):
        matched_parameters(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 2)))


def test_the_stage_tables_are_the_models():
    for name, (table, options) in TABLES.items():
        model = medzoo.create(name, num_classes=0, **options)
        assert len(model.encoder.stages) == table.stages
        chain = Chain(model.encoder, model.head).eval()
        x = torch.randn(1, model.input_spec.channels, *medzoo.describe(name).tiny_size)
        with torch.no_grad():
            assert torch.equal(chain(x), model.eval()(x))


# Memory


def test_what_cannot_fit_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(suite, "available", lambda device: 1000)
    with pytest.raises(suite.Skipped, match=r"needs about \d+\.\d GB, 0\.0 GB are free"):
        suite.prepare(Case("swin_encoder_mlp", (128, 128, 128)), CPU)


def test_a_peer_that_cannot_fit_is_absent_with_the_reason(monkeypatch):
    case = Case("swin_encoder_mlp", (64, 64, 64), peers=("MONAI", "as created"))
    monkeypatch.setattr(suite, "available", lambda device: estimate(case, "medzoo") + 1)
    fits, absent = suite._fitting(case, CPU)
    assert fits.peers == ("as created",)
    assert absent["MONAI"].startswith("needs about 0.")


def test_the_estimate_grows_with_batch_volume_and_training():
    def of(side, batch=1, mode="forward"):
        return estimate(Case("swin_encoder_mlp", (side,) * 3, batch=batch, mode=mode), "MONAI")

    assert of(64) < of(96) < of(128)
    assert of(64, batch=8) == 8 * of(64)
    assert of(64) < of(64, mode="train")
    assert available(CPU) > 0


def test_peak_memory_is_what_a_call_adds():
    peak = measure_peak(lambda: torch.ones(50_000_000).sum(), CPU)
    if peak is None:
        pytest.skip("this system does not let a process reset its high-water mark")
    assert 190e6 < peak < 260e6


def test_after_the_time_limit_no_case_begins(monkeypatch):
    monkeypatch.setattr(suite, "measure_ceilings", lambda device, **_: {})
    result = suite.run_suite(select(["xray_cnn"], "quick"), CPU, "quick", limit=-1.0)
    assert not result["rows"]
    assert list(result["skipped"]) == ["xray_cnn-320x320-b1-float32-forward"]


# Results


@pytest.fixture(scope="module")
def result():
    """Return a result of real rows on tiny models, without timing machines: its ceilings are made up."""
    contest = small_contest()
    found = {"case": dict(vars(contest.case)), "id": contest.case.id, "absent": {"timm": "timm is not installed"}}
    found["peers"] = {EAGER: {"difference": 1e-7, "gradient_difference": 1e-7}}
    race = Race(contest)
    race.run(3)
    ceilings = {"matmul float32": 1e11, "matmul bfloat16": 2e11, "copy": 1e10}
    rows = [suite.row(race, found, race.peaks(), ceilings)]
    for side, batch in product((64, 128), (1, 8)):
        case = Case("swin_encoder_mlp", (side,) * 3, batch=batch)
        time = {"median": 1e-7 * case.voxels, "low": 0.9e-7 * case.voxels, "high": 1.1e-7 * case.voxels}
        peak = 100 * case.voxels
        rows.append(
            rows[0]
            | {"case": dict(vars(case)), "id": case.id, "seconds": time, "peak": peak, "peers": {}, "absent": {}}
            | vars(work(case))
        )
    environment = describe_environment(CPU) | {"level": "quick"}
    made = {"environment": environment, "ceilings": ceilings, "rows": rows, "startup": {}}
    return json.loads(json.dumps(made | {"skipped": {"big": "needs about 9 GB"}, "failed": {}}))


def test_a_race_times_everyone_in_every_round(result):
    row = result["rows"][0]
    assert row["rounds"] == 3
    assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
    assert row["peers"][EAGER]["ratio"]["median"] > 0


def test_the_table_has_a_line_for_us_and_each_peer(result):
    drawn = text(result["rows"])
    assert "cnn3d_small-16x16x16-b1-float32-train-tiny" in drawn
    assert "· eager PyTorch" in drawn
    assert "· timm: timm is not installed" in drawn


def test_a_result_becomes_a_page_with_pictures(result, tmp_path):
    file = suite.write_result(result, tmp_path / "results")
    (tmp_path / "results" / f"2001-01-01_{file.name.partition('_')[2]}").write_text(file.read_text())
    assert newest(tmp_path / "results") == [file]
    render([file], tmp_path / "page.md", notes="## Why\n\nBecause.")
    page = (tmp_path / "page.md").read_text()
    assert page.index("Because.") < page.index("### Targets")
    assert result["environment"]["cpu"] in page
    assert "- big: needs about 9 GB" in page
    pictures = sorted((tmp_path / "images").iterdir())
    assert [picture.stem.rpartition("-")[2] for picture in pictures] == ["memory", "ratios", "roofline", "scaling"]
    for picture in pictures:
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")
        assert f"images/{picture.name}" in page


def test_pictures_without_rows_are_not_drawn(result, tmp_path):
    assert draw(result | {"rows": []}, tmp_path, "empty") == {}


def test_cost_as_the_work_grows(result):
    rows = {row["id"]: row for row in result["rows"]}
    assert growth(rows) == pytest.approx({"batch 1 to 8": 1.0, "64³ to 128³": 1.0, "peak, batch 1 to 8": 1.0})
    met = {line[0]: line[-1] for line in judged(result)}
    assert met["scaling/batch 1 to 8"] == "met"
    assert met["startup/import"] == ""


def slower(result, by):
    """Everything of ours takes ``by`` times as long, the peers as long as ever."""
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
    assert compare_files([str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 1
    assert "5 regressions beyond noise" in capsys.readouterr().out


def test_a_slower_machine_is_no_regression(result):
    """The peers took as many of our times as before, so it was the machine; rows without peers cannot show it."""
    now = json.loads(json.dumps(result))
    now["environment"]["device"] = "another"
    for row in now["rows"]:
        row["seconds"] = {key: value * 100 for key, value in row["seconds"].items()}
    assert [change.verdict for change in compare(result, now)] == [""]


def test_more_memory_is_a_regression(result):
    now = json.loads(json.dumps(result))
    now["rows"][1]["peak"] *= 2
    assert [change.verdict for change in compare(result, now) if change.verdict] == ["more memory"]


def test_spread_of_one_value():
    assert spread([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0}


# The command


def test_the_command_shows_its_options_and_names_unknown_models():
    shown = CliRunner().invoke(main, ["bench", "--help"])
    assert shown.exit_code == 0
    assert "usage: medzoo bench" in shown.output
    refused = CliRunner().invoke(main, ["bench", "xray_cn"])
    assert refused.exit_code == 2
    assert "Did you mean 'xray_cnn'?" in refused.output


def test_the_former_name_of_the_targets_option_works():
    assert parser().parse_args(["--promised"]) == parser().parse_args(["--targets"])
    assert "--promised" not in parser().format_help()


def test_the_benchmarks_need_neither_click_nor_rich_nor_monai():
    """On a bare GPU machine a peer is absent with the reason."""
    code = """
import sys
sys.modules |= dict.fromkeys(["monai", "click", "rich", "pooch", "nibabel", "SimpleITK", "pydicom"])
import torch
from medzoo.bench.__main__ import main
from medzoo.bench.peers import PEERS, Absent
import medzoo.bench.page, medzoo.bench.compare, medzoo.bench.startup
try:
    PEERS["MONAI"](None)
except Absent as reason:
    print(reason)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MONAI is not installed")


def test_inference_rows_run_the_optimised_model():
    contest = build(NEEDS_OPTIMIZE, CPU)
    assert differences(contest)[EAGER].ok


def test_rows_alone_are_joined(monkeypatch, tmp_path):
    """Each row comes from a process of its own; here those write what they would have measured."""
    asked = []

    def process(command, **options):
        row, folder = command[command.index("--row") + 1], Path(command[-1])
        asked.append(row)
        made = {
            "environment": {"allocator": "default"},
            "ceilings": {"copy": float(len(asked))},
            "rows": [{"id": row}],
            "skipped": {},
            "failed": {},
            "startup": {},
        }
        (folder / "x.json").write_text(json.dumps(made))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr("medzoo.bench.alone.subprocess.run", process)
    rows = target_rows(["cnn3d_small", "xray_cnn"])
    found = run_alone(rows, lambda *_: None)
    assert asked == rows == [row["id"] for row in found["rows"]]
    assert "cnn3d_small-96x96x96-b1-float32-forward" in rows
    assert found["ceilings"] == {"copy": float(len(rows))}
    assert found["environment"]["alone"]
    monkeypatch.setattr(
        "medzoo.bench.alone.subprocess.run", lambda *_, **__: SimpleNamespace(returncode=3, stderr="no")
    )
    with pytest.raises(RuntimeError, match=r"no result \(3\): no"):
        run_alone(rows, lambda *_: None)


def test_every_target_is_about_a_row_there_is():
    wanted = {target.row for target in TARGETS if target.what not in ("growth", "share")} - {"startup/import"}
    assert wanted <= set(target_rows([]))
