"""The folder of a sweep: what is swept is in ``sweep.json``, so that a folder never mixes two sweeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medzoo.atomic import write_atomically
from medzoo.data.identity import pseudonym
from medzoo.data.table import Table
from medzoo.errors import ConfigError, TrainError
from medzoo.evaluation.run_record import is_run
from medzoo.training.facts import differences
from medzoo.training.folder import open_folder
from medzoo.training.recipe import Recipe
from medzoo.training.sweep_grid import Grid, shared_fields, value_text
from medzoo.version import __version__

__all__ = [
    "FAILED",
    "PLAN",
    "check_same_sweep",
    "check_sweep_folder",
    "digest_of_rows",
    "has_trained",
    "plan_of",
    "read_failure",
    "read_plan",
    "write_file",
]

PLAN, FAILED = "sweep.json", "failed.json"


def plan_of(grid: Grid, table: Table) -> dict[str, Any]:
    """Return ``sweep.json``."""
    return {
        "format": 1, "medzoo": __version__, "base": dict(grid.base),
        "over": {name: list(values) for name, values in grid.values.items()},
        "data": {"source": table.source, "rows": len(table), "digest": digest_of_rows(table)},
    }  # fmt: skip


def read_plan(folder: Path) -> dict[str, Any] | None:
    """Return ``sweep.json``; ``None`` if there is none."""
    path = folder / PLAN
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["format"] != 1:
            raise ConfigError(f"{path}: expected format 1, got {found['format']!r}. It may be of a later medzoo.")
        if not _is_plan(found):
            raise TypeError
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: the sweep cannot be read ({_why(error)}). Restore the file, or choose another folder."
        ) from error
    return dict(found)


def _is_plan(found: Mapping[str, Any]) -> bool:
    """Whether the parts of ``sweep.json`` that are used are what :func:`plan_of` writes."""
    base, over, data = found["base"], found["over"], found["data"]
    return (
        isinstance(base, dict) and isinstance(over, dict) and all(isinstance(values, list) for values in over.values())
        and isinstance(data["digest"], str) and type(data["rows"]) is int
    )  # fmt: skip


def read_failure(folder: Path) -> dict[str, Any] | None:
    """Return ``failed.json`` of a run; ``None`` if there is none.

    Raises:
        ConfigError: it cannot be read, or is not what medzoo wrote.
    """
    path = folder / FAILED
    try:
        found = json.loads(path.read_text("utf-8"))
        if not (isinstance(found["recipe"], str) and isinstance(found["reason"], str)):
            raise TypeError
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: why the run failed cannot be read ({_why(error)}). Delete the folder {folder} to train it again."
        ) from error
    return dict(found)


def _why(error: Exception) -> str:
    return str(error.strerror or error) if isinstance(error, OSError) else "it is not what medzoo wrote"


def has_trained(folder: Path) -> bool:
    """Whether a run of a sweep has begun."""
    return any(any(folder.glob(f"*/{name}")) for name in ("run.json", FAILED))


def check_same_sweep(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Check that a folder holds the sweep that is asked for, or a part of it.

    The same fields may have more values than before, and none fewer.

    Args:
        folder: of the sweep, for the message.
        there: ``sweep.json``.
        here: what would be written.

    Raises:
        ConfigError: another recipe, other data or another grid; the message names each difference.
    """
    # A field that a later medzoo adds has its default.
    base = {name: value for name, value in here["base"].items() if name in there["base"] or value != _default(name)}
    found = differences(there["base"], base)
    if there["data"]["digest"] != here["data"]["digest"]:
        rows = f"{here['data']['rows']:,} rows, was {there['data']['rows']:,}"
        found.append(f"the rows, labels or patients of the data are others than when the sweep began ({rows})")
    for name in {**there["over"], **here["over"]}:
        before, now = there["over"].get(name), here["over"].get(name)
        if before is None or now is None:
            found.append(f"{name} is {'a new field' if before is None else 'not a field any more'}")
        elif lost := [value for value in before if value not in now]:
            found.append(f"{name} has no longer {', '.join(map(value_text, lost))}")
    if found:
        raise ConfigError(
            f"sweep: {folder} holds another sweep than this one: {'; '.join(found)}. Give what was given before, with "
            "more values if you like, or choose another folder."
        )


def _default(name: str) -> Any:
    """Return the default of a dotted field; ``None`` for one that has none."""
    return shared_fields(Recipe.from_values({"model": {"name": "any"}})).get(name)


def digest_of_rows(table: Table, *columns: Any) -> str:
    """Return a hash of rows, labels, patients and points, without a path, as the folder of the images may move."""
    found = hashlib.sha256("\0".join((*table.labels, table.task)).encode())
    for name in table.ids:
        found.update(f"\0{name}".encode(errors="backslashreplace"))
    found.update(table.targets.astype("<f4").tobytes())
    patients = () if table.patients is None else map(pseudonym, map(str, table.patients))
    for values in (patients, *columns):
        found.update("\0".join(map(str, values)).encode(errors="backslashreplace") + b"\1")
    if table.points is not None:
        found.update(table.points.astype("<f8").tobytes())
    return found.hexdigest()


def check_sweep_folder(folder: Path) -> None:
    """Check that a sweep can write into a folder, and make it if it is absent.

    Raises:
        ConfigError: it is a file, holds something else, or cannot be written.
    """
    try:
        held = open_folder(folder)
    except OSError as error:
        raise ConfigError(f"sweep: cannot write to {folder}: {error.strerror}. Choose another folder.") from error
    if PLAN in held or (held <= {"state"} and not any((folder / "state").glob("*.ckpt"))):
        return
    what = "holds a run of medzoo.train" if is_run(folder) else "is not empty"
    raise ConfigError(f"sweep: {folder} {what}. Choose another folder.")


def write_file(path: Path, data: bytes) -> None:
    """Write a file of a sweep completely or not at all.

    Raises:
        TrainError: it cannot be written.
    """
    try:
        write_atomically(path, data)
    except OSError as error:
        raise TrainError(
            f"{path}: the file cannot be written ({error.strerror or error}). Check permissions and free space, then "
            "call the sweep again: finished runs are kept."
        ) from error
