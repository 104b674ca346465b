"""The formats of ``config.json``: which fields each has, of which type, and what a missing one means.

A format that was published is never changed: a new field goes into the present format only together with the value that
older files without it mean, and anything else makes a new format. Every format is read for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from medzoo.errors import did_you_mean

__all__ = [
    "COUNT",
    "FORMAT",
    "FORMATS",
    "KINDS",
    "NOT_STATED",
    "REQUIRED",
    "WEIGHTS_FILE",
    "UnknownFieldError",
    "complete",
]

WEIGHTS_FILE = "model.safetensors"
NOT_STATED = "not stated"
# The format that is written.
FORMAT = 2
# A field that must be there.
REQUIRED: Any = object()

# The fields of each section, and what a missing one means. A section in another one may be null.
FORMAT_1: dict[str, dict[str, Any]] = {
    "config": {
        **dict.fromkeys(("format", "medzoo", "torch", "model", "options", "dtype", "input", "preprocessing"), REQUIRED),
        **dict.fromkeys(("outputs", "weights", "license", "trained_on", "metrics"), REQUIRED),
        "channels": [],
    },
    "input": dict.fromkeys(("axes", "channels", "size", "multiple", "minimum", "exact", "lone_minimum"), REQUIRED),
    "preprocessing": dict.fromkeys(
        ("size", "orientation", "spacing", "intensity", "window", "foreground", "fit", "mean", "std", "patch", "views"),
        REQUIRED,
    ),
    "outputs": {**dict.fromkeys(("labels", "task", "thresholds", "trained"), REQUIRED), "normalised": False},
    "weights": dict.fromkeys(("file", "digest", "size"), REQUIRED),
}
FORMAT_2: dict[str, dict[str, Any]] = {
    "config": {
        **dict.fromkeys(("format", "model", "options", "dtype", "input", "preprocessing", "outputs"), REQUIRED),
        "weights": REQUIRED,
        "medzoo": NOT_STATED,
        "torch": NOT_STATED,
        "channels": [],
        "license": NOT_STATED,
        "trained_on": NOT_STATED,
        "metrics": {},
        "intended_use": {},
    },
    "input": {
        **dict.fromkeys(("axes", "channels", "size"), REQUIRED),
        "multiple": 1,
        "minimum": 1,
        "exact": False,
        "lone_minimum": 0,
    },
    "preprocessing": {
        "size": REQUIRED,
        "orientation": None,
        "spacing": None,
        "intensity": "unit",
        "window": None,
        "foreground": False,
        "fit": "resize",
        "mean": [0.0],
        "std": [1.0],
        "patch": None,
        "views": [],
        "resample": "reference",
    },
    # Outputs that are not stated to be trained are not.
    "outputs": {
        **dict.fromkeys(("labels", "task"), REQUIRED),
        "thresholds": [],
        "trained": [],
        "normalised": False,
        "policy": None,
        "calibration": None,
        "prevalence": [],
        "loss_weights": [],
        "caution": "",
    },
    "outputs.policy": {
        "rule": REQUIRED,
        "split": "",
        "positives": [],
        "negatives": [],
        "scale": "probability",
        "sensitivity": [],
        "specificity": [],
    },
    "outputs.calibration": {**dict.fromkeys(("method", "slope", "intercept"), REQUIRED), "split": "", "prevalence": []},
    "weights": {**dict.fromkeys(("digest", "size"), REQUIRED), "file": WEIGHTS_FILE},
    "intended_use": {"modality": [], "body_part": [], "population": "", "age_range": None},
}
FORMATS = {1: FORMAT_1, 2: FORMAT_2}


class FieldType(NamedTuple):
    """The type of a field: its name in messages, and whether a value from JSON is of it."""

    name: str
    fits: Callable[[Any], bool]


def _all(one: FieldType, plural: str, count: int | None = None) -> FieldType:
    """Return the kind of a list, of ``count`` values if that is given."""
    return FieldType(
        plural, lambda v: isinstance(v, list) and count in (None, len(v)) and all(one.fits(value) for value in v)
    )


def _or_null(kind: FieldType) -> FieldType:
    return FieldType(f"{kind.name} or null", lambda v: v is None or kind.fits(v))


def _is_option(value: Any, depth: int = 0) -> bool:
    """Whether a value can be an option of a builder: a scalar, or lists of such."""
    if isinstance(value, list):
        return depth < 4 and all(_is_option(inner, depth + 1) for inner in value)
    return value is None or isinstance(value, (str, bool)) or NUMBER.fits(value)


def _is_figure(value: Any) -> bool:
    # NaN is one: an AUROC of a label without positives is.
    return value is None or isinstance(value, (int, float, str))


TEXT = FieldType("a text", lambda v: isinstance(v, str))
FLAG = FieldType("true or false", lambda v: isinstance(v, bool))
# The bounds keep what is computed from them within 64 bits.
COUNT = FieldType("an int >= 0", lambda v: type(v) is int and 0 <= v < 2**40)
NUMBER = FieldType(
    "a finite number", lambda v: (type(v) is int and abs(v) < 2**40) or (type(v) is float and math.isfinite(v))
)
TEXTS, FLAGS = _all(TEXT, "a list of texts"), _all(FLAG, "a list of true or false")
COUNTS, NUMBERS = _all(COUNT, "a list of ints >= 0"), _all(NUMBER, "a list of finite numbers")
NUMBERS_OR_NULL = _all(_or_null(NUMBER), "a list of finite numbers or null")
PAIR = _all(NUMBER, "a list of two finite numbers", 2)
SECTION = FieldType("a set of fields", lambda v: isinstance(v, Mapping))
OPTIONS = FieldType("a set of options", lambda v: isinstance(v, Mapping) and all(map(_is_option, v.values())))
FIGURES = FieldType("a set of figures", lambda v: isinstance(v, Mapping) and all(map(_is_figure, v.values())))
KINDS: dict[str, dict[str, FieldType]] = {
    "config": {
        **dict.fromkeys(("medzoo", "torch", "model", "dtype", "license", "trained_on"), TEXT),
        **dict.fromkeys(("input", "preprocessing", "outputs", "weights", "intended_use"), SECTION),
        "format": COUNT,
        "options": OPTIONS,
        "channels": TEXTS,
        "metrics": FIGURES,
    },
    "input": {
        **dict.fromkeys(("channels", "multiple", "minimum", "lone_minimum"), COUNT),
        "axes": TEXT,
        "size": COUNTS,
        "exact": FLAG,
    },
    "preprocessing": {
        **dict.fromkeys(("intensity", "fit", "resample"), TEXT),
        **dict.fromkeys(("spacing", "patch"), _or_null(NUMBERS)),
        **dict.fromkeys(("mean", "std"), NUMBERS),
        "size": COUNTS,
        "orientation": _or_null(TEXT),
        "window": _or_null(PAIR),
        "foreground": FLAG,
        "views": TEXTS,
    },
    "outputs": {
        "thresholds": NUMBERS_OR_NULL,
        **dict.fromkeys(("prevalence", "loss_weights"), NUMBERS),
        **dict.fromkeys(("policy", "calibration"), _or_null(SECTION)),
        "labels": TEXTS,
        **dict.fromkeys(("task", "caution"), TEXT),
        "trained": FLAGS,
        "normalised": FLAG,
    },
    "outputs.policy": {
        **dict.fromkeys(("rule", "split", "scale"), TEXT),
        **dict.fromkeys(("positives", "negatives"), COUNTS),
        **dict.fromkeys(("sensitivity", "specificity"), NUMBERS_OR_NULL),
    },
    "outputs.calibration": {
        **dict.fromkeys(("method", "split"), TEXT),
        **dict.fromkeys(("slope", "intercept"), NUMBERS),
        "prevalence": NUMBERS_OR_NULL,
    },
    "weights": {**dict.fromkeys(("digest", "file"), TEXT), "size": COUNT},
    "intended_use": {
        **dict.fromkeys(("modality", "body_part"), TEXTS),
        "population": TEXT,
        "age_range": _or_null(PAIR),
    },
}
# What a format accepts otherwise: before format 2, each output had a threshold.
KINDS_OF: dict[int, dict[str, dict[str, FieldType]]] = {
    1: KINDS | {"outputs": KINDS["outputs"] | {"thresholds": NUMBERS}},
    2: KINDS,
}


class UnknownFieldError(Exception):
    """A field that the format does not have; the message names it."""


def complete(config: Mapping[str, Any], number: int = FORMAT) -> dict[str, Any]:
    """Return a config with all fields of the format of that number, after checking that it has no other."""
    sections, kinds = FORMATS[number], KINDS_OF[number]
    done: dict[str, Any] = _filled("config", config, sections["config"], kinds["config"])
    for section, fields in sections.items():
        *parents, name = section.split(".")
        owner = done[parents[0]] if parents else done
        if section != "config" and not (parents and owner[name] is None):
            owner[name] = _filled(section, owner[name], fields, kinds[section])
    return done


def _filled(section: str, values: Any, fields: Mapping[str, Any], kinds: Mapping[str, FieldType]) -> dict[str, Any]:
    """Return the fields of a section in the format's order, missing ones by their defaults."""
    for name in values:
        if name not in fields:
            raise UnknownFieldError(f"no field {name!r} of {section} is known.{did_you_mean(name, fields)}")
    for name, default in fields.items():
        if default is REQUIRED and name not in values:
            raise ValueError(f"the field {name!r} of {section} is missing")
    done = {name: values.get(name, default) for name, default in fields.items()}
    for name, value in done.items():
        kind = kinds[name]
        if not kind.fits(value):
            raise ValueError(f"{section}: expected {name} to be {kind.name}, got {repr(value)[:60]}")
    return done
