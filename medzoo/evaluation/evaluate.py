"""``medzoo.evaluate``: from a model and a table, a finished run, or scores of any model, to a report.

Axes: n rows, l labels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from medzoo.data.known_data import seen_before
from medzoo.data.pixels import CacheMode, PixelStore
from medzoo.data.table import Table
from medzoo.errors import ConfigError, DataError, did_you_mean
from medzoo.evaluation.assemble import CHOSEN_HERE, Choices, Evidence, assemble
from medzoo.evaluation.calibration import undo_calibration
from medzoo.evaluation.example_pictures import ExamplePictures
from medzoo.evaluation.replicates import Options
from medzoo.evaluation.report import Report
from medzoo.evaluation.run_record import PART, own_groups
from medzoo.evaluation.sampled import Population, check_prevalence, move_to_rows, stated_shares
from medzoo.evaluation.score_table import match_outputs, score_table
from medzoo.evaluation.scores import Scores
from medzoo.evaluation.subjects import Evaluated, Subject, distinct, evaluated, pooled
from medzoo.evaluation.unseen import Seen, check_same, find_seen, seen_notes
from medzoo.extra import require_train_extra
from medzoo.transforms.transform import transform

__all__ = ["evaluate"]


class Scoring(TypedDict, total=False):
    """How a model is run, as in :func:`~medzoo.evaluation.score_table.score_table`."""

    batch_size: int
    device: Any
    allow_mismatch: bool
    allow_untrained: bool
    unreadable: Literal["refuse", "drop"]
    cache: CacheMode
    labels: Mapping[str, str] | None


def evaluate(
    model: Subject | Sequence[Subject],
    table: Table | str | os.PathLike[str] | None = None,
    *,
    part: Literal["test", "valid"] | None = None,
    out_of_fold: bool = False,
    by: Sequence[str] = (),
    against: Subject | None = None,
    prevalence: float | Mapping[str, float] | None = None,
    case_sampled: bool | None = None,
    seen: Seen = "refuse",
    specificity: float = 0.9,
    sensitivity: float = 0.9,
    examples: int = 8,
    images: bool = False,
    maps: bool | None = None,
    resamples: int = 2000,
    seed: int = 0,
    project: str = "default",
    **scoring: Unpack[Scoring],
) -> Report:
    """Evaluate a model on a table: every figure with an interval over patients, or the reason why it has none.

    Nothing is chosen on this data: thresholds and calibration are those of the model. Evaluating a run on its test
    part, or any table, is counted for that data on this machine, and the count is in the report: a test that was opened
    often is a validation.

    Args:
        model: a model, the name of one, the folder of a finished run, :class:`Scores` of any model, or the CSV file of
            such. Several are taken as trainings that differ in their seed: figures are of the first, and a table has
            the mean and SD over all.
        table: what is true: a table, or a CSV file with columns ``path`` and ``label``. ``None`` for scores, which have
            it, or for a run, whose own table is taken.
        part: of the run's own table: ``"test"``, which is the default where there is one, or ``"valid"``. With a
            table, as for a run of images in memory, the rows of it that are in this part.
        out_of_fold: pool the validation parts of several runs, one for each fold of a split.
        by: columns by whose values figures are given too, such as ``["site", "sex"]``.
        against: another model, run or scores, compared on the same rows.
        prevalence: share of positives for which predictive values and the accuracy are stated, one for all labels or by
            label; ``None`` is that of the population, where the table was sampled by class and states it.
        case_sampled: whether the rows are a sample with another share of positives than the population has, so that
            predictive values mean nothing without that share; ``None`` is what the table states, or the run of its own
            rows.
        seen: what happens to rows whose patient or image the run was trained or chosen on: ``"refuse"`` raises an
            error, ``"drop"`` leaves them out, ``"allow"`` evaluates them too, and the report states it.
        specificity: at which the highest sensitivity is stated.
        sensitivity: at which the highest specificity is stated.
        examples: correct and wrong rows that are listed, for each label, under pseudonyms.
        images: also draw them. A report with images is not for sharing.
        maps: also draw the map of the output over each image, see :func:`medzoo.explain`: Grad-CAM of the model whose
            examples they are, which takes one forward pass for each example. ``None`` is as ``images``.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
        project: its key makes the pseudonyms of patients and rows: the same in each report of a project.
        scoring: how the model is run, see :class:`Scoring`.

    Raises:
        ConfigError: arguments that do not go together, or labels that are not the model's.
        DataError: images that cannot be read, patients of the training, or scores that cannot be used.
    """
    require_train_extra()
    check_prevalence(prevalence)
    if maps and not images:
        raise ConfigError("evaluate: maps are drawn over the images. Give images=True too, or leave maps out.")
    if isinstance(table, (str, os.PathLike)):
        table = Table.from_csv(table)
    given: list[Any] = list(model) if isinstance(model, (list, tuple)) else [model]
    if not given:
        raise ConfigError("evaluate: expected a model, got an empty list.")
    subjects = [pooled(given, table, part)] if out_of_fold else [evaluated(one, table) for one in given]
    target = _Data.of(subjects[0], table, part)
    rivals = [] if against is None else [evaluated(against, target.table)]
    subjects, rivals = distinct(subjects, rivals)
    record = subjects[0].record
    own = [record] if record is not None and target.own == record.path else []
    population = Population.of(prevalence, case_sampled, target.table, [*own, *subjects[0].pooled], record)
    columns = tuple([by] if isinstance(by, str) else by)
    target.check_columns(columns, subjects[0])
    notes = _check_unseen([*subjects, *rivals], target, scoring, seen)
    if target.part == "valid":
        notes = (CHOSEN_HERE, *notes)
    pixels = target.pixels(subjects[0], scoring)
    every = [_scores(subject, target, scoring) for subject in subjects]
    scores: Scores = every[0]
    moved = [_moved(subject, one, population) for subject, one in zip(subjects, every, strict=True)]
    notes = (*population.notes(scores, moved[0], subjects[0].model), *notes)
    other = None
    if rivals:
        found = _scores(rivals[0], target, scoring)
        other = rivals[0].name, _moved(rivals[0], found, population) or found
    before = _before(subjects[0], scores)
    choices = Choices(
        by=columns,
        options=Options(population.shares(scores.labels), specificity, sensitivity, population.sampled),
        examples=examples, images=images, resamples=resamples, seed=seed, project=project,
    )  # fmt: skip
    evidence = Evidence(
        name=subjects[0].name,
        model=subjects[0].model,
        record=record,
        part=target.part,
        pixels=pixels,
        before=before,
        others=tuple((s.name, b or a) for s, a, b in zip(subjects[1:], every[1:], moved[1:], strict=True)),
        against=other,
        notes=notes,
        count=target.part != "valid",
        moved=moved[0],
        pictures=_pictures(subjects[0], target.table, pixels, scoring, maps is not False) if images else None,
    )
    return assemble(scores, choices, evidence)


@dataclass(eq=False)
class _Data:
    """What is evaluated on: a table, or scores that have what is true beside them.

    The images are preprocessed once for each kind of preprocessing.

    Attributes:
        table: the rows; ``None`` for scores.
        part: of the run's own table; empty for another.
        own: the folder of the run that the part is of.
        stores: the images.
    """

    table: Table | None
    part: str
    own: Path | None = None
    stores: dict[Any, PixelStore] = field(default_factory=dict)

    @classmethod
    def of(cls, subject: Evaluated, table: Table | None, part: str | None) -> _Data:
        """Return the table that is given, or the part of the run's own."""
        if subject.scores is not None:
            if part is not None:
                raise ConfigError("evaluate: part is of a run; scores have one part. Leave it out.")
            return cls(table, "")
        if table is not None and part is None:
            return cls(table, "")
        if subject.record is None:
            what = "a table" if part is None else f"the folder of a finished run, which knows its {part} part"
            raise ConfigError(f"evaluate: {subject.name} needs {what}. Give it.")
        own = subject.record.read_table() if table is None else subject.record.read_rows()
        which = own.groups[PART]
        chosen = part or ("test" if (which == "test").any() else "valid")
        rows = np.flatnonzero(which == chosen)
        if not len(rows):
            raise ConfigError(f"{subject.record.path}: the run has no rows in its {chosen} part. Give a table.")
        if table is None:
            own = replace(own, groups=own_groups(own.groups))
            return cls(own.select(rows), chosen, subject.record.path)
        rows = np.flatnonzero(np.isin(table.ids, own.ids[rows]))
        if not len(rows):
            raise DataError(f"{table.source}: none of its rows is in the {chosen} part of the run. Leave part out.")
        return cls(table.select(rows), chosen, subject.record.path)

    def check_columns(self, columns: Sequence[str], subject: Evaluated) -> None:
        """Raise ConfigError for columns that there are not, before any image is read."""
        groups = subject.scores.groups if subject.scores is not None else self.table.groups if self.table else {}
        for column in columns:
            if column not in groups:
                raise ConfigError(
                    f"evaluate: there is no column {column!r} to give figures by.{did_you_mean(column, groups)} There "
                    f"are {', '.join(map(repr, groups)) or 'none'}."
                )

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Leave out the other rows.

        Raises:
            DataError: none is left.
        """
        assert self.table is not None  # noqa: S101  # scores have no rows to leave out
        if not rows.any():
            raise DataError(f"{self.table.source}: no row is left of patients and images that the run has not seen.")
        self.table, self.stores = self.table.select(np.flatnonzero(rows)), {}

    def pixels(self, subject: Evaluated, scoring: Scoring) -> PixelStore | None:
        """Return the preprocessed images for a model; ``None`` for scores alone."""
        if self.table is None or subject.model is None:
            return None
        how = transform(subject.model)
        key = (repr(how.preprocessing), how.channels)
        if key not in self.stores:
            self.stores[key] = PixelStore(
                self.table, how, cache=scoring.get("cache", "disk"),
                unreadable=scoring.get("unreadable", "refuse"), allow_mismatch=scoring.get("allow_mismatch", False),
            )  # fmt: skip
        return self.stores[key]


def _check_unseen(subjects: Sequence[Evaluated], data: _Data, scoring: Scoring, seen: Seen) -> tuple[str, ...]:
    """Leave out or refuse rows that any of the models was trained or chosen on, and return notes.

    Raises:
        DataError: there are some and they are refused, or rows that are taken for those of a run are not.
    """
    table, pixels = data.table, data.pixels(subjects[0], scoring)
    if table is None or pixels is None:
        return ()
    notes: list[str] = []
    identities, found = pixels.identities, np.zeros(len(table), bool)
    for subject in subjects:
        record, model = subject.record, subject.model
        if record is None and model is not None:
            notes.append(
                f"the rows that {subject.name} was trained on are not known here, so that they could not be looked for"
            )
            trained_on = "" if model.load_report is None else model.load_report.trained_on
            notes += filter(None, [seen_before(trained_on, table.source)])
        elif record is not None and data.own == record.path:
            check_same(record, table, identities)
        elif record is not None:
            rows, more = find_seen(record, table, identities)
            notes += [*more, *seen_notes(table, rows, seen, subject.name)]
            found |= rows
    if seen == "drop" and found.any():
        data.keep(~found)
    return tuple(notes)


def _scores(subject: Evaluated, data: _Data, scoring: Scoring) -> Scores:
    if subject.scores is not None:
        return subject.scores
    if data.table is None or subject.model is None:
        raise ConfigError(f"evaluate: {subject.name} is compared with scores, and needs the images. Give the table.")
    pixels = data.pixels(subject, scoring)
    return score_table(subject.model, data.table, pixels=pixels, title=subject.name, **scoring)


def _pictures(
    subject: Evaluated, table: Table | None, pixels: PixelStore | None, scoring: Scoring, maps: bool
) -> ExamplePictures | None:
    """Return what draws the examples; ``None`` for scores, which have no images."""
    if subject.model is None or table is None or pixels is None:
        return None
    outputs = match_outputs(subject.model, table, scoring.get("labels"), scoring.get("allow_untrained", False))
    return ExamplePictures(subject.model, pixels, outputs, maps=maps, device=scoring.get("device"))


def _before(subject: Evaluated, scores: Scores) -> Scores | None:
    """Return the scores of a calibrated model as they were before its calibration."""
    if subject.model is None or subject.model.outputs.calibration is None or subject.model.outputs.normalised:
        return None
    names = subject.model.outputs.labels
    if scores.labels != names:  # a part of the outputs, of which the calibration is not
        return None
    return undo_calibration(scores, subject.model.outputs.calibration)


def _moved(subject: Evaluated, scores: Scores, population: Population) -> Scores | None:
    """Return scores of sampled rows with probabilities for their share of positives, if the model's are for another."""
    if not population.sampled:
        return None
    if subject.model is not None:
        return move_to_rows(scores, stated_shares(subject.model, scores.labels))
    stated = {record.weights().calibration for record in subject.pooled}
    shares = {() if one is None else one.prevalence for one in stated}
    return move_to_rows(scores, shares.pop()) if len(shares) == 1 else None
