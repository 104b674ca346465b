"""``Scores``: the one table that every figure is computed from, of a model of the zoo or of any other.

Axes: n rows, l labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.contract import Task, check_task
from medzoo.data.texts import StrArray
from medzoo.errors import DataError

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

    def __post_init__(self) -> None:
        check_task("Scores", self.task)
        n, shape = len(self.ids), (len(self.ids), len(self.labels))
        given = {name: getattr(self, name) for name in ("ranks", "logits", "probabilities", "targets")}
        for name, array in (*given.items(), *((f"reader {name!r}", calls) for name, calls in self.readers.items())):
            if array.shape != shape:
                raise DataError(
                    f"{self.source}: expected {name} of {shape[0]:,} rows and {shape[1]} labels, got {array.shape}."
                )
        for name in ("ranks", "probabilities"):
            bad = np.flatnonzero(np.isnan(given[name]).any(1))
            if len(bad):
                raise DataError(
                    f"{self.source}: {len(bad):,} of {n:,} rows have a score that is NaN, such as row {bad[0]}. "
                    "A model that gives no answer has no score: leave those rows out, and say so."
                )
        if n and not (0 <= given["probabilities"].min() and given["probabilities"].max() <= 1):
            raise DataError(f"{self.source}: expected probabilities from 0 to 1, got others. Are they logits?")
        if len(np.unique(self.ids)) != n:
            raise DataError(f"{self.source}: expected a different id in each row. Remove the rows that are there twice.")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        patients = "" if self.patients is None else f" of {len(np.unique(self.patients)):,} patients"
        return f"Scores({len(self):,} rows{patients}, {self.task}: {', '.join(self.labels[:4])}; {self.source})"

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
        """The patient of each row as a number from 0; each row is its own where no patients are known."""
        if self.patients is None:
            return np.arange(len(self))
        return np.unique(np.asarray(self.patients), return_inverse=True)[1].astype(np.int64)

    @property
    def log_odds(self) -> FloatArray:
        """Log-odds of the probabilities, ``n l``, limited to ±700; they do not saturate at 1 where logits are known."""
        if self.task == "multiclass":
            return np.clip(self.logits - np.log(-np.expm1(np.minimum(self.logits, -1e-300))), -700, 700)
        return self.logits

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
        return replace(
            self, ids=self.ids[at], patients=None if self.patients is None else self.patients[at],
            **{name: getattr(self, name)[at] for name in ("ranks", "logits", "probabilities", "targets")},
            groups={name: values[at] for name, values in self.groups.items()},
            readers={name: calls[at] for name, calls in self.readers.items()},
        )  # fmt: skip
