"""From scores, and what is known about the model and the data, to a report."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata

from medzoo.classifier import Classifier
from medzoo.data.pixels import PixelStore
from medzoo.evaluation.checklist import checklist
from medzoo.evaluation.compare import compare
from medzoo.evaluation.curves import LabelCurves, curves
from medzoo.evaluation.drift import compare_data, describe_data
from medzoo.evaluation.examples import choose_examples
from medzoo.evaluation.flow import Characteristics, Flow, characteristics, flow_of_run, flow_of_scores
from medzoo.evaluation.groups import group_by
from medzoo.evaluation.metrics import Metrics, measure
from medzoo.evaluation.openings import fingerprint_of, record_opening
from medzoo.evaluation.pseudonyms import Pseudonyms
from medzoo.evaluation.readers import agreements, readers
from medzoo.evaluation.replicates import Options
from medzoo.evaluation.report import Report
from medzoo.evaluation.run_record import RunRecord
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.seeds import over_seeds
from medzoo.version import __version__

__all__ = ["Choices", "Evidence", "assemble"]


@dataclass(frozen=True)
class Choices:
    """What a report has beside the figures of all rows; see :func:`medzoo.evaluate`."""

    by: tuple[str, ...] = ()
    options: Options = Options()
    examples: int = 8
    images: bool = False
    resamples: int = 2000
    seed: int = 0
    project: str = "default"


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known about scores beside themselves.

    Attributes:
        name: what the model is called in the report.
        model: that gave them; ``None`` for scores alone.
        record: the run that trained it.
        part: of the run's own table; empty for another table.
        pixels: the images.
        before: the same rows as the model scored them before its calibration.
        others: scores of trainings with other seeds, by name.
        against: scores of another model, with its name.
        notes: what a person should know.
        count: whether this is counted as an opening of the data.
    """

    name: str
    model: Classifier | None = None
    record: RunRecord | None = None
    part: str = ""
    pixels: PixelStore | None = None
    before: Scores | None = None
    others: tuple[tuple[str, Scores], ...] = ()
    against: tuple[str, Scores] | None = None
    notes: tuple[str, ...] = ()
    count: bool = True


def assemble(scores: Scores, choices: Choices, evidence: Evidence) -> Report:
    """Return the report."""
    how = {"resamples": choices.resamples, "seed": choices.seed}
    metrics = measure(scores, options=choices.options, title="intervals", **how)
    every = [metrics]
    for _, other in evidence.others:
        every.append(measure(other, options=choices.options, eligible=metrics.eligible, **how))
    record = evidence.record
    flow, table = _who(scores, evidence)
    report = Report(
        title=evidence.name,
        scores=scores,
        metrics=metrics,
        curves=curves(scores, seed=choices.seed),
        groups=tuple(
            group_by(scores, column, eligible=metrics.eligible, options=choices.options, **how) for column in choices.by
        ),
        comparison=None if evidence.against is None else compare(
            scores, evidence.against[1], names=(evidence.name, evidence.against[0]), options=choices.options, **how
        ),
        readers=readers(scores, **how),
        agreements=agreements(scores, **how),
        seeds=over_seeds(every, [evidence.name, *(name for name, _ in evidence.others)]) if evidence.others else None,
        before=_before(evidence.before, metrics, choices),
        flow=flow,
        characteristics=table,
        log=() if record is None else tuple(record.read_log()),
        drift=_drift(scores, evidence),
        openings=_openings(scores, evidence) if evidence.count else None,
        facts=_facts(scores, evidence),
        notes=(*evidence.notes, *scores.notes),
        examples=choose_examples(
            scores, Pseudonyms(choices.project), choices.examples, pixels=evidence.pixels if choices.images else None
        ),
    )  # fmt: skip
    return replace(report, checklist=checklist(report))
