"""The figures of a model card, with their intervals."""

from __future__ import annotations

from medzoo.evaluation.metrics import Metrics

__all__ = ["card_metrics"]


def card_metrics(metrics: Metrics, split: str) -> dict[str, float]:
    """Return the figures of a model card by name, each with its interval or none; what cannot be computed is left out.

    Args:
        metrics: of the model that is saved.
        split: of the rows, which starts each name.
    """
    found: dict[str, float] = {f"{split}: rows": metrics.rows}
    if metrics.patients is not None:
        found[f"{split}: patients"] = metrics.patients
    several = len(metrics.labels) > 1
    figures = [(f"AUROC, {m.label}" if several else "AUROC", m["auroc"]) for m in metrics.labels]
    if several:
        figures.insert(0, (f"mean AUROC of {len(metrics.eligible)} labels", metrics.overall["macro_auroc"]))
    for name, estimate in figures:
        for suffix, value in (("", estimate.value), (", 95 % low", estimate.low), (", 95 % high", estimate.high)):
            if value is not None and value == value:
                found[f"{split}: {name}{suffix}"] = round(float(value), 4)
    return found
