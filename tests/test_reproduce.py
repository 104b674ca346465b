"""``medzoo.reproduce``: what a way of measuring makes of data in which there is nothing but a leak."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from published_2d import write_nih
from sklearn import metrics as peer
from sklearn.dummy import DummyClassifier

import medzoo
from medzoo.cli.main import main
from medzoo.data.identity import pseudonym
from medzoo.data.permute import permute_labels
from medzoo.data.split import leaking_split
from medzoo.data.table import Table
from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.scores import Scores
from medzoo.training import epoch_log
from medzoo.training import run as training_run
from medzoo.training.looks import Looks
from medzoo.training.recipe import ProtocolSection, Recipe
from medzoo.training.reproduce import SAME
from medzoo.training.reproduce import _as_published as as_published
from medzoo.training.reproduce_figures import best_look, chance_of, common_labels, figure_rows, figures_of, reasons_of
from medzoo.training.reproduce_ways import WAYS, Measured
from medzoo.training.reproduction import Reproduction
from medzoo.training.run_folder import RunFolder
from medzoo.training.setup import LEAKS, set_up
from medzoo.training.source import load_table

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*log_", "ignore:.*predicts one class"
)
PROTOCOL = {"split": "row", "shares": [0.7, 0.3, 0.0], "epoch": "best", "figures": ["accuracy", "precision"]}
RECIPE = {
    "name": "leaky",
    "model": {"name": "xray_cnn", "in_chans": 1, "options": {"widths": [16, 16, 32, 32], "hidden": 64}},
    "data": {"label": "grade", "patient": "pid", "size": 32, "cache": "memory"},
    "split": {"shares": [0.4, 0.1, 0.5]},
    "optimizer": {"lr": 0.003},
    "train": {"epochs": 10, "batch": 8, "threads": 1, "device": "cpu", "stop_after": 2, "seed": 1},
    "source": {"reference": "a drawn source", "claim": {"accuracy": 0.97}, "protocol": PROTOCOL},
}


def draw_images(folder: Path, patients: int = 44, each: int = 3) -> Path:
    """Write images in which each patient has a pattern of its own, and the label, drawn by patient, no link to it."""
    rng = np.random.default_rng(5)
    labels = rng.permutation(np.arange(patients) % 2)
    lines = ["path,grade,pid,half"]
    for patient in range(patients):
        pattern = np.kron(rng.choice([40, 216], (4, 4)), np.ones((8, 8)))
        for i in range(each):
            image = np.clip(pattern + rng.normal(0, 6, (32, 32)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / f"{patient}_{i}.png")
            part = ("train", "valid", "test")[i]
            lines.append(f"{patient}_{i}.png,{labels[patient]},SECRET-{patient},{part}")
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the table, the recipe and the folder of the reproductions, with a home of their own."""
    folder = tmp_path_factory.mktemp("reproduce")
    (folder / "images").mkdir()
    (folder / "leaky.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDZOO_HOME", str(folder / "home"))
        patch.setattr(epoch_log, "draw_curves", lambda *_: None)  # takes longer than an epoch
        yield draw_images(folder / "images"), folder / "leaky.yaml", folder


@pytest.fixture(scope="module")
def found(files):
    table, recipe, folder = files
    return medzoo.reproduce(recipe, table, to=folder / "whole")


def value(found, figure, way):
    return found[figure].estimates[way].value


def rows_of(found, way, part):
    """Return the table of a run and which of its rows are in a part."""
    own = RunFolder(found.folder / way).read_rows()
    return own, own.groups["medzoo:part"] == part


def logits_of(found, run, table, rows):
    """Return the logits of a saved model, by its forward pass on images that are read here."""
    model = medzoo.create(f"local-dir:{found.folder / run / 'model'}").eval()
    how = model.preprocessing
    images = [np.asarray(Image.open(table.parent / name), np.float32)[None] / 255 for name in rows]
    with torch.inference_mode():
        return model((torch.tensor(np.stack(images)) - how.mean[0]) / how.std[0]).numpy()[:, 0]


@pytest.mark.slow
def test_a_leak_looks_like_a_model(found):
    """The way of the source is at its best where there is nothing to learn; the honest one is at chance."""
    assert value(found, "accuracy", "as_published") > 0.9
    assert value(found, "auroc", "as_published") > 0.95
    assert value(found, "accuracy", "permuted_as_published") > 0.8
    assert value(found, "accuracy", "honest") < 0.7
    for way in ("honest", "permuted_honest"):
        interval = found["auroc"].estimates[way]
        assert interval.low < 0.5 < interval.high
        assert interval.high < value(found, "auroc", "as_published")
    assert found["accuracy"].claimed == 0.97
    assert found["auroc"].claimed is None
    assert [row.name for row in found.figures] == ["accuracy", "precision", "auroc"]


