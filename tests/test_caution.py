"""A model whose outputs say nothing about new patients states it wherever it is, and no report is made of it."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

import medzoo
from medzoo.data.table import Table
from medzoo.errors import ConfigError
from medzoo.evaluation.scores import Scores
from medzoo.training.setup import LEAKS

OPTIONS = {"widths": [4, 4, 8, 8], "hidden": 8}
REFUSED = r"got one of a reproduction\. Its split leaks on purpose"
IMAGE = np.random.default_rng(0).integers(0, 255, (1, 64, 64)).astype(np.uint8)


@pytest.fixture
def model():
    made = medzoo.create("xray_cnn", labels=["a"], task="binary", **OPTIONS).eval()
    made.set_outputs(labels=["a"], prevalence=[0.5])
    made.outputs = dataclasses.replace(made.outputs, caution=LEAKS)
    return made


@pytest.fixture
def table():
    rng = np.random.default_rng(1)
    return Table.from_arrays(
        rng.integers(0, 255, (64, 1, 64, 64)).astype(np.uint8), np.arange(64) % 2, names=["a"],
        patients=[f"p{i}" for i in range(64)],
    )  # fmt: skip


def test_it_is_saved_with_the_model_and_stays_with_its_head(model, tmp_path):
    folder = model.save_pretrained(tmp_path / "model")
    moved = medzoo.create(f"local-dir:{shutil.copytree(folder, tmp_path / 'elsewhere')}")
    assert moved.outputs == model.outputs
    assert moved.set_outputs(labels=["b"], thresholds=[0.3]).outputs.caution == LEAKS
    assert moved.set_outputs(labels=["c"], trained=moved.outputs.trained).outputs.caution == LEAKS
    moved.reset_classifier(1)
    assert moved.outputs.caution == ""
    config = json.loads((folder / "config.json").read_text())
    del config["outputs"]["caution"]
    (folder / "config.json").write_text(json.dumps(config))
    assert medzoo.create(f"local-dir:{folder}").outputs.caution == "", "older folders have none"
    with pytest.raises(ConfigError, match="expected caution to be a text"):
        dataclasses.replace(model.outputs, caution=None)


def test_it_is_at_the_top_of_the_card(model, tmp_path):
    lines = (model.save_pretrained(tmp_path) / "README.md").read_text().splitlines()
    assert lines[lines.index("# xray_cnn") + 2] == f"> **{LEAKS}**"
    model.outputs = dataclasses.replace(model.outputs, caution="")
    assert ">" not in (model.save_pretrained(tmp_path) / "README.md").read_text().partition("```")[0]


def test_evaluate_froc_recalibrate_and_train_refuse_it(model, table, tmp_path):
    folder = model.save_pretrained(tmp_path / "model")
    for given in (model, f"local-dir:{folder}"):
        for call in (
            lambda given=given: medzoo.evaluate(given, table),
            lambda given=given: medzoo.evaluate(Scores.from_probabilities(
                np.full((64, 1), 0.5), ids=table.ids, targets=table.targets, labels=["a"], task="binary",
                patients=table.patients), table, against=given),
            lambda given=given: medzoo.froc(given, tmp_path),
        ):  # fmt: skip
            with pytest.raises(ConfigError, match=REFUSED):
                call()
        with pytest.raises(ConfigError, match="Its split leaks on purpose"):
            medzoo.recalibrate(given, prevalence=0.1, to=tmp_path / "new")
        with pytest.raises(ConfigError, match="Its split leaks on purpose"):
            medzoo.recalibrate(given, table, to=tmp_path / "new")
        with pytest.raises(ConfigError, match="Its split leaks on purpose"):
            medzoo.train(given if given is model else "table", table, to=tmp_path / "run",
                         **({} if given is model else {"model.name": given, "model.pretrained": False}))  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_every_prediction_has_it_and_strict_raises(model):
    with pytest.warns(UserWarning, match="Its split leaks on purpose"):
        found = medzoo.predict(model, [IMAGE, IMAGE])
    assert [one.warning.endswith(LEAKS) for one in found] == [True, True]
    assert [one.error for one in found] == ["", ""]
    assert found.counts()["with_warning"] == 2
    with pytest.raises(ConfigError, match=r"strict.*Its split leaks on purpose"):
        medzoo.predict(model, IMAGE, strict=True)
    model.outputs = dataclasses.replace(model.outputs, caution="")
    assert medzoo.predict(model, IMAGE, strict=True).warning == ""


def test_scores_in_the_folder_of_such_a_run_are_refused(tmp_path):
    run = tmp_path / "as_published"
    file = run / "predictions" / "valid.csv"
    file.parent.mkdir(parents=True)
    rows = [f"i{i},p{i},{i / 40},{i % 2}" for i in range(40)]
    file.write_text("\n".join(["id,patient,probability:a,target:a", *rows]) + "\n")
    (tmp_path / "link.csv").symlink_to(file)
    for facts, refused in (
        ({"caution": LEAKS}, True), ({"leaks_on_purpose": True}, True), ({"caution": ""}, False), ([], False),
    ):  # fmt: skip
        (run / "run.json").write_text(json.dumps(facts))
        for path in (file, tmp_path / "link.csv"):
            if refused:
                with pytest.raises(ConfigError, match=r"got those of a reproduction\. .*honest\.$"):
                    Scores.from_csv(path)
                with pytest.raises(ConfigError, match="got those of a reproduction"):
                    medzoo.evaluate(path)
            else:
                assert len(Scores.from_csv(path)) == 40
