"""Files of scores of any model, as their producers write them, and what is refused in them."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
from monai.data import CSVSaver
from sklearn.linear_model import LogisticRegression

from medzoo import Table
from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.scores import Scores

# The labels of torchxrayvision's densenet121-res224-nih and of its default, as its models name them.
PATHOLOGIES = [
    "Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema", "Fibrosis", "Effusion",
    "Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass", "Hernia", "", "", "", "",
]  # fmt: skip


def table_of(folder, labels, names=None, n=6, prefix="images/", **options):
    """Return a table of n files, of which no image is opened."""
    (folder / prefix).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"{prefix}{i:03}.png").write_bytes(b"not opened")
    frame = pandas.DataFrame(
        {"path": [f"{prefix}{i:03}.png" for i in range(n)], "pid": [f"00{i // 2}" for i in range(n)]}
    )
    columns = labels if isinstance(labels, dict) else {"label": labels}
    for name, values in columns.items():
        frame[name] = values
    frame["site"] = ["x", "y"] * (n // 2)
    frame.to_csv(folder / "t.csv", index=False)
    return Table.from_csv(
        folder / "t.csv", label=list(columns) if len(columns) > 1 else next(iter(columns)), patient="pid", **options
    )


def read(folder, text, **options):
    path = folder / "scores.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Scores.from_csv(path, **options)


BINARY = [0, 1, 0, 1, 0, 1]


# ---- scikit-learn


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 60)
    return rng.normal(size=(60, 3)) + y[:, None], y


def test_scikit_learn_probability_and_target(tmp_path, features):
    x, y = features
    p = LogisticRegression().fit(x, y).predict_proba(x)[:, 1]
    patients = [f"{i // 2:03}" for i in range(60)]
    pandas.DataFrame({"PatientID": patients, "y_true": y, "y_prob": p, "age": 50}).to_csv(tmp_path / "a.csv")
    scores = Scores.from_csv(tmp_path / "a.csv")
    assert (scores.labels, scores.task, scores.thresholds) == (("positive",), "binary", ())
    np.testing.assert_array_equal(scores.probabilities[:, 0], p)
    np.testing.assert_array_equal(scores.targets[:, 0], y)
    assert scores.patients[:3].tolist() == ["000", "000", "001"]
    assert list(scores.groups) == ["age"]
    assert np.isnan(scores.calls).all()
    assert "patients are in the column 'PatientID'" in scores.notes


def test_scikit_learn_both_columns_of_predict_proba(tmp_path, features):
    x, y = features
    model = LogisticRegression().fit(x, y)
    pandas.DataFrame(model.predict_proba(x)).assign(y_true=y).to_csv(tmp_path / "a.csv", index=False)
    scores = Scores.from_csv(tmp_path / "a.csv")
    assert (scores.labels, scores.task) == (("positive",), "binary")
    np.testing.assert_array_equal(scores.probabilities[:, 0], model.predict_proba(x)[:, 1])
    assert any("'1' is the positive one" in note for note in scores.notes)
    assert any("every" not in note and "taken as probabilities" in note for note in scores.notes)


def test_scikit_learn_columns_named_as_classes(tmp_path, features):
    x, y = features
    names = np.array(["no edema", "edema"])[y]
    model = LogisticRegression().fit(x, names)
    assert model.classes_.tolist() == ["edema", "no edema"]  # the positive class is the first
    pandas.DataFrame(model.predict_proba(x), columns=model.classes_).assign(target=names).to_csv(tmp_path / "a.csv")
    scores = Scores.from_csv(tmp_path / "a.csv")
    assert (scores.labels, scores.task) == (("edema",), "binary")
    np.testing.assert_array_equal(scores.targets[:, 0], y)
    np.testing.assert_array_equal(scores.probabilities[:, 0], model.predict_proba(x)[:, 0])


def test_scikit_learn_multiclass(tmp_path):
    rng = np.random.default_rng(0)
    names = np.array(["cat", "dog", "emu"])[rng.integers(0, 3, 60)]
    x = rng.normal(size=(60, 2))
    model = LogisticRegression().fit(x, names)
    columns = [f"prob_{name}" for name in model.classes_]
    pandas.DataFrame(model.predict_proba(x), columns=columns).assign(label=names).to_csv(tmp_path / "a.csv")
    scores = Scores.from_csv(tmp_path / "a.csv")
    assert (scores.labels, scores.task) == (("cat", "dog", "emu"), "multiclass")
    assert [scores.labels[i] for i in scores.targets.argmax(1)] == names.tolist()
    assert [scores.labels[i] for i in scores.calls.argmax(1)] == model.predict(x).tolist()


def test_scikit_learn_decision_function(tmp_path, features):
    x, y = features
    z = LogisticRegression().fit(x, y).decision_function(x)
    pandas.DataFrame({"score": z, "target": y}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match=r"expected scores from 0 to 1, .*Are these logits\? Give scale='logit'"):
        Scores.from_csv(tmp_path / "a.csv")
    scores = Scores.from_csv(tmp_path / "a.csv", scale="logit", thresholds=0.3)
    np.testing.assert_array_equal(scores.ranks[:, 0], z)
    np.testing.assert_array_equal(scores.calls[:, 0], 1 / (1 + np.exp(-z)) >= 0.3)
    assert scores.threshold_rule == "given with the scores"
    assert scores.ids[:2].tolist() == ["line 2", "line 3"]
    assert "rows are named by their line" in " ".join(scores.notes)


# ---- MONAI


def saver(folder, names, values, **options):
    """Write a file with MONAI's CSVSaver, which ClassificationSaver uses too."""
    writer = CSVSaver(folder, "predictions.csv", **options)
    writer.save_batch(torch.as_tensor(values), {"filename_or_obj": list(names)})
    writer.finalize()
    return folder / "predictions.csv"


