"""Labels as they are written to targets: ``n l`` of 0, 1 and NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medzoo.contract import Task

__all__ = ["read_labels"]


def read_labels(
    values: Any, names: Sequence[str] | None, task: Task | None, who: str
) -> tuple[NDArray[np.float32], tuple[str, ...], Task]:
    """Return the targets ``n l``, the names of the labels and the task."""
    array = np.asarray(values)
    if array.ndim == 2:
        return array.astype(np.float32), tuple(names or (f"label_{i}" for i in range(array.shape[1]))), "multilabel"
    texts = np.array([str(v) for v in array.tolist()])
    classes = sorted(set(texts))
    if classes == ["0", "1"]:
        return (texts == "1").astype(np.float32)[:, None], tuple(names or ("positive",)), "binary"
    return (texts[:, None] == np.array(classes)).astype(np.float32), tuple(classes), "multiclass"
