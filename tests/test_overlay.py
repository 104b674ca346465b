"""Maps over images and their files: what is drawn where, what is written, and that both lie on the image."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from make_images import arrow, slice_fields, write_dicom, write_nifti, write_png, write_series
from PIL import Image as Pillow
from PIL import ImageDraw

import medzoo
from medzoo.errors import ConfigError
from medzoo.inference.result import Prediction
from medzoo.interpretation.explanation import Explanation
from medzoo.transforms.geometry import Geometry, resize_affine
from medzoo.visual.colours import FALLING, RISING, colour_table

DATA = os.environ.get("MEDZOO_DATA")
WIDTH, MARGIN = 1600, 44


def explained(image, cells, seen=None, **changes):
    """Return the explanation of a model whose input is the image, or the box ``seen`` of it, by maps of our own."""
    size = image.array.shape[1:]
    box = seen or tuple((0, n) for n in size)
    to_source = np.eye(4)
    to_source[: len(size), 3] = [low for low, _ in box]
    inside = tuple(high - low for low, high in box)
    labels = {name: np.asarray(values, np.float32) for name, values in cells.items()}
    found = Prediction(
        image.identity.get("file", "array 0"),
        dict.fromkeys(labels, 0.625),
        dict.fromkeys(labels, True),
        identity=dict(image.identity),
        provenance={"model": "a_model", "weights": "b_weights"},
    )
    frame = resize_affine(inside, next(iter(labels.values())).shape)
    made = Explanation(found, image, labels, Geometry(size, inside, to_source), frame, "gradcam", "encoder.layer4")
    return replace(made, **changes)


def grey(*size, value=100):
    return medzoo.read(np.full((1, *size), value, np.uint8))


def drawn(explanation):
    return np.asarray(explanation.draw().convert("RGB")).astype(int)


def coloured(picture):
    """Where there is colour, which neither the image nor letters, signs and text have in these tests."""
    return np.ptp(picture, axis=-1) > 60


@pytest.fixture
def texts(monkeypatch):
    """Return the texts that are drawn, each with its length in pixels."""
    found = []
    draw = ImageDraw.ImageDraw.text

    def text(pen, xy, string, **options):
        found.append((string, xy[0], options["font"].getlength(string), options.get("anchor", "la")))
        draw(pen, xy, string, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return found


def to_lab(rgb):
    """Return OKLab of sRGB by its published matrices, ``k 3 -> k 3``."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    to_opponents = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                    [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.cbrt(linear @ np.transpose(to_cones)) @ np.transpose(to_opponents)


# Machado, Oliveira and Fernandes, IEEE TVCG 15 (2009) 1291: severity 1.0, on linear RGB.
BLIND = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("line", [RISING, FALLING])
def test_colours_are_even_in_gamut_and_ordered_in_grey(line):
    table = colour_table(line)
    assert table.min() >= 0
    assert table.max() <= 1
    lab = to_lab(table)
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert steps.max() / steps.min() < 1.01
    assert (np.diff(lab[:, 0]) > 0).all()
    printed = Pillow.fromarray((table[None] * 255).round().astype(np.uint8)).convert("L")
    assert (np.diff(np.asarray(printed)[0].astype(int)) >= 0).all()


@pytest.mark.parametrize("kind", BLIND)
def test_colour_blind_readers_see_the_order_and_the_sign(kind):
    def seen(table):
        linear = np.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4)
        mapped = (linear @ np.transpose(BLIND[kind])).clip(0, 1)
        return to_lab(np.where(mapped <= 0.0031308, 12.92 * mapped, 1.055 * mapped ** (1 / 2.4) - 0.055))

    rising, falling = seen(colour_table(RISING)), seen(colour_table(FALLING))
    assert (np.diff(rising[:, 0]) > 0).all()
    # At every size from a third on, both signs differ by many of the steps that one sees (about 0.02).
    assert np.linalg.norm(rising - falling, axis=1)[85:].min() > 0.08


