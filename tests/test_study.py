"""A folder tree of mixed studies, lists and points through ``predict``, in Python and on the command line."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from make_images import (
    PATIENT_ID,
    PATIENT_NAME,
    SERIES,
    slice_fields,
    write_dicom,
    write_metaimage,
    write_nifti,
    write_png,
    write_series,
)

import medzoo
from medzoo.cli import main
from medzoo.errors import ConfigError, DataError

OTHER_SERIES = "1.2.826.0.1.3680043.8.498.77"
SCOUT_SERIES = "1.2.826.0.1.3680043.8.498.78"
LONE_SERIES = "1.2.826.0.1.3680043.8.498.79"
SR = "1.2.840.10008.5.1.4.1.1.88.11"


@pytest.fixture(scope="module")
def cnn():
    return medzoo.create("cnn3d_small", size=16, widths=(4, 8, 8), hidden=8).eval()


@pytest.fixture(scope="module")
def xray():
    return medzoo.create("xray_cnn", size=32, widths=(4, 4, 8, 8), hidden=8).eval()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Write two series, a scout, a structured report, a broken file, a text and a PNG, in nested folders."""
    root = tmp_path_factory.mktemp("study")
    generator = np.random.default_rng(0)

    def slices(count):
        return generator.integers(0, 2000, (count, 20, 24)).astype(np.int16)

    write_series(root / "a" / "ct", slices(5))
    write_series(root / "a" / "ct2", slices(7), SeriesInstanceUID=OTHER_SERIES)
    scout = slice_fields((0, 0, 0), 90) | {
        "SeriesInstanceUID": SCOUT_SERIES,
        "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
    }
    write_dicom(root / "a" / "scout.dcm", slices(1)[0], **scout)
    write_dicom(root / "a" / "report.dcm", slices(1)[0], SOPClassUID=SR, Modality="SR")
    (root / "b").mkdir()
    broken = write_dicom(
        root / "b" / "broken.dcm", slices(1)[0], **slice_fields((0, 0, 0)), SeriesInstanceUID=LONE_SERIES
    )
    broken.write_bytes(broken.read_bytes()[:-100])
    (root / "b" / "readme.txt").write_text("not an image")
    write_png(root / "b" / "picture.png", generator.integers(0, 255, (40, 30), np.uint8))
    return root


def names(paths, root):
    return {str(p).removeprefix(f"{root}/") for p in paths}


def test_a_3d_model_takes_series_and_names_what_it_leaves(cnn, study):
    found = medzoo.predict(cnn, study, allow_untrained=True)
    good = [p for p in found if not p.error]
    assert len(good) == 2
    assert {p.identity["series"] for p in good} == {SERIES, OTHER_SERIES}
    assert names(found.errors, study) == {"b/broken.dcm", "b/picture.png"}
    assert "takes a 3D volume, got a 2D image" in found.errors[str(study / "b" / "picture.png")]
    assert names(found.skipped, study) == {"a/scout.dcm", "a/report.dcm", "b/readme.txt"}
    assert found.skipped[str(study / "a" / "scout.dcm")] == "a scout (LOCALIZER)"


def test_a_2d_model_takes_images_one_by_one(xray, study):
    with pytest.warns(UserWarning, match=r"HU: this model was not made for CT\. \(and 11 more;") as told:
        found = medzoo.predict(xray, study, allow_untrained=True)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert sum(bool(p.doubt) for p in found) == 12
    good = [p for p in found if not p.error]
    assert len(good) == 5 + 7 + 1
    assert names(found.errors, study) == {"b/broken.dcm"}


def test_the_same_in_any_batch_and_with_workers(cnn, study):
    plain = medzoo.predict(cnn, study, allow_untrained=True)
    for options in ({"batch_size": 3}, {"batch_size": 2, "num_workers": 2}):
        again = medzoo.predict(cnn, study, allow_untrained=True, **options)
        assert [p.source for p in again] == [p.source for p in plain]
        assert again.errors == plain.errors
        for a, b in zip(plain, again, strict=True):
            assert list(a.logits.values()) == pytest.approx(list(b.logits.values()), abs=1e-5)


