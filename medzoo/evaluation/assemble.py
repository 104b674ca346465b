"""From scores, and what is known about the model and the data, to a report."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import TypedDict

import numpy as np

from medzoo.classifier import Classifier
from medzoo.data.pixels import PixelStore
from medzoo.evaluation.characteristics import characteristics_of_run, characteristics_of_scores
from medzoo.evaluation.checklist import draft
from medzoo.evaluation.compare import Comparison, compare
from medzoo.evaluation.curves import LabelCurves, curves
from medzoo.evaluation.drift import Drift, compare_data, describe_data, summarise_pixels
from medzoo.evaluation.example_pictures import ExampleMaps, ExamplePictures
from medzoo.evaluation.examples import choose_examples
from medzoo.evaluation.flow import Characteristics, Flow, flow_of_run, flow_of_scores
from medzoo.evaluation.groups import group_by
from medzoo.evaluation.metrics import Metrics, measure
from medzoo.evaluation.openings import Opened, fingerprint_of, record_opening
from medzoo.evaluation.pseudonyms import Pseudonyms
from medzoo.evaluation.readers import agreements, readers
from medzoo.evaluation.replicates import Options
from medzoo.evaluation.report import Report
from medzoo.evaluation.run_record import RunRecord
from medzoo.evaluation.sampled import measure_moved
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.seeds import over_seeds
from medzoo.evaluation.training_facts import facts_of_model, facts_of_run
from medzoo.version import __version__

__all__ = ["CHOSEN_HERE", "Choices", "Evidence", "assemble"]


class _Drawn(TypedDict):
    """How patients are drawn."""

    resamples: int
    seed: int


CHOSEN_HERE = (
    "the training was watched, and thresholds were chosen, on these rows: figures at a threshold are optimistic, and "
    "only a test part, or data from elsewhere, shows how the model does on new patients"
)
"""What a report of the validation part says first."""
NO_PIXELS = "scores are evaluated, and no model and no images are known here"
"""Why a report that should have images has none."""
Before = tuple[Metrics, tuple[LabelCurves, ...]]
_LIBRARIES = (("torch", "torch"), ("scikit-learn", "scikit-learn"), ("scipy", "scipy"), ("numpy", "numpy"))


@dataclass(frozen=True)
class Choices:
    """What a report has beside the figures of all rows; see :func:`medzoo.evaluate`."""

    by: tuple[str, ...] = ()
    options: Options = field(default_factory=Options)
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
        others: scores of trainings with other seeds, by name, moved likewise.
        against: scores of another model, with its name, moved likewise.
        notes: what a person should know.
        count: whether this is counted as an opening of the data.
        moved: the scores with probabilities for the share of positives of these rows, of which the figures of
            probabilities are; ``None`` if those of the scores are; see :mod:`medzoo.evaluation.sampled`.
        metrics: of the scores by the same choices, where they are computed already.
        pictures: draws the examples; ``None`` where there are no images.
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
    moved: Scores | None = None
    metrics: Metrics | None = None
    pictures: ExamplePictures | None = None

    @property
    def digest(self) -> str:
        """Digest of the weights, or the name where there are none."""
        report = None if self.model is None else self.model.load_report
        return self.name if report is None or not report.digest else report.digest


def assemble(scores: Scores, choices: Choices, evidence: Evidence) -> Report:
    """Return the report."""
    options, seed = choices.options, choices.seed
    how: _Drawn = {"resamples": choices.resamples, "seed": seed}
    measured = evidence.moved or scores
    metrics = evidence.metrics or measure_moved(scores, evidence.moved, options=options, title="intervals", **how)
    others = [measure(one, options=options, eligible=metrics.eligible, **how) for _, one in evidence.others]
    names = [evidence.name, *(name for name, _ in evidence.others)]
    flow, table = _who(scores, evidence)
    pictures = evidence.pictures if choices.images else None
    shared = ("this report has images: it is not for sharing",) if choices.images else ()
    report = Report(
        title=evidence.name,
        scores=scores,
        metrics=metrics,
        moved=evidence.moved,
        curves=curves(measured, seed=seed),
        groups=tuple(group_by(measured, one, eligible=metrics.eligible, options=options, **how) for one in choices.by),
        comparison=_compared(measured, evidence, options, how),
        readers=readers(scores, **how),
        agreements=agreements(scores, **how),
        seeds=over_seeds([metrics, *others], names) if others else None,
        before=_before(evidence.before, metrics, choices),
        flow=flow,
        characteristics=table,
        log=() if evidence.record is None else evidence.record.read_log(),
        drift=_drift(scores, evidence, seed),
        facts=_facts(evidence),
        notes=tuple(dict.fromkeys((*shared, *evidence.notes, *scores.notes))),
        examples=choose_examples(
            scores, Pseudonyms(choices.project), choices.examples, draw=pictures.draw if pictures else None
        ),
        maps=pictures.maps if pictures else ExampleMaps(why=NO_PIXELS) if choices.images else None,
        outputs=None if evidence.model is None else evidence.model.outputs,
    )
    # Last, so that an evaluation that fails has opened nothing.
    opened = _opened(scores, evidence) if evidence.count else None
    if opened is not None:
        report = replace(report, openings=opened.times, facts={**report.facts, "opened": str(opened)})
    return replace(report, checklist=draft(report))


def _compared(scores: Scores, evidence: Evidence, options: Options, how: _Drawn) -> Comparison | None:
    if evidence.against is None:
        return None
    name, other = evidence.against
    return compare(replace(scores, source=evidence.name), replace(other, source=name), options=options, **how)


def _who(scores: Scores, evidence: Evidence) -> tuple[Flow, Characteristics]:
    """Return the flow of rows and the table of characteristics, of the run for its own rows."""
    if evidence.record is not None and evidence.part:
        return flow_of_run(evidence.record, scores, scores.dropped), characteristics_of_run(evidence.record)
    return flow_of_scores(scores, scores.dropped), characteristics_of_scores(scores)


def _before(before: Scores | None, metrics: Metrics, choices: Choices) -> Before | None:
    """Return figures and curves of the scores before a calibration."""
    if before is None:
        return None
    found = measure(
        before, options=choices.options, eligible=metrics.eligible, resamples=choices.resamples, seed=choices.seed
    )
    return found, curves(before, seed=choices.seed)


def _opened(scores: Scores, evidence: Evidence) -> Opened | None:
    """Count this evaluation among those of the same data on this machine."""
    identities = None
    if evidence.pixels is not None:
        place = {str(one): row for row, one in enumerate(evidence.pixels.table.ids)}
        rows = [place.get(str(one), -1) for one in scores.ids]
        identities = evidence.pixels.identities.pixels[rows] if min(rows, default=-1) >= 0 else None
    return record_opening(fingerprint_of(scores, identities), evidence.digest, evidence.part or "scores")


def _drift(scores: Scores, evidence: Evidence, seed: int) -> Drift | None:
    """Return how the rows differ from those of the training, as far as the run recorded those."""
    if evidence.record is None:
        return None
    training = evidence.record.fingerprint()
    summary = None
    if evidence.pixels is not None:
        gone = {dropped.row for dropped in evidence.pixels.dropped}
        rows = np.array([row for row in range(len(evidence.pixels.table)) if row not in gone], np.int64)
        summary = summarise_pixels(evidence.pixels, rows, seed=seed)
    return compare_data({**training, **training.get("parts", {}).get("train", {})}, describe_data(scores, summary))


def _facts(evidence: Evidence) -> dict[str, str]:
    """Return what else a report states, without a path."""
    record, found = evidence.record, {"model": evidence.name, "date": time.strftime("%Y-%m-%d")}
    if evidence.model is not None:
        found["model"] = f"{evidence.model.name} ({evidence.name})" if evidence.name else evidence.model.name
        report = evidence.model.load_report
        if report is not None:
            found |= {"weights": report.digest, "trained on": report.trained_on, "licence": report.license}
        found |= facts_of_model(evidence.model)
    if record is not None:
        facts = record.facts()
        found |= {"split": str(facts.get("split", "")), "fingerprint": str(facts.get("data", ""))}
        found["trained"] = str(facts.get("ended", facts.get("began", "")))[:10]
        found |= facts_of_run(record)
    found["data"] = f"the {evidence.part} part of the run" if evidence.part else "another table than that of the run"
    if record is None:
        found["data"] = "a table of its own" if evidence.model is not None else "scores in a file"
    found["part"] = evidence.part
    versions = [f"{name} {metadata.version(package)}" for name, package in _LIBRARIES]
    found["made with"] = ", ".join([f"medzoo {__version__}", f"Python {platform.python_version()}", *versions])
    found["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return {name: text for name, text in found.items() if text}
