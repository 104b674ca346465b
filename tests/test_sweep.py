"""``medzoo.sweep``: a grid of runs on the same rows, stopped anywhere and continued, and the choice of one of them."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import math
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sweep_child
from click.testing import CliRunner
from images import write_images
from PIL import Image

import medzoo
from medzoo.cli.main import main
from medzoo.cli.tables import cli_message
from medzoo.errors import ConfigError, DataError, TrainError, UnknownModelError
from medzoo.evaluation.compare import compare
from medzoo.evaluation.scores import Scores
from medzoo.training import epoch_log, lock
from medzoo.training.numerics import FiniteGuard
from medzoo.training.recipe import Recipe
from medzoo.training.signals import TrainInterrupted
from medzoo.training.sweep_choice import SweepRow, choose, validated
from medzoo.training.sweep_folder import read_failure
from medzoo.training.sweep_grid import MOST, Grid
from medzoo.training.sweep_plot import draw_sweep
from medzoo.training.sweep_table import Sweep, notes_of

pytestmark = pytest.mark.filterwarnings("ignore:xray_cnn. the last validation predicts one class")
OVER = {"batch": [16], "lr": [0.01, 0.001, 1e30]}
TABLE = Recipe.load("table")


def sweep(images, to, over=OVER, **more):
    return medzoo.sweep(
        "table", images, over=over, to=to, root=images.parent / "images", **{**sweep_child.TINY, **more}
    )  # fmt: skip


def weights(folder):
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return a table of 66 patients, a third of them positive."""
    table = write_images(tmp_path_factory.mktemp("data"), patients=66, each=1)
    table.write_text(re.sub(r",p(\d)", r",SECRET-\1", table.read_text()))
    return table


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    """Leave out the curves of each run, which take a quarter of its time and are drawn in tests of the log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_log, "draw_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def stopped(images, tmp_path_factory):
    """Return the folder of a sweep that SIGTERM has stopped in its second run, and the error."""
    folder = tmp_path_factory.mktemp("sweeps") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FiniteGuard, "on_train_batch_start", sweep_child.at_batch(7, signal.SIGTERM))
        with pytest.raises(TrainInterrupted) as caught:
            sweep(images, folder)
    return folder, caught.value, read(folder / "sweep.csv")


@pytest.fixture(scope="module")
def swept(images, stopped):
    """Return the sweep that was stopped and continued."""
    return sweep(images, stopped[0])


@pytest.mark.slow
def test_a_signal_stops_the_sweep_and_what_is_finished_is_kept(stopped):
    _, error, rows = stopped
    assert error.exit_code == 143
    assert re.search(r"stopped in the run batch=16,lr=0\.001: .* stopped by SIGTERM.*\. The same call", str(error))
    assert "The same command continues the sweep." in cli_message(error, "sweep")
    assert "medzoo train --resume" in cli_message(error, "sweep")
    assert [row["status"] for row in rows] == ["finished", "unfinished", "not begun"]
    assert [row["epochs_trained"] for row in rows[:3]] == ["2", "1", "0"]
    assert [row["chosen"] for row in rows] == ["yes", "no", "no"]


@pytest.mark.slow
def test_each_combination_is_an_ordinary_run_and_a_resumed_one_has_the_same_weights(swept, images, tmp_path):
    alone = medzoo.train(
        "table", images, to=tmp_path / "a", root=images.parent / "images", batch=16, lr=0.001, **sweep_child.TINY
    )
    resumed = swept.folder / "batch=16,lr=0.001"
    assert weights(resumed) == weights(alone.folder)
    assert (resumed / "predictions/valid.csv").read_text() == (alone.folder / "predictions/valid.csv").read_text()
    assert weights(swept.folder / "batch=16,lr=0.01") != weights(resumed)
    losses = [[line["valid_loss"] for line in read(folder / "log.csv")] for folder in (resumed, alone.folder)]
    assert losses[0] == losses[1]


def test_failures_are_recorded_and_the_sweep_goes_on(swept):
    assert [row.status for row in swept.rows] == ["finished", "finished", "failed"]
    assert re.fullmatch(r"the loss is (nan|inf)", swept.rows[2].reason)
    assert "1 of 3 combinations failed; to train one again, delete its folder" in swept.notes


def test_the_table_holds_the_figures_of_the_runs(swept):
    rows = read(swept.table)
    assert list(rows[0]) == [
        "run", "batch", "lr", "status", "epochs_trained", "valid_loss", "auroc", "auroc_low", "auroc_high", "accuracy",
        "accuracy_low", "accuracy_high", "seconds", "chosen", "difference", "difference_low", "difference_high",
        "separable", "reason",
    ]  # fmt: skip
    assert [row["run"] for row in rows] == [row.name for row in swept.rows]
    for row in rows[:2]:
        report = json.loads((swept.folder / row["run"] / "report.json").read_text())["metrics"]
        auroc = report["overall"]["macro_auroc"]
        assert [float(row[f"auroc{end}"]) for end in ("", "_low", "_high")] == [
            pytest.approx(auroc[name], rel=1e-6) for name in ("value", "low", "high")
        ]
        predicted = read(swept.folder / row["run"] / "predictions" / "valid.csv")
        p = np.array([float(one["probability:grade"]) for one in predicted])
        y = np.array([float(one["target:grade"]) for one in predicted])
        assert float(row["valid_loss"]) == pytest.approx(-np.mean(np.log(np.where(y == 1, p, 1 - p))), rel=1e-5)
        assert float(row["accuracy"]) == pytest.approx(np.mean((p >= 0.5) == (y == 1)))
        log = read(swept.folder / row["run"] / "log.csv")
        assert float(row["seconds"]) == pytest.approx(sum(float(line["seconds"]) for line in log), abs=0.06)
        assert row["epochs_trained"] == "2"
    best = max(rows[:2], key=lambda row: float(row["auroc"]))
    (other,) = (row for row in rows[:2] if row is not best)
    assert [row["run"] for row in rows if row["chosen"] == "yes"] == [best["run"]] == [swept.chosen.name]
    assert float(other["difference"]) == pytest.approx(float(other["auroc"]) - float(best["auroc"]))
    holds = float(other["difference_low"]) <= 0 <= float(other["difference_high"])
    assert other["separable"] == ("no" if holds else "yes")
    assert (best["difference"], best["separable"]) == ("", "")


def test_the_chosen_run_goes_into_an_evaluation_and_no_test_part_was_read(swept):
    for row in swept.rows[:2]:
        assert [path.name for path in (row.folder / "predictions").iterdir()] == ["valid.csv"]
    report = medzoo.evaluate(swept.chosen, part="valid")
    assert report.metrics.overall["macro_auroc"].value == pytest.approx(swept.chosen.auroc.value)
    assert medzoo.resume(swept.chosen.folder).model.outputs.labels == ("grade",)


def test_no_patient_and_no_image_is_in_the_files_of_the_sweep(swept):
    for name in ("sweep.json", "sweep.csv", "sweep.png"):
        assert not re.search(rb"SECRET|\d_\d\.png", (swept.folder / name).read_bytes()), name


def test_the_same_call_trains_nothing_again(swept, images):
    before = {path: path.stat().st_mtime_ns for path in swept.folder.rglob("model.safetensors")}
    again = sweep(images, swept.folder)
    assert {path: path.stat().st_mtime_ns for path in swept.folder.rglob("model.safetensors")} == before
    assert again.to_csv() == swept.to_csv() == swept.table.read_text()
    assert (str(again), again.notes) == (str(swept), swept.notes)
    other = sweep(images, swept.folder, by="log_loss")
    assert other.chosen.log_loss.value == min(row.log_loss.value for row in other.rows[:2])
    sweep(images, swept.folder)


def test_more_values_are_added_and_the_order_of_the_fields_does_not_matter(swept, images, tmp_path):
    kept = (swept.folder / "sweep.json").read_text()
    more = sweep(images, swept.folder, {"optimizer.lr": OVER["lr"], "batch": [16, 500]})
    (swept.folder / "sweep.json").write_text(kept)
    assert [row.name for row in more.rows[:3]] == [row.name for row in swept.rows]
    assert [row.name for row in more.rows[3:]] == [f"batch=500,lr={lr}" for lr in ("0.01", "0.001", "1e+30")]
    for row in more.rows[3:]:
        assert re.match(r"train\.batch: expected at most the 33 rows of the train part, got 500", row.reason)
        assert {path.name for path in row.folder.iterdir()} == {"failed.json"}
    assert more.chosen.name == swept.chosen.name


@pytest.mark.parametrize(
    ("over", "more", "message"),
    [
        (OVER, {"epochs": 3}, "train.epochs is 3, was 2"),
        (OVER, {"decide.threshold": 0.5}, "decide.threshold is 'fixed 0.5', was 'youden'"),
        (OVER, {"split.seed": 1}, "split.seed is 1, was 0"),
        ({**OVER, "batch": [32]}, {}, "batch has no longer 16"),
        ({"batch": [16]}, {"lr": 0.01}, "lr is not a field any more"),
        ({**OVER, "ema": [0.0, 0.9]}, {}, "ema is a new field"),
    ],
)
def test_another_sweep_in_the_folder_is_refused_with_the_difference(swept, images, over, more, message):
    with pytest.raises(ConfigError, match=rf"holds another sweep than this one: (.*; )?{re.escape(message)}"):
        sweep(images, swept.folder, over, **more)


def test_other_data_in_the_folder_is_refused(swept, images):
    lines = images.read_text().splitlines()
    fewer = images.with_name("fewer.csv")
    fewer.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ConfigError, match=r"the rows, labels or patients .* \(65 rows, was 66\)"):
        sweep(fewer.with_name("fewer.csv"), swept.folder)


def test_a_run_of_another_recipe_in_its_place_is_refused(swept, images):
    facts = swept.folder / "batch=16,lr=0.01" / "run.json"
    kept = facts.read_text()
    facts.write_text(json.dumps({**json.loads(kept), "recipe": "0" * 64}))
    try:
        with pytest.raises(ConfigError, match="expected the run of this combination, got that of another recipe"):
            sweep(images, swept.folder)
        facts.write_text(json.dumps({**json.loads(kept), "data": "0" * 64}))
        with pytest.raises(ConfigError, match="have other images, labels or parts"):
            sweep(images, swept.folder)
    finally:
        facts.write_text(kept)


def test_the_command_line_shows_the_table(swept, images):
    given = [
        "--data", images, "--root", images.parent / "images", "--over", "batch=16", "--over", "lr=0.01, 0.001,1e30",
        "--to", swept.folder, "--label-col", "grade", "--patient-col", "pid", "--epochs", 2, "--size", 32, "--cache",
        "memory", "--device", "cpu", "--model", "xray_cnn",
    ]  # fmt: skip
    for field in ("model.options", "threads", "split.shares", "checkpoint_steps"):
        given += ["--set", f"{field}={json.dumps(sweep_child.TINY[field])}"]
    found = CliRunner().invoke(main, ["sweep", "table", *map(str, given)])
    assert found.exit_code == 0, found.output
    for text in ("macro AUROC - chosen", "chosen", "failed: the loss is", *swept.notes):
        assert text in found.output
    assert found.output.splitlines()[-1].startswith(f"Next: medzoo evaluate {swept.chosen.folder}, or medzoo predict")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected the values to try. Give --over, such as --over lr=1e-4,2e-4."),
        (["--over", "lr="], "--over: expected FIELD=A,B,…, such as lr=1e-4,2e-4, got 'lr='."),
        (["--over", "lr=1", "--over", "lr=2"], "lr is set twice. Leave one out."),
        (["--over", "lr=1,2"], "expected the folder of the sweep. Give --to FOLDER, such as --to runs/s."),
        (["--over", "lr=1,2", "--lr", "3", "--to", "s"], "sweep: lr is given for all runs and in over"),
    ],
)
def test_the_command_line_explains_what_is_absent(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(main, ["sweep", "table", "--data", "n.csv", *arguments])
    assert (found.exit_code, message in found.output) == (2, True), found.output
    assert list(tmp_path.iterdir()) == []


def test_if_none_can_be_trained_nothing_is_left_but_the_plan(images, tmp_path):
    with pytest.raises(TrainError, match=r"none of the 2 combinations could be trained: train\.batch: .* and 1 other"):
        sweep(images, tmp_path / "s", {"batch": [500, 600]})
    assert not list((tmp_path / "s").glob("batch*"))
    with pytest.raises(
        TrainError, match="none of the 1 combinations"
    ):  # it had trained nothing, so that all may change
        sweep(images, tmp_path / "s", {"batch": [700]}, epochs=5)


def test_faults_of_the_data_stop_the_sweep(images, tmp_path):
    text = images.read_text().replace("0_0.png", "absent.png")
    (images.parent / "broken.csv").write_text(text)
    with pytest.raises(DataError, match=r"absent\.png"):
        sweep(images.parent / "broken.csv", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_folder_of_something_else_is_refused(images, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"is not empty\. Choose another folder"):
        sweep(images, tmp_path)
    (tmp_path / "run.json").touch()
    with pytest.raises(ConfigError, match=r"holds a run of medzoo\.train"):
        sweep(images, tmp_path)
    with pytest.raises(ConfigError, match="cannot write to"):
        sweep(images, tmp_path / "notes.txt")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "sweep.json").write_text("[]")
    with pytest.raises(ConfigError, match="it is not what medzoo wrote"):
        sweep(images, tmp_path / "b")


@pytest.mark.parametrize(
    "change",
    [
        {"over": {"batch": 3}}, {"over": ["batch"]}, {"over": None}, {"base": None}, {"base": []}, {"data": None},
        {"data": {"digest": "a", "rows": "many"}}, {"data": {"digest": None, "rows": 3}}, {"data": {"rows": 3}},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_plan_is_named(change, swept, images, tmp_path):
    plan = json.loads((swept.folder / "sweep.json").read_text())
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(plan | change))
    (tmp_path / "batch=16").mkdir()
    (tmp_path / "batch=16" / "run.json").touch()  # a run has begun
    message = f"{path}: the sweep cannot be read (it is not what medzoo wrote). Restore the file, or choose another"
    with pytest.raises(ConfigError, match=re.escape(message)):
        sweep(images, tmp_path)


@pytest.mark.parametrize("text", ['{"recipe": "a", "rea', "[]", '{"recipe": "a"}', '{"recipe": 1, "reason": "b"}', ""])
def test_a_damaged_record_of_a_failure_is_named(text, tmp_path):
    (tmp_path / "failed.json").write_text(text)
    message = f"{tmp_path / 'failed.json'}: why the run failed cannot be read (it is not what medzoo wrote). Delete the"
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_failure(tmp_path)
    assert read_failure(tmp_path / "absent") is None


def test_a_sweep_with_a_damaged_record_stops(swept, images, tmp_path):
    folder = shutil.copytree(swept.folder, tmp_path / "s")
    failed = sorted(folder.glob("*/failed.json"))
    assert failed
    for path in failed:
        path.write_text(path.read_text()[:20])
    with pytest.raises(ConfigError, match="|".join(re.escape(str(path)) for path in failed)):
        sweep(images, folder)


def test_two_sweeps_in_one_folder_at_once_are_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    with lock.lock_state(tmp_path / "s" / "state"):
        with pytest.raises(TrainError, match=r"s: another process trains in this folder \(process \d+ on"):
            sweep(images, tmp_path / "s", {"batch": [16]})
        assert [path.name for path in (tmp_path / "s").iterdir()] == ["state"]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({}, "expected fields with values"),
        ({"lr": 0.1}, "lr: expected a list of values, such as [16, 64], got 0.1"),
        ({"lr": "0.1"}, "lr: expected a list of values"),
        ({"lr": []}, "lr: expected a list of values"),
        ({"bacth": [1]}, "no field 'bacth'. Did you mean 'batch'?"),
        ({"lr": [0.1, "high"]}, "sweep: optimizer.lr: expected a number, got 'high'."),
        ({"lr": [0.1, 0.1]}, "expected different trainings, got lr=0.1 twice"),
        ({"lr": [0.1], "optimizer.lr": [0.2]}, "optimizer.lr: given twice, by lr and optimizer.lr"),
        ({"split.seed": [0, 1]}, "split.seed: the runs would have other rows, labels or parts"),
        ({"label": ["a", "b"]}, "data.label: the runs would have other rows"),
        ({"workers": [0, 1]}, "train.workers: it does not change the trained weights"),
        ({"decide.threshold": [0.5]}, "decide.threshold: it does not change the trained weights"),
        ({"data.cache": ["off"]}, "data.cache: it does not change the trained weights"),
        ({"schedule.gamma": [0.9, 1.0]}, "schedule.gamma: expected 1 beside kind cosine, got 0.9"),
        ({"lr": np.linspace(0.1, 0.2, 101), "batch": [1, 2]}, f"expected at most {MOST} combinations, got 202"),
        ({"epochs": [1]}, "epochs is given for all runs and in over"),
    ],
)
def test_faults_of_the_grid_are_known_before_anything_is_read(over, message, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(message)):
        medzoo.sweep("table", tmp_path / "no.csv", over=over, to=tmp_path / "s", **{"train.epochs": 3})
    assert not (tmp_path / "s").exists()


def test_all_faults_of_the_grid_are_listed_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        medzoo.sweep("table", "no.csv", over={"batch": [0, 1, "x"], "lr": [0.1, -1]}, to=tmp_path / "s")
    assert str(caught.value).splitlines() == [
        "sweep: 3 faults",
        "  train.batch: expected a number from 1 on, got 0.",
        "  optimizer.lr: expected a number above 0, got -1.",
        "  train.batch: expected a whole number, got 'x'.",
    ]


def test_a_model_that_there_is_not_and_a_model_object_are_refused(tmp_path):
    with pytest.raises(UnknownModelError, match="Did you mean 'xray_cnn'"):
        medzoo.sweep("table", "no.csv", over={"model": ["xray_cn", "xray_cnn"]}, to=tmp_path / "s")
    model = medzoo.create("cnn3d_small", **dict(medzoo.describe("cnn3d_small").tiny))
    with pytest.raises(ConfigError, match=r"Save it with model\.save_pretrained"):
        medzoo.sweep(model, "no.csv", over={"lr": [1]}, to=tmp_path / "s")
    with pytest.raises(ConfigError, match="expected by to be one of auroc, log_loss, accuracy, got 'f1'"):
        medzoo.sweep("table", "no.csv", over={"lr": [1]}, to=tmp_path / "s", by="f1")


def test_a_grid_is_every_combination_with_the_first_field_slowest():
    grid = Grid.of(TABLE, {"batch": np.array([64, 16]), "optimizer.lr": (1, 1e-4), "train.seed": range(2)})
    assert [one.name for one in grid.combinations[:3]] == [
        "batch=64,lr=1.0,seed=0", "batch=64,lr=1.0,seed=1", "batch=64,lr=0.0001,seed=0",
    ]  # fmt: skip
    assert len(grid.combinations) == 8
    assert grid.seed == "seed"
    for one in grid.combinations:
        want = TABLE.with_(batch=one.values["batch"], lr=one.values["lr"], seed=one.values["seed"])
        assert one.recipe == want
    assert {"train.batch", "optimizer.lr", "train.seed"}.isdisjoint(grid.base)
    assert grid.base["train.epochs"] == 10


def test_names_are_safe_and_distinct():
    values = ["xray_cnn", "local-dir:../../etc", "hf-hub:a/b", "local-dir:a b", "local-dir:A b"]
    grid = Grid.of(TABLE, {"model": values, "augment.flip": [[], ["x"], ["x", "y"]]})
    names = [one.name for one in grid.combinations]
    assert len({name.lower() for name in names}) == len(names) == 15
    assert all(re.fullmatch(r"[\w=,.+-]+", name) and not name.startswith(".") for name in names)
    long = Grid.of(TABLE, {f"model.options.{'x' * 30}{i}": [1, 2] for i in range(6)})
    assert len({one.name for one in long.combinations}) == 64
    assert max(len(one.name) for one in long.combinations) <= 120


@functools.cache
def scores_of(seed, task="binary", labels=1, n=100, noise=1.0):
    """Return scores of the same rows and targets for every seed."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(100 + seed)
    targets = (fixed.random((n, labels)) < 0.4).astype(np.float32)
    if task == "multiclass":
        targets = np.eye(labels, dtype=np.float32)[fixed.integers(0, labels, n)]
    else:
        targets[:3] = math.nan
    z = np.nan_to_num(targets) + noise * rng.normal(size=(n, labels)) + 0.5 * fixed.normal(size=(n, labels))
    return Scores.from_logits(
        z, task=task, ids=np.array([f"row {i}" for i in range(n)]), targets=targets, source=f"run {seed}",
        labels=tuple("abcd"[:labels]), patients=np.array([f"p{i // 2}" for i in range(n)]),
    )  # fmt: skip


