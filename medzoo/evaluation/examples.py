"""``choose_examples``: the most confident right and wrong calls, under pseudonyms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from medzoo.data.texts import StrArray
from medzoo.evaluation.scores import Scores

__all__ = ["Example", "ExamplePicture", "choose_examples"]

Kind = Literal["correct", "wrong"]
Rows = NDArray[np.int64]


class _Pseudonyms(Protocol):
    def of(self, text: str) -> str:
        """Return the pseudonym of a text."""


@dataclass(frozen=True)
class ExamplePicture:
    """A picture of an example.

    Attributes:
        png: the image, and the map of its output over it.
        has_map: whether a map is drawn; ``False`` for one that is zero everywhere, ``None`` without maps.
    """

    png: bytes
    has_map: bool | None = None


@dataclass(frozen=True)
class Example:
    """One row as a report shows it.

    Attributes:
        case: a pseudonym of its patient, or of the row where no patients are known; never an id.
        label: the output; for multiclass the class that was predicted.
        probability: of that output.
        target: what is true, 0 or 1.
        called: what was called, 0 or 1.
        kind: ``"correct"`` or ``"wrong"``.
        image: its picture; ``None`` for none.
        truth: for multiclass, the class that is true.
    """

    case: str
    label: str
    probability: float
    target: int
    called: int
    kind: Kind
    image: ExamplePicture | None = None
    truth: str = ""


def choose_examples(
    scores: Scores,
    pseudonyms: _Pseudonyms,
    n: int = 3,
    *,
    draw: Callable[[Scores, Sequence[tuple[int, str]]], Iterable[ExamplePicture]] | None = None,
) -> tuple[Example, ...]:
    """Return for each label the ``n`` most confident wrong calls and as many right ones.

    Confident is what lies furthest from the threshold, in log-odds. Half of them are positive rows and half negative
    ones, positive first, as far as there are enough: where a threshold is low or high, the furthest are all of one
    side. A patient is shown once among them.

    Args:
        scores: of a model; labels without a threshold have no calls, and so no examples.
        pseudonyms: whose ``of(text)`` returns the pseudonym of a patient or a row.
        n: at most so many of each kind.
        draw: returns the picture of each row and label; without it there are none.
    """
    found, rows = [], []
    names = scores.ids if scores.patients is None else scores.patients
    for i, kind, sides in _most_confident(scores):
        for row in _half_of_each(sides, names, n):
            rows.append(row)
            truth = scores.labels[int(scores.targets[row].argmax())] if scores.task == "multiclass" else ""
            found.append(
                Example(
                    case=pseudonyms.of(str(names[row])), label=scores.labels[i], truth=truth, kind=kind,
                    probability=float(scores.probabilities[row, i]), target=int(scores.targets[row, i]),
                    called=int(scores.calls[row, i]),
                )
            )  # fmt: skip
    if draw is not None:
        pictures = draw(scores, [(row, example.label) for row, example in zip(rows, found, strict=True)])
        found = [replace(example, image=picture) for example, picture in zip(found, pictures, strict=True)]
    return tuple(found)


def _half_of_each(sides: Sequence[Rows], names: StrArray, n: int) -> list[int]:
    """Return ``n`` rows of different patients, half of each side, or more of one where the other has too few."""
    left = [iter(rows.tolist()) for rows in sides]
    picked: list[list[int]] = [[] for _ in sides]
    seen: set[str] = set()
    while len(seen) < n:
        before = len(seen)
        for rows, found in zip(left, picked, strict=True):
            row = next((row for row in rows if str(names[row]) not in seen), None)
            if row is not None and len(seen) < n:
                seen.add(str(names[row]))
                found.append(row)
        if len(seen) == before:
            break
    return [row for found in picked for row in found]


def _most_confident(scores: Scores) -> Iterator[tuple[int, Kind, tuple[Rows, ...]]]:
    """Yield each label and kind with its positive and its negative rows, the most confident first."""
    calls = scores.calls
    for i in range(len(scores.labels)):
        known = ~np.isnan(scores.targets[:, i]) & ~np.isnan(calls[:, i])
        distance = scores.log_odds[:, i]
        if scores.task == "multiclass":
            known &= calls[:, i] == 1
        elif (limit := scores.thresholds[i] if scores.thresholds else None) is not None:
            p = min(max(limit, 1e-12), 1 - 1e-12)
            distance = np.abs(distance - np.log(p / (1 - p)))
        order = np.argsort(-distance, kind="stable")
        right, positive = calls[:, i] == scores.targets[:, i], scores.targets[:, i] == 1
        kinds: tuple[tuple[Kind, NDArray[np.bool_]], ...] = (("wrong", ~right), ("correct", right))
        for kind, of in kinds:
            yield i, kind, tuple(order[(known & of & side)[order]] for side in (positive, ~positive))