def test_monai_sigmoid_of_several_labels(tmp_path):
    table = table_of(tmp_path, {"Mass": BINARY, "Edema": BINARY[::-1]})
    p = np.random.default_rng(0).random((6, 2)).astype(np.float32)
    order = [3, 1, 0, 2, 5, 4]
    path = saver(tmp_path, [str(tmp_path / table.ids[i]) for i in order], p[order])
    assert path.read_text().startswith(str(tmp_path))  # no header
    scores = Scores.from_csv(path, table=table)
    assert (scores.labels, scores.task) == (("Mass", "Edema"), "multilabel")
    np.testing.assert_array_equal(scores.probabilities, p)
    np.testing.assert_array_equal(scores.targets, table.targets)
    np.testing.assert_array_equal(scores.patients, table.patients)
    assert list(scores.groups) == ["site"]
    text = " ".join(scores.notes)
    assert "no header" in text
    assert "in the order of the labels of the table: Mass, Edema" in text
    assert "by path" in text


def test_monai_softmax_of_two_classes_on_another_disk(tmp_path):
    table = table_of(tmp_path, BINARY)
    p = torch.softmax(torch.from_numpy(np.random.default_rng(0).normal(size=(6, 2))), 1).numpy()
    names = [f"/elsewhere/{name.split('/')[-1]}" for name in table.ids]
    scores = Scores.from_csv(saver(tmp_path, names, p), table=table)
    assert scores.task == "binary"
    np.testing.assert_array_equal(scores.probabilities[:, 0], p[:, 1])
    assert any("by file name" in note for note in scores.notes)
    z = np.random.default_rng(0).normal(size=(6, 2))
    path = saver(tmp_path, names, z)
    with pytest.raises(DataError, match="Are these logits"):
        Scores.from_csv(path, table=table)
    scores = Scores.from_csv(path, table=table, scale="logit")
    np.testing.assert_allclose(scores.logits[:, 0], z[:, 1] - z[:, 0])


