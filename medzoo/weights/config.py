"""``config.json``, what a saved model states about itself: the formats, and reading and writing them.

A config is data with a closed schema: it can name a registered builder and its options, and nothing that runs. A format
that was published is never changed: a new field goes into the present format only together with the value that older
files without it mean, and anything else makes a new format. Every format is read for ever.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from medzoo.contract import InputSpec, Outputs, Preprocessing
from medzoo.errors import ConfigError, MedzooError, WeightsUnavailable, did_you_mean
from medzoo.provenance import UNSTATED, Calibration, IntendedUse, ThresholdPolicy
from medzoo.version import __version__
from medzoo.weights.record import LocalFile, Weights
from medzoo.weights.safetensors import parse_json

__all__ = ["CONFIG_FILE", "FORMAT", "NOT_STATED", "WEIGHTS_FILE", "ModelConfig", "SavedModel", "read_folder"]

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
NOT_STATED = "not stated"
# The format that is written.
FORMAT = 2
MAX_CONFIG = 2**20
DTYPES = ("float32", "float16", "bfloat16", "float64")
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
    },
    "outputs.policy": {"rule": REQUIRED, "split": "", "positives": [], "negatives": [], "scale": "probability"},
    "outputs.calibration": {**dict.fromkeys(("method", "slope", "intercept"), REQUIRED), "split": ""},
    "weights": {**dict.fromkeys(("digest", "size"), REQUIRED), "file": WEIGHTS_FILE},
    "intended_use": {"modality": [], "body_part": [], "population": "", "age_range": None},
}
FORMATS = {1: FORMAT_1, 2: FORMAT_2}


@dataclass(frozen=True)
class ModelConfig:
    """What a model states about itself when it is saved.

    Attributes:
        name: the registered builder.
        options: all options of the builder; empty if the model was not made by :func:`medzoo.create`.
        input_spec: the input of the model.
        outputs: the meaning of its outputs.
        preprocessing: how a file becomes an input.
        channels: meaning of each input channel, in order; empty if there is nothing to state.
        license: licence of the weights that were loaded.
        trained_on: their training data, in a sentence.
        intended_use: the images and patients they were made for.
    """

    name: str
    options: Mapping[str, Any]
    input_spec: InputSpec
    outputs: Outputs
    preprocessing: Preprocessing | None
    channels: tuple[str, ...] = ()
    license: str = NOT_STATED
    trained_on: str = NOT_STATED
    intended_use: IntendedUse = UNSTATED

    def to_json(self, *, dtype: str, digest: str, size: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Return the config, in the present format.

        Args:
            dtype: dtype of the parameters, such as ``"float32"``.
            digest: of the weight file.
            size: bytes of the weight file.
            metrics: figures to publish with the weights.
        """
        return {
            "format": FORMAT,
            "medzoo": __version__,
            "torch": str(torch.__version__),
            "model": self.name,
            "options": self.options,
            "dtype": dtype,
            "input": asdict(self.input_spec),
            "preprocessing": None if self.preprocessing is None else asdict(self.preprocessing),
            "outputs": asdict(self.outputs),
            "weights": {"file": WEIGHTS_FILE, "digest": digest, "size": size},
            "channels": self.channels,
            "license": self.license,
            "trained_on": self.trained_on,
            "metrics": dict(metrics),
            "intended_use": asdict(self.intended_use),
        }


class SavedModel(NamedTuple):
    """The registered builder that a config names, and its weights."""

    model: str
    weights: Weights


