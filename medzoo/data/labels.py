"""Labels as they are written to targets: ``n l`` of 0, 1 and NaN.

Axes: n rows, l labels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.data.faults import Faults, join_some, quote
from medzoo.data.label_classes import is_zero_one, read_classes
from medzoo.data.label_rules import LabelOptions, LabelRules, Labels, masked_note
from medzoo.errors import did_you_mean

__all__ = ["LabelOptions", "LabelRules", "Labels", "read_labels"]

_BLANK = frozenset({"", "nan", "-nan", "na", "n/a", "#n/a", "<na>", "null"})
_WHOLE = re.compile(r"-?\d+\.0*")
_SCALE = re.compile(r"[+-]?(\d+[.,]\d*|[.,]\d+|\d+[eE]-?\d+)")
_PLAIN_NAMES = frozenset({"label", "labels", "target", "targets", "y", "class", "positive", "diagnosis"})


def read_labels(values: Any, columns: Sequence[str], rules: LabelRules, faults: Faults) -> Labels:
    """Return labels as targets; what is wrong is added to ``faults``, and the result is then of no use.

    Args:
        values: ``n`` or ``n l`` of texts, numbers or booleans.
        columns: the l names of the columns.
        rules: what the values mean.
        faults: where to add what is wrong, with its row.
    """
    texts, codes = _distinct(values)
    if codes.ndim == 2 and codes.shape[1] == 1:
        codes = codes[:, 0]
    if rules.sep is not None:
        if codes.ndim == 2:
            faults.add_general(f"sep={rules.sep!r} is for one column of labels, found {codes.shape[1]}. Leave it out.")
            return _useless(len(codes))
        return _joined(texts, codes, rules, faults)
    if codes.ndim == 2:
        return _grid(texts, codes, columns, rules, faults)
    return _single(texts, codes, columns[0], rules, faults)


def _distinct(values: Any) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct values as normalised texts, and the index of each value among them."""
    array = np.asarray(values)
    if array.dtype == object:
        array = np.array([["" if v is None else str(v) for v in np.atleast_1d(row)] for row in array])
    unique, inverse = np.unique(array, return_inverse=True)
    texts = [_normalised(str(value)) for value in unique.tolist()]
    distinct = sorted(set(texts))
    places = {text: i for i, text in enumerate(distinct)}
    at = np.array([places[text] for text in texts], dtype=np.int64)
    return distinct, at[inverse.reshape(-1)].reshape(array.shape)


def _normalised(value: str) -> str:
    """Return a label with 1.0 and True as 1, 0.0 and False as 0, and what stands for no value as blank.

    >>> [_normalised(v) for v in ("1.0", "TRUE", "False", " nan", "-1.0", "Edema ")]
    ['1', '1', '0', '', '-1', 'Edema']
    """
    text = value.strip()
    if text.lower() in _BLANK:
        return ""
    if text.lower() in ("true", "false"):
        return "1" if text.lower() == "true" else "0"
    return str(int(float(text))) if _WHOLE.fullmatch(text) and len(text) < 16 else text


def _useless(n: int) -> Labels:
    return Labels(np.full((n, 1), np.nan, np.float32), ("",), "binary")


def _grid(
    texts: list[str], codes: NDArray[np.int64], columns: Sequence[str], rules: LabelRules, faults: Faults
) -> Labels:
    """Return columns of 0 and 1."""
    names = tuple(rules.names or columns)
    if len(names) != codes.shape[1] or rules.task == "binary" or rules.positive is not None:
        wrong = (
            f"{len(names)} names" if len(names) != codes.shape[1] else
            "task='binary'" if rules.task == "binary" else f"positive={rules.positive!r}"
        )  # fmt: skip
        faults.add_general(
            f"{wrong} cannot be for {codes.shape[1]} columns of labels. Choose one column, or leave it out."
        )
        return _useless(len(codes))
    targets = _zero_one(texts, codes, columns, rules, faults)
    if rules.task == "multiclass":
        known = ~np.isnan(targets).any(1)
        wrong_rows = np.flatnonzero(known & (np.nansum(targets, 1) != 1))
        faults.add_rows(
            "rows without exactly one class", ((int(r), f"{np.nansum(targets[r]):.0f}") for r in wrong_rows),
            "With task='multiclass', one of the columns has to be 1; several findings of an image are 'multilabel'.",
        )  # fmt: skip
        targets[~known] = np.nan
    return Labels(targets, names, rules.task or "multilabel", masked_note(targets))


def _zero_one(
    texts: list[str], codes: NDArray[np.int64], columns: Sequence[str], rules: LabelRules, faults: Faults
) -> NDArray[np.float32]:
    """Return ``n l`` of 0, 1 and NaN; other values are faults."""
    meaning = {"refuse": math.nan, "mask": math.nan, "positive": 1.0, "negative": 0.0}
    value = {"0": 0.0, "1": 1.0, "-1": meaning[rules.uncertain], "": meaning[rules.blanks]}
    targets = np.array([value.get(text, math.nan) for text in texts], np.float32)[codes]
    _refuse_unknown(texts, codes, columns, rules, faults)
    wrong = np.array([text not in value for text in texts])[codes]
    faults.add_rows("labels that are not 0 or 1", _cells(texts, codes, columns, wrong), _advice(texts))
    return targets


