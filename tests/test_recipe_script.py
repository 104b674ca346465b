"""A recipe as a script: it compiles, is clean, and gives the weights of the recipe, bit for bit."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import write_images

import medzoo
from medzoo.errors import ConfigError
from medzoo.training.code_text import Code, call_lines, comment_lines, python_text
from medzoo.training.recipe import Recipe
from medzoo.training.recipe_files import copy_recipe, list_recipes
from medzoo.training.script import recipe_script, write_script
from medzoo.training.source import load_table

FLAT = {"name": "xray_cnn", "options": {"widths": [4, 4, 8, 8], "hidden": 8}}
VOLUME = {"name": "cnn3d_small", "options": {"size": 16, "widths": [4, 8, 8], "hidden": 8}}
# Between them, what a script can have: every kind of table and split, and each way to train.
CASES = {
    "volume": {
        "model": VOLUME,
        "data": {"patient_groups": False, "labels": ["mass"], "cache": "memory"},
        "split": {"column": "split"},
        "augment": {"flip": ["x", "z"], "rotate": 10, "noise": 0.05},
        "loss": {"balance": "normalised", "smoothing": 0.05},
        "optimizer": {"kind": "adam", "lr": 1e-3, "clip": 0.5},
        "schedule": {"kind": "exponential", "gamma": 0.98},
        "train": {"epochs": 4, "batch": 4, "ema": 0.9, "accumulate": 2, "stop_after": 1, "monitor": "valid_auroc"},
        "decide": {"calibrate": "shift"},
    },
    "flat": {
        "description": "features, then all",
        "model": FLAT,
        "data": {"label": "grade", "patient": "pid", "size": 32, "cache": "memory", "intensity": "window",
                 "window": [0, 255]},
        "split": {"seed": 3, "shares": [0.5, 0.25, 0.25], "draws": 100},
        "augment": {"flip": ["x"]},
        "loss": {"balance": "sqrt"},
        "schedule": {"kind": "cosine", "warmup": 0.2},
        "train": {"epochs": 2, "batch": 4, "freeze": "features", "then": "finetune", "then_epochs": 1, "seed": 7},
    },
    "folds": {
        "model": {"name": "local-dir:models/mine"}, "split": {"folds": 5, "fold": 2}, "data": {"size": 64},
        "train": {"device": "cuda:1", "precision": "fp16", "threads": 3, "workers": 2},
    },
    "site": {
        "model": {"name": "swin_encoder_mlp", "pretrained": "btcv"}, "split": {"leave_out": {"site": ["B", 'a "C"']}},
        "data": {"source": "luna16", "patch": [40, 40, 40], "negatives": 1.5, "missing": "drop",
                 "point": ["x", "y", "z"]},
        "train": {"device": "cpu", "freeze": "encoder"},
    },
    "dicom": {
        "model": {"name": "resnet18_multilabel"}, "augment": {"crop": [0.7, 1.0]},
        "data": {"key": "AccessionNumber", "label": [f"a finding with a long name, number {i}" for i in range(14)],
                 "unreadable": "drop", "allow_mismatch": True},
        "decide": {"threshold": {"*": "youden", "x": "sensitivity>=0.95"}, "calibrate": "none"},
        "description": 'ends """ a comment\nimport os',
    },
}  # fmt: skip
RECIPES = {**{name: Recipe.load(name) for name in list_recipes()},
           **{name: Recipe(name=name, **values) for name, values in CASES.items()}}  # fmt: skip


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    for name, recipe in RECIPES.items():
        (folder / f"{name}.py").write_text(recipe_script(recipe, name), "utf-8")
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_script_compiles_and_is_short(name):
    text = recipe_script(RECIPES[name], name)
    tree = ast.parse(text)
    assert sum(isinstance(node, ast.stmt) for node in ast.walk(tree)) <= 70
    assert max(map(len, text.splitlines())) <= 120
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert imported == ["argparse", "lightning.pytorch", "medzoo", "numpy", "torch"]


def test_scripts_are_clean_and_formatted(scripts):
    pytest.importorskip("ruff", reason="ruff comes with the dev extra; `.ci/run lint` runs this test with it")
    ruff = [sys.executable, "-m", "ruff"]
    style = ["--isolated", "--no-cache", "--line-length", "120", "."]
    how = {"cwd": scripts, "capture_output": True, "text": True}  # a folder of its own, where medzoo is a library
    check = subprocess.run([*ruff, "check", "--select", "E,F,W,I,UP,B,SIM,C4", *style], **how)
    assert check.returncode == 0, check.stdout + check.stderr
    layout = subprocess.run([*ruff, "format", "--check", "--diff", *style], **how)
    assert layout.returncode == 0, layout.stdout + layout.stderr


def test_what_scripts_import_is_public(scripts):
    """Each name that they take from a module is listed in docs/api.md."""
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text("utf-8")
    for path in scripts.iterdir():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("medzoo"):
                for alias in node.names:
                    assert f":: {node.module}.{alias.name}\n" in page, f"{path.name}: {node.module}.{alias.name}"


