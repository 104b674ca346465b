"""Tables of points: patches around places in a scan, which is read once for all of them."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import medzoo
from medzoo.data import pixels as pixels_module
from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.run_record import RunRecord
from medzoo.io.image import Image
from medzoo.transforms.geometry import resample_to_grid
from medzoo.transforms.resample import crop_patch

SIDES = (40.0, 32.0, 24.0)
# Voxels of 2 × 1.5 × 3 mm, rotated by 20 degrees and with a flipped second axis, as some scanners write them.
TURN = np.array([[0.9397, 0.3420, 0.0], [0.3420, -0.9397, 0.0], [0.0, 0.0, 1.0]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN @ np.diag([2.0, 1.5, 3.0])
AFFINE[:3, 3] = (-30.0, 25.0, -50.0)
SHAPE = (30, 34, 20)


def volume(seed: int = 0) -> NDArray[np.float32]:
    """Return a smooth volume in HU."""
    rng = np.random.default_rng(seed)
    return (rng.random(SHAPE) * 1000 - 900).astype(np.float32)


def centre_of(voxel: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return the point of a voxel index in mm, RAS."""
    return (AFFINE @ np.array([*voxel, 1.0]))[:3]


def how(size: int = 16) -> medzoo.Preprocessing:
    return medzoo.Preprocessing(
        size=(size,) * 3,
        orientation="SPL",
        intensity="window",
        window=(-1000.0, 400.0),
        patch=SIDES,
        resample="triangle",
    )