def test_monai_one_output_and_classes(tmp_path):
    table = table_of(tmp_path, BINARY)
    p = np.linspace(0.1, 0.7, 6)[:, None]
    assert Scores.from_csv(saver(tmp_path, table.ids, p), table=table).ranks.ravel().tolist() == p.ravel().tolist()
    table = table_of(tmp_path, ["cat", "dog", "emu"] * 2)
    p = np.random.default_rng(0).dirichlet([1, 1, 1], 6)
    scores = Scores.from_csv(saver(tmp_path, table.ids, p), table=table)
    assert (scores.labels, scores.task) == (("cat", "dog", "emu"), "multiclass")
    np.testing.assert_allclose(scores.probabilities, p)


def test_monai_without_a_table_and_without_names(tmp_path):
    path = saver(tmp_path, ["a.png", "b.png"], [[0.2], [0.3]])
    with pytest.raises(ConfigError, match=r"no header, so that it names no label. Give labels=, or the table="):
        Scores.from_csv(path)
    writer = CSVSaver(tmp_path, "other.csv")
    writer.save_batch(torch.rand(6, 1))
    writer.finalize()
    with pytest.raises(DataError, match=r"no score has the id of a row of .*'images/000.png', here such as '0'"):
        Scores.from_csv(tmp_path / "other.csv", table=table_of(tmp_path, BINARY))


# ---- torchxrayvision


def test_torchxrayvision_frame_by_path(tmp_path):
    labels = {"Effusion": BINARY, "Pleural Thickening": BINARY[::-1], "Lung Lesion": BINARY}
    table = table_of(tmp_path, labels)
    p = np.random.default_rng(0).random((6, 18)).astype(np.float32)
    p[:, [i for i, name in enumerate(PATHOLOGIES) if not name]] = 0.5  # what its models give for a label without a name
    frame = pandas.DataFrame(p, index=table.ids, columns=PATHOLOGIES)
    frame.to_csv(tmp_path / "a.csv")
    scores = Scores.from_csv(tmp_path / "a.csv", table=table)
    assert (scores.labels, scores.task) == (("Effusion", "Pleural Thickening"), "multilabel")
    np.testing.assert_allclose(scores.probabilities, p[:, [7, 9]], rtol=1e-6)
    np.testing.assert_array_equal(scores.targets, table.targets[:, :2])
    text = " ".join(scores.notes)
    assert "4 columns without a name left out" in text
    assert "'Pleural Thickening' is in the file 'Pleural_Thickening'" in text
    assert "labels of the table without a score left out: 'Lung Lesion'" in text
    assert "ids are in the column without a name" in text
    assert "taken as probabilities" in text
    # Read and written again, pandas numbers the columns without a name.
    pandas.read_csv(tmp_path / "a.csv").to_csv(tmp_path / "b.csv", index=False)
    again = Scores.from_csv(tmp_path / "b.csv", table=table)
    np.testing.assert_allclose(again.probabilities, scores.probabilities)
    assert again.labels == scores.labels


def test_a_model_without_any_label_of_the_table(tmp_path):
    table = table_of(tmp_path, {"Nodul": BINARY, "Lesion": BINARY})
    pandas.DataFrame(np.full((6, 18), 0.3), index=table.ids, columns=PATHOLOGIES).to_csv(tmp_path / "a.csv")
    with pytest.raises(
        ConfigError, match=r"expected columns of scores, .*'Atelectasis', .* Give score= with their names"
    ):
        Scores.from_csv(tmp_path / "a.csv", table=table)
    with pytest.raises(ConfigError, match=r"no label of .* \(Nodul, Lesion\) has scores.* Did you mean 'Nodule'"):
        Scores.from_csv(tmp_path / "a.csv", table=table, score=["Nodule", "Mass"])
    scores = Scores.from_csv(tmp_path / "a.csv", table=table, score={"Nodul": "Nodule", "Lesion": "Mass"})
    assert scores.labels == ("Nodul", "Lesion")