def write_volumes(path):
    rng, labels = np.random.default_rng(0), np.arange(60) % 3 == 0
    images = (rng.integers(0, 200, (60, 16, 16, 16)) + 40 * labels[:, None, None, None]).astype(np.uint8)
    parts = {"train": slice(0, 18), "val": slice(18, 56), "test": slice(56, 60)}
    arrays = {f"{part}_images": images[rows] for part, rows in parts.items()}
    np.savez(path, **arrays, **{f"{part}_labels": labels[rows, None].astype(int) for part, rows in parts.items()})
    return path


def prepare(name, folder):
    """Write the data, the recipe and the script; return recipe, data, root, and the script's arguments."""
    flat = name == "flat"
    data = write_images(folder / "data", patients=24) if flat else write_volumes(folder / "v.npz")
    root = data.parent / "images" if flat else None
    (folder / "mine.yaml").write_text(RECIPES[name].to_yaml(), "utf-8")
    script = write_script(str(folder / "mine.yaml"), folder / "mine.py")
    arguments = [script, data, folder / "scripted", *(["--root", root] if flat else [])]
    return Recipe.load(folder / "mine.yaml"), data, root, list(map(str, arguments))


def check_equal(scripted, run):
    """Check that the models of two folders are equal, bit for bit, with their thresholds and calibration."""
    digests, outputs = [], []
    for folder in (scripted, run):
        digests.append(hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest())
        outputs.append(json.loads((folder / "model" / "config.json").read_text())["outputs"])
    assert digests[0] == digests[1]
    assert outputs[0] == outputs[1]
    return outputs[0]


QUIET = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:.*does not have many workers", "ignore::UserWarning"
)


@pytest.mark.slow
@QUIET
def test_a_script_gives_the_weights_of_the_recipe(tmp_path, monkeypatch):
    recipe, data, root, arguments = prepare("volume", tmp_path)
    run = medzoo.train(recipe, data, to=tmp_path / "run", root=root)
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        torch.use_deterministic_algorithms(False)
    assert check_equal(tmp_path / "scripted", run.folder)["calibration"] is not None
    with pytest.raises(FileExistsError):
        runpy.run_path(arguments[0], run_name="__main__")
    assert len(run.log) < recipe.train.epochs, "it was stopped early"
    initial = medzoo.create("cnn3d_small", **VOLUME["options"], labels=["mass"], task="binary").state_dict()
    assert not torch.equal(run.model.state_dict()["head.classifier.weight"], initial["head.classifier.weight"])


@QUIET
@pytest.mark.slow
@pytest.mark.parametrize("name", ["volume", "flat"])
def test_a_script_gives_them_in_a_process_of_its_own(name, tmp_path):
    recipe, data, root, arguments = prepare(name, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300)
    assert child.returncode == 0, child.stderr
    run = medzoo.train(recipe, data, to=tmp_path / "run", root=root, threads=1)
    check_equal(tmp_path / "scripted", run.folder)
    other = medzoo.train(recipe, data, to=tmp_path / "other", root=root, threads=1, seed=1)
    with pytest.raises(AssertionError):
        check_equal(tmp_path / "scripted", other.folder)


def test_a_script_is_written_once_and_by_its_ending(tmp_path):
    path = write_script("table", tmp_path / "mine.py")
    assert path.read_text("utf-8") == recipe_script(Recipe.load("table"), "table")
    with pytest.raises(ConfigError, match="exists, and is not overwritten"):
        write_script("table", path)
    with pytest.raises(ConfigError, match=r"expected a file name ending in \.py"):
        write_script("table", tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match=r"ending in \.yaml.* --as script"):
        copy_recipe("table", tmp_path / "other.py")


