"""One column of classes to targets: which class is which, and what is hardly a class.

Axes: n rows, l labels.
"""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from medzoo.data.faults import Faults, join_some, quote
from medzoo.data.label_rules import LabelRules, Labels, masked_note
from medzoo.data.negative_class import is_negative, negative_of
from medzoo.errors import did_you_mean

__all__ = ["is_zero_one", "read_classes"]

_INTEGER = re.compile(r"-?\d+")
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")
_OFTEN = 10  # a class of one row is taken for a misspelling where another has as many rows as this
_MOST = 1000  # classes


def is_zero_one(known: list[str], names: list[str], rules: LabelRules) -> bool:
    """Return whether a column is of 0 and 1, perhaps with faults, rather than of classes."""
    if rules.task == "multiclass" or len(names) > 2:
        return False
    if set(known) <= {"0", "1"}:
        return True
    if not {"0", "1"} & set(known) or set(known) <= set(names):
        return False
    # From 0 or 1 on without a gap; a 9 or 99 is rather a code for what is not known.
    grades = any(set(known) == {str(i + first) for i in range(len(known))} for first in (0, 1))
    return (not grades and not names) or (rules.task == "binary" and not names and rules.positive is None)


def read_classes(
    texts: list[str], codes: NDArray[np.int64], known: list[str], rules: LabelRules, faults: Faults
) -> Labels | None:
    """Return a column of classes as targets; ``None`` where the classes are a fault, which is added.

    Args:
        texts: the distinct values.
        codes: ``n`` indices into them.
        known: those of them that are neither blank nor -1.
        rules: what the values mean.
        faults: where to add what is wrong.
    """
    classes = _classes(texts, codes, known, rules, faults)
    if classes is None:
        return None
    values, names = list(classes), tuple(classes.values())
    place = np.array([values.index(text) if text in classes else -1 for text in texts])[codes]
    wrong = (place < 0) & ~np.isin(codes, [texts.index(text) for text in ("", "-1") if text in texts])
    faults.add_rows(
        "labels that are no class", ((int(r), quote(texts[codes[r]])) for r in np.flatnonzero(wrong)),
        f"The classes are {join_some([quote(name) for name in names])}. Correct the labels, or add to names=.",
    )  # fmt: skip
    counts = np.bincount(place[place >= 0], minlength=len(values))
    notes = tuple(f"no row is of class {quote(n)}" for n, count in zip(names, counts, strict=True) if not count)
    if len(values) == 2 and rules.task in (None, "binary"):
        meaning = {"refuse": math.nan, "mask": math.nan, "positive": 1.0, "negative": 0.0}
        targets = np.where(place < 0, np.nan, place).astype(np.float32)
        for text, rule in (("-1", rules.uncertain), ("", rules.blanks)):
            if text in texts:
                targets[codes == texts.index(text)] = meaning[rule]
        notes += (f"the positive class is {quote(names[1])}, the negative one {quote(names[0])}",)
        return Labels(targets[:, None], names[1:], "binary", notes + masked_note(targets))
    if rules.uncertain in ("positive", "negative") or rules.blanks == "negative":
        faults.add_general(f"{len(values)} classes have no positive or negative. Give uncertain='mask' or 'refuse'.")
    hot = (place[:, None] == np.arange(len(values))).astype(np.float32)
    hot[place < 0] = np.nan
    unknown = int((place < 0).sum())
    notes += (f"{unknown:,} rows of no known class, left out of loss and metrics",) if unknown else ()
    if rules.task is None and rules.names is None and "1" in values:
        notes += (f"read as {len(values)} classes; with task='binary', what is not 0 or 1 is a fault",)
    return Labels(hot, names, "multiclass", notes)