@pytest.mark.slow
def test_the_honest_figures_are_of_the_test_part_and_the_last_epoch(found, files):
    own, rows = rows_of(found, "honest", "test")
    truth, logits = own.targets[rows, 0], logits_of(found, "honest", files[0], own.ids[rows])
    assert value(found, "auroc", "honest") == pytest.approx(peer.roc_auc_score(truth, logits), abs=1e-9)
    assert value(found, "accuracy", "honest") == pytest.approx(peer.accuracy_score(truth, logits >= 0), abs=1e-9)
    assert value(found, "precision", "honest") == pytest.approx(peer.precision_score(truth, logits >= 0), abs=1e-9)
    way = found.ways[2]
    assert (way.name, way.part, way.epoch, way.looks, way.unit, way.shared) == (
        "honest",
        "test",
        10,
        None,
        "patient",
        0,
    )
    assert len(way.scores) == rows.sum()
    # No early stopping, although the recipe has it: every run has the same number of epochs.
    for run in ("honest", "as_published", "permuted_honest", "permuted_as_published"):
        assert len(RunFolder(found.folder / run).read_log()) == 10


@pytest.mark.slow
def test_the_published_figures_are_of_the_best_epoch_by_the_first_figure(found):
    run = RunFolder(found.folder / "as_published")
    accuracies = [row["valid_accuracy"] for row in run.read_log()]
    assert value(found, "accuracy", "as_published") == pytest.approx(max(accuracies), abs=1e-9)
    way = found.ways[0]
    assert (way.epoch, way.looks, way.part) == (1 + int(np.argmax(accuracies)), 10, "valid")
    own, valid = rows_of(found, "as_published", "valid")
    train = own.groups["medzoo:part"] == "train"
    assert (valid.sum(), train.sum()) == (40, 92)
    with np.load(run.path / "looks" / f"{way.epoch:05}.npz") as look:
        truth, logits = own.targets[look["rows"], 0], look["logits"][:, 0]
        assert sorted(look["rows"]) == np.flatnonzero(valid).tolist()
    assert value(found, "auroc", "as_published") == pytest.approx(peer.roc_auc_score(truth, logits), abs=1e-9)
    assert way.shared == len(set(own.patients[train]) & set(own.patients[valid]))
    assert (way.unit, way.leaks) == ("row", True)
    text = found["accuracy"].sentence
    assert f"{way.shared} of the {way.patients} patients of the measured rows are in the training rows too" in text
    assert "the best of 10 looks at the same rows" in text
    assert "The interval of that is of rows, as patients are ignored, and too narrow" in text


