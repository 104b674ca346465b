"""The recipes of the published 2D sets: check, train, evaluate and predict on their layouts, by the command line."""

from __future__ import annotations

import csv
import json

import pytest
from click.testing import CliRunner
from images import write_images
from published_2d import rsna_id, write_kermany, write_medmnist, write_nih, write_rsna, write_small

from medzoo.cli.main import main
from medzoo.training.recipe import Recipe

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore:.*does not have many workers",
    "ignore:.*log_",
    "ignore:balance. clamped",
    "ignore:.*predicts one class",
)
QUICK = ("--batch", 4, "--epochs", 2, "--cache", "off", "--device", "cpu", "--set", "split.draws=200")
TINY = (*QUICK, "--model", "xray_cnn", "--size", 32, "--set", "model.options={widths: [4, 4, 8, 8], hidden: 8}")
TINY_3D = (*QUICK, "--model", "cnn3d_small", "--size", 16, "--set", "model.options={widths: [4, 4, 8], hidden: 8}")
"""What makes a training quick; the weights of photographs would have to be fetched."""


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def all_steps(recipe, folder, to, image=None, *, by=None, options=TINY):
    """Check, train, evaluate and predict; return what check and evaluate wrote, and the facts of the run."""
    checked = run("check", recipe, "--data", folder, *options)
    run("train", recipe, "--data", folder, "--to", to, *options)
    assert (to / "report.html").is_file()
    evaluated = run("evaluate", to, "--resamples", 100, *(("--by", by) if by else ()))
    if image:
        found = json.loads(run("predict", f"local-dir:{to / 'model'}", image, "--output", "json"))
        (predicted,) = found["predictions"]
        assert (predicted["error"], predicted["warning"], predicted["untrained"]) == ("", "", [])
        assert (
            list(predicted["probabilities"])
            == json.loads((to / "model" / "config.json").read_text())["outputs"]["labels"]
        )
    return checked, evaluated, json.loads((to / "run.json").read_text())


def parts_of(run_folder):
    with (run_folder / "data" / "table.csv").open() as file:
        return [row["medzoo:part"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ["chestxray14", "kermany", "medmnist", "rsna"])
def test_each_recipe_says_where_it_is_from(name):
    recipe = Recipe.load(name)
    assert recipe.data.source == name
    assert recipe.source.reference
    assert len(recipe.source.changes) >= 4


@pytest.mark.slow
def test_chestxray14_complete(tmp_path):
    root = write_nih(tmp_path / "CXR8", 24)
    image = root / "images_001/images/00000002_000.png"  # one with an alpha channel
    checked, evaluated, facts = all_steps("chestxray14", root, tmp_path / "run", image, by="view")
    assert "given by column 'split'; validation drawn by patient as 0.1" in facts["split"]
    assert "Cardiomegaly: a flip of x puts the organs on the side" in " ".join(facts["notes"])
    assert "Pleural_Thickening" in checked
    assert "By view" in evaluated


@pytest.mark.slow
def test_chestxray14_small_drops_what_leaks_from_valid(tmp_path):
    root = write_small(tmp_path / "nih")
    _, _, facts = all_steps("chestxray14", root, tmp_path / "run", root / "images-small/00000001_000.png")
    assert facts["split"].startswith("given by column 'split'")
    parts = parts_of(tmp_path / "run")
    assert (parts.count("train"), parts.count("valid"), parts.count("test")) == (24, 8, 8)


@pytest.mark.slow
def test_rsna_by_view(tmp_path):
    """With enough patients of each view that figures of each are shown."""
    root = write_rsna(tmp_path / "rsna", 96, mapping=True)
    image = root / "stage_2_test_images" / f"{rsna_id(96)}.dcm"
    options = (*TINY, "--set", "split.shares=[0.4, 0.2, 0.4]")
    _, _, facts = all_steps("rsna", root, tmp_path / "run", image, by="view", options=options)
    assert "drawn by patient" in facts["split"]
    report = json.loads((tmp_path / "run" / "evaluation" / "test" / "report.json").read_text())
    assert report["labels"] == ["Lung Opacity"]
    (group,) = report["groups"]
    assert group["column"] == "view"
    assert {row["value"] for row in group["rows"]} == {"AP", "PA"}
    assert all(row["patients"] >= 10 for row in group["rows"])


def test_chestxray14_without_the_official_lists(tmp_path):
    root = write_nih(tmp_path / "n", 12, lists=False)
    output = run("check", "chestxray14", "--data", root, *TINY, code=2)
    assert "there is no column 'split'. It has 'view', 'sex', 'follow_up', 'age'. Name another one, or set" in output
    drawn = run("check", "chestxray14", "--data", root, *TINY, "--set", "split.column=null")
    assert "drawn by patient as 0.7 / 0.1 / 0.2" in drawn


def test_rsna_without_patients_has_to_be_stated(tmp_path):
    root = write_rsna(tmp_path / "rsna", 24)
    output = run("check", "rsna", "--data", root, *TINY, code=5)
    assert "the patients are not known" in output
    assert "--no-patient-groups" in output
    assert "drawn by image" in run("check", "rsna", "--data", root, *TINY, "--no-patient-groups")


@pytest.mark.slow
def test_kermany_with_shared_patients(tmp_path):
    root = write_kermany(tmp_path / "k")
    image = root / "chest_xray/test/PNEUMONIA/person60_virus_6.jpeg"
    checked, evaluated, facts = all_steps("kermany", root, tmp_path / "run", image, by="subtype")
    assert "validation drawn by patient" in facts["split"]
    assert "join train" in " ".join(facts["notes"])
    assert "dropped chest_xray/train/PNEUMONIA/person3_virus_17.jpeg: patient " in checked
    assert "person3_bacteria_11" not in checked
    assert "By subtype" in evaluated
    assert parts_of(tmp_path / "run").count("test") == 11


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "label"), [("breastmnist", "malignant"), ("pneumoniamnist_64", "pneumonia")])
def test_medmnist_of_a_file(tmp_path, flag, label):
    path = write_medmnist(tmp_path / f"{flag}.npz", n=40)
    _, evaluated, facts = all_steps("medmnist", path, tmp_path / "run")
    assert label in evaluated
    assert facts["split"].startswith("given by column 'split'")


@pytest.mark.slow
def test_medmnist_in_3d(tmp_path):
    write_medmnist(tmp_path / "m" / "adrenalmnist3d.npz", (28, 28, 28))
    _, evaluated, _ = all_steps("medmnist", tmp_path / "m", tmp_path / "run", options=TINY_3D)
    assert "hyperplasia" in evaluated


def test_a_table_of_ones_own_with_each_recipe(tmp_path):
    """The columns of a CSV file that each recipe expects, beside the published layout."""
    write_images(tmp_path, patients=12)
    names = [f"{i}_{j}.png" for i in range(12) for j in range(2)]
    for recipe in ("chestxray14", "rsna", "kermany"):
        label = Recipe.load(recipe).data.label
        columns = [label] if isinstance(label, str) else list(label)
        split = Recipe.load(recipe).split.column or "site"
        lines = [",".join(["path", "patient_id", split, *columns])]
        for i, name in enumerate(names):
            part = "train" if i < 16 else "test"
            lines.append(",".join([f"images/{name}", f"p{i // 2}", part, *[str(i // 2 % 2)] * len(columns)]))
        table = tmp_path / f"{recipe}.csv"
        table.write_text("\n".join(lines))
        output = run("check", recipe, "--data", table, *TINY)
        assert ("Lung Opacity" if recipe == "rsna" else columns[0]) in output
        assert "drawn by patient" in output
