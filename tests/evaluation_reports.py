"""Reports of simulated scores, with and without each part, whose texts are hostile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medzoo.evaluation.checklist import draft
from medzoo.evaluation.compare import Comparison, Difference
from medzoo.evaluation.curves import LabelCurves, ReliabilityBin
from medzoo.evaluation.drift import Drift, DriftRow
from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.examples import ExamplePicture, choose_examples
from medzoo.evaluation.flow import Characteristics, Flow, FlowStep
from medzoo.evaluation.groups import GroupRow, GroupTable
from medzoo.evaluation.metrics import measure
from medzoo.evaluation.readers import Agreement, ReaderRow
from medzoo.evaluation.replicates import Options
from medzoo.evaluation.report import Report
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.seeds import SeedSummary

HOSTILE = '<script>alert("x")</script> & \' ü $\\alpha_1$'
PNG = ExamplePicture(b"\x89PNG\r\n\x1a\n-picture-")


class Pseudonyms:
    """Names that are not those of the patients."""

    def of(self, text):
        return f"case{sum(text.encode()) % 9973}"


def scores(labels=("Pneumonia",), task="binary", rows=240, patients=120, share=0.3, **fields):
    rng = np.random.default_rng(0)
    who = np.concatenate([np.arange(patients), rng.integers(0, patients, rows - patients)])
    if task == "multiclass":
        targets = np.eye(len(labels), dtype=np.float32)[rng.integers(0, len(labels), rows)]
    else:
        targets = (rng.random((rows, len(labels))) < share).astype(np.float32)
    logits = rng.normal(size=(rows, len(labels))) + 2 * targets - 1
    given = {
        "ids": np.array([f"hospital/scan-{i:05d}.png" for i in range(rows)]),
        "patients": np.array([f"Müller^{p:04d}" for p in who]),
        "source": "/data/secret place/scores.csv",
        "threshold_rule": "Youden on /data/secret/valid.csv",
        "thresholds": () if task == "multiclass" else (0.5,) * len(labels),
    }
    return Scores.from_logits(logits, task=task, targets=targets, labels=tuple(labels), **{**given, **fields})


def curves(of, metrics):
    x = np.linspace(0, 1, 11)
    band = (np.clip(np.sqrt(x) - 0.1, 0, 1), np.clip(np.sqrt(x) + 0.1, 0, 1))
    found = []
    for label in of.labels:
        known = metrics[label].counts.eligible
        observed = Estimate(0.3, 0.2, 0.4, "bootstrap over patients") if known else Estimate(0.3, why="too few")
        found.append(
            LabelCurves(
                label=label, roc=(x, np.sqrt(x)), roc_grid=x, roc_band=band if known else None, pr=(x, 1 - x / 2),
                pr_grid=x, pr_band=band if known else None, decision_at=x[1:-1], net_benefit=0.2 - x[1:-1] / 4,
                net_benefit_band=None, treat_all=0.3 - x[1:-1],
                reliability=(ReliabilityBin(0.1, observed, 20, 18), ReliabilityBin(0.8, observed, 20, 19)),
            )
        )  # fmt: skip
    return tuple(found)


def difference(value, half=0.05):
    return Difference(0.8 + value, 0.8, Estimate(value, value - half, value + half, "bootstrap over patients"))


def groups(of, column="site"):
    key, figure = ("", "macro_auroc") if len(of.labels) > 1 else (of.labels[0], "auroc")
    one = Estimate(0.8, 0.7, 0.9, "bootstrap over patients")
    figures = {label: {"auroc": one, "sensitivity": one} for label in of.labels}
    figures.setdefault(key, {})[figure] = one
    known = {"positive_patients": dict.fromkeys(of.labels, 20), "figures": figures}
    hidden = {"positive_patients": dict.fromkeys(of.labels, None), "figures": {}, "differences": {}}

    def row(value, change):
        return GroupRow(
            value=value, rows=90, patients=80, differences={key: {figure: change}}, reference=False, **known
        )

    rows = (
        GroupRow(value=HOSTILE, rows=90, patients=80, differences={}, reference=True, **known),
        row("lower", difference(-0.1)),
        row("Müller^0001", difference(0.01)),
        GroupRow(value="rare", rows=None, patients=None, reference=False, **hidden),
    )  # fmt: skip
    return GroupTable(column=column, rows=rows, notes=("such as hospital/scan-00003.png",))


def minimal(**fields):
    of = scores(**fields)
    return Report("Scores", of, measure(of, resamples=40))


def full(labels=("Pneumonia", HOSTILE), task="multilabel", **fields):
    of = scores(
        labels, task, notes=(f"{HOSTILE}: 3 rows of '/data/secret place/scores.csv', such as scan-00007.png",), **fields
    )
    options = Options() if task == "multiclass" else Options(prevalence=(0.01,) * len(labels))
    metrics = measure(of, options=options, resamples=40)
    one = Estimate(0.7, 0.6, 0.8, "bootstrap over patients")
    drawn = curves(of, metrics)
    report = Report(
        title=f"Title {HOSTILE}", scores=of, metrics=metrics, curves=drawn, groups=(groups(of), groups(of, HOSTILE)),
        comparison=Comparison(
            names=("this", "/data/secret/other.csv"), rows=200, patients=100,
            labels={label: {"auroc": difference(0.1), "brier": difference(0.0)} for label in labels},
            overall={"macro_auroc": difference(0.02)}, notes=("of Müller^0002",),
        ),
        readers=(ReaderRow(reader=HOSTILE, label=labels[0], rows=100, sensitivity=one, specificity=one, kappa=one),),
        agreements=(Agreement(label=labels[0], first=HOSTILE, second="B", rows=100, kappa=one),),
        seeds=SeedSummary(("0", "1"), {x: {"auroc": (0.8, 0.01)} for x in labels}, {"macro_auroc": (0.8, 0.01)}),
        before=(metrics, drawn),
        flow=Flow((FlowStep("All rows", 300, 130, ((HOSTILE, 60),)), FlowStep("Evaluated", 240, 120, ()))),
        characteristics=Characteristics(("training", HOSTILE), (("Rows", ("9", "2")), (HOSTILE, ("1", "2")))),
        log=({"epoch": 1.0, "loss": 0.7, "valid_loss": 0.6}, {"epoch": 2.0, "loss": 0.5, "valid_loss": float("nan")}),
        drift=Drift((DriftRow("mean", "0.4", "0.5", 0.6, True), DriftRow(HOSTILE, "1", "2", None, False)), ("",)),
        openings=2, facts={"model": HOSTILE, "data": "two sites", "command": "evaluate /home/me/run --data=~/x.csv"},
        notes=("see /data/notes.txt",),
        examples=choose_examples(of, Pseudonyms(), 1, draw=lambda _, asked: [PNG] * len(asked)),
    )  # fmt: skip
    return replace(report, checklist=draft(report))


def sad():
    of = scores(("Few", "None", "Enough"), "multilabel", thresholds=(None, None, None))
    targets = of.targets.copy()
    targets[:, :2] = 0
    targets[:8, 0] = 1
    of = replace(of, targets=targets)
    metrics = measure(of, resamples=40)
    return Report("Sad", of, metrics, curves(of, metrics))
