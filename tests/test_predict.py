"""``predict``: from files to named outputs."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import medzoo
from medzoo.errors import ConfigError, DataError
from medzoo.visual.phantoms import write_ct, write_xray


def small(name, **options):
    return medzoo.create(name, **medzoo.describe(name).tiny, **options).eval()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Return the drawn X-ray and CT by number of axes."""
    folder = tmp_path_factory.mktemp("drawn")
    return {2: write_xray(folder), 3: write_ct(folder)}


@pytest.mark.parametrize("name", medzoo.list_models())
def test_every_model_names_its_outputs(name, drawn):
    model = small(name)
    path = drawn[model.input_spec.dims]
    result = medzoo.predict(model, path, allow_untrained=True)
    assert tuple(result.probabilities) == model.outputs.labels
    logits = model(medzoo.transform(model)(path)[None])[0]
    assert list(result.logits.values()) == pytest.approx(logits.tolist(), rel=1e-4, abs=1e-5)
    expected = torch.tensor(list(result.logits.values()), dtype=torch.float64).sigmoid()
    assert list(result.probabilities.values()) == pytest.approx(expected.tolist(), rel=1e-5)
    assert result.positive == {label: p >= 0.5 for label, p in result.probabilities.items()}
    assert result.source == str(path)
    assert result.steps
    assert result.provenance == {
        "model": name,
        "weights": "none",
        "digest": "none",
        "medzoo": medzoo.__version__,
    }
    assert not result.trained
    assert result.untrained == model.outputs.labels


def test_untrained_outputs_are_refused(drawn):
    message = r"^cnn3d_small: no output was trained, so its probabilities mean nothing\. Load weights \(pretrained="
    with pytest.raises(ConfigError, match=message):
        medzoo.predict(small("cnn3d_small"), drawn[3])


def test_partly_trained_outputs_are_accepted(drawn):
    model = small("cnn3d_small", num_classes=3).set_outputs(labels=["a", "b", "c"], trained=[True, True, False])
    result = medzoo.predict(model, drawn[3])
    assert result.untrained == ("c",)
    assert sum(result.probabilities.values()) == pytest.approx(1)
    assert sum(result.positive.values()) == 1


def test_a_list_returns_a_list_in_order_for_any_batch_size(drawn):
    model = small("xray_cnn")
    ramp = np.linspace(0, 255, 64 * 64).reshape(1, 64, 64)
    images = [np.roll(ramp, shift, axis=1).astype(np.uint8) for shift in (0, 5, 10, 20, 40)]
    one_by_one = medzoo.predict(model, images, allow_untrained=True)
    for batch_size in (2, 5, 8):
        together = medzoo.predict(model, tuple(images), batch_size=batch_size, allow_untrained=True)
        for a, b in zip(one_by_one, together, strict=True):
            assert list(a.logits.values()) == pytest.approx(list(b.logits.values()), abs=1e-5)
    assert medzoo.predict(model, [], allow_untrained=True) == []
    with pytest.raises(ConfigError, match="expected batch_size to be an int >= 1, got 0"):
        medzoo.predict(model, images, batch_size=0, allow_untrained=True)


def test_the_model_is_not_changed(drawn):
    model = small("cnn3d_small").train()
    x = medzoo.predict(model, drawn[3], allow_untrained=True)
    assert model.training
    assert medzoo.predict(model, drawn[3], allow_untrained=True, device="cpu").logits == x.logits


def test_the_mode_of_every_module_is_restored(drawn):
    model = small("cnn3d_small").train()
    model.encoder.eval()
    model.head.dropout.train()
    before = [module.training for module in model.modules()]
    medzoo.predict(model, drawn[3], allow_untrained=True)
    assert [module.training for module in model.modules()] == before


def test_111_unknown_models_and_devices_are_errors(drawn):
    for thing in ("cnn3d_small", small("cnn3d_small", features_only=True)):
        with pytest.raises(ConfigError, match=r"predict: expected a model from medzoo\.create, got"):
            medzoo.predict(thing, drawn[3])
    for device in ("gpu", "meta", "cuda:99"):
        with pytest.raises(ConfigError, match=f"expected a device of this machine, got '{device}'"):
            medzoo.predict(small("cnn3d_small"), drawn[3], device=device, allow_untrained=True)


def test_a_bfloat16_model_predicts(drawn):
    model = small("cnn3d_small")
    plain = medzoo.predict(model, drawn[3], allow_untrained=True)
    short = medzoo.predict(model.to(torch.bfloat16), drawn[3], allow_untrained=True)
    assert list(short.logits.values()) == pytest.approx(list(plain.logits.values()), abs=0.02)


