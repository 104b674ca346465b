"""Which columns of scores are which labels, and which task they are of, in a file with targets.

Axes: n rows, k columns of scores, l labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medzoo.contract import Task
from medzoo.data.faults import Faults, join_some, quote
from medzoo.data.negative_class import negative_of
from medzoo.data.table import Table
from medzoo.errors import ConfigError, DataError, did_you_mean
from medzoo.evaluation.label_match import match_names
from medzoo.evaluation.score_files.columns import Given, Truth, read_binary
from medzoo.evaluation.score_files.layout import WORDS, ScoreOptions, is_word

__all__ = ["ADVICE", "LabelledScores", "check_sums", "is_numbered", "name_outputs", "number_of"]

Targets = NDArray[np.float32]
ADVICE = "Give labels= with one name for each column, in their order"


@dataclass(frozen=True)
class LabelledScores:
    """Outputs: scores by label.

    Attributes:
        given: the scores, ``n l``.
        labels: the names of the l labels.
        task: of them.
        targets: ``n l`` of 0, 1 and NaN.
        index: of each label in those of the table.
        notes: choices that were made.
    """

    given: Given
    labels: tuple[str, ...]
    task: Task
    targets: Targets
    index: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def take(
        self, at: NDArray[np.int64], part: Table, truth: Truth, faults: Faults, lines: NDArray[np.int64], by_name: bool
    ) -> LabelledScores:
        """Return the rows ``at`` with the targets of a table; targets in the file have to be the same.

        Args:
            at: rows of the file.
            part: the rows of the table with these scores.
            truth: targets in the file.
            faults: where to add targets that differ.
            lines: of the rows ``at``.
            by_name: whether scores were found by the names of labels alone, so that they may be the targets.
        """
        targets = part.targets[:, list(self.index)]
        for i, name in enumerate(self.given.names):
            own = truth.columns.get(name)
            if own is None and truth.texts is not None and len(self.labels) == 1:
                values = {"0": 0.0, "1": 1.0}
                own = np.array([values.get(text, np.nan) for text in truth.texts], np.float32)
            if own is None:
                continue
            wrong = np.abs(own[at] - targets[:, i]) > 0
            faults.add(
                "targets that differ from those of the table", ((int(n), self.labels[i]) for n in lines[wrong]),
                "Give the table that the scores were made with, or leave the targets out of the file.",
            )  # fmt: skip
        rows = [None if a is None else a[at] for a in (self.given.logits, self.given.probabilities)]
        known = ~np.isnan(targets)
        if by_name and rows[1] is not None and known.any() and (rows[1] == targets)[known].all():
            raise DataError(
                f"{faults.source}: the columns {join_some([quote(n) for n in self.given.names])} are the targets of "
                "the table, no scores. Give score= with the columns of scores."
            )
        return replace(self, given=replace(self.given, logits=rows[0], probabilities=rows[1]), targets=targets)


def number_of(name: str) -> int | None:
    """Return the number of a class that has no other name.

    >>> number_of("1"), number_of("class_2"), number_of(""), number_of("Edema")
    (1, 2, 0, None)
    """
    match = re.fullmatch(r"(?:class[ _]?)?(\d+)", name, re.IGNORECASE)
    return int(match[1]) if match else 0 if not name else None


def is_numbered(names: Sequence[str]) -> bool:
    """Whether columns are numbered from 0, and have no names."""
    return [number_of(name) for name in names] == list(range(len(names)))


def name_outputs(given: Given, truth: Truth, options: ScoreOptions, faults: Faults) -> LabelledScores:
    """Return the outputs of a file with targets.

    Raises:
        ConfigError: labels, task or the positive class are not clear; names the option to give.
    """
    if truth.columns:
        return _several(given, truth, options, faults)
    if truth.texts is None:
        raise ConfigError(
            f"{faults.source}: expected a column of targets, such as 'target', or one for each label, such as "
            "'target:LABEL', found none that is known. Give target= with its name, or table= with the table of the "
            "images, which has them."
        )
    if len(given.names) == 1:
        return _one(given, truth, options, faults)
    if len(given.names) == 2 and options.task != "multiclass":
        return _two(given, truth, options, faults)
    return _classes(given, truth, options, faults)


def _several(given: Given, truth: Truth, options: ScoreOptions, faults: Faults) -> LabelledScores:
    """Return outputs with a column of targets for each."""
    kept = [name for name in given.names if name in truth.columns]
    labels = tuple(kept)
    notes: tuple[str, ...] = ()
    if without := [quote(name) for name in given.names if name not in truth.columns]:
        notes += (f"scores without a target left out: {join_some(without, 20)}",)
    if options.labels is not None:
        matched = match_names(options.labels, kept)
        if len(matched) < len(options.labels):
            wrong = next(name for name in options.labels if name not in matched)
            raise ConfigError(
                f"{faults.source}: labels has {quote(wrong)}, but the file has targets and scores of "
                f"{join_some([quote(n) for n in kept], 20)}.{did_you_mean(wrong, kept)}"
            )
        kept, labels = [matched[name] for name in options.labels], tuple(options.labels)
    targets = np.stack([truth.columns[name] for name in kept], 1)
    chosen = given.take([given.names.index(name) for name in kept])
    task, why = _task(chosen, targets, options, faults)
    found = LabelledScores(chosen, labels, task, targets, notes=notes + why)
    return _check_classes(found, faults) if task == "multiclass" else found


def _task(given: Given, targets: Targets, options: ScoreOptions, faults: Faults) -> tuple[Task, tuple[str, ...]]:
    """Return the task of several columns of targets."""
    if len(given.names) == 1 or options.task is not None:
        wanted: Task = options.task or "binary"
        if (wanted == "multiclass") == (len(given.names) == 1) or (wanted == "binary" and len(given.names) > 1):
            raise ConfigError(f"{faults.source}: task={wanted!r} cannot be with {len(given.names)} labels.")
        return wanted, ()
    known = targets[~np.isnan(targets).any(1)]
    sums = given.sums_to_one()
    if not len(known) or not (known.sum(1) == 1).all() or (sums is not None and not sums.all()):
        return "multilabel", ()
    if sums is None:
        raise ConfigError(
            f"{faults.source}: every row has exactly one label, and logits do not show whether the labels exclude each "
            "other. Give task='multiclass' if they do, else task='multilabel'."
        )
    return "multiclass", ("labels exclude each other: every row has one, and its probabilities sum to 1",)


def _one(given: Given, truth: Truth, options: ScoreOptions, faults: Faults) -> LabelledScores:
    """Return a binary output."""
    if options.task not in (None, "binary"):
        raise ConfigError(f"{faults.source}: task={options.task!r} cannot be with one column of scores.")
    texts, own = truth.texts or [], given.names[0]
    name = _only(options, faults) or ("" if number_of(own) is not None else own)
    classes = sorted({text for text in texts if text})
    notes: tuple[str, ...] = ()
    if len(classes) == 2 and not set(classes) & {"0", "1"}:
        wanted = match_names([name], classes).get(name) if name else None
        positive = wanted or _positive(classes, faults)
        texts = ["" if not text else str(int(text == positive)) for text in texts]
        name = name or positive
        notes = (f"{quote(positive)} is the positive class",)
    if not name:
        name = "positive" if is_word(truth.column, WORDS["target"]) else truth.column
    targets = read_binary(texts, "targets", faults)[:, None]
    return LabelledScores(given, (name,), "binary", targets, notes=notes)


def _only(options: ScoreOptions, faults: Faults) -> str:
    if options.labels is not None and len(options.labels) != 1:
        raise ConfigError(
            f"{faults.source}: expected labels to be one name for a binary task, got {len(options.labels)}."
        )
    return options.labels[0] if options.labels else ""


def _positive(classes: Sequence[str], faults: Faults) -> str:
    """Return the positive one of two classes."""
    negative = negative_of(classes[0], classes[1])
    if negative is None:
        raise ConfigError(
            f"{faults.source}: the names {quote(classes[0])} and {quote(classes[1])} do not show which is positive. "
            "Give labels= with the positive one, or task='multiclass'."
        )
    return next(one for one in classes if one != negative)


def _two(given: Given, truth: Truth, options: ScoreOptions, faults: Faults) -> LabelledScores:
    """Return a binary output of the scores of both of its classes, as of scikit-learn's ``predict_proba``."""
    check_sums(given, faults)
    texts, numbered = truth.texts or [], is_numbered(given.names)
    classes = set(texts) - {""}
    if numbered and not classes <= {"0", "1"}:
        return _classes(given, truth, options, faults)
    names = list(given.names)
    chosen = match_names(_only_if_one(options), names)
    positive = 1 if numbered else names.index(next(iter(chosen.values()), "") or _positive(names, faults))
    label = _only_if_one(options)[0] if _only_if_one(options) else "positive" if numbered else names[positive]
    if not numbered and classes <= {"0", "1"} and positive == 0:
        raise ConfigError(
            f"{faults.source}: the positive class {quote(names[0])} is the first of two columns, so that it is not "
            "clear which class a target of 1 is. Write names of classes as targets."
        )
    if not classes <= {"0", "1"}:
        places = match_names(sorted(classes), names)
        texts = [str(int(places[t] == names[positive])) if t in places else t for t in texts]
    note = f"of two columns of classes that exclude each other, {quote(names[positive])} is the positive one"
    targets = read_binary(texts, "targets", faults)[:, None]
    return LabelledScores(given.pair(positive), (label,), "binary", targets, notes=(note,))


