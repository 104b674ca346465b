"""``Report``: everything that is known of an evaluation, as a page for people and as JSON for programs.

Nothing in either names an image, a patient or a path: texts pass :class:`~medzoo.evaluation.shareable.Redactor`, and
the ids of the scores are in neither.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from medzoo.atomic import write_atomically
from medzoo.contract import Outputs
from medzoo.errors import ConfigError
from medzoo.evaluation.checklist import ChecklistItem
from medzoo.evaluation.compare import Comparison
from medzoo.evaluation.curves import LabelCurves
from medzoo.evaluation.drift import Drift
from medzoo.evaluation.estimate import Estimate
from medzoo.evaluation.example_pictures import ExampleMaps
from medzoo.evaluation.examples import Example
from medzoo.evaluation.flow import Characteristics, Flow
from medzoo.evaluation.groups import GroupTable
from medzoo.evaluation.metrics import Metrics
from medzoo.evaluation.page.page import page
from medzoo.evaluation.page.terminal import terminal_lines
from medzoo.evaluation.page.verdicts import by_chance
from medzoo.evaluation.page.wording import cases, summary, warnings_of
from medzoo.evaluation.readers import Agreement, ReaderRow
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.seeds import SeedSummary
from medzoo.evaluation.shareable import Redactor, map_texts

__all__ = ["FORMAT", "Report"]

FORMAT = 1
"""Of the JSON; it rises when a field changes its meaning or goes."""
_ROWS = ("scores", "moved")  # which no page and no file of figures has


@dataclass(frozen=True, eq=False)
class Report:
    """An evaluation.

    Attributes:
        title: of the page.
        scores: that were evaluated.
        metrics: their figures.
        curves: of each output; empty for none.
        groups: figures by group, one table for each column.
        comparison: with another model on the same rows.
        readers, agreements: human readers beside the model, and among themselves.
        seeds: mean and standard deviation over several trainings.
        before: metrics and curves before the calibration, if there is one.
        flow: from all rows to those evaluated.
        characteristics: of each part of the data.
        log: rows of ``log.csv`` of the training.
        drift: how this data differs from that of the training.
        openings: how often this test data was evaluated, this time included.
        facts: what else is known, by name: ``"model"``, ``"weights"``, ``"data"``, ``"fingerprint"``, ``"split"``,
            ``"made with"``, ``"command"``, ``"machine"``, ``"date"`` and those that :mod:`medzoo.evaluation.checklist`
            lists.
        notes: what a reader should know first.
        examples: right and wrong calls.
        maps: how the maps over the images of the examples were made; ``None`` without them.
        checklist: draft of the reporting guidelines.
        outputs: of the model: how its thresholds and its calibration were decided.
        moved: the scores with probabilities for the share of positives of these rows, where they were sampled by class
            and the model's are for the population: figures and curves of the probabilities are of these.
    """

    title: str
    scores: Scores
    metrics: Metrics
    curves: tuple[LabelCurves, ...] = ()
    groups: tuple[GroupTable, ...] = ()
    comparison: Comparison | None = None
    readers: tuple[ReaderRow, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    seeds: SeedSummary | None = None
    before: tuple[Metrics, tuple[LabelCurves, ...]] | None = None
    flow: Flow | None = None
    characteristics: Characteristics | None = None
    log: tuple[Mapping[str, float], ...] = ()
    drift: Drift | None = None
    openings: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    checklist: tuple[ChecklistItem, ...] = ()
    outputs: Outputs | None = None
    moved: Scores | None = None
    maps: ExampleMaps | None = None

    def __repr__(self) -> str:
        return f"Report({self.title!r}: {cases(self.metrics)}, {len(self.metrics.labels)} outputs)"

    def __str__(self) -> str:
        """Return :meth:`summary`."""
        return self.summary()

    def summary(self) -> str:
        """Return a few lines for a terminal: the main figures of each part, and the notes."""
        return "\n".join(terminal_lines(self.shareable()))

    def shareable(self) -> Report:
        """Return the report with texts that name no path, image or patient; the rows of ``scores`` are as they are."""
        redact = Redactor(self.scores, keep=self.scores.labels)
        texts = {f.name: map_texts(getattr(self, f.name), redact) for f in fields(self) if f.name not in _ROWS}
        source = self.scores
        scores = replace(
            source,
            notes=map_texts(source.notes, redact),
            threshold_rule=redact(source.threshold_rule),
            source="the scores",
        )
        return replace(self, scores=scores, **texts)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: everything but the rows of the scores and the images of the examples."""
        return self.shareable()._as_dict()

    def _as_dict(self) -> dict[str, Any]:
        """Return the dictionary of a report whose texts are shareable already."""
        scores = self.scores
        found: dict[str, Any] = {"format": FORMAT, "title": self.title, "summary": summary(self)}
        alike, below = by_chance(self.metrics)
        found |= {"warnings": warnings_of(self), "not_distinguished_from_chance": alike, "worse_than_chance": below}
        found |= {
            "task": scores.task, "labels": list(scores.labels), "thresholds": list(scores.thresholds),
            "threshold_rule": scores.threshold_rule, "metrics": _plain(self.metrics),
            "curves": _plain(self.curves),
            "before": None if self.before is None
            else {"metrics": _plain(self.before[0]), "curves": _plain(self.before[1])},
        }  # fmt: skip
        rest = [f.name for f in fields(self) if f.name not in (*found, *_ROWS)]
        found |= {name: _plain(getattr(self, name)) for name in rest}
        return found

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the report, replacing what is there.

        Args:
            path: ``report.html`` for a page, with ``report.json`` beside it; ``report.json`` for that alone.

        Returns:
            The path.

        Raises:
            ConfigError: the name ends with neither.
            OSError: it cannot be written.
        """
        target = Path(path)
        if target.suffix.lower() not in (".html", ".htm", ".json"):
            raise ConfigError(
                f"Report.save: expected a path that ends with .html or .json, got {str(path)!r}. "
                "A page has its figures beside it as .json."
            )
        report = self.shareable()
        text = _as_json(report._as_dict())
        shown = None if target.suffix.lower() == ".json" else page(report)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target.with_suffix(".json"), text.encode())
        if shown is not None:
            write_atomically(target, shown.encode())
        return target


def _as_json(value: Any) -> str:
    """Return JSON with a line for each field, and for each list of numbers."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1)
    numbers = re.compile(r"\[\n([-+.\deE,\s]|null)*\]")  # no text holds the end of a line: it is escaped there
    return numbers.sub(lambda match: re.sub(r"\s+", " ", match[0]).replace("[ ", "[").replace(" ]", "]"), text) + "\n"


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it; what is no number is ``None``, and curves have five digits."""
    if isinstance(value, (Estimate, Metrics)):
        return _plain(value.to_dict())
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in (value.round(5) if value.dtype.kind == "f" else value).tolist()]
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name != "image"}
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return value.item()
    return value
