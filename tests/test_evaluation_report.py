"""A report stands alone, is complete where there is data and silent elsewhere, and names no patient, image or path."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluation_reports import HOSTILE, PNG, Pseudonyms, full, minimal, sad, scores

from medzoo.errors import ConfigError
from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.examples import choose_examples
from medzoo.evaluation.page.markup import Footnotes, Markup, estimate_cell, number, tag
from medzoo.evaluation.page.page import page
from medzoo.evaluation.page.sections import SECTIONS
from medzoo.evaluation.page.wording import methods
from medzoo.evaluation.shareable import Redactor, shareable

VOID = {"img", "meta", "br", "col", "link", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page, which has to be well-formed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def of(self, tag):
        return [attrs for name, attrs, _ in self.elements if name == tag]


@pytest.fixture(scope="module", params=["multilabel", "binary", "multiclass"])
def report(request):
    labels = {"multilabel": ("Pneumonia", HOSTILE), "binary": ("Pneumonia",), "multiclass": ("A", "B", HOSTILE)}
    return full(labels[request.param], request.param)


@pytest.fixture(scope="module")
def saved(report, tmp_path_factory):
    path = report.save(tmp_path_factory.mktemp("out") / "new" / "report.html")
    return path.read_text("utf-8"), json.loads(path.with_suffix(".json").read_text("utf-8"))


def test_the_page_is_well_formed_and_every_section_is_there(report, saved):
    page = Page(saved[0])
    ids = Counter(attrs["id"] for _, attrs, _ in page.elements if "id" in attrs)
    assert [name for name, count in ids.items() if count > 1] == []
    expected = {anchor for anchor, _, _ in SECTIONS} - ({"thresholds"} if report.scores.task == "multiclass" else set())
    assert {attrs["id"] for attrs in page.of("section")} == expected
    links = [attrs["href"] for attrs in page.of("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= ids.keys()
    assert page.of("h1") == [{}]


def test_the_page_stands_alone(saved):
    page = Page(saved[0])
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {name for name, _, _ in page.elements}
    for name, attrs, _ in page.elements:
        assert not [key for key in attrs if key.startswith("on")], name
        for key in ("src", "href", "xlink:href", "action", "data"):
            target = attrs.get(key, "#")
            assert target.startswith(("#", "data:image/png;base64,", "https://doi.org/")), target
    style = re.search(r"<style>(.*?)</style>", saved[0], re.DOTALL)[1]
    assert "@import" not in style
    assert "url(" not in style
    assert re.findall(r"url\((?!#)", saved[0]) == []
    assert "default-src 'none'" in page.of("meta")[1]["content"]


def test_every_text_is_escaped(saved):
    assert "<script" not in saved[0].lower()
    text = "".join(Page(saved[0]).text)
    assert text.count(HOSTILE) >= 15  # the title, groups, labels, readers, notes and facts are all there


def test_tables_have_captions_and_scopes(saved):
    page = Page(saved[0])
    tables = sum(name == "table" for name, _, _ in page.elements)
    assert tables >= 12
    assert sum(name == "caption" for name, _, _ in page.elements) == tables
    assert all(attrs.get("scope") for attrs in page.of("th"))
    assert all(attrs.get("alt") for attrs in page.of("img"))
    drawn = [attrs for attrs in page.of("svg") if attrs.get("aria-hidden") != "true"]
    assert len(drawn) >= 6
    assert all(attrs.get("role") == "img" and attrs.get("aria-labelledby") for attrs in drawn)


def test_nothing_names_an_image_a_patient_or_a_path(report, saved):
    for text in (saved[0], json.dumps(saved[1], ensure_ascii=False), str(report)):
        for name in (*report.scores.ids, *np.unique(report.scores.patients)):
            assert str(name) not in text
        for part in ("scan-0", "secret", "/home/", "~/x", "/var/", "Müller^", "hospital/"):
            assert part not in text


def test_the_json_has_the_figures_and_says_its_format(report, saved):
    found = saved[1]
    assert found["format"] == 1
    assert found["labels"] == list(report.scores.labels)
    value = report.metrics.labels[0]["auroc"]
    assert found["metrics"]["labels"][report.scores.labels[0]]["figures"]["auroc"] == value.to_dict()
    assert found["log"][1]["valid_loss"] is None
    assert "image" not in found["examples"][0]
    assert "scores" not in found
    assert PNG.png.hex() not in json.dumps(found)
    assert found == json.loads(json.dumps(report.to_dict(), allow_nan=False))


def test_it_is_the_same_again(report, saved, tmp_path):
    assert report.save(tmp_path / "again.html").read_text("utf-8") == saved[0]


def test_sections_without_data_are_left_out(tmp_path):
    page = Page(minimal(patients=240).save(tmp_path / "a.html").read_text("utf-8"))
    assert [attrs["id"] for attrs in page.of("section")] == ["results", "thresholds", "limits", "made"]


def test_unknown_patients_are_said_to_be_so():
    of = scores()
    report = replace(minimal(), scores=replace(of, patients=None))
    assert "The patients are not known" in str(report)


def test_few_cases_have_no_interval_and_the_reason(tmp_path):
    report = sad()
    text = "".join(Page(report.save(tmp_path / "a.html").read_text("utf-8")).text)
    assert "under 10 positive or negative patients; positive patients in brackets: Few (8), None (0)" in text
    assert "No threshold was chosen: no case is called positive or negative" in text
    assert "The AUROC of Enough, the one output of 3 with enough patients, is 0." in text
    assert "Not every output has a threshold." in text
    assert "No curve, as all rows are of one class: None." in text
    assert "Few: 8 positive patients, AUROC" in str(report)
    assert "no threshold" in str(report)
    assert "nan" not in text.lower().replace("finance", "")


def test_a_json_path_writes_json_alone(tmp_path):
    minimal().save(tmp_path / "figures.json")
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    json.loads((tmp_path / "figures.json").read_text("utf-8"))


def test_another_suffix_is_an_error(tmp_path):
    with pytest.raises(
        ConfigError, match=r"Report\.save: expected a path that ends with \.html or \.json, got '.*a\.pdf'"
    ):
        minimal().save(tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = minimal().save(tmp_path / "a.html")
    before = path.read_bytes()
    monkeypatch.setattr("medzoo.evaluation.report.page", lambda report: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError):
        replace(minimal(), title="other").save(path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "a.json"]


def test_the_summary_has_the_main_figures():
    report = minimal()
    m = report.metrics.labels[0]
    first, second = str(report).splitlines()[:2]
    assert first == "Scores: 240 rows of 120 patients"
    assert (
        f"Pneumonia: {m.counts.positive_patients} positive patients, AUROC {m['auroc']}, at 0.5: sensitivity " in second
    )


def test_a_slope_off_one_is_a_warning():
    report = minimal()
    m = report.metrics.labels[0]
    m = replace(m, values={**m.values, "calibration_slope": Estimate(0.5, 0.4, 0.6)})
    report = replace(report, metrics=replace(report.metrics, labels=(m,)))
    assert "not calibrated: slopes whose interval leaves out 1: Pneumonia (0.50)" in str(report)
    assert "calibration slope 0.500 (0.400 to 0.600), intercept " in str(report)


def test_an_intercept_off_zero_is_a_warning():
    report = minimal()
    m = report.metrics.labels[0]
    off = {"calibration_slope": Estimate(1.02, 0.9, 1.1), "calibration_intercept": Estimate(-2.0, -2.1, -1.9)}
    m = replace(m, values={**m.values, **off})
    report = replace(report, metrics=replace(report.metrics, labels=(m,)))
    assert "not calibrated: intercepts whose interval leaves out 0: Pneumonia (-2.00)." in str(report)
    assert "calibration slope 1.020 (0.900 to 1.100), intercept -2.000 (-2.100 to -1.900)" in str(report)
    fine = replace(m, values={**m.values, **off, "calibration_intercept": Estimate(0.1, -0.1, 0.3)})
    assert "not calibrated" not in str(replace(report, metrics=replace(report.metrics, labels=(fine,))))


def test_the_methods_are_those_of_the_figures(report):
    """Each interval of the report has its method in the text, and none is there that no figure has."""
    text = methods(report)
    several = len(report.metrics.labels) > 1
    used = {e.method for m in report.metrics.labels for e in m.values.values() if e.low is not None}
    used |= {e.method for e in report.metrics.overall.values() if several and e.low is not None}
    assert len(used) >= 4
    for method in used:
        assert method in text, method
    assert "AUROC: Newcombe at the effective numbers, bootstrap over patients." in text
    assert re.search(r"Average precision, [^.]*: standard error of the bootstrap over patients, logit scale\.", text)
    assert ("Mean AUROC" in text) == several
    assert "Bands of curves: percentiles of the bootstrap over patients at each point." in text
    assert "Differences of the models, Differences between groups: expanded percentiles of the bootstrap over" in text
    assert "The bootstrap draws 40 times from the patients, each with all its rows (seed 0)" in text
    assert next(item for item in report.checklist if item.topic == "Uncertainty and tests").answer == text


def test_percentiles_are_named_only_where_they_are_used():
    report = minimal()
    assert "percentiles" not in methods(report)
    none = {name: replace(e, low=None, high=None) for name, e in report.metrics.labels[0].values.items()}
    without = replace(report.metrics, labels=(replace(report.metrics.labels[0], values=none),))
    assert methods(replace(report, metrics=without)) == "No figure has an interval; the reason is beside each."
    unknown = replace(report, metrics=replace(report.metrics, patients=None))
    assert "from the rows, as the patients are not known" in methods(unknown)


def test_one_output_has_its_panels_and_tables_beside_each_other():
    found = Page(page(full(("Pneumonia",), "binary").shareable()))
    grids = [attrs["class"] for attrs in found.of("div") if attrs.get("class", "").startswith("plots single")]
    assert grids == ["plots single tables", "plots single", "plots single"]
    figures = [attrs["id"].removesuffix("-title") for attrs in found.of("title") if "id" in attrs]
    drawn = [name for name in figures if name.endswith("-0") and not name.startswith("log")]
    assert drawn == ["roc-0", "pr-0", "reliability-0", "decision-0"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/a b/c.csv: 3 rows", "…: 3 rows"),
        ("/data/Jane Mary Doe born 1950/scan 1 of/IM 3 left.png: too dark", "…: too dark"),
        ("/data/Jane Mary Doe/scan 1 of/IM 3 left: too dark", "…: too dark"),
        ("/data/O'Hara Jane/x/IM 3 l.png: too dark", "…: too dark"),
        ("/data/O'Hara Jane/x 1/IM3 was left out", "… was left out"),
        ("\"/data/O'Hara Jane/IM 3.png\" and '/data/O’Hara/x' too", "\"…\" and '…' too"),
        ("from /data/Jane Doe/x to /out/b, 3 rows", "from … to …, 3 rows"),
        ("evaluate /home/my runs/a --table /b/c d/e.csv", "evaluate … --table …"),
        ("local-dir:/data/Jane Doe/model", "local-dir:…"),
        ("at http://pacs.example.org/x?patient=12345, twice", "at …, twice"),
        ("at HTTPS://me:secret@pacs/x.", "at …."),
        (
            "sensitivity / specificity of 3/4: 0.5; AUROC / AUPRC",
            "sensitivity / specificity of 3/4: 0.5; AUROC / AUPRC",
        ),
        ("\0009\000 rows", "9 rows"),
        ("'/data/a b/c.csv': 3 rows", "'…': 3 rows"),
        (r"read C:\scans\x.dcm, \\server\share\y", "read …, …"),
        ("medzoo evaluate run --data=~/x.csv s3://bucket/key", "medzoo evaluate run --data=… …"),
        ("data/x.png and y.nii.gz; dropped.csv", "… and …; dropped.csv"),
        ("and/or 1/2 AP/PA timm/resnet50.a1 0.913", "and/or 1/2 AP/PA timm/resnet50.a1 0.913"),
        ("see https://doi.org/10.1/x.csv", "see https://doi.org/10.1/x.csv"),
        ("it's 3/4 of 'rows/all'", "it's 3/4 of 'rows/all'"),
        ("of Müller^0003, Müller^0004.", "of a patient, a patient."),
        ("id=scan-00003 (scan-00004.png) hospital/scan-00005.png", "id=an image (an image) an image"),
        ("scan-99999 and 12 rows", "scan-99999 and 12 rows"),
    ],
)
def test_shareable(text, expected):
    assert shareable(text, scores()) == expected


def test_known_names_go_before_any_pattern():
    ids = np.array([f"Jane Doe, 1950/s{i // 40}/IM {i} left" for i in range(240)])
    redact = Redactor(replace(scores(), ids=ids, patients=np.array([f"Anna-{i} Lee" for i in range(240)])))
    assert redact("my data/Jane Doe, 1950/s0/IM 3 left is dark") == "my an image is dark"
    assert redact("/my data/Jane Doe, 1950/s0/IM 3 left is dark") == "an image is dark"
    assert redact("data/Jane Doe, 1950/s1 cannot be read") == "a folder cannot be read"
    assert redact("/all/Anna-3 Lee/x 1/y has 2 rows of Anna-23 Lee") == "… has 2 rows of a patient"


def test_no_pattern_backtracks():
    for text in ("/a " * 3000, "a/" * 5000, "/" * 9000, "/x" + " y" * 5000, "/a b" * 3000):
        began = time.process_time()
        shareable(text)
        assert time.process_time() - began < 10, "milliseconds; a pattern that backtracks would take minutes"


def test_counts_and_labels_are_no_names():
    patients = np.array(["Pneumonia", "study 1"] * 120)
    of = replace(scores(), ids=np.array([str(i) for i in range(240)]), patients=patients)
    redact = Redactor(of, keep=of.labels)
    assert redact("Pneumonia") == "Pneumonia"
    assert redact("12 of study 1, not study 12") == "12 of a patient, not study 12"


def test_examples_are_the_most_confident_and_one_for_each_patient():
    of = scores(labels=("A", "B"), task="multilabel", thresholds=(0.5, None))
    found = choose_examples(of, Pseudonyms(), 3)
    assert {example.label for example in found} == {"A"}, "no call, no example"
    for kind in ("wrong", "correct"):
        mine = [example for example in found if example.kind == kind]
        far = [abs(math.log(e.probability / (1 - e.probability))) for e in mine]
        assert len(mine) == 3
        sides = [[e for e in mine if e.target == side] for side in (1, 0)]
        assert [len(side) for side in sides] == [2, 1], "half of each, positive first"
        assert far[:2] == sorted(far[:2], reverse=True)
        assert all((e.called == e.target) == (kind == "correct") for e in mine)
    assert not {example.case for example in found} & set(of.patients)
    wrong = np.flatnonzero((of.calls[:, 0] == 0) & (of.targets[:, 0] == 1))
    assert max(np.abs(of.logits[wrong, 0])) == pytest.approx(
        abs(math.log(found[0].probability / (1 - found[0].probability)))
    )


def test_examples_of_classes_name_the_true_one():
    of = scores(labels=("A", "B", "C"), task="multiclass")
    for example in choose_examples(of, Pseudonyms(), 2):
        assert example.called == 1
        assert (example.truth == example.label) == (example.kind == "correct")


def test_markup_escapes_all_but_markup():
    assert tag("b", '<"&>', Markup("<i>"), title='"') == '<b title="&quot;">&lt;&quot;&amp;&gt;<i></b>'
    assert (number(-0.0001), number(1.5, 1), number(math.nan)) == ("0.000", "1.5", "–")
    notes = Footnotes()
    assert "few" not in estimate_cell(Estimate(0.5, why="few"), notes)
    assert "Few." in notes.render()
