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
    write_nifti,
    write_png,
    write_series,
)
from tensors import TINY

import medzoo
from medzoo.cli.main import main
from medzoo.errors import ConfigError, DataError

OTHER_SERIES = "1.2.826.0.1.3680043.8.498.77"
SCOUT_SERIES = "1.2.826.0.1.3680043.8.498.78"
LONE_SERIES = "1.2.826.0.1.3680043.8.498.79"
SR = "1.2.840.10008.5.1.4.1.1.88.11"


@pytest.fixture(scope="module")
def cnn():
    return medzoo.create("cnn3d_small", **TINY).eval()


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


def test_a_3d_model_takes_series_and_reports_what_it_skips(cnn, study):
    found = medzoo.predict(cnn, study, allow_untrained=True)
    good = [p for p in found if not p.error]
    assert len(good) == 2
    assert {p.identity["series"] for p in good} == {SERIES, OTHER_SERIES}
    assert names(found.errors, study) == {"b/broken.dcm", "b/picture.png"}
    assert "takes a 3D volume, got a 2D image" in found.errors[str(study / "b" / "picture.png")]
    assert names(found.skipped, study) == {"a/scout.dcm", "a/report.dcm", "b/readme.txt"}
    assert found.skipped[str(study / "a" / "scout.dcm")] == "a scout (LOCALIZER)"


def test_a_2d_model_takes_images_one_by_one(xray, study):
    with pytest.warns(UserWarning, match=r"HU: this model was not made for CT\. \(and 11 more;") as caught:
        found = medzoo.predict(xray, study, allow_untrained=True, allow_mismatch=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert sum(bool(p.warning) for p in found) == 12
    good = [p for p in found if not p.error]
    assert len(good) == 5 + 7 + 1
    assert names(found.errors, study) == {"b/broken.dcm"}


def test_batch_size_and_workers_do_not_change_the_results(cnn, study):
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


def test_92_no_patient_data_appears_in_results(cnn, study):
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
    saved = json.loads(found.to_json(tmp_path / "out.json"))
    assert [p["source"] for p in saved["predictions"]] == [p.source for p in found]
    assert saved["skipped"] == found.skipped
    assert json.loads(found[0].to_json())["provenance"]["model"] == "cnn3d_small"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "out.json"]


def test_a_warning_is_saved_and_its_old_name_is_deprecated(xray, study, tmp_path):
    (path, *_) = sorted((study / "a" / "ct").iterdir())
    with pytest.warns(UserWarning, match="HU"):
        found = medzoo.predict(xray, [path], allow_untrained=True, allow_mismatch=True)
    (one,) = found
    assert "HU: this model was not made for CT" in one.warning
    with pytest.warns(DeprecationWarning, match=r"Prediction\.doubt is deprecated .* use Prediction\.warning"):
        assert one.doubt == one.warning
    (row,) = csv.DictReader(io.StringIO(found.to_csv()))
    for saved in (row, one.to_dict(), json.loads(one.to_json())):
        assert saved["warning"] == saved["doubt"] == one.warning


def test_results_become_a_frame(cnn, study):
    pytest.importorskip("pandas", reason="pandas comes with the train extra")
    found = medzoo.predict(cnn, study, allow_untrained=True)
    assert list(found.to_frame()["source"]) == [p.source for p in found]


def test_an_empty_folder_predicts_nothing(cnn, tmp_path):
    assert medzoo.predict(cnn, tmp_path, allow_untrained=True) == []


def test_55_an_array_in_a_list_is_named_by_its_index(xray):
    bad = np.full((1, 32, 32), np.nan, np.float32)
    for item in (bad, medzoo.Image(bad), torch.from_numpy(bad)):
        with pytest.raises(DataError, match=r"^array 1: expected finite values"):
            medzoo.predict(xray, [np.zeros((1, 32, 32), np.uint8), item], allow_untrained=True)


def test_views_that_the_weights_exclude_are_skipped(tmp_path):
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