@pytest.mark.slow
def test_permuted_runs_have_the_same_parts_and_other_labels(found):
    for real, permuted in (("honest", "permuted_honest"), ("as_published", "permuted_as_published")):
        a, b = (RunFolder(found.folder / name).read_rows() for name in (real, permuted))
        assert (a.ids == b.ids).all()
        assert (a.groups["medzoo:part"] == b.groups["medzoo:part"]).all()
        assert 0.3 < (a.targets == b.targets).mean() < 0.7
        assert a.targets.sum() == b.targets.sum()
    both = [RunFolder(found.folder / name).read_rows().targets for name in ("permuted_honest", "permuted_as_published")]
    assert (both[0] == both[1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("run", ["as_published", "permuted_as_published", "permuted_honest"])
def test_a_run_that_is_not_honest_cannot_look_so(found, run, tmp_path):
    folder = found.folder / run
    facts, leaks = json.loads((folder / "run.json").read_text()), "as_published" in run
    assert facts["leaks_on_purpose"] is leaks
    assert ("it leaks on purpose: in more than one part are" in facts["split"]) is leaks
    for name in (folder, f"local-dir:{folder / 'model'}"):
        with pytest.raises(ConfigError, match=r"got one of a reproduction\. Its .* Take the honest one, .*honest\."):
            medzoo.evaluate(name)
    with pytest.raises(ConfigError, match="got one of a reproduction"):
        medzoo.evaluate([found.folder / "honest", folder], out_of_fold=True)
    with pytest.raises(ConfigError, match="got one of a reproduction"):
        medzoo.recalibrate(folder, prevalence=0.1, to=tmp_path / "new")
    with pytest.raises(ConfigError, match=r"medzoo\.reproduce with the same recipe, data and folder"):
        medzoo.resume(folder)
    for read in (medzoo.evaluate, Scores.from_csv):
        with pytest.raises(ConfigError, match=r"valid\.csv: expected scores .* got those of a reproduction"):
            read(folder / "predictions" / "valid.csv")
    moved = shutil.copytree(folder / "model", tmp_path / "moved")
    assert medzoo.create(f"local-dir:{moved}").outputs.caution == facts["caution"]
    with pytest.raises(ConfigError, match=r"got one of a reproduction\. Its "):
        medzoo.evaluate(f"local-dir:{moved}")
    card = (folder / "model" / "README.md").read_text()
    assert f"# xray_cnn\n\n> **{facts['caution']}**\n" in card
    assert ("Its split leaks on purpose" in card) is leaks
    assert ("Its labels are permuted" in card) is ("permuted" in run)
    assert "| none given | |" in card
    report = json.loads((folder / "report.json").read_text())
    assert report["title"] == facts["caution"]
    assert f"<h1>{facts['caution']}</h1>" in (folder / "report.html").read_text()
    assert facts["caution"] in report["notes"]


@pytest.mark.slow
def test_the_honest_run_is_a_run_like_any_other(found):
    facts = json.loads((found.folder / "honest" / "run.json").read_text())
    assert (facts["leaks_on_purpose"], facts["caution"]) == (False, "")
    report = medzoo.evaluate(found.folder / "honest", resamples=100)
    assert report.metrics["grade"]["auroc"].value == pytest.approx(value(found, "auroc", "honest"), abs=1e-9)
    assert report.openings > 1
    assert len(Scores.from_csv(found.folder / "honest" / "predictions" / "valid.csv")) > 0
    assert medzoo.create(f"local-dir:{found.folder / 'honest' / 'model'}").outputs.caution == ""
    assert any("open the test part: the first evaluation on this data" in note for note in found.notes)


@pytest.mark.slow
def test_what_is_written_is_the_table(found):
    rows = list(csv.DictReader(io.StringIO((found.folder / "reproduction.csv").read_text())))
    facts = json.loads((found.folder / "reproduction.json").read_text())
    for row, own, plain in zip(rows, found.figures, facts["figures"], strict=True):
        assert row["figure"] == own.name == plain["name"]
        for way, estimate in own.estimates.items():
            assert float(row[way]) == estimate.value == plain["estimates"][way]["value"]
            assert float(row[f"{way}_low"]) == estimate.low
    page = (found.folder / "reproduction.html").read_text()
    for row in found.figures:
        assert row.sentence in page.replace("&#x27;", "'")
    picture = Image.open(io.BytesIO((found.folder / "reproduction.png").read_bytes()))
    assert picture.getpixel((2, 2))[:3] == (255, 255, 255)
    colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(213, 94, 0), (0, 114, 178)} <= colours, "both ways are drawn, in colours that the colour-blind tell apart"
    text = page + json.dumps(facts) + (found.folder / "reproduction.csv").read_text() + found.summary()
    for secret in ("SECRET", pseudonym("SECRET-1"), str(found.folder.parent)):
        assert secret not in text


@pytest.mark.slow
def test_the_command_prints_it_and_trains_nothing_again(found, files, monkeypatch):
    table, recipe, folder = files
    monkeypatch.setattr(training_run, "fit", None)
    arguments = ["reproduce", recipe, "--data", table, "--to", folder / "whole"]
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    for text in ("as published", "labels permuted", "0.97", f"{value(found, 'auroc', 'honest'):.3f}"):
        assert text in result.output
    again = json.loads((found.folder / "reproduction.json").read_text())
    assert again["figures"] == found.to_dict()["figures"]


@pytest.mark.slow
def test_a_stopped_reproduction_continues_to_the_same_figures(found, files, monkeypatch):
    table, recipe, folder = files

    class Stopped(Exception):
        pass

    look, seen = Looks.on_validation_end, []

    def stop(self, trainer, module):
        look(self, trainer, module)
        seen.append(trainer.current_epoch)
        if len(seen) == 13:  # in the second training
            raise Stopped

    monkeypatch.setattr(Looks, "on_validation_end", stop)
    with pytest.raises(Stopped):
        medzoo.reproduce(recipe, table, to=folder / "stopped")
    assert not (folder / "stopped" / "reproduction.json").exists()
    again = medzoo.reproduce(recipe, table, to=folder / "stopped")
    assert seen[:13] == [*range(10), 0, 1, 2]
    assert len(seen) <= 13 + 3 * 10, "the first training is not repeated"
    assert again.to_dict()["figures"] == found.to_dict()["figures"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.02}, r"another reproduction than this one: optimizer\.lr is 0\.02, was 0\.003\. Give what"),
        ({"source.protocol": {"split": "given", "column": "half"}}, "the rows, labels, parts or pixels"),
    ],
)
@pytest.mark.slow
def test_another_recipe_or_way_in_the_same_folder_is_refused(found, files, change, message):
    table, recipe, folder = files
    with pytest.raises(ConfigError, match=message):
        medzoo.reproduce(recipe, table, to=folder / "whole", **change)


def test_what_cannot_be_reproduced_is_refused_before_anything_is_read(files, tmp_path):
    table, recipe, _ = files
    with pytest.raises(ConfigError, match=r"recipe table: expected source\.protocol, .* nothing to reproduce"):
        medzoo.reproduce("table", "absent.csv", to=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match="holds something else"):
        medzoo.reproduce(recipe, table, to=tmp_path)
    result = CliRunner().invoke(main, ["reproduce", str(recipe), "--data", str(table)])
    assert (result.exit_code, "Give --to FOLDER" in result.output) == (2, True)


@pytest.mark.slow
def test_training_rows_and_a_given_column(files):
    """Measured on the rows of the training, by a column that puts every patient into several parts."""
    table, recipe, folder = files
    protocol = {"split": "given", "column": "half", "measured_on": "train", "figures": ("exact_match", "auroc")}
    found = medzoo.reproduce(
        Recipe.load(recipe).with_(**{"source.protocol": protocol, "epochs": 1}), table, to=folder / "train"
    )
    way = found.ways[0]
    assert (way.part, way.epoch, way.looks, len(way.scores), way.trained) == ("train", 1, None, 44, 44)
    assert "taken from column 'half' as it is; it leaks on purpose: in more than one part are 44 patients" in way.split
    assert "it is measured on the rows that the model was trained on" in found["auroc"].sentence
    own, rows = rows_of(found, "as_published", "train")
    truth, logits = own.targets[rows, 0], logits_of(found, "as_published", table, own.ids[rows])
    assert value(found, "auroc", "as_published") == pytest.approx(peer.roc_auc_score(truth, logits), abs=1e-9)
    assert value(found, "exact_match", "as_published") == pytest.approx(((logits >= 0) == truth).mean(), abs=1e-9)