@functools.cache  # scores are compared by identity
def figures_of(scores):
    return validated(scores, resamples=200)


def chosen_of(scores, by="auroc", values=None, seed=None):
    """Return the rows of runs with these scores; ``None`` for one that failed."""
    values = values or [{"lr": i} for i in range(len(scores))]
    found = {str(i): figures_of(one) for i, one in enumerate(scores) if one is not None}
    rows = []
    for i, one in enumerate(scores):
        row = SweepRow(str(i), Path(str(i)), values[i], "failed" if one is None else "finished")
        rows.append(row if one is None else replace(row, **found[str(i)].estimates))
    return choose(rows, found, by, seed), found


@pytest.mark.parametrize(("task", "labels"), [("binary", 1), ("multilabel", 3), ("multiclass", 4)])
def test_figures_and_differences_are_those_of_a_comparison_and_of_scikit_learn(task, labels):
    from sklearn.metrics import log_loss

    scores = [scores_of(seed, task, labels, noise=1 + seed) for seed in range(3)]
    rows, found = chosen_of(scores)
    assert rows[0].auroc.value == max(row.auroc.value for row in rows)
    assert [row.chosen for row in rows] == [True, False, False]
    for row, own in zip(rows[1:], scores[1:], strict=True):
        want = compare(own, scores[0], resamples=200).overall["macro_auroc"]
        assert row.difference == want
    known = ~np.isnan(scores[0].targets).any(1)
    y, p = scores[1].targets[known], scores[1].probabilities[known]
    loss = (
        log_loss(y.argmax(1), p)
        if task == "multiclass"
        else np.mean([log_loss(a, b) for a, b in zip(y.T, p.T, strict=True)])
    )
    assert rows[1].log_loss.value == pytest.approx(loss, rel=1e-6)
    right = p.argmax(1) == y.argmax(1) if task == "multiclass" else ((p >= 0.5) == (y == 1)).all(1)
    assert rows[1].accuracy.value == pytest.approx(right.mean())
    assert (found["0"].rows, found["0"].patients) == (100, 50)
    by_loss = chosen_of(scores, "log_loss")[0]
    assert [row.chosen for row in by_loss] == [
        row.log_loss.value == min(r.log_loss.value for r in rows) for row in rows
    ]
    if task == "binary":
        want = compare(scores[1], scores[0], resamples=200)["a"]["log_loss"]
        assert by_loss[1].difference.difference.value == pytest.approx(want.difference.value)
        assert by_loss[1].difference.difference.low == pytest.approx(want.difference.low)


