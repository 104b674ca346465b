"""Targets, plots and the page, from results of a CPU and of GPUs."""

from __future__ import annotations

import re
from dataclasses import asdict
from xml.etree import ElementTree

import pytest

from benchmarks import environment
from benchmarks.cases import select
from benchmarks.page import METHOD, render
from benchmarks.plots import draw
from benchmarks.results import newest, write_result
from benchmarks.targets import check_targets, growth, headlines
from benchmarks.tests.conftest import CPU
from benchmarks.timing import BFLOAT16_FACTOR
from benchmarks.work import work

# A result of a CPU


def test_a_result_becomes_a_page_with_plots(result, tmp_path):
    file = write_result(result, tmp_path / "results")
    (tmp_path / "results" / f"2001-01-01_{file.name.partition('_')[2]}").write_text(file.read_text())
    assert newest(tmp_path / "results") == [file]
    render([file], tmp_path / "page.md", notes="## Why\n\nBecause.")
    page = (tmp_path / "page.md").read_text()
    assert page.index("Because.") < page.index("<summary>Targets</summary>")
    assert result["environment"]["cpu"] in page
    assert "- big: needs about 9 GB" in page
    plots = sorted((tmp_path / "images").iterdir())
    assert [plot.stem.rpartition("-")[2] for plot in plots] == ["memory", "ratios", "roofline", "scaling"]
    for plot in plots:
        assert ElementTree.parse(plot).getroot().tag.endswith("svg")
        assert f"images/{plot.name}" in page


def test_the_page_states_the_tolerance_of_bfloat16():
    assert f"at most {BFLOAT16_FACTOR} times the peer's" in METHOD


def test_a_page_without_results(tmp_path):
    render([], tmp_path / "page.md")
    assert "No result file is in the repository yet." in (tmp_path / "page.md").read_text()


def test_plots_without_rows_are_not_drawn(result, tmp_path):
    assert draw(result | {"rows": []}, tmp_path, "empty") == {}


def test_plots_of_the_same_result_are_the_same_bytes(result, tmp_path):
    first, second = (draw(result, tmp_path / name, "x") for name in ("a", "b"))
    for name, file in first.items():
        assert file.read_bytes() == second[name].read_bytes()
        assert b"<dc:date>" not in file.read_bytes()


def test_cost_as_the_work_grows(result):
    rows = {row["id"]: row for row in result["rows"]}
    assert growth(rows) == pytest.approx({"batch 1 to 8": 1.0, "64³ to 128³": 1.0, "peak, batch 1 to 8": 1.0})
    met = {line[0]: line[-1] for line in check_targets(result)}
    assert met["scaling/batch 1 to 8"] == "met"
    assert met["startup/import"] == ""


# Results of GPUs


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", [*["≥ 1.5", "≥ 2"] * 2, *["≤ 0.005", "≥ 4500"] * 2]),
        ("NVIDIA H200", [*["≥ 1.5", "≥ 2"] * 2, *["≤ 0.0035", "≥ 6500"] * 2]),
        ("NVIDIA L4", ["≥ 1.5", "≥ 2"] * 2),
    ],
)
def test_targets_are_those_of_the_card(device, expected):
    result = {"environment": {"device": device, "cuda": "13.0", "allocator": "default"}, "rows": []}
    assert [line[3] for line in check_targets(result)] == expected


def spread_of(value):
    return {"median": value, "low": value * 0.97, "high": value * 1.05}


def made_row(case, tflops):
    """Return a row that reaches a fifth of the matrix products; its peers take 1.4 to 15.2 times as long."""
    needed = work(case)
    seconds = needed.flops / tflops / 0.2e12 + 2e-5
    ratios = dict(zip(case.peers, (15.2, 3.1, 1.4, 2.0), strict=False))
    peers = {
        name: {
            "difference": 1e-2,
            "gradient_difference": 1e-3 if case.mode == "train" else None,
            "seconds": spread_of(seconds * ratio),
            "ratio": spread_of(ratio),
            "peak": 10**9,
        }
        for name, ratio in ratios.items()
    }
    return {
        "case": asdict(case),
        "id": case.id,
        "peers": peers,
        "absent": {},
        "disagreed": {},
        "rounds": 5,
        "seconds": spread_of(seconds),
        "samples_per_second": case.batch / seconds,
        "peak": None if case.graph else 100 * case.voxels,
        "flops": needed.flops,
        "bytes": needed.bytes,
        "share_of_matmul": 0.2,
        "share_of_copy": 0.1,
    }


def gpu_result(device, level="usual", tflops=700):
    """Return a result of all rows for a GPU, with made-up times."""
    state = dict.fromkeys(environment.GPU_FIELDS[1:], "1980 MHz") | {
        "driver_version": "580.1",
        "power.limit": "700.00 W",
    }
    card = {
        "device": device,
        "cuda": "13.0",
        "cudnn": 91002,
        "device_memory_gb": 85.0,
        "tf32": {"matmul": False, "cudnn": True},
        "gpu": state,
        "date": "2026-01-31 10:00 UTC",
    }
    ceilings = {"torch.mm float32": 5e13, "matmul float32": 5e13, "torch.mm bfloat16": tflops * 1e12}
    return {
        "environment": environment.describe_environment(CPU) | card | {"level": level},
        "ceilings": ceilings | {"matmul bfloat16": tflops * 1e12, "copy": 2.8e12},
        "rows": [made_row(case, tflops) for case in select(level=level, device="cuda")],
        "skipped": {"cnn3d_base-64x128x128-b512-bfloat16-forward": "needs about 274.9 GB, 71.0 GB are free"},
        "failed": {},
        "startup": {},
    }