@pytest.mark.slow
def test_a_source_that_split_by_patient_shares_the_honest_runs(files):
    table, recipe, folder = files
    protocol = {"split": "patient", "measured_on": "valid", "epoch": "best", "figures": ("auroc",)}
    how = Recipe.load(recipe).with_(**{"source.protocol": protocol, "epochs": 2, "split.shares": (0.6, 0.4, 0.0)})
    found = medzoo.reproduce(how, table, to=folder / "patient")
    assert {path.name for path in (folder / "patient").iterdir() if path.is_dir()} == {"honest", "permuted_honest"}
    published, _, honest, _ = found.ways
    assert (published.run, published.looks, published.unit) == ("honest", 2, "patient")
    assert (honest.part, honest.looks, honest.epoch) == ("valid", None, 2)
    log = RunFolder(folder / "patient" / "honest").read_log()
    assert value(found, "auroc", "as_published") == pytest.approx(max(row["valid_auroc"] for row in log), abs=1e-6)
    assert value(found, "auroc", "honest") == pytest.approx(log[-1]["valid_auroc"], abs=1e-6)
    assert any("the recipe has no test part" in note for note in found.notes)


def test_yes_no_figures_of_sampled_rows_are_at_half_in_the_sample(files):
    """A shift of the probabilities to the population would leave no positive call at 0.5."""
    rng, n = np.random.default_rng(0), 80
    y = rng.permutation(np.arange(n) % 2)
    images = rng.normal(0.5, 0.1, (n, 32, 32))
    images[y == 1, 8:24, 8:24] += 0.3
    drawn = Table.from_arrays(np.clip(images, 0, 1).astype(np.float32), y, patients=[f"p{i}" for i in range(n)])
    table = replace(drawn, prevalence=(0.002,))
    protocol = {"split": "patient", "measured_on": "valid", "figures": ("sensitivity", "specificity", "accuracy")}
    how = Recipe.load(files[1]).with_(**{"source.protocol": protocol, "epochs": 3, "split.shares": (0.5, 0.5, 0.0)})
    found = medzoo.reproduce(how, table, to=files[2] / "sampled")
    model = medzoo.create(f"local-dir:{found.folder / 'honest' / 'model'}").eval()
    assert (model.outputs.thresholds, model.outputs.calibration) == ((0.5,), None)
    _, rows = rows_of(found, "honest", "valid")
    with torch.inference_mode():
        pixels = torch.tensor(table.arrays[rows], dtype=torch.float32)
        logits = model((pixels - model.preprocessing.mean[0]) / model.preprocessing.std[0]).numpy()[:, 0]
    truth, calls = y[rows], logits >= 0
    assert 0 < calls.mean() < 1
    assert value(found, "sensitivity", "honest") == pytest.approx(calls[truth == 1].mean())
    assert value(found, "specificity", "honest") == pytest.approx(1 - calls[truth == 0].mean())
    assert value(found, "accuracy", "honest") == pytest.approx((calls == truth).mean())
    assert "not of the population" in found["sensitivity"].sentence
    assert "sampled by class" not in found["auroc"].sentence
    assert any("a probability of 0.5 is one in this sample" in note for note in found.notes)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ({"epoch": "best", "measured_on": "train"}, "an epoch is chosen by validation"),
        ({"shares": [0.7, 0.4, 0.0]}, "expected a sum of 1"),
    ],
)
def test_a_way_of_measuring_that_cannot_be(protocol, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_values({**RECIPE, "source": {"protocol": protocol}})


# The split that leaks.


def table_of(patients, **fields):
    n = len(patients)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (n, 1, 8, 8)).astype(np.uint8)
    return Table.from_arrays(images, np.arange(n) % 2, patients=patients, **fields)


def test_rows_are_drawn_whoever_they_are_of():
    table = table_of([f"p{i // 4}" for i in range(80)])
    split = leaking_split(table, shares=(0.7, 0.2, 0.1), seed=3)
    assert [len(part) for part in (split.train, split.valid, split.test)] == [56, 16, 8]
    parts = split.part_of_rows()
    shared = {p for p in set(table.patients) if len(set(parts[table.patients == p])) > 1}
    rows = int(np.isin(table.patients, list(shared)).sum())
    text = f"it leaks on purpose: in more than one part are {len(shared)} patients ({rows} rows) and 0 images"
    assert len(shared) > 10
    assert text in split.how
    assert split.notes[0].startswith(text)
    assert split.leaks
    assert (leaking_split(table, shares=(0.7, 0.2, 0.1), seed=3).part_of_rows() == parts).all()
    assert not (leaking_split(table, shares=(0.7, 0.2, 0.1), seed=4).part_of_rows() == parts).all()
    assert not medzoo.choose_split(table).leaks


