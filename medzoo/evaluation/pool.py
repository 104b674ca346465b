"""``pool``: the scores of several models on different rows as one table, such as out-of-fold scores.

Axes: n rows, l labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.scores import Scores

__all__ = ["pool"]

NOTE = (
    "rows were scored by {} models, each by one that was not trained on its patient: a ranking over all of them also "
    "has the differences between the models, and there are no thresholds, as each model has its own"
)


def pool(parts: Sequence[Scores], *, source: str = "out-of-fold scores") -> Scores:
    """Return the rows of all parts, as of the validation parts of folds, without thresholds.

    Args:
        parts: with the same labels and task, and no row twice.
        source: what they are, for messages.

    Raises:
        ConfigError: no parts, or other labels in one of them.
        DataError: a row in two parts.
    """
    if not parts:
        raise ConfigError("pool: expected scores, got none.")
    first = parts[0]
    for part in parts[1:]:
        if (part.labels, part.task) != (first.labels, first.task):
            raise ConfigError(
                f"pool: expected {first.task} scores of {', '.join(first.labels)}, got {part.task} ones of "
                f"{', '.join(part.labels)} in {part.source}. Evaluate it by itself."
            )
    ids = np.concatenate([np.asarray(part.ids, np.str_) for part in parts])
    twice = len(ids) - len(np.unique(ids))
    if twice:
        raise DataError(
            f"pool: expected each row in one part, got {twice:,} in two. Give one run for each fold of the same split."
        )
    known = all(part.patients is not None for part in parts)
    groups = [name for name in first.groups if all(name in part.groups for part in parts)]
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("ranks", "logits", "probabilities", "targets")
    }
    return Scores(
        ids=ids, labels=first.labels, task=first.task, source=source, notes=(NOTE.format(len(parts)),),
        patients=np.concatenate([np.asarray(part.patients, np.str_) for part in parts]) if known else None,
        groups={name: np.concatenate([part.groups[name] for part in parts]) for name in groups}, **arrays,
    )  # fmt: skip