def texts(svg):
    return [element for element in ElementTree.parse(svg).iter() if element.tag.endswith("text")]


def words(svg):
    return [element.text for element in texts(svg)]


@pytest.mark.parametrize("device", ["NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA L4"])
def test_the_result_of_a_gpu_becomes_a_page(device, tmp_path):
    result = gpu_result(device)
    file = write_result(result, tmp_path / "results")
    render([file], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert f"\n## {device}\n" in page
    section = page[page.index(f"## {device}") :]
    assert "allocator" not in section
    assert "huge pages" not in section
    assert "driver 580.1, SM clock 1980 MHz of at most 1980 MHz" in section
    assert "power limit 700.00 W" in section
    assert "torch.mm float32 50 TFLOP/s, torch.mm bfloat16 700 TFLOP/s, copy 2800 GB/s" in section
    assert "- cnn3d_base-64x128x128-b512-bfloat16-forward: needs about 274.9 GB" in section
    table = section[section.index("<summary>Targets</summary>") : section.index("<summary>swin_encoder_mlp</summary>")]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert lines[0] == "| row | what | against | target | next | measured |  |"
    assert [line.split(" | ")[-1].strip(" |") in ("met", "**missed**") for line in lines[2:]] == [True] * (
        4 if device == "NVIDIA L4" else 8
    )
    for name in ("ratios", "roofline", "throughput", "scaling", "memory"):
        assert f"![{name}](images/benchmark-{file.stem}-{name}.svg)" in section
        assert (tmp_path / "images" / f"benchmark-{file.stem}-{name}.svg").exists()


def test_the_page_leads_with_a_line_for_each_model_and_a_plot(tmp_path):
    file = write_result(gpu_result("NVIDIA H200"), tmp_path / "results")
    render([file], tmp_path / "page.md")
    lead, plot, rest = (tmp_path / "page.md").read_text().partition("(images/benchmark-summary.svg)")
    assert plot
    rows = [line for line in lead.splitlines() if line.startswith("|")][2:]
    assert [row.split(" | ")[0] for row in rows] == ["| swin_encoder_mlp", "| cnn3d_base"]
    # The fastest peer in the made-up rows, without and with a graph; medzoo's own model is none.
    assert "NVIDIA H200 | MONAI flash | **3.10** (3.01–3.26) no CUDA graph; 15.20 CUDA graph |" in rows[0]
    assert "2026-01-31, torch " in rows[0]
    assert rest.index("## Targets met and missed") < rest.index("## How it is measured") < rest.index("<details>")
    assert (tmp_path / "images" / "benchmark-summary.svg").exists()


def test_headlines_begin_with_the_usual_setting(result):
    row = made_row(next(case for case in select() if case.id.startswith("swin_encoder_mlp-96x96x96-b1")), 1)
    settings = ({"allocator": "thp", "alone": True}, {}, {"alone": True})
    results = [result | {"environment": result["environment"] | each, "rows": [row]} for each in settings]
    (group,) = headlines(results)
    assert [headline.setting for headline in group] == ["own process", "shared process", "huge pages"]


def test_the_plots_of_a_gpu_are_in_its_dtype(tmp_path):
    result = gpu_result("NVIDIA H100 80GB HBM3")
    plots = draw(result, tmp_path, "x")
    assert "Roofline, bfloat16 inference" in words(plots["roofline"])
    assert "TFLOP/s" in words(plots["roofline"])
    throughput = words(plots["throughput"])
    assert "Throughput over batch, bfloat16 inference; a ring replays a CUDA graph" in throughput
    assert {"swin_encoder_mlp 96×96×96", "cnn3d_base 64×128×128", "xray_cnn 320×320"} <= set(throughput)
    assert "swin_encoder_mlp 64×64×64" not in throughput  # one batch makes no line
    assert any(word.endswith("over voxels, bfloat16, batch 1 to 128") for word in words(plots["scaling"]))


def test_a_gpu_that_nvidia_smi_does_not_report_has_a_page_too(tmp_path):
    result = gpu_result("NVIDIA L4")
    result["environment"]["gpu"] = None
    result["rows"] = result["rows"][:1]
    render([write_result(result, tmp_path / "results")], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "power limit" not in page
    assert sorted(plot.stem.rpartition("-")[2] for plot in (tmp_path / "images").iterdir()) == [
        "ratios",
        "roofline",
        "summary",
    ]


def test_no_text_of_a_plot_leaves_it(tmp_path):
    """A character is at most 0.625 em wide, a bold one 0.67."""
    for plot in draw(gpu_result("NVIDIA H100 80GB HBM3", "full"), tmp_path, "x").values():
        _, _, full_width, _ = map(float, ElementTree.parse(plot).getroot().get("viewBox").split())
        found = [element for element in texts(plot) if "rotate(-0" in element.get("transform")]
        assert len(found) > 5
        for element in found:
            style = element.get("style")
            em = float(re.search(r"font-size: ([\d.]+)px|font: .*?([\d.]+)px", style).expand(r"\1\2"))
            width = len(element.text) * em * (0.67 if "700" in style or "bold" in style else 0.625)
            anchor = re.search(r"text-anchor: (\w+)", style)[1]
            left = float(element.get("x")) - {"start": 0, "middle": 0.5, "end": 1}[anchor] * width
            assert left >= 0, element.text
            assert left + width <= full_width, element.text