# ---- what medzoo writes, and layouts by name


def test_predictions_of_a_run(tmp_path):
    z = np.array([[40.0, -1.0], [39.0, 2.0], [-2.0, 0.5]], np.float32)
    p = torch.from_numpy(z).sigmoid().numpy()
    assert p[0, 0] == p[1, 0] == 1
    lines = ['"id","patient","logit:A","logit:B","probability:A","probability:B","target:A","target:B"']
    rows = [
        *zip(["a", "b", "c"], ["sha256:01", "sha256:01", "sha256:02"], z, p, [(1, ""), (0, 1), (1, 0)], strict=True)
    ]
    lines += [",".join(f'"{v}"' for v in (i, who, *map(float, a), *map(float, b), *t)) for i, who, a, b, t in rows]
    scores = read(tmp_path, "\n".join(lines))
    np.testing.assert_array_equal(scores.ranks, z)
    np.testing.assert_array_equal(scores.logits, z)  # not those of the rounded probabilities
    assert np.isnan(scores.targets[0, 1])
    assert (scores.labels, scores.task) == (("A", "B"), "multilabel")
    text = "\n".join(lines).replace(f'"{float(p[2, 0])}"', '"0.4"')
    other = read(tmp_path, text)
    assert other.probabilities[2, 0] == 0.4
    np.testing.assert_array_equal(other.ranks, z)
    assert any("not the sigmoid of the logits" in note for note in other.notes)


def test_multiclass_predictions_of_a_run(tmp_path):
    head = "id,patient,logit:A,logit:B,logit:C,probability:A,probability:B,probability:C,target:A,target:B,target:C\n"
    z = np.array([[1.0, 2, 3], [0, 0, 1]])
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    rows = [f"{i},,{','.join(map(str, [*z[i], *p[i]]))},{t}\n" for i, t in enumerate(["0,0,1", ",,"])]
    scores = read(tmp_path, head + "".join(rows))
    assert scores.patients is None  # where none are known, medzoo writes blanks
    assert "no patients are known" in " ".join(scores.notes)
    assert scores.task == "multiclass"
    assert np.isnan(scores.targets[1]).all()
    np.testing.assert_allclose(scores.probabilities, p)
    assert any("exclude each other" in note for note in scores.notes)


@pytest.mark.parametrize(("target", "score"), [
    ("target:{}", "probability:{}"), ("y_true_{}", "y_prob_{}"), ("{}_true", "{}_prob"), ("{} label", "{} score"),
    ("label_{}", "pred_proba_{}"), ("gt-{}", "proba-{}"), ("Y_True {}", "Y_Score {}"),
])  # fmt: skip
def test_several_outputs_by_a_word_before_or_after_the_label(tmp_path, target, score):
    names = ["Lung Lesion", "A"]
    head = ",".join(["image_id", *(target.format(n) for n in names), *(score.format(n) for n in names), "label_source"])
    scores = read(tmp_path, f"{head}\na,0,1,0.1,0.7,radiologist\nb,1,1,0.2,0.9,report\n")
    assert (scores.labels, scores.task) == (("Lung Lesion", "A"), "multilabel")
    assert scores.targets.tolist() == [[0, 1], [1, 1]]
    assert scores.probabilities.tolist() == [[0.1, 0.7], [0.2, 0.9]]
    assert list(scores.groups) == ["label_source"]


@pytest.mark.parametrize("target", ["target", "y_true", "label", "truth", "Ground Truth", "GT", "Label"])
@pytest.mark.parametrize("score", ["probability", "prob", "y_prob", "pred_proba", "score", "Y_Score", "logit"])
def test_one_output_by_name(tmp_path, target, score):
    scores = read(tmp_path, f"file_name;subject_id;{target};{score}\na;007;0;0.25\nb;7;1;0.75\n")
    assert scores.ranks.ravel().tolist() == [0.25, 0.75]
    assert scores.ids.tolist() == ["a", "b"]
    assert scores.patients.tolist() == ["007", "7"]


