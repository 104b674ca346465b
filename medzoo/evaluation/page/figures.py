"""Curves as figures: ROC, precision and recall, reliability and decision curve of an output; a training by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.evaluation.curves import LabelCurves
from medzoo.evaluation.metrics import LabelMetrics
from medzoo.evaluation.page.markup import Markup, number
from medzoo.evaluation.page.svg import COLOURS, figure, own_style, render
from medzoo.evaluation.readers import ReaderRow

__all__ = [
    "MARKERS", "decision_figure", "log_figures", "pr_figure", "reliability_figure", "reliability_limit",
    "roc_figure",
]  # fmt: skip

Array = NDArray[np.float64]
WIDTH, HEIGHT = 260, 232
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">")  # of the readers


def _colour(metrics: LabelMetrics) -> str:
    return COLOURS["series-1" if metrics.counts.eligible else "muted"]


def _band(axes: Any, x: Array, band: tuple[Array, Array] | None, colour: str) -> None:
    if band is not None:
        axes.fill_between(x, *band, color=colour, alpha=0.18, linewidth=0)


def _rates(axes: Any, x: str, y: str, limit: float = 1.0) -> None:
    margin = 0.015 * limit
    axes.set(xlim=(-margin, limit + margin), ylim=(-margin, limit + margin), xlabel=x, ylabel=y)
    ticks = [limit * share for share in (0, 0.25, 0.5, 0.75, 1)]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [f"{tick:.4g}" for tick in ticks])


def _point(axes: Any, x: float, y: float, marker: str, colour: str, *, filled: bool = True) -> None:
    axes.plot(
        [x], [y], marker=marker, markersize=6, color=colour, linestyle="", zorder=5, clip_on=False,
        markerfacecolor=colour if filled else "none", markeredgecolor=colour,
    )  # fmt: skip


@own_style
def roc_figure(
    curves: LabelCurves, metrics: LabelMetrics, name: str, readers: Sequence[tuple[str, ReaderRow]] = ()
) -> Markup:
    """Return the ROC curve with its band, the point of the threshold and those of the readers, each with a marker."""
    drawn, axes = figure(WIDTH, HEIGHT)
    colour = _colour(metrics)
    axes.plot([0, 1], [0, 1], color=COLOURS["line"], linewidth=1, linestyle=(0, (4, 3)))
    _band(axes, curves.roc_grid, curves.roc_band, colour)
    axes.plot(*curves.roc, color=colour, linewidth=1.6)
    if metrics.calls is not None:
        x, y = 1 - metrics["specificity"].value, metrics["sensitivity"].value
        if math.isfinite(x + y):
            _point(axes, x, y, "o", colour)
    for marker, row in readers:
        _point(axes, 1 - row.specificity.value, row.sensitivity.value, marker, COLOURS["series-2"], filled=False)
    _rates(axes, "1 − specificity", "sensitivity")
    title = f"ROC curve of {metrics.label}: AUROC {metrics['auroc']}"
    if readers:
        title += "; points of the readers: " + ", ".join(
            f"{row.reader} sensitivity {number(row.sensitivity.value, 2)}, "
            f"specificity {number(row.specificity.value, 2)}, on {row.rows:,} rows"
            for _, row in readers
        )
    return render(drawn, name, title)


@own_style
def pr_figure(curves: LabelCurves, metrics: LabelMetrics, name: str) -> Markup:
    """Return the curve of precision and recall with its band and the prevalence, which a coin reaches."""
    drawn, axes = figure(WIDTH, HEIGHT)
    colour, share = _colour(metrics), metrics["prevalence"].value
    if math.isfinite(share):
        axes.axhline(share, color=COLOURS["line"], linewidth=1, linestyle=(0, (4, 3)))
    _band(axes, curves.pr_grid, curves.pr_band, colour)
    axes.plot(*curves.pr, color=colour, linewidth=1.6)
    if metrics.calls is not None:
        x, y = metrics["sensitivity"].value, metrics["ppv"].value
        if math.isfinite(x + y):
            _point(axes, x, y, "o", colour)
    _rates(axes, "recall (sensitivity)", "precision (PPV)")
    title = (
        f"Precision and recall of {metrics.label}: average precision {metrics['average_precision']}, "
        f"prevalence {number(share)}"
    )
    return render(drawn, name, title)


@own_style
def reliability_figure(
    curves: LabelCurves, metrics: LabelMetrics, probabilities: Array, name: str, before: LabelCurves | None = None
) -> Markup:
    """Return the observed share of positives by predicted probability, with intervals, above a histogram.

    Args:
        curves: of the output.
        metrics: of it.
        probabilities: of it, one for each row.
        name: of the figure.
        before: the curves before the calibration.
    """
    drawn, axes = figure(WIDTH, HEIGHT + 24)
    colour, limit = _colour(metrics), reliability_limit(curves, before)
    axes.plot([0, limit], [0, limit], color=COLOURS["line"], linewidth=1, linestyle=(0, (4, 3)))
    if before is not None:
        x, y = ([b.predicted for b in before.reliability], [b.observed.value for b in before.reliability])
        axes.plot(x, y, color=COLOURS["series-2"], linewidth=1.1, linestyle=(0, (2, 2)), marker="s", markersize=3.5,
                  markerfacecolor="none")  # fmt: skip
    known = [b for b in curves.reliability if b.observed.low is not None and b.observed.high is not None]
    axes.vlines([b.predicted for b in known], *([getattr(b.observed, end) for b in known] for end in ("low", "high")),
                color=colour, linewidth=1.2)  # fmt: skip
    axes.plot([b.predicted for b in curves.reliability], [b.observed.value for b in curves.reliability], color=colour,
              linewidth=1.2, marker="o", markersize=4)  # fmt: skip
    counts, edges = np.histogram(probabilities, 25, (0, limit))
    share = limit * counts / max(1, counts.max())
    base = -0.17 * limit
    axes.stairs(share * 0.13 + base, edges, baseline=base, fill=True, color=COLOURS["muted"], alpha=0.55, linewidth=0)
    _rates(axes, "predicted probability", "observed share", limit)
    axes.set_ylim(-0.185 * limit, 1.015 * limit)
    return render(drawn, name, _reliability_title(curves, metrics, before))


def reliability_limit(curves: LabelCurves, before: LabelCurves | None = None) -> float:
    """Return where the axes end: at 1, or earlier for an output that is rare, whose bins lie in a corner."""
    bins = (*curves.reliability, *(before.reliability if before is not None else ()))
    values = [v for b in bins for v in (b.predicted, b.observed.value, b.observed.high) if v is not None]
    most = max((v for v in values if math.isfinite(v)), default=1.0)
    return next((limit for limit in (0.02, 0.04, 0.1, 0.2, 0.4) if most <= limit), 1.0)


def _reliability_title(curves: LabelCurves, metrics: LabelMetrics, before: LabelCurves | None) -> str:
    pairs = ", ".join(f"{b.predicted:.2f}: {b.observed.value:.2f}" for b in curves.reliability)
    text = f"Reliability of {metrics.label}, observed share of positives by predicted probability: {pairs or 'no bins'}"
    return text + ("; the dashed line is before calibration" if before is not None else "")


@own_style
def decision_figure(curves: LabelCurves, metrics: LabelMetrics, name: str) -> Markup:
    """Return the net benefit of the model beside that of treating all and none."""
    drawn, axes = figure(WIDTH, HEIGHT + 24, left=56)
    colour = _colour(metrics)
    x = curves.decision_at
    axes.axhline(0, color=COLOURS["muted"], linewidth=1)
    axes.plot(x, curves.treat_all, color=COLOURS["muted"], linewidth=1.1, linestyle=(0, (5, 2)))
    _band(axes, x, curves.net_benefit_band, colour)
    axes.plot(x, curves.net_benefit, color=colour, linewidth=1.6)
    top = float(np.nanmax([*curves.net_benefit, *curves.treat_all, 1e-3])) if len(x) else 1.0
    low = min([0.0, *curves.net_benefit]) if len(x) else 0.0
    axes.set(xlabel="threshold probability", ylabel="net benefit")
    axes.set_ylim(max(low * 1.1, -0.6 * top) - 0.04 * top, top * 1.1)
    if len(x):
        axes.set_xlim(0, float(x[-1]))
    axes.locator_params(nbins=5)
    better = x[curves.net_benefit > np.maximum(curves.treat_all, 0) + 1e-12]
    where = f"above both from {better[0]:.2f} to {better[-1]:.2f}" if len(better) else "nowhere above both"
    return render(drawn, name, f"Decision curve of {metrics.label}: net benefit of the model, {where}")


def _power(value: float) -> str:
    """Return a small number with its power of ten, as recipes write a learning rate.

    >>> _power(1e-3), _power(0.000175), _power(0.0)
    ('1e-3', '1.75e-4', '0')
    """
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}" if abs(value) > 1e-12 else "0"


@own_style
def log_figures(log: Sequence[Mapping[str, float]]) -> list[tuple[str, Markup]]:
    """Return the curves of a training by epoch, each with what it shows: the losses, and the validation figures."""
    panels = (
        ("Loss", (("loss", "training"), ("valid_loss", "validation"))),
        ("Validation", (("valid_auroc", "AUROC"), ("valid_accuracy", "accuracy"))),
        ("Learning rate", (("lr", "learning rate"),)),
    )
    found = []
    for i, (what, columns) in enumerate(panels):
        known = [(key, label) for key, label in columns if any(math.isfinite(row.get(key, math.nan)) for row in log)]
        if not known:
            continue
        drawn, axes = figure(WIDTH, HEIGHT - 40, left=54)
        epochs = [row.get("epoch", n + 1) for n, row in enumerate(log)]
        for j, (key, label) in enumerate(known):
            axes.plot(epochs, [row.get(key, math.nan) for row in log], color=COLOURS[f"series-{j + 1}"], linewidth=1.5,
                      linestyle=("-", (0, (4, 2)))[j], marker="." if len(log) < 40 else "", label=label)  # fmt: skip
        axes.set_xlabel("epoch")
        if what == "Learning rate":
            axes.yaxis.set_major_formatter(lambda rate, _: _power(rate))
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(epochs) == 1:
            axes.set(xlim=(epochs[0] - 1, epochs[0] + 1), xticks=epochs)
        if len(known) > 1:
            axes.legend(frameon=False, fontsize=8, labelcolor=COLOURS["muted"])
        last = ", ".join(f"{label} {log[-1].get(key, math.nan):.4g}" for key, label in known)
        found.append((what, render(drawn, f"log-{i}", f"{what} by epoch; in the last of {len(log)}: {last}")))
    return found
