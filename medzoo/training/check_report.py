"""The report of a check as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medzoo.training.check_counts import LEAST_POSITIVE, LabelCount, PartCount
from medzoo.training.progress import duration

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table as RichTable

    from medzoo.training.check import CheckReport

__all__ = ["render"]

ASSUMED = 0.8  # AUROC
MOST_LABELS, MOST_DROPPED = 40, 10
PICTURES = ("a training batch as the network sees it", "positives of each label by part", "each transform, then all")


def render(report: CheckReport) -> Group:
    """Return everything in the order in which a person asks."""
    from rich.console import Group
    from rich.text import Text

    unit = "rows, as no patients are known" if report.table.patients is None else "patients"
    lines: list[RenderableType] = [
        f"{report.table.source}: {len(report.table):,} rows, {report.table.task}",
        f"split: {report.how}",
        _parts_table(report),
        _leaks(report),
        *_dropped(report),
        "\npositive / negative rows of each label, and half the expected 95 % interval (±) of an AUROC of 0.8",
        _labels_table(report),
        f"± is by Hanley and McNeil from {unit}; fewer than {LEAST_POSITIVE} positive or negative: no interval",
        "\nmemory and time, measured on this machine now",
        _costs_table(report),
        *(f"note: {note}" for note in report.notes),
        *([report.advice] if report.advice else []),
        *(f"{path}: {what}" for path, what in zip(report.pictures, PICTURES, strict=False)),
    ]
    return Group(*(Text(line) if isinstance(line, str) else line for line in lines))


def _parts_table(report: CheckReport) -> RichTable:
    from rich.table import Table

    table = Table("part", "rows", "share", "patients")
    total = max(1, sum(part.rows for part in report.parts))
    for part in report.parts:
        patients = "not known" if part.patients is None else f"{part.patients:,}"
        table.add_row(part.name, f"{part.rows:,}", f"{100 * part.rows / total:.1f} %", patients)
    return table


def _leaks(report: CheckReport) -> str:
    """Return what the check of the split has shown: a split that leaks is refused before."""
    if report.table.patients is None:
        return "leak check: no image is in two parts; patients are not known."
    return "leak check: no patient and no image is in two parts."


def _labels_table(report: CheckReport) -> RichTable:
    """Return the rows of each label by part, and the expected interval of its AUROC."""
    from rich.markup import escape
    from rich.table import Table

    train, *others = [part for part in report.parts if part.rows]
    table = Table("label", train.name)
    for part in others:
        table.add_column(part.name)
        table.add_column("±")
    labels = report.table.labels
    for index, label in list(enumerate(labels))[:MOST_LABELS]:
        cells = [escape(label), _counts(train.labels[index])]
        for part in others:
            cells += [_counts(part.labels[index]), _width(part, index)]
        table.add_row(*cells)
    if len(labels) > MOST_LABELS:
        table.add_row(f"… and {len(labels) - MOST_LABELS} more")
    return table


def _counts(count: LabelCount) -> str:
    unknown = f" ({count.unknown:,} not known)" if count.unknown else ""
    return f"{count.positive:,} / {count.negative:,}{unknown}"


def _width(part: PartCount, index: int) -> str:
    count = part.labels[index]
    width = count.half_width(ASSUMED)
    if width is not None:
        return f"{width:.3f}"
    if count.positive_patients < LEAST_POSITIVE:
        return f"– ({count.positive_patients} positive)"
    return f"– ({count.negative_patients} negative)"


def _dropped(report: CheckReport) -> list[str]:
    lines = [f"dropped {row.id}: {row.reason}" for row in report.dropped[:MOST_DROPPED]]
    more = len(report.dropped) - MOST_DROPPED
    return [*lines, f"… and {more} more"] if more > 0 else lines


def _costs_table(report: CheckReport) -> RichTable:
    """Return memory and time."""
    from rich.table import Table

    memory, last = report.memory, report.times[-1]
    table = Table(show_header=False)
    cached = {
        "off": "not cached",
        "memory": f"{_size(memory.images)} in memory",
        "disk": f"{_size(memory.images)} on disk",
    }
    table.add_row("images", cached[report.recipe.data.cache])
    parts = [
        f"weights {_size(memory.weights)}",
        f"gradients {_size(memory.gradients)}",
        f"optimiser {_size(memory.optimizer)}",
    ]
    parts += [f"average {_size(memory.average)}"] if memory.average else []
    parts.append(f"activations of a batch of {memory.batch} {_size(memory.activations)} (float32, without workspace)")
    table.add_row("training", f"{_size(memory.total)}: " + ", ".join(parts))
    if report.peak is not None:
        table.add_row("peak memory", f"{_size(report.peak)} of this process, with PyTorch itself")
    checkpoint = f"{_size(last.checkpoint_bytes)} each, two are kept"
    table.add_row("checkpoints", checkpoint + (", written and continued" if report.resumed else ""))
    names = ("",) if len(report.times) == 1 else ("frozen encoder: ", "all weights: ")
    for name, time in zip(names, report.times, strict=True):
        wait = "" if time.data_wait_share is None else f", data wait {100 * time.data_wait_share:.0f} % of the time"
        table.add_row("speed", f"{name}{time.samples_per_second:.3g} samples/s{wait}")
        table.add_row(
            "an epoch",
            f"{name}{duration(time.epoch_seconds)}: {time.steps} steps of {duration(time.step_seconds)}, validation "
            f"{time.valid_steps} of {duration(time.valid_step_seconds)}",
        )
    epochs = " + ".join(str(time.epochs) for time in report.times)
    seconds = sum(time.total_seconds for time in report.times)
    table.add_row("all", f"{duration(seconds)} for {epochs} epochs, by a few steps measured now")
    if report.recipe.train.freeze == "features":
        table.add_row("", "features are computed once, which is that one epoch; training the head on them is not in it")
    return table


def _size(count: int) -> str:
    """Return bytes for people.

    >>> _size(33_040_000), _size(1_500)
    ('33.0 MB', '1.5 kB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