def _classes(
    texts: list[str], codes: NDArray[np.int64], known: list[str], rules: LabelRules, faults: Faults
) -> dict[str, str] | None:
    """Return the value and the name of each class in order; ``None`` where that is a fault."""
    names = list(rules.names or ())
    if names and not set(known) & set(names) and all(_INTEGER.fullmatch(text) for text in known):
        classes = {str(i): name for i, name in enumerate(names)}
    elif names:
        classes = {name: name for name in names}
    else:
        if _are_suspicious(texts, codes, known, faults):
            return None
        classes = {name: name for name in sorted(known, key=_order)}
    return _with_task(classes, rules, faults)


def _order(name: str) -> tuple[int, int, str]:
    """Sort integers by value, and what names a negative class before other names."""
    if _INTEGER.fullmatch(name):
        return -1, int(name), name
    return int(not is_negative(name)), 0, name


def _with_task(classes: dict[str, str], rules: LabelRules, faults: Faults) -> dict[str, str] | None:
    listed = join_some([quote(name) for name in classes.values()])
    if len(classes) < 2:
        faults.add_general(f"expected labels of 2 classes or more, found {listed or 'no label'}. Give all with names=.")
    elif rules.task == "multilabel":
        faults.add_general(
            f"task='multilabel' needs columns of 0 and 1, or sep= for findings joined in one; found classes {listed}."
        )
    elif rules.task == "binary" and len(classes) > 2:
        faults.add_general(f"task='binary' needs 2 classes, found {len(classes)}: {listed}. Give task='multiclass'.")
    elif rules.positive is not None and (len(classes) > 2 or rules.positive not in classes.values()):
        near = did_you_mean(rules.positive, classes.values())
        faults.add_general(f"expected positive= to be one of 2 classes, got {rules.positive!r}; found {listed}.{near}")
    elif rules.positive is not None:
        return dict(sorted(classes.items(), key=lambda item: item[1] == rules.positive))
    elif len(classes) == 2 and rules.names is None and rules.task != "multiclass":
        return _with_negative_first(classes, faults)
    else:
        return classes
    return None


def _with_negative_first(classes: dict[str, str], faults: Faults) -> dict[str, str]:
    """Return two classes in order, and add a fault where it does not follow from their names."""
    if all(_INTEGER.fullmatch(name) for name in classes):
        return classes
    one, other = classes
    negative = negative_of(one, other)
    if negative is None:
        faults.add_general(
            f"which of the classes {quote(one)} and {quote(other)} is the positive one does not follow from their "
            f"names. Give positive={one!r} or positive={other!r} (medzoo train: --set data.positive=...), or both with "
            "names=, the positive one last."
        )
    return dict(sorted(classes.items(), key=lambda item: item[0] != negative))


def _are_suspicious(texts: list[str], codes: NDArray[np.int64], known: list[str], faults: Faults) -> bool:
    """Add a fault where values are hardly the names of classes, and return whether there is one."""
    if scale := [text for text in known if _NUMBER.fullmatch(text) and not _INTEGER.fullmatch(text)]:
        faults.add_general(
            f"expected classes as labels, found numbers such as {quote(scale[0])}. Divide them into classes first."
        )
        return True
    folded = Counter(text.lower() for text in known)
    if twins := [quote(text) for text in known if folded[text.lower()] > 1]:
        faults.add_general(f"classes that differ in capitals alone: {join_some(twins)}. Write each in one way.")
        return True
    counts = np.bincount(codes, minlength=len(texts))
    of_class = np.array([text not in ("", "-1") for text in texts])
    single = of_class & (counts == 1)
    often = counts[of_class].max(initial=0) >= _OFTEN or (len(codes) >= _OFTEN and single.sum() > len(codes) / 2)
    if single.any() and often and len(known) > 1:
        faults.add_rows(
            "classes of one row", ((int(r), quote(texts[codes[r]])) for r in np.flatnonzero(single[codes])),
            "Correct what is misspelt, choose another column, or list all classes with names=."
            + " Several findings joined in one column are read with sep='|'." * any("|" in text for text in known),
        )  # fmt: skip
    elif len(known) > _MOST:
        faults.add_general(f"expected at most {_MOST:,} classes, found {len(known):,}. Choose the column of the label.")
        return True
    return bool(single.any() and often)