def _advice(texts: list[str]) -> str:
    if any(_SCALE.fullmatch(text) for text in texts):
        return "Give classes; numbers of a scale cannot be learned as labels. Divide them into classes first."
    return "Correct them; 1.0, 0.0, True and False are accepted too. For classes, give task='multiclass' or names=."


def _refuse_unknown(
    texts: list[str], codes: NDArray[np.int64], columns: Sequence[str], rules: LabelRules, faults: Faults
) -> None:
    """Add a fault for each label that is not known, unless the rules give it a meaning."""
    for text, rule, name in (("-1", rules.uncertain, "uncertain"), ("", rules.blanks, "blank")):
        if rule == "refuse" and text in texts:
            faults.add_rows(
                "labels that are -1 (uncertain)" if text else "labels that are blank or NaN",
                _cells(texts, codes, columns, codes == texts.index(text)),
                f"Give {name}='mask' to leave them out of loss and metrics"
                f"{', positive or negative' if text else ' or negative'} to take them as that.",
            )


def _cells(
    texts: list[str], codes: NDArray[np.int64], columns: Sequence[str], where: NDArray[np.bool_]
) -> list[tuple[int, str]]:
    """Return row and a description of each cell."""
    if codes.ndim == 1:
        return [(int(r), quote(texts[codes[r]])) for r in np.flatnonzero(where)]
    return [(int(r), f"{columns[c]} {quote(texts[codes[r, c]])}") for r, c in np.argwhere(where)]


def _single(texts: list[str], codes: NDArray[np.int64], column: str, rules: LabelRules, faults: Faults) -> Labels:
    """Return one column: of 0 and 1, or of classes."""
    known = [text for text in texts if text not in ("", "-1")]
    names = list(rules.names or ())
    if is_zero_one(known, names, rules):
        if rules.positive not in (None, "1", *names[-1:]):
            faults.add_general(f"positive={rules.positive!r} is for classes; in a column of 0 and 1, 1 is positive.")
        targets = _zero_one(texts, codes, [column], rules, faults)
        name = names[-1] if names else "positive" if column.lower() in _PLAIN_NAMES else column
        return Labels(targets[:, None], (name,), rules.task or "binary", masked_note(targets))
    _refuse_unknown(texts, codes, [column], rules, faults)
    return read_classes(texts, codes, known, rules, faults) or _useless(len(codes))


def _joined(texts: list[str], codes: NDArray[np.int64], rules: LabelRules, faults: Faults) -> Labels:
    """Return one column of findings that are joined by ``rules.sep``."""
    assert rules.sep is not None  # noqa: S101  # the caller looked
    parts = [[part.strip() for part in text.split(rules.sep)] for text in texts]
    found = {part for own in parts for part in own} - {"", "-1", rules.none}
    names = tuple(rules.names or sorted(found))
    left_out = sorted(found - set(names))
    n = np.bincount(codes, minlength=len(texts))
    if rules.task not in (None, "multilabel"):
        faults.add_general(f"task={rules.task!r} cannot be with sep=, which is for several findings of an image.")
    if not names:
        faults.add_general(f"expected findings in the labels, found none joined by {rules.sep!r}. Choose the column.")
    for name in names:
        if name not in found:
            near = did_you_mean(name, found)
            faults.add_general(f"no row has the finding {quote(name)} of names=.{near or ' Leave it out.'}")
    _refuse_unknown(texts, codes, ["findings"], rules, faults)
    problems = {
        "rows with a finding that is not in names": [bool(set(own) & set(left_out)) for own in parts],
        f"rows with {quote(rules.none)} and findings": [len(own) > 1 and rules.none in own for own in parts],
        "rows with an empty finding": [len(own) > 1 and "" in own for own in parts],
    }
    advice = (
        "Add them to names=, or give others='negative' to leave them out.",
        "Correct them.",
        f"Correct them, or check sep={rules.sep!r}.",
    )
    for (problem, bad), what in zip(problems.items(), advice, strict=True):
        if problem.endswith("names") and rules.others == "negative":
            continue
        faults.add_rows(problem, _cells(texts, codes, ["findings"], np.array(bad)[codes]), what)
    rows = np.array([[float(name in own) for name in names] for own in parts], np.float32).reshape(len(texts), -1)
    for text, rule in (("-1", rules.uncertain), ("", rules.blanks)):
        if text in texts and rule != "negative":
            rows[texts.index(text)] = np.nan
    counts = [f"{name} {sum(int(k) for own, k in zip(parts, n, strict=True) if name in own):,}" for name in left_out]
    notes = (f"findings left out: {join_some(counts, 30)}",) if counts else ()
    targets = rows[codes]
    return Labels(targets, names, "multilabel", notes + masked_note(targets))