def test_a_folder_with_one_series_is_one_prediction(cnn, study):
    one = medzoo.predict(cnn, study / "a" / "ct", allow_untrained=True)
    assert isinstance(one, medzoo.Prediction)
    listed = medzoo.predict(cnn, [study / "a" / "ct"], allow_untrained=True)
    assert isinstance(listed, medzoo.Predictions)
    assert listed[0].logits == one.logits


def test_no_patient_appears_anywhere(cnn, study):
    found = medzoo.predict(cnn, study, allow_untrained=True)
    everything = found.to_json() + found.to_csv()
    assert PATIENT_ID not in everything
    assert str(PATIENT_NAME).split("^")[0] not in everything
    hashed = {p.identity["patient"] for p in found if not p.error}
    assert len(hashed) == 1
    assert PATIENT_ID not in hashed.pop()


def test_results_can_be_saved(cnn, study, tmp_path):
    found = medzoo.predict(cnn, study, allow_untrained=True)
    rows = list(csv.DictReader(io.StringIO(found.to_csv(tmp_path / "out.csv"))))
    assert (tmp_path / "out.csv").read_text() == found.to_csv()
    assert len(rows) == len(found)
    for row, prediction in zip(rows, found, strict=True):
        assert row["source"] == prediction.source
        assert row["error"] == prediction.error
        if not prediction.error:
            assert float(row["probability:positive"]) == prediction.probabilities["positive"]
            assert row["untrained"] == "positive"
    told = json.loads(found.to_json(tmp_path / "out.json"))
    assert [p["source"] for p in told["predictions"]] == [p.source for p in found]
    assert told["skipped"] == found.skipped
    assert json.loads(found[0].to_json())["provenance"]["model"] == "cnn3d_small"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "out.json"]


def test_results_become_a_frame(cnn, study):
    pytest.importorskip("pandas", reason="pandas comes with the train extra")
    found = medzoo.predict(cnn, study, allow_untrained=True)
    assert list(found.to_frame()["source"]) == [p.source for p in found]


def test_an_empty_folder_predicts_nothing(cnn, tmp_path):
    assert medzoo.predict(cnn, tmp_path, allow_untrained=True) == []


def test_55_an_array_in_a_list_is_named_by_its_place(xray):
    bad = np.full((1, 32, 32), np.nan, np.float32)
    for item in (bad, medzoo.Image(bad), torch.from_numpy(bad)):
        with pytest.raises(DataError, match=r"^array 1: expected finite values"):
            medzoo.predict(xray, [np.zeros((1, 32, 32), np.uint8), item], allow_untrained=True)


def test_views_that_the_weights_exclude(tmp_path):
    how = medzoo.Preprocessing(size=(32, 32), views=("AP", "PA"))
    model = medzoo.create("xray_cnn", size=32, widths=(4, 4, 8, 8), hidden=8, preprocessing=how).eval()
    pixels = np.zeros((40, 40), np.uint8)
    pixels[10:] = 200
    for view in ("PA", "LL"):
        write_dicom(tmp_path / f"{view}.dcm", pixels, ViewPosition=view)
    found = medzoo.predict(model, tmp_path, allow_untrained=True)
    assert [p.source for p in found] == [str(tmp_path / "PA.dcm")]
    assert "was trained on the views AP, PA, got LL" in found.skipped[str(tmp_path / "LL.dcm")]
    with pytest.raises(DataError, match=r"LL\.dcm: xray_cnn was trained on the views AP, PA, got LL"):
        medzoo.predict(model, tmp_path / "LL.dcm", allow_untrained=True)


def test_slices_named_one_by_one_are_a_series(cnn, study):
    slices = sorted((study / "a" / "ct").iterdir())
    whole = medzoo.predict(cnn, study / "a" / "ct", allow_untrained=True)
    found = medzoo.predict(cnn, [*slices, study / "a" / "report.dcm"], allow_untrained=True)
    assert [p.logits for p in found] == [whole.logits]
    assert list(found.skipped) == [str(study / "a" / "report.dcm")]


def test_a_folder_of_one_series_is_one_prediction_whatever_lies_beside_it(cnn, study, tmp_path):
    for path in (study / "a" / "ct").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "notes.txt").write_text("")
    one = medzoo.predict(cnn, tmp_path, allow_untrained=True)
    assert isinstance(one, medzoo.Prediction)
    assert len(list(csv.DictReader(io.StringIO(one.to_csv())))) == 1