def test_a_map_is_beside_the_image_and_clear_where_it_is_low():
    cells = np.zeros((8, 8))
    cells[2, 5] = 0.003
    picture = drawn(explained(grey(64, 64), {"Mass": cells}))
    side = (WIDTH - 4 * MARGIN) // 2
    top = int(np.flatnonzero((picture[:, MARGIN : MARGIN + side] == 100).all((1, 2)))[0])
    plain = picture[top : top + side, MARGIN : MARGIN + side]
    over = picture[top : top + side, 3 * MARGIN + side : 3 * MARGIN + 2 * side]
    assert (plain == 100).all()
    rows, columns = np.nonzero(coloured(over))
    # The cell of 2, 5 is 1/8 wide; linear interpolation ends at the centres of its neighbours.
    assert abs(rows.mean() / side - 2.5 / 8) < 0.01
    assert abs(columns.mean() / side - 5.5 / 8) < 0.01
    assert rows.min() / side >= 1.5 / 8
    assert rows.max() / side <= 3.5 / 8
    far = np.ones((side, side), bool)
    far[side // 8 : side // 2, side // 2 : side] = False
    assert (over[far] == 100).all()


def test_the_line_is_where_the_map_is_half_of_its_maximum():
    cells = np.zeros((4, 4))
    cells[:, 1] = 1.0  # a ridge down the image: half of it is halfway to the next centres
    picture = drawn(explained(grey(64, 64), {"Mass": cells}))
    side = (WIDTH - 4 * MARGIN) // 2
    row = picture[300, 3 * MARGIN + side : 3 * MARGIN + 2 * side]
    white = np.flatnonzero((row > 250).all(1)) / side
    assert np.allclose([white.min(), white.max()], [1.0 / 4, 2.0 / 4], atol=0.015)


def test_the_maximum_has_a_cross_in_every_plane():
    volume = np.zeros((20, 24, 16), np.float32)
    at = (4, 18, 11)
    volume[at] = 7.0
    image = medzoo.read(np.full((1, 20, 24, 16), 60, np.uint8))
    image = replace(image, affine=np.diag([2.0, 2.0, 3.0, 1.0]), spacing=(2.0, 2.0, 3.0))
    picture = explained(image, {"x": volume}).draw()
    # 40 x 48 x 48 mm, drawn at one scale: axial, coronal and sagittal planes are 40, 40 and 48 mm wide.
    scale = (WIDTH - 6 * MARGIN) / 128
    # From the right, from the front and from the head: the axes run backwards.
    right, front, head = (20 - 4 - 0.5) * 2, (24 - 18 - 0.5) * 2, (16 - 11 - 0.5) * 3
    found = np.asarray(picture).astype(int)
    rows = np.flatnonzero((found[:, MARGIN + 3 : MARGIN + 99] == 60).all((1, 2)))
    top = int(rows[np.flatnonzero(np.diff(rows) > 1)[0] + 1])
    left = MARGIN
    for across, down, width in ((right, front, 40), (right, head, 40), (front, head, 48)):
        x, y = left + across * scale, top + down * scale
        arms = [
            found[round(y + dy) - 1 :, round(x + dx) - 1 :][:3, :3].max((0, 1))
            for dx, dy in ((10, 0), (-10, 0), (0, 10), (0, -10))
        ]
        assert np.min(arms) > 250
        left += round(width * scale) + 2 * MARGIN


@pytest.mark.parametrize(
    ("corner", "signs"), [((0, 0, 0), (1, 1, 1)), ((3, 3, 3), (1, 1, 1)), ((0, 3, 0), (-1, -1, 1))]
)
def test_text_and_planes_are_of_the_centre_of_the_highest_cell(corner, signs, texts):
    """Not of a voxel of the plateau between it and the border of the image."""
    cells, volume = np.zeros((4, 4, 4)), np.full((1, 20, 28, 12), 60, np.uint8)
    cells[corner] = 1.0
    centre = tuple((n // 4) * i + n // 8 for i, n in zip(corner, volume.shape[1:], strict=True))
    volume[(0, *centre)] = 250
    image = replace(medzoo.read(volume), affine=np.diag([*signs, 1.0]), spacing=(1.0,) * 3)
    one = explained(image, {"x": cells})
    assert one.peak == centre
    assert one.map[centre] == one.map.max()
    assert (one.map == one.map.max()).sum() > 1, "a plateau"
    picture = drawn(one)
    assert f"maximum at index {centre} of 20 x 28 x 12" in "".join(string for string, *_ in texts)
    # The axial, coronal and sagittal planes of the image alone, 20, 20 and 28 mm wide.
    scale, left = (WIDTH - 6 * MARGIN) / 68, MARGIN
    top = int(np.flatnonzero((picture[:, MARGIN + 3 : MARGIN + 43] == 60).all((1, 2)))[0])
    for across, down in ((20, 28), (20, 12), (28, 12)):
        width, height = round(across * scale), round(down * scale)
        assert picture[top : top + height, left : left + width].max() > 200
        left += width + 2 * MARGIN


@pytest.mark.parametrize("signs", [(-1, 1, 1), (1, -1, 1), (1, 1, -1)])
def test_a_volume_that_is_stored_backwards_gives_the_same_picture(signs):
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 255, (10, 12, 8)).astype(np.uint8)
    cells = rng.random((10, 12, 8), np.float32)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])

    def picture(signs):
        turn = tuple(slice(None, None, s) for s in signs)
        flip = np.diag([*signs, 1.0])
        flip[:3, 3] = [n - 1 if s < 0 else 0 for s, n in zip(signs, volume.shape, strict=True)]
        image = replace(medzoo.read(volume[turn][None]), affine=affine @ flip, spacing=(2.0, 2.0, 3.0))
        # 190 rows of heading name the index in the array, which differs.
        return drawn(explained(image, {"x": cells[turn].copy()}))[190:]

    np.testing.assert_array_equal(picture(signs), picture((1, 1, 1)))