def test_a_tie_is_decided_by_the_log_loss_and_then_by_the_order():
    one = scores_of(0)
    worse = replace(one, logits=one.logits * 5, probabilities=1 / (1 + np.exp(-5 * one.logits)), ranks=one.ranks * 5)
    assert validated(worse).estimates["auroc"] == validated(one).estimates["auroc"]
    assert [row.chosen for row in chosen_of([worse, one, one])[0]] == [False, True, False]
    rows, _ = chosen_of([one, one])
    assert rows[1].separable is None
    assert rows[1].difference.difference.why == "the same in every resample"


def test_seeds_are_repetitions_and_are_not_chosen():
    # The luckiest run is of the setting that is worse on average.
    noise = {(0, 0): 0.5, (0, 1): 30.0, (1, 0): 0.9, (1, 1): 0.9}
    values = [{"lr": lr, "seed": seed} for lr, seed in noise]
    scores = [scores_of(i, noise=one) for i, one in enumerate(noise.values())]
    rows, found = chosen_of(scores, values=values, seed="seed")
    areas = [row.auroc.value for row in rows]
    assert areas[0] == max(areas)
    assert np.mean(areas[:2]) < np.mean(areas[2:])
    assert [row.chosen for row in rows] == [False, False, True, False]
    assert rows[3].difference is None
    assert rows[0].difference == rows[1].difference
    assert rows[0].difference.difference.value == pytest.approx(np.mean(areas[:2]) - np.mean(areas[2:]))
    assert "the mean macro AUROC over seeds" in notes_of(rows, found, "auroc", "seed")[0]
    # A setting with a run that failed comes after one without.
    rows, _ = chosen_of([*scores[:3], None], values=values, seed="seed")
    assert [row.chosen for row in rows] == [True, False, False, False]
    rows, found = chosen_of(scores, values=[{"seed": i} for i in range(4)], seed="seed")
    assert [row.chosen for row in rows] == [True, False, False, False]
    assert notes_of(rows, found, "auroc", "seed") == (
        "one setting was trained, and nothing was chosen, as seeds are repetitions of it: 0 is marked",
    )


