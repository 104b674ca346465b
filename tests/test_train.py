"""``medzoo.train`` and ``medzoo.resume``: from a table to a folder with a model that predicts, also after a stop."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from images import write_images
from PIL import Image

import medzoo
from medzoo import extra
from medzoo.data.identity import pseudonym
from medzoo.errors import ConfigError, DataError, TrainError
from medzoo.evaluation.run_record import PART
from medzoo.training.folder import is_finished
from medzoo.training.lock import lock_state
from medzoo.training.recipe import Recipe
from medzoo.training.run_folder import RunFolder

TINY = {
    "model": "xray_cnn",
    "model.options": {"widths": [4, 4, 8, 8], "hidden": 8},
    "size": 32,
    "batch": 4,
    "epochs": 2,
    "lr": 0.01,
    "cache": "memory",
    "threads": 1,
    "device": "cpu",
}
COLUMNS = {"label": "grade", "patient": "pid"}


class Stop(Exception):
    """Stands for a kill."""


class StopAt(pl.Callback):
    """Raises at the end of a training batch, or of the training."""

    def __init__(self, batch: int = 0, *, end: bool = False) -> None:
        self.batch, self.end, self.seen = batch, end, 0

    def on_train_batch_end(self, *_: object) -> None:
        self.seen += 1
        if self.seen == self.batch:
            raise Stop

    def on_train_end(self, *_: object) -> None:
        if self.end:
            raise Stop


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return a table of 24 images of 12 patients, whose names must be nowhere in a run."""
    table = write_images(tmp_path_factory.mktemp("data"), patients=12)
    table.write_text(re.sub(r",p(\d)", r",SECRET-\1", table.read_text()))
    return table


def train(images, to, **more):
    return medzoo.train("table", images, to=to, root=images.parent / "images", **{**TINY, **COLUMNS, **more})


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """Return a run that was not stopped."""
    return train(images, tmp_path_factory.mktemp("runs") / "whole", checkpoint_steps=1)


def weights(run):
    return hashlib.sha256((Path(run.folder) / "model" / "model.safetensors").read_bytes()).hexdigest()


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_has_its_files(whole):
    assert {path.name for path in whole.folder.iterdir()} == {
        "recipe.yaml", "run.json", "data", "log.csv", "figures", "state", "model", "predictions",
        "report.html", "report.json",
    }  # fmt: skip
    figures = {path.name for path in (whole.folder / "figures").iterdir()}
    assert figures == {"curves.png", "incidence.png", "train_batch.png"}, "nothing is augmented"
    assert [row["epoch"] for row in whole.log] == [1, 2]
    assert is_finished(whole.folder)
    facts = json.loads((whole.folder / "run.json").read_text())
    assert facts["environment"]["threads"] == 1
    assert facts["recipe"] == Recipe.load(whole.folder / "recipe.yaml").digest()
    assert facts["seconds"] > 0


def test_the_recipe_of_a_run_gives_the_same_weights(whole, images, tmp_path):
    again = medzoo.train(whole.folder / "recipe.yaml", images, to=tmp_path / "b", root=images.parent / "images")
    assert weights(again) == weights(whole)


def test_the_model_predicts_what_the_run_says(whole, images):
    model = medzoo.create(f"local-dir:{whole.folder / 'model'}")
    assert model.outputs.labels == ("grade",)
    assert all(model.outputs.trained)
    assert model.outputs.prevalence[0] == pytest.approx(1 / 3, abs=0.1)
    assert str(images.parent) not in model.load_report.trained_on
    for row in read(whole.folder / "predictions" / "valid.csv"):
        found = medzoo.predict(model, images.parent / "images" / row["id"])
        # The cache rounds to 8 bits, which these images have.
        assert found.logits["grade"] == pytest.approx(float(row["logit:grade"]), abs=1e-5)
        assert found.probabilities["grade"] == pytest.approx(float(row["probability:grade"]), abs=1e-5)


