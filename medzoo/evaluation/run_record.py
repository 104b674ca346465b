"""``RunRecord``: what the folder of a training holds, read without what a training needs.

A run is read by its resume, by an evaluation and by a report. Patients are hashed in all files of a run, see
:func:`medzoo.data.identity.pseudonym`.

Axes: n rows, l labels.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medzoo.data.identity import Dropped
from medzoo.data.table import Table
from medzoo.data.table_npz import read_images
from medzoo.data.texts import StrArray, Texts
from medzoo.errors import ConfigError, DataError
from medzoo.evaluation.caution import stated_caution
from medzoo.evaluation.scores import Scores
from medzoo.weights.config import read_folder
from medzoo.weights.record import Weights

__all__ = [
    "ID",
    "LINE",
    "OWN_PREFIX",
    "PART",
    "PATHS",
    "PATIENT",
    "PIXELS",
    "POINT",
    "TARGET",
    "HasFolder",
    "RunRecord",
    "is_run",
]

OWN_PREFIX = "medzoo:"
"""What the names of the columns begin with that medzoo adds; no user's column has such a name."""
PART = f"{OWN_PREFIX}part"
"""The column of ``table.csv`` that holds the part of each row; empty for a row in none."""
PIXELS = f"{OWN_PREFIX}pixels"
"""The column that holds the hash of the decoded pixels of each row; empty for a constant image, or one not read."""
POINT = f"{OWN_PREFIX}point"
"""The column that holds x, y and z of each row in mm, RAS; only of a table of points."""
GIVE_AGAIN = "Give the images again: medzoo.resume(folder, data=table), medzoo.evaluate(folder, table, part=...)."
ELSEWHERE = (
    "If it is elsewhere now: Give the images again: medzoo.resume(folder, data=table), "
    "medzoo.evaluate(folder, table, part=...)."
)
"""What helps where the images of a run cannot be read from the table that it keeps."""
LINE, ID, PATIENT, PATHS, TARGET = (
    f"{OWN_PREFIX}line", f"{OWN_PREFIX}id", f"{OWN_PREFIX}patient", f"{OWN_PREFIX}paths", f"{OWN_PREFIX}target:",
)  # fmt: skip


def own_groups(groups: Mapping[str, StrArray]) -> dict[str, StrArray]:
    """Return the user's columns: those that medzoo did not add."""
    return {name: values for name, values in groups.items() if not name.startswith(OWN_PREFIX)}


