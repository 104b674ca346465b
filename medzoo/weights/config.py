"""``config.json``: what a saved model states about itself, written in the present format and read in any.

A config is data with a closed schema, see :mod:`medzoo.weights.formats`: it can name a registered builder and its
options, and nothing that runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from medzoo.contract import Outputs, Preprocessing
from medzoo.errors import ConfigError, MedzooError, WeightsUnavailable
from medzoo.input_spec import InputSpec
from medzoo.provenance import UNSTATED, Calibration, IntendedUse, ThresholdPolicy
from medzoo.version import __version__
from medzoo.weights.formats import COUNT, FORMAT, FORMATS, NOT_STATED, WEIGHTS_FILE, UnknownFieldError, complete
from medzoo.weights.record import LocalFile, Weights
from medzoo.weights.safetensors import parse_json

__all__ = ["CONFIG_FILE", "ModelConfig", "SavedModel", "parse_config", "read_folder", "tuples"]

CONFIG_FILE = "config.json"
MAX_CONFIG = 2**20
DTYPES = ("float32", "float16", "bfloat16", "float64")


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
    return parse_config(data, str(path), path.parent)


def parse_config(data: bytes, path: str, folder: Path, again: str = "Save the model again") -> SavedModel:
    """Return what a config states; the weights are not read.

    Args:
        data: the config.
        path: where it is, for messages.
        folder: where the weights are.
        again: what to do with one that is not as medzoo writes it.

    Raises:
        ConfigError: the config is not medzoo's, or of a newer medzoo.
    """
    if len(data) > MAX_CONFIG:
        raise ConfigError(f"{path}: expected at most {MAX_CONFIG:,} bytes, got more. This is not a config of medzoo.")
    try:
        config = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected JSON, got other text ({error}). {again}.") from error
    if not isinstance(config, dict) or "format" not in config:
        raise ConfigError(f"{path}: expected a config that medzoo wrote, got another. Only its own can be loaded.")
    found, writer = config["format"], str(config.get("medzoo", NOT_STATED))
    by = f"It was written by medzoo {writer}, this is medzoo {__version__}"
    upgrade = "Upgrade medzoo to that version, or newer"
    damaged = f"{again}: it was edited or damaged"
    if type(found) is not int or found not in FORMATS:
        newer = type(found) is int and found > FORMAT
        raise ConfigError(
            f"{path}: format {found!r} is not known; this medzoo reads formats up to {FORMAT}. {by}. "
            f"{upgrade if newer else damaged}."
        )
    try:
        config = complete(config, found)
        return SavedModel(config["model"], _record(config, folder))
    except MedzooError as error:
        raise type(error)(f"{path}: {error}") from error
    except UnknownFieldError as error:
        advice = upgrade if _release(writer) > _release(__version__) else damaged
        raise ConfigError(f"{path}: {error} {by}. {advice}.") from error
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise ConfigError(f"{path}: not as medzoo writes it ({error}). {again}.") from error


def _release(version: str) -> list[int]:
    """Return the numbers of a version.

    >>> _release("0.10.1") > _release("0.9")
    True
    """
    return [int(number) for number in re.findall(r"\d{1,9}", version)]


def _record(config: dict[str, Any], folder: Path) -> Weights:
    """Return the weights of a complete config in ``folder``."""
    options = tuples(config["options"])
    num_classes, in_chans = options.pop("num_classes"), options.pop("in_chans")
    for name, count, least in (("num_classes", num_classes, 0), ("in_chans", in_chans, 1)):
        if not COUNT.fits(count) or count < least:
            raise ValueError(f"options: expected {name} to be an int >= {least}, got {count!r}")
    stated = tuples(config["outputs"])
    for name, kind in (("policy", ThresholdPolicy), ("calibration", Calibration)):
        if stated.get(name) is not None:
            stated[name] = kind(**stated[name])
    outputs = Outputs(**stated)
    if len(outputs.labels) != num_classes:
        raise ValueError(f"outputs: expected a label for each of {num_classes} outputs, got {len(outputs.labels)}")
    if config["channels"] and len(config["channels"]) != in_chans:
        raise ValueError(f"expected a name for each of {in_chans} channels, got {len(config['channels'])}")
    weights = config["weights"]
    if weights["file"] != WEIGHTS_FILE:
        raise ValueError(f"weights: expected the file {WEIGHTS_FILE!r}, got {weights['file']!r}")
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", weights["digest"]):
        raise ValueError(f"weights: expected the digest 'sha256:' and 64 hex digits, got {weights['digest'][:80]!r}")
    if config["dtype"] not in DTYPES:
        raise ValueError(f"expected dtype to be one of {', '.join(DTYPES)}, got {config['dtype']!r}")
    has_head = num_classes > 0
    return Weights(
        tag=str(folder),
        source=LocalFile((folder / WEIGHTS_FILE).absolute()),
        digest=weights["digest"],
        size=weights["size"],
        license=config["license"],
        citation="",
        trained_on=config["trained_on"],
        part="model" if has_head else "encoder",
        in_chans=in_chans,
        channels=tuple(config["channels"]),
        labels=outputs.labels,
        task=outputs.task if has_head else None,
        thresholds=outputs.thresholds,
        normalised=outputs.normalised,
        trained=outputs.trained,
        preprocessing=Preprocessing(**tuples(config["preprocessing"])),
        metrics=dict(config["metrics"]),
        options=options,
        policy=outputs.policy,
        calibration=outputs.calibration,
        prevalence=outputs.prevalence,
        loss_weights=outputs.loss_weights,
        caution=outputs.caution,
        intended_use=IntendedUse(**tuples(config.get("intended_use", {}))),
        num_classes=num_classes,
        dtype=config["dtype"],
        input_spec=_input_spec(config["input"]),
    )


def _input_spec(stated: Mapping[str, Any]) -> InputSpec:
    """Return the input of a model, whose numbers must go together."""
    spec = InputSpec(**tuples(stated))
    if spec.axes not in ("b c h w", "b c d h w") or len(spec.size) != spec.dims:
        raise ValueError(f"input: expected axes 'b c h w' or 'b c d h w' and a size for them, got {spec.axes!r}")
    if min(spec.channels, spec.multiple, spec.minimum, *spec.size) < 1:
        raise ValueError("input: expected channels, size, multiple and minimum of 1 or more, got 0")
    return spec


def tuples(value: Any) -> Any:
    """Return tuples for lists, also inside of sets of fields: JSON has lists alone.

    >>> tuples({"widths": [4, [8]]})
    {'widths': (4, (8,))}
    """
    if isinstance(value, Mapping):
        return {name: tuples(inner) for name, inner in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, (list, tuple)) else value
