"""A file of scores as medzoo writes it: ``id``, ``patient``, ``logit:…``, ``probability:…``, ``target:…`` and more."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medzoo.atomic import write_atomically
from medzoo.data.identity import names_patients, pseudonym
from medzoo.errors import DataError
from medzoo.evaluation.score_files.layout import OWN

if TYPE_CHECKING:
    from medzoo.evaluation.scores import Scores

__all__ = ["write_scores"]


def write_scores(scores: Scores, path: Path) -> Path:
    """Write the file completely or not at all; see :meth:`Scores.to_csv`."""
    columns: dict[str, Any] = {"id": scores.ids.tolist()}
    if scores.patients is not None:
        written = {patient: pseudonym(patient) for patient in set(scores.patients.tolist())}
        columns["patient"] = [written[patient] for patient in scores.patients.tolist()]
    blocks: dict[str, Any] = {"probability": scores.probabilities, "target": scores.targets}
    if not np.array_equal(scores.ranks, scores.probabilities):
        blocks = {"logit": scores.ranks, **blocks}
    for name, calls in scores.readers.items():
        blocks[f"reader:{name}"] = calls
    for kind, block in blocks.items():
        for i, label in enumerate(scores.labels):
            columns[f"{kind}:{label}"] = _texts(block[:, i].tolist(), whole=block.dtype == np.float32)
    for name, values in scores.groups.items():
        taken = name in ("id", "patient") or name.startswith((*OWN, "reader:"))
        if not taken and not names_patients(values, scores.patients):
            columns[name] = values.tolist()
    text = io.StringIO()
    # Before Python 3.13 a carriage return is quoted only if everything is.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.getvalue().encode())
    except OSError as error:
        raise DataError(
            f"{path}: the scores cannot be written ({error.strerror or error}). Check permissions and free space."
        ) from error
    return path


def _texts(values: list[float], whole: bool) -> list[str]:
    """Return numbers as text that reads back to the same number, and NaN as blank."""
    return ["" if value != value else str(int(value)) if whole else repr(value) for value in values]
