"""Recipes: what they may hold, how faults are reported, how they are written, read and changed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from medzoo.errors import ConfigError
from medzoo.training.overrides import parse_settings
from medzoo.training.recipe import FORMAT, OptimizerSection, Recipe
from medzoo.training.recipe_faults import fields_of
from medzoo.training.recipe_files import copy_recipe, list_recipes, parse_value, recipe_text

# A change here is a change of trained weights: a default never changes within a format.
DIGESTS = {
    "adrenalmnist3d": "ba6ab86b434a",
    "chestxray14": "61052c44e872",
    "egfr": "327d43d5fd34",
    "kermany": "817ff0ba2b3a",
    "luna16": "62773c373e9d",
    "medmnist": "2e28d09f20cd",
    "mgmt": "049b8b4de6bb",
    "rsna": "c1786513a540",
    "table": "bcec99aa20ad",
    "table_3d": "5931f7e809f3",
}
MINIMAL = {"model": {"name": "cnn3d_small"}}


def recipe(**sections):
    return Recipe.from_values(MINIMAL | sections, "mine.yaml")


def written(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text, "utf-8")
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize("name", list_recipes())
def test_each_packaged_recipe_is_valid_and_has_its_digest(name, tmp_path):
    loaded = Recipe.load(name)
    assert loaded.name == name
    assert loaded.description
    assert loaded.digest()[:12] == DIGESTS[name]
    assert Recipe.load(copy_recipe(name, tmp_path / "mine.yaml")) == loaded


def test_packaged_recipes_are_in_the_wheel():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    # hatch takes every file below a package that git does not ignore.
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["medzoo"]}
    assert (Path(__file__).parents[1] / "medzoo/training/recipes/table.yaml").is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": {"lr": 0}}, "mine.yaml: optimizer.lr: expected a number above 0, got 0."),
        ({"optimizer": {"lr": -1e-3}}, "optimizer.lr: expected a number above 0, got -0.001."),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr: expected a finite number, got nan."),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr: expected a finite number, got inf."),
        ({"optimizer": {"lr": True}}, "optimizer.lr: expected a number, got true."),
        ({"train": {"epochs": 0}}, "train.epochs: expected a number from 1 on, got 0."),
        ({"train": {"epochs": 2.5}}, "train.epochs: expected a whole number, got 2.5."),
        ({"train": {"epochs": "ten"}}, "train.epochs: expected a whole number, got 'ten'."),
        ({"train": {"epochs": True}}, "train.epochs: expected a whole number, got true."),
        ({"train": {"batch": -4}}, "train.batch: expected a number from 1 on, got -4."),
        ({"train": {"epoch": 3}}, "train.epoch: unknown. Did you mean 'epochs'?"),
        ({"train": {"lr": 3}}, "train.lr: unknown here. It is 'optimizer.lr'."),
        ({"trian": {}}, "trian: unknown. Did you mean 'train'?"),
        ({"train": {"device": "gpu"}}, "train.device: expected auto, cpu, cuda or cuda:N, got 'gpu'."),
        ({"train": 3}, "train: expected fields with values, got 3."),
        ({"optimizer": {"kind": "adm"}}, "expected adam, adamw or sgd, got 'adm'. Did you mean 'adam'?"),
        ({"augment": {"flip": ["x", "q"]}}, "augment.flip[1]: expected x, y or z, got 'q'."),
        ({"augment": {"scale": [1.2, 0.8]}}, "augment.scale: expected the smaller number first, got [1.2, 0.8]."),
        ({"augment": {"scale": [1.2]}}, "augment.scale[1]: missing. Give it a value."),
        ({"data": {"labels": [0, 1]}}, "data.labels[0]: expected a text (a number or a truth value needs quotes here)"),
        ({"data": {"size": "big"}}, "data.size: expected a whole number >= 1, or a list of 2 or 3 of them, got 'big'."),
        ({"data": {"label": []}}, "data.label: expected a column, or a list of columns, got none."),
        ({"data": {"patient_groups": "no"}}, "data.patient_groups: expected true or false, got 'no'."),
        ({"format": 2}, "format: expected 1, got 2. It may be of a later medzoo."),
        ({"model": {}}, "model.name: missing. Give it a value."),
        ({"model": {"name": "a", "options": {"b": {"c": 1}}}}, "model.options.b: expected plain values"),
        ({"source": {"claim": {"auroc": [1]}}}, "source.claim.auroc: expected plain values"),
        ({"decide": {"threshold": None}}, "decide.threshold: expected a rule, or a rule for each label, got null."),
        ({"decide": {"threshold": True}}, "decide.threshold: expected a rule, or a rule for each label, got true."),
        ({"decide": {"threshold": {"*": []}}}, "decide.threshold: expected a rule, or a rule for each label, got {'*'"),
        ({"decide": {"threshold": "${x}"}}, "decide.threshold: expected a plain text, as a recipe holds no code, got"),
        ({"decide": {"threshold": {"*": 5}}}, "decide.threshold: expected a fixed threshold between 0 and 1, got 'fix"),
        ({"decide": {"threshold": float("nan")}}, "decide.threshold: no rule 'fixed nan'."),
    ],
)
def test_fault_113_value_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        recipe(**values)
    assert error.value.exit_code == 2
    assert "pydantic" not in str(error.value)
    assert "[_" not in str(error.value)
    assert str(error.value).count("decide.threshold") <= 1


def test_a_number_is_a_fixed_threshold():
    assert recipe(decide={"threshold": 0.5}).decide.threshold == "fixed 0.5"
    found = recipe(decide={"threshold": {"a": 0.25, "*": "youden"}}).decide.threshold
    assert found == {"a": "fixed 0.25", "*": "youden"}
    assert Recipe.load("table").with_(**{"decide.threshold": 1e-5}).decide.threshold == "fixed 1e-05"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"then": "finetune"}}, "train.then: expected freeze encoder or features before it"),
        ({"train": {"then_lr": 1e-4}}, "train.then_lr: expected then: finetune beside it"),
        ({"split": {"fold": 1}}, "split.fold: expected a fold from 0, below folds, got fold 1 without folds."),
        ({"split": {"folds": 5, "fold": 5}}, "got fold 5 of 5."),
        ({"split": {"folds": 5, "column": "part"}}, "split.folds: expected one of column, folds and leave_out"),
        ({"split": {"leave_out": {"site": ["A"]}, "column": "part"}}, "got column and leave_out."),
        ({"split": {"leave_out": {"site": []}}}, "split.leave_out: expected one column with values"),
        ({"split": {"shares": [0.7, 0.2, 0.2]}}, "split.shares: expected a sum of 1, got 1.1."),
        ({"data": {"window": [0.0, 1.0]}}, "data.window: expected intensity: window and window: [low, high] together"),
        ({"data": {"intensity": "window"}}, "got intensity window and window null."),
        ({"data": {"intensity": "window", "window": [1.0, 1.0]}}, "data.window: expected low < high"),
        ({"data": {"size": [64]}}, "data.size: expected one number, 2 or 3, got 1."),
        ({"loss": {"weights": [1.0], "balance": "sqrt"}}, "loss.balance: expected none beside weights, got sqrt."),
        ({"schedule": {"gamma": 0.9}}, "schedule.gamma: expected 1 beside kind constant, got 0.9"),
        ({"schedule": {"warmup": 1.0}}, "schedule.warmup: expected"),
    ],
)
def test_fields_that_contradict_each_other(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        recipe(**values)


def test_shares_may_have_a_rounding_error():
    assert recipe(split={"shares": [0.7, 0.1, 0.2000005]}).split.column is None
    with pytest.raises(ConfigError, match="sum of 1"):
        recipe(split={"shares": [0.7, 0.1, 0.20001]})


def test_all_faults_are_listed_at_once():
    with pytest.raises(ConfigError) as error:
        recipe(train={"epochs": 0, "epoch": 3}, optimizer={"lr": 0}, split={"fold": 3, "shares": [0.5, 0.5, 0.5]})
    lines = str(error.value).splitlines()
    assert lines[0] == "mine.yaml: 5 faults"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "split.shares", "split.fold", "optimizer.lr", "train.epochs", "train.epoch",
    ]  # fmt: skip


def test_constructors_raise_config_errors_too():
    with pytest.raises(ConfigError, match=r"^Recipe: train.epochs: expected a number from 1 on, got 0\.$"):
        Recipe(model={"name": "cnn3d_small"}, train={"epochs": 0})
    with pytest.raises(ConfigError, match=r"^OptimizerSection: lr: expected a number above 0, got 0\.$"):
        OptimizerSection(lr=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: !!python/object/apply:os.system ['touch x']", "line 1: expected no tag, got !!python/object"),
        ("model: !!python/name:os.system", "expected no tag, got !!python/name:os.system"),
        ("model: {name: !!str a}", "expected no tag, got !!str"),
        ("a: &a [x, x]\nb: &b [*a, *a]", "line 1: expected no anchor, got &a. A recipe holds plain values"),
        ("a: *a", "expected no alias, got *a"),
        ("<<: {name: a}\nmodel: {name: a}", "<<: unknown."),
        ("model: {_target_: os.system, name: a}", "model._target_: unknown: a recipe holds no code."),
        ("_target_: os.system\nmodel: {name: a}", "_target_: unknown: a recipe holds no code."),
        ("model: {name: $HOME}", "model.name: expected a plain text, as a recipe holds no code, got '$HOME'."),
        ("model: {name: '${oc.env:HOME}'}", "model.name: expected a plain text, as a recipe holds no code"),
        ("model: {name: 'a${now:}'}", "model.name: expected a plain text"),
        ("model: {name: a, options: {size: $x}}", "model.options.size: expected plain values"),
        ("model: {name: a}\nmodel: {name: b}", "the key 'model' occurs twice"),
        ("model: {name: a, name: b}", "line 1: the key 'name' occurs twice"),
        ("model: {name: a}\n---\nmodel: {name: b}", "another document"),
        ("? [model]\n: a", "a key is no text"),
        ("model: a: b", "line 1: mapping values are not allowed here"),
        ("- model", "expected fields such as 'model: {name: xray_cnn}', got a list."),
        ("", "expected fields such as 'model: {name: xray_cnn}', got nothing."),
        ("model: {name: \x07}", "special characters are not allowed"),
        ("[" * 100_000, "expected at most 12 levels, got more"),
        ("train: {epochs: " + "9" * 5000 + "}", "expected numbers of fewer digits"),
        ("#" * (1 << 20) + "\n", "expected a recipe of at most 1 MiB, got more"),
    ],
)  # fmt: skip
def test_fault_114_code_aliases_and_sizes(text, message, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        Recipe.load(written(tmp_path, text))
    assert str(error.value).startswith(str(tmp_path / "mine.yaml"))


def test_fault_114_alias_bomb_is_refused_before_it_is_built(tmp_path):
    levels = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))]
    with pytest.raises(ConfigError, match="expected no anchor, got &a0"):
        Recipe.load(written(tmp_path, "\n".join(levels)))


def test_a_label_may_be_no_and_a_patient_007(tmp_path):
    path = written(
        tmp_path, "model: {name: a}\ndata: {labels: [no, yes, 007, 2015-01-01, 8:30]}\noptimizer: {lr: 1e-4}"
    )
    loaded = Recipe.load(path)
    assert loaded.data.labels == ("no", "yes", "007", "2015-01-01", "8:30")
    assert loaded.optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tabel", "no recipe 'tabel'. Did you mean 'table'? The package has adrenalmnist3d, "),
        ("runs/table.yaml", "runs/table.yaml: the recipe cannot be read (No such file or directory). The package has"),
        (Path("table"), "table: the recipe cannot be read (No such file or directory)"),
        ("/", "the recipe cannot be read (Is a directory)"),
    ],
)
def test_recipe_that_is_not_there(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(message)):
        Recipe.load(source)


def test_file_that_is_no_text(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ConfigError, match="expected a text file in UTF-8"):
        Recipe.load(tmp_path / "a.yaml")


AWKWARD = ["no", "1e-4", "007", "~", "<<", "=", "0x1F", "1_000", "\x85", "\u2028", "a\n b"]
texts = st.text(st.characters(codec="utf-8", exclude_characters="$"), max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(texts | st.sampled_from(AWKWARD), max_size=4),
    lr=st.floats(1e-300, 1e300),
    claim=st.dictionaries(texts, st.none() | st.booleans() | st.integers() | texts, max_size=3),
)  # fmt: skip
def test_written_recipe_is_read_exactly_by_us_and_by_plain_yaml(tmp_path_factory, labels, lr, claim):
    made = recipe(data={"labels": labels}, optimizer={"lr": lr}, source={"claim": claim})
    text = made.to_yaml()
    path = tmp_path_factory.mktemp("r") / "r.yaml"
    path.write_bytes(text.encode())
    assert Recipe.load(path) == made
    assert Recipe.from_values(yaml.safe_load(text)) == made
    assert Recipe.load(path).to_yaml() == text


def test_written_recipe_has_every_field_and_a_header():
    lines = Recipe.load("table").to_yaml().splitlines()
    assert lines[0] == "# medzoo recipe table: every field with its value."
    values = yaml.safe_load("\n".join(lines))
    for path in fields_of(Recipe):
        section, _, field = path.rpartition(".")
        assert field in (values[section] if section else values)


def test_digest_is_of_what_affects_the_weights():
    base = recipe()
    same = [
        base.with_(workers=4), base.with_(cache_quota_gb=3.0), base.with_(name="other"),
        base.with_(checkpoint_steps=7), base.with_(checkpoint_minutes=1.0),
        base.with_(description="x"), base.with_(**{"source.reference": "y"}),
    ]  # fmt: skip
    assert {each.digest() for each in same} == {base.digest()}
    other = [
        base.with_(seed=1), base.with_(lr=1e-4), base.with_(cache="off"),
        base.with_(epochs=3), base.with_(size=32), base.with_(ema=0.9),
        base.with_(**{"split.seed": 1}), base.with_(flip=["x"]), base.with_(folds=5), base.with_(folds=5, fold=1),
        base.with_(device="cpu"), base.with_(threads=2), base.with_(precision="bf16"), base.with_(model="xray_cnn"),
    ]  # fmt: skip
    assert len({base.digest(), *(each.digest() for each in other)}) == len(other) + 1


def test_overrides_by_name_path_and_section():
    base = Recipe.load("table")
    changed = base.with_(
        lr=np.float64(1e-4), epochs=np.int64(20), model="swin_encoder_mlp:btcv", label=("a", "b"), seed=3,
        augment={"flip": ["x"]}, **{"model.options.feature_size": 24, "split.seed": 5},
    )  # fmt: skip
    assert (changed.optimizer.lr, changed.train.epochs, changed.train.seed, changed.split.seed) == (1e-4, 20, 3, 5)
    assert (changed.model.name, changed.model.pretrained) == ("swin_encoder_mlp", "btcv")
    assert changed.model.options == {"feature_size": 24}
    assert changed.data.label == ("a", "b")
    assert changed.augment.flip == ("x",)
    assert changed.schedule == base.schedule
    assert base.with_() is base


def test_model_without_a_tag_drops_the_weights_of_the_recipe():
    changed = Recipe.load("table").with_(model="xray_cnn")
    assert (changed.model.name, changed.model.pretrained) == ("xray_cnn", False)
    assert Recipe.load("table").with_(model="local-dir:runs/a").model.name == "local-dir:runs/a"


def test_another_way_to_split_replaces_that_of_the_recipe():
    base = Recipe.load("adrenalmnist3d")
    assert base.with_(folds=5, fold=2).split.column is None
    assert base.with_(leave_out={"site": ["B"]}).split.column is None
    assert base.with_(folds=5).with_(column="part").split.folds is None
    with pytest.raises(ConfigError, match="expected one of column, folds and leave_out"):
        base.with_(folds=5, column="part")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"kind": "sgd"}, "a field of several sections. Choose one of loss.kind, optimizer.kind, schedule.kind."),
        ({"epoch": 3}, "recipe table: no field 'epoch'. Did you mean 'epochs'?"),
        ({"train.epoch": 3}, "no field 'train.epoch'. Did you mean 'train.epochs'?"),
        ({"optimizer.epochs": 3}, "no field 'optimizer.epochs'. Did you mean 'train.epochs'?"),
        ({"train": 3}, "train: expected its fields with values, got 3. Set train.FIELD."),
        ({"lr": 0}, "optimizer.lr: expected a number above 0, got 0."),
        ({"lr": 1.0, "optimizer.lr": 2.0}, "optimizer.lr: given twice, as 1.0 and 2.0."),
        ({"kind": "sgd", "epoch": 3}, "recipe table: several faults\n"),
        ({"train": {"epoch": 3}}, "train.epoch: unknown. Did you mean 'epochs'?"),
    ],
)  # fmt: skip
def test_override_that_cannot_be(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Recipe.load("table").with_(**overrides)


def test_settings_are_read_as_in_a_recipe():
    assert parse_settings(["a=1e-3", "b=[x, y]", "c=no", "d=null", "e=a=b", "f=", "g=007"]) == {
        "a": 1e-3, "b": ["x", "y"], "c": "no", "d": None, "e": "a=b", "f": None, "g": "007",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"expected a setting as field=value, such as optimizer\.lr=1e-4, got 'lr'"):
        parse_settings(["lr"])
    with pytest.raises(ConfigError, match="lr is set twice"):
        parse_settings(["lr=1", "lr=2"])
    with pytest.raises(ConfigError, match="lr, line 1: expected no tag"):
        parse_value("!!python/name:os.system", "lr")


def test_copy_does_not_overwrite(tmp_path):
    path = copy_recipe("table", tmp_path / "mine.yaml")
    assert path.read_text("utf-8") == recipe_text("table")
    for target, message in (
        (path, "exists, and is not overwritten"),
        (tmp_path / "no" / "mine.yaml", r"cannot be written \(No such file or directory\)"),
        (tmp_path / "mine", "expected a file name ending in .yaml"),
    ):
        with pytest.raises(ConfigError, match=message):
            copy_recipe("table", target)


def test_a_recipe_does_not_change():
    made = recipe()
    assert made.format == FORMAT
    with pytest.raises(ValueError, match="frozen"):
        made.train.epochs = 3
    assert isinstance(made.augment.flip, tuple)


def test_the_published_sets_are_the_same_everywhere():
    from medzoo.cli.recipe_options import SOURCE_NAMES
    from medzoo.data.sources.catalogue import SOURCES
    from medzoo.training.recipe import DataSection

    stated = DataSection.model_fields["source"].annotation.__args__
    assert sorted(stated) == sorted(SOURCE_NAMES) == sorted(["table", *SOURCES])
    assert {name: Recipe.load(name).data.source for name in SOURCES} == {name: name for name in SOURCES}