def test_no_patient_is_in_the_folder(whole):
    for path in whole.folder.rglob("*"):
        if path.is_file():
            assert b"SECRET" not in path.read_bytes(), path
    assert {row["patient"] for row in read(whole.folder / "predictions" / "valid.csv")} <= {
        pseudonym(f"SECRET-{i}") for i in range(12)
    }


def test_the_parts_are_written(whole):
    rows = read(whole.folder / "data" / "table.csv")
    assert {row[PART] for row in rows} == {"train", "valid", "test"}
    found = json.loads((whole.folder / "data" / "fingerprint.json").read_text())["parts"]
    assert sum(part["rows"] for part in found.values()) == 24
    assert sum(part["patients"] for part in found.values()) == 12
    assert sum(part["positives"]["grade"] for part in found.values()) == 8


def test_a_finished_run_is_returned(whole):
    again = medzoo.resume(whole.folder)
    assert again.log == whole.log
    assert torch.equal(again.model.head.classifier.weight, whole.model.head.classifier.weight)
    with pytest.raises(ConfigError, match="holds a finished training"):
        medzoo.train("table", "n.csv", to=whole.folder)


@pytest.mark.parametrize(
    "stop", [StopAt(1), StopAt(3), StopAt(4), StopAt(end=True)], ids=["first batch", "mid-epoch", "epoch's end", "end"]
)
def test_a_stopped_run_continues_to_the_same_weights(whole, images, tmp_path, stop):
    with pytest.raises(Stop):
        train(images, tmp_path / "a", checkpoint_steps=1, callbacks=[stop])
    assert not (tmp_path / "a" / "model").exists()
    with pytest.raises(ConfigError, match=r"not finished\. Continue it with medzoo\.resume"):
        train(images, tmp_path / "a")
    run = medzoo.resume(tmp_path / "a")
    assert weights(run) == weights(whole)
    ours, theirs = (read(Path(r.folder) / "predictions" / "valid.csv") for r in (run, whole))
    assert ours == theirs
    timed = ("seconds", "samples_per_second", "data_wait_share")
    assert [{k: v for k, v in row.items() if k not in timed} for row in run.log] == [
        {k: v for k, v in row.items() if k not in timed} for row in whole.log
    ]


def test_a_resume_needs_no_source_table(whole, images, tmp_path):
    table = tmp_path / "n.csv"
    table.write_text(images.read_text())
    with pytest.raises(Stop):
        medzoo.train(
            "table", table, to=tmp_path / "a", root=images.parent / "images", callbacks=[StopAt(3)],
            checkpoint_steps=1, **TINY, **COLUMNS,
        )  # fmt: skip
    table.unlink()
    assert weights(medzoo.resume(tmp_path / "a")) == weights(whole)


def test_fault_103_a_resume_with_another_image_is_refused(tmp_path):
    table = write_images(tmp_path / "data", patients=12)
    with pytest.raises(Stop):
        train(table, tmp_path / "a", callbacks=[StopAt(3)], checkpoint_steps=1)
    Image.fromarray(np.zeros((32, 32), np.uint8) + np.arange(32, dtype=np.uint8)).save(
        tmp_path / "data" / "images" / "3_0.png"
    )
    with pytest.raises(ConfigError, match="rows, labels, parts or pixels are others than when the run began"):
        medzoo.resume(tmp_path / "a")


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match=r"expected the folder of a run, with run\.json in it"):
        medzoo.resume(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ConfigError, match="expected what medzoo wrote"):
        medzoo.resume(tmp_path)


def test_a_run_that_cannot_begin_leaves_nothing(images, tmp_path):
    with pytest.raises(DataError, match="24 images that do not exist"):
        medzoo.train("table", images, to=tmp_path / "a", root=tmp_path, **TINY, **COLUMNS)
    assert not (tmp_path / "a").exists()