def test_letters_are_those_of_the_sides(texts, tmp_path):
    fields = slice_fields((0, 0, 0))
    image = medzoo.read(write_dicom(tmp_path / "x", arrow(48, 64, top=2000), **fields))
    explained(image, {"x": np.ones((4, 4))}).draw()
    assert [string for string, *_ in texts if string in "RALPSI" and string] == list("RALP" * 2)


def test_what_was_not_seen_is_hatched_and_named(texts):
    cells = np.ones((4, 4))
    box = ((16, 48), (16, 48))
    picture = drawn(explained(grey(64, 64), {"x": cells}, seen=box))
    side = (WIDTH - 4 * MARGIN) // 2
    over = picture[:, 3 * MARGIN + side : 3 * MARGIN + 2 * side]
    line = over[400]
    outside = line[: side // 4 - 3]
    assert 0.4 < (outside == 45).all(1).mean() < 0.95  # dimmed, with lines
    assert coloured(line[side // 4 + 12 : 3 * side // 4 - 12]).all()
    assert "not seen by the model" in [string for string, *_ in texts]


def test_a_small_patch_is_shown_larger_below_the_whole(texts):
    image = replace(grey(60, 60, 60), affine=np.eye(4), spacing=(1.0,) * 3)
    whole = explained(image, {"x": np.ones((4, 4, 4))}).draw()
    patch = explained(image, {"x": np.ones((4, 4, 4))}, seen=((10, 22),) * 3).draw()
    assert patch.height > whole.height * 1.3
    assert "seen" in [string for string, *_ in texts]


def test_a_map_of_zeros_is_not_drawn_and_the_picture_has_that(texts):
    for image in (grey(32, 32), grey(8, 32, 32)):
        texts.clear()
        picture = drawn(explained(image, {"x": np.zeros([4] * image.dims)}))
        assert "The map is zero everywhere: nothing is drawn over the image." in [string for string, *_ in texts]
        assert not any("maximum" in string for string, *_ in texts)
        amber = (picture == (255, 186, 73)).all(-1).any(1)
        assert not coloured(picture[np.flatnonzero(amber)[-1] + 10 :]).any()


def test_occlusion_has_two_colours_around_zero(texts):
    cells = np.zeros((64, 64))
    cells[32:40, 8:16], cells[32:40, 48:56] = 2.0, -2.0
    picture = drawn(explained(grey(64, 64), {"x": cells}, method="occlusion", layer=""))
    side = (WIDTH - 4 * MARGIN) // 2
    over = picture[:600, 3 * MARGIN + side : 3 * MARGIN + 2 * side]
    warm, cold = over[..., 0] - over[..., 2] > 60, over[..., 2] - over[..., 0] > 60
    assert np.nonzero(warm)[1].max() < side / 2 < np.nonzero(cold)[1].min()
    assert min(warm.sum(), cold.sum()) > 1000
    strings = [string for string, *_ in texts]
    assert {"-2", "-1", "0", "1", "2", "at 1", "at -1"} <= set(strings)
    assert "by how much the logit falls where a region is hidden; below 0 it rises" in strings


def test_the_picture_names_what_it_shows(texts):
    image = replace(grey(32, 32), identity={"file": "/a/b/scan.png"})
    one = explained(image, {"Größe ×2": np.eye(4), "Mass": np.eye(4) * 0.5}, warning="The map is coarse.")
    found = replace(
        one.prediction,
        untrained=("Mass",),
        positive={"Größe ×2": None, "Mass": True},
        warning="/a/b/scan.png: it is dark.",
    )
    replace(one, prediction=found).draw()
    shown = "\n".join(string for string, *_ in texts)
    for expected in (
        "Grosse x2", "probability 0.625, no threshold: neither positive nor negative, trained output",
        "probability 0.625, output not trained", "This output was not trained", "scan.png: it is dark.",
        "The map is coarse.", "Grad-CAM of encoder.layer4, 4 x 4 cells", "a_model, weights b_weights",
        "A map of influence, not a localisation", "Grad-CAM, no unit", "at 0.5, half of it", "at 0.25, half of it",
    ):  # fmt: skip
        assert expected in shown
    assert "/a/b" not in shown
    assert shown.index("it is dark") < shown.index("Grosse")


def test_no_text_leaves_the_picture(texts):
    image = replace(grey(32, 32), identity={"file": "x" * 300 + ".png"})
    explained(image, {"A finding with a long name " * 9: np.eye(4)}, warning="A long warning. " * 40).draw()
    assert len(texts) > 10
    for string, x, length, anchor in texts:
        left = x - {"l": 0, "m": length / 2, "r": length}[anchor[0]]
        assert left >= 0, string
        assert left + length <= WIDTH, string


def test_pictures_and_arrays_are_written(tmp_path):
    one = explained(grey(40, 30), {"Mass": np.random.default_rng(0).random((5, 5))})
    assert one.save(tmp_path / "cam.PNG") == tmp_path / "cam.PNG"
    assert one.save(str(tmp_path / "cam.jpg")) == tmp_path / "cam.jpg"
    for name in ("cam.PNG", "cam.jpg"):
        with Pillow.open(tmp_path / name) as picture:
            assert (picture.format, picture.width) == ("PNG" if name.endswith("G") else "JPEG", WIDTH)
            assert round(picture.info["dpi"][0]) == 254
    values = np.load(one.save(tmp_path / "cam.npy"), allow_pickle=False)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, one.map)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cam.PNG", "cam.jpg", "cam.npy"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", ["oblique nifti", "series", "slice"])
def test_a_volume_lies_on_the_image(tmp_path, kind, suffix):
    rng = np.random.default_rng(0)
    if kind == "series":
        write_series(tmp_path / "ct", rng.integers(0, 2000, (9, 12, 16)).astype(np.uint16))
        image = medzoo.read(tmp_path / "ct")
    elif kind == "slice":
        image = medzoo.read(write_dicom(tmp_path / "x", arrow(12, 16, top=2000), **slice_fields((3, 4, 5))))
    else:
        turn = np.deg2rad(20)
        affine = np.diag([0.7, 0.8, 2.5, 1.0])
        rotation = np.eye(4)
        rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        affine = rotation @ affine
        affine[:3, 3] = (-20, 31, 7)
        image = medzoo.read(write_nifti(tmp_path / "a.nii", rng.random((10, 12, 8), np.float32), affine))
    one = explained(image, {"Mass": rng.random([4] * image.dims)})
    path = one.save(tmp_path / f"cam{suffix}")

    stored = nibabel.load(path)
    values = np.asanyarray(stored.dataobj)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values.reshape(one.map.shape), one.map)
    np.testing.assert_allclose(stored.affine, image.affine, atol=1e-5)
    assert (stored.header["sform_code"], stored.header["qform_code"]) == (1, 1)
    np.testing.assert_allclose(stored.get_qform(), image.affine, atol=1e-4)
    assert stored.header.get_xyzt_units()[0] == "mm"

    again = medzoo.read(path)
    back = again.array[0]
    # Voxel by voxel, both give one value to one place in the patient.
    at = np.stack(np.meshgrid(*(range(n) for n in (*one.map.shape, 1)[:3]), indexing="ij"), -1).reshape(-1, 3)
    world = at @ image.affine[:3, :3].T + image.affine[:3, 3]
    inverse = np.linalg.inv(again.affine)
    index = (world @ inverse[:3, :3].T + inverse[:3, 3]).round().astype(int)
    np.testing.assert_array_equal(back[tuple(index.T)], one.map.ravel())
    if kind == "oblique nifti":
        assert again.orientation == image.orientation
        np.testing.assert_array_equal(back, one.map)
        np.testing.assert_allclose(again.affine, image.affine, atol=1e-5)


