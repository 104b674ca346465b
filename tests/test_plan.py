"""Patches around points, as in LUNA16: an .mhd volume, world points in mm (LPS), patches centred to half a voxel."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from make_images import write_metaimage
from tensors import TINY

import medzoo
from medzoo.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def cnn():
    return medzoo.create("cnn3d_small", **TINY).eval()


PATCH = medzoo.Preprocessing(
    size=(16, 16, 16), orientation="SPL", intensity="window", window=(-1000, 400), patch=(32.0, 32.0, 32.0)
)


@pytest.fixture(scope="module")
def patch_model():
    return medzoo.create("cnn3d_small", preprocessing=PATCH, **TINY).eval()


@pytest.fixture(scope="module", params=["plain", "flipped"])
def scan(request, tmp_path_factory):
    """Write a scan of air with one bright ball, and return its path and the centre of the ball in mm (LPS)."""
    folder = tmp_path_factory.mktemp("luna")
    spacing, origin = np.array([0.7, 0.8, 2.5]), np.array([-30.0, 12.0, -90.0])
    flip = np.array([-1.0, -1.0, 1.0]) if request.param == "flipped" else np.ones(3)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (64, 60, 30)], indexing="ij"), -1)
    world = origin + index * spacing * flip
    centre = origin + np.array([37.3, 21.6, 14.2]) * spacing * flip
    ball = np.linalg.norm(world - centre, axis=-1) < 5.0
    hu = np.where(ball, 400, -1000).astype(np.int16)
    path = folder / "1.2.3.4.mhd"
    geometry = {"spacing": spacing.tolist(), "origin": origin.tolist(), "direction": np.diag(flip).flatten().tolist()}
    write_metaimage(path, np.ascontiguousarray(hu.T), **geometry)
    return path, tuple(float(c) for c in centre)


def centroid(x):
    weight = x[0] / x[0].sum()
    return [
        float((weight.sum([a for a in range(3) if a != axis]) * torch.arange(n)).sum())
        for axis, n in enumerate(weight.shape)
    ]


def test_a_patch_is_centred_to_half_a_voxel(patch_model, scan):
    path, (x, y, z) = scan
    prepared = medzoo.transform(patch_model).prepare(path, point=(-x, -y, z))
    assert prepared.tensor.shape == (1, 16, 16, 16)
    assert centroid(prepared.tensor) == pytest.approx([7.5] * 3, abs=0.5)
    back = prepared.geometry.invert(prepared.tensor)
    source = medzoo.read(path).array
    assert back.shape == source.shape
    assert centroid(back) == pytest.approx(centroid(torch.from_numpy((source > 0).astype(np.float32))), abs=0.5)


def test_patches_follow_the_orientation(patch_model, scan):
    """The point is 6 mm to the left of the ball (+x in LPS), so the ball has a lower index along L."""
    path, (x, y, z) = scan
    prepared = medzoo.transform(patch_model).prepare(path, point=(-(x + 6), -y, z))
    assert centroid(prepared.tensor)[2] == pytest.approx(7.5 - 3.0, abs=0.5)
    higher = medzoo.transform(patch_model).prepare(path, point=(-x, -y, z - 6))
    assert centroid(higher.tensor)[0] == pytest.approx(7.5 + 3.0, abs=0.5)


def test_points_as_a_list_and_as_a_csv(patch_model, scan, tmp_path):
    path, (x, y, z) = scan
    points = [(x, y, z), (x + 4, y, z)]
    table = tmp_path / "annotations.csv"
    rows = [f"1.2.3.4,{a},{b},{c},6.0" for a, b, c in points] + ["9.9.9,0,0,0,5.0"]
    table.write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n" + "\n".join(rows) + "\n")
    listed = medzoo.predict(patch_model, path, points=points, allow_untrained=True)
    tabled = medzoo.predict(patch_model, path, points=table, allow_untrained=True)
    turned = [(-a, -b, c) for a, b, c in points]
    ras = medzoo.predict(patch_model, path, points=turned, points_frame="RAS", allow_untrained=True)
    assert [p.point for p in listed] == points
    for a, b, c in zip(listed, tabled, ras, strict=True):
        assert a.logits == b.logits == c.logits


def test_89_a_point_outside_is_an_error_and_the_others_are_predicted(patch_model, scan):
    path, inside = scan
    points = [(900.0, 0.0, 0.0), inside, (float("nan"), 0, 0)]
    found = medzoo.predict(patch_model, path, points=points, allow_untrained=True)
    assert [bool(p.error) for p in found] == [True, False, True]
    assert "is voxel" in found[0].error
    assert "outside of 64 × 60 × 30. Check points_frame" in found[0].error


def test_unmatched_points_and_images_are_reported(patch_model, scan, tmp_path):
    path, (x, y, z) = scan
    table = tmp_path / "points.csv"
    table.write_text(f"seriesuid,coordX,coordY,coordZ\n 1.2.3.4 ,{x},{y},{z}\n9.9,0,0,0\n9.9,1,1,1\n")
    found = medzoo.predict(patch_model, [path], points=table, allow_untrained=True)
    assert len(found) == 1
    assert found.skipped == {"points of 9.9": "2 points of a scan that was not given"}
    image = medzoo.read(path)
    in_memory = medzoo.predict(patch_model, [image], points=table, allow_untrained=True)
    assert in_memory[0].logits == found[0].logits
    table.write_text("seriesuid,coordX,coordY,coordZ\n9.9,0,0,0\n")
    with pytest.raises(
        DataError, match=r"no point belongs to an image: the points name 9\.9, the images are 1\.2\.3\.4"
    ):
        medzoo.predict(patch_model, path, points=table, allow_untrained=True)
    table.write_text("seriesuid,coordX,coordY,coordZ\n1.2.3.4,0,0,0\n,1,1,1\n")
    with pytest.raises(DataError, match="expected a seriesuid in every row or in none, got 1 rows without"):
        medzoo.predict(patch_model, path, points=table, allow_untrained=True)


def test_each_failed_point_has_an_error_and_json_is_valid(patch_model, scan):
    path, _ = scan
    found = medzoo.predict(
        patch_model, path, points=[(900, 0, 0), (0, 900, 0), (float("nan"), 0, 0)], allow_untrained=True
    )
    assert len(found.errors) == len(found.failed) == 3
    saved = json.loads(found.to_json(), parse_constant=lambda name: pytest.fail(name))
    assert saved["predictions"][2]["point"] == [None, 0.0, 0.0]


def test_a_scan_with_many_points_is_read_once(patch_model, scan, monkeypatch):
    path, point = scan
    reads = []
    real = medzoo.read
    monkeypatch.setattr("medzoo.inference.reading.read_image", lambda image, _: reads.append(image) or real(image))
    medzoo.predict(patch_model, path, points=[point] * 5, allow_untrained=True)
    assert len(reads) == 1


def test_89_a_patch_is_padded_with_air(patch_model, scan):
    path, _ = scan
    image = medzoo.read(path)
    corner = image.affine[:3, 3]
    with pytest.warns(UserWarning, match=r"within the window -1000 to 400, got 100% of them below it"):
        x = medzoo.transform(patch_model).prepare(path, point=corner).tensor
    assert torch.equal(x, torch.zeros_like(x))


def test_patch_models_need_points_and_other_models_refuse_them(patch_model, cnn, scan):
    path, point = scan
    with pytest.raises(
        ConfigError, match=r"trained on patches of 32, 32, 32 mm around a point, and takes no whole scan"
    ):
        medzoo.predict(patch_model, path, allow_untrained=True)
    with pytest.raises(ConfigError, match="it takes whole images, not points"):
        medzoo.predict(cnn, path, points=[point], allow_untrained=True)


def test_points_that_cannot_be_read(patch_model, scan, tmp_path):
    path, _ = scan
    (tmp_path / "wrong.csv").write_text("x,y,z\n1,2,3\n")
    (tmp_path / "words.csv").write_text("coordX,coordY,coordZ\n1,2,three\n")
    for points, message in [
        (tmp_path / "wrong.csv", "missing: coordX, coordY, coordZ"),
        (tmp_path / "words.csv", r"words\.csv, row 2: expected three numbers in mm"),
        (tmp_path / "none.csv", "expected a CSV file of points"),
        ([(1, 2)], "point 0: expected three numbers in mm"),
    ]:
        with pytest.raises(DataError, match=message):
            medzoo.predict(patch_model, path, points=points, allow_untrained=True)


def test_points_on_an_array_need_a_geometry(patch_model):
    with pytest.raises(DataError, match="expected a volume with a geometry"):
        medzoo.predict(patch_model, np.zeros((1, 20, 20, 20), np.float32), points=[(0, 0, 0)], allow_untrained=True)