def test_images_in_memory_are_given_again(tmp_path):
    rng = np.random.default_rng(0)
    table = medzoo.Table.from_arrays(rng.integers(0, 256, (24, 32, 32), np.uint8), np.arange(24) % 2)
    how = {**TINY, "patient_groups": False, "checkpoint_steps": 1}
    expected = medzoo.train("table", table, to=tmp_path / "whole", **how)
    with pytest.raises(Stop):
        medzoo.train("table", table, to=tmp_path / "a", callbacks=[StopAt(3)], **how)
    with pytest.raises(ConfigError, match=r"images in memory, which it does not keep.*data=table"):
        medzoo.resume(tmp_path / "a")
    assert weights(medzoo.resume(tmp_path / "a", data=table)) == weights(expected)


def test_a_model_is_trained_as_a_copy(images, tmp_path):
    torch.manual_seed(5)
    model = medzoo.create("xray_cnn", size=32, widths=(4, 4, 8, 8), hidden=8, labels=["grade"], task="binary")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    how = {name: value for name, value in TINY.items() if not name.startswith("model") and name != "size"}
    how |= {**COLUMNS, "root": images.parent / "images", "checkpoint_steps": 1}
    whole = medzoo.train(model, images, to=tmp_path / "whole", **how)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(Stop):  # before the first checkpoint
        medzoo.train(model, images, to=tmp_path / "a", callbacks=[StopAt(1)], **how)
    assert weights(medzoo.resume(tmp_path / "a")) == weights(whole)


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["encoder", "features"])
def test_a_frozen_training_that_continues_with_all_weights(images, tmp_path, freeze):
    how = {"freeze": freeze, "then": "finetune", "checkpoint_steps": 1}
    whole = train(images, tmp_path / "whole", **how)
    assert (whole.folder / "frozen" / "log.csv").exists()
    for number, batch in enumerate((3, 11)):  # in each of the phases
        folder = tmp_path / f"stopped {number}"
        with pytest.raises(Stop):
            train(images, folder, callbacks=[StopAt(batch)], **how)
        assert weights(medzoo.resume(folder)) == weights(whole)


def test_other_splits(images, tmp_path):
    run = train(images, tmp_path / "a", epochs=1, folds=3, fold=1)
    parts = {row[PART] for row in read(run.folder / "data" / "table.csv")}
    assert parts == {"train", "valid"}
    run = train(images, tmp_path / "b", epochs=1, leave_out={"site": ["B"]})
    rows = read(run.folder / "data" / "table.csv")
    assert {row["site"] for row in rows if row[PART] == "test"} == {"B"}
    assert {row["site"] for row in rows if row[PART] != "test"} == {"A"}


def test_an_unreadable_image_is_dropped_on_request(tmp_path):
    table = write_images(tmp_path / "data", patients=12)
    (tmp_path / "data" / "images" / "3_0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 24 images cannot be used"):
        train(table, tmp_path / "a")
    with pytest.raises(Stop):
        train(table, tmp_path / "a", unreadable="drop", callbacks=[StopAt(3)], checkpoint_steps=1)
    (dropped,) = read(tmp_path / "a" / "data" / "dropped.csv")
    assert dropped["id"] == "3_0.png"
    medzoo.resume(tmp_path / "a")


