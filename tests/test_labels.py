"""What labels mean: columns of 0 and 1, classes, and findings joined in one column; what is not known or wrong."""

from __future__ import annotations

import numpy as np
import pytest

from medzoo import Table
from medzoo.errors import ConfigError, DataError

NAN = float("nan")


def table(labels, **options):
    return Table.from_arrays(np.zeros((len(labels), 2, 2)), labels, **options)


def column(labels, **options):
    return table(labels, **options).targets[:, 0].tolist()


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 1], [0.0, 1.0, 1.0], [False, True, True], ["0", "1", "1.0"], ["False", "TRUE", "true "], [[0], [1], [1]],
        np.array([0, 1, 1], np.uint8), np.array([0, 1, 1], object), np.array([[0], [1], [1]], np.uint8),
    ],
)  # fmt: skip
def test_zero_and_one(labels):
    made = table(labels)
    assert (made.targets.tolist(), made.labels, made.task) == ([[0], [1], [1]], ("positive",), "binary")


def test_a_name_for_zero_and_one():
    assert table([0, 1], names=["pneumonia"]).labels == ("pneumonia",)
    assert table([0, 1], names=["normal", "pneumonia"]).labels == ("pneumonia",)
    two = table([0, 1, 0], names=["normal", "pneumonia"], task="multiclass")
    assert (two.labels, two.targets.tolist()) == (("normal", "pneumonia"), [[1, 0], [0, 1], [1, 0]])


def test_columns_of_zero_and_one():
    made = table([[0, 1, 1], [0, 0, 0]], names=["a", "b", "c"])
    assert (made.targets.tolist(), made.labels, made.task) == ([[0, 1, 1], [0, 0, 0]], ("a", "b", "c"), "multilabel")
    assert table([[0, 1], [1, 0]]).labels == ("label_0", "label_1")
    assert table([[0, 1], [1, 0]], task="multiclass").task == "multiclass"
    with pytest.raises(DataError, match=r"2 rows without exactly one class: row 1 \(2\), row 2 \(0\)"):
        table([[0, 1], [1, 1], [0, 0]], task="multiclass")
    with pytest.raises(DataError, match=r"1 labels that are not 0 or 1: row 1 \(label_1 '2'\)"):
        table([[0, 1], [1, 2]], names=["a", "b"])


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (["benign", "malignant"], "malignant"), (["malignant", "benign"], "malignant"), (["COVID", "NORMAL"], "COVID"),
        (["yes", "no"], "yes"), (["1", "2"], "2"), (["10", "9"], "10"), (["Edema", "No Edema"], "Edema"),
        (["COVID", "non-COVID"], "COVID"), (["nonCOVID", "COVID"], "COVID"), (["cancer", "non-cancer"], "cancer"),
        (["glaucoma", "non_glaucoma"], "glaucoma"), (["fractured", "NOT fractured"], "fractured"),
        (["diseased", "not-diseased"], "diseased"), (["metastasis", "no metastasis"], "metastasis"),
        (["infected", "Uninfected"], "infected"), (["Parasitized", "Uninfected"], "Parasitized"),
        (["mutated", "unmutated"], "mutated"), (["disease", "disease-free"], "disease"),
        (["inactive", "active"], "active"), (["effusion", "negative for effusion"], "effusion"),
        (["Pneumonia", "Without"], "Pneumonia"), (["+", "-"], "+"),
        (["HPV+", "HPV-"], "HPV+"), (["HER2-negative", "HER2-positive"], "HER2-positive"),
        (["Mass", "w/o mass"], "Mass"), (["with effusion", "without effusion"], "with effusion"),
        (["VeryMildDemented", "NonDemented"], "VeryMildDemented"), (["benign", "non-benign"], "non-benign"),
        (["healthy", "unhealthy"], "unhealthy"),
        (["Normal", "abnormal"], "abnormal"), (["normal", "not normal"], "not normal"),
        (["benign mass", "a malignant mass"], "a malignant mass"),
        (["triple negative", "non triple negative"], "triple negative"), (["y", "n"], "y"), (["P", "N"], "P"),
        (["mass", "No finding"], "mass"), (["tumor", "Healthy_Controls"], "tumor"), (["mutant", "wild-type"], "mutant"),
    ],
)  # fmt: skip
def test_two_classes_are_binary_and_the_positive_one_is_reported(labels, positive):
    made = table(labels)
    other = next(one for one in labels if one != positive)
    assert (made.labels, made.task) == ((positive,), "binary")
    assert made.targets[:, 0].tolist() == [float(one == positive) for one in labels]
    assert made.notes == (f"the positive class is '{positive}', the negative one '{other}'",)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("F", "M"), ("glioma", "meningioma"), ("M", "N"), ("normal", "No finding"), ("stable", "unstable"),
        ("complete", "incomplete"), ("non-small cell carcinoma", "squamous cell carcinoma"), ("Mass", "not available"),
        ("Nodule", "Noma"), ("a b", "a_b"), ("melanoma", "unknown"), ("Edema", "non-cardiac edema"),
    ],
)  # fmt: skip
def test_two_classes_whose_names_do_not_say_are_refused(one, other):
    for labels in ([one, other], [other, one]):
        with pytest.raises(DataError) as caught:
            table(labels)
        for part in (f"'{one}'", f"'{other}'", f"positive='{one}'", "--set data.positive=", "names="):
            assert part in str(caught.value)
    assert table([one, other], positive=one).labels == (one,)
    assert table([one, other], names=[one, other]).labels == (other,)
    assert set(table([one, other], task="multiclass").labels) == {one, other}


