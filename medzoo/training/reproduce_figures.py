"""The figures of :func:`medzoo.reproduce` with their intervals, and in words what their differences are made of.

Axes: n rows, l labels, r resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.evaluation.case_counts import FEW, Counts, count
from medzoo.evaluation.estimate import LEAST_PATIENTS, Estimate
from medzoo.evaluation.intervals import scaled_interval
from medzoo.evaluation.metrics import measure
from medzoo.evaluation.replicates import Replicates, replicate
from medzoo.evaluation.resample import Resamples
from medzoo.evaluation.scores import Scores
from medzoo.training.recipe import ProtocolSection
from medzoo.training.reproduce_ways import FigureRow, Measured

__all__ = ["Figures", "best_look", "chance_of", "common_labels", "figure_rows", "figures_of", "reasons_of"]

RESAMPLES = 2000
COMMON = "auroc_common"
CHANCE = "chance"
TITLES = {
    "auroc": "AUROC", "accuracy": "Accuracy", "exact_match": "Exact match", "sensitivity": "Sensitivity",
    "specificity": "Specificity", "precision": "Precision",
}  # fmt: skip
OF_SAMPLE = "The rows were sampled by class: the figure is of this sample and its calls, not of the population."
OWN_NAME = {"precision": "ppv"}  # as medzoo.evaluation calls it


@dataclass(frozen=True)
class Figures:
    """Figures of some scores by name, and how many labels each is the mean of."""

    values: Mapping[str, Estimate]
    labels: Mapping[str, int] = field(default_factory=dict)


def figures_of(scores: Scores, common: Sequence[str] = (), *, resamples: int = RESAMPLES, title: str = "") -> Figures:
    """Return every figure of scores with its interval.

    With several labels AUROC, accuracy, sensitivity, specificity and precision are means over the labels for which
    they are defined: with positives and negatives, with a known row, with positives, with negatives, and with
    positives. The precision of a label that is never called positive counts as 0, as in scikit-learn. ``exact_match``
    is the share of rows of which every known label is called right. With classes that exclude each other, accuracy is
    that of the most probable class.

    Args:
        scores: with thresholds.
        common: labels that ``auroc_common`` is the mean of.
        resamples: of the bootstrap of patients, or of rows where the scores have no patients.
        title: of a progress bar; empty for none.
    """
    clusters, chosen = scores.clusters, [label in common for label in scores.labels]
    found = replicate(scores, Resamples(clusters, resamples, 0), chosen, title=title)
    metrics = measure(scores, eligible=common, resamples=resamples, replicates=found)
    if len(scores.labels) == 1:
        alone = {name: metrics.labels[0][OWN_NAME.get(name, name)] for name in TITLES if name != "exact_match"}
        return Figures({**alone, "exact_match": alone["accuracy"]})
    counts = [count(scores.targets[:, i], clusters) for i in range(len(scores.labels))]
    overall = metrics.overall
    values = {"auroc": overall["macro_auroc_all"], COMMON: overall["macro_auroc"]}
    values["exact_match"] = overall["accuracy" if scores.task == "multiclass" else "exact_match"]
    labels = {"auroc": metrics.valid, COMMON: len(common)}
    for name in ("accuracy", "sensitivity", "specificity", "precision"):
        if name == "accuracy" and scores.task == "multiclass":
            values[name] = overall["accuracy"]
        else:
            values[name], labels[name] = _mean(name, found, counts)
    return Figures(values, labels)


def _mean(name: str, found: Replicates, counts: Sequence[Counts]) -> tuple[Estimate, int]:
    """Return the mean of a figure over the labels for which it is defined, and how many these are."""
    classes = {"accuracy": ("positive", "negative"), "specificity": ("negative",)}.get(name, ("positive",))
    patients = [sum(getattr(c, f"{each}_patients") for each in classes) for c in counts]
    chosen = [any(getattr(c, each) for each in classes) for c in counts]
    if not any(chosen):
        return Estimate(math.nan, why="not defined for these rows"), 0
    values, replicates = (array[chosen] for array in found.labels[OWN_NAME.get(name, name)])
    if name == "precision":
        values, replicates = np.nan_to_num(values), np.nan_to_num(replicates)
    least = min(number for number, ok in zip(patients, chosen, strict=True) if ok)
    estimate = scaled_interval(float(values.mean()), replicates.mean(0), max(2, least))
    if least < LEAST_PATIENTS:
        estimate = Estimate(estimate.value, why=f"{FEW} of an output that it averages")
    return estimate, sum(chosen)


def best_look(looks: Sequence[Scores], figure: str) -> int:
    """Return which of several validations has the highest figure, counted from 1; the first of equal ones."""
    values = [figures_of(scores, resamples=1).values[figure].value for scores in looks]
    return 1 + int(np.argmax([-math.inf if math.isnan(value) else value for value in values]))


def common_labels(every: Sequence[Scores]) -> tuple[str, ...]:
    """Return the labels with enough positive and negative patients in each of several scores."""
    labels = every[0].labels
    enough = [[count(s.targets[:, i], s.clusters).eligible for i in range(len(labels))] for s in every]
    return tuple(label for label, ok in zip(labels, np.all(enough, axis=0), strict=True) if ok)


def chance_of(figure: str, scores: Scores) -> tuple[float | None, str]:
    """Return what a figure of these rows is without looking at an image, and what that is in words."""
    if figure in ("auroc", COMMON):
        return 0.5, CHANCE
    targets = scores.targets
    with np.errstate(invalid="ignore"):
        known = (~np.isnan(targets)).any(0)
        shares = np.nanmean(targets[:, known], axis=0) if known.any() else np.empty(0)
    if not len(shares) or figure in ("sensitivity", "specificity"):
        return None, ""
    if figure == "precision":
        return float(shares[shares > 0].mean()) if (shares > 0).any() else None, "calling rows positive at random"
    if scores.task == "multiclass":
        return float(shares.max()), "the most frequent class for every row"
    if figure == "accuracy":
        return float(np.maximum(shares, 1 - shares).mean()), "the same answer for every row"
    return _constant_match(targets), "the same answer for every row"


def _constant_match(targets: NDArray[np.float32]) -> float:
    """Return the share of rows ``n l`` of which the most frequent combination of labels has every known one right."""
    complete = targets[~np.isnan(targets).any(1)]
    if not len(complete):
        return math.nan
    combinations, counts = np.unique(complete, axis=0, return_counts=True)
    rows = targets[(~np.isnan(targets)).any(1)]
    return float(((rows == combinations[counts.argmax()]) | np.isnan(rows)).all(1).mean())


def figure_rows(
    ways: Mapping[str, Measured], protocol: ProtocolSection, claim: Mapping[str, Any], *, sampled: bool = False
) -> tuple[FigureRow, ...]:
    """Return the rows of the table: the source's figures, and AUROC where it is not among them.

    Args:
        ways: by name.
        protocol: of the source.
        claim: what the source reported, by figure.
        sampled: whether the rows were sampled by class.
    """
    every = [way.scores for way in ways.values()]
    common, count_all = common_labels(every), len(every[0].labels)
    found = {name: figures_of(way.scores, common, title="intervals") for name, way in ways.items()}
    names = [*protocol.figures, *(["auroc"] if "auroc" not in protocol.figures else [])]
    if 0 < len(common) < count_all:
        names.insert(names.index("auroc") + 1, COMMON)
    rows = []
    for name in dict.fromkeys(names):
        estimates = {way: figures.values[name] for way, figures in found.items()}
        labels = {way: figures.labels[name] for way, figures in found.items() if name in figures.labels}
        claimed = claim.get(name)
        number = float(claimed) if isinstance(claimed, (int, float)) and not isinstance(claimed, bool) else None
        # Of the rows and labels of each way: where a leak or permuted labels change these, they change the baseline.
        chances = {way: chance_of(name, measured.scores) for way, measured in ways.items()}
        chance, what = {way: one for way, (one, _) in chances.items()}, next((w for _, w in chances.values() if w), "")
        sentence = _sentence(estimates, labels, ways, chance, what)
        if sampled and name not in ("auroc", COMMON):
            sentence += f" {OF_SAMPLE}"
        title = _title(name, every[0], common)
        rows.append(FigureRow(name, title, number, estimates, labels, chance, what, sentence))
    return tuple(rows)


def _title(name: str, scores: Scores, common: Sequence[str]) -> str:
    """Return the title of a row."""
    count_all = len(scores.labels)
    if name == COMMON:
        shown = ", ".join(common)
        return f"AUROC, mean of {len(common)} of {count_all} labels: {shown}"
    if count_all == 1:
        return TITLES[name] if name == "auroc" else f"{TITLES[name]} at 0.5"
    if name == "exact_match" or (name == "accuracy" and scores.task == "multiclass"):
        return f"{TITLES[name]} of all {count_all} labels" if scores.task != "multiclass" else "Accuracy"
    at = " at 0.5" if name != "auroc" and scores.task != "multiclass" else ""
    return f"{TITLES[name]}{at}, mean over {'classes' if scores.task == 'multiclass' else 'labels'}"


def _sentence(
    estimates: Mapping[str, Estimate], labels: Mapping[str, int], ways: Mapping[str, Measured],
    chance: Mapping[str, float | None], chance_text: str,
) -> str:  # fmt: skip
    """Return what the difference between the columns is made of, and what is left of it without a link to labels."""
    published, honest = estimates["as_published"], estimates["honest"]
    nothing, fair = estimates["permuted_as_published"], estimates["permuted_honest"]
    if math.isnan(published.value) or math.isnan(honest.value):
        return f"Not defined in every column: {published.why or honest.why}."
    reasons = reasons_of(ways["as_published"])
    difference = published.value - honest.value
    text = f"On this data and model {published.value:.3f} as published and {honest.value:.3f} honestly"
    if honest.low is not None and honest.high is not None and honest.low <= published.value <= honest.high:
        text += ", a difference within the interval of the honest figure"
    elif difference > 0:
        text += f": {difference:.3f} more"
        text += ", but the honest figure has no interval" if honest.low is None else ""
    else:
        text += ": not higher"
    text += f". As published, {reasons}."
    if ways["as_published"].leaks and published.low is not None:
        text += " The interval of that is of rows, as patients are ignored, and too narrow."
    if len({labels[name] for name in ("as_published", "honest")} if labels else ()) > 1:
        text += " The two are means over different labels, as some have one class alone in one of the parts."
    if not math.isnan(nothing.value) and not math.isnan(fair.value):
        text += f" With permuted labels the way of the source still gives {nothing.value:.3f}, "
        text += f"the honest one {fair.value:.3f}"
        known = [chance[name] for name in ("permuted_as_published", "permuted_honest")]
        own = [f"{one:.3f}" for one in known if one is not None and not math.isnan(one)]
        of = "" if len(set(own)) < 2 else " in those rows"
        text += f" ({chance_text}{of}: {' and '.join(dict.fromkeys(own))})." if len(own) == len(known) else "."
    if chance_text != CHANCE:
        for name, whose in (("as_published", "figure as published"), ("honest", "honest figure")):
            baseline = chance[name]
            if baseline is not None and estimates[name].value < baseline:
                text += (
                    f" The {whose} is below that of {chance_text} in its rows, {baseline:.3f}, which needs no image."
                )
    if chance_text == CHANCE and fair.low is not None and fair.high is not None and not fair.low <= 0.5 <= fair.high:
        text += (
            " The interval of the honest figure with permuted labels does not contain 0.5, which happens by chance in "
            "about 1 of 20 and says nothing of the data: permuted labels leave no link that a leak between patients "
            "could carry. Another train.seed, in another folder, permutes them again."
        )
    return text


def reasons_of(way: Measured) -> str:
    """Return what makes the way of the source differ from the honest one."""
    found = []
    if way.part == "train":
        found.append("it is measured on the rows that the model was trained on")
    elif way.shared:
        count_of = f"{way.shared:,} of the {way.patients:,} patients" if way.patients else "patients"
        found.append(f"{count_of} of the measured rows are in the training rows too")
    elif way.leaks:
        known = "no patient is in both parts" if way.shared == 0 else "whether patients are in both parts is not known"
        found.append(f"rows are divided without regard to patients, and {known}")
    if way.looks is not None:
        found.append(f"it is the best of {way.looks} looks at the same rows")
    if not found and way.run == "honest":
        return f"it is measured on the {way.part} part of the honest run"
    if not found:
        return "it is measured as the honest figure is, on another split by patient"
    return " and ".join(found)
