"""The grid of a sweep: every combination of the values of some fields, as one recipe with one name each."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medzoo.errors import ConfigError
from medzoo.training.facts import flat
from medzoo.training.overrides import override, plain_value, resolve_field
from medzoo.training.recipe import NO_EFFECT, PREPROCESSING_FIELDS, Recipe
from medzoo.training.run import with_absolute_model

__all__ = ["MOST", "Combination", "Grid", "shared_fields", "value_text"]

MOST = 200
"""Combinations of a sweep: with more, the best on the validation part is little but the luckiest."""
SEED = "train.seed"

# The other fields of the section change which rows there are, or what they are labelled.
_HOW_IMAGES_ARE_READ = {"size", *PREPROCESSING_FIELDS}


@dataclass(frozen=True, eq=False)
class Combination:
    """One value of each field.

    Attributes:
        name: of the folder of its run.
        values: by the name of the field.
        recipe: of its run.
    """

    name: str
    values: Mapping[str, Any]
    recipe: Recipe


@dataclass(frozen=True, eq=False)
class Grid:
    """Every combination of the values of some fields.

    Attributes:
        base: what all runs share, by dotted field: what changes the weights, and what is decided on the validation
            part.
        values: of each field, by its name, in the order in which they were given.
        seed: the name of the field ``train.seed``, if it is one of them.
        combinations: the first field changes slowest.
    """

    base: Mapping[str, Any]
    values: Mapping[str, tuple[Any, ...]]
    seed: str | None
    combinations: tuple[Combination, ...]

    @classmethod
    def of(cls, recipe: Recipe, over: Mapping[str, Sequence[Any]], order: Sequence[str] = ()) -> Grid:
        """Return the grid, with every combination checked.

        Args:
            recipe: what all runs share.
            over: values by field.
            order: names of fields that come first, in this order.

        Raises:
            ConfigError: a field that there is not, or by which the runs could not be compared; a value that the recipe
                refuses; too many combinations; lists all faults.
        """
        given, paths = _resolve(recipe, over)
        names = _short_names(paths)
        fields = sorted(given, key=lambda one: order.index(names[one]) if names[one] in order else len(order))
        count = math.prod(len(given[field]) for field in fields)
        if count > MOST:
            raise ConfigError(
                f"sweep: expected at most {MOST} combinations, got {count:,} of {len(fields)} fields. The best of so "
                "many on one validation part is little but the luckiest. Give fewer values."
            )
        faults: dict[str, None] = {}
        found: list[Combination] = []
        for values in itertools.product(*(given[field] for field in fields)):
            try:
                own = override(recipe, dict(zip(fields, values, strict=True)), "sweep")
            except ConfigError as error:
                faults |= dict.fromkeys(_lines(error))
                continue
            plain = {
                names[field]: _value(own, paths[field], value) for field, value in zip(fields, values, strict=True)
            }
            found.append(Combination(_name(plain), plain, with_absolute_model(own)))
        _raise(list(faults))
        _check_distinct(found)
        swept = {path for own in paths.values() for path in own}
        return cls(
            base={name: value for name, value in shared_fields(recipe).items() if not _within(name, swept)},
            values={
                names[field]: tuple(_unique(one.values[names[field]] for one in found)) for field in fields
            },
            seed=next((names[field] for field in fields if paths[field] == [SEED]), None),
            combinations=tuple(found),
        )  # fmt: skip


def shared_fields(recipe: Recipe) -> dict[str, Any]:
    """Return what has to be the same in all runs, by dotted field."""
    return flat({**recipe.effective(), "decide": recipe.decide.model_dump(mode="json")})


def value_text(value: Any) -> str:
    """Return a value as a recipe has it.

    >>> [value_text(value) for value in (16, 1e-4, True, None, "cosine", ["x", "y"])]
    ['16', '0.0001', 'true', 'null', 'cosine', '["x", "y"]']
    """
    return value if isinstance(value, str) else json.dumps(value)


def _resolve(
    recipe: Recipe, over: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, list[Any]], dict[str, list[str]]]:  # fmt: skip
    """Return the values and the paths of each field as it was given."""
    if not isinstance(over, Mapping) or not over:
        raise ConfigError(f'sweep: expected fields with values, such as over={{"batch": [16, 64]}}, got {over!r}.')
    given: dict[str, list[Any]] = {}
    paths: dict[str, list[str]] = {}
    faults: list[str] = []
    for name, values in over.items():
        plain = plain_value(values)
        if not isinstance(plain, list | range) or not len(plain):
            faults.append(f"{name}: expected a list of values, such as [16, 64], got {values!r}.")
            continue
        try:
            own = [path for value in plain for path, _ in resolve_field(name, value, type(recipe))]
        except ConfigError as error:
            faults.append(str(error))
            continue
        faults += filter(None, map(_why_refused, dict.fromkeys(own)))
        faults += [
            f"{path}: given twice, by {other} and {name}. Leave one out."
            for other, known in paths.items() for path in dict.fromkeys(own) if path in known
        ]  # fmt: skip
        given[name], paths[name] = list(plain), list(dict.fromkeys(own))
    _raise(faults)
    return given, paths


def _why_refused(path: str) -> str:
    """Return why the runs of other values of a field could not be compared; empty if they can."""
    section, _, field = path.partition(".")
    without = NO_EFFECT.get(section, ())
    if without is True or field in (without or ()) or path in ("format", "data.cache"):
        return f"{path}: it does not change the trained weights, so that there is nothing to choose. Leave it out."
    if section == "split" or (section == "data" and field not in _HOW_IMAGES_ARE_READ):
        return (
            f"{path}: the runs would have other rows, labels or parts, and could not be compared. Set it for all runs, "
            "or train two sweeps."
        )
    return ""


def _raise(faults: Sequence[str]) -> None:
    if len(faults) == 1:
        raise ConfigError(f"sweep: {faults[0]}")
    if faults:
        raise ConfigError("\n  ".join([f"sweep: {len(faults)} faults", *faults]))


def _lines(error: ConfigError) -> list[str]:
    """Return the faults of a recipe, without who says it."""
    first, *rest = str(error).split("\n  ")
    return rest or [first.removeprefix("sweep: ")]


def _short_names(paths: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the name of each field as it was given: the last part of its path, where no other has it."""
    short = {name: own[0].rpartition(".")[2] if len(own) == 1 else name for name, own in paths.items()}
    every = list(short.values())
    return {name: one if every.count(one) == 1 else paths[name][0] for name, one in short.items()}