def test_a_column_is_taken_as_it_is_and_its_values_are_checked():
    given = ["train", "valid"] * 10
    table = table_of([f"p{i // 2}" for i in range(20)], groups={"split": given, "other": ["x"] * 20})
    assert leaking_split(table, column="split").part_of_rows().tolist() == given
    with pytest.raises(DataError, match="puts into more than one part 10 patients"):
        medzoo.split_from_column(table, "split")
    with pytest.raises(DataError, match="expected column 'other' to be train, valid or test"):
        leaking_split(table, column="other")


def test_a_column_without_a_validation_part_gets_one_by_row():
    patients = [f"p{i // 4}" for i in range(100)]
    table = table_of(patients, groups={"split": ["train"] * 79 + [""] + ["test"] * 20})
    split = leaking_split(table, column="split", shares=(0.75, 0.25, 0.0), seed=3)
    parts = split.part_of_rows()
    assert (len(split.train), len(split.valid), len(split.test)) == (59, 20, 20)
    assert (parts[80:] == "test").all()
    assert parts[79] == ""
    assert "'split' as it is; validation drawn by row, whoever it is of, as 0.25 of its training rows" in split.how
    shared = {p for p in set(patients) if len(set(parts[table.patients == p]) - {""}) > 1}
    assert len(shared) > 10
    assert f"in more than one part are {len(shared)} patients" in split.how
    again, other = (leaking_split(table, column="split", shares=(0.75, 0.25, 0.0), seed=s) for s in (3, 4))
    assert (again.part_of_rows() == parts).all()
    assert not (other.part_of_rows() == parts).all()
    with pytest.raises(ConfigError, match="has no rows for valid"):
        leaking_split(table_of(["a", "b"], groups={"split": ["train", "test"]}), column="split")


def test_the_official_lists_of_chestxray14_have_no_validation_part(tmp_path):
    recipe, data = Recipe.load("chestxray14"), write_nih(tmp_path / "CXR8", 24)
    table = load_table(recipe, data, None)
    assert set(table.groups["split"]) == {"train", "test"}
    own = recipe.with_(**{"model.name": "xray_cnn", "model.options": {"widths": (4, 4, 8, 8), "hidden": 8}, **SAME,
                          "model.pretrained": False, "data.size": 32, "batch": 4, "cache": "memory",
                          "loss.balance": "none"})  # fmt: skip
    honest = set_up(own, table)
    published = as_published(own, recipe.source.protocol, honest)
    parts = published.split.part_of_rows()
    assert (parts[table.groups["split"] == "test"] == "test").all()
    assert len(published.split.valid) == round(own.split.shares[1] * (table.groups["split"] == "train").sum())
    assert "validation drawn by row" in published.how
    assert published.caution == LEAKS


def test_the_column_of_the_real_images_leaks_30_patients(data):
    names = ("Effusion", "Mass")
    table = Table.from_csv(data / "chestxray14_64px" / "labels.csv", label=names, patient="patient_id")
    assert "in more than one part are 30 patients" in leaking_split(table, column="split").how
    assert "in more than one part are 0 patients" in leaking_split(table, column="patient_split").how


def test_nothing_but_reproduce_uses_the_split_that_leaks():
    root = Path(medzoo.__file__).parent
    texts = {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in root.rglob("*.py")}
    named = {name for name, text in texts.items() if "leaking_split" in text}
    assert named == {"data/split.py", "training/reproduce.py", "training/setup.py"}
    users = [name for name in named for line in texts[name].splitlines() if re.search(r"import.*leaking_split", line)]
    assert users == ["training/reproduce.py"]
    assert "split.leaking_split`" in texts["training/setup.py"], "named in a docstring alone"
    assert "leaking_split" not in medzoo.__all__


# Permuted labels.


def numbered(patients):
    """Return a table in which the label of each row is its number, to see where it goes."""
    table = table_of(patients if patients is not None else ["x"] * 40)
    targets = np.arange(len(table), dtype=np.float32)[:, None]
    return Table(**{**vars(table), "targets": targets, "patients": None if patients is None else table.patients})


@pytest.mark.parametrize("seed", range(5))
def test_permuted_labels_are_of_another_patient_and_each_is_used_once(seed):
    sizes = np.random.default_rng(seed).integers(1, 15, 30)
    table = numbered(np.random.default_rng(seed).permutation(np.repeat([f"p{i}" for i in range(30)], sizes)))
    taken = permute_labels(table, seed=seed).targets[:, 0].astype(int)
    assert sorted(taken) == list(range(len(table)))
    assert (table.patients[taken] != table.patients).all()
    assert (permute_labels(table, seed=seed).targets[:, 0] == taken).all()
    assert not (permute_labels(table, seed=seed + 100).targets[:, 0] == taken).all()
    # As few donors as can be: all but two of a patient's give all their rows to it, or it takes all from one.
    pairs = np.stack([table.patients, table.patients[taken]], 1)
    for patient in set(table.patients):
        given = [(len(pairs[pairs[:, 1] == one]), (pairs == [patient, one]).all(1).sum())
                 for one in set(pairs[pairs[:, 0] == patient, 1])]  # fmt: skip
        assert sum(all_ > own for all_, own in given) <= 2
    assert table.targets[:, 0].tolist() == list(range(len(table))), "the table is not changed"


