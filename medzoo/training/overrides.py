"""Other values for a recipe: fields by their name where it is unique, by their path where it is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from medzoo.errors import ConfigError, did_you_mean
from medzoo.training.recipe_faults import fields_of
from medzoo.training.recipe_files import parse_value

if TYPE_CHECKING:
    from medzoo.training.recipe import Recipe

__all__ = ["override", "parse_settings", "plain_value", "resolve_field", "split_model"]

SHORT = {"seed": "train.seed"}
OPEN = ("model.options", "split.leave_out")  # dictionaries whose keys may be part of a path
WAYS = ("split.column", "split.folds", "split.leave_out")


def override(recipe: Recipe, overrides: Mapping[str, Any], who: str | None = None) -> Recipe:
    """Return a recipe with other values; see :meth:`Recipe.with_`."""
    if not overrides:
        return recipe
    changes: dict[str, Any] = {}
    faults: list[str] = []
    for name, value in overrides.items():
        try:
            for path, plain in resolve_field(name, plain_value(value), type(recipe)):
                if path in changes and changes[path] != plain:
                    faults.append(f"{path}: given twice, as {changes[path]!r} and {plain!r}.")
                changes[path] = plain
        except ConfigError as error:
            faults.append(str(error))
    who = who or f"recipe {recipe.name}"
    if faults:
        raise ConfigError(
            f"{who}: {faults[0]}" if len(faults) == 1 else "\n  ".join([f"{who}: several faults", *faults])
        )
    # Another way to split replaces that of the recipe.
    if any(changes.get(way) for way in WAYS):
        changes = {**dict.fromkeys(WAYS), "split.fold": 0, **changes}
    values = recipe.model_dump()
    for path, plain in changes.items():
        *sections, field = path.split(".", 2)
        target = values
        for section in sections:
            target[section] = dict(target[section] or {})
            target = target[section]
        target[field] = plain
    return type(recipe).from_values(values, who)


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Return the values of texts such as ``"train.epochs=20"``, in which a value is written as in a recipe.

    >>> parse_settings(["lr=1e-4", "augment.flip=[x, y]"])
    {'lr': 0.0001, 'augment.flip': ['x', 'y']}
    """
    values: dict[str, Any] = {}
    for text in settings:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise ConfigError(f"expected a setting as field=value, such as optimizer.lr=1e-4, got {text!r}.")
        if name.strip() in values:
            raise ConfigError(f"{name.strip()} is set twice. Leave one out.")
        values[name.strip()] = parse_value(value, name.strip())
    return values


def split_model(text: str) -> dict[str, Any]:
    """Return the fields of ``"name"`` or ``"name:tag"``; a folder and a repository have no tag.

    >>> split_model("swin_encoder_mlp:btcv"), split_model("local-dir:runs/a/model")["name"]
    ({'name': 'swin_encoder_mlp', 'pretrained': 'btcv'}, 'local-dir:runs/a/model')
    """
    if text.startswith(("hf-hub:", "local-dir:")):
        return {"name": text, "pretrained": False}
    name, _, tag = text.partition(":")
    return {"name": name, "pretrained": tag or False}


def resolve_field(name: str, value: Any, schema: type[Recipe]) -> list[tuple[str, Any]]:
    """Return the paths that a name stands for, with their values."""
    if name == "model" and isinstance(value, str):
        return [(f"model.{key}", part) for key, part in split_model(value).items()]
    default = getattr(schema.model_fields.get(name), "default", None)
    if value is None and isinstance(default, BaseModel):
        return [(f"{name}.{key}", part) for key, part in default.model_dump().items()]
    if isinstance(value, dict) and name in schema.model_fields:
        return [(f"{name}.{key}", part) for key, part in value.items()]
    paths = list(fields_of(schema))
    if name in paths:
        return [(name, value)]
    if name in SHORT:
        return [(SHORT[name], value)]
    if any(name.startswith(f"{parent}.") for parent in OPEN):
        return [(name, value)]
    found = [path for path in paths if path.rpartition(".")[2] == name]
    if len(found) == 1:
        return [(found[0], value)]
    if found:
        raise ConfigError(f"{name!r} is a field of several sections. Choose one of {', '.join(found)}.")
    if name in schema.model_fields:
        raise ConfigError(f"{name}: expected its fields with values, got {value!r}. Set {name}.FIELD.")
    raise ConfigError(f"no field {name!r}.{_near(name, paths)}")


def _near(name: str, paths: list[str]) -> str:
    """Return the nearest path of a dotted name, or the nearest field of another."""
    section, dot, field = name.rpartition(".")
    if not dot:
        return did_you_mean(name, [path.rpartition(".")[2] for path in paths])
    inside = [path for path in paths if path.startswith(f"{section}.")]
    elsewhere = [path for path in paths if path.rpartition(".")[2] == field]
    if elsewhere:
        return f" Did you mean {elsewhere[0]!r}?"
    return did_you_mean(name, inside or paths)


def plain_value(value: Any) -> Any:
    """Return a value of Python as it would be in a file: no NumPy numbers, tuples and paths."""
    if isinstance(value, np.generic | np.ndarray):
        return plain_value(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain_value(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_value(part) for part in value]
    return str(value) if isinstance(value, PurePath) else value
