"""``medzoo.evaluate`` as a user meets it: a run, a model, scores, another site, on the command line."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import medzoo
from medzoo.cli.main import main
from medzoo.errors import ConfigError, DataError

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*does not have many workers", "ignore:.*log_"),
]
RECIPE = medzoo.Recipe(
    model={"name": "xray_cnn", "in_chans": 1, "options": {"size": 32, "widths": [4, 4, 8, 8], "hidden": 8}},
    data={"cache": "memory", "label": "disc", "patient": "pid"},
    split={"shares": [0.34, 0.33, 0.33]},
    optimizer={"lr": 0.01},
    train={"epochs": 3, "batch": 16, "threads": 1, "device": "cpu"},
)


def write_discs(folder, patients=160, seed=0):
    """Write images in which a disc is brighter in positives, two for each patient, and their table; return it."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:32, :32]
    disc = (yy - 16) ** 2 + (xx - 16) ** 2 < 64
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "disc", "pid", "site", "age"])
        for patient in range(patients):
            positive = patient % 2
            for image in range(2):
                bright = 60 * positive + rng.normal(0, 45)
                pixels = np.clip(rng.integers(0, 160, (32, 32)) + bright * disc, 0, 255).astype(np.uint8)
                pixels[0], pixels[-1] = 255, 0  # so that they are not taken for too dark
                name = f"{seed}_{patient}_{image}.png"
                Image.fromarray(pixels).save(folder / name)
                site = "north" if rng.random() < 0.7 else "south"
                rows.writerow([name, positive, f"SECRET-{seed}-{patient}", site, 20 + patient % 60])
    return folder / "t.csv"


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDZOO_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_discs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Return a run that has ended."""
    return medzoo.train(RECIPE, data, to=tmp_path_factory.mktemp("runs") / "disc")


@pytest.fixture(scope="module")
def report(run):
    return medzoo.evaluate(run, by=["site", "age"])


def cli(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def table_of(path, **options):
    return medzoo.Table.from_csv(path, label="disc", patient="pid", **options)


def test_a_training_ends_with_calibration_thresholds_and_a_report(run):
    outputs = run.model.outputs
    assert outputs.calibration.method == "Platt"
    assert outputs.policy.split == "validation"
    assert outputs.policy.scale == "calibrated"
    assert outputs.policy.positives[0] >= 30
    assert 0 < outputs.thresholds[0] < 1
    page, figures = (run.folder / "report.html").read_text(), json.loads((run.folder / "report.json").read_text())
    assert "optimistic" in page
    assert figures["metrics"]["labels"]["disc"]["figures"]["auroc"]["low"] > 0.5
    assert figures["openings"] is None, "the validation part is not a test"
    assert figures["before"] is not None
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert config["metrics"]["validation: AUROC"] > 0.6
    assert config["metrics"]["validation: AUROC, 95 % low"] < config["metrics"]["validation: AUROC"]
    assert "validation: AUROC, 95 % high" in (run.folder / "model" / "README.md").read_text()


def test_the_saved_model_gives_the_written_predictions(run, data):
    model = medzoo.create(f"local-dir:{run.folder / 'model'}")
    with (run.folder / "predictions" / "valid.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[:8]
    for row in rows:
        found = medzoo.predict(model, data.parent / row["id"])
        assert found.logits["disc"] == pytest.approx(float(row["logit:disc"]), abs=1e-5)
        assert found.positive["disc"] == (found.probabilities["disc"] >= model.outputs.thresholds[0])


def test_the_test_part_of_a_run(run, report):
    test = run.folder / "data" / "table.csv"
    with test.open(newline="") as file:
        expected = [row["medzoo:id"] for row in csv.DictReader(file) if row["medzoo:part"] == "test"]
    assert sorted(report.scores.ids) == sorted(expected)
    auroc = report.metrics["disc"]["auroc"]
    assert auroc.low < auroc.value < auroc.high
    assert report.metrics.patients == len(expected) // 2
    assert {table.column for table in report.groups} == {"site", "age"}
    assert report.characteristics.columns[:3] == ("train", "valid", "test")
    assert [step.rows for step in report.flow.steps][-1] == len(expected)
    assert report.drift.rows


def test_nothing_of_a_patient_or_a_path_is_in_a_report(report, data, tmp_path):
    page = report.save(tmp_path / "r.html")
    for text in (page.read_text(), (tmp_path / "r.json").read_text()):
        assert "SECRET" not in text
        assert ".png" not in text
        assert str(data.parent) not in text
        assert "sha256:" not in re.sub(r"sha256:[0-9a-f]{64}", "", text), "patients are keyed, not hashed alone"


def test_openings_are_counted_for_the_data(run, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "home"))
    counts = [medzoo.evaluate(run, resamples=100).openings for _ in range(2)]
    model = medzoo.create(f"local-dir:{run.folder / 'model'}")
    assert counts == [1, 2]
    with pytest.raises(ConfigError, match="needs a table"):
        medzoo.evaluate(model)


def test_rows_of_the_training_are_refused_dropped_or_stated(run, data):
    table = table_of(data)
    with pytest.raises(DataError, match=r"of 320 rows are of patients or images that disc was trained or chosen on"):
        medzoo.evaluate(run, table)
    dropped = medzoo.evaluate(run, table, seen="drop", resamples=100)
    assert len(dropped.scores) == len(medzoo.evaluate(run, resamples=100).scores)
    assert any("left out" in note for note in dropped.notes)
    allowed = medzoo.evaluate(run, table, seen="allow", resamples=100)
    assert len(allowed.scores) == 320
    assert any("say nothing about new patients" in note for note in allowed.notes)


def test_images_of_the_training_under_other_patients_are_found(run, data):
    table = table_of(data)
    renamed = replace(table, patients=np.array([f"new {i}" for i in range(len(table))]))
    with pytest.raises(DataError, match="trained or chosen on"):
        medzoo.evaluate(run, renamed)


def test_another_site_another_model_and_several_seeds(run, tmp_path):
    other = medzoo.train(
        RECIPE.with_(**{"train.seed": 1}), write_discs(tmp_path / "train", seed=2), to=tmp_path / "other"
    )
    site = table_of(write_discs(tmp_path / "site", 80, seed=3))
    report = medzoo.evaluate(run, site, against=other, resamples=200)
    found = report.comparison.labels["disc"]["auroc"]
    assert found.this == report.metrics["disc"]["auroc"].value
    assert found.difference.low <= found.difference.value <= found.difference.high
    both = medzoo.evaluate([run, other], site, resamples=200)
    mean, sd = both.seeds.labels["disc"]["auroc"]
    assert mean == pytest.approx((found.this + found.other) / 2)
    assert sd == pytest.approx(abs(found.this - found.other) / np.sqrt(2))


def test_predictive_values_at_a_stated_prevalence(run):
    report = medzoo.evaluate(run, prevalence=0.02, resamples=200)
    figures = report.metrics["disc"]
    s, t = figures["sensitivity"].value, figures["specificity"].value
    assert figures["ppv_at_prevalence"].value == pytest.approx(0.02 * s / (0.02 * s + 0.98 * (1 - t)))
    sampled = medzoo.evaluate(run, prevalence=0.02, case_sampled=True, resamples=200)
    assert np.isnan(sampled.metrics["disc"]["ppv"].value)
    assert sampled.metrics["disc"]["ppv_at_prevalence"].value == figures["ppv_at_prevalence"].value
    assert "sampled by class" in sampled.summary()
    with pytest.raises(ConfigError, match="sampled by class"):
        medzoo.evaluate(run, case_sampled=True)
    for wrong in (0, 1, {"other": 0.1}):
        with pytest.raises(ConfigError, match="prevalence"):
            medzoo.evaluate(run, prevalence=wrong)


def test_images_are_drawn_on_request(run):
    assert all(example.image is None for example in medzoo.evaluate(run, resamples=100).examples)
    drawn = medzoo.evaluate(run, resamples=100, images=True, examples=2).examples
    assert drawn
    assert all(example.image.png.startswith(b"\x89PNG") for example in drawn)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("runs/dics", {}, "no such folder of a run"),
        ([], {}, "expected a model, got an empty list"),
        (3, {}, "expected a model, a run, scores or a path, got int"),
        ("dics", {}, "no model"),
        ("xray_cnn:none", {}, "none"),
    ],
)
def test_what_cannot_be_evaluated(given, options, message):
    with pytest.raises(medzoo.errors.MedzooError, match=message):
        medzoo.evaluate(given, **options)


def test_an_unfinished_run_is_named(run, tmp_path):
    (tmp_path / "run.json").write_text((run.folder / "run.json").read_text())
    with pytest.raises(ConfigError, match="has no model yet"):
        medzoo.evaluate(tmp_path)


def test_the_command_line(run, data, tmp_path):
    result = cli("evaluate", run.folder, "--by", "site,age", "--resamples", 200)
    assert result.exit_code == 0, result.output
    assert "AUROC" in result.output
    folder = run.folder / "evaluation" / "test"
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.json", "scores.csv"}
    again = cli("evaluate", folder / "scores.csv", "--resamples", 200, "--threshold", run.model.outputs.thresholds[0])
    assert again.exit_code == 0, again.output
    line = next(line for line in result.output.splitlines() if "positive patients" in line)
    assert line in again.output.splitlines(), "the scores that were written give the same figures"
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert config["metrics"]["test: AUROC"] == pytest.approx(json.loads((folder / "report.json").read_text())[
        "metrics"]["labels"]["disc"]["figures"]["auroc"]["value"], abs=1e-4)  # fmt: skip
    other = write_discs(tmp_path / "site", 60, seed=5)
    result = cli("evaluate", run.folder, "--data", other, "--against", run.folder, "--to", tmp_path / "out",
                 "--resamples", 200)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "report.html").exists()
    result = cli("evaluate", run.folder, "--data", other, "--resamples", 200)
    assert result.exit_code == 0, result.output
    assert len(list((run.folder / "evaluation").glob("t-*/report.html"))) == 1, "beside the report of the test part"
    fault = cli("evaluate", run.folder, "--data", data)
    assert fault.exit_code == DataError.exit_code
    assert "--seen drop" in fault.output


def test_recalibration_on_the_command_line(run, data, tmp_path):
    site = write_discs(tmp_path / "site", 120, seed=4)
    result = cli("recalibrate", run.folder, "--data", site, "--rule", "sensitivity>=0.9", "--site", "south",
                 "--to", tmp_path / "m")  # fmt: skip
    assert result.exit_code == 0, result.output
    model = medzoo.create(f"local-dir:{tmp_path / 'm'}")
    assert model.outputs.policy.rule == "sensitivity >= 0.9"
    assert "south" in model.outputs.policy.split
    fault = cli("recalibrate", run.folder, "--data", data, "--to", tmp_path / "x")
    assert "that disc was trained" in fault.output
    assert "--seen drop" in fault.output
    fault = cli("recalibrate", run.folder, "--prevalence", 0.02, "--rule", "youden", "--to", tmp_path / "x")
    assert "--rule is for --data" in fault.output
    shifted = cli("recalibrate", run.folder, "--prevalence", 0.02, "--to", tmp_path / "s")
    assert shifted.exit_code == 0, shifted.output
    assert "shift" in shifted.output


def test_options_that_do_not_go_together(run, data, tmp_path):
    (tmp_path / "s.csv").write_text("target,probability\n1,0.5\n0,0.2\n")
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ((tmp_path / "s.csv", "--images"), "--images has no effect"),
        ((tmp_path / "s.csv", "--uncertain", "mask"), "--uncertain has no effect"),
        ((run.folder, "--to", tmp_path / "file"), "cannot be written"),
        ((run.folder, "--labels", "a"), "--labels is for --data"),
        ((run.folder.parent / "dics",), "Did you mean 'disc'"),
        ((run.folder, "--label-col", "disc"), "--label-col is for --data"),
        ((run.folder, "--threshold", "0.5"), "for files of scores"),
        ((run.folder, "--data", data, "--part", "test", "--seen", "drop", "--by", "sight"), "Did you mean 'site'"),
    ):
        result = cli("evaluate", *arguments)
        assert result.exit_code != 0
        assert message in result.output


@pytest.mark.slow
def test_a_weighted_loss_is_compared_with_an_unweighted_one(data, tmp_path):
    recipe = RECIPE.with_(**{"loss.balance": "class", "decide.baseline": True, "decide.calibrate": "none"})
    run = medzoo.train(recipe, data, to=tmp_path / "weighted")
    figures = json.loads((run.folder / "report.json").read_text())
    assert figures["comparison"]["names"] == ["with weights", "without weights"]
    shift = figures["comparison"]["labels"]["disc"]["log_loss"]
    assert shift["this"] == pytest.approx(figures["metrics"]["labels"]["disc"]["figures"]["log_loss"]["value"])
    parts = [(run.folder / name / "data" / "fingerprint.json").read_text() for name in ("", "baseline")]
    assert json.loads(parts[0])["digest"] == json.loads(parts[1])["digest"], "the same rows in the same parts"


@pytest.mark.slow
def test_folds_are_pooled(tmp_path):
    data = write_discs(tmp_path / "data", 60, seed=6)
    recipe = RECIPE.with_(**{"split.folds": 2})
    runs = [medzoo.train(recipe.with_(**{"split.fold": i}), data, to=tmp_path / f"f{i}") for i in range(2)]
    report = medzoo.evaluate(runs, out_of_fold=True, resamples=200)
    assert report.metrics.rows == 120
    assert report.metrics.patients == 60
    assert report.metrics["disc"].calls is None, "each fold has its own threshold"
    result = cli("evaluate", *(run.folder for run in runs), "--out-of-fold", "--resamples", 200)
    assert result.exit_code == 0, result.output
    assert len(list((runs[0].folder / "evaluation").glob("out-of-fold-*/report.html"))) == 1
    with pytest.raises(DataError, match="in two"):
        medzoo.evaluate([runs[0], runs[0]], out_of_fold=True)
    with pytest.raises(ConfigError, match="two runs or more"):
        medzoo.evaluate(runs[0], out_of_fold=True)


def test_scores_are_joined_with_labels_whose_images_are_elsewhere(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.random(200) < 0.3
    scores = np.clip(labels * 0.3 + rng.random(200) * 0.7, 0, 1)
    with (tmp_path / "scores.csv").open("w") as file:  # as MONAI's CSVSaver writes them
        file.writelines(f"img{i}.png,{score}\n" for i, score in enumerate(scores))
    with (tmp_path / "labels.csv").open("w") as file:
        file.write("path,Edema,pid\n")
        file.writelines(f"img{i}.png,{int(label)},p{i // 2}\n" for i, label in enumerate(labels))
    result = cli("evaluate", tmp_path / "scores.csv", "--data", tmp_path / "labels.csv", "--label-col", "Edema",
                 "--patient-col", "pid", "--resamples", 200, "--to", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "200 rows of 100 patients" in result.output