def test_the_notes_state_of_which_probabilities_log_loss_and_accuracy_are():
    rows, found = chosen_of([scores_of(0), scores_of(1)])
    assert not any("log-loss and accuracy" in note for note in notes_of(rows, found, "auroc"))
    one = found | {"0": replace(found["0"], fitted=True)}
    assert any("whose calibration, in 1 of 2 runs, was fitted to the same rows" in note
               for note in notes_of(rows, one, "auroc"))  # fmt: skip
    both = {name: replace(each, fitted=True, moved=True) for name, each in found.items()}
    notes = " ".join(notes_of(rows, both, "auroc"))
    assert "whose calibration was fitted to the same rows, and are optimistic for it" in notes
    assert "are moved to the share of positives of the validation rows" in notes


def test_without_both_classes_the_log_loss_decides_and_the_notes_state_it():
    scores = [replace(one, targets=np.zeros_like(one.targets)) for one in map(scores_of, range(3))]
    rows, found = chosen_of(scores)
    losses = [row.log_loss.value for row in rows]
    assert [row.chosen for row in rows] == [loss == min(losses) for loss in losses]
    assert any("no run has a macro AUROC" in note for note in notes_of(rows, found, "auroc"))
    few = [one.select(range(16)) for one in map(scores_of, range(2))]
    rows, found = chosen_of(few)
    assert all(row.auroc.low is None and row.separable is None for row in rows)
    assert "without an interval of the difference: 1 other runs (under 10 patients)" in notes_of(rows, found, "auroc")