def test_a_model_that_gives_nan_does_not_say_negative(cnn, study):
    broken = medzoo.create("cnn3d_small", size=16, widths=(4, 8, 8), hidden=8).eval()
    broken.head.classifier.bias.data.fill_(float("nan"))
    (found,) = medzoo.predict(broken, [study / "a" / "ct"], allow_untrained=True)
    assert "the model gave NaN or infinity" in found.error
    assert not found.positive
    assert found.provenance["model"] == "cnn3d_small"


def test_labels_named_like_columns_keep_their_own(study, tmp_path):
    model = medzoo.create("cnn3d_small", labels=["source", "error", "a", "positive:a"], size=16, task="multilabel")
    found = medzoo.predict(model, [study / "a" / "ct"], allow_untrained=True)
    (row,) = csv.DictReader(io.StringIO(found.to_csv()))
    assert row["source"] == found[0].source
    assert row["error"] == ""
    for label, value in found[0].probabilities.items():
        assert float(row[f"probability:{label}"]) == value
    assert isinstance(found[:1], medzoo.Predictions)


def test_results_that_cannot_be_written(cnn, study, tmp_path):
    found = medzoo.predict(cnn, [study / "a" / "ct"], allow_untrained=True)
    with pytest.raises(ConfigError, match=r"x\.csv: the results cannot be written \(No such file"):
        found.to_csv(tmp_path / "none" / "x.csv")
    odd = medzoo.Predictions([medzoo.Prediction("M\udcfcller.dcm")], {})
    odd.to_json(tmp_path / "odd.json")
    odd.to_csv(tmp_path / "odd.csv")
    assert b"M\xfcller" in (tmp_path / "odd.csv").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd.csv", "odd.json"]


def test_one_image_that_the_libraries_choke_on_leaves_the_others(xray, monkeypatch, tmp_path):
    from medzoo.data.transform import Transform

    paths = [write_png(tmp_path / f"{i}.png", np.arange(1600, dtype=np.uint8).reshape(40, 40)) for i in range(3)]
    sound = Transform.examine

    def choke(self, image, point=None):
        if image.identity["file"].endswith("1.png"):
            raise RuntimeError("out of ideas\nand more")
        return sound(self, image, point)

    monkeypatch.setattr(Transform, "examine", choke)
    found = medzoo.predict(xray, paths, allow_untrained=True)
    assert [bool(p.error) for p in found] == [False, True, False]
    assert found[1].error.endswith("1.png: it could not be prepared (out of ideas). Look at it with medzoo show.")


def test_errors_of_arrays_are_ours_from_a_worker_too(xray):
    with pytest.raises(DataError, match=r"^array 0: xray_cnn takes a 2D image, got a 3D volume"):
        medzoo.predict(xray, [np.zeros((1, 8, 8, 8), np.uint8)], num_workers=1, allow_untrained=True)


@pytest.mark.parametrize("path", ["", " ", "x" * 300, "a\0b"])
def test_paths_that_no_file_can_have(xray, path):
    with pytest.raises((DataError, medzoo.errors.InputError)):
        medzoo.predict(xray, path, allow_untrained=True)


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_command_line_goes_on_and_exits_5(study):
    result = run("predict", "cnn3d_small", study, "--allow-untrained", "--output", "json")
    assert result.exit_code == 5
    told = json.loads(result.stdout)
    assert len(told["predictions"]) == 4
    assert "skipped" in result.stderr
    assert "picture.png: cnn3d_small takes a 3D volume" in result.stderr
    assert "Traceback" not in result.output


def test_the_command_line_exits_0_when_all_went_well(study):
    result = run("predict", "cnn3d_small", study / "a", "--allow-untrained", "--output", "csv", "--batch-size", "2")
    assert result.exit_code == 0, result.stderr
    assert len(list(csv.DictReader(io.StringIO(result.stdout)))) == 2
    table = run("predict", "cnn3d_small", study / "a" / "ct", "--allow-untrained")
    assert "positive (untrained)" in table.stdout


