"""The scores of a model for the rows of a table: equal to those of ``predict``, of the labels that both have."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import medzoo
from medzoo import Table
from medzoo.contract import Outputs
from medzoo.data.pixels import PixelStore
from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.score_table import score_table
from medzoo.provenance import ThresholdPolicy

N = 7


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write radiographs of another size than the model's, volumes of another spacing, and the tables of both."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(rng.integers(0, 255, (50, 41), dtype=np.uint8)).save(folder / f"{i}.png")
        volume = rng.integers(-1000, 1000, (20, 22, 18)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([2.0, 2, 3, 1])), folder / f"{i}.nii.gz")
    for end in ("png", "nii.gz"):
        rows = [f"{i}.{end},{i % 2},{(i + 1) % 2},p{i // 2},{i % 3 == 0}" for i in range(N)]
        (folder / f"{end}.csv").write_text("path,Mass,Lung Lesion,pid,reader:X:Mass\n" + "\n".join(rows))
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "home"))


def table_of(files, end="png", label=("Mass", "Lung Lesion"), **options):
    return Table.from_csv(files / f"{end}.csv", label=label, patient="pid", **options)


def model_of(name="xray_cnn", labels=("Lung_Lesion", "Edema", "mass"), task="multilabel", **outputs):
    torch.manual_seed(0)
    spec = medzoo.describe(name)
    model = medzoo.create(name, **{**spec.tiny, "in_chans": 1, "labels": labels, "task": task})
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.5)
    return model.eval().set_outputs(labels=labels, task=task, **outputs)


@pytest.mark.parametrize(("name", "end"), [("xray_cnn", "png"), ("cnn3d_small", "nii.gz")])
def test_logits_are_those_of_predict(files, name, end):
    model, table = model_of(name), table_of(files, end)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores = score_table(model, table, cache="off", batch_size=3, allow_mismatch=True)
    found = medzoo.predict(model, [str(table.image(i)) for i in range(N)], allow_mismatch=True)
    for label, own in (("Mass", "mass"), ("Lung Lesion", "Lung_Lesion")):
        at = scores.labels.index(label)
        np.testing.assert_allclose(scores.logits[:, at], [p.logits[own] for p in found], atol=1e-5, rtol=0)
        np.testing.assert_allclose(scores.probabilities[:, at], [p.probabilities[own] for p in found], atol=1e-6)
    assert (scores.labels, scores.task, len(scores)) == (("Mass", "Lung Lesion"), "multilabel", N)
    np.testing.assert_array_equal(scores.targets, table.targets)
    np.testing.assert_array_equal(scores.patients, table.patients)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    # A cached image is rounded, as in training.
    cached = score_table(model, table, batch_size=5, allow_mismatch=True)
    np.testing.assert_allclose(cached.logits, scores.logits, atol=0.02)


def test_the_model_is_not_changed_and_runs_in_eval_mode(files):
    model, table = model_of(), table_of(files)
    expected = score_table(model, table, cache="memory")
    model.train()
    found = score_table(model, table, cache="memory", device="cpu")
    assert model.training
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_labels_are_matched_by_name(files):
    scores = score_table(model_of(), table_of(files), cache="memory")
    text = " ".join(scores.notes)
    assert "'Mass' is of the model 'mass', 'Lung Lesion' is of the model 'Lung_Lesion'" in text
    assert "labels of the model that the table does not have are left out: Edema" in text
    assert scores.source == f"xray_cnn on {files / 'png.csv'}"
    assert scores.readers["X"][:, 0].tolist() == [float(i % 3 == 0) for i in range(N)]
    assert np.isnan(scores.readers["X"][:, 1]).all()
    assert not scores.groups
    one = score_table(model_of(labels=("Edema", "Mass")), table_of(files), cache="memory")
    assert (one.labels, one.task) == (("Mass",), "binary")
    assert "labels of the table that the model does not have are left out: Lung Lesion" in " ".join(one.notes)


def test_no_label_in_both(files):
    table = table_of(files)
    with pytest.raises(ConfigError, match=r"no label is in both.*Did you mean 'Lung Lesions'\? Rename .* names="):
        score_table(model_of(labels=("Lung Lesions", "Edema")), table)
    model = model_of(labels=("Lung Lesions", "Edema"))
    scores = score_table(model, table, labels={"Lung Lesion": "Lung Lesions"}, cache="memory")
    assert (scores.labels, scores.task) == (("Lung Lesion",), "binary")
    with pytest.raises(ConfigError, match=r"'Oedema', which is no label of the model: .* Did you mean 'Edema'"):
        score_table(model, table, labels={"Mass": "Oedema"})
    with pytest.raises(ConfigError, match="'Masses', which is no label of the table"):
        score_table(model, table, labels={"Masses": "Edema"})


def test_a_binary_model_of_another_name(files):
    table, model = table_of(files, label="Mass"), model_of(labels=("malignant",), task="binary")
    with pytest.raises(ConfigError, match=r"labels=\{'Mass': 'malignant'\}, if they mean the same"):
        score_table(model, table)
    scores = score_table(model, table, labels={"Mass": "malignant"}, cache="memory")
    assert (scores.labels, scores.task) == (("Mass",), "binary")


def test_classes_have_to_be_the_same(files):
    options = {"label": ("Mass", "Lung Lesion"), "task": "multiclass"}
    table = table_of(files, **options)
    model = model_of(labels=("lung lesion", "Mass"), task="multiclass")
    scores = score_table(model, table, cache="memory")
    assert (scores.labels, scores.task, scores.thresholds) == (("Mass", "Lung Lesion"), "multiclass", ())
    raw = score_table(model_of(labels=("Lung Lesion", "Mass")), table_of(files), cache="memory").logits
    np.testing.assert_allclose(scores.probabilities, torch.from_numpy(raw).softmax(1), atol=1e-6)
    with pytest.raises(ConfigError, match="have to be the same in both"):
        score_table(model_of(labels=("Lung Lesion", "Mass", "Edema"), task="multiclass"), table)
    with pytest.raises(ConfigError, match="the model is multilabel and the table multiclass"):
        score_table(model_of(), table)


def test_thresholds_and_their_rule(files):
    table = table_of(files)
    scores = score_table(model_of(), table, cache="memory")
    assert (scores.thresholds, scores.threshold_rule) == ((0.5, 0.5), "0.5 by default, chosen on no data")
    policy = ThresholdPolicy("Youden", "validation")
    model = model_of(thresholds=(0.1, 0.2, 0.3), policy=policy)
    scores = score_table(model, table, cache="memory")
    assert (scores.thresholds, scores.threshold_rule) == ((0.3, 0.1), "Youden on validation")
    assert score_table(model_of(thresholds=(0.1, 0.2, 0.3)), table, cache="memory").threshold_rule == ""
    plain = scores
    model.outputs = Outputs(
        model.outputs.labels, "multilabel", (0.1, 0.2, 0.3), (True,) * 3, normalised=True, policy=policy
    )
    scores = score_table(model, table, cache="memory")
    assert scores.thresholds == (0.5, 0.5)
    np.testing.assert_allclose(scores.ranks, plain.ranks, atol=1e-6)
    assert np.abs(scores.probabilities - plain.probabilities).max() > 0.05
    np.testing.assert_array_equal(scores.calls, plain.calls)


def test_untrained_outputs(files):
    table = table_of(files)
    with pytest.raises(ConfigError, match="no output was trained"):
        score_table(model_of(trained=False), table)
    scores = score_table(model_of(trained=(True, True, False)), table, cache="memory")
    assert scores.labels == ("Lung Lesion",)
    assert "outputs that were not trained are left out: Mass" in " ".join(scores.notes)
    with pytest.raises(ConfigError, match="the outputs 'Mass', 'Lung Lesion' were not trained"):
        score_table(model_of(trained=(False, True, False)), table, cache="memory")
    scores = score_table(model_of(trained=False), table, allow_untrained=True, cache="memory")
    assert "not trained are scored all the same: Mass, Lung Lesion" in " ".join(scores.notes)
    with pytest.raises(ConfigError, match=r"score_table: expected a model from medzoo.create, got Linear"):
        score_table(torch.nn.Linear(1, 1), table)


def test_images_that_cannot_be_read(files, tmp_path):
    for i in range(N):
        (tmp_path / f"{i}.png").write_bytes((files / f"{i}.png").read_bytes() if i != 2 else b"\x89PNG\r\n\x1a\nbroken")
    (tmp_path / "t.csv").write_text((files / "png.csv").read_text())
    table = Table.from_csv(tmp_path / "t.csv", label=("Mass", "Lung Lesion"), patient="pid")
    with pytest.raises(DataError, match=r"1 of 7 images cannot be used.*\n.*line 4"):
        score_table(model_of(), table, cache="memory")
    scores = score_table(model_of(), table, cache="memory", unreadable="drop")
    assert scores.ids.tolist() == [f"{i}.png" for i in range(N) if i != 2]
    assert [(d.row, d.id) for d in scores.dropped] == [(2, "2.png")]
    assert scores.select([0]).dropped == scores.dropped
    assert "1 of 7 images cannot be used and were dropped" in scores.notes, "without the path of one"


def test_logits_that_are_not_finite_are_named_by_line(files):
    model = model_of()
    with torch.no_grad():
        model.get_classifier().bias[1] = float("nan")
    with pytest.raises(DataError, match=r"xray_cnn returned NaN or infinity for 7 of 7 images: line 2 \(0.png\)"):
        score_table(model, table_of(files), cache="memory")


def test_pixels_of_another_table(files):
    model, table = model_of(), table_of(files)
    store = PixelStore(table, medzoo.transform(model), cache="memory")
    expected = score_table(model, table, cache="memory")
    np.testing.assert_allclose(score_table(model, table, pixels=store).logits, expected.logits, atol=1e-6)
    with pytest.raises(ConfigError, match=r"expected the pixels of .* 6 rows"):
        score_table(model, table.select(range(6)), pixels=store)
    model.preprocessing = replace(model.preprocessing, mean=(0.5,))
    with pytest.raises(ConfigError, match="expected pixels that were preprocessed for xray_cnn"):
        score_table(model, table, pixels=store)


def test_a_table_of_arrays_and_one_without_rows():
    images = np.random.default_rng(0).integers(0, 255, (4, 1, 32, 32), dtype=np.uint8)
    model = model_of(labels=("positive",), task="binary")
    table = Table.from_arrays(images, [0, 1, 1, 0], groups={"site": list("xyxy")})
    scores = score_table(model, table, cache="memory")
    assert scores.ids.tolist() == [f"array {i}" for i in range(4)]
    assert scores.patients is None
    assert scores.groups["site"].tolist() == list("xyxy")
    assert len(score_table(model, table.select([]), cache="memory")) == 0