def test_shear_is_in_the_sform_alone(tmp_path):
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[1, 2] = 0.8  # a tilted gantry
    image = replace(grey(8, 8, 8), affine=affine, spacing=(1.0, 1.0, 3.1))
    stored = nibabel.load(explained(image, {"x": np.ones((4, 4, 4))}).save(tmp_path / "cam.nii"))
    assert (stored.header["sform_code"], stored.header["qform_code"]) == (1, 0)
    np.testing.assert_allclose(stored.affine, affine)


def test_the_same_map_is_the_same_bytes(tmp_path):
    image = replace(grey(8, 8, 8), affine=np.eye(4), spacing=(1.0,) * 3)
    one = explained(image, {"x": np.ones((4, 4, 4))})
    first, second = one.save(tmp_path / "a.nii.gz"), one.save(tmp_path / "b.nii.gz")
    assert first.read_bytes() == second.read_bytes()


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    one = explained(grey(8, 8), {"Mass": np.eye(4)})
    two = explained(grey(8, 8), {"Mass": np.eye(4), "Effusion": np.eye(4)})
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "old.npy").write_bytes(b"old")
    for which, name, message in (
        (one, "cam.tif", r"expected a file that ends in \.png or .*, got 'cam\.tif'\. Rename it\."),
        (one, "cam", "got 'cam'"),
        (one, "cam.nii.gz", r"has none, .* Save the array to a \.npy file"),
        (one, "absent/cam.png", r"cannot be written \(No such file or directory\)\. Name a file in an existing folder"),
        (one, "folder.png", r"cannot be written \(Is a directory\)"),
        (two, "old.npy", r"expected one target for a \.npy file, got Mass, Effusion\. .*explanation\['Mass'\]\.save"),
    ):
        with pytest.raises(ConfigError, match=message):
            which.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "old.npy"]
    assert (tmp_path / "old.npy").read_bytes() == b"old"
    assert two["Effusion"].save(tmp_path / "old.npy").stat().st_size > 3
    assert two.save(tmp_path / "two.png").exists()