def test_the_command_line_exits_5_when_nothing_was_predicted(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    result = run("predict", "cnn3d_small", tmp_path, "--allow-untrained")
    assert result.exit_code == 5
    assert "notes.txt: not an image file" in result.stderr
    assert "nothing to predict: 1 things were passed over" in result.stderr


# A LUNA16-style case: an .mhd volume, world points in LPS mm, patches around them.

PATCH = medzoo.Preprocessing(
    size=(16, 16, 16), orientation="SPL", intensity="window", window=(-1000, 400), patch=(32.0, 32.0, 32.0)
)


@pytest.fixture(scope="module")
def patch_model():
    return medzoo.create("cnn3d_small", size=16, widths=(4, 8, 8), hidden=8, preprocessing=PATCH).eval()


@pytest.fixture(scope="module", params=["plain", "flipped"])
def scan(request, tmp_path_factory):
    """Write a scan of air with one bright ball at a known place, and return its path and the place in LPS mm."""
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


def test_patches_point_where_the_orientation_says(patch_model, scan):
    """A point 6 mm to the left of the ball, in LPS + x: the ball lies to the right, so at a lower L index."""
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


def test_89_a_point_outside_is_an_error_with_its_voxel_and_the_rest_goes_on(patch_model, scan):
    path, inside = scan
    points = [(900.0, 0.0, 0.0), inside, (float("nan"), 0, 0)]
    found = medzoo.predict(patch_model, path, points=points, allow_untrained=True)
    assert [bool(p.error) for p in found] == [True, False, True]
    assert "is voxel" in found[0].error
    assert "outside of 64 × 60 × 30. Check points_frame" in found[0].error


def test_points_and_images_that_do_not_match_are_told(patch_model, scan, tmp_path):
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


def test_each_failed_point_is_told_and_json_stays_json(patch_model, scan):
    path, _ = scan
    found = medzoo.predict(
        patch_model, path, points=[(900, 0, 0), (0, 900, 0), (float("nan"), 0, 0)], allow_untrained=True
    )
    assert len(found.errors) == len(found.failed) == 3
    told = json.loads(found.to_json(), parse_constant=lambda name: pytest.fail(name))
    assert told["predictions"][2]["point"] == [None, 0.0, 0.0]


def test_many_points_of_a_scan_read_it_once(patch_model, scan, monkeypatch):
    path, point = scan
    reads = []
    real = medzoo.read
    monkeypatch.setattr("medzoo.inference.read", lambda image: reads.append(image) or real(image))
    medzoo.predict(patch_model, path, points=[point] * 5, allow_untrained=True)
    assert len(reads) == 1


def test_89_beyond_the_border_lies_air(patch_model, scan):
    path, _ = scan
    image = medzoo.read(path)
    corner = image.affine[:3, 3]
    x = medzoo.transform(patch_model).prepare(path, point=corner).tensor
    assert torch.equal(x, torch.zeros_like(x))


def test_patch_models_refuse_whole_scans_and_others_refuse_points(patch_model, cnn, scan):
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
        (tmp_path / "wrong.csv", "coordX, coordY, coordZ is not there"),
        (tmp_path / "words.csv", r"words\.csv, row 2: expected three numbers in mm"),
        (tmp_path / "none.csv", "expected a CSV file of points"),
        ([(1, 2)], "point 0: expected three numbers in mm"),
    ]:
        with pytest.raises(DataError, match=message):
            medzoo.predict(patch_model, path, points=points, allow_untrained=True)


def test_points_on_an_array_need_a_geometry(patch_model):
    with pytest.raises(DataError, match="expected a volume with a geometry"):
        medzoo.predict(patch_model, np.zeros((1, 20, 20, 20), np.float32), points=[(0, 0, 0)], allow_untrained=True)


def test_a_nifti_volume_among_images_of_a_list(cnn, tmp_path):
    good = write_nifti(tmp_path / "good.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
    (tmp_path / "bad.nii.gz").write_bytes(good.read_bytes()[:-9])
    found = medzoo.predict(cnn, [good, tmp_path / "bad.nii.gz", tmp_path / "none.nii.gz"], allow_untrained=True)
    assert [bool(p.error) for p in found] == [False, True, True]
