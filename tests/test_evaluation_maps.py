"""The maps over the examples of a report: of the right output and pixels, and the page says what they are."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import medzoo
from medzoo.cli.main import main
from medzoo.data.pixels import PixelStore
from medzoo.data.table import Table
from medzoo.errors import ConfigError
from medzoo.evaluation.example_pictures import ExamplePictures
from medzoo.evaluation.examples import choose_examples
from medzoo.evaluation.score_table import match_outputs, score_table
from medzoo.inference.view import float32_view
from medzoo.interpretation.choose import choose_layer
from medzoo.interpretation.layer_maps import layer_maps
from medzoo.transforms.geometry import Geometry
from medzoo.visual.show_transforms import draw_input

TINY = {"size": 32, "widths": (4, 4, 8, 8), "hidden": 8}
VOLUME = {"size": 16, "widths": (4, 8, 8), "hidden": 8}


class Same:
    """Pseudonyms that are the ids."""

    def of(self, text):
        return text


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDZOO_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def of_kind(name, options, shape, n=24, labels=("b", "a"), task="multilabel"):
    """Return a model with outputs a and b, and a table of its images with their labels in another order."""
    torch.manual_seed(3)
    rng = np.random.default_rng(0)
    model = medzoo.create(name, in_chans=1, num_classes=len(labels), **options).eval()
    model.set_outputs(labels=sorted(labels), task=task)
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    for i in range(n):
        at = tuple(slice(k, k + 6) for k in rng.integers(0, min(shape) - 6, len(shape)))
        images[(i, *at)] = 255
    targets = rng.integers(0, 2, (n, len(labels)))
    targets[:2] = [[0] * len(labels), [1] * len(labels)]
    with torch.no_grad():  # each output is of channels of its own, so that maps differ and few are zero everywhere
        model.head.fc.weight.zero_()
        model.head.classifier.weight.zero_()
        for output, columns in enumerate(model.head.fc.weight.tensor_split(len(labels), 1)):
            columns[output] = 0.1
            model.head.classifier.weight[output, output] = 1
    images = images if len(shape) == 2 else images[:, None]
    return model, Table.from_arrays(images, targets, names=list(labels), task=task)


@pytest.fixture(scope="module")
def flat():
    return of_kind("xray_cnn", TINY, (32, 32))


@pytest.fixture(scope="module")
def volume():
    return of_kind("cnn3d_small", VOLUME, (16, 16, 16), labels=("b", "a"))


def png(picture):
    return np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).astype(int)


def drawn(model, table, n=2, **options):
    """Return the examples with their pictures, and what drew them."""
    pixels = PixelStore(table, medzoo.transform(model), cache="memory")
    pictures = ExamplePictures(model, pixels, match_outputs(model, table), **options)
    scores = score_table(model, table, pixels=pixels)
    return choose_examples(scores, Same(), n, draw=pictures.draw), pictures, pixels


@pytest.mark.parametrize("kind", ["flat", "volume"])
def test_a_map_is_of_the_output_of_its_example(kind, request):
    """Computed again for each image alone, without batches, from the table's own pixels, and drawn."""
    model, table = request.getfixturevalue(kind)
    examples, pictures, pixels = drawn(model, table)
    view, how = float32_view(model, torch.device("cpu")), medzoo.transform(model)
    assert pictures.maps.size == choose_layer(view, pictures._input(pixels.read(0))).size
    assert {example.label for example in examples} == {"a", "b"}
    assert any(example.image.has_map for example in examples)
    for example in examples:
        row = table.ids.tolist().index(example.case)
        x = how.pixels(table.image(row)).tensor
        output = torch.tensor([[model.outputs.labels.index(example.label)]])
        _, cells = layer_maps(view, pictures.maps.layer, how.normalise(x)[None], lambda _, o=output: o)
        grid = Geometry(tuple(x.shape[1:]), tuple(x.shape[1:]), np.eye(4))
        heat = grid.invert(cells[0], pictures._frame)[0]
        highest = np.unravel_index(int(cells[0, 0].argmax()), cells.shape[2:])
        at = (pictures._frame @ [*(*highest, 0)[:3], 1]).round().astype(int)[: len(highest)]
        expected = np.asarray(draw_input(x, how, heat, at).convert("RGB")).astype(int)
        assert example.image.has_map == bool(cells.any())
        assert expected.shape == png(example.image).shape
        assert np.abs(expected - png(example.image)).max() <= 2