def test_slices_in_a_list_are_grouped_by_series(cnn, study):
    slices = sorted((study / "a" / "ct").iterdir())
    series = medzoo.predict(cnn, study / "a" / "ct", allow_untrained=True)
    found = medzoo.predict(cnn, [*slices, study / "a" / "report.dcm"], allow_untrained=True)
    assert [p.logits for p in found] == [series.logits]
    assert list(found.skipped) == [str(study / "a" / "report.dcm")]


def test_a_folder_with_one_series_and_other_files_is_one_prediction(cnn, study, tmp_path):
    for path in (study / "a" / "ct").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "notes.txt").write_text("")
    one = medzoo.predict(cnn, tmp_path, allow_untrained=True)
    assert isinstance(one, medzoo.Prediction)
    assert len(list(csv.DictReader(io.StringIO(one.to_csv())))) == 1


def test_nan_logits_are_an_error_not_a_negative(cnn, study):
    broken = medzoo.create("cnn3d_small", **TINY).eval()
    broken.head.classifier.bias.data.fill_(float("nan"))
    (found,) = medzoo.predict(broken, [study / "a" / "ct"], allow_untrained=True)
    assert "the model returned NaN or infinity" in found.error
    assert not found.positive
    assert found.provenance["model"] == "cnn3d_small"


def test_labels_named_like_columns_have_their_own_columns(study, tmp_path):
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


def test_an_unexpected_library_error_fails_one_image_only(xray, monkeypatch, tmp_path):
    from medzoo.transforms.transform import Transform

    paths = [write_png(tmp_path / f"{i}.png", np.arange(1600, dtype=np.uint8).reshape(40, 40)) for i in range(3)]
    examine = Transform.examine

    def broken(self, image, point, allow_mismatch):
        if image.identity["file"].endswith("1.png"):
            raise RuntimeError("out of ideas\nand more")
        return examine(self, image, point, allow_mismatch)

    monkeypatch.setattr(Transform, "examine", broken)
    found = medzoo.predict(xray, paths, allow_untrained=True)
    assert [bool(p.error) for p in found] == [False, True, False]
    assert found[1].error.endswith(
        "1.png: preprocessing failed (out of ideas). Check the image with medzoo.show(path)."
    )


def test_errors_of_arrays_keep_their_type_in_a_worker(xray):
    with pytest.raises(DataError, match=r"^array 0: xray_cnn takes a 2D image, got a 3D volume"):
        medzoo.predict(xray, [np.zeros((1, 8, 8, 8), np.uint8)], num_workers=1, allow_untrained=True)


@pytest.mark.parametrize("path", ["", " ", "x" * 300, "a\0b"])
def test_invalid_paths_are_errors(xray, path):
    with pytest.raises((DataError, medzoo.errors.InputError)):
        medzoo.predict(xray, path, allow_untrained=True)


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_command_line_predicts_the_others_and_exits_5(study):
    result = run("predict", "cnn3d_small", study, "--allow-untrained", "--output", "json")
    assert result.exit_code == 5
    saved = json.loads(result.stdout)
    assert len(saved["predictions"]) == 4
    assert "skipped" in result.stderr
    assert "picture.png: cnn3d_small takes a 3D volume" in result.stderr
    assert "Traceback" not in result.output


def test_the_command_line_shortens_what_an_archive_repeats(tmp_path):
    for i in range(60):
        (tmp_path / f"{i:02d}.txt").write_text("not an image")
    result = run("predict", "cnn3d_small", tmp_path, "--allow-untrained")
    lines = result.stderr.splitlines()
    assert sum(line.startswith("skipped") for line in lines) == 50
    assert "… and 10 more: --output json or csv has them all" in lines
    assert lines[-1] == "nothing to predict: 60 skipped"


def test_the_command_line_exits_0_on_success(study):
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
    assert "nothing to predict: 1 skipped" in result.stderr


def test_broken_files_in_a_list_fail_alone(cnn, tmp_path):
    good = write_nifti(tmp_path / "good.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
    (tmp_path / "bad.nii.gz").write_bytes(good.read_bytes()[:-9])
    found = medzoo.predict(cnn, [good, tmp_path / "bad.nii.gz", tmp_path / "none.nii.gz"], allow_untrained=True)
    assert [bool(p.error) for p in found] == [False, True, True]