def test_a_backbone_has_no_outputs_to_name(drawn):
    with pytest.raises(ConfigError, match=r"no outputs to name \(num_classes=0\)"):
        medzoo.predict(small("cnn3d_small", num_classes=0), drawn[3])


def test_55_nan_is_an_error_that_names_the_image(drawn):
    bad = np.zeros((1, 64, 64), np.float32)
    bad[0, 3, 3] = np.inf
    with pytest.raises(DataError, match="array 1: expected finite values"):
        medzoo.predict(small("xray_cnn"), [np.zeros((1, 64, 64), np.uint8), bad], allow_untrained=True)


def test_56_strict_raises_where_predict_would_warn():
    image = np.full((1, 64, 64), 200.0, np.float32)
    with pytest.warns(UserWarning, match=r"expected values in \[0, 1\]"):
        medzoo.predict(small("xray_cnn"), image, allow_untrained=True)
    with pytest.raises(DataError, match=r"expected values in \[0, 1\]"):
        medzoo.predict(small("xray_cnn"), image, allow_untrained=True, strict=True)


@pytest.mark.parametrize("name", ["cnn3d_small", "cnn3d_base", "swin_encoder_mlp"])
def test_an_image_for_a_volume_model_is_an_error(name, drawn):
    message = rf"chest_xray\.dcm: {name} takes a 3D volume, got a 2D image\. Give the complete series"
    with pytest.raises(DataError, match=message):
        medzoo.predict(small(name), drawn[2], allow_untrained=True)


def test_a_volume_for_an_image_model_is_an_error(drawn):
    with pytest.raises(DataError, match=r"chest_ct\.nii\.gz: xray_cnn takes a 2D image, got a 3D volume"):
        medzoo.predict(small("xray_cnn"), drawn[3], allow_untrained=True)


def test_a_wrong_path_is_an_error(tmp_path):
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'none.png'}")):
        medzoo.predict(small("xray_cnn"), tmp_path / "none.png", allow_untrained=True)


def test_no_gradients_are_recorded(drawn):
    model = small("cnn3d_small")
    medzoo.predict(model, drawn[3], allow_untrained=True)
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


REAL_IMAGES = ["chestxray14_64px", "chestxray14_1024px", "chestxray14_dicom", "pneumonia_cxr"]


@pytest.mark.parametrize("name", medzoo.list_models(dims=2))
@pytest.mark.parametrize("folder", REAL_IMAGES)
def test_real_x_rays(name, folder, data):
    path = next(p for p in sorted((data / folder).rglob("*")) if p.suffix in (".png", ".dcm", ".jpeg", ".jpg"))
    result = medzoo.predict(small(name), path, allow_untrained=True, strict=True)
    assert all(0 <= p <= 1 for p in result.probabilities.values())


@pytest.mark.parametrize("name", medzoo.list_models(dims=3))
@pytest.mark.parametrize("file", ["chest_ct/A0002.nii.gz", "brain_mr/PGBM-002_FLAIR.nii.gz"])
def test_real_volumes(name, file, data):
    result = medzoo.predict(small(name), data / file, allow_untrained=True, strict=True)
    assert np.isfinite(list(result.logits.values())).all()


def test_a_real_single_slice_for_a_volume_model_is_an_error(data):
    path = sorted((data / "ct_slices").glob("*.dcm"))[0]
    with pytest.raises(DataError, match="takes a 3D volume, got a 2D image"):
        medzoo.predict(small("swin_encoder_mlp"), path, allow_untrained=True)


def test_136_overlapping_predictions_of_a_model_in_training_mode():
    """A model is in training mode after ``create`` without weights, and after one's own training."""
    model = medzoo.create("cnn3d_small", size=16).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scans = [np.random.default_rng(i).normal(0, 500, (1, 20, 20, 20)).astype(np.float32) for i in range(4)]
    wanted = [medzoo.predict(model, scan, allow_untrained=True).logits for scan in scans]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda scan: medzoo.predict(model, scan, allow_untrained=True).logits, scans * 8))
    assert found == wanted * 8
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_random_numbers_of_the_caller_stay_as_they_were(drawn, num_workers):
    model = small("xray_cnn")
    before = torch.get_rng_state()
    medzoo.predict(model, drawn[2], allow_untrained=True, num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), before)
