"""Pictures of images: sides, lengths and grey levels, on files that the test writes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from make_images import arrow, slice_fields, write_dicom, write_nifti, write_png, write_series

from medzoo.errors import ConfigError, DataError
from medzoo.io.image import Image
from medzoo.visual.show import as_displayed, contact_sheet, index_as_displayed, show

# The layout of a picture of three planes: margins of 26 pixels, a line of 19 for the titles.
LEFT, TOP, SIDE = 26, 19 + 26, 360


def marked() -> tuple[np.ndarray, np.ndarray]:
    """Return x y z of 4 x 5 x 6 cm, dark, with three bright blocks in the middle planes, and its affine."""
    volume = np.zeros((20, 25, 12), np.int16)
    volume[16:, 12, 6] = 1000  # to the right
    volume[10, 20:, 6] = 1000  # to the front
    volume[10, 12, 9:] = 1000  # to the head
    return volume, np.diag([2.0, 2.0, 5.0, 1.0])


def brightest(picture, left: int, top: int, width: int, height: int) -> list[str]:
    """Return the edges of a panel that have something bright near them."""
    panel = np.asarray(picture.convert("L"))[top : top + height, left : left + width]
    h, w = panel.shape
    strips = {
        "left": panel[h // 3 : -h // 3, : w // 8],
        "right": panel[h // 3 : -h // 3, -w // 8 :],
        "top": panel[: h // 8, w // 3 : -w // 3],
        "bottom": panel[-h // 8 :, w // 3 : -w // 3],
    }
    return [name for name, strip in strips.items() if strip.max() > 100]


def sizes() -> list[tuple[int, int]]:
    """Width and height of the axial, coronal and sagittal panels: 40, 50 and 60 mm at 360 pixels for 60 mm."""
    return [(240, 300), (240, 360), (300, 360)]


def test_an_index_is_of_the_same_voxel_as_displayed():
    values = np.arange(24).reshape(2, 3, 4)
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.diag(signs)[:, list(order)]
            image = Image(values[None], affine)
            for at in ((0, 0, 0), (1, 0, 2), (0, 2, 1)):
                assert as_displayed(image, values)[0][index_as_displayed(image, at)] == values[at]
    assert index_as_displayed(Image(values[None]), [1, 0, 2]) == (1, 0, 2)


def test_three_planes_in_the_radiological_convention():
    volume, affine = marked()
    picture = show(Image(volume[None], affine, (2.0, 2.0, 5.0)))
    left = LEFT
    found = []
    for width, height in sizes():
        found.append(brightest(picture, left, TOP, width, height))
        left += width + 2 * LEFT
    assert found == [
        ["left", "top"],
        ["left", "top"],
        ["left", "top"],
    ]  # right and front; right and head; front and head


@pytest.mark.parametrize("signs", list(itertools.product([1, -1], repeat=3)))
def test_eight_flips_of_one_patient_give_one_picture(tmp_path, signs):
    volume, affine = marked()
    stored = volume[tuple(slice(None, None, s) for s in signs)]
    flip = np.diag([*signs, 1.0])
    flip[:3, 3] = [n - 1 if s < 0 else 0 for s, n in zip(signs, volume.shape, strict=True)]
    picture = show(write_nifti(tmp_path / "a.nii", stored, affine @ flip))
    plain = show(Image(volume[None], affine, (2.0, 2.0, 5.0)))
    box = (0, 0, plain.width, TOP + SIDE + LEFT)  # above the caption, which lists the reorientation
    np.testing.assert_array_equal(np.asarray(picture.crop(box)), np.asarray(plain.crop(box)))


def test_a_series_and_a_nifti_of_one_patient_give_one_picture(tmp_path):
    volume, affine = marked()
    rows = volume.transpose(2, 1, 0)[:, ::-1, ::-1] + 1024  # d h w: rows run to the back, columns to the left
    for i, pixels in enumerate(rows):
        place = (-2.0 * 19, -2.0 * 24, 5.0 * i)
        fields = slice_fields(place, i, PixelSpacing=[2.0, 2.0])
        write_dicom(tmp_path / f"{i}", np.ascontiguousarray(pixels.astype(np.uint16)), **fields)
    series = show(tmp_path)
    same = show(Image(volume[None], affine, (2.0, 2.0, 5.0), unit="HU"))
    box = (0, TOP, same.width, TOP + SIDE)
    np.testing.assert_array_equal(np.asarray(series.crop(box)), np.asarray(same.crop(box)))


def test_an_xray_is_drawn_upright(tmp_path):
    pixels = arrow(48, 64, top=240).astype(np.uint8)
    picture = np.asarray(show(write_png(tmp_path / "x.png", pixels)).convert("L"))
    panel = picture[26 : 26 + 270, 26 : 26 + 360]  # 48 x 64 pixels, the longer side 360
    corners = [int(panel[y, x]) for y, x in ((20, 20), (20, -20), (-20, 20), (-20, -20))]
    assert np.abs(np.subtract(corners, [241, 121, 61, 1])).max() <= 3


def test_lengths_are_to_scale(tmp_path):
    path = write_dicom(tmp_path / "x", np.full((40, 40), 200, np.uint8), PixelSpacing=[2.0, 1.0])
    bright = np.asarray(show(path).convert("L")) == 200
    assert bright[:, 26 + 90].sum() == 360
    assert bright[26 + 180].sum() == 180


@pytest.mark.parametrize(
    ("cosines", "letters"),
    [([1, 0, 0, 0, 1, 0], "RALP"), ([0, 1, 0, 0, 0, -1], "ASPI"), ([-1, 0, 0, 0, 1, 0], "LARP")],
)
def test_letters_of_a_slice_follow_its_orientation(tmp_path, monkeypatch, cosines, letters):
    from PIL import ImageDraw

    drawn = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda pen, xy, s, **k: (drawn.append(s), text(pen, xy, s, **k)))
    fields = slice_fields((0, 0, 0), ImageOrientationPatient=[float(c) for c in cosines])
    show(write_dicom(tmp_path / "x", arrow(), **fields))
    assert "".join(drawn[:4]) == letters  # left, top, right, bottom


def test_a_volume_without_geometry_has_no_letters():
    picture = show(np.zeros((1, 8, 16, 16), np.uint8))
    assert picture.width > 3 * 300


def test_colour_and_frames_are_drawn(tmp_path):
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[..., 0] = 200
    assert np.asarray(show(write_png(tmp_path / "x.png", colour)))[100, 100].tolist() == [200, 0, 0]
    frames = write_dicom(tmp_path / "cine", np.zeros((4, 8, 8), np.uint8), Modality="XA")
    assert show(frames, frame=2).width < show(frames).width


def test_out_is_written_or_an_error(tmp_path):
    pixels = write_png(tmp_path / "x.png", arrow().astype(np.uint8))
    show(pixels, tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 0
    for out in (tmp_path / "absent" / "out.png", tmp_path / "out.xyz"):
        with pytest.raises(ConfigError, match="the picture cannot be written"):
            show(pixels, out)
    with pytest.raises(DataError, match="found nothing there"):
        show(tmp_path / "absent.png")


def test_a_contact_sheet_shows_unreadable_files_too(tmp_path):
    write_series(tmp_path / "ct", np.stack([arrow(12, 16, top=2000)] * 3))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    good = write_png(tmp_path / "x.png", arrow().astype(np.uint8))
    sheet = contact_sheet([good, tmp_path / "ct", tmp_path / "broken.png"], tmp_path / "sheet.png")
    assert sheet.width == 1700
    assert (tmp_path / "sheet.png").exists()
    with pytest.raises(ConfigError, match="expected one source or more"):
        contact_sheet([])
