"""``Scores``: the one table that every figure is computed from, of a model of the zoo or of any other.

Axes: n rows, l labels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medzoo.contract import Task, check_task
from medzoo.data.identity import Dropped
from medzoo.data.texts import StrArray
from medzoo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from medzoo.data.table import Table
    from medzoo.evaluation.score_files.layout import Scale

__all__ = ["Scores"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Scores of a model with what is true, one row per image; it does not change.

    Attributes:
        ids: a unique text for each row.
        ranks: ``n l``, by which rows are ordered: the logits, or the probabilities where only those are known. They do
            not saturate at 1.
        logits: ``n l``: log-odds, or with ``"multiclass"`` the logarithms of the probabilities up to a constant. Of
            a probability of 0 or 1 they are limited to ±700.
        probabilities: ``n l`` in [0, 1].
        targets: ``n l`` float32 of 0, 1 and NaN; multiclass is one-hot.
        labels: names of the l labels.
        task: ``"binary"``, ``"multilabel"`` or ``"multiclass"``.
        thresholds: probability at and above which an output is positive, one for each label, ``None`` where none was
            chosen; empty for multiclass, which takes the most probable label.
        threshold_rule: how the thresholds were chosen, in words; empty if that is not known.
        patients: the patient of each row; ``None`` if not known.
        groups: other columns, as text.
        readers: what human readers called, ``n l`` of 0, 1 and NaN by the reader's name.
        source: what the scores are of, for messages.
        notes: what a person should know about them.
        dropped: rows of the table that have no score, and why.
    """

    ids: StrArray
    ranks: FloatArray
    logits: FloatArray
    probabilities: FloatArray
    targets: NDArray[np.float32]
    labels: tuple[str, ...]
    task: Task
    thresholds: tuple[float | None, ...] = ()
    threshold_rule: str = ""
    patients: StrArray | None = None
    groups: Mapping[str, StrArray] = field(default_factory=dict)
    readers: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    source: str = "the scores"
    notes: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()

    def __post_init__(self) -> None:
        check_task("Scores", self.task)
        n, shape = len(self.ids), (len(self.ids), len(self.labels))
        given = {name: getattr(self, name) for name in ("ranks", "logits", "probabilities", "targets")}
        for name, array in (*given.items(), *((f"reader {name!r}", calls) for name, calls in self.readers.items())):
            if array.shape != shape:
                raise DataError(
                    f"{self.source}: expected {name} of {shape[0]:,} rows and {shape[1]} labels, got {array.shape}."
                )
        columns = {"patients": self.patients, **self.groups}
        if wrong := [name for name, values in columns.items() if values is not None and len(values) != n]:
            raise DataError(f"{self.source}: expected a value in each of {n:,} rows, got others in {', '.join(wrong)}.")
        wanted = 0 if self.task == "multiclass" else len(self.labels)
        if self.thresholds and len(self.thresholds) != wanted:
            raise ConfigError(
                f"{self.source}: expected {wanted} thresholds, one for each label and none for multiclass, got "
                f"{len(self.thresholds)}."
            )
        for name in ("ranks", "probabilities"):
            bad = np.flatnonzero(np.isnan(given[name]).any(1))
            if len(bad):
                raise DataError(
                    f"{self.source}: {len(bad):,} of {n:,} rows have a score that is NaN, such as row {bad[0]}. "
                    "A model that gives no answer has no score: leave those rows out, and say so."
                )
        if n and (given["probabilities"].min() < 0 or given["probabilities"].max() > 1):
            raise DataError(f"{self.source}: expected probabilities from 0 to 1, got others. Are they logits?")
        if len(set(self.ids.tolist())) != n:
            raise DataError(
                f"{self.source}: expected a different id in each row. Remove the rows that are there twice."
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        patients = "" if self.patients is None else f" of {len(np.unique(self.patients)):,} patients"
        return f"Scores({len(self):,} rows{patients}, {self.task}: {', '.join(self.labels[:4])}; {self.source})"

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        *,
        table: Table | None = None,
        partial: bool = False,
        image: str | None = None,
        patient: str | None = None,
        target: str | Sequence[str] | Mapping[str, str] | None = None,
        score: str | Sequence[str] | Mapping[str, str] | None = None,
        scale: Scale = "auto",
        labels: Sequence[str] | None = None,
        task: Task | None = None,
        groups: Sequence[str] | None = None,
        reader: str = "reader:",
        thresholds: float | Sequence[float | None] | Mapping[str, float | None] | None = None,
        threshold_rule: str = "given with the scores",
        delimiter: str | None = None,
    ) -> Scores:
        """Read the scores of any model from a CSV file in UTF-8; ``notes`` lists what was recognised.

        Columns that are not named by an option are recognised by their names, which
        :mod:`medzoo.evaluation.score_files.layout` lists: ids (``id``, ``path``, ``image``, …), patients (``patient``,
        ``patient_id``, …), and

        - of one output, a target (``target``, ``y_true``, ``label``, …) and a score (``probability``, ``y_prob``,
          ``logit``, ``score``, ``y_score``, …);
        - of several, such a word and the label: ``target:Edema`` and ``probability:Edema``, ``y_true_Edema`` and
          ``y_prob_Edema``, ``Edema_true`` and ``Edema_prob``; what medzoo writes is of this kind;
        - of classes that exclude each other, one target and a column of scores for each class;
        - with ``table``, columns named as its labels, and files without a header, the name of an image and its scores
          in each line, as MONAI's ``CSVSaver`` writes them;
        - ``reader:NAME`` or ``reader:NAME:LABEL``, what a human reader called: 0, 1 or blank.

        Ids and patients are text: 007 is not 7. Where logits are known, rows are ordered by them. Without
        ``thresholds`` nothing is called positive: 0.5 is never assumed.

        Args:
            path: the file.
            table: gives targets, patients and groups of the rows, joined by id, path or file name.
            partial: accept rows of the table without a score, and scores without a row; their numbers are noted.
            image: column of ids; ``""`` for none, so that rows are named by their lines.
            patient: column of patients; ``""`` for none.
            target: column of targets, or several, or the column of each label.
            score: column of scores, or several, or the column of each label.
            scale: what scores are; ``"auto"`` takes it from the names of columns. Other scores have to be from 0 to 1
                and are taken as probabilities.
            labels: names of the outputs, in the order of their columns; with a column of targets for each, those to
                take.
            task: ``"binary"``, ``"multilabel"`` or ``"multiclass"``; without it, it follows from the columns.
            groups: columns to keep as groups; ``None`` keeps all others whose values have at most 256 characters.
            reader: what the names of readers' columns begin with.
            thresholds: probability at and above which an output is called positive, for all or for each label.
            threshold_rule: how they were chosen, in words.
            delimiter: ``","``, ``";"`` or a tab; ``None`` recognises it.

        Raises:
            DataError: everything that is wrong, by line, or rows of table and file that do not belong together.
            ConfigError: what a column is cannot be known, with the option to give.
        """
        from medzoo.evaluation.score_files.layout import ScoreOptions
        from medzoo.evaluation.score_files.read import read_scores, thresholds_of

        options = ScoreOptions(image, patient, target, score, scale, labels, task, groups, reader)
        fields = read_scores(path, options, table=table, partial=partial, delimiter=delimiter)
        chosen = thresholds_of(thresholds, fields["labels"], fields["task"])
        return cls._of(**fields, thresholds=chosen, threshold_rule=threshold_rule if chosen else "")

    @classmethod
    def _of(cls, *, logits: Any, probabilities: Any, tolerance: float, notes: tuple[str, ...], **fields: Any) -> Scores:
        """Return scores of logits, probabilities or both, which may be of different scales."""
        if logits is None:
            return cls.from_probabilities(probabilities, notes=notes, **fields)
        found = cls.from_logits(logits, notes=notes, **fields)
        if probabilities is None or not np.size(probabilities):
            return found
        if np.abs(found.probabilities - probabilities).max() <= tolerance:
            return found
        mapping = "softmax" if found.task == "multiclass" else "sigmoid"
        notes += (f"the probabilities are not the {mapping} of the logits: both are kept, and rows ordered by logits",)
        return cls.from_logits(logits, probabilities=probabilities, notes=notes, **fields)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write ids, hashed patients, scores, targets, readers and groups as :meth:`from_csv` reads them; return path.

        Groups that come near to naming patients are left out, and so are the columns of logits where only
        probabilities are known. Thresholds are not part of the file.

        Raises:
            DataError: the file cannot be written.
        """
        from medzoo.evaluation.score_files.write import write_scores

        return write_scores(self, Path(path))

    @classmethod
    def from_logits(cls, logits: Any, *, probabilities: Any = None, task: Task, **fields: Any) -> Scores:
        """Return the scores of logits ``n l``; ``probabilities`` replaces their sigmoid or softmax."""
        z = np.asarray(logits, np.float64)
        if task == "multiclass":
            z = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
            p = np.exp(z)
        else:
            p = np.where(z >= 0, 1 / (1 + np.exp(-np.abs(z))), np.exp(-np.abs(z)) / (1 + np.exp(-np.abs(z))))
        if probabilities is None:
            return cls(ranks=z, logits=z, probabilities=p, task=task, **fields)
        return replace(cls.from_probabilities(probabilities, task=task, **fields), ranks=z)

    @classmethod
    def from_probabilities(cls, probabilities: Any, *, task: Task, **fields: Any) -> Scores:
        """Return the scores of probabilities ``n l``."""
        p = np.asarray(probabilities, np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.log(p) if task == "multiclass" else np.log(p) - np.log1p(-p)
        return cls(ranks=p, logits=np.clip(z, -700, 700), probabilities=p, task=task, **fields)

    @property
    def clusters(self) -> NDArray[np.int64]:
        """The patient of each row as a number from 0; each row is its own where no patients are known.

        Patients are numbered as they appear, so that hashed ones give the same resamples.
        """
        if self.patients is None:
            return np.arange(len(self))
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(one, len(numbers)) for one in self.patients.tolist()], np.int64)

    @property
    def log_odds(self) -> FloatArray:
        """Log-odds of the probabilities, ``n l``, limited to ±700; they do not saturate at 1 where logits are known."""
        if self.task == "multiclass":
            return np.clip(self.logits - np.log(-np.expm1(np.minimum(self.logits, -1e-300))), -700, 700)
        return np.clip(self.logits, -700, 700)

    @property
    def independent(self) -> bool:
        """Whether no patient has two rows, so that rows can be counted as independent."""
        return self.patients is None or len(np.unique(self.patients)) == len(self)

    @property
    def calls(self) -> NDArray[np.float64]:
        """What is called positive, ``n l`` of 0 and 1; NaN for an output without a threshold."""
        if self.task == "multiclass":
            return np.eye(len(self.labels))[self.ranks.argmax(1)]
        limits = np.array([math.nan if t is None else t for t in self.thresholds] or [math.nan] * len(self.labels))
        return np.where(np.isnan(limits), np.nan, self.probabilities >= limits)

    def select(self, rows: Sequence[int] | NDArray[Any]) -> Scores:
        """Return the scores of some rows, in their order."""
        at = np.asarray(rows)
        at = at.astype(np.int64) if at.size == 0 and at.dtype != bool else at
        return replace(
            self, ids=self.ids[at], patients=None if self.patients is None else self.patients[at],
            **{name: getattr(self, name)[at] for name in ("ranks", "logits", "probabilities", "targets")},
            groups={name: values[at] for name, values in self.groups.items()},
            readers={name: calls[at] for name, calls in self.readers.items()},
        )  # fmt: skip
