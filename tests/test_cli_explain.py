"""``medzoo explain`` and ``medzoo predict --explain`` as a person types them, on files that the test writes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from make_images import arrow, slice_fields, write_dicom, write_nifti, write_png, write_series
from PIL import Image as Pillow

import medzoo
from medzoo.cli.main import main

AXES = np.diag([2.0, 2.0, 4.0, 1.0])
TINY = {name: medzoo.describe(name).tiny for name in ("xray_cnn", "cnn3d_small")}


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def save(model, folder, **outputs):
    """Save a model whose head only adds, so that its maps have values above 0, and return its name."""
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.abs_()
    model.set_outputs(**{"trained": True} | outputs).save_pretrained(folder / "model")
    return f"local-dir:{folder / 'model'}"


@pytest.fixture(scope="module")
def xray_model(tmp_path_factory):
    """Return the name of a small X-ray model of three findings, of which one is not trained."""
    model = medzoo.create("xray_cnn", **TINY["xray_cnn"], labels=["Mass", "Pleural thickening", "Nodule"])
    folder = tmp_path_factory.mktemp("xray")
    return save(model, folder, trained=[True, True, False], thresholds=[0.5, 0.5, 0.5])


@pytest.fixture(scope="module")
def volume_model(tmp_path_factory):
    return save(medzoo.create("cnn3d_small", **TINY["cnn3d_small"]), tmp_path_factory.mktemp("volume"))


@pytest.fixture(scope="module")
def patch_model(tmp_path_factory):
    how = medzoo.Preprocessing(size=(16, 16, 16), fit="resize", orientation="RAS", patch=(16.0, 16.0, 16.0))
    model = medzoo.create("cnn3d_small", **TINY["cnn3d_small"], preprocessing=how)
    return save(model, tmp_path_factory.mktemp("patch"))


def write_xray(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_png(path, np.random.default_rng(seed).integers(0, 256, (48, 40)).astype(np.uint8))


def write_volume(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_nifti(path, np.random.default_rng(0).random((24, 20, 12), np.float32), AXES)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_help_has_examples_and_what_a_map_is():
    shown = run("explain", "--help").output
    assert "medzoo explain densenet121_xray:xrv_all chest.dcm --to maps" in shown
    assert "a map of influence, not a localisation" in " ".join(shown.split())
    assert "Volumes of a NIfTI or MHD file are in RAS+, whatever order it is stored in." in " ".join(shown.split())
    assert "--explain FOLDER" in run("predict", "--help").output


def test_each_image_has_a_line_and_a_file_of_its_own(xray_model, tmp_path):
    sources = [write_xray(tmp_path / place, i) for i, place in enumerate(["a/1.png", "b/1.PNG", "b_1.png"])]
    result = run("explain", xray_model, *sources, "--to", tmp_path / "maps")
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    files = [line.partition(" → ")[2].partition(" · ")[0] for line in lines]
    assert [line.partition(" → ")[0] for line in lines] == list(map(str, sources))
    assert [Path(file).name for file in files] == ["1.png", "b_1.png", f"{tmp_path.name}_b_1.png"]
    for source, line, file in zip(sources, lines, files, strict=True):
        found = medzoo.explain(medzoo.create(xray_model), source)
        (label,) = found.targets
        assert label != "Nodule"
        called = "positive" if found.prediction.positive[label] else "negative"
        assert f"· {label} {found.prediction.probabilities[label]:.3f} {called}" in line
        with Pillow.open(file) as picture:
            assert picture.format == "PNG"
    assert result.stderr.splitlines()[-1].startswith("3 explained")


def test_several_targets_are_one_picture_and_an_array_each(xray_model, tmp_path):
    source = write_xray(tmp_path / "x.png")
    targets = ["--target", "Pleural thickening", "--target", "Mass"]
    run("explain", xray_model, source, *targets, "--format", "png", "--format", "npy", "--to", tmp_path / "maps")
    assert names(tmp_path / "maps") == ["x.png", "x_Mass.npy", "x_Pleural_thickening.npy"]
    found = medzoo.explain(medzoo.create(xray_model), source, target="Mass")
    np.testing.assert_array_equal(np.load(tmp_path / "maps" / "x_Mass.npy"), found.map)


def test_series_and_volumes_are_written_on_their_axes(volume_model, tmp_path):
    write_series(tmp_path / "in" / "scan", np.random.default_rng(0).integers(0, 2000, (8, 20, 24)).astype(np.uint16))
    write_volume(tmp_path / "in" / "brain.nii.gz")
    result = run("explain", volume_model, tmp_path / "in", "--to", tmp_path / "maps", "--format", "nii.gz")
    assert names(tmp_path / "maps") == ["brain_positive.nii.gz", "scan_positive.nii.gz"]
    assert len(result.stdout.splitlines()) == 2
    for name, source in (("brain", "brain.nii.gz"), ("scan", "scan")):
        one = medzoo.explain(medzoo.create(volume_model), tmp_path / "in" / source)
        again = medzoo.read(tmp_path / "maps" / f"{name}_positive.nii.gz")
        assert sorted(again.array.shape[1:]) == sorted(one.map.shape)
        assert again.array.max() == one.map.max()


def test_points_are_explained_one_by_one(patch_model, tmp_path):
    scan = write_volume(tmp_path / "in" / "scan.nii.gz")
    (tmp_path / "points.csv").write_text("coordX,coordY,coordZ\n20,16,20\n20,16,20\n")
    options = ["--points", tmp_path / "points.csv", "--points-frame", "RAS", "--method", "gradcam++"]
    result = run("explain", patch_model, scan, *options, "--to", tmp_path / "maps")
    assert names(tmp_path / "maps") == ["in_scan_20.0_16.0_20.0.png", "scan_20.0_16.0_20.0.png"]
    assert len(result.stdout.splitlines()) == 2


def test_occlusion_and_another_layer(xray_model, tmp_path):
    source = write_xray(tmp_path / "x.png")
    to = ["--to", tmp_path / "maps", "--target", "Mass", "--format", "npy"]
    run("explain", xray_model, source, *to, "--method", "occlusion", "--mask-size", 8, "--batch-size", 16)
    found = medzoo.explain(medzoo.create(xray_model), source, "Mass", "occlusion", mask_size=8)
    np.testing.assert_allclose(np.load(tmp_path / "maps" / "x_Mass.npy"), found.map, atol=1e-5)
    run("explain", xray_model, source, *to, "--layer", "encoder.stages.1")
    found = medzoo.explain(medzoo.create(xray_model), source, "Mass", layer="encoder.stages.1")
    np.testing.assert_array_equal(np.load(tmp_path / "maps" / "x_Mass.npy"), found.map)


def test_images_that_fail_are_reported_and_the_others_written(xray_model, tmp_path):
    good = write_xray(tmp_path / "in" / "x.png")
    ct = write_dicom(tmp_path / "in" / "ct.dcm", arrow(48, 64, top=2000), **slice_fields((0, 0, 0)))
    volume = write_volume(tmp_path / "in" / "v.nii.gz")
    result = run("explain", xray_model, good, ct, volume, tmp_path / "no.png", "--to", tmp_path / "maps", code=5)
    assert names(tmp_path / "maps") == ["x.png"]
    assert len(result.stdout.splitlines()) == 1
    assert f"DataError: {tmp_path / 'no.png'}: expected a file or folder, found nothing there." in result.stderr
    assert "takes a 2D image, got a 3D volume" in result.stderr
    assert "--allow-mismatch" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("1 explained; 3 failed: ")
    marked = run("explain", xray_model, ct, "--to", tmp_path / "maps", "--allow-mismatch")
    assert "see the warning" in marked.stdout
    assert "warning: " in marked.stderr
    assert names(tmp_path / "maps") == ["ct.png", "x.png"]


def test_an_image_without_a_position_has_no_volume(xray_model, tmp_path):
    source = write_xray(tmp_path / "x.png")
    formats = ["--format", "png", "--format", "nii.gz"]
    result = run("explain", xray_model, source, "--to", tmp_path / "maps", *formats, code=5)
    assert "expected an image with a position in the patient" in result.stderr
    assert "Choose --format npy or --format png." in result.stderr
    assert names(tmp_path / "maps") == []


def test_a_folder_that_cannot_be_written(xray_model, tmp_path):
    source = write_xray(tmp_path / "in" / "x.png")
    (tmp_path / "file").touch()
    for to in (tmp_path / "file", tmp_path / "file" / "maps"):
        shown = run("explain", xray_model, source, "--to", to, code=2).stderr
        assert shown.startswith(f"ConfigError: {to}: the folder of the maps cannot be made (")
    # A folder in the place of the file: the same for every image, so the run ends.
    (tmp_path / "maps" / "x.png").mkdir(parents=True)
    shown = run("explain", xray_model, source, "--to", tmp_path / "maps", code=2).stderr
    assert "x.png: the map cannot be written (Is a directory)" in shown


def test_maps_are_kept_apart_from_images(xray_model, tmp_path):
    source = write_xray(tmp_path / "in" / "x.png")
    before = source.read_bytes()
    for path, to in ((source, "in"), (tmp_path / "in", "in"), (tmp_path / "in", "in/maps"), (tmp_path, "maps")):
        for command in (("explain", "--to"), ("predict", "--explain")):
            shown = run(command[0], xray_model, path, command[1], tmp_path / to, code=2).stderr
            assert "expected a folder apart from the images" in shown
    assert source.read_bytes() == before
    assert names(tmp_path / "in") == ["x.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "Mas"], "Did you mean 'Mass'?"),
        (["--target", "Nodule"], "--allow-untrained"),
        (["--layer", "encoder.nothing"], "expected the dotted name of a module"),
        (["--method", "occlusion", "--layer", "encoder.stages.1"], "occlusion looks at no layer"),
        (["--points", "p.csv"], "Leave --points out."),
    ],
)
def test_options_that_cannot_be(xray_model, tmp_path, options, message):
    shown = run("explain", xray_model, write_xray(tmp_path / "x.png"), "--to", tmp_path / "m", *options, code=2).stderr
    assert message in shown
    assert "medzoo." not in shown


def test_an_exported_file_has_no_layers(tmp_path):
    shown = run("explain", "model.onnx", write_xray(tmp_path / "x.png"), "--to", tmp_path / "m", code=2).stderr
    assert "Use the model it was exported from." in shown


def test_nothing_to_explain_exits_5(xray_model, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("x")
    result = run("explain", xray_model, tmp_path / "in", "--to", tmp_path / "maps", code=5)
    assert "nothing to explain: 1 skipped" in result.stderr


def test_strict_fails_and_writes_nothing(xray_model, tmp_path):
    dark = write_png(tmp_path / "dark.png", np.full((48, 40), 7, np.uint8))
    result = run("explain", xray_model, dark, "--to", tmp_path / "maps", "--strict", code=5)
    assert "DataError: " in result.stderr
    assert names(tmp_path / "maps") == []


def test_long_and_foreign_names(volume_model, tmp_path):
    long = write_volume(tmp_path / "in" / ("ö" * 110 + ".nii.gz"))
    odd = write_volume(tmp_path / "in" / "a b:c?.nii.gz")
    run("explain", volume_model, long, odd, "--to", tmp_path / "maps", "--format", "npy")
    cut = "ö" * 85 + "_positive.npy"  # to 180 bytes
    assert names(tmp_path / "maps") == sorted(["a_b_c_positive.npy", cut])


def test_predict_states_the_file_of_each_map(xray_model, tmp_path):
    good, bad = write_xray(tmp_path / "in" / "x.png"), tmp_path / "no.png"
    maps = tmp_path / "maps"
    plain = json.loads(run("predict", xray_model, good, bad, "--output", "json", code=5).stdout)

    shown = run("predict", xray_model, good, bad, "--explain", maps, code=5)
    assert names(maps) == ["x.png"]
    target = max(("Mass", "Pleural thickening"), key=plain["predictions"][0]["probabilities"].__getitem__)
    assert f"map of {target}: {maps / 'x.png'}" in shown.stdout
    assert "1 predicted; 1 failed" in shown.stderr

    found = json.loads(run("predict", xray_model, good, bad, "--explain", maps, "--output", "json", code=5).stdout)
    assert found["predictions"][0].pop("explanation") == {
        "files": [str(maps / "x.png")], "targets": [target], "warning": ""
    }  # fmt: skip
    assert found["predictions"][1].pop("explanation") is None
    for mine, its in zip(found["predictions"], plain["predictions"], strict=True):
        assert mine.pop("probabilities") == pytest.approx(its.pop("probabilities"), abs=1e-5)
        assert mine.pop("logits") == pytest.approx(its.pop("logits"), abs=1e-4)
    assert found == plain

    text = run("predict", xray_model, good, bad, "--explain", maps, "--output", "csv", code=5).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["explanation"] for row in rows] == [str(maps / "x.png"), ""]
    assert [row["explained"] for row in rows] == [target, ""]


def test_predict_with_maps_reads_in_one_process(xray_model, tmp_path):
    source = write_xray(tmp_path / "x.png")
    shown = run("predict", xray_model, source, "--explain", tmp_path / "maps", "--workers", 2, code=2).stderr
    assert "expected --workers 0 with --explain" in shown
