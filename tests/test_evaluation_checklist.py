"""Every item of the guidelines is there; what the run does not know is blank."""

from __future__ import annotations

import json
from dataclasses import replace

from evaluation_reports import full, minimal
from tensors import TINY

import medzoo
from medzoo.contract import Outputs
from medzoo.evaluation.checklist import draft
from medzoo.evaluation.run_record import RunRecord
from medzoo.evaluation.training_facts import facts_of_model, facts_of_run
from medzoo.provenance import Calibration

TRIPOD = {
    "1": "", "2": "", "3": "abc", "4": "", "5": "ab", "6": "abc", "7": "", "8": "abc", "9": "abc", "10": "", "11": "",
    "12": "abcdefg", "13": "", "14": "", "15": "", "16": "", "17": "", "18": "abcdef", "19": "", "20": "abc", "21": "",
    "22": "", "23": "ab", "24": "", "25": "", "26": "", "27": "abc",
}  # fmt: skip


def answers(report):
    return {(item.guideline, item.number): item.answer for item in draft(report)}


def test_all_items_are_there_in_order():
    items = draft(minimal())
    assert [item.number for item in items if item.guideline == "CLAIM 2024"] == [str(i) for i in range(1, 45)]
    assert [item.number for item in items if item.guideline == "TRIPOD+AI"] == [
        number + letter for number, letters in TRIPOD.items() for letter in letters or [""]
    ]
    assert all(item.topic for item in items)


def test_what_is_not_known_is_blank():
    known = {key for key, answer in answers(minimal()).items() if answer}
    assert known == {
        ("CLAIM 2024", number) for number in ("12", "28", "29", "37", "38", "40")
    } | {("TRIPOD+AI", number) for number in ("11", "12e", "15", "21", "23a", "26")}  # fmt: skip


def test_facts_and_parts_answer():
    report = full()
    known = answers(replace(report, facts={**report.facts, "split": "by patient", "labels from": "two readers"}))
    assert known["CLAIM 2024", "19"] == "by patient"
    assert known["TRIPOD+AI", "8a"] == "two readers"
    assert known["CLAIM 2024", "35"] == "The flow of rows and patients is drawn."
    assert known["TRIPOD+AI", "20c"] == "Large differences: mean."
    assert known["TRIPOD+AI", "12f"] == "", "it is not known on what the calibration was fitted"
    assert "sensitivity" in known["CLAIM 2024", "38"]
    for never in ("11", "15", "42", "44"):
        assert known["CLAIM 2024", never] == ""
    for never in ("8b", "17", "18a", "25"):
        assert known["TRIPOD+AI", never] == ""


def test_an_answer_leads_to_a_section_of_the_report():
    from medzoo.evaluation.page.sections import SECTIONS

    anchors = {anchor for anchor, _, build in SECTIONS if build(full()) is not None}
    assert {item.where for item in draft(full()) if item.answer} <= anchors


def test_a_section_that_the_report_lacks_is_not_referred_to():
    from medzoo.evaluation.page.sections import SECTIONS

    for report in (minimal(), replace(minimal(), facts={"data": "two sites"})):
        anchors = {anchor for anchor, _, build in SECTIONS if build(report) is not None}
        assert {item.where for item in draft(report) if item.answer} <= anchors


def outputs(split):
    return Outputs(("Pneumonia",), "binary", (0.3,), calibration=Calibration("Platt", (1.2,), (0.1,), split))


def test_a_calibration_on_the_validation_part_is_no_updating():
    report = full(("Pneumonia",), "binary")
    assert answers(replace(report, outputs=outputs("validation")))["TRIPOD+AI", "12f"] == ""
    found = answers(replace(report, outputs=outputs("site B")))["TRIPOD+AI", "24"]
    assert found == "Recalibrated (Platt) on site B; figures before and after are given."


RECIPE = """
model: {pretrained: false}
data: {patient: p}
augment: {flip: [x], rotate: 0.0, scale: [1.0, 1.0], allow_label_flips: false}
loss: {kind: auto, balance: none, weights: null}
optimizer: {kind: adamw, lr: 0.0003}
schedule: {kind: cosine}
train: {epochs: 2, batch: 32, ema: 0.0, stop_after: null, monitor: valid_loss, freeze: none, then: null, then_epochs: null, seed: 3}
"""  # noqa: E501


def test_the_run_and_the_model_answer(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"task": "binary", "split": "by patient"}))
    (tmp_path / "data" / "fingerprint.json").write_text(json.dumps({"parts": {"train": {"patients": 9}}}))
    record = RunRecord(tmp_path)
    assert facts_of_run(record) == {"split level": "patients"}, "a run without a recipe"
    (tmp_path / "recipe.yaml").write_text("train: 3")
    assert facts_of_run(record) == {"split level": "patients"}, "a recipe of another version"
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    model = medzoo.create("cnn3d_small", num_classes=1, **TINY)
    facts = facts_of_run(record) | facts_of_model(model) | {"part": "test", "weights": "sha256:12"}
    known = answers(replace(minimal(), facts=facts))
    assert known["CLAIM 2024", "24"] == "random, seed 3"
    assert known["CLAIM 2024", "20"] == "patients"
    assert (
        known["CLAIM 2024", "25"]
        == known["TRIPOD+AI", "12c"]
        == (
            "2 epochs; batches of 32 images; adamw with a learning rate of 0.0003 (cosine schedule); "
            "loss binary cross-entropy, not weighted; augmentation flip; seed 3."
        )
    )
    assert known["CLAIM 2024", "26"] == "weights after the last epoch, not those of the best validation."
    assert known["CLAIM 2024", "32"] == "The test part of the data of the run: 240 rows of 120 patients."
    assert known["TRIPOD+AI", "13"] == "Loss not weighted."
    for place in (("CLAIM 2024", "9"), ("TRIPOD+AI", "7"), ("TRIPOD+AI", "12b")):
        assert "brought to " in known[place]
        assert "voxels are resampled by an antialiased triangle filter" in known[place]
    assert answers(replace(minimal(), facts={"weights": "sha256:12"}))["CLAIM 2024", "24"] == ""