def test_the_size_of_images_reaches_a_model_of_one_size(images, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.size: xray_cnn takes 2 sides, got 3"):
        train(images, tmp_path / "a", **{"model.options": {"size": 32}, "size": [32, 32, 32]})


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(extra, "_is_installed", lambda name: name != "lightning")
    with pytest.raises(ConfigError, match=r"not installed \(lightning\)\. Run: pip install 'medzoo\[train\]'"):
        extra.require_train_extra()


def test_what_cannot_be_written_names_the_file(tmp_path):
    (tmp_path / "data").write_text("a file in the way")
    with pytest.raises(TrainError, match="cannot be written"):
        RunFolder(tmp_path).write("data/table.csv", "")


def test_a_resumed_run_states_what_a_whole_one_does(whole, images, tmp_path):
    with pytest.raises(Stop):
        train(images, tmp_path / "a", checkpoint_steps=1, callbacks=[StopAt(3)])
    medzoo.resume(tmp_path / "a")
    for name in ("model/config.json", "predictions/valid.csv", "data/table.csv", "recipe.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (whole.folder / name).read_bytes(), name
    patients = {row["medzoo:id"]: row["medzoo:patient"] for row in read(whole.folder / "data" / "table.csv")}
    for row in read(tmp_path / "a" / "predictions" / "valid.csv"):
        assert row["patient"] == patients[row["id"]]


def test_predictions_are_those_of_the_saved_model_in_bf16_too(images, tmp_path):
    run = train(images, tmp_path / "a", epochs=1, precision="bf16")
    row = read(run.folder / "predictions" / "valid.csv")[0]
    found = medzoo.predict(run.model, images.parent / "images" / row["id"])
    assert found.logits["grade"] == pytest.approx(float(row["logit:grade"]), abs=1e-5)


def test_a_run_of_a_model_is_continued_in_another_place(images, tmp_path):
    model = medzoo.create("xray_cnn", size=32, widths=(4, 4, 8, 8), hidden=8, labels=["grade"], task="binary")
    how = {name: value for name, value in TINY.items() if not name.startswith("model") and name != "size"}
    with pytest.raises(Stop):
        medzoo.train(
            model, images, to=tmp_path / "a", root=images.parent / "images", callbacks=[StopAt(3)], checkpoint_steps=1,
            **how, **COLUMNS,
        )  # fmt: skip
    (tmp_path / "a").rename(tmp_path / "b")
    assert medzoo.resume(tmp_path / "b").folder == tmp_path / "b"


def test_threads_and_recipe_are_compared_before_the_first_checkpoint_too(images, tmp_path):
    with pytest.raises(Stop):
        train(images, tmp_path / "a", callbacks=[StopAt(1)], threads=None)
    now = torch.get_num_threads()
    torch.set_num_threads(1 + now)
    try:
        medzoo.resume(tmp_path / "a")
    finally:
        torch.set_num_threads(now)
    facts = json.loads((tmp_path / "a" / "run.json").read_text())
    assert facts["environment"]["threads"] == now  # those of the run, not of the process that resumes
    with pytest.raises(Stop):
        train(images, tmp_path / "b", callbacks=[StopAt(1)])
    path = tmp_path / "b" / "recipe.yaml"
    path.write_text(path.read_text().replace("lr: 0.01", "lr: 0.02"))
    with pytest.raises(ConfigError, match=r"recipe\.yaml was changed"):
        medzoo.resume(tmp_path / "b")


def test_a_start_that_was_killed_is_cleared_away(images, whole, tmp_path):
    folder = tmp_path / "a"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "LOCK").touch()
    (folder / "recipe.yaml").write_text("half")
    (folder / "initial").mkdir()
    run = train(images, folder, checkpoint_steps=1)
    assert weights(run) == weights(whole)
    assert not (folder / "initial").exists()


def test_columns_that_would_name_a_patient_are_not_written(tmp_path):
    table = write_images(tmp_path / "data", patients=12)
    rows = table.read_text().splitlines()
    more = ["PatientName,note", *(f'N{i // 2},"a\rb"' for i in range(24))]
    rows = [f"{row},{extra}" for row, extra in zip(rows, more, strict=True)]
    table.write_text("\n".join(rows) + "\n", newline="")
    with pytest.raises(Stop):
        train(table, tmp_path / "a", callbacks=[StopAt(3)], checkpoint_steps=1)
    (found, *_) = read(tmp_path / "a" / "data" / "table.csv")
    assert "PatientName" not in found
    assert found["note"] == "a\rb"
    medzoo.resume(tmp_path / "a")


def test_the_random_numbers_of_the_caller_are_kept(images, tmp_path):
    torch.manual_seed(4)
    before = torch.get_rng_state()
    train(images, tmp_path / "a", epochs=1, freeze="encoder", then="finetune", then_epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_fault_98_a_signal_at_the_end_of_a_phase_stops_the_run(images, tmp_path):
    class Terminate(pl.Callback):
        def on_train_end(self, *_: object) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainError, match=r"stopped by SIGTERM.*medzoo\.resume\('.*/a'\)") as caught:
        train(images, tmp_path / "a", freeze="encoder", then="finetune", callbacks=[Terminate()])
    assert caught.value.exit_code == 143
    assert not (tmp_path / "a" / "state" / "step-000000001.ckpt").exists()
    medzoo.resume(tmp_path / "a")


def test_a_full_disk_stops_no_log(images, tmp_path, monkeypatch):
    from medzoo.training import epoch_log

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(epoch_log, "write_atomically", full)
    with pytest.warns(UserWarning, match="the log cannot be written"):
        assert train(images, tmp_path / "a", epochs=1).log == ()


def test_a_saved_model_gets_a_new_last_layer_for_other_labels(whole, images, tmp_path):
    how = {name: value for name, value in TINY.items() if not name.startswith("model") and name != "size"}
    how |= {"root": images.parent / "images", "patient": "pid", "epochs": 1}
    saved = f"local-dir:{whole.folder / 'model'}"
    run = medzoo.train("table", images, to=tmp_path / "a", label="site", labels=["A", "B"], model=saved, **how)
    assert run.model.outputs.labels == ("B",)
    fresh = medzoo.create("xray_cnn", size=32, widths=(4, 4, 8, 8), hidden=8, num_classes=1)
    assert medzoo.train(fresh, images, to=tmp_path / "b", label="grade", **how).model.outputs.labels == ("grade",)


def test_what_a_table_shows_comes_before_its_images_are_read(images, tmp_path, monkeypatch):
    monkeypatch.setattr("medzoo.training.setup.PixelStore", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(DataError, match="the patients are not known"):
        train(images, tmp_path / "a", patient=None)
    with pytest.raises(ConfigError, match=r"no column 'sit'.* Did you mean 'site'"):
        train(images, tmp_path / "a", **{"split.column": "sit"})
    with pytest.raises(ConfigError, match=r"'cuda' is not available"):
        train(images, tmp_path / "a", device="cuda")


def test_fault_112_a_batch_that_is_larger_than_the_data(images, tmp_path):
    with pytest.raises(
        ConfigError, match=r"train\.batch: expected at most the \d+ rows of the train part, got 1000\. Give"
    ):
        train(images, tmp_path / "a", batch=1000)


def test_parts_of_the_data_that_are_not_used_are_named(images, tmp_path):
    for i, row in enumerate(read(images)):
        folder = tmp_path / "tree" / ("test" if i > 17 else "train") / row["grade"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / row["path"]).write_bytes((images.parent / "images" / row["path"]).read_bytes())
    how = {**TINY, "epochs": 1, "patient_groups": False}
    with pytest.warns(UserWarning, match=r"parts of its own, column 'split', which are not used"):
        medzoo.train("table", tmp_path / "tree", to=tmp_path / "a", **how)
    run = medzoo.train("table", tmp_path / "tree", to=tmp_path / "b", **{"split.column": "split"}, **how)
    assert sum(row[PART] == "test" for row in read(run.folder / "data" / "table.csv")) == 6


def test_fault_104_who_waits_in_vain_for_the_lock_removes_nothing(images, tmp_path, monkeypatch):
    monkeypatch.setattr("medzoo.training.lock.PATIENCE", 0.2)
    with lock_state(tmp_path / "a" / "state"), pytest.raises(TrainError, match="another process trains"):
        train(images, tmp_path / "a")
    assert (tmp_path / "a" / "state" / "LOCK").exists()