def test_the_positive_class_can_be_given():
    assert column(["F", "M"], positive="F") == [1, 0]
    assert column(["F", "M"], names=["M", "F"]) == [1, 0]
    with pytest.raises(DataError, match="expected positive= to be one of 2 classes, got 'mal'"):
        table(["benign", "malignant"], positive="mal")
    with pytest.raises(DataError, match="positive='x' is for classes; in a column of 0 and 1, 1 is positive"):
        table([0, 1], positive="x")


def test_classes():
    made = table(["mass", "normal", "cyst", "mass"])
    assert (made.labels, made.task) == (("normal", "cyst", "mass"), "multiclass")
    assert made.targets.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert table([10, 9, 2]).labels == ("2", "9", "10")
    assert table(["01", "03", "02"]).labels == ("01", "02", "03")


def test_names_give_the_order_of_classes():
    assert table(["b", "a", "c"], names=["c", "b", "a"]).targets.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert table([0, 2, 1], names=["low", "mid", "high"]).targets.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert table(["a", "b"], names=["a", "b", "c"]).notes == ("no row is of class 'c'",)
    with pytest.raises(DataError, match=r"1 labels that are no class: row 1 \('B'\). The classes are 'a', 'b', 'c'"):
        table(["a", "B", "c"], names=["a", "b", "c"])


def test_one_column_of_a_csv_file_gives_its_name(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"x")
    path = tmp_path / "t.csv"
    path.write_text("path,edema\na,0\nb,1\n")
    assert Table.from_csv(path, label="edema").labels == ("edema",)
    assert Table.from_csv(path, label=["edema"]).labels == ("edema",)
    with pytest.raises(ConfigError, match="expected label to be a column or several, got none"):
        Table.from_csv(path, label=[])


def test_fault_93_labels_that_are_not_binary():
    with pytest.raises(DataError, match=r"1 labels that are not 0 or 1: row 2 \('yes'\)"):
        table([0, 1, "yes", 1])
    with pytest.raises(DataError, match=r"1 labels that are not 0 or 1: row 2 \('2'\).*For classes, give task="):
        table([0, 1, 2, 1], task="binary")
    with pytest.raises(DataError, match=r"1 classes of one row: row 20 \('2'\)"):
        table([0, 1] * 10 + [2])
    for code in ("9", "-2", "01"):
        with pytest.raises(DataError, match=rf"1 labels that are not 0 or 1: row 2 \('{code}'\)"):
            table(["0", "1", code, "1"])
    assert table([0, 1, 2, 1]).notes == ("read as 3 classes; with task='binary', what is not 0 or 1 is a fault",)
    with pytest.raises(DataError, match=r"row 1 \('0.3'\). Give classes; numbers of a scale cannot be learned"):
        table([0.0, 0.3, 1.0])


@pytest.mark.parametrize("value", [-1, "-1.0"])
def test_fault_93_uncertain_needs_a_rule(value):
    labels = [0, 1, value]
    with pytest.raises(DataError, match=r"1 labels that are -1 \(uncertain\): row 2 .*uncertain='mask' .*positive"):
        table(labels)
    np.testing.assert_array_equal(column(labels, uncertain="mask"), [0, 1, NAN])
    assert column(labels, uncertain="positive") == [0, 1, 1]
    assert column(labels, uncertain="negative") == [0, 1, 0]


@pytest.mark.parametrize("value", ["", " ", "nan", "NaN", "NA", "#N/A", None, NAN])
def test_fault_93_blank_and_nan_need_a_rule(value):
    labels = np.array([0, 1, value], object)
    with pytest.raises(DataError, match=r"1 labels that are blank or NaN: row 2 .*Give blank='mask' .* or negative"):
        table(labels)
    for uncertain in ("mask", "positive", "negative"):  # a blank is not uncertain: it never becomes positive
        np.testing.assert_array_equal(column(labels, uncertain=uncertain), [0, 1, NAN])
    assert column(labels, uncertain="positive", blank="negative") == [0, 1, 0]
    np.testing.assert_array_equal(column(labels, blank="mask"), [0, 1, NAN])


def test_labels_that_are_not_known_are_counted():
    made = table([[0, -1, 1], [NAN, 1, 0]], uncertain="mask")
    np.testing.assert_array_equal(made.targets, [[0, NAN, 1], [NAN, 1, 0]])
    assert made.notes == ("2 labels not known, left out of loss and metrics",)


