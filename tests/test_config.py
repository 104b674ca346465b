"""``config.json``: every format is read for ever, and what a field that is left out means is written down.

``golden/formatN`` holds folders that were saved in format N, of models whose weights are small complete with them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import medzoo
from medzoo.contract import Outputs, Preprocessing
from medzoo.errors import CONTROL, ConfigError, MedzooError
from medzoo.input_spec import InputSpec
from medzoo.provenance import Calibration, IntendedUse, ThresholdPolicy
from medzoo.weights.cache import digest_of
from medzoo.weights.formats import FORMAT, FORMATS, REQUIRED, complete
from medzoo.weights.verify import golden_input

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("format*/*/config.json"))
SECTIONS = {
    "input": InputSpec,
    "preprocessing": Preprocessing,
    "outputs": Outputs,
    "outputs.policy": ThresholdPolicy,
    "outputs.calibration": Calibration,
    "intended_use": IntendedUse,
}


def place(folder, to, **changes):
    """Copy a golden folder; weights that are too large to be kept are made, and stated in the config."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    weights = to / "model.safetensors"
    if not weights.exists():
        made = medzoo.create(config["model"], **medzoo.describe(config["model"]).tiny)
        save_file(made.state_dict(), weights)
        config["weights"] |= {"digest": digest_of(weights.read_bytes()), "size": weights.stat().st_size}
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


def test_each_format_has_a_golden_folder():
    assert {path.parent.name for path in FOLDERS} == {f"format{number}" for number in FORMATS}
    assert {path.name for path in FOLDERS if path.parent.name == "format1"} == set(medzoo.list_models())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_golden_folder_loads_as_what_was_saved(folder, tmp_path):
    model = medzoo.create(f"local-dir:{place(folder, tmp_path / 'm')}")
    config = json.loads((folder / "config.json").read_text())
    config = complete(config, config["format"])
    assert not model.load_report.new
    for section, have in {
        "input": model.input_spec,
        "preprocessing": model.preprocessing,
        "outputs": model.outputs,
        "options": model.options,
        "intended_use": model.load_report.intended_use,
    }.items():
        now = json.loads(json.dumps(have if section == "options" else dataclasses.asdict(have)))
        stated = config.get(section, {})
        assert {name: now[name] for name in stated} == stated, section
    assert (model.load_report.license, model.load_report.trained_on) == (config["license"], config["trained_on"])
    logits = json.loads((folder.parent / "logits.json").read_text()).get(folder.name)
    if logits:
        with torch.inference_mode():
            got = model(golden_input(model.input_spec)).flatten()
        torch.testing.assert_close(got, torch.tensor(logits), rtol=1e-4, atol=1e-4)


def test_a_golden_folder_of_the_present_format_is_what_is_saved_now(tmp_path):
    folder = GOLDEN / f"format{FORMAT}" / "cnn3d_small"
    again = medzoo.create(f"local-dir:{folder}")
    again.save_pretrained(tmp_path, metrics={"AUROC": 0.5})
    before, now = (complete(json.loads((place / "config.json").read_text())) for place in (folder, tmp_path))
    for version in ("medzoo", "torch"):
        del before[version], now[version]
    assert now == before
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert "- made for: CT, CHEST, adults with lung cancer, 18 to 90 years" in (tmp_path / "README.md").read_text()


def test_every_field_of_a_contract_has_a_default_in_the_present_format():
    """A field added to one of these classes is not written down as long as this fails."""
    for section, kind in SECTIONS.items():
        assert FORMATS[FORMAT][section].keys() == {field.name for field in dataclasses.fields(kind)}, section


