"""Every item of the guidelines is there; what the run does not know is blank."""

from __future__ import annotations

from dataclasses import replace

from evaluation_reports import full, minimal

from medzoo.evaluation.checklist import draft

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
    assert known["TRIPOD+AI", "12f"].startswith("Recalibrated")
    assert "sensitivity" in known["CLAIM 2024", "38"]
    for never in ("11", "15", "42", "44"):
        assert known["CLAIM 2024", never] == ""
    for never in ("8b", "17", "18a", "25"):
        assert known["TRIPOD+AI", never] == ""


def test_an_answer_leads_to_a_section_of_the_report():
    from medzoo.evaluation.sections import SECTIONS

    anchors = {anchor for anchor, _, build in SECTIONS if build(full()) is not None}
    assert {item.where for item in draft(full()) if item.answer} <= anchors


def test_a_section_that_the_report_lacks_is_not_referred_to():
    from medzoo.evaluation.sections import SECTIONS

    for report in (minimal(), replace(minimal(), facts={"data": "two sites"})):
        anchors = {anchor for anchor, _, build in SECTIONS if build(report) is not None}
        assert {item.where for item in draft(report) if item.answer} <= anchors