def _only_if_one(options: ScoreOptions) -> list[str]:
    return list(options.labels) if options.labels is not None and len(options.labels) == 1 else []


def _classes(given: Given, truth: Truth, options: ScoreOptions, faults: Faults) -> LabelledScores:
    """Return the outputs of classes that exclude each other, with one column of targets."""
    k = len(given.names)
    if options.task not in (None, "multiclass"):
        raise ConfigError(
            f"{faults.source}: task={options.task!r} needs a column of targets for each label, found one for {k} "
            "columns of scores. Name them target:LABEL."
        )
    labels = tuple(options.labels) if options.labels is not None else given.names
    if len(labels) != k:
        raise ConfigError(f"{faults.source}: got {len(labels)} labels for {k} columns of scores. {ADVICE}.")
    texts = truth.texts or []
    classes = sorted({text for text in texts if text})
    places = {text: labels.index(name) for text, name in match_names(classes, labels).items()}
    notes: tuple[str, ...] = ()
    named = not is_numbered(labels)
    if not places and all(text.isdigit() and int(text) < k for text in classes):
        places = {text: int(text) for text in classes}
        notes = ("classes are numbered in the order of the columns of scores",) if named else ()
    elif not places and not named:
        raise ConfigError(f"{faults.source}: targets are names of classes, columns of scores are numbers. {ADVICE}.")
    wrong = [(row, quote(text)) for row, text in enumerate(texts) if text and text not in places]
    faults.add_rows("targets that are no class", wrong, f"The classes are {join_some(labels, 20)}. {ADVICE}.")
    at = np.array([places.get(text, -1) for text in texts], np.int64)
    targets = np.eye(k, dtype=np.float32)[at]
    targets[at < 0] = np.nan
    return _check_classes(LabelledScores(given, labels, "multiclass", targets, notes=notes), faults)


def _check_classes(found: LabelledScores, faults: Faults) -> LabelledScores:
    check_sums(found.given, faults)
    known = np.asarray(~np.isnan(found.targets)).all(1)
    wrong = np.flatnonzero(known & (np.nansum(found.targets, 1) != 1))
    faults.add_rows(
        "rows without exactly one class", ((int(r), f"{np.nansum(found.targets[r]):.0f}") for r in wrong),
        "With task='multiclass', one target of each row is 1.",
    )  # fmt: skip
    targets = found.targets.copy()
    targets[~known] = np.nan
    return replace(found, targets=targets)


def check_sums(given: Given, faults: Faults) -> None:
    """Add a fault for rows whose probabilities do not sum to 1."""
    ok = given.sums_to_one()
    if ok is not None and given.probabilities is not None:
        sums = given.probabilities.sum(1)
        faults.add_rows(
            "rows whose probabilities of all classes do not sum to 1",
            ((int(r), f"{sums[r]:.4g}") for r in np.flatnonzero(~ok & np.isfinite(sums))),
            "Give all classes. For labels that do not exclude each other, give a column of targets for each.",
        )
