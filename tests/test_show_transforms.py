"""Pictures of an image on its way to the network, and of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from make_images import arrow, write_nifti, write_png
from part_data import drawn_part, stored

import medzoo
from medzoo.contract import Preprocessing
from medzoo.data.dataset import Batch, Rows
from medzoo.data.loader import PlacedLoader
from medzoo.errors import ConfigError
from medzoo.transforms.augment import Augmentation, Augmenter
from medzoo.transforms.transform import Transform
from medzoo.visual import show_transforms as module
from medzoo.visual.show_transforms import draw_batch, show_transforms


@pytest.fixture
def texts(monkeypatch):
    """Return what is written on pictures, in order."""
    from PIL import ImageDraw

    written = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda pen, xy, s, **k: (written.append(s), text(pen, xy, s, **k)))
    return written


def xray(**options):
    return medzoo.create("xray_cnn", **dict(medzoo.describe("xray_cnn").tiny) | options)


def cnn3d(how):
    model = medzoo.create("cnn3d_small", **medzoo.describe("cnn3d_small").tiny)
    model.preprocessing = how
    return model


def volume(tmp_path):
    values = np.zeros((20, 24, 16), np.int16)
    values[4:, 4:20, 3:13] = 500
    return write_nifti(tmp_path / "v.nii", values, np.diag([1.0, 1.0, 2.0, 1.0]))


def test_steps_of_a_picture(tmp_path, texts):
    source = write_png(tmp_path / "x.png", arrow(48, 64, top=240).astype(np.uint8))
    picture = show_transforms(xray(), source, n=2, out=tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 0
    assert picture.width >= 1700
    found = [texts.index(t) for t in ("x.png", "as xray_cnn takes it", "augmented, seed 0", "augmented, seed 1")]
    assert found == sorted(found)
    assert "range 0 to 255 mapped to 0 to 1" in texts
    assert any(t.startswith("after mean and std -2") for t in texts)


def test_steps_of_a_volume(tmp_path, texts):
    how = Preprocessing(size=(16,) * 3, orientation="SPL", spacing=(2.0, 2.0, 2.0), intensity="zscore", fit="crop")
    show_transforms(cnn3d(how), volume(tmp_path), n=1)
    assert [t for t in texts if t in ("oriented, resampled and scaled", "as cnn3d_small takes it")] == [
        "oriented, resampled and scaled",
        "as cnn3d_small takes it",
    ]
    steps = [t for t in texts if t.startswith("cropped or padded around the centre from")]
    size = steps[0].split("from ")[1].split(" to ")[0]
    assert any(t.startswith(size) for t in texts), "the picture before the crop has the size that the step names"
    assert "".join(t for t in texts if len(t) == 1) == "RALPRSLIASPI" * 3  # none around what may be flipped


def test_a_volume_without_orientation_has_no_letters(texts):
    how = Preprocessing(size=(16,) * 3, orientation="SPL")
    show_transforms(cnn3d(how), np.random.default_rng(0).random((1, 16, 16, 16), np.float32), n=1)
    assert [t for t in texts if len(t) == 1] == []


def test_the_augmented_are_those_of_training(tmp_path, monkeypatch):
    drawn = []
    tile = module._tile
    monkeypatch.setattr(module, "_tile", lambda x, *args, **options: (drawn.append(x), tile(x, *args, **options))[1])
    model, augment = xray(), Augmentation(flip=("x",), rotate=20, noise=0.1)
    source = np.random.default_rng(0).random((1, 40, 40), np.float32)
    show_transforms(model, source, augment=augment, seed=7, n=2)
    train = medzoo.transform(model, train=True, augment=augment)
    assert torch.equal(train.normalise(drawn[1]), train(source, seed=7))
    assert torch.equal(train.normalise(drawn[2]), train(source, seed=8))


def test_what_cannot_be_drawn_is_refused(tmp_path):
    source = np.zeros((1, 40, 40), np.uint8)
    with pytest.raises(ConfigError, match="the label 'Left lung' names a side"):
        show_transforms(xray(labels=["Left lung"]), source, augment=Augmentation(flip=("x",)))
    with pytest.raises(ConfigError, match="show_transforms: expected n to be an int >= 0, got -1"):
        show_transforms(xray(), source, n=-1)


def test_a_batch_is_drawn_with_rows_and_labels_and_no_patient(tmp_path, texts):
    part = drawn_part(6)
    pixels = stored(part, mean=(0.3,), std=(2.0,))
    augmenter = Augmenter(Augmentation(flip=("x",)), pixels.transform.preprocessing)
    batch = next(iter(PlacedLoader(Rows(part, pixels, augmenter), 6, shuffle=True)))
    draw_batch(batch, pixels.transform, part.table.labels, tmp_path / "train_batch.png", limit=4)
    assert [t for t in texts if t.startswith("row")] == [f"row {row}" for row in batch.row[:4].tolist()]
    expected = ["found" if target == 1 else "no label is positive" for target in batch.target[:4, 0].tolist()]
    assert [t for t in texts if t in ("found", "no label is positive")] == expected
    assert not any("p0" in t or "array" in t for t in texts)
    assert (tmp_path / "train_batch.png").stat().st_size > 0


def test_labels_that_are_not_known_are_named(texts):
    how = Transform(Preprocessing(size=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)), 3, "model")
    targets = torch.tensor([[1.0, 1.0, 0.0], [torch.nan, 0.0, torch.nan], [torch.nan] * 3])
    image = how.normalise(torch.full((3, 8, 8), 0.5)).expand(3, 3, 8, 8)
    picture = draw_batch(Batch(image, targets, torch.arange(3)), how, ["a", "b", "c"])
    lines = [t for t in texts if t and not t.startswith("row")]
    assert lines == ["a, b", "no label is positive; not", "known: a, c", "not known: a, b, c"]
    assert np.asarray(picture)[100, 100].tolist() == [128, 128, 128]


@pytest.mark.parametrize("name", ["A0002.nii.gz", "dicom_A0002"])
def test_a_real_ct_is_drawn(data, name, tmp_path):
    how = Preprocessing(size=(48,) * 3, orientation="RAS", spacing=(6, 6, 6), intensity="window", window=(-1000, 400))
    model = cnn3d(how)
    model.intended_use = medzoo.IntendedUse()
    picture = show_transforms(model, data / "chest_ct" / name, n=1, out=tmp_path / "ct.png")
    assert 0.05 < (np.asarray(picture.convert("L")) > 60).mean() < 0.9
