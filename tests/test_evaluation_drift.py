"""How data differs from the training data: figures of pixels, prevalence and columns."""

from __future__ import annotations

import json

import numpy as np
import pytest

import medzoo
from medzoo.data.pixels import PixelStore
from medzoo.data.table import Table
from medzoo.evaluation.drift import compare_data, describe_data
from medzoo.evaluation.pixel_summary import PixelSummary, summarise_pixels
from medzoo.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def transform():
    return medzoo.transform(medzoo.create("xray_cnn", size=32, widths=(4, 4, 8, 8), hidden=8, num_classes=1))


def table_of(images, groups=None, labels=None, patients=None):
    n = len(images)
    given = labels if labels is not None else [i % 2 for i in range(n)]
    return Table.from_arrays(np.asarray(images, np.uint8), given, groups=groups, patients=patients)


def noise(n, low=0, high=256, seed=0):
    return np.random.default_rng(seed).integers(low, high, (n, 32, 32))


def store(images, transform, **options):
    return PixelStore(table_of(images), transform, **{"cache": "memory"} | options)


def test_figures_are_those_of_a_plain_loop(transform):
    pixels = store(noise(7), transform)
    found = summarise_pixels(pixels, range(1, 6))
    each = [pixels.read(row).numpy()[0] for row in range(1, 6)]
    expected = {
        "mean": [x.mean() for x in each],
        "standard deviation": [x.std() for x in each],
        "percentile 1": [np.percentile(x, 1) for x in each],
        "median": [np.median(x) for x in each],
        "percentile 99": [np.percentile(x, 99) for x in each],
        "share of zeros": [(x == 0).mean() for x in each],
        "sharpness": [(np.abs(x[1:] - x[:-1]).mean() + np.abs(x[:, 1:] - x[:, :-1]).mean()) / 2 for x in each],
    }
    assert found.images == 5
    assert list(found.figures) == list(expected)
    for name, values in expected.items():
        assert found.figures[name] == pytest.approx((np.mean(values), np.std(values)), abs=1e-6), name
    assert PixelSummary.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_the_draw_follows_from_the_seed(transform):
    pixels = store(noise(40), transform)
    assert summarise_pixels(pixels, range(40), limit=10) == summarise_pixels(pixels, range(40), limit=10)
    assert summarise_pixels(pixels, range(40), limit=10) != summarise_pixels(pixels, range(40), limit=10, seed=1)
    assert summarise_pixels(pixels, range(40), limit=10).images == 10
    assert summarise_pixels(pixels, []) == PixelSummary(0, {})


def test_images_without_a_cache_are_read_less_often(transform):
    assert summarise_pixels(store(noise(60), transform, cache="off"), range(60)).images == 50


def test_dropped_images_are_left_out(transform, tmp_path):
    from PIL import Image

    for i, image in enumerate(noise(3)):
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "t.csv").write_text("path,label\n0.png,0\n1.png,1\n2.png,1\n")
    pixels = PixelStore(Table.from_csv(tmp_path / "t.csv"), transform, cache="memory", unreadable="drop")
    assert summarise_pixels(pixels, range(3)).images == 2


def describe(pixels):
    return describe_data(pixels.table, summarise_pixels(pixels, range(len(pixels.table))))