def test_a_field_that_is_left_out_has_the_default_of_its_format(tmp_path):
    small = place(GOLDEN / f"format{FORMAT}" / "cnn3d_small", tmp_path / "m")
    config = json.loads((small / "config.json").read_text())
    for section, fields in FORMATS[FORMAT].items():
        if "." in section:
            continue
        owner = config if section == "config" else config.get(section, {})
        for name, default in fields.items():
            if default is not REQUIRED:
                owner.pop(name, None)
    config["input"] |= {"minimum": 14, "exact": True}  # the builder's, which must agree
    (small / "config.json").write_text(json.dumps(config))
    model = medzoo.create(f"local-dir:{small}")
    assert model.outputs == Outputs(("mutation",), "binary", (0.5,), (False,))
    assert model.preprocessing == Preprocessing(size=(16, 16, 16))
    assert model.load_report.intended_use == IntendedUse()
    assert (model.load_report.license, model.load_report.trained_on) == ("not stated", "not stated")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": FORMAT + 1, "medzoo": "7.1"},
            r"format 3 is not known; .* up to 2\. It was written by medzoo 7\.1, ",
        ),
        (
            {"shape": 1, "medzoo": "7.1"},
            r"no field 'shape' of config is known\. .* by medzoo 7\.1, .* Upgrade medzoo to",
        ),
        ({"chanels": 1}, r"no field 'chanels' of config .* Did you mean 'channels'\? .* Save the model again"),
        ({"outputs": {"labels": ["a"], "task": "binary", "bias": 0}}, "no field 'bias' of outputs is known"),
        ({"outputs": {"task": "binary"}}, "the field 'labels' of outputs is missing"),
        ({"preprocessing": {"size": [16, 16, 16], "resample": "lanczos"}}, "expected resample to be 'reference'"),
        ({"intended_use": {"modality": "CT"}}, "expected modality to be a list of texts, got 'CT'"),
        (
            {"weights": {"digest": "sha256:" + "0" * 64, "size": 1, "file": "../x"}},
            r"got '\.\./x'",
        ),
        (
            {"outputs": {"labels": ["a"], "task": "binary", "calibration": {"method": "Platt", "slope": [1]}}},
            r"the field 'intercept' of outputs\.calibration is missing",
        ),
        (
            {
                "outputs": {
                    "labels": ["a"],
                    "task": "binary",
                    "calibration": {"method": "Platt", "slope": [-1], "intercept": [0]},
                }
            },
            "expected slopes above 0",
        ),
        (
            {"outputs": {"labels": ["a"], "task": "binary", "policy": {"rule": "Youden", "positives": [1, 2]}}},
            "expected positives of the threshold policy to be 1 ints >= 0",
        ),
        ({"outputs": {"labels": ["a"], "task": "binary", "prevalence": [2]}}, "expected prevalence to be 1 numbers"),
    ],
)
def test_a_config_that_is_wrong_is_refused_with_the_reason(changes, message, tmp_path):
    folder = place(GOLDEN / f"format{FORMAT}" / "cnn3d_small", tmp_path / "m", **changes)
    with pytest.raises(ConfigError, match=message):
        medzoo.create(f"local-dir:{folder}")


# Wrong values by section and field, each of a type or size that Python would accept in silence or fail on later.
WRONG = {
    "config": {
        "options": [
            {"num_classes": 1, "in_chans": 10**30},
            {"num_classes": -1, "in_chans": 1},
            {"num_classes": 1.0, "in_chans": 1},
            {"num_classes": 1, "in_chans": 1, "size": {"a": 1}},
            {"num_classes": 1, "in_chans": 1, "dropout": float("nan")},
            {"in_chans": 1},
            [],
        ],
        "channels": ["CT", [1], ["CT", "PET"]],
        "license": [None, 5],
        "trained_on": [["a"]],
        "metrics": [3, {"AUROC": [1]}],
        "model": [5, None],
        "dtype": ["int8", 32],
    },
    "input": {
        "axes": [None, "b h w c", "b c h w"],
        "size": [5, [16], [0, 16, 16], [1.5, 1, 1], True],
        "channels": [0, "1", True, 10**30],
        "exact": ["true", 1],
    },
    "preprocessing": {
        "size": [16, ["16", 16, 16]],
        "foreground": ["no", 0],
        "views": ["AP", [1]],
        "spacing": [[float("nan")] * 3, [float("inf")] * 3, ["1", "1", "1"], 1],
        "window": [["0", "9"], [0, 9, 7], [float("-inf"), float("inf")], [9, 0]],
        "mean": [[], ["a"], 0.5],
        "std": [[], [0.0]],
        "orientation": [5, "XYZ"],
    },
    "outputs": {
        "labels": [[None], [1], "a", ["a", "b"], []],
        "trained": [["false"], [1], "x"],
        "normalised": ["false", 1],
        "thresholds": [["0.5"], [2.0], "0", [False], [[None]], None, [None, None], [float("nan")]],
        "prevalence": ["1", ["a"], [float("nan")], 0.2],
        "loss_weights": ["1", ["a"], [float("inf")], [0], [-1], [1, 2], 2.5, None, [True]],
        "policy": [
            "Youden",
            {},
            {"rule": 5},
            {"rule": "x", "unit": 1},
            {"rule": "Youden", "scale": "probability"},
            *(
                {"rule": "Youden", "scale": "calibrated", "sensitivity": wrong}
                for wrong in ([2.0], ["1"], [True], [0.5, 0.5], 0.5, None, [-0.1])
            ),
        ],
        "calibration": [
            "Platt",
            None,
            {"method": "Platt", "slope": [float("inf")], "intercept": [0]},
            {"method": "Platt", "slope": [1, 1], "intercept": [0, 0]},
            {"method": "Platt", "slope": [1], "intercept": [0], "unit": 1},
        ],
    },
    "weights": {
        "digest": ["", "md5:" + "0" * 32, "sha256:" + "0" * 63, None],
        "size": [True, -1, "1", float("inf"), None],
    },
    "intended_use": {
        "modality": ["CT", ["ct"], [1], None],
        "population": [5, None],
        "age_range": [[18], ["18", "90"], [90, 18], [-1, 5], 18],
        "colour": [1],
    },
}
EDITS = [
    (section, name, value) for section, fields in WRONG.items() for name, values in fields.items() for value in values
]


