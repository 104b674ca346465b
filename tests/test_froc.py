"""FROC and CPM: against cases computed by hand, a plain loop over the rules, and a run on the layout of LUNA16."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from published_3d import CANDIDATE, write_luna16, write_rows

import medzoo
from medzoo.cli.main import main
from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.froc import RATES, Froc, froc_curve, match_marks
from medzoo.evaluation.froc_run import FrocReport
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.run_record import POINT

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*does not have many workers", "ignore:.*log_"),
    pytest.mark.filterwarnings("ignore:.*predicts one class"),  # after one epoch on so few rows
]
NAMES = ("scans", "scores", "centres", "nodule_scans", "nodule_centres", "diameters", "excluded", "n_scans")


def along(*xs):
    """Return places on a line."""
    return np.array([[x, 0.0, 0.0] for x in xs])


def case(marks, findings, n_scans):
    """Return the arguments: marks are (scan, score, x), findings (scan, x, diameter, excluded)."""
    scans, scores, xs = (np.array(each) for each in zip(*marks, strict=True))
    nodule_scans, nodule_xs, diameters, excluded = (np.array(each) for each in zip(*findings, strict=True))
    values = scans, scores.astype(float), along(*xs), nodule_scans, along(*nodule_xs), diameters.astype(float)
    return dict(zip(NAMES, (*values, excluded.astype(bool), n_scans), strict=True))


def by_threshold(given, most=None):
    """Return false positives per scan, sensitivity and scan of every hit and false positive, by a plain loop."""
    g, hits, false, ignored, again = given, [], [], 0, 0
    for scan in range(g["n_scans"]):
        marks = [i for i in range(len(g["scans"])) if g["scans"][i] == scan]
        if most is not None and len(marks) > most:
            limit = sorted((g["scores"][i] for i in marks), reverse=True)[most]
            marks = [i for i in marks if g["scores"][i] > limit]
        right, near = set(), set()
        for j in range(len(g["nodule_scans"])):
            if g["nodule_scans"][j] != scan:
                continue
            diameter = 10.0 if g["diameters"][j] < 0 else g["diameters"][j]
            own = [
                i for i in marks
                if sum((a - b) ** 2 for a, b in zip(g["centres"][i], g["nodule_centres"][j], strict=True)) ** 0.5
                < diameter / 2
            ]  # fmt: skip
            if g["excluded"][j]:
                near |= set(own)
            elif own:
                right |= set(own)
                again += len(own) - 1
                hits.append((scan, max(g["scores"][i] for i in own)))
        false += [(scan, g["scores"][i]) for i in marks if i not in right | near]
        ignored += len(near - right)
    return hits, false, ignored, again


def points(hits, false, nodules, n_scans, draws=None):
    """Return the curve at every threshold, with each scan as often as it was drawn."""
    times = np.ones(n_scans) if draws is None else draws
    levels = sorted({score for _, score in [*hits, *false]}, reverse=True)
    curve = [(0.0, 0.0)]
    for level in levels:
        found = sum(times[scan] for scan, score in hits if score >= level)
        wrong = sum(times[scan] for scan, score in false if score >= level)
        curve.append((wrong / times.sum(), found / (nodules @ times)))
    return np.array(curve).T


def included(given):
    return np.bincount(given["nodule_scans"][~given["excluded"]], minlength=given["n_scans"])


def drawn(seed):
    """Return random marks and findings: overlapping, excluded, of unknown size, tied, and scans without any."""
    rng = np.random.default_rng(seed)
    n_scans, m, n = 14, int(rng.integers(1, 25)), int(rng.integers(0, 150))
    nodule_scans = rng.integers(0, n_scans - 2, m)
    nodule_centres = rng.uniform(0, 40, (m, 3))
    excluded = rng.random(m) < 0.3
    excluded[0] = False
    at = rng.integers(0, m, n)
    near = rng.random(n) < 0.5
    centres = np.where(near[:, None], nodule_centres[at] + rng.normal(0, 3, (n, 3)), rng.uniform(0, 40, (n, 3)))
    scans = np.where(near, nodule_scans[at], rng.integers(0, n_scans, n))
    scores = rng.integers(0, 30, n) / 10 + near if rng.random() < 0.5 else rng.normal(size=n) + near
    diameters = np.where(excluded & (rng.random(m) < 0.5), -1.0, rng.uniform(4, 16, m))
    values = scans, scores, centres, nodule_scans, nodule_centres, diameters, excluded, n_scans
    return dict(zip(NAMES, values, strict=True))


def test_by_hand():
    """Four scans. Nodules: A hit by 0.9 and 0.8, B by 0.4, C missed. False: 0.7, 0.5 and 0.3; 0.6 is on an excluded."""
    given = case(
        marks=[(0, 0.9, 1), (0, 0.8, -1), (0, 0.7, 30), (1, 0.6, 50), (1, 0.5, 70), (2, 0.4, 2.9), (3, 0.3, 0)],
        findings=[(0, 0, 6, False), (1, 51, -1, True), (2, 0, 6, False), (2, 90, 6, False)],
        n_scans=4,
    )
    found = froc_curve(**given, resamples=20)
    assert (found.scans, found.nodules, found.hit, found.candidates) == (4, 3, 2, 7)
    assert (found.false_positives, found.on_excluded, found.again, found.over) == (3, 1, 1, 0)
    # After 0.9: no false positive, 1 of 3. After 0.7 and 0.5: 2 in 4 scans. After 0.4: 2 of 3. After 0.3: 3 in 4.
    assert np.interp([0.0, 0.2, 0.49, 0.5, 0.6, 0.75], *found.curve) == pytest.approx([1 / 3] * 3 + [2 / 3] * 3)
    assert [e.value for e in found.sensitivities] == pytest.approx([1 / 3] * 2 + [2 / 3] * 5)
    assert found.cpm.value == pytest.approx((2 / 3 + 10 / 3) / 7)
    assert found.cpm.low is None
    assert found.cpm.why == "under 10 scans"


def test_a_slope_between_thresholds_is_interpolated():
    """A tie of a hit and a false positive is one step of both: half of it is on the way."""
    given = case([(0, 1.0, 0), (1, 1.0, 50)], [(0, 0, 6, False), (1, 0, 6, False)], 2)
    found = froc_curve(**given, rates=(0.25, 0.5, 1.0), resamples=5)
    assert [e.value for e in found.sensitivities] == pytest.approx([0.25, 0.5, 0.5])


def test_edges_of_the_rules():
    at_the_radius = match_marks(**case([(0, 1.0, 3)], [(0, 0, 6, False)], 1))
    assert not at_the_radius.hit.any(), "within the radius, not on it"
    both = match_marks(**case([(0, 1.0, 2)], [(0, 0, 6, False), (0, 4, 6, False)], 1))
    assert both.hit.tolist() == [True, True], "a mark in two nodules hits both"
    beside = match_marks(**case([(0, 1.0, 2)], [(0, 0, 6, False), (0, 4, 6, True)], 1))
    assert beside.hit.tolist() == [True], "a hit counts on an excluded finding too"
    assert beside.on_excluded == 0
    unknown = match_marks(**case([(0, 1.0, 4.9), (0, 1.0, 5.1)], [(0, 0, -1, True), (0, 99, 1, False)], 1))
    assert (unknown.on_excluded, len(unknown.scores)) == (1, 1), "10 mm where the diameter is not known"
    elsewhere = match_marks(**case([(1, 1.0, 0)], [(0, 0, 6, False)], 2))
    assert elsewhere.hit.tolist() == [False], "of another scan"


def test_the_most_marks_of_a_scan():
    marks = [(0, score, 90.0 + i) for i, score in enumerate((0.9, 0.8, 0.8, 0.7))] + [(1, 0.1, 50.0)]
    given = case(marks, [(0, 0, 6, False)], 2)
    assert match_marks(**given, most=3).scores.tolist() == [0.9, 0.8, 0.8, 0.1]
    assert match_marks(**given, most=2).scores.tolist() == [0.9, 0.1], "the first beyond has the same score as another"
    assert match_marks(**given, most=None).over == 0
    assert match_marks(**given, most=2).over == 3


@pytest.mark.parametrize("seed", range(25))
def test_a_plain_loop_gives_the_same(seed):
    given = drawn(seed)
    most = (None, 4, 100)[seed % 3]
    hits, false, ignored, again = by_threshold(given, most)
    found = froc_curve(**given, most=most, resamples=20, seed=seed)
    nodules = included(given)
    assert (found.hit, found.false_positives) == (len(hits), len(false))
    assert (found.on_excluded, found.again, found.nodules) == (ignored, again, int(nodules.sum()))
    x, y = points(hits, false, nodules, given["n_scans"])
    grid = np.r_[0.011:15:0.0317, RATES]  # beside the steps, where a curve has two values
    assert np.interp(grid, *found.curve) == pytest.approx(np.interp(grid, x, y))
    assert found.cpm.value == pytest.approx(np.interp(RATES, x, y).mean())


def test_the_intervals_are_of_drawn_scans():
    given = drawn(3)
    hits, false, *_ = by_threshold(given, 100)
    found, nodules = froc_curve(**given, resamples=100, seed=5), included(given)
    draws = Resamples(np.arange(given["n_scans"]), 100, 5).weights(range(100))
    every = np.array([np.interp(RATES, *points(hits, false, nodules, given["n_scans"], w)) for w in draws.T])
    for i, e in enumerate(found.sensitivities):
        if e.low is None:
            assert np.ptp(every[:, i]) == 0
            continue
        assert (e.low, e.high) == pytest.approx(tuple(np.percentile(every[:, i], [2.5, 97.5])))
        assert e.method == "bootstrap over scans"
    assert found.sensitivities[4].low is not None
    assert (found.cpm.low, found.cpm.high) == pytest.approx(tuple(np.percentile(every.mean(1), [2.5, 97.5])))
    assert found.cpm.low < found.cpm.value < found.cpm.high
    rates, low, high = found.band
    assert low[np.searchsorted(rates, 2.0)] == pytest.approx(found.sensitivities[4].low)
    assert (low <= high).all()
    again = froc_curve(**given, resamples=100, seed=5)
    assert again.to_dict() == found.to_dict()
    assert froc_curve(**given, resamples=100, seed=6).cpm != found.cpm


def test_no_marks_and_perfect_marks():
    none = drawn(0)
    for name in ("scans", "scores", "centres"):
        none[name] = none[name][:0]
    found = froc_curve(**none, resamples=10)
    assert found.cpm.value == 0
    assert found.hit == 0
    centres = none["nodule_centres"][~none["excluded"]]
    scans = none["nodule_scans"][~none["excluded"]]
    none |= {"scans": scans, "scores": np.arange(len(centres)) / 1, "centres": centres}
    perfect = froc_curve(**none, resamples=10)
    assert (perfect.cpm.value, perfect.false_positives) == (1, 0)
    assert perfect.cpm.why == "the same in every resample"


def test_what_cannot_be_is_refused():
    given = drawn(1)
    for name, wrong, match in (
        ("scores", given["scores"][:-1], r"expected scores of shape \(\d+,\), got"),
        ("centres", given["centres"][:, :2], r"expected centres of shape \(\d+, 3\)"),
        ("scans", given["scans"] + 1, "expected scans from 0 to 13"),
        ("nodule_scans", given["nodule_scans"] - 14, "expected nodule_scans from 0"),
        ("rates", (0.0,), "expected rates above 0"),
        ("most", 0, "expected most to be an int >= 1 or None"),
    ):
        with pytest.raises(ConfigError, match=match):
            froc_curve(**given | {name: wrong})
    for name, match in (("scores", "finite scores"), ("centres", "finite centres")):
        with pytest.raises(DataError, match=match):
            froc_curve(**given | {name: np.full_like(given[name], np.nan)})
    with pytest.raises(DataError, match="expected nodules in the 14 scans, found none"):
        froc_curve(**given | {"excluded": np.ones_like(given["excluded"])})


# A run on the published layout


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDZOO_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def luna(tmp_path_factory):
    """Return the folder of ten small scans, and an excluded finding at a negative candidate of each."""
    folder = tmp_path_factory.mktemp("luna16")
    candidates = write_luna16(folder, scans=10, negatives=4)
    found = {c.series: c for c in candidates if not c.positive}
    header = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
    write_rows(folder / "annotations_excluded.csv", header, [(c.series, *c.point, -1) for c in found.values()])
    return folder


@pytest.fixture(scope="module")
def run(home, luna, tmp_path_factory):
    """Return a run of the recipe with a small model, of one negative for each positive."""
    recipe = medzoo.Recipe.load("luna16").with_(**{
        "model": {"name": "cnn3d_small", "pretrained": False,
                  "options": dict(medzoo.describe("cnn3d_small").tiny)},
        "data.size": [16, 16, 16], "data.patch": [16, 16, 16], "data.cache": "memory", "data.negatives": 0.5,
        "split.shares": [0.4, 0.3, 0.3], "train.epochs": 1, "train.batch": 4, "train.threads": 1,
        "train.device": "cpu",
    })  # fmt: skip
    return medzoo.train(recipe, luna, to=tmp_path_factory.mktemp("runs") / "nodules")


def parts_of(run, part):
    with (run.folder / "data" / "table.csv").open(newline="") as file:
        return {row["medzoo:patient"] for row in csv.DictReader(file) if row["medzoo:part"] == part}


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_on_all_candidates_of_its_test_part(run, luna):
    from medzoo.data.identity import pseudonym

    report = medzoo.froc(run, luna, resamples=50)
    assert report.part == "test"
    wanted = parts_of(run, "test")
    names = sorted(path.stem for path in luna.rglob("*.mhd") if pseudonym(path.stem) in wanted)
    assert report.curve.scans == len(names) == len(wanted)
    marks, findings = [], []
    for number, name in enumerate(names):
        own = [row for row in rows_of(luna / "candidates_V2.csv") if row["seriesuid"] == name]
        at = [tuple(float(row[f"coord{axis}"]) for axis in "XYZ") for row in own]
        results = medzoo.predict(run.model, next(luna.rglob(f"{name}.mhd")), points=at)
        marks += [(number, r.logits["nodule"], point) for r, point in zip(results, at, strict=True)]
        for file, excluded in (("annotations.csv", False), ("annotations_excluded.csv", True)):
            findings += [
                (number, [float(row[f"coord{axis}"]) for axis in "XYZ"], float(row["diameter_mm"]), excluded)
                for row in rows_of(luna / file) if row["seriesuid"] == name
            ]  # fmt: skip
    values = [np.array(each) for each in (*zip(*marks, strict=True), *zip(*findings, strict=True))]
    given = dict(zip(NAMES, (*values, len(names)), strict=True))
    hits, false, ignored, _ = by_threshold(given)
    assert (report.curve.hit, report.curve.false_positives) == (len(hits), len(false))
    assert report.curve.on_excluded == ignored == len(names)
    x, y = points(hits, false, included(given), len(names))
    assert report.curve.cpm.value == pytest.approx(np.interp(RATES, x, y).mean(), abs=1e-6)
    assert report.curve.candidates == len(marks), "not sampled"


def test_what_is_written(run, luna, tmp_path):
    result = CliRunner().invoke(
        main, ["froc", str(run.folder), "--data", str(luna), "--to", str(tmp_path / "f"), "--resamples", "100"]
    )
    assert result.exit_code == 0, result.output
    assert "CPM, their mean: " in result.output
    figures = json.loads((tmp_path / "f" / "froc.json").read_text())
    assert figures["part"] == "test"
    assert figures["openings"] >= 1
    assert [row["false_positives_per_scan"] for row in figures["sensitivities"]] == list(RATES)
    rows = rows_of(tmp_path / "f" / "froc.csv")
    assert float(rows[-1]["sensitivity"]) == pytest.approx(figures["curve"]["sensitivity"][-1], abs=1e-6)
    assert (tmp_path / "f" / "froc.png").read_bytes().startswith(b"\x89PNG")
    for path in luna.rglob("*.mhd"):
        assert path.stem not in json.dumps(figures)
        assert path.stem not in result.output


def test_other_parts_models_and_folders(run, luna, tmp_path):
    valid = medzoo.froc(run, luna, part="valid", resamples=20)
    assert valid.curve.scans == len(parts_of(run, "valid"))
    assert valid.opened is None
    assert "The training was watched" in valid.summary()
    everything = medzoo.froc(run.model, luna, resamples=20)
    assert everything.curve.scans == 10
    assert "are not known" in everything.summary()
    assert everything.curve.nodules - everything.curve.hit == 1, "the last nodule has no candidate"
    with pytest.raises(ConfigError, match="part is of a run"):
        medzoo.froc(run.model, luna, part="test")
    other = tmp_path / "other"
    write_luna16(other, scans=1)
    with pytest.raises(DataError, match=r"\d of the 3 scans of the test part of nodules are not there"):
        medzoo.froc(run, other, missing="drop" if len(parts_of(run, "test")) > 9 else "refuse")
    (other / "annotations.csv").unlink()
    with pytest.raises(DataError, match=r"expected annotations\.csv"):
        medzoo.froc(run, other)
    fault = CliRunner().invoke(main, ["froc", str(run.folder), "--data", str(other), "--to", str(tmp_path / "g")])
    assert fault.exit_code != 0
    assert "Traceback" not in fault.output


def test_what_is_no_run_of_candidates_is_refused_before_a_scan_is_read(run, luna, tmp_path):
    model = medzoo.create("cnn3d_small", labels=["mass"], **medzoo.describe("cnn3d_small").tiny)
    with pytest.raises(ConfigError, match=r"expected a model of candidates with the output 'nodule'.*has mass"):
        medzoo.froc(model, luna)
    whole = tmp_path / "whole"
    shutil.copytree(run.folder, whole)
    path = whole / "data" / "table.csv"
    rows = [{name: cell for name, cell in row.items() if name != POINT} for row in rows_of(path)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ConfigError, match="expected a run of candidates at points in scans"):
        medzoo.froc(whole, luna)
    with pytest.raises(ConfigError, match=r"annotations\.csv: expected the folder of LUNA16, got a file"):
        medzoo.froc(run, luna / "annotations.csv")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    arguments = ["froc", str(run.folder), "--data", str(luna), "--to", str(tmp_path / "mine")]
    refused = CliRunner().invoke(main, arguments)
    assert (refused.exit_code, "holds something else" in refused.output) == (2, True)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_note_does_not_change_the_name_of_a_file():
    notes = ("annotations_excluded.csv is not there", "the scans")
    report = FrocReport("m", froc_curve(**drawn(2), resamples=20), "", notes)
    assert "Note: annotations_excluded.csv is" in report.summary()
    assert "Note: The scans." in report.summary()


def test_scans_without_a_candidate_count_or_are_said_to_be_left_out(run, luna, tmp_path):
    """Two nodules of a scan of which the file has no candidate are missed at every rate."""
    candidates = write_luna16(tmp_path, scans=11, negatives=4)
    (tmp_path / "subset10").rename(tmp_path / "subset9" / "more")  # there are ten subsets
    last = sorted(path.stem for path in tmp_path.rglob("*.mhd"))[-1]
    rest = [(c.series, *c.point, c.positive) for c in candidates if c.series != last]
    write_rows(tmp_path / "candidates_V2.csv", CANDIDATE, rest)
    nodules = rows_of(tmp_path / "annotations.csv")
    assert sum(row["seriesuid"] == last for row in nodules) == 2
    found = medzoo.froc(run.model, tmp_path, resamples=20)
    assert (found.curve.scans, found.curve.nodules, found.curve.candidates) == (11, len(nodules), len(rest))
    assert found.curve.nodules - found.curve.hit == 2
    assert any("no candidate is in 1 scan with 2 nodules" in note for note in found.notes)
    part = medzoo.froc(run, tmp_path, resamples=20)
    assert part.curve.scans == len(parts_of(run, "test"))
    assert any(
        "left out, as none of their candidates was drawn, so that they are in no part of the run: 1 scan with 2 "
        "nodules of the folder; without any candidate: 1" in note for note in part.notes
    )  # fmt: skip
    assert not any("no part of the run" in note for note in medzoo.froc(run, luna, resamples=20).notes)


def test_it_prints():
    found = froc_curve(**drawn(2), resamples=20)
    assert isinstance(found, Froc)
    assert "sensitivity at 0.125 false positives per scan: " in str(found)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["scans"] == 14