def test_a_script_reads_the_table_that_the_recipe_reads(tmp_path: Path) -> None:
    """A set that is published as a file, and a table with a region in a column."""
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    for i in range(2):
        mask = np.zeros((8, 8, 8), np.uint8)
        mask[2 + i, 3, 4] = 1
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / f"mask{i}.nii.gz")
    rows = [f"scan.nii.gz,{i},p{i},mask{i}.nii.gz" for i in range(2)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,patient,mask", *rows]) + "\n")
    images = np.random.default_rng(0).integers(0, 255, (8, 28, 28), np.uint8)
    arrays = {f"{part}_{what}": a for part in ("train", "val", "test") for what, a in
              (("images", images), ("labels", np.arange(8)[:, None] % 2))}  # fmt: skip
    np.savez(tmp_path / "breastmnist.npz", **arrays)
    cases = [
        (Recipe.load("medmnist"), tmp_path / "breastmnist.npz"),
        (Recipe.load("egfr").with_(roi="mask"), tmp_path / "t.csv"),
    ]
    for recipe, data in cases:
        (tmp_path / "script.py").write_text(recipe_script(recipe, "a recipe"))
        own = runpy.run_path(str(tmp_path / "script.py"))["read_table"](data, None)
        table = load_table(recipe, data)
        assert own.labels == table.labels
        np.testing.assert_array_equal(own.targets, table.targets)
        assert (own.points is None) == (table.points is None)
        if table.points is not None:
            np.testing.assert_array_equal(own.points, table.points)


def test_a_script_has_the_choices_that_data_may_need():
    for name, wanted in (("egfr", ["missing"]), ("rsna", ["missing", "mapping"]), ("kermany", [])):
        tree = ast.parse(text := recipe_script(Recipe.load(name), name))
        (call,) = (node for node in ast.walk(tree) if isinstance(node, ast.Call)
                   and isinstance(node.func, ast.Attribute) and node.func.attr == "from_source")  # fmt: skip
        given = {one.arg: one.value.value for one in call.keywords if isinstance(one.value, ast.Constant)}
        assert {key: value for key, value in given.items() if key in ("missing", "mapping")} == {
            key: {"missing": "refuse", "mapping": None}[key] for key in wanted
        }
        assert ('# missing="drop" leaves out' in text) == ("missing" in wanted)
    assert recipe_script(Recipe.load("egfr").with_(missing="drop"), "egfr").count('missing="drop"') == 2


# What a recipe says is a value in its script, never code.

TEXTS = st.text(st.characters() | st.sampled_from("\"'\\\n\r\0{}#😀\ud83d\x85\u2028"), max_size=12)
VALUES = st.recursive(
    TEXTS | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_a_value_as_code_is_that_value(value):
    assert ast.literal_eval(python_text(value)) == value
    (call,) = ast.parse("\n".join(call_lines("", "medzoo.f", [value], {"x": value, Code("**more"): None}))).body
    assert ast.literal_eval(call.value.args[0]) == value
    assert [word.arg for word in call.value.keywords] == ["x", None]
    assert ast.literal_eval(call.value.keywords[0].value) == value


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_a_comment_ends_where_its_line_does(text):
    assert ast.parse("\n".join(['"""A file."""', *comment_lines(f"{text} coding: latin-1 {text}")])).body[1:] == []


def test_what_is_no_plain_value_is_refused():
    for value in (float("nan"), float("inf"), Path("x"), b"x", {1}):
        with pytest.raises(ConfigError, match="expected texts and finite numbers"):
            python_text(value)


HOSTILE = ["size=1, width", "size=__import__('os').abort() or 1, width", "**options", "*args", "x)\nabort(", "a.b",
           "lambda", "", "1x", "ﬁ", 'x"y', "x{y}", "😀", "x=1)\nabort("]  # fmt: skip


@pytest.mark.parametrize("name", ["cnn3d_small", "local-dir:models/mine"])
@pytest.mark.parametrize("option", HOSTILE)
def test_an_option_that_is_no_name_is_refused_before_anything_is_written(name, option, tmp_path):
    recipe = Recipe(name="evil", model={"name": name, "options": {option: 1}})
    with pytest.raises(ConfigError, match=r"expected (options of cnn3d_small|the name of an argument), got"):
        recipe_script(recipe, "evil")
    (tmp_path / "evil.yaml").write_text(recipe.to_yaml(), "utf-8")
    with pytest.raises(ConfigError, match=r"expected (options of cnn3d_small|the name of an argument), got"):
        write_script(str(tmp_path / "evil.yaml"), tmp_path / "evil.py")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.yaml"]
    with pytest.raises(ConfigError, match="expected the name of an argument"):
        call_lines("", "f", [], {option: 1})


def test_an_option_that_the_model_does_not_have_has_a_near_one():
    recipe = Recipe(name="mine", model={"name": "cnn3d_small", "options": {"droput": 0.1}})
    with pytest.raises(ConfigError, match=r"got 'droput'\. Did you mean 'dropout'\?"):
        recipe_script(recipe, "mine")


EVIL = ['x"); abort(); ("', "x'); abort(); ('", "a\nabort()\n", "{abort()}", "\\", '\\"', "😀\n", '"""\nabort()\n"""']


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize("model", ["cnn3d_small", "hf-hub:"])
def test_texts_of_a_recipe_are_values_in_its_script(text, model):
    """In names, columns, labels, paths and values, with the text as one value of a literal and no call of it."""
    recipe = Recipe(
        name="evil", description=text,
        model={"name": model if model == "cnn3d_small" else model + text, "pretrained": text,
               "options": {"stem" if model != "cnn3d_small" else "dropout": text}},
        data={"image": text, "label": [text, "b"], "patient": text, "labels": [text, "b"], "positive": text,
              "sep": text, "cache": "memory"},
        split={"leave_out": {text: [text]}}, decide={"threshold": {"*": "youden", text: "youden"}},
    )  # fmt: skip
    tree = ast.parse(recipe_script(recipe, text))
    found = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert found.count(text) >= 6
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert "abort" not in names
    by_column = recipe.with_(**{"split.leave_out": None, "split.column": text})
    assert text in [n.value for n in ast.walk(ast.parse(recipe_script(by_column, text))) if isinstance(n, ast.Constant)]
