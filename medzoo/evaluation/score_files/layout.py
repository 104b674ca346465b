"""Which columns of a file of scores are ids, patients, targets, scores and readers, by their names.

Capitals do not matter, and a space or a hyphen is as good as an underscore. Of several outputs, the name of the label
is after or before one of the words: ``probability:Edema``, ``prob_Edema``, ``Edema_prob``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from medzoo.contract import Task
from medzoo.data.faults import join_some, quote
from medzoo.errors import ConfigError
from medzoo.evaluation.label_match import match_names

__all__ = ["IDS", "INDEX", "OWN", "PATIENTS", "Layout", "Scale", "ScoreOptions", "recognise"]

Scale = Literal["auto", "probability", "logit"]
Kind = Literal["target", "probability", "logit", "score"]

IDS = (
    "id", "path", "image", "image_id", "image_path", "image_name", "image_index", "file", "file_name", "file_path",
    "dicom_id", "row_id",
)  # fmt: skip
"""Columns of ids."""
PATIENTS = (
    "patient",
    "patient_id",
    "patient_key",
    "subject",
    "subject_id",
    "participant_id",
    "person_id",
    "pid",
    "mrn",
)
"""Columns of patients."""
WORDS: dict[Kind, tuple[str, ...]] = {
    "target": ("target", "y_true", "label", "truth", "ground_truth", "gt"),
    "probability": ("probability", "prob", "proba", "y_prob", "y_proba", "pred_prob", "pred_proba"),
    "logit": ("logit", "logits", "log_odds", "y_logit"),
    "score": ("score", "y_score"),
}
"""Columns of targets and scores. Of a ``score`` the name does not say whether it is a probability."""
AFFIXES: dict[Kind, tuple[str, ...]] = {**WORDS, "target": (*WORDS["target"], "true")}

OWN = ("logit:", "probability:", "target:")
"""What the columns of a file that medzoo wrote begin with; no other one is a score or a target."""

INDEX = "\0index"
"""The first column of a file, where it has no name."""


@dataclass(frozen=True)
class ScoreOptions:
    """What :meth:`Scores.from_csv <medzoo.evaluation.scores.Scores.from_csv>` was given."""

    image: str | None = None
    patient: str | None = None
    target: str | Sequence[str] | Mapping[str, str] | None = None
    score: str | Sequence[str] | Mapping[str, str] | None = None
    scale: Scale = "auto"
    labels: Sequence[str] | None = None
    task: Task | None = None
    groups: Sequence[str] | None = None
    reader: str = "reader:"

    @property
    def named(self) -> list[str]:
        """The columns that were named."""
        found = [name for name in (self.image, self.patient) if name]
        for given in (self.target, self.score, self.groups):
            values = given.values() if isinstance(given, Mapping) else [given] if isinstance(given, str) else given
            found += list(values or ())
        return found


@dataclass
class Layout:
    """The columns of a file of scores.

    Attributes:
        image: of the ids; ``None`` for none.
        patient: of the patients.
        scores: by label and by kind.
        targets: by label.
        target: the only one, of 0 and 1 or of classes.
        own: whether it is a file that medzoo wrote.
        by_name: whether scores were found by the names of a table's labels alone.
        used: columns that are no group.
    """

    image: str | None = None
    patient: str | None = None
    scores: dict[str, dict[Kind, str]] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    target: str | None = None
    own: bool = False
    by_name: bool = False
    used: set[str] = field(default_factory=set)


def recognise(
    names: Sequence[str],
    options: ScoreOptions,
    source: str,
    labels: Sequence[str] | None,
    values: Mapping[str, Sequence[str]],
) -> Layout:
    """Return what the columns are.

    Args:
        names: of the columns, with :data:`INDEX` for a first one without a name.
        options: what the user named.
        source: the file, for messages.
        labels: of the table that the scores are joined with; ``None`` for none.
        values: the cells, among which the classes of a column of targets are looked for.

    Raises:
        ConfigError: several columns could be meant, or none; with the option to give.
    """
    layout, shown = Layout(), [n for n in names if n != INDEX]
    free = [n for n in shown if not n.startswith(options.reader)]
    layout.used |= {*set(shown) - set(free), INDEX}
    layout.own = any(n.startswith(OWN[:2]) for n in free)
    layout.image, layout.patient = options.image or None, options.patient or None
    if options.image is None:
        layout.image = _one(free, IDS, "image", "ids", source, "id" if layout.own else None)
    if layout.image is None and options.image is None and INDEX in names:
        layout.image = INDEX
    if options.patient is None:
        layout.patient = _one(free, PATIENTS, "patient", "patients", source, "patient" if layout.own else None)
    free = [n for n in free if n not in (layout.image, layout.patient, *(options.groups or ()))]
    if layout.own:
        free = [n for n in free if n.startswith(OWN)]
    _find_targets(layout, free, options, source)
    _find_scores(layout, free, options, source, labels, values)
    pairs = match_names(list(layout.scores), layout.targets)  # what has no score is a group
    layout.targets = {label: layout.targets[other] for label, other in pairs.items()}
    layout.used |= {n for n in (layout.image, layout.patient, layout.target) if n is not None}
    layout.used |= {*layout.targets.values(), *(n for kinds in layout.scores.values() for n in kinds.values())}
    return layout


def is_word(name: str, words: Iterable[str]) -> bool:
    """Whether a name of a column is one of some words, in any capitals and with any or no separators.

    >>> is_word("PatientID", PATIENTS), is_word("Image Index", IDS), is_word("prob_A", ["proba"])
    (True, True, False)
    """
    text = re.sub(r"[ _.-]+", "_", name).casefold()
    return any(text in (word, word.replace("_", "")) for word in words)


def _one(
    free: Sequence[str], known: Sequence[str], role: str, what: str, source: str, first: str | None = None
) -> str | None:
    """Return the only column of a role; ``first``, if it is there, has priority."""
    if first in free:
        return first
    found = [n for n in free if is_word(n, known)]
    if len(found) > 1:
        raise ConfigError(
            f"{source}: expected one column of {what}, found {join_some([quote(n) for n in found])}. "
            f"Give {role}= with the name of the one that is meant."
        )
    return found[0] if found else None


def kind_of(name: str) -> tuple[Kind | None, str]:
    """Return what a column is by its name, and the label in it.

    >>> kind_of("y_prob"), kind_of("prob_Lung Lesion"), kind_of("Edema_true"), kind_of("age")
    (('probability', ''), ('probability', 'Lung Lesion'), ('target', 'Edema'), (None, 'age'))
    """
    for kind, words in WORDS.items():
        if is_word(name, words):
            return kind, ""
    pairs = sorted(((word, kind) for kind, words in AFFIXES.items() for word in words), key=lambda p: -len(p[0]))
    for word, kind in pairs:
        text = word.replace("_", "[_ .-]?")
        for pattern in (rf"{text}[:_ .-](?P<label>.+)", rf"(?P<label>.+)[:_ .-]{text}"):
            if match := re.fullmatch(pattern, name, re.IGNORECASE):
                return kind, match["label"].strip()
    return None, name


def _by_label(
    given: str | Sequence[str] | Mapping[str, str], kinds: Sequence[Kind]
) -> dict[str, tuple[Kind | None, str]]:
    """Return kind and column of each label of columns that were named."""
    if isinstance(given, Mapping):
        return {label: (kind_of(name)[0], name) for label, name in given.items()}
    found: dict[str, tuple[Kind | None, str]] = {}
    for name in [given] if isinstance(given, str) else given:
        kind, label = kind_of(name)
        found[label if kind in kinds else name] = (kind, name)
    return found


def _find_targets(layout: Layout, free: Sequence[str], options: ScoreOptions, source: str) -> None:
    if isinstance(options.target, str):
        layout.target = options.target
    elif options.target is not None:
        layout.targets = {label: name for label, (_, name) in _by_label(options.target, ("target",)).items()}
    else:
        taken = [options.score] if isinstance(options.score, str) else list(options.score or ())
        rest = [n for n in free if n not in taken]
        layout.target = _one(rest, WORDS["target"], "target", "targets", source)
        for name in rest:
            kind, label = kind_of(name)
            if kind == "target" and label:
                layout.targets[label] = name


def _find_scores(
    layout: Layout, free: Sequence[str], options: ScoreOptions, source: str, labels: Sequence[str] | None,
    values: Mapping[str, Sequence[str]],
) -> None:  # fmt: skip
    if options.score is not None:
        found = _by_label(options.score, ("probability", "logit", "score"))
        for label, (kind, name) in found.items():
            if isinstance(options.score, str) and label == name and labels is None:
                label = ""  # the name of a model rather than of a label
            layout.scores.setdefault(label, {})[kind if kind in ("probability", "logit") else "score"] = name
        return
    single: dict[str, Kind] = {}
    for name in free:
        kind, label = kind_of(name)
        if kind in (None, "target") or name in (layout.target, *layout.targets.values()):
            continue
        if not label:
            single[name] = kind
        elif kind in layout.scores.setdefault(label, {}):
            _ambiguous([layout.scores[label][kind], name], source)
        else:
            layout.scores[label][kind] = name
    kinds = list(single.values())
    if single and (layout.scores or len(set(kinds)) < len(kinds) or ("score" in kinds and len(kinds) > 1)):
        _ambiguous([*single, *(n for found in layout.scores.values() for n in found.values())], source)
    if single:
        layout.scores = {"": {kind: name for name, kind in single.items()}}
    if not layout.scores:
        _by_plain_names(layout, free, labels, values)
    if not layout.scores:
        listed = join_some([quote(n) for n in free], 40) or "none"
        raise ConfigError(
            f"{source}: expected columns of scores, such as {quote('probability')} or {quote('probability:LABEL')}, "
            f"found none that is known among {listed}. Give score= with their names"
            f"{'' if labels else ', or table= if they are named as the labels of a table'}."
        )


def _by_plain_names(
    layout: Layout, free: Sequence[str], labels: Sequence[str] | None, values: Mapping[str, Sequence[str]]
) -> None:
    """Find scores in columns that are named as the labels of the table, numbered, or named as the classes."""
    rest = [n for n in free if n != layout.target]
    numbered = [str(i) for i in range(len(rest))]
    numbered = [n for i, n in enumerate(numbered) if all(m in rest for m in numbered[: i + 1])]
    matched = {} if labels is None else match_names(labels, rest)
    if not matched and numbered:
        matched = {n: n for n in numbered}
    elif not matched and layout.target is not None:
        classes = sorted({v for v in values[layout.target] if v})
        matched = match_names(classes, rest) if len(classes) <= len(rest) else {}
        matched = matched if len(matched) == len(classes) else {}
    else:
        layout.by_name = bool(matched)
    layout.scores = {name: {"score": name} for name in matched.values()}
    layout.targets = {label: name for label, name in layout.targets.items() if name not in matched.values()}


def _ambiguous(names: Sequence[str], source: str) -> None:
    raise ConfigError(
        f"{source}: expected one kind of score, found {join_some([quote(n) for n in names], 20)}. Give score= with the "
        "column that is meant, or a list of them with one for each label."
    )