def test_names_by_options(tmp_path):
    text = "scan,who,malignant,model A,model B\na,1,0,-1,0.5\nb,2,1,2,0.4\n"
    scores = read(tmp_path, text, image="scan", patient="who", target="malignant", score="model A", scale="logit")
    assert scores.labels == ("malignant",)
    assert list(scores.groups) == ["model B"]
    assert scores.ranks.ravel().tolist() == [-1, 2]
    with pytest.raises(DataError, match=r"expected the column 'model_A' \(score=\).*Did you mean 'model A'"):
        read(tmp_path, text, image="scan", target="malignant", score="model_A")
    several = "i,ta,tb,a,b\n1,0,1,.2,.3\n2,1,1,.3,.4\n"
    scores = read(tmp_path, several, target={"x": "ta", "y": "tb"}, score={"x": "a", "y": "b"}, labels=["y", "x"])
    assert scores.labels == ("y", "x")
    assert scores.probabilities.tolist() == [[0.3, 0.2], [0.4, 0.3]]


def test_ids_and_patients_can_be_ignored(tmp_path):
    text = "id,pid,target,prob\na,1,0,0.2\na,1,1,0.3\n"
    with pytest.raises(DataError, match=r"rows with the id of another row: line 3 .* image='' for none"):
        read(tmp_path, text)
    scores = read(tmp_path, text, image="", patient="")
    assert (scores.ids.tolist(), scores.patients) == (["line 2", "line 3"], None)
    assert list(scores.groups) == ["id", "pid"]
    with pytest.raises(ConfigError, match="expected reader to be"):
        read(tmp_path, text, reader="")


def test_what_is_not_clear_is_asked(tmp_path):
    row = "\na,a,1,0,0.5,0.5\nb,b,2,1,0.5,0.5\n"
    for head, message in (
        ("id,path,patient,target,prob,other", r"one column of ids, found 'id', 'path'. Give image="),
        ("id,pid,patient,target,prob,other", r"one column of patients, found 'pid', 'patient'. Give patient="),
        ("id,x,target,label,prob,other", r"one column of targets, found 'target', 'label'. Give target="),
        ("id,x,y,target,score,prob", r"one kind of score, found 'score', 'prob'. Give score="),
        ("id,x,y,target,prob,proba", r"one kind of score, found 'prob', 'proba'. Give score="),
        ("id,x,y,target,guess,other", r"expected columns of scores, .* among 'x', 'y', 'target', 'guess', 'other'"),
        ("id,x,y,finding,prob,other", r"expected a column of targets, .* Give target="),
    ):
        with pytest.raises(ConfigError, match=message):
            read(tmp_path, head + row)
    with pytest.raises(ConfigError, match=r"'cat' and 'dog' do not show which is positive. Give labels="):
        read(tmp_path, "target,score\ncat,0.1\ndog,0.2\n")
    assert read(tmp_path, "target,score\ncat,0.1\ndog,0.2\n", labels=["dog"]).targets.ravel().tolist() == [0, 1]
    text = "id,logit:A,logit:B,target:A,target:B\na,1,2,0,1\nb,3,1,1,0\n"
    with pytest.raises(ConfigError, match="Give task='multiclass' if they do"):
        read(tmp_path, text)
    assert read(tmp_path, text, task="multiclass").probabilities.sum(1).tolist() == pytest.approx([1, 1])