def test_a_map_that_medzoo_computes_is_drawn_and_written(tmp_path):
    model = medzoo.create("xray_cnn", **medzoo.describe("xray_cnn").tiny).set_outputs(trained=True)
    path = write_png(tmp_path / "x.png", arrow(48, 64).astype(np.uint8))
    found = medzoo.explain(model, path)
    assert found.draw().width == WIDTH
    assert np.load(found.save(tmp_path / "cam.npy")).shape == (48, 64)


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="MEDZOO_DATA, the folder of real images, is not set")
@pytest.mark.parametrize(
    "file", ["chestxray14_1024px/00000003_000.png", "chest_ct/dicom_A0002", "brain_mr/PGBM-002_FLAIR.nii.gz"]
)
def test_real_images_are_drawn_to_scale(file, tmp_path):
    image = medzoo.read(Path(DATA) / file)
    cells = np.zeros([4] * image.dims)
    cells[(2,) * image.dims] = 1.0
    one = explained(image, {"x": cells})
    assert one.draw().width == WIDTH
    if image.dims == 3:
        again = medzoo.read(one.save(tmp_path / "cam.nii.gz"))
        assert sorted(again.spacing) == pytest.approx(sorted(image.spacing), rel=1e-4)
        assert again.array.max() == one.map.max()
