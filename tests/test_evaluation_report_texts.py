"""What a report states in words: on the terminal, of what was decided, of how a file was read."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from evaluation_reports import Pseudonyms, full, minimal, sad, scores

from medzoo.contract import Outputs
from medzoo.evaluation.card import card_metrics
from medzoo.evaluation.examples import choose_examples
from medzoo.evaluation.metrics import measure
from medzoo.evaluation.page.figures import log_figures
from medzoo.evaluation.page.page import page
from medzoo.evaluation.page.sections import calibration
from medzoo.evaluation.page.tables import results_tables
from medzoo.evaluation.page.wording import reading_notes, warnings_of
from medzoo.evaluation.report import Report
from medzoo.evaluation.scores import Scores
from medzoo.provenance import Calibration, ThresholdPolicy


def test_the_terminal_has_a_line_for_each_part():
    text = str(full(("Pneumonia", "Edema")))
    assert "  Against … on 200 rows: Pneumonia, AUROC +0.100 (0.050 to 0.150)\n" in text
    assert "  By site: the largest difference is that of lower to <script>" in text
    assert "Mean AUROC -0.100 (-0.150 to -0.050)\n" in text
    assert "  Over 2 trainings, Mean AUROC: mean 0.800, SD 0.010\n" in text
    assert ": kappa with the model 0.700 (0.600 to 0.800)\n" in text
    assert " and B, Pneumonia: kappa 0.700 (0.600 to 0.800)\n" in text


def test_many_outputs_are_compared_by_their_mean():
    text = str(full(("A", "B", "C", "D")))
    assert "on 200 rows: Mean AUROC +0.020 (-0.030 to 0.070), not separable\n" in text
    assert text.count("Against ") == 1


def test_groups_that_do_not_differ():
    report = full(("Pneumonia",), "binary")
    table = report.groups[0]
    same = replace(table, rows=tuple(row for row in table.rows if row.value != "lower"))
    assert "By site: no difference of AUROC is separable" in str(replace(report, groups=(same,)))
    alone = replace(table, rows=table.rows[:1])
    assert "By site: no difference of AUROC has an interval" in str(replace(report, groups=(alone,)))


def test_classes_have_their_accuracy_and_no_threshold():
    report = minimal(labels=("A", "B", "C"), task="multiclass")
    overall = report.metrics.overall
    assert f"  Accuracy {overall['accuracy']}, Balanced accuracy {overall['balanced_accuracy']}\n" in f"{report}\n"
    assert "as the most probable class: sensitivity" in str(report)
    assert "threshold" not in str(report)


def test_one_is_no_plural_and_few_have_no_slope():
    of = scores(("Few",), "binary")
    targets = np.zeros_like(of.targets)
    targets[0] = 1
    of = replace(of, targets=targets)
    report = Report("One", of, measure(of, resamples=40))
    assert "Few: 1 positive patient, AUROC" in str(report)
    assert "slope" not in str(report)
    captions = re.findall("<figcaption.*?</figcaption>", calibration(sad()))
    slopes = {"slope" in caption for caption in captions if ">Few<" in caption}
    assert slopes == {False}
    assert any("slope" in caption for caption in captions if ">Enough<" in caption)


def test_how_a_file_was_read_is_no_warning(tmp_path):
    path = tmp_path / "s.csv"
    rows = [f"p{i % 60},{i % 2},{(i * 37 % 100) / 100}" for i in range(120)]
    path.write_text("\n".join(["PatientID,target,score", *rows]))
    of = Scores.from_csv(path)
    report = Report("Scores", of, measure(of, resamples=40), notes=("another",))
    assert any("PatientID" in note for note in reading_notes(report))
    assert set(reading_notes(report)) | {"another"} == {*of.notes, "another"}
    assert not set(reading_notes(report)) & set(warnings_of(report))
    assert "another" in warnings_of(report)
    shown = page(report.shareable())
    assert shown.index("How it was read") < shown.index("Patients are in the column")
    assert "  Read: patients are in the column" in str(report)


def test_what_was_decided_is_beside_what_it_reaches_here():
    policy = ThresholdPolicy("Youden", "validation", scale="calibrated", sensitivity=(0.951,), specificity=(0.965,))
    fitted = Calibration("Platt", (1.528,), (0.523,), "validation")
    report = minimal()
    outputs = Outputs(("Pneumonia",), "binary", (0.5,), policy=policy, calibration=fitted)
    text = page(replace(report, outputs=outputs).shareable())
    for part in (
        "Sensitivity on validation",
        ">0.951<",
        ">0.965<",
        "Platt, fitted on validation",
        ">1.528<",
        ">0.523<",
    ):
        assert part in text, part
    plain = page(replace(report, outputs=Outputs(("Pneumonia",), "binary", (0.5,))).shareable())
    assert "on validation" not in plain
    assert "The calibration" not in plain


def test_wrong_calls_of_both_kinds_are_shown():
    of = scores(thresholds=(0.35,))
    found = [e for e in choose_examples(of, Pseudonyms(), 4) if e.kind == "wrong"]
    missed = int(((of.calls == 0) & (of.targets == 1)).sum())
    assert missed >= 1
    assert sum(e.target == 1 for e in found) == min(2, missed)
    assert len(found) == 4
    text = page(replace(minimal(), examples=tuple(found)).shareable())
    assert "Missed positive" in text
    assert "False alarm" in text


@pytest.mark.parametrize("labels", [("A", "B"), ("A", "B", "C", "D")])
def test_the_error_of_calibration_has_one_footnote(labels):
    of = scores(labels, "multilabel", patients=240)
    text = results_tables(measure(of, resamples=40), "patients")
    assert text.count("biased upward") == 1
    assert " to 0." in text[text.index("biased upward") :]


def test_a_training_of_one_epoch_has_one_tick():
    (_, svg), *_ = log_figures([{"epoch": 1.0, "loss": 0.5}])
    assert svg.count("<!-- 1 -->") == 1 or ">1<" in svg
    assert "1.0" not in svg.split("epoch")[0].split("title")[-1]


def test_counts_of_a_card_are_whole_numbers():
    found = card_metrics(minimal().metrics, "test")
    assert repr(found["test: rows"]) == "240"
    assert repr(found["test: patients"]) == "120"
    assert isinstance(found["test: AUROC"], float)
