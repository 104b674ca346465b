"""The figures of a run: the labels of each part as bars, and each transform of an augmentation alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import medzoo
from medzoo.contract import Preprocessing
from medzoo.errors import ConfigError
from medzoo.training.check_counts import LabelCount, PartCount
from medzoo.training.incidence import COLOURS, draw_incidence
from medzoo.training.setup import set_up
from medzoo.transforms.augment import Augmentation, Augmenter
from medzoo.visual.show_transforms import draw_changes

FLAT = Preprocessing(size=(30, 30), intensity="unit")
VOLUME = Preprocessing(size=(12, 12, 12), intensity="unit", orientation="SPL")


def part(name, rows, positives, unknown=0):
    counts = [LabelCount(n, rows - unknown - n, unknown, n, rows - unknown - n) for n in positives]
    return PartCount(name, rows, None, tuple(counts))


def bars(path, name):
    """Return the lengths in pixels of the bars of a part, from the top; the square of the legend is at the end."""
    wanted = [int(COLOURS[name][i : i + 2], 16) for i in (1, 3, 5)]
    with Image.open(path) as picture:
        matches = (np.abs(np.asarray(picture.convert("RGB")).astype(int) - wanted) < 4).all(2).sum(1)
    edges = np.flatnonzero(np.diff((matches > 3).astype(int), prepend=0, append=0)).reshape(-1, 2)
    return [int(np.median(matches[start:stop])) for start, stop in edges][:-1]


def test_bars_are_as_long_as_the_shares_and_sorted(tmp_path):
    parts = [part("train", 200, [10, 100, 40]), part("valid", 50, [4, 10, 20], unknown=10), part("test", 0, [0, 0, 0])]
    draw_incidence(parts, ["rare $", "often", "some_" * 20], tmp_path / "i.png")
    train, valid = bars(tmp_path / "i.png", "train"), bars(tmp_path / "i.png", "valid")
    assert np.array(train) / train[0] == pytest.approx([1, 0.4, 0.1], abs=0.01)
    assert np.array(valid) / train[0] == pytest.approx([0.5, 1, 0.2], abs=0.01), "in the order of the training part"
    draw_incidence(parts[:2], ["rare $", "often", "some_" * 20], tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes() == (tmp_path / "i.png").read_bytes(), "a part without rows is left out"


@pytest.mark.parametrize("labels", [1, 14, 62])
def test_the_picture_grows_with_the_labels(tmp_path, labels):
    positives = list(range(1, labels + 1))
    names = [f"finding {i}" for i in range(labels)]
    draw_incidence([part("train", 200, positives), part("valid", 200, positives)], names, tmp_path / "i.png")
    assert len(bars(tmp_path / "i.png", "train")) == min(labels, 60)
    with Image.open(tmp_path / "i.png") as picture:
        assert picture.width < 1200
        assert picture.height > 40 * min(labels, 60)


def test_no_label_at_all_is_drawn_too(tmp_path):
    draw_incidence([part("train", 20, [0])], ["nothing"], tmp_path / "i.png")
    with pytest.raises(ConfigError, match="the picture cannot be written"):
        draw_incidence([part("train", 20, [0])], ["nothing"], tmp_path / "absent" / "i.png")


def tiles(picture, count):
    """Return the first images of a sheet of 2D tiles of 300 pixels, with margins of 26."""
    pixels = np.asarray(picture.convert("L")).astype(int)
    return [pixels[26:326, 352 * i + 26 : 352 * i + 326] for i in range(count)]


def test_each_transform_is_drawn_alone():
    x = torch.rand(1, 30, 30, generator=torch.Generator().manual_seed(0))
    augmenter = Augmenter(Augmentation(flip=("x",), brightness=0.5), FLAT)
    own, flipped, bright, together = tiles(draw_changes(x, augmenter, "row 3"), 4)
    assert np.abs(own - flipped[:, ::-1]).max() <= 1
    assert np.abs(own - flipped).mean() > 20
    ratio = bright.mean() / own.mean()
    assert 0.5 <= ratio <= 1.5
    assert abs(ratio - 1) > 0.1
    (drawn,) = tiles(draw_changes(augmenter(x, 0), Augmenter(Augmentation(), FLAT), "drawn", draws=0), 1)
    assert np.array_equal(together, drawn)


@pytest.mark.parametrize("preprocessing", [FLAT, VOLUME], ids=["2D", "3D"])
def test_as_many_tiles_as_transforms_and_draws(preprocessing, tmp_path):
    sides = preprocessing.size
    x = torch.rand(1, *sides, generator=torch.Generator().manual_seed(0))
    how = Augmentation(flip=("x", "y"), rotate90=True, rotate=10, translate=0.1, scale=(0.8, 1.2), noise=0.1)
    assert list(how.changes()) == ["flip", "rotate90", "rotate", "translate", "scale", "noise"]
    picture = draw_changes(x, Augmenter(how, preprocessing), "row 3", tmp_path / "t.png", draws=2)
    assert (tmp_path / "t.png").stat().st_size > 1000
    one = draw_changes(x, Augmenter(Augmentation(), preprocessing), "row 3", draws=0)
    lines = 3 if len(sides) == 2 else 5  # 1 + 6 + 2 tiles, 4 or 2 in a line
    assert picture.size == (1700, lines * one.height)


def test_four_draws_show_every_flip_and_a_quarter():
    """The draws are the same for every image, so a flip that is never drawn would be missing in all pictures."""
    x = torch.rand(1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    for how in (*(Augmentation(flip=(axis,)) for axis in "xyz"), Augmentation(rotate90=True)):
        augmenter = Augmenter(how, VOLUME)
        assert any(not torch.equal(augmenter(x, seed), x) for seed in range(4))


def test_a_run_has_both(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (24, 32, 32)).astype(np.uint8)
    table = medzoo.Table.from_arrays(images, np.arange(24) % 2, patients=[f"SECRET-{i}" for i in range(24)])
    tiny = {"widths": [4, 4, 8, 8], "hidden": 8}
    for flip in ([], ["x"]):
        recipe = medzoo.Recipe(
            model={"name": "xray_cnn", "in_chans": 1, "options": tiny}, data={"size": 32, "cache": "memory"},
            train={"epochs": 1, "batch": 8}, augment={"flip": flip},
        )  # fmt: skip
        folder = tmp_path / str(len(flip))
        folder.mkdir()
        setup = set_up(recipe, table)
        before = setup.data.train_loader.state_dict()
        drawn = setup.draw(folder / "a.png", incidence=folder / "b.png", transforms=folder / "c.png")
        assert [path.name for path in drawn] == ["a.png", "b.png", "c.png"][: 2 + len(flip)]
        assert {path.name for path in folder.iterdir()} == {path.name for path in drawn}
        assert setup.data.train_loader.state_dict() == before
        assert not any(b"SECRET" in path.read_bytes() for path in drawn)