def test_brighter_and_smoother_images_are_found(transform):
    train = noise(60) // 2
    bright = noise(60, seed=1) // 2 + 60
    smooth = np.repeat(np.repeat(noise(60, seed=2)[:, ::2, ::2] // 2, 2, 1), 2, 2)
    same = noise(60, seed=3) // 2
    base = describe(store(train, transform))
    large = {
        name: {row.what for row in compare_data(base, describe(store(x, transform))).rows if row.large}
        for name, x in (("bright", bright), ("smooth", smooth), ("same", same))
    }
    assert {"pixels: mean", "pixels: percentile 1"} <= large["bright"]
    assert "pixels: sharpness" in large["smooth"]
    assert large["same"] == set()


def test_rounding_is_no_drift():
    """Images that are z-scored all have a mean of 0, up to rounding, which may have a direction."""
    first, second = (
        {"images": 100, "figures": {"mean": [m, 1e-8], "standard deviation": [1.0, 1e-8]}} for m in (0, 1e-6)
    )
    assert not any(row.large for row in compare_data({"pixels": first}, {"pixels": second}).rows)


def test_prevalence_and_columns(transform):
    n = 300
    rng = np.random.default_rng(0)

    def data(positive, female, age):
        groups = {
            "sex": np.where(rng.random(n) < female, "F", "M"), "age": (rng.normal(age, 10, n)).round().astype(int),
            "name": [f"Anna {i}" for i in range(n)], "split": ["test"] * n,
        }  # fmt: skip
        return describe_data(table_of(noise(n), groups, (rng.random(n) < positive).astype(int)))

    base = data(0.5, 0.5, 50)
    assert {name for name, known in base["groups"].items() if known} == {"sex", "age"}
    shifted, same = (compare_data(base, other) for other in (data(0.15, 0.1, 70), data(0.5, 0.5, 50)))
    assert {row.what for row in shifted.rows if row.large} == {"prevalence of positive", "sex", "age, median (IQR)"}
    assert not any(row.large for row in same.rows)
    by_name = {row.what: row for row in shifted.rows}
    assert by_name["age, median (IQR)"].difference == pytest.approx(2, abs=0.3)
    assert by_name["sex"].difference == pytest.approx(0.4, abs=0.1)
    p, q = (side["positives"]["positive"] / n for side in (base, data(0.5, 0.5, 50)))
    assert abs(p - q) < 0.15
    assert any("large differences: prevalence of positive, sex, age" in note for note in shifted.notes)
    json.dumps([base, shifted.to_dict()])


def test_values_of_one_side_alone_are_a_difference():
    def side(**shares):
        return {"rows": 1000, "groups": {"site": {"shares": shares}}}

    (row,) = [r for r in compare_data(side(A=1.0), side(B=1.0)).rows if r.what == "site"]
    assert row.difference == pytest.approx(1)
    assert row.large
    (row,) = [r for r in compare_data(side(A=0.9), side(A=0.9, B=0.1)).rows if r.what == "site"]
    assert row.difference == pytest.approx(0)  # B may be among what the other does not list
    (row,) = [r for r in compare_data(side(A=0.6, B=0.4), side(A=0.6, C=0.4)).rows if r.what == "site"]
    assert row.difference == pytest.approx(0.4)


def test_few_rows_differ_by_chance():
    rng = np.random.default_rng(0)
    large = 0
    for _ in range(100):
        first, second = ({"site": rng.choice(list("ABCDEFG"), n), "sex": rng.choice(list("FM"), n)} for n in (500, 25))
        drift = compare_data(*(describe_data(table_of(noise(len(g["sex"])), g)) for g in (first, second)))
        large += sum(row.large for row in drift.rows)
    assert large <= 5


def test_small_counts_of_columns_are_not_shown():
    labels = [1] * 4 + [0] * 96
    found = describe_data(table_of(noise(100), {"sex": ["X"] * 3 + ["F"] * 40 + ["M"] * 57}, labels))
    assert found["groups"]["sex"]["shares"] == {"M": 0.57}  # with F, the share of X would follow
    (row,) = [r for r in compare_data(found, found).rows if "prevalence" in r.what]
    assert (row.training, row.here, row.difference) == ("4.0% (4 of 100)", "4.0% (4 of 100)", 0)  # as in the results


def test_an_age_that_few_patients_have_is_not_shown():
    groups = {"age": [str(50 + i % 11) for i in range(271)] + [""] * 29}  # 11 ages
    one = describe_data(table_of(noise(300), groups, patients=[0] * 271 + list(range(1, 30))))
    many = describe_data(table_of(noise(300), groups, patients=[i % 30 for i in range(300)]))
    assert (one["groups"], set(many["groups"]["age"])) == ({"age": {}}, {"median", "quartiles", "mean", "sd"})
    notes = " ".join(compare_data(many, one).notes)
    assert "too few patients: age" in notes
    assert "alone" not in notes, "the column is there"
    assert "columns that the training data alone has: age" in compare_data(many, {**one, "groups": {}}).notes


def test_numbers_beyond_float64_are_left_out():
    values = [i % 20 + 40 for i in range(200)]
    columns = {"dose": [f"{value}e305" for value in values], "age": [str(value) for value in values]}
    found = describe_data(table_of(noise(200), columns))
    assert found["groups"]["dose"] == {}
    assert found["groups"]["age"]
    json.dumps(found, allow_nan=False)


def test_files_of_a_run_have_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunFolder(tmp_path).write_json("a.json", {"x": float("inf")})
    assert not (tmp_path / "a.json").exists()