def test_all_faults_at_once_by_line(tmp_path):
    text = "id,patient,target,probability\na,1,0,0.2\na,1,2,\nb,,1,oops\nc,3,1,1.5\nd,3,0,inf\ne,4\n,5,0,0.1\n"
    with pytest.raises(DataError) as error:
        read(tmp_path, "\ufeff" + text)
    for part in (
        "1 rows with another number of fields than the header: line 7 (2 fields)", "1 rows without a score: line 3",
        "2 scores that are no finite number: line 4 (probability 'oops'), line 6 (probability 'inf')",
        "2 probabilities that are not from 0 to 1: line 5 (1.5), line 6 (inf). If they are logits, give scale='logit'",
        "1 targets that are not 0 or 1: line 3 ('2')", "1 rows with the id of another row: line 3 (the id of line 2)",
        "1 rows without a patient: line 4", "1 rows without an id: line 8",
    ):  # fmt: skip
        assert part in str(error.value)


def test_probabilities_of_classes_sum_to_one(tmp_path):
    text = "target,prob_a,prob_b,prob_c\na,.2,.3,.4\nb,.2,.3,.5005\n"
    with pytest.raises(DataError, match=r"1 rows whose probabilities of all classes do not sum to 1: line 2 \(0.9\)"):
        read(tmp_path, text)
    with pytest.raises(DataError, match=r"targets that are no class: line 2 \('d'\)\. The classes are a, b, c"):
        read(tmp_path, text.replace("\na,.2,.3,.4", "\nd,.2,.3,.5"))
    scores = read(tmp_path, "target,prob_a,prob_b,prob_c\n2,.2,.3,.5\n0,.2,.3,.5\n")
    assert scores.targets.argmax(1).tolist() == [2, 0]
    assert "numbered in the order" in " ".join(scores.notes)


def test_readers_and_thresholds(tmp_path):
    text = "id,target:A,target:B,prob_A,prob_B,reader:Dr X:A,reader:Dr X:b,reader:Y:B\n"
    text += "a,0,1,.2,.3,1,0,\nb,1,1,.6,.7,,1,0\n"
    scores = read(tmp_path, text, thresholds={"B": 0.5})
    assert scores.thresholds == (None, 0.5)
    np.testing.assert_array_equal(scores.calls, [[np.nan, 0], [np.nan, 1]])
    np.testing.assert_array_equal(scores.readers["Dr X"], np.float32([[1, 0], [np.nan, 1]]))
    np.testing.assert_array_equal(scores.readers["Y"], np.float32([[np.nan, np.nan], [np.nan, 0]]))
    assert not scores.groups
    with pytest.raises(DataError, match=r"names no label of 'A', 'B'. Name it reader:NAME:LABEL"):
        read(tmp_path, text.replace("reader:Y:B", "reader:Y"))
    with pytest.raises(DataError, match=r"calls of readers that are not 0 or 1: line 3 \(reader:Y:B 'maybe'\)"):
        read(tmp_path, text.replace("1,0\n", "1,maybe\n"))
    assert read(tmp_path, "target,prob,reader:Y\n0,.1,1\n1,.2,0\n").readers["Y"].tolist() == [[1], [0]]
    several = read(tmp_path, "label,prob_a,prob_b,prob_c,reader:Y\na,.2,.3,.5,b\nb,.2,.3,.5,c\n")
    assert several.readers["Y"].tolist() == [[0, 1, 0], [0, 0, 1]]
    for given, message in ((1.0, "between 0 and 1"), ([0.5], "for each of 2 labels"), ({"C": 0.5}, "has 'C'")):
        with pytest.raises(ConfigError, match=message):
            read(tmp_path, text, thresholds=given)


def test_calls_as_scores_are_noted_and_commas_read(tmp_path):
    assert "these are calls" in " ".join(read(tmp_path, "target,score\n0,0\n1,1\n").notes)
    scores = read(tmp_path, "target;score\n0;0,25\n1;0,5\n")
    assert scores.ranks.ravel().tolist() == [0.25, 0.5]
    assert "decimal point" in " ".join(scores.notes)


# ---- joined with a table


