"""The folder of a run: what is in it, and how each file is written.

``recipe.yaml``, ``run.json``, ``data/`` (``table.csv``, ``dropped.csv``, ``fingerprint.json``), ``log.csv``,
``figures/``, ``state/`` (checkpoints), ``initial/`` (a model that was given as an object), ``model/`` and
``predictions/``. A patient id is written hashed.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medzoo.atomic import write_atomically
from medzoo.contract import Outputs
from medzoo.data.identity import names_patients, pseudonym
from medzoo.data.table import Table
from medzoo.errors import TrainError
from medzoo.evaluation.drift import describe_data, summarise_pixels
from medzoo.evaluation.run_record import ID, LINE, OWN_PREFIX, PART, PATHS, PATIENT, PIXELS, POINT, TARGET, RunRecord
from medzoo.training.facts import data_fingerprint
from medzoo.training.setup import Setup
from medzoo.training.validation import ValidationPredictions

__all__ = ["RunFolder", "fingerprint"]


class RunFolder(RunRecord):
    """Paths and files of one run: what :class:`~medzoo.evaluation.run_record.RunRecord` reads, and how it is written.

    Args:
        path: the folder.
    """

    @property
    def state(self) -> Path:
        """The checkpoints, and the lock."""
        return self.path / "state"

    @property
    def figures(self) -> Path:
        """The pictures."""
        return self.path / "figures"

    def write(self, name: str, data: bytes | str) -> Path:
        """Write a file whole or not at all.

        Raises:
            TrainError: it cannot be written.
        """
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data.encode() if isinstance(data, str) else data)
        except OSError as error:
            raise TrainError(
                f"{path}: the file cannot be written ({error.strerror or error}). Check permissions and free space, "
                "then resume the run."
            ) from error
        return path

    def write_json(self, name: str, value: Mapping[str, Any]) -> Path:
        """Write a JSON file, which has no NaN or infinity: other programs do not read them."""
        return self.write(name, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
        """Write a CSV file."""
        text = io.StringIO()
        # Before Python 3.13 a carriage return is quoted only if everything is.
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(header)
        writer.writerows(rows)
        return self.write(name, text.getvalue())

    def update(self, **facts: Any) -> None:
        """Change fields of ``run.json``."""
        self.write_json("run.json", {**(self.facts() if (self.path / "run.json").exists() else {}), **facts})

    def write_data(self, setup: Setup) -> str:
        """Write the table with the part of each row, the rows dropped, and the fingerprint; return its digest."""
        table, split = setup.table, setup.split
        groups = written_groups(table)
        header = [LINE, ID, PART, PATIENT, PATHS, *(TARGET + label for label in table.labels), PIXELS]
        header += [*([] if table.points is None else [POINT]), *groups]
        rows = _table_rows(table, split.part_of_rows(), setup.pixels.identities.compared, groups)
        self.write_csv("data/table.csv", header, rows)
        self.write_csv("data/dropped.csv", ("row", "id", "reason"), ((d.row, d.id, d.reason) for d in split.dropped))
        found = fingerprint(setup)
        self.write_json("data/fingerprint.json", found)
        return str(found["digest"])

    def discard(self) -> None:
        """Remove what was written for a run that has not begun; the lock stays."""
        for name in ("initial", "data", "figures"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / "recipe.yaml").unlink(missing_ok=True)

    def remove_empty(self) -> None:
        """Remove the folder of a run that has not begun, if there is nothing but the lock in it."""
        with suppress(OSError):
            for path in self.state.iterdir():
                path.unlink()
            self.state.rmdir()
            self.path.rmdir()

    def write_predictions(self, name: str, table: Table, outputs: Outputs, predictions: ValidationPredictions) -> None:
        """Write the logits, probabilities and targets of a part, one row for each image."""
        rows, logits, targets = predictions
        probabilities = outputs.probabilities(logits)
        columns = [f"{kind}:{label}" for kind in ("logit", "probability", "target") for label in outputs.labels]
        values = torch.cat([logits.float(), probabilities.float(), targets.float()], 1).tolist()
        patients = table.patients

        def lines() -> Iterable[list[Any]]:
            for row, numbers in zip(rows.tolist(), values, strict=True):
                patient = "" if patients is None else pseudonym(str(patients[row]))
                yield [table.ids[row], patient, *("" if number != number else repr(number) for number in numbers)]

        self.write_csv(f"predictions/{name}.csv", ("id", "patient", *columns), lines())


def written_groups(table: Table) -> list[str]:
    """Return the columns that are written: those that do not name patients, and are not of another run's table."""
    return [
        name for name, values in table.groups.items()
        if not name.startswith(OWN_PREFIX) and not names_patients(values, table.patients)
    ]  # fmt: skip


def _table_rows(
    table: Table, parts: NDArray[np.str_], pixels: NDArray[np.str_], groups: Sequence[str]
) -> Iterable[list[Any]]:  # fmt: skip
    """Yield the rows of ``table.csv``."""
    lines = table.lines if table.lines is not None else np.arange(len(table))
    for row in range(len(table)):
        targets = ["" if value != value else f"{value:g}" for value in table.targets[row].tolist()]
        patient = "" if table.patients is None else pseudonym(str(table.patients[row]))
        paths = "" if table.paths is None else table.paths[row]
        yield [
            lines[row],
            table.ids[row],
            parts[row],
            patient,
            paths,
            *targets,
            pixels[row],
            *([] if table.points is None else [" ".join(map(repr, table.points[row].tolist()))]),
            *(table.groups[name][row] for name in groups),
        ]


def fingerprint(setup: Setup) -> dict[str, Any]:
    """Return the counts of the data by part and label, figures of the training part, and the digest."""
    table, parts = setup.table, {}
    for part in (setup.split.train, setup.split.valid, setup.split.test):
        targets = table.targets[part.rows]
        parts[part.name] = {
            "rows": len(part),
            "patients": None if table.patients is None else len(np.unique(table.patients[part.rows])),
            "positives": dict(zip(table.labels, np.nansum(targets, 0).astype(int).tolist(), strict=True)),
            "known": dict(zip(table.labels, (~np.isnan(targets)).sum(0).tolist(), strict=True)),
        }
    train = setup.split.train.rows
    written = {name: table.groups[name] for name in written_groups(table)}
    about = describe_data(replace(table, paths=None, arrays=None, groups=written).select(train))
    return {
        "rows": len(table), "labels": list(table.labels), "task": table.task, "parts": parts,
        "groups": about["groups"], "pixels": summarise_pixels(setup.pixels, train).to_dict(),
        "digest": data_fingerprint(setup),
    }  # fmt: skip