@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 1]], ids=["the second of two", "the last of three"])
def test_a_label_that_follows_from_the_place_in_the_patient_loses_it(labels):
    """Left and right, or before and after: permuted in the order of the file, a model of the place would be perfect."""
    patients, each = 120, len(labels)
    patient, truth = np.repeat(np.arange(patients), each), np.tile(labels, patients)
    table = Table(**{**vars(table_of(np.char.add("p", patient.astype(str)))), "targets": truth[:, None]})
    areas, kept = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        shown = 1.5 * truth[:, None] * [1, 0] + rng.normal(size=(len(truth), 2))
        permuted = permute_labels(table, seed=seed).targets[:, 0]
        assert permuted.sum() == truth.sum()
        train = patient < 80
        direction = shown[train & (permuted == 1)].mean(0) - shown[train & (permuted == 0)].mean(0)
        areas.append(peer.roc_auc_score(permuted[~train], shown[~train] @ direction))
        kept.append(permuted[truth == 1].mean())
    assert abs(np.mean(areas) - 0.5) < 4 * np.std(areas) / 10
    assert np.std(areas) < 0.1, "and none is far from chance, in either direction"
    assert np.mean(kept) == pytest.approx(np.mean(labels), abs=0.03)


def test_labels_of_rows_are_permuted_where_patients_are_not_known():
    taken = permute_labels(numbered(None)).targets[:, 0].astype(int)
    assert sorted(taken) == list(range(40))
    assert (taken != np.arange(40)).all()
    assert "permuted by row with seed 0" in permute_labels(numbered(None)).notes[-1]


def test_there_has_to_be_another_patient():
    with pytest.raises(DataError, match=r"no patient with more than half of the rows, .* got one with 3 of 5"):
        permute_labels(numbered(["a", "a", "a", "b", "c"]))


# Figures.


def drawn_scores(task="multilabel", n=240, labels=3, signal=1.0):
    rng = np.random.default_rng(2)
    targets = (rng.random((n, labels)) < [0.5, 0.3, 0.2][:labels]).astype(np.float32)
    if task == "multiclass":
        targets = np.eye(labels, dtype=np.float32)[rng.integers(0, labels, n)]
    logits = rng.normal(0, 1, (n, labels)) + signal * targets - 0.8
    return Scores.from_logits(
        logits, task=task, ids=np.array([f"r{i}" for i in range(n)]), targets=targets,
        labels=("a", "b", "c")[:labels], thresholds=() if task == "multiclass" else (0.5,) * labels,
        patients=np.array([f"p{i // 3}" for i in range(n)]),
    )  # fmt: skip


def test_figures_of_several_labels_are_those_of_scikit_learn():
    scores = drawn_scores()
    never = scores.logits.copy()
    never[:, 2] = -9 + never[:, 2]
    for logits in (scores.logits, never):
        one = Scores.from_logits(
            logits, task="multilabel", ids=scores.ids, targets=scores.targets, labels=scores.labels,
            thresholds=scores.thresholds, patients=scores.patients,
        )  # fmt: skip
        calls = logits >= 0
        found = figures_of(one, ("a", "b")).values
        want = {
            "auroc": peer.roc_auc_score(one.targets, logits),
            "auroc_common": peer.roc_auc_score(one.targets[:, :2], logits[:, :2]),
            "accuracy": (calls == one.targets).mean(),
            "exact_match": peer.accuracy_score(one.targets, calls),
            "precision": peer.precision_score(one.targets, calls, average="macro", zero_division=0),
            "sensitivity": peer.recall_score(one.targets, calls, average="macro"),
            "specificity": peer.recall_score(1 - one.targets, ~calls, average="macro"),
        }
        assert {name: found[name].value for name in want} == pytest.approx(want, abs=1e-12)
        for name in want:
            assert found[name].low < found[name].value < found[name].high, name
            assert "bootstrap" in found[name].method or "Wilson" in found[name].method


def test_figures_of_classes_are_those_of_scikit_learn():
    scores = drawn_scores("multiclass")
    truth, call = scores.targets.argmax(1), scores.logits.argmax(1)
    found = figures_of(scores).values
    assert found["accuracy"].value == pytest.approx(peer.accuracy_score(truth, call))
    assert found["exact_match"].value == found["accuracy"].value
    assert found["precision"].value == pytest.approx(peer.precision_score(truth, call, average="macro"))
    assert found["sensitivity"].value == pytest.approx(peer.recall_score(truth, call, average="macro"))
    area = peer.roc_auc_score(truth, scores.probabilities, multi_class="ovr")
    assert found["auroc"].value == pytest.approx(area)


def test_an_interval_of_rows_is_narrower_than_one_of_patients():
    scores = drawn_scores(n=480, labels=1, task="binary")
    at = np.repeat(np.arange(480), 4)
    fields = {name: getattr(scores, name)[at] for name in ("ranks", "logits", "probabilities", "targets", "patients")}
    twice = Scores(**{**vars(scores), **fields, "ids": np.array([str(i) for i in range(1920)])})
    rows = Scores(**{**vars(twice), "patients": None})
    for name in ("auroc", "accuracy", "precision"):
        a, b = (figures_of(one).values[name] for one in (twice, rows))
        assert a.value == b.value
        assert b.high - b.low < 0.8 * (a.high - a.low)