class HasFolder(Protocol):
    """A run that has ended, as :func:`medzoo.train` returns it."""

    @property
    def folder(self) -> Path:
        """The folder of the run."""


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of a run."""
    return (Path(path) / "run.json").is_file()


class RunRecord:
    """The files of a run.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def model(self) -> Path:
        """What :func:`medzoo.create` loads."""
        return self.path / "model"

    def facts(self) -> dict[str, Any]:
        """Return ``run.json``.

        Raises:
            ConfigError: it is not the folder of a run.
        """
        path = self.path / "run.json"
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not JSON"
            raise ConfigError(
                f"{self.path}: expected the folder of a run, with run.json in it, but it cannot be read ({reason}). "
                "Check the path, or start a new run."
            ) from error
        if not isinstance(found, dict):
            raise ConfigError(f"{path}: expected what medzoo wrote, got another JSON value. Start a new run.")
        return found

    def sampling(self) -> dict[str, float] | None:
        """Return the share of positives in the population by label if the rows were sampled by class, else ``None``.

        It is empty if the run does not state it.

        Raises:
            ConfigError: it is not the folder of a run.
        """
        return _sampling(self.facts())

    def caution(self) -> str:
        """Return why figures of this run say nothing about new patients; empty for all but some of a reproduction."""
        return stated_caution(self.facts())

    def fingerprint(self) -> dict[str, Any]:
        """Return ``data/fingerprint.json``; a run of an older medzoo has fewer fields.

        Raises:
            DataError: it cannot be read.
        """
        path = self.path / "data" / "fingerprint.json"
        try:
            found = json.loads(path.read_text("utf-8"))
            if not isinstance(found, dict):
                raise ValueError("another JSON value than medzoo writes")
        except (OSError, ValueError) as error:
            raise _unreadable(path, "fingerprint of the data", error) from error
        return found

    def weights(self) -> Weights:
        """Return what ``model/config.json`` states about the model; neither builds it nor reads its tensors.

        Raises:
            ConfigError: the run has not ended, or the config is not medzoo's.
        """
        if not (self.model / "config.json").is_file():
            self.facts()  # raises for another folder
            raise ConfigError(
                f"{self.path}: the run has no model yet, as its training did not end. Continue it with medzoo.resume."
            )
        return read_folder(self.model).weights

    def read_log(self) -> tuple[dict[str, float], ...]:
        """Return the rows of ``log.csv``, one for each epoch; NaN where nothing was written.

        Raises:
            DataError: it cannot be read.
        """
        path = self.path / "log.csv"
        if not path.exists():
            return ()
        try:
            return tuple({name: float(v) if v else math.nan for name, v in row.items()} for row in _rows(path)[1])
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise _unreadable(path, "log of the run", error) from error

    def dropped(self) -> tuple[Dropped, ...]:
        """Return the rows of ``data/dropped.csv``: those of the table in no part, with the reason.

        Raises:
            DataError: it cannot be read.
        """
        path = self.path / "data" / "dropped.csv"
        try:
            return tuple(Dropped(int(row["row"]), row["id"], row["reason"]) for row in _rows(path)[1])
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise _unreadable(path, "list of dropped rows", error) from error

    def read_table(self) -> Table:
        """Return the table of the run, with hashed patients and the parts as the group :data:`PART`.

        The images of an NPZ file are read again. Whether they have changed is seen by who compares their pixels.

        Raises:
            ConfigError: the table was of images in memory.
            DataError: the table, or the NPZ file, cannot be read.
        """
        table = self.read_rows()
        if table.paths is not None:
            return table
        if table.archive is None:
            raise ConfigError(
                f"{self.path}: the run was started with images in memory, which it does not keep. {GIVE_AGAIN}"
            )
        if not Path(table.archive).is_file():
            raise DataError(
                f"{table.archive}: expected the NPZ file that {self.path} was started with, found nothing there. Put "
                "it back. " + ELSEWHERE
            )
        return replace(table, arrays=read_images(table.archive, table.ids))

    def read_rows(self) -> Table:
        """Return the same as :meth:`read_table`, without images where they were in memory or of an NPZ file.

        Raises:
            DataError: the file cannot be read.
        """
        path, facts = self.path / "data" / "table.csv", self.facts()
        try:
            sampling = _sampling(facts)
            names, rows = _rows(path)
            if PART not in names:
                raise ValueError(f"it has no column {PART}")
            labels = tuple(name.removeprefix(TARGET) for name in names if name.startswith(TARGET))
            own = {LINE, ID, PATIENT, PATHS, POINT, *(TARGET + label for label in labels)}
            in_memory = any(not row[PATHS] for row in rows)
            patients = np.array([row[PATIENT] for row in rows])
            return Table(
                ids=np.array([row[ID] for row in rows]),
                targets=_numbers(rows, [TARGET + label for label in labels]).astype(np.float32),
                labels=labels,
                task=facts["task"],
                paths=None if in_memory else Texts(row[PATHS] for row in rows),
                patients=patients if all(patients != "") else None,
                groups={n: np.array([row[n] for row in rows]) for n in names if n not in own},
                points=np.array([row[POINT].split() for row in rows], np.float64) if POINT in names else None,
                prevalence=tuple(sampling[label] for label in labels) if sampling else None,
                archive=str(facts["archive"]) if facts.get("archive") else None,
                lines=np.array([int(row[LINE]) for row in rows]),
                source=str(facts.get("source", path)),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            raise _unreadable(path, "table of the run", error) from error

    def predictions(self, name: str) -> Scores:
        """Return the scores of ``predictions/NAME.csv``, with the columns of the table as groups.

        Thresholds and task are those of the model. With probabilities that are rescaled around them
        (``Outputs.normalised``), each threshold is 0.5.

        Args:
            name: of the part, such as ``"valid"``.

        Raises:
            ConfigError: the run has no such predictions, or has not ended.
            DataError: they cannot be read, or are not of the table and the model of this run.
        """
        stated, path = self.weights(), self.path / "predictions" / f"{name}.csv"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in path.parent.glob("*.csv"))) or "none"
            raise ConfigError(f"{self.path}: expected predictions of the run, got {name!r}. It has {known}.")
        table, task = self.read_rows(), stated.task or "binary"
        try:
            header, rows = _rows(path)
            labels = tuple(one.removeprefix("logit:") for one in header if one.startswith("logit:"))
            ids = np.array([row["id"] for row in rows], dtype=np.str_)
            patients = np.array([row["patient"] for row in rows], dtype=np.str_)
            logits, probabilities, targets = (
                _numbers(rows, [f"{kind}:{label}" for label in labels]) for kind in ("logit", "probability", "target")
            )
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise _unreadable(path, "predictions", error) from error
        if labels != stated.labels:
            raise DataError(
                f"{path}: expected the labels of the model, {', '.join(stated.labels)}, got {', '.join(labels)}. "
                "The model or the predictions were replaced: evaluate the model on the data again."
            )
        at = _places(table.ids, ids, path)
        thresholds = tuple(stated.thresholds)
        if stated.normalised:
            thresholds = tuple(0.5 if trained else None for trained in stated.trained)
        return Scores.from_logits(
            logits,
            probabilities=probabilities if stated.normalised else None,
            task=task,
            ids=ids,
            targets=targets.astype(np.float32),
            labels=labels,
            thresholds=thresholds,
            threshold_rule=stated.policy.rule if stated.policy else "",
            patients=patients if len(patients) and all(patients != "") else None,
            groups={name: values[at] for name, values in own_groups(table.groups).items()},
            source=f"{path}",
        )


def _sampling(facts: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the prevalence that ``run.json`` states of a table that was sampled by class."""
    stated = facts.get("prevalence") or {}
    return {str(label): float(share) for label, share in stated.items()} if facts.get("case_sampled") else None


def _rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the header and the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return list(reader.fieldnames or ()), rows


def _numbers(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> NDArray[np.float64]:
    """Return columns as numbers, ``n l``; NaN where nothing was written."""
    values = [[float(row[name] or "nan") for name in columns] for row in rows]
    return np.array(values, dtype=np.float64).reshape(len(rows), len(columns))


def _places(known: StrArray, ids: StrArray, path: Path) -> NDArray[np.int64]:
    """Return where ids are in the table."""
    places = {str(one): row for row, one in enumerate(known)}
    absent = sum(str(one) not in places for one in ids)
    if absent:
        raise DataError(
            f"{path}: {absent:,} of {len(ids):,} rows are not in the table of the run. The predictions or the table "
            "were replaced: evaluate the model on the data again."
        )
    return np.array([places[str(one)] for one in ids], dtype=np.int64)


def _unreadable(path: Path, what: str, error: Exception) -> DataError:
    reason = (error.strerror or error) if isinstance(error, OSError) else error
    return DataError(f"{path}: the {what} cannot be read ({reason}). Restore the file, or start a new run.")
