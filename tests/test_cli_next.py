"""What the command line says next: lines that can be pasted, and what to do about a model or data given wrongly."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from published_2d import write_medmnist

import medzoo
from medzoo.cli.main import main
from medzoo.cli.tables import next_steps
from medzoo.errors import DataError
from medzoo.inference.plan import read_points


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def run_folder(tmp_path):
    """Return a folder with the files by which a run and its model are known."""
    folder = tmp_path / "a run"
    model = medzoo.create("xray_cnn", size=32, widths=(4, 4, 8, 8), hidden=8, labels=["grade"], task="binary")
    model.save_pretrained(folder / "model")
    (folder / "run.json").write_text("{}")
    return folder


def test_the_next_lines_can_be_pasted():
    run_folder = Path("/x/it's a run")
    shown = next_steps(run_folder, None)
    evaluated, predicted = shown.removeprefix("Next: ").split(", or ")
    assert shlex.split(evaluated) == ["medzoo", "evaluate", str(run_folder)]
    assert shlex.split(predicted) == ["medzoo", "predict", f"local-dir:{run_folder}/model", "IMAGE"]


def test_a_model_of_patches_is_given_points():
    how = medzoo.Preprocessing(
        size=(16, 16, 16), fit="resize", intensity=medzoo.describe("cnn3d_small").preprocessing.intensity,
        orientation="RAS", patch=(30.0, 30.0, 30.0),
    )  # fmt: skip
    assert next_steps(Path("runs/a"), how).endswith("medzoo predict local-dir:runs/a/model SCAN --points points.csv")


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_run_is_not_a_model(run_folder, prefix):
    shown = run("predict", f"{prefix}{run_folder}", "x.png", code=2)
    assert f"expected a model, got the folder of a run. Its model is local-dir:{run_folder}/model." in shown


def test_a_folder_of_a_model_needs_its_prefix(run_folder):
    shown = run("predict", run_folder / "model", "x.png", code=2)
    assert f"Give it as local-dir:{run_folder}/model." in shown


def test_a_table_is_not_predicted(run_folder, tmp_path):
    path = write_medmnist(tmp_path / "my set.npz", n=3)
    model = f"local-dir:{run_folder}/model"
    shown = run("predict", model, path, code=5)
    advised = shown.partition("Evaluate it: ")[2].strip()
    assert shlex.split(advised) == ["medzoo", "evaluate", model, "--data", str(path)]


def test_the_npz_file_of_a_folder_is_named(tmp_path):
    path = write_medmnist(tmp_path / "adrenalmnist3d.npz", (8, 8, 8), n=3)
    shown = run("check", "adrenalmnist3d", "--data", tmp_path, code=2)
    assert f"got one with a table, adrenalmnist3d.npz. Give the table: {path}." in shown
    (tmp_path / "normal").mkdir()  # a folder of a class
    assert "Give the table" not in run("check", "adrenalmnist3d", "--data", tmp_path, code=5)


def test_the_file_of_points_is_described(run_folder, tmp_path):
    shown = " ".join(run("predict", "--help").split())
    assert all(text in shown for text in ("coordX", "coordY", "coordZ", "seriesuid", "LPS as DICOM", "RAS as NIfTI"))
    absent = tmp_path / "points.csv"
    with pytest.raises(DataError) as found:
        read_points(absent)
    assert str(found.value) == (
        f"{absent}: expected a CSV file of points, but it cannot be read (No such file or directory). Give one with "
        "the columns coordX, coordY, coordZ in mm, and seriesuid for several scans."
    )


def test_a_file_of_medmnist_is_checked(tmp_path):
    path = write_medmnist(tmp_path / "pneumoniamnist.npz", n=9)
    want = run("fetch", "data:medmnist", "--check", tmp_path).replace(f"{tmp_path}:", "")
    assert run("fetch", "data:medmnist", "--check", path).replace(f"{path}:", "") == want
    assert "15" in want
    assert "expected the .npz file of medmnist, found none" in run(
        "fetch", "data:medmnist", "--check", tmp_path / "absent.npz", code=2
    )
    assert "--check FILE.npz" in run("fetch", "data:medmnist")
    assert "expected the folder of kermany, found none" in run("fetch", "data:kermany", "--check", path, code=2)
