"""The folder of a run, read without what trains: its table, log, predictions and what was dropped."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from images import OPTIONS, write_images

import medzoo
from medzoo.data.identity import pseudonym
from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.characteristics import characteristics_of_run
from medzoo.evaluation.drift import compare_data, describe_data
from medzoo.evaluation.flow import flow_of_run
from medzoo.evaluation.run_record import PART, PIXELS, RunRecord, is_run
from medzoo.evaluation.scores import Scores
from medzoo.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a run whose split column gives a patient of train to test, and one no part."""
    folder = tmp_path_factory.mktemp("run")
    table = write_images(folder / "data", patients=24)
    rows = read(table)
    for i, row in enumerate(rows):
        patient = int(row["pid"][1:])
        row["part"] = "test" if patient >= 18 or i == 5 else "val" if patient >= 12 else "" if patient == 0 else "train"
        row["note"] = f"Anna of {row['pid']}"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    medzoo.train(
        "table", table, to=folder / "run", root=folder / "data" / "images", label="grade", patient="pid", column="part",
        on_leak="drop-train", epochs=1, threads=1, device="cpu", **OPTIONS | {"cache": "memory"},
    )  # fmt: skip
    return RunRecord(folder / "run")


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def copy(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    return RunRecord(tmp_path / "copy")


def test_what_a_run_holds_is_read(run):
    assert is_run(run.path)
    assert is_run(str(run.path))
    assert not is_run(run.path.parent)
    assert run.facts()["task"] == "binary"
    table = run.read_table()
    assert len(table) == 48
    assert table.labels == ("grade",)
    assert set(np.unique(table.groups[PART])) == {"", "train", "valid", "test"}
    assert set(table.groups) == {PART, PIXELS, "site", "part"}
    assert set(table.patients) == {pseudonym(f"p{i}") for i in range(24)}
    assert [row["epoch"] for row in run.read_log()] == [1]
    assert {each.reason for each in run.dropped()} == {
        "no part in column 'part'", f"patient {pseudonym('p2')[7:15]} is also in test",
    }  # fmt: skip
    assert all(table.ids[each.row] == each.id for each in run.dropped())
    assert run.weights().labels == ("grade",)


def test_predictions_are_scores(run):
    scores = run.predictions("valid")
    assert len(scores) == 12
    assert scores.labels == ("grade",)
    assert scores.task == "binary"
    assert scores.thresholds == (None,), "too few patients"
    assert scores.threshold_rule == "Youden"
    assert set(scores.groups) == {"site", "part"}
    table = run.read_table()
    places = {one: row for row, one in enumerate(table.ids)}
    at = [places[one] for one in scores.ids]
    np.testing.assert_array_equal(scores.targets, table.targets[at])
    np.testing.assert_array_equal(scores.patients, table.patients[at])
    np.testing.assert_array_equal(scores.groups["site"], table.groups["site"][at])
    written = read(run.path / "predictions" / "valid.csv")
    np.testing.assert_allclose(scores.probabilities[:, 0], [float(r["probability:grade"]) for r in written], atol=1e-7)
    np.testing.assert_array_equal(scores.logits[:, 0], [float(r["logit:grade"]) for r in written])


def test_the_folder_that_training_writes_is_read_the_same(run):
    assert issubclass(RunFolder, RunRecord)
    assert RunFolder(run.path).read_log() == run.read_log()


def test_thresholds_and_their_rule_are_those_of_the_model(run, tmp_path):
    again = copy(run, tmp_path)
    config = again.model / "config.json"
    found = json.loads(config.read_text())
    found["outputs"] |= {"thresholds": [0.3], "policy": {
        "rule": "sensitivity >= 0.9", "split": "validation", "positives": [4], "negatives": [8], "scale": "probability",
    }}  # fmt: skip
    config.write_text(json.dumps(found))
    scores = again.predictions("valid")
    assert (scores.thresholds, scores.threshold_rule) == ((0.3,), "sensitivity >= 0.9")


def test_rescaled_probabilities_are_kept(run, tmp_path):
    again = copy(run, tmp_path)
    config = again.model / "config.json"
    found = json.loads(config.read_text())
    found["outputs"] |= {"thresholds": [0.3], "normalised": True}
    config.write_text(json.dumps(found))
    scores = again.predictions("valid")
    assert scores.thresholds == (0.5,)
    written = [float(row["probability:grade"]) for row in read(run.path / "predictions" / "valid.csv")]
    np.testing.assert_array_equal(scores.probabilities[:, 0], written)


def test_what_is_missing_or_damaged_is_named(run, tmp_path):
    with pytest.raises(ConfigError, match=r"expected the folder of a run, with run\.json in it"):
        RunRecord(tmp_path).facts()
    with pytest.raises(ConfigError, match=r"got 'test'\. It has valid"):
        run.predictions("test")
    again = copy(run, tmp_path)
    table, predictions = again.path / "data" / "table.csv", again.path / "predictions" / "valid.csv"
    text = predictions.read_text()
    predictions.write_text(text.replace('"12_0.png"', '"other.png"'))
    with pytest.raises(DataError, match="1 of 12 rows are not in the table of the run"):
        again.predictions("valid")
    predictions.write_text(text.replace(":grade", ":other"))
    with pytest.raises(DataError, match="expected the labels of the model, grade, got other"):
        again.predictions("valid")
    predictions.write_text(text.replace('"0.0"', '"zero"'))
    with pytest.raises(DataError, match=r"valid\.csv: the predictions cannot be read"):
        again.predictions("valid")
    table.write_text(table.read_text().replace(PART, "part2"))
    with pytest.raises(DataError, match=f"the table of the run cannot be read .it has no column {PART}"):
        again.read_rows()
    (again.path / "data" / "fingerprint.json").write_text("[1]")
    with pytest.raises(DataError, match="the fingerprint of the data cannot be read"):
        again.fingerprint()
    (again.path / "data" / "dropped.csv").write_text("row,id,reason\nx,y,z\n")
    with pytest.raises(DataError, match="the list of dropped rows cannot be read"):
        again.dropped()
    (again.path / "log.csv").write_text("epoch,loss\n1,low\n")
    with pytest.raises(DataError, match="the log of the run cannot be read"):
        again.read_log()
    shutil.rmtree(again.model)
    with pytest.raises(ConfigError, match=r"has no model yet.*medzoo\.resume"):
        again.weights()


def test_the_fingerprint_describes_the_training_part(run):
    found = run.fingerprint()
    assert found["parts"]["train"]["rows"] == 20
    assert found["pixels"]["images"] == 20
    assert found["pixels"]["figures"]["mean"][0] == pytest.approx(0.5, abs=0.02)  # uniform noise
    assert {name for name, about in found["groups"].items() if about} == {"site"}
    assert found["digest"] == run.facts()["data"]


def test_drift_within_a_run_is_small_and_old_fingerprints_are_read(run):
    found = run.fingerprint()
    here = describe_data(run.predictions("valid"))
    drift = compare_data(found, here)
    assert not any(row.large for row in drift.rows)
    assert any("the pixels are not compared" in note and "this data" in note for note in drift.notes)
    old = {name: value for name, value in found.items() if name not in ("pixels", "groups")}
    drift = compare_data(old, here)
    assert [row.what for row in drift.rows] == ["rows", "patients", "prevalence of grade"]
    assert any("the columns are not compared" in note and "training" in note for note in drift.notes)


def test_the_flow_of_a_run_adds_up_and_names_nobody(run):
    scores = run.predictions("valid")
    flow = flow_of_run(run, scores)
    assert [(step.text, step.rows, step.patients) for step in flow.steps] == [
        ("rows of the table", 48, 24), ("rows in a part of the split", 45, 23), ("rows of valid", 12, 6),
        ("rows evaluated", 12, 6),
    ]  # fmt: skip
    assert flow.steps[0].dropped == (("no part in column 'part'", 2), ("patient also in another part", 1))
    for step, following in zip(flow.steps, flow.steps[1:], strict=False):
        assert step.rows - sum(n for _, n in step.dropped) == following.rows
    assert [(part.text, part.rows, part.patients) for part in flow.parts] == [
        ("train", 20, 10), ("valid", 12, 6), ("test", 13, 7),
    ]  # fmt: skip
    text = json.dumps([flow.to_dict(), characteristics_of_run(run).to_dict()])
    assert "sha256" not in text
    assert ".png" not in text
    assert "Anna" not in text
    assert not any(pseudonym(f"p{i}")[7:15] in text for i in range(24))


def test_rows_without_a_score_are_counted(run):
    scores = run.predictions("valid").select(range(10))
    flow = flow_of_run(run, scores, dropped=[medzoo.data.identity.Dropped(0, "17_0.png", "cannot be read: /a/b.png")])
    assert flow.steps[2].dropped == (("cannot be read", 1), ("no score", 1))
    assert flow.steps[3].rows == 10


def test_scores_of_several_parts_are_one_flow(run):
    table, valid = run.read_rows(), run.predictions("valid")
    rows = np.flatnonzero(np.isin(table.groups[PART], ["valid", "test"]))
    scores = Scores.from_logits(
        np.zeros((len(rows), 1)), task="binary", ids=table.ids[rows], targets=table.targets[rows], labels=valid.labels
    )
    flow = flow_of_run(run, scores)
    assert flow.steps[1].dropped == (("in train, which is not evaluated", 20),)
    assert (flow.steps[2].text, flow.steps[2].rows, flow.steps[3].rows) == ("rows of valid and test", 25, 25)


def test_scores_of_other_data_are_refused(run):
    scores = run.predictions("valid")
    object.__setattr__(scores, "ids", np.array([f"other {i}" for i in range(12)]))
    with pytest.raises(
        DataError, match=r"12 of 12 ids are in no part of its table\. For other data use flow_of_scores"
    ):
        flow_of_run(run, scores)


def test_characteristics_of_a_run(run):
    found = characteristics_of_run(run)
    assert found.columns == ("train", "valid", "test", "all")
    rows = dict(found.rows)
    assert rows["rows"] == ("20", "12", "13", "45")
    assert rows["patients"] == ("10", "6", "7", "23")
    assert rows["images per patient, median (range)"][3] == "2 (1 to 2)"
    counts = [int(text.split()[0]) for text in rows["grade, n (%)"]]  # as the results state them
    assert counts[3] == sum(counts[:3])
    assert not any("part" in name for name in rows)


def test_a_run_of_arrays_is_read_without_images(run, tmp_path):
    again = copy(run, tmp_path)
    path = again.path / "data" / "table.csv"
    rows = read(path)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "medzoo:paths": ""} for row in rows)
    with pytest.raises(ConfigError, match=r"images in memory, which it does not keep"):
        again.read_table()
    assert len(again.read_rows()) == 48
    assert len(again.predictions("valid")) == 12


def test_no_training_library_is_imported():
    code = """
import sys
import medzoo.evaluation.characteristics, medzoo.evaluation.drift, medzoo.evaluation.openings
import medzoo.evaluation.pseudonyms
heavy = {"lightning", "pydantic", "scipy", "sklearn", "matplotlib", "pandas"} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(medzoo.__file__).parents[1])