def test_too_few_patients_give_a_figure_without_an_interval():
    scores = drawn_scores(n=36)
    found = figures_of(scores).values
    for name in ("auroc", "precision", "sensitivity"):
        assert found[name].low is None
        assert "under 10 positive or negative patients" in found[name].why
    assert common_labels([scores]) == ()
    assert common_labels([drawn_scores(), drawn_scores()]) == ("a", "b", "c")


def test_chance_is_that_of_a_classifier_that_sees_no_image():
    scores = drawn_scores()
    truth, blank = scores.targets, np.zeros((len(scores), 1))
    constant = [DummyClassifier(strategy="most_frequent").fit(blank, y).score(blank, y) for y in truth.T]
    assert chance_of("accuracy", scores)[0] == pytest.approx(np.mean(constant))
    combined = ["".join(map(str, row)) for row in truth.astype(int)]
    match = DummyClassifier(strategy="most_frequent").fit(blank, combined).score(blank, combined)
    assert chance_of("exact_match", scores)[0] == pytest.approx(match)
    assert chance_of("precision", scores)[0] == pytest.approx(truth.mean())
    assert chance_of("auroc", scores)[0] == 0.5
    assert chance_of("sensitivity", scores)[0] is None
    classes = drawn_scores("multiclass")
    share = DummyClassifier(strategy="most_frequent").fit(blank, classes.targets.argmax(1))
    assert chance_of("accuracy", classes)[0] == pytest.approx(share.score(blank, classes.targets.argmax(1)))


def test_the_best_look_is_the_first_of_the_highest():
    scores = drawn_scores(labels=1, task="binary")
    perfect = Scores.from_logits(
        scores.targets * 2.0 - 1, task="binary", ids=scores.ids, targets=scores.targets, labels=scores.labels,
        thresholds=(0.5,),
    )  # fmt: skip
    assert best_look([scores, perfect, scores, perfect], "auroc") == 2
    assert best_look([scores, scores], "accuracy") == 1


# Sentences.


def rows_for(published, nothing, honest, fair, figures=("exact_match",), claim=None, **as_published):
    """Return the table of four scores."""
    ways = {}
    for name, scores in zip(("as_published", "permuted_as_published", "honest", "permuted_honest"),
                            (published, nothing, honest, fair), strict=True):  # fmt: skip
        own = as_published if "published" in name else {}
        about = {"run": name, "split": "drawn", "part": "valid", "leaks": False, "shared": 0, "trained": 9, "epoch": 3}
        ways[name] = Measured(name=name, scores=scores, patients=80, **{**about, **own})
    found = figure_rows(ways, ProtocolSection(figures=figures), claim or {})
    return {row.name: row for row in found}


def test_a_difference_within_the_interval_is_not_called_one():
    strong, weak, none = (drawn_scores(signal=signal) for signal in (3.0, 1.0, 0.0))
    same = rows_for(weak, none, drawn_scores(signal=1.1), none)
    for row in same.values():
        assert "a difference within the interval of the honest figure" in row.sentence
    other = rows_for(strong, none, weak, none)
    for name, row in other.items():
        a, h = (row.estimates[way].value for way in ("as_published", "honest"))
        assert f"{a:.3f} as published and {h:.3f} honestly: {a - h:.3f} more." in row.sentence, name
    assert "not higher" in rows_for(none, none, strong, none)["auroc"].sentence


def test_what_nothing_reaches_is_beside_it():
    strong, none = drawn_scores(signal=3.0), drawn_scores(signal=0.0)
    row = rows_for(strong, strong, none, none, claim={"exact_match": 0.9, "auroc": "0.99 on its training rows"})
    text = row["exact_match"].sentence
    value = row["exact_match"].estimates["permuted_as_published"].value
    chance = row["exact_match"].same_chance  # all four have the same targets
    assert chance is not None
    assert f"With permuted labels the way of the source still gives {value:.3f}" in text
    assert f"(the same answer for every row: {chance:.3f})" in text
    below = (
        f"The honest figure is below that of the same answer for every row in its rows, {chance:.3f}, which needs no"
    )
    assert below in text
    assert "The figure as published is below" not in text
    assert (row["exact_match"].claimed, row["auroc"].claimed) == (0.9, None)
    assert "does not contain 0.5" not in row["auroc"].sentence
    far = rows_for(strong, strong, strong, strong)["auroc"].sentence
    assert (
        "The interval of the honest figure with permuted labels does not contain 0.5, which happens by chance in about "
        "1 of 20 and says nothing of the data"
    ) in far
    assert "the data has" not in far


