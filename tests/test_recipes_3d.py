"""The recipes egfr, luna16 and mgmt from check to predict, on the layouts in which the data is published."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from make_images import write_nifti
from published_3d import write_egfr, write_luna16, write_mgmt, write_rows

import medzoo
from medzoo import Table
from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.run_record import PART, RunRecord
from medzoo.training.check import check
from medzoo.training.recipe import Recipe
from medzoo.training.source import load_table

TINY = {"epochs": 2, "batch": 2, "device": "cpu", "threads": 1, "cache": "memory"}
SWIN = {"pretrained": False, "model.options": {"feature_size": 12, "hidden": 8}, "size": 32, "patch": [32, 32, 32]}
SMALL = {"model.options": {"widths": [4, 4, 8], "hidden": 8}, "size": 16}
BASE = {"model.options": {"widths": [4, 4, 8, 8], "hidden": 8}, "size": 46}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Return a folder of cases and the centres of their tumours in LPS; no test changes it."""
    folder = tmp_path_factory.mktemp("egfr")
    return folder, write_egfr(folder, cases=9)


def run_of(recipe, data, to, **more):
    """Check, train, and return the run with what run.json has."""
    check(recipe, data, **TINY, **more)
    run = medzoo.train(recipe, data, to=to, **TINY, **more)
    assert [row["epoch"] for row in run.log] == [1, 2]
    return run, json.loads((run.folder / "run.json").read_text())


def is_probability(found, label):
    return not found.error and 0 <= found.probabilities[label] <= 1


@pytest.mark.parametrize(
    ("recipe", "model", "task"),
    [("egfr", "cnn3d_small", 0.7), ("luna16", "swin_encoder_mlp", 0.8), ("mgmt", "cnn3d_base", 0.8)],
)
def test_a_recipe_has_what_its_source_had(recipe, model, task):
    found = Recipe.load(recipe)
    assert (found.model.name, found.split.shares[0], found.data.source) == (model, task, recipe)
    assert found.source.protocol is not None
    assert len(found.source.changes) >= 4
    medzoo.describe(model)
    if recipe == "luna16":
        assert found.source.claim == {"accuracy": 0.854, "sensitivity": 0.721, "specificity": 0.923}
        assert round(1500 * found.data.negatives) == 2000
    if recipe == "mgmt":
        assert found.schedule.gamma**100_000 == pytest.approx(0.96, rel=1e-6)


@pytest.mark.slow
def test_luna16_from_check_to_predict(tmp_path):
    candidates = write_luna16(tmp_path / "data", scans=5, positives=1, negatives=4)
    run, facts = run_of("luna16", tmp_path / "data", tmp_path / "run", **SWIN)
    share = float(np.mean([c.positive for c in candidates]))
    assert facts["case_sampled"]
    assert facts["prevalence"] == pytest.approx({"nodule": share})
    assert medzoo.evaluate(run, part="valid", prevalence=share, resamples=50)
    points = [(c.series, *c.point) for c in candidates[:5]]
    write_rows(tmp_path / "points.csv", ("seriesuid", "coordX", "coordY", "coordZ"), points)
    found = medzoo.predict(run.model, tmp_path / "data", points=tmp_path / "points.csv")
    assert sum(is_probability(one, "nodule") for one in found) == 5
    other = Table.from_source("luna16", tmp_path / "data")
    assert medzoo.evaluate(run, other, seen="allow", case_sampled=False, resamples=50)


@pytest.mark.slow
def test_luna16_trains_on_saved_features_then_all_weights_and_on_a_fold_of_the_challenge(tmp_path):
    write_luna16(tmp_path / "data", scans=4, positives=1, negatives=3)
    more = SWIN | {"freeze": "features", "then": "finetune", "then_epochs": 1}
    run = medzoo.train("luna16", tmp_path / "data", to=tmp_path / "then", **TINY, **more)
    assert is_probability(*_one(run.model, tmp_path / "data", "nodule"))
    fold = {"split.leave_out": {"subset": ["3"]}, "negatives": None}
    run = medzoo.train("luna16", tmp_path / "data", to=tmp_path / "fold", **TINY, **SWIN, **fold)
    rows = RunRecord(run.folder).read_rows()
    tested = np.flatnonzero(rows.groups[PART] == "test")
    assert {rows.image(int(row)).parent.name for row in tested} == {"subset3"}


def _one(model, folder, label):
    table = Table.from_source("luna16", folder)
    x, y, z = table.points[0].tolist()
    return medzoo.predict(model, table.image(0), points=[(x, y, z)], points_frame="RAS")[0], label


@pytest.mark.slow
def test_egfr_from_check_to_predict(cases, tmp_path):
    folder, centres = cases
    how = {"missing": "drop", "split.shares": [0.5, 0.5, 0]}
    run, facts = run_of("egfr", folder, tmp_path / "run", **SMALL, **how)
    assert not facts.get("case_sampled")
    assert medzoo.evaluate(run, part="valid", resamples=50)
    table = Table.from_source("egfr", folder, roi="seg", missing="drop")
    case = table.patients[0]
    (found,) = medzoo.predict(run.model, table.image(0), points=[centres[case].tolist()])
    assert is_probability(found, "EGFR mutant")
    run, _ = run_of("egfr", folder, tmp_path / "complete", **SMALL, **how, roi=None, patch=None)
    (found,) = medzoo.predict(run.model, table.image(0))
    assert is_probability(found, "EGFR mutant")


def test_egfr_patch_and_roi_go_together(cases, tmp_path):
    folder, _ = cases
    with pytest.raises(DataError, match="cases without a segmentation of a CT: line 10"):
        check("egfr", folder, **TINY, **SMALL)
    with pytest.raises(ConfigError, match="takes patches around points, and the rows have none"):
        check("egfr", folder, **TINY, **SMALL, roi=None)


