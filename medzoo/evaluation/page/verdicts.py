"""What follows from figures in words: whether a model is better than chance, and which accuracy is of what."""

from __future__ import annotations

from collections.abc import Sequence

from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.metrics import LabelMetrics, Metrics
from medzoo.evaluation.sampled import percent

__all__ = ["accuracies", "by_chance", "chance_sentences", "join_labels"]


def accuracies(label: LabelMetrics, metrics: Metrics) -> list[tuple[str, Estimate]]:
    """Return the accuracy here and that at the stated share of positives, each with what it is of; empty for none."""
    there, here = label.values.get("accuracy_at_prevalence"), label.values.get("accuracy")
    if there is None or here is None or label.calls is None:
        return []
    options, known = metrics.options, label.counts.positive + label.counts.negative
    names = ("in this sample", "in the population") if options.sampled else ("here", "at the stated share")
    shares = label.counts.positive / max(1, known), options.prevalence[metrics.labels.index(label)]
    return [(f"{n} ({percent(s)} positive)", e) for n, s, e in zip(names, shares, (here, there), strict=True)]


def by_chance(metrics: Metrics) -> tuple[list[str], list[str]]:
    """Return the outputs whose AUROC cannot be distinguished from 0.5, and those whose interval is below it."""
    known = [(m.label, m["auroc"]) for m in metrics.labels]
    ends = [(label, e.low, e.high) for label, e in known if e.low is not None and e.high is not None]
    return [x for x, low, high in ends if low <= 0.5 <= high], [x for x, _, high in ends if high < 0.5]


def chance_sentences(metrics: Metrics) -> list[str]:
    """Return in words what follows from an AUROC whose interval holds 0.5, or is below it."""
    alike, below = by_chance(metrics)
    several, found = len(metrics.labels) > 1, []
    if alike:
        of = f" for {join_labels(alike)}" if several else ""
        found.append(
            f"The model cannot be distinguished from chance on this data{of}: the interval of the AUROC holds 0.5, "
            "which guessing reaches."
        )
    if below:
        of = f" for {join_labels(below)}" if several else ""
        found.append(
            f"The model ranks worse than chance on this data{of}: the interval of the AUROC is below 0.5. Check "
            "whether the labels, or the scores, are the other way round."
        )
    return found


def join_labels(names: Sequence[str], most: int = 8) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