def test_each_way_has_the_baseline_of_its_own_rows(tmp_path):
    """Where labels are rarer in the rows of a way, the same answer for every row is right more often there."""
    even = drawn_scores(signal=0.0)
    rare = Scores(**{**vars(even), "targets": even.targets * (np.arange(len(even)) % 4 == 0)[:, None]})
    rows = rows_for(rare, rare, even, even, figures=("exact_match", "accuracy", "precision", "sensitivity"))
    combined = {name: ["".join(map(str, row)) for row in s.targets.astype(int)] for name, s in
                (("as_published", rare), ("honest", even))}  # fmt: skip
    match = {name: max(map(texts.count, texts)) / len(texts) for name, texts in combined.items()}
    row = rows["exact_match"]
    assert match["as_published"] > match["honest"] + 0.2
    for name, want in match.items():
        assert row.baseline(name) == row.baseline(f"permuted_{name}") == pytest.approx(want)
    pair = f"{match['as_published']:.3f} and {match['honest']:.3f}"
    assert f"(the same answer for every row in those rows: {pair})" in row.sentence
    assert f"figure as published is below that of the same answer for every row in its rows, {pair[:5]}" in row.sentence
    assert (row.same_chance, rows["auroc"].same_chance, rows["sensitivity"].same_chance) == (None, 0.5, None)
    assert rows["accuracy"].chance["as_published"] != rows["accuracy"].chance["honest"]
    assert json.loads(json.dumps(row.to_dict()["chance"])) == pytest.approx(dict(row.chance))
    about = {"split": "", "part": "valid", "leaks": False, "shared": 0, "trained": 9, "epoch": 3, "patients": 80}
    ways = tuple(Measured(name=name, scores=even, run=name, **about) for name in WAYS)
    recipe = Recipe.from_values(RECIPE)
    Reproduction(recipe=recipe, ways=ways, figures=tuple(rows.values()), notes=(), folder=tmp_path).write()
    written = list(csv.DictReader(io.StringIO((tmp_path / "reproduction.csv").read_text())))
    cells = {name: float(written[0][f"{name}_chance"]) for name in match}
    assert cells == pytest.approx(match)
    assert {line["as_published_chance"] for line in written if line["figure"] == "sensitivity"} == {""}
    page = (tmp_path / "reproduction.html").read_text()
    assert "in brackets: the same answer for every row" in page
    assert page.count(f"({match['honest']:.3f})") >= 2


def test_figures_of_sampled_rows_are_said_to_be_of_the_sample():
    one = drawn_scores()
    ways = rows_for(one, one, one, one)
    assert not any("sampled by class" in row.sentence for row in ways.values())
    about = {"split": "", "part": "valid", "leaks": False, "shared": 0, "trained": 9, "epoch": 3, "patients": 80}
    four = {
        name: Measured(name=name, scores=one, run=name, **about)
        for name in ("as_published", "permuted_as_published", "honest", "permuted_honest")
    }
    for row in figure_rows(four, ProtocolSection(figures=("sensitivity", "accuracy")), {}, sampled=True):
        assert ("the figure is of this sample and its calls, not of the population" in row.sentence) is (
            row.name != "auroc"
        )


def test_the_reasons_are_those_of_the_way():
    scores = drawn_scores()
    rows = Scores(**{**vars(scores), "patients": None})
    for own, text in (
        ({"part": "train"}, "it is measured on the rows that the model was trained on"),
        ({"shared": 7, "leaks": True}, "7 of the 80 patients of the measured rows are in the training rows too"),
        ({"leaks": True}, "rows are divided without regard to patients, and no patient is in both parts"),
        ({"leaks": True, "shared": None}, "and whether patients are in both parts is not known"),
        ({"looks": 30}, "it is the best of 30 looks at the same rows"),
        ({"run": "honest"}, "it is measured on the valid part of the honest run"),
        ({}, "it is measured as the honest figure is, on another split by patient"),
    ):
        about = {"part": "valid", "run": "as_published", "leaks": False, "shared": 0, "looks": None} | own
        way = Measured(name="as_published", scores=scores, patients=80, split="", trained=9, epoch=3, **about)
        assert reasons_of(way).endswith(text)
    sentence = rows_for(rows, rows, scores, scores, leaks=True)["auroc"].sentence
    assert "As published, rows are divided without regard to patients" in sentence
    assert "The interval of that is of rows, as patients are ignored, and too narrow." in sentence


def test_labels_with_few_patients_are_averaged_apart():
    """Of labels that are rare somewhere the mean is noise: the others have a row of their own, the same everywhere."""
    scores = drawn_scores()
    targets = scores.targets.copy()
    targets[:, 2] = 0
    targets[:4, 2] = 1
    rare = Scores(**{**vars(scores), "targets": targets})
    found = rows_for(scores, scores, rare, scores)
    assert list(found) == ["exact_match", "auroc", "auroc_common"]
    assert found["auroc_common"].title == "AUROC, mean of 2 of 3 labels: a, b"
    assert found["auroc"].estimates["honest"].low is None
    assert found["auroc_common"].estimates["honest"].low is not None
    assert "but the honest figure has no interval" in found["auroc"].sentence or "not higher" in found["auroc"].sentence
    targets[:, 2] = 0
    none = rows_for(scores, scores, Scores(**{**vars(scores), "targets": targets}), scores)
    assert none["auroc"].fewer("honest") == "mean over 2 labels, not 3"
    assert "The two are means over different labels" in none["auroc"].sentence
    assert list(rows_for(scores, scores, scores, scores)) == ["exact_match", "auroc"]