def test_rows_without_a_partner(tmp_path):
    table = table_of(tmp_path, BINARY)
    rows = [f"{name},0.{i + 1}" for i, name in enumerate(table.ids[:5])] + ["images/zzz.png,0.9"]
    text = "path,probability\n" + "\n".join(rows)
    with pytest.raises(DataError) as error:
        read(tmp_path, text, table=table)
    assert "1 of 6 rows of the table have no score, and 1 of 6 scores no row, joined by id" in str(error.value)
    assert "row 'images/005.png', line 7 ('images/zzz.png')" in str(error.value)
    scores = read(tmp_path, text, table=table, partial=True)
    assert scores.ids.tolist() == table.ids[:5].tolist()
    assert any("1 of 6 rows of the table have no score" in note for note in scores.notes)


def test_file_names_that_are_not_unique(tmp_path):
    table = table_of(tmp_path, BINARY)
    text = "path,probability\n" + "".join(f"D:\\{folder}\\{i:03}.png,0.5\n" for folder in "ab" for i in range(6))
    with pytest.raises(DataError, match="Their file names are not unique"):
        read(tmp_path, text, table=table)
    scores = read(tmp_path, text[: len(text) // 2 + 9], table=table)
    assert len(scores) == 6


def test_the_table_and_the_file_have_to_agree(tmp_path):
    table = table_of(tmp_path, BINARY)
    good = "path,target,probability\n" + "".join(f"{n},{t},0.5\n" for n, t in zip(table.ids, BINARY, strict=True))
    assert len(read(tmp_path, good, table=table)) == 6
    with pytest.raises(DataError, match="1 targets that differ from those of the table: line 3"):
        read(tmp_path, good.replace("001.png,1", "001.png,0"), table=table)
    with pytest.raises(ConfigError, match="expected a column of ids, by which scores are joined"):
        read(tmp_path, "target,probability\n0,.1\n", table=table)
    for task, message in (("multiclass", "task='multiclass', but that of"),):
        with pytest.raises(ConfigError, match=message):
            read(tmp_path, good, table=table, task=task)


def test_the_targets_are_not_taken_for_scores(tmp_path):
    table = table_of(tmp_path, {"A": BINARY, "B": BINARY})
    with pytest.raises(DataError, match="columns 'A', 'B' are the targets of the table, no scores"):
        Scores.from_csv(tmp_path / "t.csv", table=table)


def test_one_score_of_another_label_than_that_of_the_table(tmp_path):
    table = table_of(tmp_path, {"pneumonia": BINARY})
    text = "path,{}\n" + "".join(f"{n},0.5\n" for n in table.ids)
    with pytest.raises(ConfigError, match=r"no label of .* \(pneumonia\) has scores, which are of 'edema'"):
        read(tmp_path, text.format("edema_prob"), table=table)
    assert read(tmp_path, text.format("edema_prob"), table=table, labels=["pneumonia"]).labels == ("pneumonia",)
    assert read(tmp_path, text.format("prob"), table=table).labels == ("pneumonia",)
    assert read(tmp_path, text.format("Pneumonia"), table=table).labels == ("pneumonia",)


def test_classes_of_the_table_have_to_be_those_of_the_file(tmp_path):
    table = table_of(tmp_path, ["cat", "dog", "emu"] * 2)
    text = "path,prob_cat,prob_dog{}\n" + "".join(f"{n},.5,.5\n" for n in table.ids)
    with pytest.raises(ConfigError, match="expected scores of the classes cat, dog, emu, found 'cat', 'dog'"):
        read(tmp_path, text.format(""), table=table)


def test_readers_are_those_of_the_table_too(tmp_path):
    table = table_of(tmp_path, {"A": BINARY, "reader:Z": BINARY}, n=6)
    assert table.task == "multilabel"  # as both are labels
    frame = pandas.read_csv(tmp_path / "t.csv")
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = Table.from_csv(tmp_path / "t.csv", label="A", patient="pid")
    scores = read(tmp_path, "path,prob\n" + "".join(f"{n},0.5\n" for n in table.ids[::-1]), table=table)
    assert scores.readers["Z"].ravel().tolist() == BINARY
    assert list(scores.groups) == ["site"]