@pytest.mark.parametrize(
    ("over", "size"),
    [
        ({"lr": [1e-4, 1e-3, 1e-2]}, (728, 507)),
        ({"lr": [0.01, 0.001]}, None),
        ({"batch": [16, 64, 256], "lr": [1e-4, 2e-4]}, (689, 552)),
        ({"model": ["xray_cnn", "densenet121_xray:xrv_all"], "seed": [0, 1]}, None),
        ({"batch": [16, 64], "lr": [1e-4], "optimizer.kind": ["adam", "sgd"]}, None),
        ({"batch": [16], "lr": [1e-4, 2e-4], "seed": [0, 1]}, None),
    ],
)
def test_the_figure_is_drawn_for_any_number_of_fields(over, size, tmp_path):
    grid = Grid.of(TABLE, over)
    values = [one.values for one in grid.combinations]
    scores = [scores_of(i) for i in range(len(values))]
    scores[-1] = None
    rows, found = chosen_of(scores, values=values, seed=grid.seed)
    made = Sweep(rows, tmp_path, "auroc", tuple(grid.values), notes_of(rows, found, "auroc", grid.seed))
    (tmp_path / "a.png").write_bytes(draw_sweep(made, grid))
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
        assert size is None or image.size == pytest.approx(size, abs=8)
    orange = (abs(pixels - [213, 94, 0]).max(2) < 8).sum()
    assert orange > 40, "the chosen run is marked"
    waiting = [SweepRow(one.name, tmp_path, one.values, "not begun") for one in grid.combinations]
    draw_sweep(replace(made, rows=tuple(waiting)), grid)
    lines = str(made).splitlines()
    assert lines[1].split()[: len(grid.values)] == [str(made.chosen.values[name]) for name in grid.values]
    assert len(lines) == 1 + len(rows) + len(made.notes)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """Return the folder of a sweep that was not stopped."""
    folder = tmp_path_factory.mktemp("whole") / "s"
    assert sweep_child.run(images, folder) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("batches", [(3,), (9, 9), (1, 20, 2)])