@pytest.mark.parametrize(("section", "name", "value"), EDITS, ids=[f"{s}.{n}={str(v)[:40]}" for s, n, v in EDITS])
def test_115_a_value_of_a_wrong_type_or_size_is_refused_and_names_the_file(section, name, value, tmp_path):
    folder = place(GOLDEN / f"format{FORMAT}" / "cnn3d_small", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (config if section == "config" else config[section])[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MedzooError, match=re.escape(str(folder))):
        medzoo.create(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("section", "name", "default"),
    [(s, n, d) for s, fields in FORMATS[FORMAT].items() if "." in s for n, d in fields.items() if d is not REQUIRED],
)
def test_a_field_of_a_statement_that_is_left_out_has_its_default(section, name, default, tmp_path):
    folder = place(GOLDEN / f"format{FORMAT}" / "cnn3d_small", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    statement = section.partition(".")[2]
    config["outputs"][statement].pop(name, None)
    if name == "scale":
        config["outputs"]["calibration"] = None  # with which the default does not go
    (folder / "config.json").write_text(json.dumps(config))
    found = getattr(getattr(medzoo.create(f"local-dir:{folder}").outputs, statement), name)
    assert json.loads(json.dumps(found)) == default


def test_fields_that_format_1_always_had_are_demanded(tmp_path):
    for section, fields in FORMATS[1].items():
        for name, default in fields.items():
            folder = place(GOLDEN / "format1" / "cnn3d_small", tmp_path / f"{section}.{name}")
            config = json.loads((folder / "config.json").read_text())
            del (config if section == "config" else config[section])[name]
            (folder / "config.json").write_text(json.dumps(config))
            if default is REQUIRED:
                with pytest.raises(ConfigError, match=re.escape(str(folder))):
                    medzoo.create(f"local-dir:{folder}")
            else:
                medzoo.create(f"local-dir:{folder}")


def test_a_config_that_is_nested_too_deeply_is_refused(tmp_path):
    folder = place(GOLDEN / f"format{FORMAT}" / "cnn3d_small", tmp_path / "m")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"dropout": 0.3', '"dropout": ' + '{"a":' * 450 + "1" + "}" * 450))
    with pytest.raises(ConfigError, match="not as medzoo writes it"):
        medzoo.create(f"local-dir:{folder}")


def test_a_config_longer_than_any_of_medzoos_is_refused(tmp_path):
    folder = place(GOLDEN / f"format{FORMAT}" / "cnn3d_small", tmp_path / "m", license="x" * 2**20)
    with pytest.raises(ConfigError, match="expected at most 1,048,576 bytes"):
        medzoo.create(f"local-dir:{folder}")


def set_text(config, where, text):
    """Put a text into a field, or into the name of one."""
    *sections, name = where.split(".")
    for section in sections:
        config = config[section]
    if name == "*":
        config[text] = 1
    else:
        config[name] = [text] if isinstance(config.get(name), list) else text


PLACES = ("medzoo", "license", "trained_on", "outputs.labels", "outputs.caution", "outputs.policy.rule", "metrics.*",
          "options.*", "*", "options.pool", "channels", "intended_use.population", "weights.file")  # fmt: skip


@pytest.mark.parametrize("where", PLACES)
def test_control_characters_are_refused_by_the_name_of_the_field(where, tmp_path):
    folder = place(GOLDEN / f"format{FORMAT}" / "cnn3d_small", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["options"]["pool"] = "avg"
    set_text(config, where, "a\x1b]0;b\x07")
    (folder / "config.json").write_text(json.dumps(config))
    name = f"config.{where}" if not where.endswith("*") else f"the names in {f'config.{where}'[:-2]}"
    expected = f"{folder / 'config.json'}: expected {name} without control characters, got '\\x1b'. Remove it."
    with pytest.raises(ConfigError) as caught:
        medzoo.create(f"local-dir:{folder}")
    assert str(caught.value) == expected


def test_control_characters_are_those_of_unicode():
    """All but tab and line feed, what reorders the text around it, and halves of a pair."""
    reorder = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    every = [chr(i) for i in range(0x110000)]
    expected = {c for c in every if unicodedata.category(c) in ("Cc", "Cs") or unicodedata.bidirectional(c) in reorder}
    assert {c for c in every if CONTROL.match(c)} == expected - {"\t", "\n"}


def test_texts_are_saved_and_read_again_or_refused_before(tmp_path):
    model = medzoo.create(f"local-dir:{GOLDEN / f'format{FORMAT}' / 'cnn3d_small'}")
    label, text = "Lungenödem – “ä/1” \u200fשלום", "two\nlines, and a\ttab"
    model.set_outputs(labels=[label], trained=True)
    model.save_pretrained(tmp_path / "m", trained_on=text, license=text)
    again = medzoo.create(f"local-dir:{tmp_path / 'm'}")
    assert (again.outputs.labels, again.load_report.trained_on, again.load_report.license) == ((label,), text, text)
    with pytest.raises(ConfigError, match=r"^Outputs: expected labels and caution without control .*, got '\\x07'"):
        model.set_outputs(labels=["a\x07"])
    with pytest.raises(ConfigError, match=r"^cnn3d_small: expected config\.trained_on without control .*, got '\\r'"):
        model.save_pretrained(tmp_path / "new", trained_on="a\rb")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", FORMATS)
def test_an_output_without_a_threshold_is_of_format_2(number, tmp_path):
    folder = place(GOLDEN / f"format{number}" / "cnn3d_small", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["outputs"]["thresholds"] = [None]
    (folder / "config.json").write_text(json.dumps(config))
    if number == 1:
        with pytest.raises(ConfigError, match=r"expected thresholds to be a list of finite numbers, got \[None\]"):
            medzoo.create(f"local-dir:{folder}")
    else:
        assert medzoo.create(f"local-dir:{folder}").outputs.thresholds == (None,)


def test_what_thresholds_reached_is_saved_and_read_again(tmp_path):
    made = medzoo.create(f"local-dir:{GOLDEN / f'format{FORMAT}' / 'cnn3d_small'}")
    reached = dataclasses.replace(made.outputs.policy, sensitivity=np.array([0.96]), specificity=[None])
    made.outputs = dataclasses.replace(made.outputs, policy=reached)
    made.save_pretrained(tmp_path)
    again = medzoo.create(f"local-dir:{tmp_path}").outputs.policy
    assert (again.sensitivity, again.specificity) == ((0.96,), (None,))


@pytest.mark.parametrize("number", FORMATS)
def test_weights_of_the_loss_are_saved_and_read_again_and_are_empty_in_older_folders(number, tmp_path):
    folder = GOLDEN / f"format{number}" / "cnn3d_small"
    made = medzoo.create(f"local-dir:{folder}")
    assert made.outputs.loss_weights == ()
    made.set_outputs(labels=["a"], prevalence=[0.1], loss_weights=np.array([9.0]))
    made.set_outputs(labels=["b"], trained=made.outputs.trained)
    assert made.outputs.loss_weights == (9.0,), "a new name alone keeps it"
    made.save_pretrained(tmp_path / "new")
    assert medzoo.create(f"local-dir:{tmp_path / 'new'}").outputs == made.outputs
    made.set_outputs(labels=["c"])
    assert made.outputs.loss_weights == ()
    config = json.loads((folder / "config.json").read_text())
    config["outputs"]["loss_weights"] = [9.0]
    place(folder, tmp_path / "old")
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    if number == 1:
        with pytest.raises(ConfigError, match="no field 'loss_weights' of outputs is known"):
            medzoo.create(f"local-dir:{tmp_path / 'old'}")
    else:
        assert medzoo.create(f"local-dir:{tmp_path / 'old'}").outputs.loss_weights == (9.0,)


def test_an_older_writer_is_no_reason_to_upgrade(tmp_path):
    folder = place(GOLDEN / f"format{FORMAT}" / "cnn3d_small", tmp_path / "m", shape=1, medzoo="0.0.9")
    with pytest.raises(ConfigError, match=r"written by medzoo 0\.0\.9.* Save the model again"):
        medzoo.create(f"local-dir:{folder}")


def test_options_may_be_given_as_the_config_has_them():
    folder = GOLDEN / f"format{FORMAT}" / "cnn3d_small"
    assert medzoo.create(f"local-dir:{folder}", widths=[4, 8, 8]).options["widths"] == (4, 8, 8)
    with pytest.raises(ConfigError, match=r"need widths=\(4, 8, 8\), got"):
        medzoo.create(f"local-dir:{folder}", widths=[4, 8, 9])


def test_statements_about_thresholds_go_with_them():
    folder = GOLDEN / f"format{FORMAT}" / "cnn3d_small"
    model = medzoo.create(f"local-dir:{folder}")
    stated = model.outputs
    model.set_outputs(labels=["renamed"], trained=stated.trained)
    assert (model.outputs.policy, model.outputs.calibration) == (stated.policy, stated.calibration)
    assert model.outputs.prevalence == stated.prevalence
    model.set_outputs(thresholds=[0.7])
    assert (model.outputs.policy, model.outputs.calibration, model.outputs.prevalence) == (None, None, ())


def test_training_again_states_nothing_of_the_outputs_before(tmp_path):
    """The same labels, thresholds and flags do not show whether the model was trained in between."""
    folder = GOLDEN / f"format{FORMAT}" / "cnn3d_small"
    model = medzoo.create(f"local-dir:{folder}")
    stated = model.outputs
    model.set_outputs(thresholds=stated.thresholds, trained=True)
    assert (model.outputs.policy, model.outputs.calibration, model.outputs.prevalence) == (None, None, ())
    model.set_outputs(trained=stated.trained, policy=stated.policy, calibration=stated.calibration)
    assert model.outputs.calibration == stated.calibration
    model.reset_classifier(1)
    model.set_outputs(labels=["fracture"])
    model.save_pretrained(tmp_path)
    assert "- made for: not stated" in (tmp_path / "README.md").read_text()
    assert "CHEST" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    "make",
    [
        lambda: IntendedUse(age_range=("old", "older")),
        lambda: IntendedUse(age_range=18),
        lambda: IntendedUse(age_range=(90, 18)),
        lambda: IntendedUse(modality=None),
        lambda: IntendedUse(population=5),
        lambda: ThresholdPolicy("Youden", scale="logit"),
        lambda: ThresholdPolicy(5),
        lambda: ThresholdPolicy("Youden", positives=(1.5,)),
        lambda: ThresholdPolicy("Youden", sensitivity=(1.5,)),
        lambda: ThresholdPolicy("Youden", specificity=0.5),
        lambda: ThresholdPolicy("Youden", specificity="1"),
        lambda: ThresholdPolicy("Youden", sensitivity=("x",)),
        lambda: Outputs(("a",), "binary", (float("nan"),)),
        lambda: Outputs(("a", "b"), "multilabel", (None,)),
        lambda: Outputs(("a",), "binary", policy=ThresholdPolicy("Youden", sensitivity=(None, 0.5))),
        lambda: Calibration("Platt", 1.2, 0.0),
        lambda: Calibration("Platt", (0.0,), (0.0,)),
        lambda: Calibration("Platt", (float("nan"),), (0.0,)),
        lambda: Outputs(("a",), "binary", policy="Youden"),
        lambda: Outputs(("a",), "binary", calibration={"method": "Platt"}),
        lambda: Outputs(("a",), "binary", prevalence="abc"),
        lambda: Outputs(("a",), "binary", prevalence=0.2),
        lambda: Outputs(("a",), "binary", loss_weights=(0.0,)),
        lambda: Outputs(("a",), "binary", loss_weights=(float("inf"),)),
        lambda: Outputs(("a", "b"), "multilabel", loss_weights=(2.0,)),
        lambda: Outputs((), "binary", loss_weights=(2.0,)),
        lambda: Outputs(("a",), "binary", policy=ThresholdPolicy("Youden", scale="calibrated")),
        lambda: Outputs(("a", "b"), "multiclass", policy=ThresholdPolicy("Youden")),
        lambda: Outputs((), "binary", prevalence=(0.1,)),
        lambda: Preprocessing(size=(8, 8), views="AP"),
        lambda: Preprocessing(size=(8, 8), mean=()),
        lambda: Preprocessing(size=(8, 8), intensity="window", window=(0, 1, 2)),
    ],
)
def test_a_statement_that_cannot_be_is_refused(make):
    with pytest.raises(ConfigError, match=r"^(IntendedUse|ThresholdPolicy|Calibration|Outputs|Preprocessing): "):
        make()


def test_statements_take_lists_arrays_and_tensors():
    made = Calibration("Platt", np.array([1.5], np.float32), torch.tensor([0.25]))
    assert made == Calibration("Platt", (1.5,), (0.25,))
    assert ThresholdPolicy("Youden", positives=np.array([3])).positives == (3,)
    assert IntendedUse(["CT"], age_range=[18, 90]) == IntendedUse(("CT",), age_range=(18.0, 90.0))
