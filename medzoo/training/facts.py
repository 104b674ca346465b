"""What a checkpoint belongs to: a resume with another recipe, model, data or numeric choice is refused."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from medzoo.errors import ConfigError
from medzoo.training.environment import Environment, resolve_environment
from medzoo.training.recipe import Recipe
from medzoo.training.setup import Setup
from medzoo.warn import warn

__all__ = ["check_environment", "check_facts", "data_fingerprint", "differences", "facts_of", "flat"]

RESOLVED = ("device", "precision", "threads")
"""Fields of ``train`` that are compared as they were resolved."""


def facts_of(setup: Setup, environment: Environment) -> dict[str, Any]:
    """Return what determines the weights, as plain values."""
    return {
        "recipe": _fields(setup.recipe),
        # What the model's own defaults made of the recipe's.
        "preprocessing": flat(asdict(setup.pixels.transform.preprocessing), "preprocessing."),
        "labels": list(setup.table.labels),
        "task": setup.table.task,
        "data": data_fingerprint(setup),
        "numeric": environment.facts(),
    }


def _fields(recipe: Recipe) -> dict[str, Any]:
    """Return the fields that change the weights, by their dotted names."""
    values = recipe.effective()
    for name in RESOLVED:
        del values["train"][name]
    if recipe.model.name.startswith("local-dir:"):
        del values["model"]["name"]  # the folder may have moved, and the checkpoint has the weights
    return flat(values)


def flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the fields of sections by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return found


def data_fingerprint(setup: Setup) -> str:
    """Return a hash of the rows, their targets and points, the parts, and the decoded pixels of every image in them."""
    table, split, pixels = setup.table, setup.split, setup.pixels.identities.pixels
    digest = hashlib.sha256("\0".join((*table.labels, table.task)).encode())
    for part in (split.train, split.valid, split.test):
        digest.update(f"\1{part.name}".encode())
        for row in part.rows.tolist():
            digest.update(f"\0{table.ids[row]}\0{pixels[row]}\0".encode(errors="backslashreplace"))
            digest.update(table.targets[row].astype("<f4").tobytes())
            if table.points is not None:  # which may be of a mask that was corrected since
                digest.update(table.points[row].astype("<f8").tobytes())
    return digest.hexdigest()


def check_facts(there: dict[str, Any], here: dict[str, Any], *, folder: Any, inexact: bool = False) -> None:
    """Check that a checkpoint is of this training.

    Args:
        there: facts of the checkpoint.
        here: facts of this training.
        folder: of the training, for the message.
        inexact: whether other numeric choices are accepted, with a warning.

    Raises:
        ConfigError: they differ; the message names each difference.
    """
    found = [
        *differences(there["recipe"], here["recipe"]),
        *differences(there.get("preprocessing", {}), here["preprocessing"]),
        *differences(*({key: facts[key] for key in ("labels", "task")} for facts in (there, here))),
    ]
    if there["data"] != here["data"]:
        found.append("the images, their labels, or their split are not those of the checkpoint")
    if found:
        raise ConfigError(
            f"resume: {folder} holds another training than this one: {'; '.join(found)}. "
            "Restore what was changed, or train into another folder."
        )
    _check_numbers(there["numeric"], here["numeric"], folder, inexact)


def check_environment(there: dict[str, Any], setup: Setup, folder: Any, *, inexact: bool = False) -> int:
    """Check that a run is resumed under the numeric choices it began with, and return its number of threads.

    Args:
        there: ``environment`` of ``run.json``.
        setup: of the run.
        folder: of the run, for the message.
        inexact: see :func:`check_facts`.

    Raises:
        ConfigError: they differ; the message names each difference.
    """
    threads = there.get("threads")
    how = setup.recipe.train
    here = resolve_environment(how, setup.model.input_spec.dims, threads=threads if isinstance(threads, int) else None)
    _check_numbers(there, here.facts(), folder, inexact)
    return here.threads


def _check_numbers(there: dict[str, Any], here: dict[str, Any], folder: Any, inexact: bool) -> None:
    numeric = differences(there, here)
    if numeric and not inexact:
        raise ConfigError(
            f"resume: the numbers in {folder} were computed otherwise: {'; '.join(numeric)}. Resume under the same "
            "conditions for the same weights, or accept slightly other weights with inexact=True."
        )
    if numeric:
        warn(f"resumed under other conditions, so the weights will differ slightly: {'; '.join(numeric)}")


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return what is other than it was, by name."""
    names = [*there, *(name for name in here if name not in there)]
    return [
        f"{name} is {here.get(name, 'absent')!r}, was {there.get(name, 'absent')!r}"
        for name in names
        if there.get(name, "absent") != here.get(name, "absent")
    ]
