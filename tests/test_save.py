"""Saved model folders: loaded again bit for bit, or refused."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest
import torch
from tensors import TINY, scatter_weights

import medzoo
from medzoo.errors import ConfigError, UnknownModelError, WeightsCorrupt, WeightsUnavailable
from medzoo.weights.save import add_metrics


def batch(model, n=2):
    size = model.preprocessing.size
    return torch.randn(n, model.input_spec.channels, *size, dtype=next(model.parameters()).dtype)


def save_and_load(model, folder, **options):
    model.eval().save_pretrained(folder)
    return medzoo.create(f"local-dir:{folder}", **options)


@pytest.mark.parametrize("name", medzoo.list_models())
@pytest.mark.parametrize("change", ["none", "classes", "bfloat16", "labels", "channels", "backbone"])
def test_every_model_is_restored_bit_for_bit(name, change, tmp_path):
    tiny = dict(medzoo.describe(name).tiny)
    options = {"labels": {"labels": ["a", "b"]}, "channels": {"in_chans": 2}, "backbone": {"num_classes": 0}}
    how = None
    if "size" not in tiny:
        how = medzoo.Preprocessing(size=medzoo.describe(name).tiny_size, intensity="zscore", mean=(0.5,))
    model = medzoo.create(name, preprocessing=how, **tiny, **options.get(change, {})).eval()
    scatter_weights(model)
    if change == "classes":
        model.reset_classifier(3)
        model.set_outputs(labels=["x", "y", "z"], thresholds=None, trained=[True, True, False])
    if change == "bfloat16":
        model.to(torch.bfloat16)
    x = batch(model)
    again = save_and_load(model, tmp_path / "m")
    assert not again.training
    assert torch.equal(again(x), model(x))
    for attribute in ("name", "options", "outputs", "preprocessing", "input_spec", "num_classes"):
        assert getattr(again, attribute) == getattr(model, attribute), attribute
    assert len(again.load_report.loaded) == len(model.state_dict())
    assert not again.load_report.new


def test_predict_knows_the_outputs_that_were_trained(tmp_path):
    model = medzoo.create("cnn3d_small", num_classes=2, **TINY)
    model.set_outputs(labels=["benign", "malignant"], task="multilabel", thresholds=[0.3, 0.7])
    again = save_and_load(model, tmp_path)
    found = medzoo.predict(again, torch.randn(1, 16, 16, 16).numpy())
    assert set(found.probabilities) == {"benign", "malignant"}
    assert again.outputs.thresholds == (0.3, 0.7)
    assert found.provenance["weights"] == f"cnn3d_small:{tmp_path}"
    assert found.provenance["digest"].startswith("sha256:")


def test_another_head_on_a_saved_model(tmp_path):
    model = medzoo.create("cnn3d_small", num_classes=2, **TINY).set_outputs(labels=["a", "b"])
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"head\.classifier\.bias are randomly initialised"):
        other = medzoo.create(f"local-dir:{tmp_path}", labels=["x", "y", "z"])
    assert other.outputs.trained == (False,) * 3
    backbone = medzoo.create(f"local-dir:{tmp_path}", num_classes=0)
    assert backbone(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 8)
    maps = medzoo.create(f"local-dir:{tmp_path}", features_only=True)
    assert len(maps(torch.zeros(1, 1, 16, 16, 16))) == 3


def test_the_folder_has_three_files_with_the_mode_of_the_umask(tmp_path):
    model = medzoo.create("cnn3d_small", **TINY)
    old = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path / "m", license="Apache-2.0", trained_on="phantoms", metrics={"AUROC": 0.5})
        model.save_pretrained(tmp_path / "m", license="Apache-2.0", trained_on="phantoms", metrics={"AUROC": 0.5})
    finally:
        os.umask(old)
    files = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "m").iterdir()}
    assert files == {"model.safetensors": 0o640, "config.json": 0o640, "README.md": 0o640}
    card = (tmp_path / "m" / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: medzoo\nlicense: "apache-2.0"\n')
    assert "| AUROC | 0.5 |" in card
    assert "| positive | **no** |" in card


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsUnavailable, match=r"file: the model cannot be written \("):
        medzoo.create("cnn3d_small", **TINY).save_pretrained(tmp_path / "file")


def test_only_a_registered_model_is_saved(tmp_path):
    made = medzoo.create("cnn3d_small", **TINY)
    own = medzoo.Classifier(made.encoder, made.head, input_spec=made.input_spec, name="mine")
    with pytest.raises(ConfigError, match=r"mine: expected a model from medzoo\.create"):
        own.save_pretrained(tmp_path)


@pytest.fixture
def folder(tmp_path):
    medzoo.create("cnn3d_small", **TINY).save_pretrained(tmp_path)
    return tmp_path


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model": "cnn3d_smal"}, UnknownModelError, "no model 'cnn3d_smal'. Did you mean 'cnn3d_small'"),
        ({"model": "os.system"}, UnknownModelError, "no model 'os.system'"),
        (
            {"lable": 1},
            ConfigError,
            r"no field 'lable' of config is known\. It was written by medzoo .* Save the model again",
        ),
        ({"dtype": None}, ConfigError, "the field 'dtype' of config is missing"),
        ({"format": 3, "medzoo": "9.0"}, ConfigError, "format 3 is not known; .* written by medzoo 9.0, .* Upgrade"),
        ({"format": True}, ConfigError, "format True is not known"),
        ({"format": "2"}, ConfigError, "format '2' is not known"),
        ({"new": 1, "medzoo": "0.9"}, ConfigError, r"no field 'new' of config .* medzoo 0\.9.* Upgrade medzoo to that"),
        ({"format": None}, ConfigError, "expected a config that medzoo wrote"),
        ({"dtype": "int8"}, ConfigError, "not as medzoo writes it"),
        ({"outputs": {"labels": ["a"]}}, ConfigError, "not as medzoo writes it"),
        ({"outputs": 3}, ConfigError, "not as medzoo writes it"),
        ({"options": {"num_classes": 1, "in_chans": 1, "evil": 1}}, ConfigError, "no option 'evil'"),
        ({"weights": {"file": "x"}}, ConfigError, "not as medzoo writes it"),
    ],
)
def test_115_a_config_that_medzoo_did_not_write(folder, changes, kind, message):
    edit(folder, **changes)
    with pytest.raises(kind, match=message):
        medzoo.create(f"local-dir:{folder}")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1, "format": 1}', "\ud800", "[" * 100_000])
def test_115_text_that_is_not_a_config(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=r"config\.json: expected"):
        medzoo.create(f"local-dir:{folder}")


def test_a_config_of_another_input_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    edit(folder, input=config["input"] | {"minimum": 99})
    with pytest.raises(ConfigError, match=r"it was saved with the input .* Use the medzoo that config\.json names"):
        medzoo.create(f"local-dir:{folder}")


def test_changed_weights_are_refused(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(WeightsCorrupt, match="The file was changed after it was written"):
        medzoo.create(f"local-dir:{folder}")


def test_a_folder_that_is_not_there(tmp_path, folder):
    with pytest.raises(WeightsUnavailable, match=r"the config cannot be read \(No such file"):
        medzoo.create(f"local-dir:{tmp_path / 'none'}")
    with pytest.raises(ConfigError, match="a folder always loads its own weights"):
        medzoo.create(f"local-dir:{folder}", pretrained=True)
    with pytest.raises(ConfigError, match="need size=16, got 32"):
        medzoo.create(f"local-dir:{folder}", size=32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_every_dtype_is_restored_bit_for_bit(tmp_path, dtype):
    model = medzoo.create("cnn3d_small", **TINY).eval()
    scatter_weights(model)
    model.to(dtype)
    again = save_and_load(model, tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
        assert again.state_dict()[name].dtype == tensor.dtype


def test_parameters_of_two_dtypes_are_refused(tmp_path):
    model = medzoo.create("cnn3d_small", **TINY)
    model.encoder.bfloat16()
    with pytest.raises(ConfigError, match=r"expected parameters and buffers of one dtype, got bfloat16, float32"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_licence_data_and_channels_are_kept_with_the_weights(tmp_path):
    first = medzoo.create("cnn3d_small", in_chans=2, **TINY)
    first.save_pretrained(tmp_path / "a", license="CC-BY-NC-4.0", trained_on="phantoms")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps(config | {"channels": ["FLAIR", "T1"]}))
    again = medzoo.create(f"local-dir:{tmp_path / 'a'}")
    assert "channels, in this order: FLAIR, T1" in str(again.load_report)
    again.save_pretrained(tmp_path / "b")
    third = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (third["license"], third["trained_on"], third["channels"]) == ("CC-BY-NC-4.0", "phantoms", ["FLAIR", "T1"])
    other = medzoo.create(f"local-dir:{tmp_path / 'a'}", in_chans=1)
    assert "channels, in this order" not in str(other.load_report)


def test_an_older_folder_without_channels(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["channels"], config["outputs"]["normalised"]
    (folder / "config.json").write_text(json.dumps(config))
    assert medzoo.create(f"local-dir:{folder}").outputs.normalised is False


def test_what_json_cannot_hold_leaves_the_folder_as_it_was(folder):
    model = medzoo.create(f"local-dir:{folder}")
    model.head.classifier.bias.data.add_(1)
    with pytest.raises(ConfigError, match=r"cnn3d_small: expected .* plain numbers and texts, .*float32"):
        model.save_pretrained(folder, metrics={"AUROC": np.float32(0.9)})
    assert medzoo.create(f"local-dir:{folder}").load_report.loaded


def test_the_card_shows_statements_and_no_markup_of_labels(tmp_path):
    model = medzoo.create("cnn3d_small", num_classes=2, **TINY)
    model.set_outputs(
        labels=["a |\n# Not for research", "<b>b"],
        task="multilabel",
        thresholds=[0.25, 0.5],
        policy=medzoo.ThresholdPolicy("sensitivity >= 0.95", "validation", scale="calibrated"),
        calibration=medzoo.Calibration("Platt", [1, 2], [0, 0], "validation"),
        prevalence=[0.1, 0.2],
    )
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| output | trained | threshold | prevalence in training |" in card
    assert "| a \\| # Not for research | yes | 0.25 | 0.1 |" in card
    assert "| &lt;b>b | yes | 0.5 | 0.2 |" in card
    assert "- thresholds: sensitivity >= 0.95, chosen on validation" in card
    assert "- calibration, part of the weights: Platt, fitted on validation" in card
    assert "\n# Not" not in card


def test_the_card_of_a_model_without_thresholds_states_no_rule(tmp_path):
    model = medzoo.create("cnn3d_small", num_classes=1, **TINY)
    policy = medzoo.ThresholdPolicy("Youden", "validation")
    model.set_outputs(labels=["a"], task="binary", thresholds=[None], policy=policy)
    model.save_pretrained(tmp_path)
    add_metrics(tmp_path, {"test: rows": 144, "test: AUROC": 1.0})
    card = (tmp_path / "README.md").read_text()
    assert "Youden" not in card
    assert "- threshold none: none was chosen" in card
    assert "| test: rows | 144 |" in card
    assert "| test: AUROC | 1.0 |" in card


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_card_states_the_weights_of_the_loss(calibrated, tmp_path):
    model = medzoo.create("cnn3d_small", num_classes=2, **TINY)
    calibration = medzoo.Calibration("Platt", [1, 2], [0, 0], "validation") if calibrated else None
    model.set_outputs(
        labels=["a", "b"], task="multilabel", prevalence=[0.1, 0.2], loss_weights=[9, 4], calibration=calibration
    )
    model.save_pretrained(tmp_path / "labels")
    card = (tmp_path / "labels" / "README.md").read_text()
    assert "| output | trained | threshold | prevalence in training | loss weighted positives by |" in card
    assert "| a | yes | 0.5 | 0.1 | 9 |" in card
    assert ("- the loss was weighted, and no calibration undoes it: " in card) is not calibrated
    model.set_outputs(labels=["a", "b"], task="multiclass", loss_weights=[0.5, 2])
    model.save_pretrained(tmp_path / "classes")
    assert "| output | trained | loss weighted by |" in (tmp_path / "classes" / "README.md").read_text()