def test_a_sweep_that_is_killed_anywhere_ends_with_the_same_table_and_weights(images, whole, tmp_path, batches):
    for batch in batches:
        assert sweep_child.run(images, tmp_path / "killed", batch) == -signal.SIGKILL
    assert sweep_child.run(images, tmp_path / "killed") == 0
    tables = []
    for folder in (whole, tmp_path / "killed"):
        rows = read(folder / "sweep.csv")
        assert [row["status"] for row in rows] == ["finished"] * 4
        tables.append([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
    assert tables[0] == tables[1]
    for row in tables[0]:
        assert weights(whole / row["run"]) == weights(tmp_path / "killed" / row["run"])
    assert (whole / "sweep.png").read_bytes() == (tmp_path / "killed" / "sweep.png").read_bytes()


@pytest.mark.slow
def test_a_frozen_training_with_a_second_phase_and_images_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    table = medzoo.Table.from_arrays(rng.integers(0, 256, (40, 32, 32)).astype(np.uint8), y, names=["a"])
    how = {**sweep_child.TINY, "model.in_chans": 1, "patient_groups": False, "freeze": "features", "then": "finetune"}
    for name in ("label", "patient"):
        how.pop(name)

    def run():
        return medzoo.sweep(
            "table", table, over={"lr": [0.01, 0.001]}, to=tmp_path / "s", **how, then_epochs=1, batch=4
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FiniteGuard, "on_train_batch_start", sweep_child.at_batch(4, signal.SIGINT))
        with pytest.raises(TrainInterrupted):
            run()
    assert [row.epochs for row in run().rows] == [3, 3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*it has parts of its own")
def test_real_images(data, tmp_path):
    table = data / "chestxray14_64px" / "labels.csv"
    how = {
        "model": "xray_cnn", "model.options": {"widths": [8, 8, 16, 16], "hidden": 16}, "size": 64, "epochs": 1,
        "device": "cpu", "label": "Effusion", "patient": "patient_id", "split.shares": [0.5, 0.5, 0.0],
    }  # fmt: skip
    found = medzoo.sweep("table", table, over={"batch": [16, 64], "lr": [1e-4, 1e-3]}, to=tmp_path / "s", **how)
    assert [row.status for row in found.rows] == ["finished"] * 4
    assert all(row.auroc.low < row.auroc.value < row.auroc.high for row in found.rows)
    assert sum(row.separable is not None for row in found.rows) == 3
    assert found.figure.stat().st_size > 5000