def test_the_map_of_another_output_is_another_picture(flat):
    model, table = flat
    pixels = PixelStore(table, medzoo.transform(model), cache="memory")
    scores = score_table(model, table, pixels=pixels)
    one = ExamplePictures(model, pixels, {"a": 0, "b": 1})
    swapped = ExamplePictures(model, pixels, {"a": 1, "b": 0})
    asked = [(row, "a") for row in range(6)]
    found = [[png(p) for p in pictures.draw(scores, asked)] for pictures in (one, swapped)]
    assert any(a.shape != b.shape or np.abs(a - b).max() > 20 for a, b in zip(*found, strict=True))
    assert match_outputs(model, table) == {"b": 1, "a": 0}
    renamed = Table.from_arrays(np.zeros((2, 32, 32), np.uint8), np.eye(2, dtype=int), names=["x", "a"])
    assert match_outputs(model, renamed, {"x": "b"}) == {"x": 1, "a": 0}


@pytest.mark.parametrize("kind", ["flat", "volume"])
def test_a_map_takes_one_forward_pass_and_changes_nothing(kind, request):
    model, table = request.getfixturevalue(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixels = PixelStore(table, medzoo.transform(model), cache="memory")
    scores, rows = score_table(model, table, pixels=pixels), []
    hook = model.register_forward_hook(lambda _, __, out: rows.append(len(out)))  # a view calls the hooks of the model
    pictures = ExamplePictures(model, pixels, match_outputs(model, table))
    assert sum(rows) <= 1, "the layer is chosen by shapes"
    found = list(pictures.draw(scores, [(row, "a") for row in range(10)]))
    hook.remove()
    assert len(found) == 10
    assert rows[-3:] == [4, 4, 2]
    assert sum(rows) <= 11
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_what_is_drawn_over_a_volume(volume):
    """Planes through the maximum, in which a voxel that is nowhere else is seen; in 2D image and map side by side."""
    model, _ = volume
    how = medzoo.transform(model)
    x, heat = torch.zeros(1, 16, 16, 16), torch.zeros(16, 16, 16)
    x[0, 3, 11, 6] = heat[3, 11, 6] = 1.0
    x[0, 0, 0, 0] = heat[0, 0, 0] = 0.5  # in none of these planes
    picture = np.asarray(draw_input(x, how, heat, (3, 11, 6))).astype(int)
    side = (picture.shape[1] - 12) // 3
    assert picture.shape == (2 * side + 6, 3 * side + 12, 3)
    for column in range(3):
        above = picture[:side, column * (side + 6) : column * (side + 6) + side]
        below = picture[side + 6 :, column * (side + 6) : column * (side + 6) + side]
        assert (above == above[..., :1]).all(), "the image is grey"
        assert above.max() > 150
        assert (above[..., 0] > 75).sum() < 3 * (side / 16) ** 2, "one voxel, and the 0.5 is not here"
        assert (below != below[..., :1]).any(), "the map has a colour"
        assert np.unravel_index(above.sum(-1).argmax(), (side, side)) == pytest.approx(
            np.unravel_index((below[..., 0] - below[..., 2]).argmax(), (side, side)), abs=side / 8
        )
    plain = draw_input(x, how)
    assert plain.tobytes() == draw_input(x, how, torch.zeros_like(heat)).tobytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_drawn_over_a_picture(channels):
    how = medzoo.transform(medzoo.create("xray_cnn", in_chans=channels, **TINY))
    x, heat = torch.full((channels, 32, 24), 0.25), torch.zeros(32, 24)
    heat[20:24, 4:8] = 3.0
    picture = np.asarray(draw_input(x, how, heat)).astype(int)
    height, width = picture.shape[0], (picture.shape[1] - 6) // 2
    assert (height, width) == (200, 150)
    assert (picture[:, :width] == 64).all()
    over = picture[:, width + 6 :]
    coloured = np.argwhere(np.abs(over - 64).max(-1) > 20)
    assert coloured.min(0) == pytest.approx([125, 25], abs=5)
    assert coloured.max(0) == pytest.approx([150, 50], abs=5)


def page_of(report, folder):
    report.save(folder / "report.html")
    return (folder / "report.html").read_text(), json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def report(flat):
    return medzoo.evaluate(*flat, images=True, examples=2, resamples=100, cache="memory")


def test_the_page_says_once_what_the_maps_are(report, tmp_path):
    page, figures = page_of(report, tmp_path)
    assert page.count("a map of influence, not a localisation") == 1
    assert page.count(f"Grad-CAM of the layer {report.maps.layer}, 4 × 4 cells") == 1
    shown = [example for example in report.examples if example.image.has_map]
    assert page.count('over it"') == len(shown) > 0
    assert page.count("No map: nothing in the image raised") == len(report.examples) - len(shown)
    for example in shown:
        assert f"the image, and the map of {example.label} over it" in page
    assert page.count('class="examples maps"') > 0
    assert "it is not for sharing" in page
    assert "has_map" not in json.dumps(figures)
    assert not re.search(r"iVBOR|PNG", json.dumps(figures))
    assert figures["maps"] == {
        "method": "Grad-CAM", "layer": report.maps.layer, "size": [4, 4], "coarse": False, "why": "",
    }  # fmt: skip


def test_without_maps_a_report_is_as_it_was(flat, tmp_path):
    model, table = flat
    how = medzoo.transform(model)
    options = {"resamples": 100, "cache": "memory", "examples": 2}
    plain = medzoo.evaluate(model, table, **options)
    assert plain.maps is None
    assert all(example.image is None for example in plain.examples)
    assert "map of influence" not in page_of(plain, tmp_path)[0]
    report = medzoo.evaluate(model, table, images=True, maps=False, **options)
    page, figures = page_of(report, tmp_path)
    assert report.maps is figures["maps"] is None
    assert "map of influence" not in page
    assert "over it" not in page
    pixels = PixelStore(table, how, cache="memory")
    expected = {np.asarray(draw_input(pixels.read(row), how)).tobytes() for row in range(len(table))}
    for example in report.examples:
        assert example.image.has_map is None
        assert np.asarray(Image.open(io.BytesIO(example.image.png))).tobytes() in expected
    with pytest.raises(ConfigError, match=r"maps are drawn over the images. Give images=True too, or leave maps out"):
        medzoo.evaluate(model, table, maps=True, **options)


def test_scores_have_no_model_to_explain(flat, tmp_path):
    model, table = flat
    scores = score_table(model, table, cache="memory")
    report = medzoo.evaluate(scores, images=True, resamples=100)
    assert all(example.image is None for example in report.examples)
    assert (
        "There are no activation maps: scores are evaluated, and no model and no images" in page_of(report, tmp_path)[0]
    )
    scores.to_csv(tmp_path / "s.csv")
    found = CliRunner().invoke(main, ["evaluate", str(tmp_path / "s.csv"), "--maps"])
    assert "--maps has no effect on files of scores" in found.output


def test_the_maps_are_of_the_model_and_not_of_its_rival(flat, report):
    model, table = flat
    torch.manual_seed(9)
    rival = medzoo.create("xray_cnn", in_chans=1, num_classes=2, **TINY).eval()
    rival.set_outputs(labels=["a", "b"], task="multilabel")
    options = {"images": True, "resamples": 100, "cache": "memory", "examples": 2}
    compared = medzoo.evaluate(model, table, against=rival, **options)
    assert compared.comparison is not None
    assert [example.image for example in compared.examples] == [example.image for example in report.examples]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_model_without_maps_still_has_its_report(flat):
    model, table = flat
    pixels = PixelStore(table, medzoo.transform(model), cache="memory")
    scores = score_table(model, table, pixels=pixels)
    odd = medzoo.create("xray_cnn", in_chans=1, num_classes=2, **TINY).eval()
    torch.nn.utils.weight_norm(odd.head.classifier)
    odd(torch.rand(1, 1, 32, 32)).sum()  # its weight is now the result of a computation, which cannot be copied
    pictures = ExamplePictures(odd, pixels, {"a": 0, "b": 1})
    assert "cannot" in pictures.maps.why
    (found,) = pictures.draw(scores, [(0, "a")])
    assert found.has_map is None
    assert found.png.startswith(b"\x89PNG")


def test_the_page_of_volumes(volume, tmp_path):
    model, table = volume
    report = medzoo.evaluate(model, table, images=True, examples=2, resamples=100, cache="memory")
    text, _ = page_of(report, tmp_path)
    assert "5 × 5 × 5 cells" in text
    assert "Of a volume, the planes through the maximum are shown." in text
    assert "cannot point within the image" not in text
    coarse = replace(report, maps=replace(report.maps, size=(1, 1, 1), coarse=True))
    assert "With so few cells along an axis a map cannot point within the image." in page_of(coarse, tmp_path)[0]