def test_classes_that_are_not_known():
    with pytest.raises(DataError, match="1 labels that are blank or NaN: row 2"):
        table(["a", "b", "", "c"])
    made = table(["a", "b", "", "c", "-1"], uncertain="mask")
    assert np.isnan(made.targets[[2, 4]]).all()
    assert made.notes == ("2 rows of no known class, left out of loss and metrics",)
    with pytest.raises(DataError, match="3 classes have no positive or negative"):
        table(["a", "b", "", "c"], uncertain="positive")
    np.testing.assert_array_equal(column(["a", "b", "-1"], uncertain="positive", positive="b"), [0, 1, 1])


@pytest.mark.parametrize(
    ("labels", "options", "cause"),
    [
        (["a", "a"], {}, "expected labels of 2 classes or more, found 'a'"),
        (["Normal", "normal", "x"], {}, "classes that differ in capitals alone: 'Normal', 'normal'"),
        (["0.1", "0.2", "0.5"], {}, "expected classes as labels, found numbers such as '0.1'"),
        (["a", "b", "c"], {"task": "binary"}, "task='binary' needs 2 classes, found 3"),
        (["a", "b"], {"task": "multilabel"}, "task='multilabel' needs columns of 0 and 1, or sep="),
        ([[0, 1], [1, 0]], {"task": "binary"}, "task='binary' cannot be for 2 columns"),
        ([[0, 1], [1, 0]], {"names": ["a"]}, "1 names cannot be for 2 columns"),
        ([[0, 1], [1, 0]], {"sep": "|"}, r"sep='\|' is for one column of labels, found 2"),
        ([f"id {i}" for i in range(20)], {}, "20 classes of one row: .* and 10 more. Correct what is misspelt"),
        ([f"id {i // 2}" for i in range(4000)], {}, "expected at most 1,000 classes, found 2,000"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be(labels, options, cause):
    with pytest.raises(DataError, match=cause):
        table(labels, **options)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"task": "binari"}, "Did you mean 'binary'"),
        ({"uncertain": "ignore"}, "expected uncertain to be one of 'refuse', 'mask', 'positive', 'negative'"),
        ({"blank": "positive"}, "expected blank to be one of"),
        ({"names": "ab"}, "expected names to be distinct names"),
        ({"names": ["a", "a"]}, "expected names to be distinct names"),
        ({"sep": ""}, "expected sep to be what joins findings"),
    ],
)
def test_options_that_cannot_be(options, cause):
    with pytest.raises(ConfigError, match=cause):
        table([0, 1], **options)


def test_an_unknown_argument():
    with pytest.raises(TypeError, match=r"unknown argument 'seps'. Did you mean 'sep'\?"):
        table([0, 1], seps="|")


JOINED = ["Edema|Mass", "No Finding", "Mass", "Hernia | Edema"]


def test_joined_findings():
    made = table(JOINED, sep="|")
    assert (made.labels, made.task) == (("Edema", "Hernia", "Mass"), "multilabel")
    assert made.targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 1], [1, 1, 0]]
    assert table(JOINED, sep="|", names=["Mass", "Hernia", "Edema"]).targets[0].tolist() == [1, 0, 1]
    assert table(["a;b", "normal"], sep=";", none="normal").labels == ("a", "b")


def test_joined_findings_of_which_some_are_wanted():
    with pytest.raises(DataError, match=r"1 rows with a finding that is not in names: row 3 .*others='negative'"):
        table(JOINED, sep="|", names=["Mass", "Edema"])
    made = table(JOINED, sep="|", names=["Mass", "Edema"], others="negative")
    assert made.targets.tolist() == [[1, 1], [0, 0], [1, 0], [0, 1]]
    assert made.notes == ("findings left out: Hernia 1",)


@pytest.mark.parametrize(
    ("labels", "options", "cause"),
    [
        (JOINED, {"names": ["Mass", "Edema", "Hernai"]}, "no row has the finding 'Hernai' of names=. Did you mean 'He"),
        ([*JOINED, "No Finding|Mass"], {}, "1 rows with 'No Finding' and findings: row 4"),
        ([*JOINED, "Mass||Edema"], {}, "1 rows with an empty finding: row 4"),
        ([*JOINED, ""], {}, "1 labels that are blank or NaN: row 4"),
        (JOINED, {"task": "binary"}, "task='binary' cannot be with sep="),
        (["No Finding", "No Finding"], {}, "expected findings in the labels, found none"),
    ],
)
def test_joined_findings_that_are_wrong(labels, options, cause):
    with pytest.raises(DataError, match=cause):
        table(labels, sep="|", **options)


def test_joined_findings_that_are_not_known():
    np.testing.assert_array_equal(table([*JOINED, ""], sep="|", blank="mask").targets[4], [NAN, NAN, NAN])
    np.testing.assert_array_equal(table([*JOINED, ""], sep="|", blank="negative").targets[4], [0, 0, 0])