def _value(recipe: Recipe, paths: Sequence[str], given: Any) -> Any:
    """Return the value of a field as the recipe has it, where 1 may be 1.0; as given for several fields at once."""
    if len(paths) > 1:
        return given
    found: Any = recipe.model_dump(mode="json")
    for part in paths[0].split(".", 2):
        found = found[part]
    return found


def _name(values: Mapping[str, Any]) -> str:
    """Return the name of a combination, which is that of a folder on any system.

    >>> _name({"batch": 16, "lr": 1e-4}), _name({"flip": ["x", "y"], "model": "a:b"})
    ('batch=16,lr=0.0001', 'flip=x+y,model=a-b-6783a3')
    """
    name = ",".join(f"{_safe(field)}={_safe(_joined(value))}" for field, value in values.items())
    return name if len(name) <= 120 else f"{name[:110]}-{_hash(name)}"


def _joined(value: Any) -> str:
    """Return a list of plain values as one text."""
    if isinstance(value, list) and value and not any(isinstance(one, list | dict) for one in value):
        return "+".join(map(value_text, value))
    return value_text(value)


def _safe(text: str) -> str:
    """Return a text of letters, digits and a few signs; what is another text has another result."""
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "-", text)[:40]
    return safe if safe == text and text == text.lower() else f"{safe}-{_hash(text)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _check_distinct(found: Sequence[Combination]) -> None:
    """Raise ConfigError if two combinations are one training, as with 1e-4 and 0.0001."""
    seen: dict[str, Combination] = {}
    for one in found:
        other = seen.setdefault(one.recipe.digest(), one)
        if other is not one:
            same = f"{one.name} twice" if one.name == other.name else f"{other.name} and {one.name}"
            raise ConfigError(f"sweep: expected different trainings, got {same}. Give each value once.")


def _within(name: str, swept: set[str]) -> bool:
    """Whether a field, or a dictionary that it is a key of, is one of the sweep."""
    return any(name == path or name.startswith(f"{path}.") for path in swept)


def _unique(values: Iterator[Any]) -> Iterator[Any]:
    """Yield each value once, in order; some are lists, which have no hash."""
    seen: list[Any] = []
    for value in values:
        if value not in seen:
            seen.append(value)
            yield value
