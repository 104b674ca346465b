"""LUNA16, NSCLC Radiogenomics and RSNA-MICCAI MGMT as they are published, with the traps of each."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from make_images import write_nifti
from published_3d import (
    CANDIDATE,
    EGFR_COLUMNS,
    NODULE,
    egfr_row,
    write_egfr,
    write_egfr_case,
    write_luna16,
    write_mgmt,
    write_rows,
    write_seg,
    write_series,
)  # fmt: skip

import medzoo
from medzoo import Table
from medzoo.data.identity import hashed
from medzoo.data.roi import region_of_box, region_of_mask
from medzoo.data.sources import luna16_annotations, luna16_places
from medzoo.errors import ConfigError, DataError

LPS = np.array([-1.0, -1.0, 1.0])


def fault(name, folder, **options):
    """Return the message of the error."""
    with pytest.raises(DataError) as error:
        Table.from_source(name, folder, **options)
    return str(error.value)


# LUNA16


@pytest.fixture(scope="module")
def luna(tmp_path_factory):
    """Return a folder and its candidates, which no test changes."""
    folder = tmp_path_factory.mktemp("luna")
    return folder, write_luna16(folder)


@pytest.fixture
def own(luna, tmp_path):
    """Return a copy to change."""
    shutil.copytree(luna[0], tmp_path / "own")
    return tmp_path / "own", luna[1]


def rows_of(candidates):
    return [[c.series, *c.point, c.positive] for c in candidates]


def edit(folder, candidates, change):
    """Write the candidates again after a change of their rows, and return the lines of the file."""
    rows = rows_of(candidates)
    change(rows)
    write_rows(folder / "candidates_V2.csv", CANDIDATE, rows)


def test_luna16_has_a_row_for_each_candidate_at_its_place(luna):
    folder, candidates = luna
    table = Table.from_source("luna16", folder)
    assert (table.labels, table.task, table.prevalence) == (("nodule",), "binary", None)
    assert table.patients.tolist() == [c.series for c in candidates]
    assert table.targets[:, 0].tolist() == [c.positive for c in candidates]
    assert table.lines.tolist() == list(range(2, len(candidates) + 2))
    np.testing.assert_allclose(table.points, [c.point * LPS for c in candidates], atol=1e-9)
    assert table.groups["subset"].tolist() == [str(int(c.series[-1])) for c in candidates]
    assert all(Path(table.image(row)).stem == c.series for row, c in enumerate(candidates))
    x, y, z = candidates[0].point
    scan = hashlib.sha256(candidates[0].series.encode()).hexdigest()[:12]
    assert table.ids[0] == f"scan {scan} @ {x!r}, {y!r}, {z!r}"
    assert not any(candidate.series in name for candidate in candidates for name in table.ids)
    assert "1 of 12 annotated nodules of these scans are hit by no candidate" in table.notes


def test_luna16_points_are_the_voxels_that_simpleitk_finds(luna):
    folder, candidates = luna
    table = Table.from_source("luna16", folder)
    for row, candidate in enumerate(candidates):
        image = medzoo.read(table.image(row))
        voxel = (np.linalg.inv(image.affine) @ [*table.points[row], 1])[:3]
        x, y, z = np.rint(voxel).astype(int)
        assert np.abs(voxel - [x, y, z]).max() < 1e-6
        expected = sitk.GetArrayFromImage(sitk.ReadImage(str(table.image(row))))
        i, j, k = candidate.index
        assert image.array[0, x, y, z] == expected[k, j, i]
        assert (image.array[0, x, y, z] == 100) == candidate.positive


@pytest.mark.parametrize("csvs", ["CSVFILES", "Common CSV files", "subset0"])
def test_luna16_csv_files_may_be_in_a_folder_and_masks_are_no_scans(csvs, luna, own):
    folder, _ = own
    (folder / csvs).mkdir(exist_ok=True)
    for name in ("candidates_V2.csv", "annotations.csv"):
        (folder / name).rename(folder / csvs / name)
    masks = folder / "seg-lungs-LUNA16"
    masks.mkdir()
    for scan in sorted(folder.glob("subset0/*.mhd")):
        (masks / scan.name).write_text("a mask")
    (folder / "__MACOSX" / "subset0").mkdir(parents=True)
    (folder / "__MACOSX" / "subset0" / "._x.mhd").write_bytes(b"\0")
    (folder / "candidates.csv").write_text("old")
    assert Table.from_source("luna16", folder).ids.tolist() == Table.from_source("luna16", luna[0]).ids.tolist()


def test_luna16_refuses_the_old_candidates(own):
    folder, _ = own
    (folder / "candidates_V2.csv").rename(folder / "candidates.csv")
    assert "found candidates.csv alone, of which the publishers say that it should not be used" in fault(
        "luna16", folder
    )
    (folder / "candidates.csv").unlink()
    assert "expected candidates_V2.csv in it or in a folder below, found none" in fault("luna16", folder)


def test_luna16_copies_of_a_csv_are_one_unless_they_differ(own):
    folder, _ = own
    (folder / "CSVFILES").mkdir()
    copy = shutil.copy(folder / "candidates_V2.csv", folder / "CSVFILES")
    assert len(Table.from_source("luna16", folder)) == len(own[1])
    with Path(copy).open("a") as file:
        file.write("x,1,2,3,0\n")
    assert "expected one candidates_V2.csv, found 2 that differ" in fault("luna16", folder)


def test_luna16_scans_that_are_not_there_are_refused_or_left_out(own):
    folder, candidates = own
    shutil.rmtree(folder / "subset2")
    shutil.rmtree(folder / "subset5")
    absent = sum(c.series[-1] in "25" for c in candidates)
    text = fault("luna16", folder)
    assert f"{absent} of {len(candidates)} candidates are of 2 scans that are not there" in text
    assert "there are scans of subset 0, 1, 3, 4. Add the others, or give missing='drop'" in text
    table = Table.from_source("luna16", folder, missing="drop")
    assert len(table) == len(candidates) - absent
    assert set(table.groups["subset"]) == set("0134")
    assert "0 of 8 annotated nodules of these scans are hit by no candidate" in table.notes
    for scan in folder.glob("subset*/*.mhd"):
        scan.rename(scan.with_name(f"other{scan.name}"))
    assert "which is all of them. Check that the scans have the names of the column" in fault(
        "luna16", folder, missing="drop"
    )
    shutil.rmtree(folder / "subset0")
    for scan in folder.glob("subset*/*.mhd"):
        scan.unlink()
    assert "expected scans as subset0/SERIESUID.mhd, found none" in fault("luna16", folder)


def test_luna16_lists_all_faults_at_once_by_line(own):
    folder, candidates = own
    wrong_class = next(i for i, c in enumerate(candidates) if c.positive and i > 8)

    def change(rows):
        rows[0][1] = 400.0
        rows[1][3] = "nan"
        rows[2][2] = "x"
        rows[3][4] = 2
        rows[4][0] = ""
        rows.append([*rows[wrong_class][:4], 0])

    edit(folder, candidates, change)
    text = fault("luna16", folder)
    assert "found 6 faults" in text
    assert re.search(
        r"1 candidates outside of their scan: line 2 \(voxel -?\d+\.\d, -?\d+\.\d, \d+\.\d of 44 × 44 × 26\)", text
    )
    assert "2 rows in which coordX, coordY, coordZ and class are not finite numbers: line 3, line 4." in text
    assert "1 candidates whose class is neither 0 nor 1: line 5 (2)." in text
    assert "1 rows without a seriesuid: line 6." in text
    last = len(candidates) + 2
    assert (
        f"1 candidates at the place of another with another class: line {wrong_class + 2} (the place of line {last})"
        in text
    )
    assert candidates[0].series not in text


@pytest.mark.parametrize("past", [0.4, 0.6])
def test_luna16_the_border_of_a_scan_is_that_of_its_voxels(past, own):
    """As the transform has it: half a voxel beyond the outermost centre."""
    folder, candidates = own
    first = next(i for i, c in enumerate(candidates) if c.series.endswith("1"))  # the flipped one
    image = sitk.ReadImage(str(next(folder.glob("subset1/*.mhd"))))
    point = image.TransformContinuousIndexToPhysicalPoint((43 + past, 20.0, -past))
    edit(folder, candidates, lambda rows: rows.__setitem__(first, [rows[first][0], *point, 0]))
    if past > 0.5:
        assert f"line {first + 2} (voxel 43.6, 20.0, -0.6 of 44 × 44 × 26)" in fault("luna16", folder)
        return
    table = Table.from_source("luna16", folder)
    model = medzoo.create("cnn3d_small", size=16)
    how = {"size": (16,) * 3, "orientation": "RAS", "intensity": "window", "window": (-1000.0, 400.0)}
    model.preprocessing = medzoo.Preprocessing(**how, patch=(16.0,) * 3)
    prepared = medzoo.transform(model).prepare(table.image(first), point=table.point(first))
    assert prepared.tensor.shape == (1, 16, 16, 16)


def test_luna16_a_scan_in_two_subsets_or_without_voxels(own):
    folder, candidates = own
    (scan,) = folder.glob("subset0/*.mhd")
    shutil.copy(scan, folder / "subset3")
    name = f"scan {hashlib.sha256(scan.stem.encode()).hexdigest()[:12]}"
    text = fault("luna16", folder)
    assert f"1 scans are there twice: {name} in subset0 and subset3. Remove one of each." in text
    assert scan.stem not in text
    (folder / "subset3" / scan.name).unlink()
    scan.with_suffix(".raw").unlink()
    text = fault("luna16", folder)
    line = min(line for line, c in enumerate(candidates, 2) if c.series == scan.stem)
    assert f"line {line} ({name}: expected its voxels in SERIESUID.raw, found no such file" in text
    assert scan.stem not in text


@pytest.mark.parametrize("suffix", [".mhd", ".raw"])
def test_luna16_links_lead_nowhere_outside(suffix, own, tmp_path):
    folder, _ = own
    (scan,) = folder.glob("subset0/*.mhd")
    file = scan.with_suffix(suffix)
    file.symlink_to(shutil.move(file, tmp_path / f"outside{suffix}"))
    text = fault("luna16", folder)
    problem = "scans with links that lead out of the folder" if suffix == ".mhd" else "scans that cannot be used"
    assert f"1 {problem}, each at its first candidate: line" in text
    assert suffix == ".mhd" or "found a link that leaves it)" in text
    assert scan.stem not in text


def test_luna16_links_inside_of_the_folder_are_followed(own):
    folder, candidates = own
    (scan,) = folder.glob("subset0/*.mhd")
    (folder / "real").mkdir()
    for file in (scan, scan.with_suffix(".raw")):
        target = shutil.move(file, folder / "real" / file.name)
        if file == scan:
            file.symlink_to(target)
    shutil.copy(folder / "real" / scan.with_suffix(".raw").name, scan.parent)
    assert len(Table.from_source("luna16", folder)) == len(candidates)


def test_luna16_duplicates_are_left_out_with_a_note(own):
    folder, candidates = own
    edit(folder, candidates, lambda rows: rows.extend(rows[:3]))
    table = Table.from_source("luna16", folder)
    assert table.ids.tolist() == Table.from_source("luna16", folder, missing="drop").ids.tolist()
    assert len(table) == len(candidates)
    assert "3 candidates that are in the file twice left out" in table.notes


def test_luna16_draws_negatives_by_seed_and_not_by_order(own):
    folder, candidates = own
    positives = sum(c.positive for c in candidates)
    table = Table.from_source("luna16", folder, negatives=1.0, sample_seed=3)
    assert table.targets.sum() == positives
    assert len(table) == 2 * positives
    assert table.prevalence == (pytest.approx(positives / len(candidates)),)
    assert "sample_seed 3" in " ".join(table.notes)
    assert (np.diff(table.lines) > 0).all()
    other = Table.from_source("luna16", folder, negatives=1.0, sample_seed=4)
    assert set(other.ids) != set(table.ids)
    edit(folder, candidates, lambda rows: rows.reverse())
    assert set(Table.from_source("luna16", folder, negatives=1.0, sample_seed=3).ids) == set(table.ids)
    for every in (Table.from_source("luna16", folder), Table.from_source("luna16", folder, negatives=99)):
        assert (len(every), every.prevalence) == (len(candidates), None)
    assert "99 for each positive" in " ".join(every.notes)


def test_luna16_draws_each_negative_as_often_as_another(luna):
    folder, candidates = luna
    counts = dict.fromkeys((i for i, c in enumerate(candidates) if not c.positive), 0)
    for seed in range(100):
        table = Table.from_source("luna16", folder, negatives=0.5, sample_seed=seed)
        for line, target in zip(table.lines.tolist(), table.targets[:, 0], strict=True):
            if not target:
                counts[line - 2] += 1
    expected = round(0.5 * sum(c.positive for c in candidates)) / len(counts)
    deviation = (np.array(list(counts.values())) / 100 - expected) / np.sqrt(expected * (1 - expected) / 100)
    assert np.abs(deviation).max() < 4.5  # standard deviations, of 36 negatives


def test_luna16_the_quick_way_to_read_a_csv_is_that_of_any_other_table(own, monkeypatch):
    folder, _ = own
    path = folder / "candidates_V2.csv"
    quick = Table.from_source("luna16", folder)
    text = path.read_text()
    for other in (
        "\ufeff" + text, text.replace("\n", "\r\n"), text.replace(",", ";"), text + "\n\n", text[:-1],
        "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines()),
    ):  # fmt: skip
        path.write_text(other)
        table = Table.from_source("luna16", folder)
        assert table.ids.tolist() == quick.ids.tolist()
        assert table.lines.tolist() == quick.lines.tolist()
    path.write_text(text + "1.2.3,1,2\n")
    assert f"1 rows with too few fields: line {len(quick) + 2} (3 fields)" in fault("luna16", folder)
    path.write_text(text.replace("coordX", "x"))
    assert "expected the column 'coordX'" in fault("luna16", folder)
    monkeypatch.setattr(luna16_places, "_parse", lambda *_: None)
    path.write_text(text)
    assert Table.from_source("luna16", folder).ids.tolist() == quick.ids.tolist()


def test_luna16_annotations_for_a_curve_of_false_positives(luna, own):
    folder, _ = own
    rows = [["9.9", -100.5, 67.25, -231.0, -1], ["8.8", 1, 2, 3, 12.5]]
    write_rows(folder / "CSVFILES" / "annotations_excluded.csv", NODULE, rows)
    found = luna16_annotations.read_annotations(folder)
    assert len(found) == 14
    assert found.excluded.tolist() == [False] * 12 + [True] * 2
    assert found.series[-2:].tolist() == ["9.9", "8.8"]
    np.testing.assert_array_equal(found.centres[-2:], [[100.5, -67.25, -231.0], [-1, -2, 3]])
    assert found.diameters[-2:].tolist() == [-1, 12.5]
    assert found.diameters[0] == 6
    write_rows(folder / "annotations.csv", NODULE, [rows[0]])
    with pytest.raises(DataError, match=r"1 nodules whose diameter is not above 0 mm: line 2 \(-1\)"):
        luna16_annotations.read_annotations(folder)
    (folder / "annotations.csv").unlink()
    with pytest.raises(DataError, match=r"expected annotations\.csv in it or in a folder below, found none"):
        luna16_annotations.read_annotations(folder)
    assert "annotations.csv is not there" in " ".join(Table.from_source("luna16", folder).notes)


def test_luna16_takes_only_its_options(luna):
    with pytest.raises(ConfigError, match="it does not take sequence\\. It takes missing, negatives, sample_seed"):
        Table.from_source("luna16", luna[0], sequence="FLAIR")


@pytest.mark.slow
def test_luna16_of_full_size(tmp_path):
    """As many rows and scans as the challenge has, of one position each, with headers alone."""
    rng = np.random.default_rng(0)
    names = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{10**29 + i}" for i in range(888)]
    for i, name in enumerate(names):
        folder = tmp_path / f"subset{i % 10}"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.raw").write_bytes(b"0")
        (folder / f"{name}.mhd").write_text(
            "NDims = 3\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -195 -195 -300\nElementSpacing = 0.76 0.76 1.25\n"
            f"DimSize = 512 512 240\nElementType = MET_SHORT\nElementDataFile = {name}.raw\n"
        )
    points, n = np.round(rng.uniform([-190, -190, -299], [190, 190, -5], (754_975, 3)), 2), 754_975
    positive = np.zeros(n, int)
    positive[rng.choice(n, 1557, replace=False)] = 1
    scans = rng.integers(0, 888, n).tolist()
    rows = [(names[i], *point, k) for i, point, k in zip(scans, points.tolist(), positive.tolist(), strict=True)]
    write_rows(tmp_path / "candidates_V2.csv", CANDIDATE, rows)
    table = Table.from_source("luna16", tmp_path, negatives=1.3333)
    assert (len(table), int(table.targets.sum())) == (1557 + 2076, 1557)
    assert table.prevalence == (pytest.approx(1557 / n, rel=1e-4),)


# NSCLC Radiogenomics


@pytest.fixture(scope="module")
def egfr(tmp_path_factory):
    folder = tmp_path_factory.mktemp("egfr")
    return folder, write_egfr(folder)


@pytest.fixture
def cases(egfr, tmp_path):
    """Return a copy to change: its folder, that of the cases, and the table."""
    shutil.copytree(egfr[0], tmp_path / "own")
    (table,) = (tmp_path / "own").glob("NSCLCR01*.csv")
    (images,) = (tmp_path / "own").glob("manifest-*/NSCLC*")
    return tmp_path / "own", images, table


def test_egfr_takes_the_longest_ct_of_each_known_case(egfr):
    folder, centres = egfr
    table = Table.from_source("egfr", folder)
    assert (table.labels, table.task, table.points) == (("EGFR mutant",), "binary", None)
    assert table.patients.tolist() == list(centres)
    assert table.targets[:, 0].tolist() == [1, 0, 0, 1, 0, 0]
    assert table.ids.tolist() == [f"case {hashed(case)} CT" for case in centres]
    for row in range(len(table)):
        files = table.image(row)
        assert {file.parent.name for file in files} == {"3.000000-THORAX 1.0-28595"}
        assert len(files) == 12
    assert table.groups["cohort"].tolist() == ["R01", "AMC"] * 3
    assert {"affiliation", "sex", "smoking", "histology", "age", "manufacturer"} <= set(table.groups)
    assert table.groups["histology"][0] == "Adenocarcinoma"
    notes = " | ".join(table.notes)
    assert "EGFR mutation status is Unknown: 1 | " in notes
    assert "EGFR mutation status is Not collected: 1" in notes
    assert "6 of 6 cases have several CT series: the one with the most slices was taken, 12 to 12" in notes
    assert "a tumour is a few voxels of a complete CT" in notes
    assert medzoo.read(table.image(0)).array.shape == (1, 12, 24, 24)


def test_egfr_points_are_the_centres_of_the_tumours(egfr):
    folder, centres = egfr
    text = fault("egfr", folder, roi="seg")
    assert "1 cases without a segmentation of a CT: line 7. Give missing='drop'" in text
    assert "AMC-005" not in text
    table = Table.from_source("egfr", folder, roi="seg", missing="drop")
    assert len(table) == 5
    np.testing.assert_allclose(table.points, [centres[case] * LPS for case in table.patients.tolist()], atol=1e-6)
    for row in range(5):  # the tumour is brighter than all that surrounds it
        image = medzoo.read(table.image(row))
        at = np.rint(np.linalg.inv(image.affine) @ [*table.points[row], 1])[:3].astype(int)
        assert image.array[(0, *at)] == image.array.max()
    assert "left out, without a segmentation of a CT: 1" in table.notes
    assert "tumours: the longest sides are 20 to 20 mm, median 20; 0 of 5 are longer than 64 mm" in table.notes


def test_egfr_a_segmentation_of_another_frame_or_series_is_not_taken(cases):
    folder, images, _ = cases
    (seg,) = images.glob("R01-000/*/1000*/1-1.dcm")
    ds = pydicom.dcmread(seg)
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
    ds.save_as(seg)  # of a series that is not there, in the same frame of reference
    table = Table.from_source("egfr", folder, roi="seg", missing="drop")
    assert "R01-000" in table.patients
    assert "1 cases have a segmentation that names a series that is not there" in " ".join(table.notes)
    ds.FrameOfReferenceUID = "1.2.4"
    ds.save_as(seg)
    assert "R01-000" not in Table.from_source("egfr", folder, roi="seg", missing="drop").patients
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.70.0.2"
    ds.save_as(seg)  # of the shorter CT, which is then the one to take
    table = Table.from_source("egfr", folder, roi="seg", missing="drop")
    assert table.image(0)[0].parent.name == "2.000000-ABD-12345"


@pytest.mark.parametrize("what", ["junk", "cut", "no modality", "no series"])
def test_egfr_a_damaged_ct_is_a_fault_and_no_other_one_is_taken(what, cases):
    folder, images, _ = cases
    (file,) = images.glob("R01-000/*/3.*/1-001.dcm")
    if what in ("junk", "cut"):
        file.write_bytes(bytes(128) + b"DICM" + b"junk" * 10 if what == "junk" else file.read_bytes()[:150])
    else:
        ds = pydicom.dcmread(file)
        for keyword in ("SeriesInstanceUID",) if what == "no series" else ("Modality", "SOPClassUID"):
            ds[keyword].value = ""
        pydicom.dcmwrite(file, ds)
    for options in ({}, {"roi": "seg", "missing": "drop"}):
        text = fault("egfr", folder, **options)
        assert "1 series that cannot be read: line 2 ('3.000000-THORAX 1.0-28595': 1-001.dcm: expected" in text
        assert "R01-000" not in text
        assert "09-06-1990" not in text


def test_egfr_a_damaged_segmentation_names_no_case(cases):
    folder, images, _ = cases
    (file,) = images.glob("R01-000/*/1000*/1-1.dcm")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    text = fault("egfr", folder, roi="seg", missing="drop")
    assert "1 series that cannot be read: line 2 ('1000.000000-3D Slicer segmentation result-1': 1-1.dcm: " in text
    assert "R01-000" not in text


@pytest.mark.parametrize("whole", [True, False])
def test_egfr_and_mgmt_links_lead_nowhere_outside(whole, cases, tmp_path):
    folder, images, _ = cases
    (tmp_path / "mgmt").mkdir()
    write_mgmt(tmp_path / "mgmt")
    (series,) = images.glob("R01-000/*/3.*")
    (sequence,) = tmp_path.glob("mgmt/*/train/00000/FLAIR")
    for number, (name, root, own) in enumerate((("egfr", folder, series), ("mgmt", tmp_path / "mgmt", sequence))):
        if whole and name == "egfr":
            continue  # links to folders are not followed there
        for moved in [own] if whole else sorted(own.iterdir())[1:2]:
            moved.symlink_to(shutil.move(moved, tmp_path / f"outside {number}"))
        text = fault(name, root)
        assert "1 cases with links that lead out of the folder: line 2. Give a folder that holds their targets" in text


def test_egfr_cases_without_images_are_refused_or_left_out(cases):
    folder, images, _ = cases
    shutil.rmtree(images / "AMC-001")
    for series in images.glob("R01-002/*/*"):
        if "THORAX" in series.name or "ABD-" in series.name:
            shutil.rmtree(series)
    text = fault("egfr", folder)
    assert "1 cases without a folder: line 3." in text
    assert "1 cases without a CT series: line 4." in text
    assert "AMC-001" not in text
    table = Table.from_source("egfr", folder, missing="drop")
    assert table.patients.tolist() == ["R01-000", "AMC-003", "R01-004", "AMC-005"]
    assert {"left out, without a folder: 1", "left out, without a CT series: 1"} <= set(table.notes)


def test_egfr_faults_of_the_table_and_of_the_files(cases):
    folder, images, path = cases
    rows = [egfr_row("R01-000", "Mutated"), egfr_row("AMC-001", "Wildtype"), egfr_row("AMC-001", "Mutant"),
            egfr_row("r01-2", "wildtype"), egfr_row("R01-004", "")]  # fmt: skip
    write_rows(path, EGFR_COLUMNS, rows)
    text = fault("egfr", folder)
    assert "line 2 ('Mutated')" in text
    assert "1 rows with the case of another row: line 4 (the case of line 3)" in text
    assert "1 rows whose Case ID is not R01- or AMC- and three digits: line 5" in text
    write_rows(path, EGFR_COLUMNS, [egfr_row("R01-000", "Mutant"), egfr_row("AMC-001", "WILDTYPE")])
    (images / "AMC-001").rename(images / "R01-900")
    (images / "R01-000").rename(images / "AMC-001")
    (images / "R01-900").rename(images / "R01-000")
    assert "2 cases whose folder has images of another PatientID: line 2, line 3" in fault("egfr", folder)
    path.unlink()
    assert "expected NSCLCR01Radiogenomic_DATA_LABELS*.csv in it or in a folder below, found none" in fault(
        "egfr", folder
    )
    shutil.rmtree(images)
    path.write_text("Case ID,EGFR mutation status\n")
    assert "expected folders of cases such as 'NSCLC Radiogenomics/R01-001', found none" in fault("egfr", folder)
    with pytest.raises(ConfigError, match=r"expected roi 'seg' or None, got 'segs'. Did you mean 'seg'\?"):
        Table.from_source("egfr", folder, roi="segs")


def test_egfr_series_of_two_downloads_and_equal_length(tmp_path):
    images = tmp_path / "manifest-1" / "NSCLC Radiogenomics"
    for i, case in enumerate(("R01-001", "R01-002")):
        write_egfr_case(images, case, i, seg=False)
    again = shutil.copytree(images / "R01-001", tmp_path / "manifest-2" / "NSCLC Radiogenomics" / "R01-001")
    for file in sorted(again.glob("*/3.*/*"))[4:]:
        file.unlink()  # the second download broke off
    equal = np.zeros((12, 24, 24), np.uint16)
    write_series(images / "R01-002" / "s" / "9.0-X-1", equal, uid="1.9", frame="1.8", patient="R01-002", number=1)
    (images / "R01-001" / "LICENSE").write_text("terms")
    write_rows(
        tmp_path / "NSCLCR01Radiogenomic_DATA_LABELS_2018.csv", EGFR_COLUMNS,
        [egfr_row("R01-001", "Mutant"), egfr_row("R01-002", "Wildtype")],
    )  # fmt: skip
    table = Table.from_source("egfr", tmp_path)
    assert len(table.image(0)) == 12
    assert table.image(1)[0].parent.name == "9.0-X-1"  # by number
    assert "1 cases have several CT series of as many slices: the first by number was taken" in table.notes


def scan_and_masks(folder):
    """Write a small series, and return its files and an empty mask in their order."""
    files = write_series(
        folder / "ct", np.zeros((10, 20, 16), np.uint16), uid="1.5", frame="1.4", patient="A",
        ImageOrientationPatient=[0.0, 1.0, 0.0, 0.0, 0.0, -1.0],  # sagittal: columns to the back, rows to the feet
    )  # fmt: skip
    for i, file in enumerate(files):
        ds = pydicom.dcmread(file)
        ds.ImagePositionPatient = [10.0 + 5 * i, -20.0, 50.0]
        ds.save_as(file)
    return files, np.zeros((10, 20, 16), bool)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_a_segmentation_in_another_plane_has_its_box(kind, tmp_path):
    files, mask = scan_and_masks(tmp_path)
    mask[3:6, 4:9, 2:4] = True
    mask[4, 12, 2] = True
    values = mask.astype(float)
    if kind == "FRACTIONAL":
        values[0, 0, 0] = 0.4  # under one half
    region = region_of_mask(write_seg(tmp_path / "seg.dcm", files, [values], ["Tumor"], kind))
    # x by slices of 5 mm, y by columns of 4 mm, z by rows of -4 mm; LPS to RAS.
    np.testing.assert_allclose(region.centre, [-(10 + 5 * 4), -(-20 + 4 * 2.5), 50 - 4 * 8], atol=1e-6)
    np.testing.assert_allclose(region.sides, [2 * 4, 9 * 4, 3 * 5])


def test_a_segmentation_of_several_segments_needs_one_tumour(tmp_path):
    files, mask = scan_and_masks(tmp_path)
    lung, tumour, empty = mask.copy(), mask.copy(), mask
    lung[:] = True
    tumour[2:4, 3:5, 6:9] = True
    lung &= ~tumour
    alone = region_of_mask(write_seg(tmp_path / "a.dcm", files, [tumour], ["Something"]))
    both = write_seg(tmp_path / "b.dcm", files, [lung, tumour], ["Lung", "Tumor 1"])
    assert region_of_mask(both) == alone
    assert (
        region_of_mask(write_seg(tmp_path / "map.dcm", files, [lung, tumour], ["Lung", "Tumor"], "LABELMAP")) == alone
    )
    with pytest.raises(DataError, match="found 2 segments of which 2 are"):
        region_of_mask(write_seg(tmp_path / "c.dcm", files, [lung, tumour], ["Tumor 1", "Tumor 2"]))
    with pytest.raises(DataError, match="found 2 segments of which 0 are"):
        region_of_mask(write_seg(tmp_path / "d.dcm", files, [lung, tumour], ["Lung", "Liver"]))
    ds = pydicom.dcmread(both)
    ds.PixelData = bytes(len(ds.PixelData))
    ds.save_as(tmp_path / "e.dcm")
    with pytest.raises(DataError, match="expected a segment with marked pixels, found none"):
        region_of_mask(tmp_path / "e.dcm")
    assert not empty.any()


# Regions of a table of one's own


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, 1, -1)])
def test_the_box_of_a_mask_in_any_orientation(flips, tmp_path):
    affine = np.diag([*np.array(flips) * (0.7, 0.8, 2.5), 1.0])
    affine[:3, 3] = (5, -6, 7)
    mask = np.zeros((20, 22, 12), np.uint8)
    mask[3:8, 10:12, 4:9] = 255
    region = region_of_mask(write_nifti(tmp_path / "m.nii.gz", mask, affine))
    np.testing.assert_allclose(region.centre, nibabel.affines.apply_affine(affine, [5, 10.5, 6]), atol=1e-5)
    np.testing.assert_allclose(region.sides, [5 * 0.7, 2 * 0.8, 5 * 2.5], atol=1e-5)
    image = sitk.ReadImage(str(tmp_path / "m.nii.gz"))
    sitk.WriteImage(image, str(tmp_path / "m.mhd"))
    np.testing.assert_allclose(region_of_mask(tmp_path / "m.mhd").centre, region.centre, atol=1e-5)


def table_of_regions(folder, cells):
    volume = np.zeros((8, 8, 8), np.int16)
    for i in range(len(cells)):
        write_nifti(folder / f"{i}.nii.gz", volume + i)
    rows = [(f"{i}.nii.gz", i % 2, f"p{i}", cell) for i, cell in enumerate(cells)]
    return write_rows(folder / "t.csv", ("path", "label", "patient", "seg"), rows)


def test_a_table_takes_masks_and_boxes_as_points(tmp_path):
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[2:5, 1, 3:5] = 1
    write_nifti(tmp_path / "masks.nii.gz", mask)
    path = table_of_regions(tmp_path, ["masks.nii.gz", "10 20 -30, 30 40 -20", "masks.nii.gz"])
    table = Table.from_csv(path, patient="patient", roi="seg")
    centre = [3 * 0.7, 0.8, 3.5 * 2.5]
    np.testing.assert_allclose(table.points, [centre, [-20, -30, -25], centre], atol=1e-5)
    assert table.ids[0] == "0.nii.gz @ masks.nii.gz"
    assert "seg" not in table.groups
    assert "regions: the longest sides are 5 to 20 mm" in " ".join(table.notes)
    assert Table.from_csv(path, patient="patient", roi="seg", points_frame="RAS").points[1].tolist() == [20, 30, -25]
    without = Table.from_csv(path, patient="patient", roi="seg", images=False)
    assert (without.points, without.ids.tolist()) == (None, table.ids.tolist())
    with pytest.raises(ConfigError, match="expected point or roi, got both"):
        Table.from_csv(path, roi="seg", point=("a", "b", "c"))
    with pytest.raises(DataError, match=r"expected the column 'segs' \(roi=\).*Did you mean 'seg'"):
        Table.from_csv(path, roi="segs")


def test_a_table_lists_all_regions_that_cannot_be_used(tmp_path):
    blank, two = np.zeros((8, 8, 8), np.uint8), np.zeros((8, 8, 8), np.uint8)
    two[0], two[3] = 1, 2
    write_nifti(tmp_path / "blank.nii", blank)
    write_nifti(tmp_path / "two.nii", two)
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(b"\0" * 100)[:40])
    cells = ["1 2 3", "blank.nii", "two.nii", "", "gone.nii", "1 2 3 4 5 inf", "cut.nii.gz"]
    with pytest.raises(DataError) as error:
        Table.from_csv(table_of_regions(tmp_path, cells), roi="seg")
    text = str(error.value)
    assert "found 7 faults" in text
    assert "3 regions in 'seg' that are neither a path nor six finite numbers: line 2 ('1 2 3'), line 5 (blank)" in text
    assert "expected a mask with voxels above 0, found none" in text
    assert "expected a mask of 0 and one other value, found values from 1 to 2" in text
    assert "1 masks that do not exist: line 6 ('gone.nii')" in text
    assert "cut.nii.gz" in text


def test_a_box_is_read_however_it_is_written():
    for text in ("1 2 3 5 6 7", "[1, 2, 3, 5, 6, 7]", "1;2;3;5;6;7", " 5 6 7 1 2 3 "):
        assert region_of_box(text, "RAS").centre == (3, 4, 5)
    assert region_of_box("masks/a.nii.gz", "RAS") is None


# RSNA-MICCAI MGMT


@pytest.fixture
def mgmt(tmp_path):
    write_mgmt(tmp_path)
    (labels,) = tmp_path.rglob("train_labels.csv")
    return tmp_path, labels


def test_mgmt_reads_one_sequence_in_the_order_of_positions(mgmt):
    folder, _ = mgmt
    table = Table.from_source("mgmt", folder)
    assert (table.labels, table.task) == (("MGMT methylated",), "binary")
    assert table.patients.tolist() == ["00000", "00002", "00009", "01010"]
    assert "every row has another patient" not in " ".join(table.notes), "the set has one case for each patient"
    assert table.targets[:, 0].tolist() == [0, 1, 0, 0]
    assert table.ids.tolist() == [f"case {hashed(case)} FLAIR" for case in table.patients.tolist()]
    assert [file.name for file in table.image(0)] == [f"Image-{n}.dcm" for n in range(5, 18, 2)]
    assert "3 cases left out, as the organisers advise (00109, 00123, 00709)" in " ".join(table.notes)
    brightest = medzoo.read(table.image(0)).array[0].max((1, 2))
    assert brightest[0] == brightest[-1] == 0
    assert all(50 * k <= value < 100 * k for k, value in enumerate(brightest[1:-1].tolist(), 1))
    assert Table.from_source("mgmt", folder, sequence="T1w").image(0)[0].parent.name == "T1w"
    with pytest.raises(ConfigError, match=r"got 'T1wC'\. Did you mean 'T1wCE'\?"):
        Table.from_source("mgmt", folder, sequence="T1wC")


def test_mgmt_opens_no_image(mgmt):
    folder, _ = mgmt
    for file in folder.rglob("Image-*.dcm"):
        file.write_bytes(b"not an image")
    assert len(Table.from_source("mgmt", folder)) == 4


def test_mgmt_cases_without_images_are_refused_or_left_out(mgmt):
    folder, labels = mgmt
    shutil.rmtree(labels.parent / "train" / "00002")
    for file in (labels.parent / "train" / "01010" / "FLAIR").iterdir():
        file.unlink()
    assert "2 cases without images of FLAIR: line 3, line 8. Looked in" in fault("mgmt", folder)
    assert "00002" not in fault("mgmt", folder)
    table = Table.from_source("mgmt", folder, missing="drop")
    assert table.patients.tolist() == ["00000", "00009"]
    assert "2 cases without images of FLAIR left out" in table.notes
    next((labels.parent / "train" / "00000" / "FLAIR").iterdir()).write_bytes(b"")
    assert "1 cases with empty files (0 bytes): line 2" in fault("mgmt", folder, missing="drop")


def test_mgmt_ids_are_text_of_five_digits(mgmt):
    folder, labels = mgmt
    labels.write_text(re.sub(r"(?m)^0+(?=\d)", "", labels.read_text()))  # as a spreadsheet leaves them
    assert "\n9,0\n" in labels.read_text()
    table = Table.from_source("mgmt", folder)
    assert table.patients.tolist() == ["00000", "00002", "00009", "01010"]
    assert "7 ids had lost zeros in front, as in a spreadsheet, which were put back" in " ".join(table.notes)
    labels.write_text("BraTS21ID,MGMT_value\n9,0\n00009,1\n2.0,1\n00000,2\n")
    text = fault("mgmt", folder)
    assert "1 rows with the id of another row: line 3 (the id of line 2)" in text
    assert (
        "1 rows whose BraTS21ID is not five digits: line 4. Copy the file again from its source. A spreadsheet" in text
    )


def test_mgmt_folders_that_lost_zeros_are_said_to_have(mgmt):
    folder, labels = mgmt
    for case in ("00009", "00000"):
        (labels.parent / "train" / case).rename(labels.parent / "train" / str(int(case)))
    text = fault("mgmt", folder, missing="drop")
    assert "named by ids of five digits, such as train/00000/FLAIR, found 2 with fewer digits" in text
    assert "put the zeros back, as 00012 for 12" in text


def test_mgmt_layouts_that_are_others(mgmt, tmp_path):
    folder, labels = mgmt
    copy = labels.parent / "train" / "train" / "00009"
    shutil.copytree(labels.parent / "train" / "00009", copy)
    text = fault("mgmt", folder)
    where = f"case {hashed('00009')} in {labels.parent.name}/train and {labels.parent.name}/train/train"
    assert f"expected each case once, found 1 twice: {where}. Remove one." in text
    assert "00009" not in text
    shutil.rmtree(copy.parent)
    shutil.copytree(labels.parent / "train" / "00002", labels.parent / "train" / "00003")
    assert "1 cases without a label left out" in Table.from_source("mgmt", folder).notes
    assert len(Table.from_source("mgmt", labels.parent)) == 4
    labels.rename(labels.with_name("labels.csv"))
    assert "expected train_labels.csv in it or in a folder below, found none" in fault("mgmt", folder)
    labels.with_name("labels.csv").rename(labels)
    shutil.rmtree(labels.parent / "train")
    assert "expected folders of cases such as train/00000/FLAIR, found none" in fault("mgmt", folder)
