"""``medzoo recipes``, ``medzoo check`` and ``medzoo train``: what a person types becomes one recipe."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from click.testing import CliRunner
from images import write_images

import medzoo.training.run
from medzoo.cli.main import main
from medzoo.cli.recipe_options import HEADINGS, OPTIONS
from medzoo.cli.tables import cli_message
from medzoo.errors import ConfigError
from medzoo.extra import PACKAGES, require_train_extra
from medzoo.training.recipe import Recipe
from medzoo.training.recipe_faults import fields_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*does not have many workers", "ignore:.*log_")
TINY = ["--set", "model.options={widths: [4, 4, 8, 8], hidden: 8}"]


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def called(monkeypatch):
    """Return the calls of ``medzoo.training.run``, which do nothing."""
    calls = SimpleNamespace(train=None, resume=None)

    def train(recipe, data, **options):
        calls.train = recipe, data, options
        return SimpleNamespace(folder=Path(options["to"]), model=SimpleNamespace(preprocessing=None))

    def resume(folder, **options):
        calls.resume = folder, options
        return SimpleNamespace(folder=Path(folder), model=SimpleNamespace(preprocessing=None))

    monkeypatch.setattr(medzoo.training.run, "train", train)
    monkeypatch.setattr(medzoo.training.run, "resume", resume)
    return calls


def test_every_option_is_a_field():
    assert {field for _, field, _ in OPTIONS} - {"model", "augment"} <= set(fields_of(Recipe))


def test_recipes_are_listed_shown_and_copied(tmp_path):
    listed = run("recipes").output
    for name in ("table", "table_3d", "adrenalmnist3d"):
        assert name in listed
    assert [part in listed for part in ("data", "model", "cnn3d_small", "resnet18_multilabel:tv_in1k")] == [True] * 4
    assert run("recipes", "show", "table").output.startswith("# Images of your own")
    full = run("recipes", "show", "table", "--full")
    assert Recipe.from_values(yaml.safe_load(full.output)) == Recipe.load("table")
    path = tmp_path / "mine.yaml"
    assert run("recipes", "copy", "table", path).output == f"{path}\n"
    again = run("recipes", "copy", "table", path)
    assert (again.exit_code, "is not overwritten" in again.output) == (2, True)
    assert run("recipes", "show", path).output == full.output


def test_train_as_a_person_types_it(called, tmp_path):
    result = run(
        "train", "table", "--data", "n.csv", "--root", "images", "--model", "swin_encoder_mlp:voco_b",
        "--label-col", "grade", "--patient-col", "pid", "--to", "runs/a", "--set", "train.epochs=20",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    recipe, data, options = called.train
    want = Recipe.load("table").with_(
        model="swin_encoder_mlp:voco_b", label="grade", patient="pid", epochs=20
    )  # fmt: skip
    assert recipe == want
    assert (data, options) == ("n.csv", {"to": "runs/a", "root": "images", "logger": False})
    last = "Next: medzoo evaluate runs/a, or medzoo predict local-dir:runs/a/model IMAGE"
    assert result.output.splitlines()[-1] == last


def test_every_option_reaches_its_field(called):
    result = run(
        "train", "table", "--data", "d", "--to", "r", "--image-col", "file", "--label-col", "a", "--label-col", "b",
        "--labels", "A, B", "--task", "multilabel", "--no-patient-groups", "--uncertain", "mask", "--leave-out",
        "site=B", "--leave-out", "site=C", "--on-leak", "drop-train", "--size", "64x48", "--epochs", 3, "--batch", 8,
        "--lr", "1e-4", "--seed", 5, "--workers", 2, "--device", "cpu", "--precision", "float32", "--cache", "memory",
        "--key", "PatientID", "--set", "flip=[x]", "--set", "ema=0.99",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    recipe, _, _ = called.train
    data, split, train = recipe.data, recipe.split, recipe.train
    assert (data.image, data.label, data.labels, data.task) == ("file", ("a", "b"), ("A", "B"), "multilabel")
    assert (data.patient_groups, data.uncertain, data.size, data.cache) == (False, "mask", (64, 48), "memory")
    assert (data.key, split.leave_out, split.on_leak) == ("PatientID", {"site": ("B", "C")}, "drop-train")
    assert (train.epochs, train.batch, train.seed, train.workers) == (3, 8, 5, 2)
    assert (train.device, train.precision, train.ema) == ("cpu", "float32", 0.99)
    assert (recipe.optimizer.lr, recipe.augment.flip) == (1e-4, ("x",))
    run("train", "adrenalmnist3d", "--data", "d", "--to", "r", "--folds", 5, "--fold", 2, "--size", 48)
    recipe = called.train[0]
    assert (recipe.split.folds, recipe.split.fold, recipe.split.column, recipe.data.size) == (5, 2, None, 48)
    run("train", "table", "--data", "d", "--to", "r", "--split-col", "part")
    assert called.train[0].split.column == "part"


def test_options_of_published_sets_and_of_freezing(called):
    run(
        "train", "adrenalmnist3d", "--data", "d", "--to", "r", "--source", "luna16", "--missing", "drop", "--findings",
        "A, B", "--mapping", "m.json", "--negatives", 1.5, "--roi", "box", "--freeze", "features", "--then", "finetune",
    )  # fmt: skip
    recipe = called.train[0]
    data, how = recipe.data, recipe.train
    assert (data.source, data.missing, data.findings, data.mapping) == ("luna16", "drop", ("A", "B"), "m.json")
    assert (data.negatives, data.roi, how.freeze, how.then) == (1.5, "box", "features", "finetune")
    assert recipe.augment == Recipe.load("adrenalmnist3d").augment
    run("train", "adrenalmnist3d", "--data", "d", "--to", "r", "--freeze", "features", "--no-augment")
    assert called.train[0].augment == Recipe.load("table").augment
    recipe = Recipe.load("table").with_(freeze="encoder", then="finetune")
    assert recipe.with_(freeze="none", then=None).train == Recipe.load("table").train


def test_words_of_python_are_those_of_the_command_line(called, tmp_path):
    for python, typed in (
        ("or roi=None and patch=None for complete scans", "or --set data.roi=null --set data.patch=null for complete"),
        ("Give missing='drop' to", "Give --missing drop to"),
        ("Give train.batch=33 or less.", "Give --batch 33 or less."),
    ):
        assert typed in cli_message(python, "train")
    with pytest.raises(ConfigError) as caught:
        medzoo.Table.from_source("chestxray14", tmp_path, mapping="m.json")
    assert cli_message(caught.value, "train") == (
        "the published set chestxray14 does not take --mapping. It takes --missing, --findings. Leave it out."
    )
    with pytest.raises(ConfigError) as caught:
        medzoo.Table.from_source("medmnist", tmp_path, sequence="T1w")
    assert cli_message(caught.value, "check") == (
        "the published set medmnist does not take --set data.sequence=…. It takes no options. Leave it out."
    )
    with pytest.raises(ConfigError) as caught:
        medzoo.Table.from_source("egfr", tmp_path, roi="box")
    assert "expected --roi seg, or --set data.roi=null --set data.patch=null, got" in cli_message(caught.value, "train")
    refused = run("train", "egfr", "--data", "d", "--to", "r", "--roi", "none")
    assert (refused.exit_code, "--set data.roi=null --set data.patch=null" in refused.output) == (2, True)


def test_what_a_frozen_recipe_refuses_states_what_to_type():
    with pytest.raises(ConfigError, match=r"Leave it out \(augment=None\), set train\.then: finetune"):
        Recipe.load("adrenalmnist3d").with_(freeze="features")
    assert Recipe.load("adrenalmnist3d").with_(freeze="features", augment=None).train.freeze == "features"
    refused = run("train", "adrenalmnist3d", "--data", "d", "--to", "r", "--freeze", "features")
    assert refused.exit_code == 2
    for typed in ("--no-augment", "--then finetune", "--freeze encoder"):
        assert typed in refused.output
    refused = run("train", "table", "--data", "d", "--to", "r", "--then", "finetune")
    assert "Leave it out (--then none)" in refused.output


def test_help_is_in_sections():
    for command in ("check", "train"):
        text = run(command, "--help").output
        places = [text.index(f"\n{title}:\n") for title in (*HEADINGS, "Options")]
        assert places == sorted(places)
        assert all(text.count(f"  {flags[0]} ") == 1 for flags, _, _ in OPTIONS)


def test_resume_takes_the_folder_alone(called):
    assert run("train", "--resume", "runs/a").exit_code == 0
    assert called.resume == ("runs/a", {"inexact": False, "logger": False})
    assert run("train", "--resume", "runs/a", "--inexact").exit_code == 0
    assert called.resume == ("runs/a", {"inexact": True, "logger": False})
    for more in (["table"], ["--data", "n.csv"], ["--root", "x"], ["--dry-run"], ["--epochs", "3"], ["--set", "lr=1"]):
        result = run("train", "--resume", "runs/a", *more)
        assert (result.exit_code, "expected the folder alone" in result.output) == (2, True)


@pytest.mark.parametrize(("kind", "name"), [("csv", "CSVLogger"), ("tensorboard", "TensorBoardLogger")])
def test_loggers_of_lightning(kind, name, called, tmp_path):
    assert run("train", "table", "--data", "d", "--to", tmp_path / "r", "--logger", kind).exit_code == 0
    assert type(called.train[2]["logger"]).__name__ == name
    assert not (tmp_path / "r").exists()  # nothing is written before the training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "expected a recipe, such as: medzoo train table --data n.csv --to runs/a."),
        (["train", "table"], "expected the folder of the run. Give --to FOLDER"),
        (["train", "table", "--to", "r"], "expected the data. Give --data"),
        (["check", "table"], "expected the data. Give --data"),
        (["check", "tabel", "--data", "d"], "no recipe 'tabel'. Did you mean 'table'?"),
        (["check", "table", "--data", "d"], "d: no such file or folder."),
        (["train", "table", "--data", "d", "--to", "r", "--lr", "0"], "optimizer.lr: expected a number above 0, got 0"),
        (["train", "table", "--data", "d", "--to", "r", "--epochs", "0"], "train.epochs: expected a number from 1 on"),
        (["train", "table", "--set", "train.epoch=3"], "no field 'train.epoch'. Did you mean 'train.epochs'?"),
        (["train", "table", "--set", "seed"], "expected a setting as field=value"),
        (["train", "table", "--set", "kind=sgd"], "Choose one of loss.kind, optimizer.kind, schedule.kind."),
        (["train", "table", "--lr", "1", "--set", "optimizer.lr=2"], "optimizer.lr is given twice, by --lr and --set."),
        (["train", "table", "--size", "big"], "--size: expected a number such as 64, or 64,64,64, got 'big'."),
        (["train", "table", "--leave-out", "site"], "--leave-out: expected COLUMN=VALUE, such as site=B, got 'site'."),
        (["train", "table", "--device", "gpu"], "train.device: expected auto, cpu, cuda or cuda:N, got 'gpu'."),
        (["recipes", "show", "nothing"], "no recipe 'nothing'. The package has adrenalmnist3d, "),
    ],
)
def test_fault_113_one_line_and_code_2(arguments, message, called):
    result = run(*arguments)
    assert (result.exit_code, called.train) == (2, None)
    assert result.output.startswith("ConfigError: ")
    assert message in result.output
    assert len(result.output.splitlines()) == 1


def test_check_and_dry_run_of_images(tmp_path):
    table = write_images(tmp_path, patients=12)
    data = ["table", "--data", table, "--root", tmp_path / "images", "--label-col", "grade", "--patient-col", "pid"]
    small = ["--model", "xray_cnn", "--size", 32, "--batch", 4, "--cache", "off", *TINY]
    checked = run("check", *data, *small)
    assert checked.exit_code == 0, checked.output
    assert "24 rows, binary" in checked.output
    tried = run("train", *data, *small, "--dry-run")
    assert tried.exit_code == 0, tried.output
    assert "written and continued" in tried.output
    wrong = run("check", *data[:5], "--label-col", "grad", *small)
    assert (wrong.exit_code, "Did you mean 'grade'" in wrong.output) == (5, True)


def test_train_and_predict_with_what_it_wrote(tmp_path):
    table = write_images(tmp_path, patients=12)
    result = run(
        "train", "table", "--data", table, "--root", tmp_path / "images", "--label-col", "grade", "--patient-col",
        "pid", "--model", "xray_cnn", "--size", 32, "--batch", 4, "--epochs", 2, "--cache", "off", *TINY, "--to",
        tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    predicted = run("predict", f"local-dir:{tmp_path / 'run' / 'model'}", tmp_path / "images" / "0_0.png")
    assert predicted.exit_code == 0, predicted.output


def test_warnings_and_log_are_plain_lines(called, monkeypatch):
    def train(recipe, data, **options):
        for _ in range(2):
            warnings.warn("a class has no positives", UserWarning, stacklevel=1)
            warnings.warn("for developers", FutureWarning, stacklevel=1)
        logging.getLogger("medzoo").info("epoch 1/2 · loss 0.5")
        logging.getLogger("medzoo").warning("of the log")
        return SimpleNamespace(folder=Path(options["to"]), model=SimpleNamespace(preprocessing=None))

    monkeypatch.setattr(medzoo.training.run, "train", train)
    level = logging.getLogger("medzoo").level
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = run("train", "table", "--data", "d", "--to", "r")
    assert result.stderr.splitlines() == [
        "warning: a class has no positives",
        "epoch 1/2 · loss 0.5",
        "warning: of the log",
    ]
    assert logging.getLogger("medzoo").level == level


@pytest.mark.parametrize("name", PACKAGES)
def test_without_the_extra_the_command_to_install_it_is_given(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"not installed \({name}\)\. Run: pip install 'medzoo\[train\]'"):
        require_train_extra()


def test_every_command_gives_that_advice(tmp_path):
    code = """
import sys
sys.modules["lightning"] = None
from click.testing import CliRunner
from medzoo.cli.main import main
for arguments in (
    ["recipes"], ["check", "table", "--data", "d"], ["train", "table", "--data", "d", "--to", "r"],
    ["evaluate", "s.csv"],
):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert result.output.startswith("ConfigError: training and evaluation need packages"), result
    assert "not installed (lightning)" in result.output
assert CliRunner().invoke(main, ["train", "--help"]).exit_code == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=120)


def test_help_is_quick_to_import():
    heavy = "torch", "lightning", "pydantic", "yaml"
    code = f"import sys, medzoo.cli.main; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout
    assert found.strip() == "[]"
