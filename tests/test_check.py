"""``medzoo check`` and a dry run: counts, intervals, memory, time, and where a table comes from."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from images import OPTIONS, write_images
from tensors import batch, tiny

from medzoo.data.known_data import DATA_SETS, known_data_sets, seen_before
from medzoo.data.table import Table
from medzoo.errors import ConfigError, DataError
from medzoo.training.check import check, dry_run
from medzoo.training.check_counts import auroc_half_width, count_part
from medzoo.training.measure import activation_bytes
from medzoo.training.recipe import Recipe
from medzoo.training.source import load_table
from medzoo.visual import show_transforms

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*does not have many workers", "ignore:.*log_")
COLUMNS = {"label": "grade", "patient": "pid"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def report(table):
    (table.parent / "temporary").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(table.parent / "temporary"))
        return check("table", table, root=table.parent / "images", epochs=7, **OPTIONS, **COLUMNS)


def test_check_counts_rows_patients_and_labels(report):
    assert sum(part.rows for part in report.parts) == 60
    assert sum(part.patients for part in report.parts) == 30
    assert [part.name for part in report.parts] == ["train", "valid", "test"]
    assert sum(part.labels[0].positive for part in report.parts) == 20
    assert sum(part.labels[0].positive_patients for part in report.parts) == 10


def test_check_measures_time_and_memory(report):
    rows = report.parts[0].rows
    (time,), memory = report.times, report.memory
    assert (time.steps, time.epochs) == (-(-rows // 4), 7)
    assert time.total_seconds == pytest.approx(7 * time.epoch_seconds)
    assert time.epoch_seconds == pytest.approx(
        time.steps * time.step_seconds + time.valid_steps * time.valid_step_seconds
    )
    assert time.step_seconds > 0
    assert 0 <= time.data_wait_share <= 1
    weights = 4 * sum(p.numel() for p in tiny("xray_cnn", num_classes=1).parameters())
    assert memory.gradients == weights
    assert (memory.optimizer, memory.average, memory.images) == (2 * weights, 0, 0)
    assert time.checkpoint_bytes >= 3 * weights
    assert memory.total > memory.activations > 4 * 3 * 32 * 32 * 4


def test_check_is_printed_in_words(report):
    text = str(report)
    for line in (
        "60 rows, binary",
        "leak check: no patient and no image is in two parts.",
        "fewer than 10 positive or negative: no interval",
        "activations of a batch of 4",
        "measured on this machine now",
        "for 7 epochs, by a few steps measured now",
    ):
        assert line in text
    assert re.search(r"– \(\d positive\)", text)
    assert not re.search(r"\bp\d+\b", text)  # no patient


def test_check_keeps_nothing(report, table):
    assert list((table.parent / "temporary").iterdir()) == []
    assert sorted(path.name for path in table.parent.iterdir()) == ["images", "n.csv", "temporary"]


def test_dry_run_writes_a_checkpoint_and_continues_it(table):
    report = dry_run("table", table, root=table.parent / "images", **OPTIONS, **COLUMNS)
    assert report.resumed
    assert report.peak > 1e7
    assert "written and continued" in str(report)
    assert "peak memory" in str(report)


@pytest.mark.skipif(not hasattr(show_transforms, "draw_batch"), reason="there is no draw_batch")
def test_a_batch_is_drawn(table, tmp_path):
    out = tmp_path / "check.png"
    report = check("table", table, root=table.parent / "images", out=out, flip=["x"], **OPTIONS, **COLUMNS)
    assert report.pictures == (out, *(out.with_name(f"{out.stem}_{name}.png") for name in ("incidence", "transforms")))
    assert out.read_bytes().startswith(b"\x89PNG")
    assert f"{out}: a training batch" in str(report).replace("\n", "")


def test_overrides_are_checked_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"optimizer\.lr: expected a number above 0"):
        check("table", tmp_path / "absent.csv", lr=0)


@pytest.mark.parametrize(("positive", "negative", "half"), [(22, 76, 0.118), (65, 233, 0.0684), (1000, 1000, 0.0195)])
def test_interval_of_an_auroc(positive, negative, half):
    assert auroc_half_width(0.8, positive, negative) == pytest.approx(half, rel=0.02)


def test_interval_is_about_that_of_simulated_scores():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    shift = 1.19  # an AUROC of 0.8 for two normal distributions
    truth = np.r_[np.ones(40), np.zeros(120)]
    found = [roc_auc_score(truth, rng.normal(size=160) + shift * truth) for _ in range(400)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.01)
    assert auroc_half_width(0.8, 40, 120) == pytest.approx(1.96 * np.std(found), rel=0.2)


def part_of(table):
    return SimpleNamespace(table=table, rows=np.arange(len(table)), name="valid")


def test_patients_are_counted_and_not_rows():
    table = Table.from_arrays(
        np.zeros((6, 8, 8), np.uint8),
        np.array([1, 1, 0, 0, 0, 0]),
        patients=["a", "a", "a", "b", "c", "c"],
    )
    table = replace(table, targets=np.array([[1], [1], [0], [0], [np.nan], [0]], np.float32))
    part = count_part(part_of(table))
    label = part.labels[0]
    assert (part.rows, part.patients) == (6, 3)
    assert (label.positive, label.negative, label.unknown) == (2, 3, 1)
    assert (label.positive_patients, label.negative_patients) == (1, 2)
    assert label.half_width(0.8) is None
    rows = count_part(part_of(replace(table, patients=None)))
    assert rows.patients is None
    assert (rows.labels[0].positive_patients, rows.labels[0].negative_patients) == (2, 3)


def test_activations_grow_with_the_batch_and_change_nothing():
    model = tiny("cnn3d_small").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, two = (activation_bytes(model, batch("cnn3d_small", n)) for n in (2, 4))
    assert two == pytest.approx(2 * one, rel=0.05)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    model.encoder.requires_grad_(False)
    assert activation_bytes(model, batch("cnn3d_small", 2)) < one


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("chest X-rays of NIH ChestX-ray14, PadChest and RSNA", {"ChestX-ray14", "PadChest", "RSNA pneumonia"}),
        ("/data/chestxray14_64px/labels.csv", {"ChestX-ray14"}),
        ("ImageNet-1k photographs", set()),
        ("/data/planning/n.csv", set()),
        ("not stated", set()),
    ],
)
def test_data_sets_by_name(text, names):
    assert known_data_sets(text) == names
    assert names <= set(DATA_SETS)


def test_weights_that_may_know_the_data_are_named():
    assert "trained on ChestX-ray14, and the name" in seen_before("the X-rays of NIH ChestX-ray14", "nih/labels.csv")
    assert seen_before("the X-rays of NIH ChestX-ray14", "own/labels.csv") == ""


@pytest.mark.parametrize("then", [None, "finetune"])
def test_each_phase_of_a_frozen_training_is_measured(table, then):
    how = {**OPTIONS, **COLUMNS, "freeze": "features", "then": then, "root": table.parent / "images"}
    how |= {"epochs": 5, "then_epochs": 40} if then else {}
    report = check("table", table, **how)
    assert [time.epochs for time in report.times] == ([1, 40] if then else [1])
    assert "features are computed once" in str(report)
    assert ("frozen encoder: " in str(report)) == bool(then)


def test_notes_are_those_of_a_training(table):
    report = check("table", table, root=table.parent / "images", **OPTIONS, **COLUMNS, **{"augment.flip": ["x"]})
    assert any("compared were patients" in note for note in report.notes)


def recipe(**overrides):
    return Recipe.load("table").with_(**overrides)


def test_table_of_each_kind_of_source(table, tmp_path):
    assert len(load_table(recipe(**COLUMNS), table, table.parent / "images")) == 60
    np.savez(
        tmp_path / "a.npz", train_images=np.zeros((4, 8, 8), np.uint8), train_labels=np.array([[0], [1], [0], [1]])
    )
    assert load_table(recipe(), tmp_path / "a.npz").groups["split"].tolist() == ["train"] * 4
    for name in ("no", "yes"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "a.png").write_bytes((table.parent / "images" / "0_0.png").read_bytes())
    assert load_table(recipe(), tmp_path / "classes").labels == ("yes",)


def test_a_field_that_cannot_act_on_a_published_set_is_named(table):
    nih = Recipe.load("chestxray14")
    wrong = {"label": "grade", "task": "binary", "uncertain": "mask", "duplicates": "drop", "key": "PatientID"}
    with pytest.raises(ConfigError) as error:
        load_table(nih.with_(**wrong), table.parent)
    assert str(error.value) == (
        f"{table.parent}: data.label, data.task, data.uncertain, data.duplicates, data.key cannot act on the published "
        "set chestxray14, which has its own labels, patients and places. Choose findings with data.findings and leave "
        "these out, or give a .csv file of your own."
    )
    others = {
        "image": "a", "labels": ["b"], "positive": "c", "sep": "|", "choose": "all", "unmatched": "drop",
        "point": ["x", "y", "z"], "points_frame": "RAS", "patient": "d",
    }  # fmt: skip
    for name, value in others.items():
        for base in (Recipe.load("mgmt"), recipe(**{"data.source": "mgmt"})):
            with pytest.raises(
                ConfigError, match=rf"data\.{name} cannot act on the published set mgmt.*Leave this out"
            ):
                load_table(base.with_(**{f"data.{name}": value}), table.parent)
    for base in (nih, nih.with_(findings=["Mass"]), recipe(**{"data.source": "chestxray14"})):
        with pytest.raises(DataError, match="expected Data_Entry_2017"):  # the fields are as they were
            load_table(base, table.parent)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("chestxray14", "Data_Entry_2017_v2020.csv"),
        ("chestxray14", "train-small.csv"),
        ("rsna", "stage_2_train_labels.csv"),
        ("mgmt", "train_labels.csv"),
        ("luna16", "candidates_V2.csv"),
        ("egfr", "NSCLCR01Radiogenomic_DATA_LABELS_2018-05-22_1500-shifted.csv"),
    ],
)
def test_a_file_of_a_published_set_is_given_by_its_folder(source, name, tmp_path):
    path = tmp_path / name
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError) as error:
        load_table(Recipe.load(source), path)
    text = f"{path}: this is a file of the published set {source}: give the folder it is in, {tmp_path}."
    assert text in str(error.value)
    other = path.rename(tmp_path / "mine.csv")
    with pytest.raises(DataError, match="expected the column"):
        load_table(Recipe.load(source), other)


def test_a_field_of_published_sets_is_noted_for_a_table(table):
    images = table.parent / "images"
    luna = Recipe.load("luna16").with_(point=None, **COLUMNS)
    assert (
        "data.negatives is for the folder of luna16 and not used for a table" in load_table(luna, table, images).notes
    )
    several = recipe(missing="drop", sample_seed=3, **COLUMNS)
    assert (
        "data.missing, data.sample_seed are for published sets and not used for a table"
        in load_table(several, table, images).notes
    )
    assert "not used" not in " ".join(load_table(recipe(**COLUMNS), table, images).notes)


@pytest.mark.parametrize(
    ("data", "root", "overrides", "message"),
    [
        ("m.csv", None, {}, "m.csv: no such file or folder. Did you mean 'n.csv'?"),
        ("x/y/n.csv", None, {}, "y does not exist either."),
        ("n.csv", "imags", {}, "imags: no such folder. Did you mean 'images'?"),
        (".", None, {}, "expected a folder for each class, got one with a table, n.csv. Give the table:"),
        ("images/0_0.png", None, {}, "expected a .csv, .tsv or .npz file or a folder, got another file."),
        ("images", "images", {}, "root is for the images of a .csv or .tsv file. Leave it out."),
        ("images", None, {"key": "AccessionNumber"}, "with data.key, expected the .csv file of the labels"),
    ],
)
def test_data_that_is_not_there(data, root, overrides, message, table):
    here = table.parent
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_table(recipe(**overrides), here / data, None if root is None else here / root)


def test_wrong_column_names_the_nearest(table):
    with pytest.raises(DataError, match="Did you mean 'grade'"):
        load_table(recipe(label="grad"), table, table.parent / "images")