def model_of(size: int = 16) -> medzoo.Classifier:
    model = medzoo.create("cnn3d_small", size=size, widths=(4, 8, 8), hidden=8)
    model.preprocessing = how(size)
    return model


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Write three scans and a table of 18 points in them, the scans of the rows in turn."""
    for i in range(3):
        nibabel.save(nibabel.Nifti1Image(volume(i), AFFINE), tmp_path / f"scan{i}.nii.gz")
    rng = np.random.default_rng(9)
    with (tmp_path / "points.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient", "coordX", "coordY", "coordZ"])
        for i in range(18):
            x, y, z = centre_of(tuple(rng.random(3) * (np.array(SHAPE) - 1)))
            writer.writerow([f"scan{i % 3}.nii.gz", i % 2, f"p{i % 3}", -x, -y, z])
    return tmp_path


def table_of(folder: Path, **options: object) -> medzoo.Table:
    options = {"patient": "patient", "point": ("coordX", "coordY", "coordZ"), **options}
    return medzoo.Table.from_csv(folder / "points.csv", **options)  # type: ignore[arg-type]


def test_points_are_ras_and_name_the_rows(scans: Path) -> None:
    table = table_of(scans)
    with (scans / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    given = np.array([[float(row[f"coord{axis}"]) for axis in "XYZ"] for row in rows])
    assert table.points is not None
    np.testing.assert_array_equal(table.points, given * [-1, -1, 1])
    ras = table_of(scans, points_frame="RAS")
    assert ras.points is not None
    np.testing.assert_array_equal(ras.points, given)
    assert len(set(table.ids)) == len(table)
    assert table.ids[1].startswith("scan1.nii.gz @ ")
    assert "coordX" not in table.groups
    assert table.select([4, 2]).point(0) == tuple(table.points[4])


def test_all_faults_of_points_are_listed_by_line(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(volume(), AFFINE), tmp_path / "a.nii.gz")
    rows = ["path,label,x,y,z", "a.nii.gz,0,1,2,3", "a.nii.gz,1,,2,3", "a.nii.gz,0,1,nan,3", "a.nii.gz,1,1,2,3"]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError) as caught:
        medzoo.Table.from_csv(tmp_path / "t.csv", point=("x", "y", "z"))
    text = str(caught.value)
    assert "line 3" in text
    assert "line 4" in text
    assert "other labels" in text  # line 5 is line 2 again
    with pytest.raises(DataError, match="'w'"):
        medzoo.Table.from_csv(tmp_path / "t.csv", point=("x", "y", "w"))
    with pytest.raises(ConfigError, match="three columns"):
        medzoo.Table.from_csv(tmp_path / "t.csv", point=("x", "y"))
    with pytest.raises(ConfigError, match="'LPS' or 'RAS'"):
        medzoo.Table.from_csv(tmp_path / "t.csv", point=("x", "y", "z"), points_frame="LAS")  # type: ignore[arg-type]


@pytest.mark.parametrize("voxel", [(14.0, 16.0, 9.0), (0.0, 0.0, 0.0), (29.0, 33.0, 19.0), (3.3, 30.1, 10.4)])
@pytest.mark.parametrize("sides", [SIDES, (12.0, 12.0, 12.0), (300.0, 300.0, 300.0)])
def test_a_patch_is_that_of_the_whole_volume(voxel: tuple[float, float, float], sides: tuple[float, ...]) -> None:
    x, where = torch.from_numpy(volume())[None], centre_of(voxel)
    image = Image(x.numpy(), affine=AFFINE, spacing=(2.0, 1.5, 3.0))
    asked = medzoo.Preprocessing(
        size=(16, 16, 16), orientation="SPL", intensity="window", window=(-1000.0, 400.0), patch=sides
    )
    patch, to_source = crop_patch(x, image, asked, where.tolist(), "a scan", [])
    whole = resample_to_grid(x + 1000, AFFINE, AFFINE @ to_source, (16, 16, 16), "zeros") - 1000
    expected = ((whole + 1000) / 1400).clamp(0, 1)
    np.testing.assert_allclose(patch.numpy(), expected.numpy(), atol=2e-5)
    centre = to_source @ np.array([7.5, 7.5, 7.5, 1.0])  # the middle of 16 voxels
    np.testing.assert_allclose(centre[:3], voxel, atol=1e-6)


@pytest.mark.parametrize("cache", ["off", "memory", "disk"])
def test_each_scan_is_read_once_for_all_its_rows(
    scans: Path, cache: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "home"))
    read: list[int] = []
    original = pixels_module.decode_row

    def counted(table: medzoo.Table, row: int, channels: int) -> Image:
        read.append(row)
        return original(table, row, channels)

    table, transform = table_of(scans), medzoo.transform(model_of())
    monkeypatch.setattr(pixels_module, "decode_row", counted)
    store = medzoo.PixelStore(table, transform, cache=cache)  # type: ignore[arg-type]
    assert len(read) == 3 + (cache == "disk")  # the plan of a file on disk reads one image
    monkeypatch.undo()
    for row in (0, 1, 2, 17):
        expected = transform.examine(table.image(row), table.point(row)).tensor  # type: ignore[arg-type]
        np.testing.assert_allclose(store.read(row).numpy(), expected.numpy(), atol=1 / 131070 + 1e-7)
    assert len(set(store.identities.pixels)) == 3
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again.read(5), store.read(5))


def test_points_and_patches_go_together(scans: Path) -> None:
    plain = medzoo.create("cnn3d_small", size=16, widths=(4, 8, 8), hidden=8)
    with pytest.raises(ConfigError, match=r"data\.patch"):
        medzoo.PixelStore(table_of(scans), medzoo.transform(plain), cache="memory")
    arrays = medzoo.Table.from_arrays(np.zeros((4, 1, 16, 16, 16)), [0, 1, 0, 1], patients=[1, 2, 3, 4])
    with pytest.raises(ConfigError, match=r"data\.point"):
        medzoo.PixelStore(arrays, medzoo.transform(model_of()), cache="memory")


def test_a_point_outside_its_scan_is_an_error_with_its_line(scans: Path) -> None:
    text = (scans / "points.csv").read_text().splitlines()
    text[5] = "scan1.nii.gz,0,p1,900,900,900"
    (scans / "points.csv").write_text("\n".join(text) + "\n")
    with pytest.raises(DataError, match=r"line 6: .*outside of 30 × 34 × 20"):
        medzoo.PixelStore(table_of(scans), medzoo.transform(model_of()), cache="memory")
    store = medzoo.PixelStore(table_of(scans), medzoo.transform(model_of()), cache="memory", unreadable="drop")
    assert [dropped.row for dropped in store.dropped] == [4]


def test_a_training_on_points_keeps_them(scans: Path, tmp_path: Path) -> None:
    recipe = medzoo.Recipe(
        model={"name": "cnn3d_small", "options": {"size": 16, "widths": (4, 8, 8), "hidden": 8}},
        data={
            "point": ["coordX", "coordY", "coordZ"], "patient": "patient", "patch": SIDES, "intensity": "window",
            "window": [-1000, 400], "cache": "memory",
        },
        split={"shares": [0.4, 0.3, 0.3], "draws": 50},
        train={"epochs": 1, "batch": 4},
    )  # fmt: skip
    run = medzoo.train(recipe, scans / "points.csv", to=tmp_path / "run")
    kept, table = RunRecord(run.folder).read_table(), table_of(scans)
    assert kept.points is not None
    np.testing.assert_array_equal(kept.points, table.points)
    assert medzoo.create(f"local-dir:{run.folder / 'model'}").preprocessing == how()
    assert len(medzoo.evaluate(run.folder, resamples=50).scores) == 6
    row = 7
    x, y, z = table.points[row].tolist()  # type: ignore[index]
    (predicted,) = medzoo.predict(run.model, table.image(row), points=[(x, y, z)], points_frame="RAS")  # type: ignore[arg-type]
    store = medzoo.PixelStore(table, medzoo.transform(run.model), cache="off")
    with torch.inference_mode():
        logits = run.model(store.transform.normalise(store.read(row))[None])
    assert predicted.probabilities["positive"] == pytest.approx(float(torch.sigmoid(logits)), abs=1e-6)
