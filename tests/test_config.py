"""``config.json``: every format is read for ever, and what a field that is left out means is written down.

``golden/formatN`` holds folders that were saved in format N, of models whose weights are small complete with them.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import medzoo
from medzoo.contract import InputSpec, Outputs, Preprocessing
from medzoo.errors import ConfigError
from medzoo.provenance import Calibration, IntendedUse, ThresholdPolicy
from medzoo.weights.cache import digest_of
from medzoo.weights.config import FORMAT, FORMATS, REQUIRED
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
    before, now = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path))
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
        ({"intended_use": {"modality": "CT"}}, "expected modality to be DICOM terms in capitals"),
        ({"weights": {"digest": "sha256:" + "0" * 64, "size": 1, "file": "../x"}}, r"the weights are in '\.\./x'"),
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
            "expected slopes of the calibration above 0",
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


def test_statements_about_thresholds_go_with_them():
    folder = GOLDEN / f"format{FORMAT}" / "cnn3d_small"
    model = medzoo.create(f"local-dir:{folder}")
    stated = model.outputs
    model.set_outputs(labels=["renamed"], trained=stated.trained)
    assert (model.outputs.policy, model.outputs.calibration) == (stated.policy, stated.calibration)
    assert model.outputs.prevalence == stated.prevalence
    model.set_outputs(thresholds=[0.7])
    assert (model.outputs.policy, model.outputs.calibration, model.outputs.prevalence) == (None, None, ())