def test_the_recipe_of_egfr_takes_a_table_of_masks_and_boxes(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(8):
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        volume = rng.normal(-500, 50, (24, 24, 24)).astype(np.int16)
        write_nifti(tmp_path / f"{i}.nii.gz", volume, affine)
        mask = np.zeros(volume.shape, np.uint8)
        mask[8:12, 8 : 12 + i, 8:12] = 1
        write_nifti(tmp_path / f"mask{i}.nii.gz", mask, affine)
        # In LPS, edge to edge: voxels 8 to 11 are from 15 to 23 mm.
        box = f"-15 -15 15 -23 {-23 - 2 * i} 23"
        rows.append((f"{i}.nii.gz", ("wildtype", "mutant")[i % 2], f"p{i}", f"mask{i}.nii.gz" if i % 4 else box))
    path = write_rows(tmp_path / "t.csv", ("path", "label", "patient", "seg"), rows)
    table = load_table(Recipe.load("egfr"), path)
    assert (table.labels, table.targets[:, 0].tolist()) == (("mutant",), [0, 1] * 4)
    np.testing.assert_allclose(table.points, [[19, 19 + i, 19] for i in range(8)], atol=1e-5)
    report = check("egfr", path, **TINY, **SMALL, **{"split.shares": [0.5, 0.5, 0]})
    assert report.table.points is not None


@pytest.mark.slow
def test_mgmt_from_check_to_predict(tmp_path):
    write_mgmt(tmp_path / "data", [f"{i:05d}" for i in range(0, 20, 2)], slices=9)
    run, facts = run_of("mgmt", tmp_path / "data", tmp_path / "run", **BASE)
    assert not facts.get("case_sampled")
    assert medzoo.evaluate(run, part="valid", resamples=50)
    table = Table.from_source("mgmt", tmp_path / "data")
    found = medzoo.predict(run.model, Path(table.image(0)[0]).parent)
    assert is_probability(found, "MGMT methylated")
    prepared = medzoo.transform(run.model).prepare(medzoo.read(table.image(0)))
    assert prepared.tensor.shape == (1, 46, 46, 46)


# Real images


@pytest.fixture(scope="module")
def chest(data):
    """Return the series, its NIfTI, and the boxes of its tumour by SOP instance: x, y from and to, in pixels."""
    import csv

    folder = data / "chest_ct"
    with (folder / "tumour_boxes.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["patient_id"] == "Lung_Dx-A0002"]
    boxes = {row["sop_uid"]: [int(row[name]) for name in ("xmin", "ymin", "xmax", "ymax")] for row in rows}
    return folder / "dicom_A0002", folder / "A0002.nii.gz", boxes


def tumour(chest):
    """Return the box of the tumour in LPS mm, by pydicom alone, and the slices that it is in."""
    import pydicom

    corners = []
    for file in sorted(chest[0].iterdir()):
        ds = pydicom.dcmread(file, stop_before_pixels=True)
        if ds.SOPInstanceUID in chest[2]:
            x0, y0, x1, y1 = chest[2][ds.SOPInstanceUID]
            position, (down, right) = np.array(ds.ImagePositionPatient, float), map(float, ds.PixelSpacing)
            cosines = np.array(ds.ImageOrientationPatient, float)
            corners += [position + cosines[:3] * right * x + cosines[3:] * down * y for x in (x0, x1) for y in (y0, y1)]
    return np.array(corners)


def test_a_tumour_of_a_real_scan_is_where_its_boxes_are(chest, tmp_path):
    corners = tumour(chest)
    assert len(corners) == 4 * 10
    low, high = corners.min(0), corners.max(0)
    box = " ".join(f"{value:.6f}" for value in (*low, *high))
    rows = [("dicom_A0002", 1, "a", box), ("A0002.nii.gz", 0, "b", box)]
    path = write_rows(tmp_path / "t.csv", ("path", "label", "patient", "box"), rows)
    table = Table.from_csv(path, root=chest[0].parent, patient="patient", roi="box")
    np.testing.assert_allclose(table.points, [(low + high) / 2 * [-1, -1, 1]] * 2, atol=1e-5)
    patches = []
    model = medzoo.create("cnn3d_small", size=64)
    how = {"size": (64,) * 3, "orientation": "RAS", "intensity": "window", "window": (-1000.0, 400.0)}
    model.preprocessing = medzoo.Preprocessing(**how, patch=(128.0,) * 3)
    for row in range(2):
        image = medzoo.read(table.image(row))
        to_voxel = np.linalg.inv(image.affine)
        for point in corners * [-1, -1, 1]:  # world, to the nearest voxel, to world
            voxel = nibabel.affines.apply_affine(to_voxel, point)
            again = nibabel.affines.apply_affine(image.affine, np.rint(voxel))
            assert (np.abs(nibabel.affines.apply_affine(to_voxel, again) - voxel) <= 0.5).all()
            assert (np.abs(again - point) <= np.abs(image.affine[:3, :3]).sum(1) / 2 + 1e-6).all()
        patches.append(medzoo.transform(model).prepare(table.image(row), point=table.point(row)).tensor.numpy())
    assert np.abs(patches[0] - patches[1]).mean() < 0.01  # the NIfTI has pixels of twice the size
    middles = corners.reshape(-1, 4, 3).mean(1) * [-1, -1, 1]
    places = np.rint((middles - table.points[0]) / 2 + 31.5).astype(int)  # 2 mm a voxel
    for patch in patches:  # soft tissue, -200 HU and more, where lung is 0.1
        assert (patch[(0, *places.T)] > 0.57).mean() >= 0.9