def read_folder(folder: str | os.PathLike[str]) -> SavedModel:
    """Return what a folder of :meth:`Classifier.save_pretrained` states; its weights are not read yet.

    Raises:
        WeightsUnavailable: there is no such folder or no config in it.
        ConfigError: the config is not medzoo's, or of a newer medzoo.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG + 1)
    except OSError as error:
        raise WeightsUnavailable(
            f"{path}: the config cannot be read ({error.strerror or error}). Give a folder that save_pretrained wrote."
        ) from error
    if len(data) > MAX_CONFIG:
        raise ConfigError(f"{path}: expected at most {MAX_CONFIG:,} bytes, got more. This is not a config of medzoo.")
    return _read_config(data, path)


def _read_config(data: bytes, path: Path) -> SavedModel:
    """Return what a config states; the weights beside it are not read.

    Args:
        data: the config.
        path: where it is, for messages and to find the weights.

    Raises:
        ConfigError: the config is not medzoo's, or of a newer medzoo.
    """
    try:
        config = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected JSON, got other text ({error}). Save the model again.") from error
    if not isinstance(config, dict) or "format" not in config:
        raise ConfigError(f"{path}: expected a config that medzoo wrote, got another. Only its own can be loaded.")
    by = f"It was written by medzoo {config.get('medzoo')}, this is medzoo {__version__}"
    found = config["format"]
    if type(found) is not int or found not in FORMATS:
        raise ConfigError(
            f"{path}: format {found!r} is not known; this medzoo reads formats up to {FORMAT}. {by}. Upgrade medzoo to "
            "the version that wrote it, or newer."
        )
    try:
        config = _complete(config, FORMATS[found])
        return SavedModel(config["model"], _record(config, path.parent))
    except MedzooError:
        raise
    except UnknownFieldError as error:
        newer = config.get("medzoo") not in (None, __version__)
        advice = "Upgrade medzoo to that version, or newer" if newer else "Save the model again"
        raise ConfigError(f"{path}: {error} {by}. {advice}.") from error
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not as medzoo writes it ({error}). Save the model again.") from error


class UnknownFieldError(Exception):
    """A field that the format does not have; the message names it."""


def _complete(config: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a config with all fields of its format, after checking that it has no other."""
    done: dict[str, Any] = _filled("config", config, sections["config"])
    for section, fields in sections.items():
        *parents, name = section.split(".")
        owner = done[parents[0]] if parents else done
        if section != "config" and not (parents and owner[name] is None):
            owner[name] = _filled(section, owner[name], fields)
    return done


def _filled(section: str, values: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a section in the format's order, missing ones by their defaults."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{section} is {values!r}, not a set of fields")
    for name in values:
        if name not in fields:
            raise UnknownFieldError(f"no field {name!r} of {section} is known.{did_you_mean(name, fields)}")
    for name, default in fields.items():
        if default is REQUIRED and name not in values:
            raise ValueError(f"the field {name!r} of {section} is missing")
    return {name: values.get(name, default) for name, default in fields.items()}


def _record(config: dict[str, Any], folder: Path) -> Weights:
    """Return the weights of a complete config in ``folder``."""
    options = {name: _tuples(value) for name, value in config["options"].items()}
    num_classes, in_chans = options.pop("num_classes"), options.pop("in_chans")
    stated = _tuples_of(config["outputs"])
    for name, kind in (("policy", ThresholdPolicy), ("calibration", Calibration)):
        if stated.get(name) is not None:
            stated[name] = kind(**stated[name])
    outputs = Outputs(**stated)
    weights = config["weights"]
    if weights["file"] != WEIGHTS_FILE:
        raise ValueError(f"the weights are in {weights['file']!r}, not in {WEIGHTS_FILE}")
    if config["dtype"] not in DTYPES:
        raise ValueError(f"the dtype is {config['dtype']!r}")
    has_head = num_classes > 0
    return Weights(
        tag=str(folder),
        source=LocalFile((folder / WEIGHTS_FILE).absolute()),
        digest=str(weights["digest"]),
        size=int(weights["size"]),
        license=str(config["license"]),
        citation="",
        trained_on=str(config["trained_on"]),
        part="model" if has_head else "encoder",
        in_chans=in_chans,
        channels=tuple(map(str, config["channels"])),
        labels=outputs.labels,
        task=outputs.task if has_head else None,
        thresholds=outputs.thresholds,
        normalised=outputs.normalised,
        trained=outputs.trained,
        preprocessing=Preprocessing(**_tuples_of(config["preprocessing"])),
        metrics=dict(config["metrics"]),
        options=options,
        policy=outputs.policy,
        calibration=outputs.calibration,
        prevalence=outputs.prevalence,
        intended_use=IntendedUse(**_tuples_of(config.get("intended_use", {}))),
        num_classes=num_classes,
        dtype=config["dtype"],
        input_spec=InputSpec(**_tuples_of(config["input"])),
    )


def _tuples_of(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _tuples(value) for name, value in values.items()}


def _tuples(value: Any) -> Any:
    """Turn JSON's lists back into tuples."""
    if isinstance(value, Mapping):
        return _tuples_of(value)
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
