"""``draw_incidence``: how often each label is positive in each part, as bars."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medzoo.atomic import write_atomically
from medzoo.errors import ConfigError
from medzoo.training.check_counts import LabelCount, PartCount

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_incidence"]

MOST_LABELS = 60
COLOURS = {"train": "#0072b2", "valid": "#d55e00", "test": "#7f7f7f"}
"""Distinct for the colour-blind."""


def draw_incidence(parts: Sequence[PartCount], labels: Sequence[str], path: Path) -> None:
    """Draw the share and the count of positives of each label in each part, the most frequent label first, as a PNG.

    The share is of the rows whose label is known. Nothing of pyplot changes.

    Args:
        parts: counts of train, valid and test; those without rows are left out.
        labels: names of the labels, in the order of the counts.
        path: of the picture.

    Raises:
        ConfigError: it cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [part for part in parts if part.rows]
    order = sorted(range(len(labels)), key=lambda label: -_share(drawn[0].labels[label]))[:MOST_LABELS]
    left_out = len(labels) - len(order)
    grey = "#404040"
    style: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), grey)
    with matplotlib.rc_context(style):
        bars = len(order) * (len(drawn) + 0.8)
        figure = Figure(figsize=(9, 1.4 + 0.19 * bars), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for number, part in enumerate(drawn):
            _draw_part(axes, part, [part.labels[label] for label in order], number, len(drawn))
        axes.set_yticks(range(len(order)), [_short(labels[label]) for label in order])
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.set_xlim(0, max(1e-9, *(100 * _share(part.labels[label]) for part in drawn for label in order)) * 1.3)
        more = f"; {left_out} rarer labels are not drawn" if left_out else ""
        axes.set(xlabel=f"positive, % of the rows whose label is known{more}", title="incidence of each label by part")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        png = io.BytesIO()
        figure.savefig(png, dpi=110)
    try:
        write_atomically(path, png.getvalue())
    except OSError as error:
        raise ConfigError(
            f"{path}: the picture cannot be written ({error.strerror or error}). Name a .png in a folder you may write "
            "to."
        ) from None


def _draw_part(axes: Axes, part: PartCount, counts: Sequence[LabelCount], number: int, parts: int) -> None:
    """Draw the bars of one part, each with its numbers behind it."""
    height = 0.8 / parts
    places = [label - 0.4 + height * (number + 0.5) for label in range(len(counts))]
    patients = "" if part.patients is None else f" of {part.patients:,} patients"
    shares = [100 * _share(count) for count in counts]
    name = f"{part.name}: {part.rows:,} rows{patients}"
    drawn = axes.barh(places, shares, 0.9 * height, color=COLOURS.get(part.name), label=name)
    texts = [
        f"{count.positive:,} of {count.positive + count.negative:,} ({share:.3g} %)"
        for count, share in zip(counts, shares, strict=True)
    ]
    axes.bar_label(drawn, texts, padding=3, fontsize=7.5)


def _share(count: LabelCount) -> float:
    return count.positive / max(1, count.positive + count.negative)


def _short(name: str) -> str:
    """Return a name that leaves room for the bars; a dollar would begin a formula."""
    return (name if len(name) <= 32 else name[:31] + "…").replace("$", r"\$")
