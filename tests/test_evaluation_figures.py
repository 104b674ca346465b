"""Figures follow the page's colours, do not clash, are the same each time, and leave matplotlib as it was."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from evaluation_reports import HOSTILE, curves, scores

from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.flow import Flow, FlowStep
from medzoo.evaluation.metrics import measure
from medzoo.evaluation.page import figures
from medzoo.evaluation.page.charts import flow_chart, interval_line, interval_range
from medzoo.evaluation.page.style import DARK, LIGHT
from medzoo.evaluation.page.svg import COLOURS
from medzoo.evaluation.readers import ReaderRow

DRAWINGS = ("roc", "pr", "reliability", "decision", "log")


@pytest.fixture(scope="module")
def known():
    of = scores((HOSTILE,))
    metrics = measure(of, resamples=40)
    return of, metrics.labels[0], curves(of, metrics)[0]


def draw(known, kind, name="a"):
    of, m, c = known
    one = Estimate(0.7)
    row = ReaderRow(reader=HOSTILE, label=m.label, rows=9, sensitivity=one, specificity=one, kappa=one)
    return {
        "roc": lambda: figures.roc_figure(c, m, name, [("s", row)]),
        "pr": lambda: figures.pr_figure(c, m, name),
        "reliability": lambda: figures.reliability_figure(c, m, of.probabilities[:, 0], name, c),
        "decision": lambda: figures.decision_figure(c, m, name),
        "log": lambda: figures.log_figures([{"epoch": i, "loss": 0.5 / i, "lr": 1e-3 / i} for i in (1, 2)])[1][1],
    }[kind]()  # fmt: skip


@pytest.mark.parametrize("kind", DRAWINGS)
def test_a_figure_is_inline_svg_in_the_colours_of_the_page(known, kind):
    svg = draw(known, kind)
    ET.fromstring(svg)
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []
    assert "var(--series-1)" in svg
    assert not re.search(r"<style|<metadata|DOCTYPE|xmlns|font-family|DejaVu|http", svg)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
    assert {one or other for one, other in used} <= set(re.findall(r' id="([^"]+)"', svg))
    assert "<title" in svg
    assert "<text" in svg, "texts are texts"


@pytest.mark.parametrize("kind", DRAWINGS)
def test_a_figure_is_the_same_each_time_and_in_threads(known, kind):
    first = draw(known, kind)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: draw(known, kind), range(4))) == {first}


def test_ids_of_figures_are_different(known):
    ids = [set(re.findall(r' id="([^"]+)"', draw(known, "roc", name))) for name in ("a", "b")]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_small_ticks_keep_their_digits(known):
    labels = re.findall(r">([\d.]+e-\d+)</text>", draw(known, "log"))
    assert "5e-4" in labels or "6e-4" in labels
    assert len(labels) >= 4


def test_settings_of_the_program_neither_change_nor_matter(known):
    import matplotlib

    first = draw(known, "roc")
    with matplotlib.rc_context({"axes.grid": True, "font.size": 40, "svg.fonttype": "path", "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        assert draw(known, "roc") == first
        assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_late_and_without_pyplot():
    code = (
        "import sys, medzoo.evaluation.report\n"
        "assert not {'matplotlib', 'scipy', 'sklearn', 'pandas'} & set(sys.modules)\n"
        "from medzoo.evaluation.page.figures import log_figures; log_figures([{'epoch': 1, 'loss': 1.0}])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_have_enough_contrast(colours):
    """WCAG 2.2: 4.5 for text, 3 for what a figure needs."""
    assert COLOURS.keys() <= colours.keys()
    for name in ("ink", "muted", "link", "series-1", "series-2", "series-3", "series-4"):
        assert contrast(colours[name], colours["page"]) >= 4.5, name
    for name in ("ink", "muted"):
        assert contrast(colours[name], colours["panel"]) >= 4.5, name
    assert contrast(colours["warn"], colours["warn-panel"]) >= 4.5


def test_axes_of_a_rare_output_end_early(known):
    _, _, c = known
    assert figures.reliability_limit(c) == 1
    rare = tuple(replace(b, predicted=0.01, observed=Estimate(0.02, 0.0, 0.09)) for b in c.reliability)
    assert figures.reliability_limit(replace(c, reliability=rare)) == 0.1
    assert figures.reliability_limit(replace(c, reliability=())) == 1


def test_figures_without_calls_bins_or_thresholds(known):
    of, m, c = known
    none = np.zeros(0)
    empty = replace(c, reliability=(), decision_at=none, net_benefit=none, treat_all=none)
    called = replace(m, calls=None, threshold=None)
    for svg in (
        figures.roc_figure(c, called, "a"), figures.decision_figure(empty, called, "a"),
        figures.reliability_figure(empty, called, of.probabilities[:, 0], "a"),
    ):  # fmt: skip
        ET.fromstring(svg)
    assert figures.log_figures([{"epoch": 1.0, "loss": float("nan")}]) == []


def test_the_flow_names_each_step_and_reason():
    flow = Flow(
        (FlowStep("All rows", 1200, 300, ()), FlowStep(HOSTILE, 1100, None, ((HOSTILE, 60), ("unreadable", 40))))
    )
    svg = flow_chart(flow, "flow")
    text = "".join(ET.fromstring(svg).itertext())
    for part in ("1,200 rows, 300 patients", "Left out: 100 rows", "40 unreadable", "1,100 rows"):
        assert part in text
    assert "<script" not in svg


def test_a_forest_plot_holds_its_intervals():
    few = [Estimate(0.8, 0.43, 0.9), Estimate(float("nan"))]
    assert interval_range(few, (0.5, 1.0)) == (0.4, 1.0)
    assert interval_range([], (0.5, 1.0)) == (0.5, 1.0)
    assert interval_range([Estimate(0.1, -0.12, 0.21)], (-0.1, 0.1)) == (-0.2, 0.3)
    assert 'class="point open"' in interval_line(Estimate(0.7), (0.5, 1.0))
    assert "circle" not in interval_line(few[1], (0.5, 1.0))
    assert "circle" not in interval_line(None, (0.5, 1.0), 0.8)
